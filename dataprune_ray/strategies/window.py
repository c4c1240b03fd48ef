"""Keep a band of the ranked rows: skip the share ``beta`` at the kept end, keep what follows.

Use it on noisy labels, where the hardest rows are the mislabelled ones: ``beta`` should be about
the share of wrong labels. Not on clean, easy data, where the skipped rows are the most useful.
"""

from __future__ import annotations

from dataprune_ray.config import SelectConfig
from dataprune_ray.cutoff import KeepRule, Population, exact_cut, group_counts, pooled
from dataprune_ray.strategies.base import (
    ScoreInfo,
    Strategy,
    bands_of_cut,
    check_beta,
    clause_of_cut,
    decimal_fraction,
    kept_end,
    noise_rows,
    share_of,
    superlative,
)


def window(population: Population, config: SelectConfig, info: ScoreInfo) -> KeepRule:
    """Skip ``floor(beta * N + 0.5)`` rows of the kept end and keep the next ``keep`` share.

    Rows rank by score from the kept end, ties by ascending hash. Exactly ``floor(keep * N + 0.5)``
    rows are kept; where both shares round up past N, one row fewer is skipped.

    Raises:
        ConfigError: ``beta + keep`` exceeds 1.
    """
    check_beta(config)
    end = kept_end(config, info)
    whole = pooled(population)
    rows = int(group_counts(whole)[0])
    quota = share_of(decimal_fraction(config.keep), rows)
    skipped = noise_rows(config, rows, quota)
    (noise,) = exact_cut(whole, [skipped], end=end, by_score=True)
    (cut,) = exact_cut(whole, [skipped + quota if quota else 0], end=end, by_score=True)
    sentence = f"Keep exactly {quota:,} of {rows:,} rows: those with the {superlative(end)} "
    sentence += info.metric
    if skipped:
        sentence += f" after the {skipped:,} {superlative(end)}, which are cut as noise"
    return KeepRule(
        bands=tuple(bands_of_cut(cut, end, None)),
        groups=population.groups,
        metric=info.metric,
        end=end,
        explanation=f"{sentence}{clause_of_cut(cut, end, noise)}.",
        cutoffs={"": cut.score},
        noise=tuple(bands_of_cut(noise, end, None)),
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
