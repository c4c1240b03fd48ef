"""What a strategy is, and the few helpers that strategies share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dataprune_ray.config import AUTO, SelectConfig
from dataprune_ray.cutoff import (
    HASH_MAX,
    Band,
    Block,
    Cut,
    End,
    KeepRule,
    Population,
    exact_cut,
    filtered,
    group_counts,
    pooled,
)
from dataprune_ray.errors import ConfigError

_FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class ScoreInfo:
    """What a strategy may know about the metric whose scores it cuts.

    Attributes:
        metric: name of the score column.
        polarity: the end worth keeping; "none" where the metric has no better end.
        low, high: range the metric can take; infinite where open.
        noise: score column that noise is cut by, and the end where it gathers; None: no such.
        groups: what the groups with quotas are.
    """

    metric: str
    polarity: Literal["high", "low", "none"]
    low: float = -math.inf
    high: float = math.inf
    noise: tuple[str, End] | None = None
    groups: Literal["class", "group"] = "class"


@dataclass(frozen=True)
class Strategy:
    """A named way to turn a population of scores into a keep rule.

    Attributes:
        name: as in the registry.
        summary: one line, what it keeps.
        advice: one line, when not to use it.
        needs_labels: the population must be grouped, by label or another column.
        uses_score: False where scores are never looked at.
        uses_keep: the ``keep`` setting decides how many rows are kept.
        compile: ``(population, config, info) -> KeepRule``; raises ConfigError where the settings
            and the scores do not fit. A population without rows gives a rule that keeps nothing.
        by_rank: rows rank from the kept end; False where they are spread over all scores.
        uses_beta: the ``beta`` share of the rows at the kept end is cut off as noise.
    """

    name: str
    summary: str
    advice: str
    needs_labels: bool
    uses_score: bool
    uses_keep: bool
    compile: Callable[[Population, SelectConfig, ScoreInfo], KeepRule]
    uses_beta: bool = False
    by_rank: bool = True


def share_of(share: Fraction, rows: int) -> int:
    """``floor(share * rows + 1/2)`` without rounding error, at most ``rows``."""
    return min(rows, math.floor(share * rows + Fraction(1, 2)))


def decimal_fraction(value: float) -> Fraction:
    """The number a person meant by a float: 0.3 is 3/10, not the nearest binary fraction."""
    return Fraction(repr(float(value)))


def noise_share(config: SelectConfig, name: Literal["beta", "noise_cut"]) -> Fraction:
    """A share that is cut as noise.

    Raises:
        ValueError: it is still to be estimated.
    """
    value = getattr(config, name)
    if value == AUTO:
        raise ValueError(f"{name} is estimated before anything is cut")
    return decimal_fraction(value)


def check_beta(config: SelectConfig) -> None:
    """Refuse a noise share that leaves fewer rows than are to be kept.

    Raises:
        ConfigError: ``beta + keep`` exceeds 1.
    """
    beta, keep = noise_share(config, "beta"), decimal_fraction(config.keep)
    if beta + keep > 1:
        raise ConfigError(
            "beta",
            config.beta,
            f"cuts off more than keep={config.keep:.6g} leaves: together they must not exceed 1; "
            f"pass --beta {float(1 - keep):.6g} or --keep {float(1 - beta):.6g} at most",
        )


def noise_rows(config: SelectConfig, rows: int, quota: int) -> int:
    """How many of ``rows`` are cut as noise: ``floor(beta * rows + 0.5)``.

    Where rounding, or a floor per class, would leave fewer than ``quota``, all but ``quota``.
    """
    return min(share_of(noise_share(config, "beta"), rows), rows - quota)


@dataclass(frozen=True)
class NoiseFirst:
    """How a strategy that cuts noise first divides a population, whatever its groups.

    Attributes:
        whole: all rows, as one group.
        end: the kept end.
        rows: how many there are.
        quota: ``floor(keep * rows + 0.5)`` rows are kept.
        skipped: rows ahead of them that are cut as noise.
        cut: where the noise ends, ties by ascending hash.
    """

    whole: Population
    end: End
    rows: int
    quota: int
    skipped: int
    cut: Cut

    @classmethod
    def of(cls, population: Population, config: SelectConfig, info: ScoreInfo) -> NoiseFirst:
        """Cut the ``beta`` share of the kept end.

        Raises:
            ConfigError: ``beta + keep`` exceeds 1, or the metric has no end to keep.
        """
        check_beta(config)
        end = kept_end(config, info)
        whole = pooled(population)
        rows = int(group_counts(whole)[0])
        quota = share_of(decimal_fraction(config.keep), rows)
        skipped = noise_rows(config, rows, quota)
        (cut,) = exact_cut(whole, [skipped], end=end, by_score=True)
        return cls(whole, end, rows, quota, skipped, cut)

    @property
    def bands(self) -> tuple[Band, ...]:
        """The bands of the noise."""
        return tuple(bands_of_cut(self.cut, self.end, None))

    @property
    def clause(self) -> str:
        """What is cut, in words that follow 'after'; '' where nothing is."""
        if not self.skipped:
            return ""
        return f" after the {self.skipped:,} {superlative(self.end)}, which are cut as noise"

    def rest(self) -> Population:
        """The rows that are not noise."""
        return without(self.whole, self.bands)


def without(population: Population, noise: tuple[Band, ...]) -> Population:
    """The rows of an ungrouped population that lie in none of the bands."""
    if not noise:
        return population
    rule = KeepRule(noise, population.groups, "", None, "", {})
    return filtered(population, _Outside(rule), rule.columns)


@dataclass(frozen=True)
class _Outside:
    """Which rows of a block a rule does not keep."""

    rule: KeepRule

    def __call__(self, block: Block) -> NDArray[np.bool_]:
        return ~self.rule.apply(block)


def kept_end(config: SelectConfig, info: ScoreInfo) -> End:
    """The end of the score that is kept.

    Raises:
        ConfigError: the metric has no better end and none was asked for.
    """
    if config.keep_end != "auto":
        return config.keep_end
    if info.polarity == "none":
        raise ConfigError(
            "keep_end",
            config.keep_end,
            f"metric {info.metric!r} has no better end of its own; pass --keep-end high or low",
        )
    return info.polarity


def interval(cutoff: float, end: End) -> Band:
    """The band of every row at or beyond a float32 ``cutoff``, whatever its group."""
    low, high = (cutoff, math.inf) if end == "high" else (-math.inf, cutoff)
    return Band(None, low, high)


def bands_of_cut(cut: Cut, end: End, group: int | None) -> list[Band]:
    """At most two bands that keep exactly the rows of an exact cut."""
    if cut.quota == 0:
        return []
    if cut.score is None:
        return [Band(group, -math.inf, math.inf, cut.hash_max)]
    low, high = (cut.score, math.inf) if end == "high" else (-math.inf, cut.score)
    if cut.hash_max == HASH_MAX:
        return [Band(group, low, high)]
    tie = Band(group, cut.score, cut.score, cut.hash_max)
    toward = np.float32(math.inf if end == "high" else -math.inf)
    next_score = float(np.nextafter(np.float32(cut.score), toward))
    if math.isinf(next_score):
        return [tie]
    low, high = (next_score, math.inf) if end == "high" else (-math.inf, next_score)
    return [Band(group, low, high), tie]


def nearest_float32(value: Fraction) -> float:
    """The float32 next to ``value``: the one that a decimal such as 0.7 is stored as."""
    return float(np.float32(_clamped(value)))


def float32_bound(value: Fraction, end: End) -> float:
    """The outermost float32 that is still at or beyond ``value``: comparing stays exact."""
    near = np.float32(_clamped(value))
    if end == "high" and Fraction(float(near)) < value:
        near = np.nextafter(near, np.float32(math.inf))
    if end == "low" and Fraction(float(near)) > value:
        near = np.nextafter(near, np.float32(-math.inf))
    return float(near)


def _clamped(value: Fraction) -> float:
    return float(min(max(value, Fraction(-_FLOAT32_MAX)), Fraction(_FLOAT32_MAX)))


def rule_of_threshold(
    population: Population, info: ScoreInfo, end: End, cutoff: float | None, explanation: str
) -> KeepRule:
    """The rule that keeps every row at or beyond ``cutoff``; None keeps nothing."""
    return KeepRule(
        bands=() if cutoff is None else (interval(cutoff, end),),
        groups=population.groups,
        metric=info.metric,
        end=end,
        explanation=explanation,
        cutoffs={"": cutoff},
    )


def rule_of_cut(
    population: Population, info: ScoreInfo, end: End, *, cut: Cut, rows: int, why: str = ""
) -> KeepRule:
    """The rule that keeps exactly the rows of a cut through the whole population.

    Args:
        population: the rows.
        info: the metric.
        end: the kept end.
        cut: as ``exact_cut`` of the pooled population gave it.
        rows: size of the population.
        why: a clause for the explanation, such as where the fraction comes from.
    """
    return KeepRule(
        bands=tuple(bands_of_cut(cut, end, None)),
        groups=population.groups,
        metric=info.metric,
        end=end,
        explanation=f"{_kept_sentence(cut, rows, info, end)}{why}.",
        cutoffs={"": cut.score},
    )


def _kept_sentence(cut: Cut, rows: int, info: ScoreInfo, end: End) -> str:
    sentence = f"Keep exactly {cut.quota:,} of {rows:,} rows: those with the {superlative(end)} "
    return f"{sentence}{info.metric}{clause_of_cut(cut, end)}"


def clause_of_cut(cut: Cut, end: End, noise: Cut | None = None) -> str:
    """Where the cut is and how its ties are kept, in words; '' where nothing is kept.

    Args:
        cut: where the kept rows end.
        end: the kept end.
        noise: where they begin, if rows ahead of them are cut as noise.
    """
    if cut.score is None:
        return ""
    clause = f", {compare(end)} {cut.score:.6g}"
    tied_kept = cut.tied_kept
    if noise is not None and noise.score == cut.score:
        tied_kept -= noise.tied_kept
    if tied_kept < cut.tied:
        clause += f"; of {cut.tied:,} rows tied there, {tied_kept:,} are chosen by hash"
    return clause


def superlative(end: End) -> str:
    """The scores of the kept end, in words."""
    return "highest" if end == "high" else "lowest"


def compare(end: End) -> str:
    """How a kept score relates to the cutoff, in words."""
    return "at least" if end == "high" else "at most"
