"""Keep a band of the ranked rows: skip the share ``beta`` at the kept end, keep what follows.

Use it on noisy labels, where the hardest rows are the mislabelled ones: ``beta`` should be about
the share of wrong labels. Not on clean, easy data, where the skipped rows are the most useful.
"""

from __future__ import annotations

from dataprune_ray.config import SelectConfig
from dataprune_ray.cutoff import KeepRule, Population, exact_cut
from dataprune_ray.strategies.base import (
    NoiseFirst,
    ScoreInfo,
    Strategy,
    bands_of_cut,
    clause_of_cut,
    superlative,
)


def window(population: Population, config: SelectConfig, info: ScoreInfo) -> KeepRule:
    """Skip ``floor(beta * N + 0.5)`` rows of the kept end and keep the next ``keep`` share.

    Rows rank by score from the kept end, ties by ascending hash. Exactly ``floor(keep * N + 0.5)``
    rows are kept; where both shares round up past N, one row fewer is skipped.

    Raises:
        ConfigError: ``beta + keep`` exceeds 1.
    """
    noise = NoiseFirst.of(population, config, info)
    end, quota = noise.end, noise.quota
    last = noise.skipped + quota if quota else 0
    (cut,) = exact_cut(noise.whole, [last], end=end, by_score=True)
    sentence = f"Keep exactly {quota:,} of {noise.rows:,} rows: those with the {superlative(end)} "
    sentence += f"{info.metric}{noise.clause}{clause_of_cut(cut, end, noise.cut)}."
    return KeepRule(
        bands=tuple(bands_of_cut(cut, end, None)),
        groups=population.groups,
        metric=info.metric,
        end=end,
        explanation=sentence,
        cutoffs={"": cut.score},
        noise=noise.bands,
    )


WINDOW = Strategy(
    name="window",
    summary="exactly the keep fraction after the --beta share of the kept end; ties cut by hash",
    advice="not on clean, easy data: the rows that it skips are the most useful there",
    needs_labels=False,
    uses_score=True,
    uses_keep=True,
    compile=window,
    uses_beta=True,
)
