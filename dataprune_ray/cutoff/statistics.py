"""Plain statistics of a population, each one exact pass: counts, extremes, mean, histogram."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dataprune_ray.cutoff.population import Block, Column, Population, group_column
from dataprune_ray.cutoff.rule import KeepRule
from dataprune_ray.cutoff.sums import ExactSum

_SCORES: frozenset[Column] = frozenset({"scores"})


def group_counts(population: Population) -> NDArray[np.int64]:
    """Rows by group code, int64 (G,)."""
    kernel = _GroupCount(len(population.groups), None)
    return population.reduce(kernel, np.add, group_column(population))


def kept_counts(population: Population, rule: KeepRule) -> NDArray[np.int64]:
    """Rows that ``rule`` keeps, by group code, int64 (G,)."""
    kernel = _GroupCount(len(population.groups), rule)
    return population.reduce(kernel, np.add, group_column(population) | rule.columns)


def extremes(population: Population) -> tuple[float, float] | None:
    """Lowest and highest score; None where there are no rows."""
    return population.reduce(_extremes, _merge_extremes, _SCORES)


def score_sum(population: Population) -> ExactSum:
    """Exact sum and count of the scores."""
    return population.reduce(_sum, _merge_sums, _SCORES)


def mean_score(population: Population) -> float:
    """Mean of the scores, correctly rounded.

    Raises:
        ValueError: there are no rows.
    """
    return score_sum(population).mean()


def histogram(
    population: Population, edges: Sequence[float], rule: KeepRule | None = None
) -> NDArray[np.int64]:
    """Rows per score bin, kept and dropped apart.

    Args:
        population: the rows.
        edges: B + 1 increasing bounds; a bin holds its lower bound. Scores beyond the first or
            last bound count in the first or last bin, so that no row is lost.
        rule: tells kept from dropped; without one every row counts as kept.

    Returns:
        int64 (2, B): kept, then dropped.
    """
    bounds = np.asarray(edges, dtype=np.float64)
    if bounds.ndim != 1 or len(bounds) < 2 or not (np.diff(bounds) > 0).all():  # noqa: PLR2004
        raise ValueError("edges must be at least two increasing numbers")
    columns = _SCORES if rule is None else _SCORES | rule.columns
    return population.reduce(_Histogram(bounds, rule), np.add, columns)


@dataclass(frozen=True)
class _GroupCount:
    groups: int
    rule: KeepRule | None

    def __call__(self, block: Block) -> NDArray[np.int64]:
        kept = None if self.rule is None else self.rule.apply(block)
        codes = block.codes(self.groups)
        if codes is not None:
            return np.bincount(codes if kept is None else codes[kept], minlength=self.groups)
        return np.array([block.rows if kept is None else np.count_nonzero(kept)], np.int64)


@dataclass(frozen=True)
class _Histogram:
    edges: NDArray[np.float64]
    rule: KeepRule | None

    def __call__(self, block: Block) -> NDArray[np.int64]:
        bins = len(self.edges) - 1
        place = np.searchsorted(self.edges, block.need_scores(), side="right") - 1
        place = place.clip(0, bins - 1)
        if self.rule is not None:
            place = place + bins * ~self.rule.apply(block)
        return np.bincount(place, minlength=2 * bins).reshape(2, bins)


def _extremes(block: Block) -> tuple[float, float] | None:
    scores = block.need_scores()
    # Adding 0.0 turns -0.0 into +0.0, which equals it: the result must not depend on row order.
    return (float(scores.min()) + 0.0, float(scores.max()) + 0.0) if len(scores) else None


def _merge_extremes(
    first: tuple[float, float] | None, second: tuple[float, float] | None
) -> tuple[float, float] | None:
    if first is None or second is None:
        return first or second
    return min(first[0], second[0]), max(first[1], second[1])


def _sum(block: Block) -> ExactSum:
    return ExactSum().add(block.need_scores())


def _merge_sums(first: ExactSum, second: ExactSum) -> ExactSum:
    return first.merge(second)
