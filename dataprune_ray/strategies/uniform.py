"""Keep a uniformly random fraction: the baseline that every other strategy must beat.

The choice is by seeded hash of the row, so it is the same on any cluster. Not as a way to prune,
unless nothing else beats it, which happens at small fractions.
"""

from __future__ import annotations

from dataprune_ray.config import SelectConfig
from dataprune_ray.cutoff import KeepRule, Population, exact_cut, group_counts, pooled
from dataprune_ray.strategies.base import (
    ScoreInfo,
    Strategy,
    bands_of_cut,
    decimal_fraction,
    share_of,
)


def random(population: Population, config: SelectConfig, info: ScoreInfo) -> KeepRule:
    """Keep exactly ``floor(keep * N + 0.5)`` rows, those with the lowest seeded hashes."""
    del info
    whole = pooled(population)
    rows = int(group_counts(whole)[0])
    quota = share_of(decimal_fraction(config.keep), rows)
    (cut,) = exact_cut(whole, [quota], end="high", by_score=False, sizes=[rows])
    return KeepRule(
        bands=tuple(bands_of_cut(cut, "high", None)),
        groups=population.groups,
        metric="",
        end=None,
        explanation=f"Keep exactly {quota:,} of {rows:,} rows, chosen by hash.",
        cutoffs={"": None},
    )


RANDOM = Strategy(
    name="random",
    summary="exactly the keep fraction at random, by seeded hash",
    advice="not as a way to prune: it is the baseline to beat",
    needs_labels=False,
    uses_score=False,
    uses_keep=True,
    compile=random,
)
