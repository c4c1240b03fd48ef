"""Kernels of the exact cut: what one block of rows tells about the keys in question.

A key is an unsigned integer that ascends from the kept end: 32 bits of a score, or the 64 of a
hash. The keys in question are an interval for each group. Bins divide it, first by the leading 16
bits of all score keys, then evenly; each result merges by addition or by joining.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dataprune_ray.cutoff.keys import End, ordered_key
from dataprune_ray.cutoff.population import Block

_CELL_BITS = 16
_CELLS = 1 << _CELL_BITS
_INFINITY = 0x7F800000
#: Turn the bits of a float32 that is not negative into its rank key.
_RANK = {"high": np.uint32(0x7FFFFFFF), "low": np.uint32(0x80000000)}
#: Magnitudes that most scores have: their cells get most of the bins.
_USUAL = (2.0**-6, 2.0**4)
_USUAL_WEIGHT = 512


def rank_key(scores: NDArray[np.float32], end: End) -> NDArray[np.uint32]:
    """Keys of the scores (n,), ascending from the kept end.

    Raises:
        ValueError: a score is NaN or infinite, or the array is not float32.
    """
    if scores.dtype == np.float32 and len(scores):
        bits = scores.view(np.int32)  # of scores that are not negative, in their order
        if bits.min() >= 0 and bits.max() < _INFINITY:
            return np.asarray(scores.view(np.uint32) ^ _RANK[end], np.uint32)
    keys = ordered_key(scores)
    return ~keys if end == "high" else keys


@cache
def bins_of_cells(bins: int) -> NDArray[np.int64]:
    """The bin of each cell, which is the leading 16 bits of a rank key: int64 (65536,), ascending.

    Every bin up to the last holds a cell. Where there are fewer bins than cells, those of usual
    magnitudes are narrower: the scores of a metric rarely reach over all of float32.
    """
    if bins >= _CELLS:
        return np.arange(_CELLS)
    cells = (np.arange(_CELLS, dtype=np.uint32) << _CELL_BITS).view(np.float32)
    with np.errstate(invalid="ignore"):  # cells of NaN
        usual = (abs(cells) >= _USUAL[0]) & (abs(cells) < _USUAL[1])
    weight = np.where(usual, _USUAL_WEIGHT, 1)
    # From float bits to ordered keys: the negative cells come first, turned around.
    weight = np.concatenate([weight[_CELLS // 2 :][::-1], weight[: _CELLS // 2]])
    upto = weight.cumsum() - weight
    place = upto * bins // int(weight.sum())
    return np.cumsum(np.diff(place, prepend=place[0]) > 0)


@dataclass
class Counts:
    """Rows by bin, int64 (n,); pickled without the empty bins, which most of them are."""

    rows: NDArray[np.int64]

    def merge(self, other: Counts) -> Counts:
        """The sum, in place."""
        self.rows += other.rows
        return self

    def __getstate__(self) -> tuple[int, NDArray[Any], NDArray[Any]]:
        """Number of bins, then the bins that hold rows and how many."""
        filled = np.flatnonzero(self.rows)
        rows = self.rows[filled]
        small = rows.max(initial=0) < 1 << 32
        return len(self.rows), filled.astype(np.uint32), rows.astype(np.uint32) if small else rows

    def __setstate__(self, state: tuple[int, NDArray[Any], NDArray[Any]]) -> None:
        """Fill the bins again."""
        self.rows = np.zeros(state[0], np.int64)
        self.rows[state[1]] = state[2]


@dataclass(frozen=True)
class CountCells:
    """Rows by group and bin of the leading bits of their score key: (G * B,)."""

    groups: int
    bins: int
    end: End

    def __call__(self, block: Block) -> Counts:
        """Counts of a block."""
        codes = block.codes(self.groups)
        place = (rank_key(block.need_scores(), self.end) >> np.uint32(_CELL_BITS)).astype(np.int64)
        table = bins_of_cells(self.bins)
        width = int(table[-1]) + 1
        if width < _CELLS:
            place = table.take(place, out=place, mode="clip")
        if codes is not None:
            place += codes * np.int64(width)
        return Counts(np.bincount(place, minlength=self.groups * width))


@dataclass(frozen=True)
class Interval:
    """The rows in question: those whose key lies in the interval of their group.

    Attributes:
        field: which keys the intervals are of.
        end: the kept end; None where the scores are not looked at.
        slots: int32 (G,), position of each group among the open ones; -1 where it is decided.
        low, high: uint64 (G,), inclusive; only those of open groups count.
        score_key: uint32 (G,), for hashes: rows have this score key; None: any.
    """

    field: Literal["scores", "hashes"]
    end: End | None
    slots: NDArray[np.int32]
    low: NDArray[np.uint64]
    high: NDArray[np.uint64]
    score_key: NDArray[np.uint32] | None

    def find(self, block: Block) -> tuple[NDArray[np.int32], NDArray[Any]]:
        """Slots int32 (m,) and keys, uint32 or uint64 (m,), of the rows in question."""
        codes = block.codes(len(self.slots))
        limits = list(self._limits(block))
        active = self.slots >= 0
        differing = []  # limits that are not the same for all groups
        rows: NDArray[np.intp] | None = None
        for values, low, high in limits:  # first what no group has in question
            least, most = low[active].min(), high[active].max()
            if (low[active] > least).any() or (high[active] < most).any():
                differing.append((values, low, high))
            hull = _within(values if rows is None else values[rows], least, most)
            if hull is not None:
                rows = np.flatnonzero(hull) if rows is None else rows[hull]
        found = limits[-1][0] if rows is None else limits[-1][0][rows]
        if codes is None:
            return np.zeros(len(found), np.int32), found
        own = codes if rows is None else codes[rows]
        slots = self.slots[own]
        if active.all() and not differing:
            return slots, found
        inside = slots >= 0
        for values, low, high in differing:
            mine = _within(values if rows is None else values[rows], low[own], high[own])
            inside = inside if mine is None else inside & mine
        return slots[inside], found[inside]

    def _limits(self, block: Block) -> Iterator[tuple[Any, NDArray[Any], NDArray[Any]]]:
        """Values (n,) with their bounds (G,), the keys in question last."""
        if self.field == "scores" or self.score_key is not None:
            keys = rank_key(block.need_scores(), self.end or "high")
            if self.field == "scores":
                yield keys, self.low.astype(np.uint32), self.high.astype(np.uint32)
            elif self.score_key is not None:
                yield keys, self.score_key, self.score_key
        if self.field == "hashes":
            yield block.need_hashes(), self.low, self.high


def _within(values: Any, low: Any, high: Any) -> NDArray[np.bool_] | None:
    """Whether unsigned values (n,) lie between bounds, one or (n,); None: the bounds admit all."""
    width = high - low
    if np.ndim(width) == 0 and width == np.iinfo(values.dtype).max:
        return None
    return np.asarray(values - low <= width)


@dataclass(frozen=True)
class CountEvenly:
    """Rows in question by slot and by bin of equal width: (A * 2**bits,)."""

    interval: Interval
    bits: int
    start: NDArray[np.uint64]  # (A,)
    shift: NDArray[np.uint64]  # (A,): a bin holds 2**shift keys

    def __call__(self, block: Block) -> Counts:
        """Counts of a block."""
        slots, keys = self.interval.find(block)
        offset = keys.astype(np.uint64) - self.start[slots]
        place = (offset >> self.shift[slots]).astype(np.int64)
        place += slots.astype(np.int64) << self.bits
        return Counts(np.bincount(place, minlength=len(self.start) << self.bits))


@dataclass(frozen=True)
class GatherScores:
    """The distinct score keys in question, each with its slot in the upper 32 bits, and counts."""

    interval: Interval

    def __call__(self, block: Block) -> list[NDArray[np.uint64]]:
        """Pieces: keys, counts."""
        slots, keys = self.interval.find(block)
        found, counts = np.unique(
            slots.astype(np.uint64) << np.uint64(32) | keys, return_counts=True
        )
        return [found, counts.astype(np.uint64)]


@dataclass
class Hashes:
    """Hashes between two bounds, and how many rows in question lie below.

    Attributes:
        below: int64 (A,), rows by slot.
        inside: int64 (A,), hashes between the bounds by slot.
        slots, values: int32 and uint64 pieces, the hashes between the bounds; none of them where
            they became too many.
    """

    below: NDArray[np.int64]
    inside: NDArray[np.int64]
    slots: list[NDArray[np.int32]]
    values: list[NDArray[np.uint64]]


@dataclass(frozen=True)
class GatherHashes:
    """The hashes in question between narrower bounds that their quota is expected in."""

    interval: Interval
    low: NDArray[np.uint64]  # (A,)
    high: NDArray[np.uint64]  # (A,)
    most: int  # hashes that are kept in memory

    def __call__(self, block: Block) -> Hashes:
        """The hashes of a block."""
        slots, values = self.interval.find(block)
        low, width = self.low[slots], (self.high - self.low)[slots]
        under = values < low
        below = np.bincount(slots * np.int64(2) + under, minlength=2 * len(self.low))[1::2]
        near = np.flatnonzero(values - low <= width)
        slots, values = slots[near], values[near]
        found = Hashes(below, np.bincount(slots, minlength=len(self.low)), [slots], [values])
        return self._bounded(found)

    def merge(self, first: Hashes, second: Hashes) -> Hashes:
        """Both together."""
        first.slots.extend(second.slots)
        first.values.extend(second.values)
        below, inside = first.below + second.below, first.inside + second.inside
        return self._bounded(Hashes(below, inside, first.slots, first.values))

    def _bounded(self, found: Hashes) -> Hashes:
        if int(found.inside.sum()) > self.most:
            found.slots, found.values = [], []
        return found
