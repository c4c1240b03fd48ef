"""How far a corpus moved away from an earlier one: distances between two sets of counts.

The population stability index is by convention read as: below 0.1 nothing to see, 0.1 to 0.25 a
moderate shift, above 0.25 a large one. Small groups reach large values by chance: with B bins its
expected value is about (B - 1) (1/n + 1/m) where nothing changed between n and m rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataprune_ray.cutoff import (
    Block,
    Population,
    extremes,
    group_counts,
    histogram,
    ordered_key,
    pooled,
)

#: From these values on a PSI is read as a moderate and as a large shift.
MODERATE, LARGE = 0.1, 0.25
_PSI_BINS = 10
_SHOWN_BINS = 60
_KEY_BINS = 1 << 16
_CLASS_BINS = 256
_MOST_CLASSES = 1000

Counts = NDArray[np.int64]


def psi(before: Counts, now: Counts) -> float:
    """Population stability index: sum of (q - p) ln(q / p) over the bins' shares p and q.

    Half a row is added to every bin, so that an empty one gives no infinity.

    Args:
        before: rows by bin (B,).
        now: rows by the same bins (B,).

    Returns:
        0 for equal shares, otherwise positive without bound; symmetric.
    """
    p = (before + 0.5) / (before.sum() + 0.5 * len(before))
    q = (now + 0.5) / (now.sum() + 0.5 * len(now))
    return float(((q - p) * np.log(q / p)).sum())


def ks(before: Counts, now: Counts) -> float:
    """Kolmogorov-Smirnov distance: largest difference of the cumulated shares at a bin's end.

    Args:
        before: rows by ascending bin (B,).
        now: rows by the same bins (B,).

    Returns:
        0 for equal shares to 1 for disjoint ones; 0 where either has no rows.
    """
    if not before.sum() or not now.sum():
        return 0.0
    return float(np.abs(before.cumsum() / before.sum() - now.cumsum() / now.sum()).max())


def coarsened(before: Counts, now: Counts, bins: int = _PSI_BINS) -> tuple[Counts, Counts]:
    """Neighbouring bins joined so that ``before`` is spread over ``bins`` as evenly as they allow.

    Args:
        before: rows by ascending bin (B,).
        now: rows by the same bins (B,).
        bins: how many to make at most; heavy bins leave fewer.

    Returns:
        Both counts in the joined bins (b,), b from 1 to ``bins``.
    """
    total = int(before.sum())
    if not total:
        return before.sum(keepdims=True), now.sum(keepdims=True)
    place = (before.cumsum() - before) * bins // total  # by the rows below a bin
    starts = np.flatnonzero(np.diff(place.clip(max=bins - 1), prepend=-1))
    return np.add.reduceat(before, starts), np.add.reduceat(now, starts)


@dataclass(frozen=True)
class ClassDrift:
    """Drift of the scores within one class."""

    name: str
    rows_before: int
    rows_now: int
    psi: float
    ks: float


@dataclass(frozen=True)
class Drift:
    """Drift of the deciding metric and of the classes since a baseline.

    ``edges`` has one value more than ``before`` and ``now``, rows by bins of equal width.
    ``class_psi`` is None where there are no classes, ``limit`` where none was set.
    """

    metric: str
    rows_before: int
    rows_now: int
    psi: float
    ks: float
    class_psi: float | None
    classes: tuple[ClassDrift, ...]
    edges: tuple[float, ...]
    before: tuple[int, ...]
    now: tuple[int, ...]
    limit: float | None = None

    @property
    def worst(self) -> float:
        """The larger of the two indices: what a limit is compared with."""
        return max(self.psi, self.class_psi or 0.0)

    @property
    def exceeded(self) -> bool:
        """Whether it lies beyond its limit."""
        return self.limit is not None and self.worst > self.limit

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "metric": self.metric,
            "rows_before": self.rows_before,
            "rows_now": self.rows_now,
            "psi": self.psi,
            "ks": self.ks,
            "class_psi": self.class_psi,
            "worst_psi": self.worst,
            "max_drift": self.limit,
            "exceeded": self.exceeded,
            "classes": [vars(entry) for entry in self.classes],
        }


def reading(value: float) -> str:
    """A PSI in words."""
    return "small" if value < MODERATE else "moderate" if value <= LARGE else "large"


def measure(
    metric: str, before: Population, now: Population, limit: float | None = None
) -> Drift | None:
    """Drift between two scored corpora with the same groups; None where either has no rows.

    The distance is measured over bins of the upper 16 bits of the ordered score, under a hundredth
    of a score wide. Counts are exact, so the result does not depend on the order of the rows.
    """
    ends = [extremes(pooled(population)) for population in (before, now)]
    if ends[0] is None or ends[1] is None:
        return None
    low, high = min(ends[0][0], ends[1][0]), max(ends[0][1], ends[1][1])
    edges = _edges(low, high)
    keys = _Keys()
    fine = [pooled(p).reduce(keys, np.add, frozenset({"scores"})) for p in (before, now)]
    shown = [histogram(pooled(p), edges.tolist())[0] for p in (before, now)]
    groups = [group_counts(p) for p in (before, now)]
    grouped = len(before.groups) > 1
    return Drift(
        metric=metric,
        rows_before=int(fine[0].sum()),
        rows_now=int(fine[1].sum()),
        psi=psi(*coarsened(fine[0], fine[1])),
        ks=ks(fine[0], fine[1]),
        class_psi=psi(groups[0], groups[1]) if grouped else None,
        classes=_classes(before, now, fine[0]) if grouped else (),
        edges=tuple(edges.tolist()),
        before=tuple(shown[0].tolist()),
        now=tuple(shown[1].tolist()),
        limit=limit,
    )


def _edges(low: float, high: float) -> NDArray[np.float64]:
    spread = high - low
    if not spread or not np.isfinite(spread):
        spread = abs(low) or 1.0
        low, high = low - spread / 2, low + spread / 2
    return np.linspace(low, high, _SHOWN_BINS + 1)


def _classes(before: Population, now: Population, fine: Counts) -> tuple[ClassDrift, ...]:
    """Drift within every class, over bins that the whole baseline fills evenly."""
    if len(before.groups) > _MOST_CLASSES:
        return ()
    place = ((fine.cumsum() - fine) * _CLASS_BINS // max(int(fine.sum()), 1)).clip(
        max=_CLASS_BINS - 1
    )
    kernel = _Keys(place.astype(np.int64), len(before.groups))
    columns = frozenset({"scores", "groups"})
    first, second = (p.reduce(kernel, np.add, columns) for p in (before, now))
    return tuple(
        ClassDrift(name, int(a.sum()), int(b.sum()), psi(*coarsened(a, b)), ks(a, b))
        for name, a, b in zip(before.groups, first, second, strict=True)
    )


@dataclass(frozen=True, eq=False)
class _Keys:
    """Rows by the upper 16 bits of the ordered score, or by group and what those map to."""

    place: Counts | None = None
    groups: int = 1

    def __call__(self, block: Block) -> Counts:
        bins = (ordered_key(block.need_scores()) >> np.uint32(16)).astype(np.int64)
        if self.place is None:
            return np.bincount(bins, minlength=_KEY_BINS)
        codes = block.codes(self.groups)
        bins = self.place[bins] + (0 if codes is None else codes.astype(np.int64) * _CLASS_BINS)
        counts = np.bincount(bins, minlength=self.groups * _CLASS_BINS)
        return counts.reshape(self.groups, _CLASS_BINS)
