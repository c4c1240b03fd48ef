"""Keep the same fraction of every class, or of every value of a column, by score or at random.

Use them where a global cut would starve classes of easy rows. Not for regression or unlabelled
corpora, and not where the class balance itself is what should change.
"""

from __future__ import annotations

from functools import partial

from dataprune_ray.config import SelectConfig
from dataprune_ray.cutoff import (
    Band,
    Cut,
    End,
    KeepRule,
    Population,
    exact_cut,
    group_counts,
    open_cut,
)
from dataprune_ray.cutoff.population import UNGROUPED
from dataprune_ray.errors import ConfigError
from dataprune_ray.strategies.base import (
    ScoreInfo,
    Strategy,
    bands_of_cut,
    check_beta,
    decimal_fraction,
    kept_end,
    noise_rows,
    share_of,
    superlative,
)


def class_balanced(population: Population, config: SelectConfig, info: ScoreInfo) -> KeepRule:
    """Keep ``floor(keep * n + 0.5)`` rows of each group by score, ``class_floor`` at least.

    Groups are the classes, or the values of another column.
    First ``floor(beta * n + 0.5)`` rows of the group are cut as noise, from the kept end; fewer
    where the floor would not be reached.

    Raises:
        ConfigError: no labels, or ``beta + keep`` exceeds 1.
    """
    check_beta(config)
    return _balanced(population, config, info, kept_end(config, info))


def random_balanced(population: Population, config: SelectConfig, info: ScoreInfo) -> KeepRule:
    """Keep ``floor(keep * n + 0.5)`` rows of each class by hash, ``class_floor`` at least."""
    return _balanced(population, config, info, None)


def _balanced(
    population: Population, config: SelectConfig, info: ScoreInfo, end: End | None
) -> KeepRule:
    """Cut each class by score from ``end``, or by hash where it is None."""
    if population.groups == UNGROUPED:
        raise ConfigError(
            "strategy",
            config.strategy,
            "needs class labels or groups; name them with --label or --group-column",
        )
    share = decimal_fraction(config.keep)
    opening = None if end is None else open_cut(population, end)
    sizes = [int(n) for n in group_counts(population)] if opening is None else opening.sizes
    quotas = [max(share_of(share, size), min(size, config.class_floor)) for size in sizes]
    noise = [0] * len(sizes)
    if end is not None:
        noise = [noise_rows(config, *counts) for counts in zip(sizes, quotas, strict=True)]
    # The kept rows of a class follow its noise.
    last = [n + quota if quota else 0 for n, quota in zip(noise, quotas, strict=True)]
    cut = partial(exact_cut, population, end=end or "high", opening=opening, sizes=sizes)
    cuts = cut(last, by_score=end is not None)
    ahead = cut(noise, by_score=True) if any(noise) else []
    return KeepRule(
        bands=_bands(cuts, end),
        groups=population.groups,
        metric="" if end is None else info.metric,
        end=end,
        explanation=_explanation(sizes, quotas, noise, config, info, end),
        cutoffs={name: cut.score for name, cut in zip(population.groups, cuts, strict=True)},
        noise=_bands(ahead, end),
    )


def _bands(cuts: list[Cut], end: End | None) -> tuple[Band, ...]:
    return tuple(
        band for code, cut in enumerate(cuts) for band in bands_of_cut(cut, end or "high", code)
    )


def _explanation(
    sizes: list[int],
    quotas: list[int],
    noise: list[int],
    config: SelectConfig,
    info: ScoreInfo,
    end: End | None,
) -> str:
    chosen = f"with the {superlative(end)} {info.metric}" if end else "chosen by hash"
    if any(noise):
        cut = f"{config.beta} of the {info.groups}, {sum(noise):,} rows,"
        chosen += f" after {cut} is cut as noise"
    kinds = "classes" if info.groups == "class" else "groups"
    sentence = f"Keep {config.keep:.6g} of each of {len(sizes):,} {kinds}: exactly "
    sentence += f"{sum(quotas):,} of {sum(sizes):,} rows, those {chosen}"
    if config.class_floor:
        sentence += f", and {config.class_floor:,} rows of each {info.groups} at least"
    return f"{sentence}."


CLASS_BALANCED = Strategy(
    name="class_balanced",
    summary="exactly the keep fraction of each class, from the kept end, after the --beta share of "
    "the class; --class-floor at least",
    advice="not where classes differ in redundancy: it cannot spend rows where they matter",
    needs_labels=True,
    uses_score=True,
    uses_keep=True,
    compile=class_balanced,
    uses_beta=True,
)

RANDOM_BALANCED = Strategy(
    name="random_balanced",
    summary="exactly the keep fraction of each class at random; --class-floor at least",
    advice="not as a way to prune: it is the baseline of class_balanced",
    needs_labels=True,
    uses_score=False,
    uses_keep=True,
    compile=random_balanced,
)
