"""Keep a fraction of the rows by rank.

``ratio`` is the default: an exact count, ties cut by hash. ``quantile`` keeps all the ties of the
last row, so it may keep more. Not for small fractions of ambiguous or noisy data: the hardest rows
alone can be worse than random ones (every comparison has the random arm that shows it).
"""

from __future__ import annotations

from dataprune_ray.config import SelectConfig
from dataprune_ray.cutoff import KeepRule, Population, exact_cut, group_counts, pooled
from dataprune_ray.strategies.base import (
    ScoreInfo,
    Strategy,
    compare,
    decimal_fraction,
    kept_end,
    rule_of_cut,
    rule_of_threshold,
    share_of,
)


def ratio(population: Population, config: SelectConfig, info: ScoreInfo) -> KeepRule:
    """Keep exactly ``floor(keep * N + 0.5)`` rows."""
    end = kept_end(config, info)
    whole = pooled(population)
    rows = int(group_counts(whole)[0])
    quota = share_of(decimal_fraction(config.keep), rows)
    (cut,) = exact_cut(whole, [quota], end=end, by_score=True)
    return rule_of_cut(population, info, end, cut=cut, rows=rows)


def quantile(population: Population, config: SelectConfig, info: ScoreInfo) -> KeepRule:
    """Keep every row at or beyond the exact k-th score, ``k = floor(keep * N + 0.5)``."""
    end = kept_end(config, info)
    whole = pooled(population)
    rows = int(group_counts(whole)[0])
    quota = share_of(decimal_fraction(config.keep), rows)
    (cut,) = exact_cut(whole, [quota], end=end, by_score=True)
    kept = cut.quota + cut.tied - cut.tied_kept
    sentence = f"Keep {kept:,} of {rows:,} rows"
    if cut.score is not None:
        sentence += f": every {info.metric} {compare(end)} {cut.score:.6g}, the score at rank "
        sentence += f"{quota:,}, ties included"
    return rule_of_threshold(population, info, end, cut.score, f"{sentence}.")


RATIO = Strategy(
    name="ratio",
    summary="exactly the keep fraction, from the kept end of the score; ties cut by hash",
    advice="not for small fractions of noisy or ambiguous data: the hardest rows alone mislead",
    needs_labels=False,
    uses_score=True,
    uses_keep=True,
    compile=ratio,
)

QUANTILE = Strategy(
    name="quantile",
    summary="every row at or beyond the exact quantile; all ties kept",
    advice="not for scores with many ties, such as counts: it can keep far more than asked",
    needs_labels=False,
    uses_score=True,
    uses_keep=True,
    compile=quantile,
)
