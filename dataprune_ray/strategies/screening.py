"""What is dropped before any strategy: the noisiest rows and duplicates, each by a score column.

The strategy then compiles over the rows that are left, for as many rows as ``keep`` asks of the
whole corpus. Use ``noise_cut`` on noisy labels with any strategy, ``dedup`` on crawled corpora.
Not on clean, easy data, where the rows that look like noise are the most useful.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from dataprune_ray.config import AUTO, SelectConfig
from dataprune_ray.cutoff import (
    DUPLICATE,
    NOISE,
    Band,
    KeepRule,
    Population,
    Screen,
    exact_cut,
    group_counts,
    pooled,
    scored_by,
    unscreened,
)
from dataprune_ray.errors import ConfigError
from dataprune_ray.strategies.base import (
    ScoreInfo,
    Strategy,
    bands_of_cut,
    check_beta,
    decimal_fraction,
    nearest_float32,
    noise_share,
    share_of,
    superlative,
)

#: Score column that duplicates are told by: similarity to an earlier row that stays.
REDUNDANCY = "redundancy"


@dataclass(frozen=True)
class Compiled:
    """A keep rule, and what a person should know of how it came about."""

    rule: KeepRule
    warnings: tuple[str, ...] = ()


def extra_metrics(config: SelectConfig) -> tuple[str, ...]:
    """Metrics that are computed because noise or duplicates are told by them."""
    named = [config.noise_metric] if config.noise_cut and config.noise_metric else []
    return tuple(named if config.dedup is None else [*named, REDUNDANCY])


def check_shares(strategy: Strategy, config: SelectConfig) -> None:
    """Refuse shares of noise that leave fewer rows than are to be kept; said before Ray starts.

    Shares that are still to be estimated are not looked at: `compile_rule` lowers them.

    Raises:
        ConfigError: ``keep``, ``noise_cut`` and the ``beta`` of the rest exceed 1.
    """
    if not strategy.uses_keep:
        return
    cut, keep = config.noise_cut, config.keep
    share = Fraction(0) if cut == AUTO else noise_share(config, "noise_cut")
    wanted = decimal_fraction(keep)
    if wanted + share > 1:
        raise ConfigError(
            "noise_cut",
            cut,
            f"cuts more than keep={keep:.6g} leaves: together they must not exceed 1; "
            f"pass --noise-cut {float(1 - wanted):.6g} or --keep {float(1 - share):.6g} at most",
        )
    if not strategy.uses_beta or config.beta == AUTO:
        return
    if not share:
        check_beta(config)
    beta = noise_share(config, "beta")
    if wanted + share + beta * (1 - share) > 1:
        most = float(1 - wanted / (1 - share))
        raise ConfigError(
            "beta",
            config.beta,
            f"of the rows that noise_cut={cut} leaves is more than keep={keep:.6g} leaves; pass "
            f"--beta {most:.6g} at most, or a lower --keep",
        )


def compile_rule(
    strategy: Strategy, population: Population, config: SelectConfig, info: ScoreInfo
) -> Compiled:
    """The strategy's rule for the rows that are neither cut as noise nor duplicates.

    Exactly ``floor(noise_cut * N + 0.5)`` rows are cut as noise, ties by ascending hash; one fewer
    where both shares round up past N. ``keep`` counts all N rows; where fewer are left, they are
    all kept, with a warning.

    Args:
        strategy: as configured.
        population: all scored rows, with the columns that noise and duplicates are told by.
        config: its shares are known.
        info: the deciding metric, and the one that tells noise.

    Raises:
        ConfigError: settings and scores do not fit.
    """
    if not noise_share(config, "noise_cut") and config.dedup is None:
        return Compiled(strategy.compile(population, config, info))
    rows = _count(population)
    wanted = share_of(decimal_fraction(config.keep), rows) if strategy.uses_keep else 0
    screens, warnings = _screens(population, config, info, rows, wanted)
    rest = unscreened(population, screens)
    left = _count(rest)
    if left < wanted:
        warnings.append(
            f"only {left:,} rows are left of the {wanted:,} that --keep {config.keep:.6g} asks "
            "for, after noise and duplicates: they are all kept"
        )
    changed, more = for_rows(strategy, config, min(wanted, left), left)
    rule = strategy.compile(rest, changed, info)
    return Compiled(with_screens(rule, screens), (*warnings, *more))


def for_rows(
    strategy: Strategy, config: SelectConfig, quota: int, rows: int
) -> tuple[SelectConfig, tuple[str, ...]]:
    """The settings that keep ``quota`` of a population of ``rows`` rows, and warnings.

    A ``beta`` that the quota leaves no room for is lowered.
    """
    if not strategy.uses_keep or not rows:
        return config, ()
    keep = quota / rows  # so near that floor(keep * rows + 0.5) is the quota
    changed = config.model_copy(update={"keep": keep})
    if not strategy.uses_beta:
        return changed, ()
    most = 1 - decimal_fraction(keep)
    if noise_share(config, "beta") <= most:
        return changed, ()
    beta = float(most)
    if decimal_fraction(beta) > most:
        beta = max(0.0, math.nextafter(beta, 0.0))
    warning = f"--beta {config.beta} is lowered to {beta:.6g}: {rows:,} rows are left"
    return changed.model_copy(update={"beta": beta}), (warning,)


def with_screens(rule: KeepRule, screens: tuple[Screen, ...]) -> KeepRule:
    """A rule for the rows that pass the screens, as a rule for all rows."""
    if not screens:
        return rule
    sentences = [screen.explanation for screen in screens]
    return replace(rule, screens=screens, explanation=" ".join([*sentences, rule.explanation]))


def _count(population: Population) -> int:
    return int(group_counts(pooled(population))[0])


def _screens(
    population: Population, config: SelectConfig, info: ScoreInfo, rows: int, wanted: int
) -> tuple[tuple[Screen, ...], list[str]]:
    screens: list[Screen] = []
    warnings: list[str] = []
    asked = share_of(noise_share(config, "noise_cut"), rows)
    quota = min(asked, rows - wanted)
    if quota < asked - 1:
        warnings.append(
            f"only {quota:,} of {asked:,} rows are cut as noise, so that {wanted:,} can be kept"
        )
    if quota:
        screens.append(_noise(population, info, quota, rows))
    if config.dedup is not None:
        screens.append(_duplicates(unscreened(population, tuple(screens)), config.dedup))
    return tuple(screens), warnings


def _noise(population: Population, info: ScoreInfo, quota: int, rows: int) -> Screen:
    if info.noise is None:
        raise ConfigError("noise_cut", quota / rows, "no metric tells where noise gathers")
    column, end = info.noise
    by_noise = scored_by(pooled(population), column)
    (cut,) = exact_cut(by_noise, [quota], end=end, by_score=True)
    sentence = f"First {quota:,} of {rows:,} rows are cut as noise: those with the "
    sentence += f"{superlative(end)} {column}."
    return Screen(column, tuple(bands_of_cut(cut, end, None)), NOISE, sentence)


def _duplicates(population: Population, distance: float) -> Screen:
    """Rows whose redundancy exceeds ``1 - distance``, as the float32 next to that number."""
    limit = np.float32(nearest_float32(1 - decimal_fraction(distance)))
    beyond = Band(None, float(np.nextafter(limit, np.float32(math.inf))), math.inf)
    found = Screen(REDUNDANCY, (beyond,), DUPLICATE, "")
    dropped = _count(population) - _count(unscreened(population, (found,)))
    sentence = f"{dropped:,} rows are dropped as duplicates: their similarity to an earlier "
    sentence += f"row that stays is above {float(limit):.6g}."
    return replace(found, explanation=sentence)
