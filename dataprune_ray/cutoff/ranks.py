"""Ranks and moments of all scores of a population: what puts different metrics on one scale.

Ranks are exact for up to `MOST_VALUES` distinct scores. Beyond that the range of the scores is
refined slot by slot until each holds one score, or at most one row in `MOST_VALUES`: the same for
any order and any cut of the rows, in bounded memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from dataprune_ray.cutoff.keys import ordered_key
from dataprune_ray.cutoff.population import Block, Column, Population, group_column
from dataprune_ray.cutoff.statistics import score_sum

#: Distinct scores up to which ranks are exact.
MOST_VALUES = 1 << 22

_KEY_BITS = 32
_SCORES: frozenset[Column] = frozenset({"scores"})
#: Exponent of the unit that squares of float32 values are whole multiples of.
_SQUARE_UNIT = 298
_CHUNK = 1 << 18
_HALF = 24


@dataclass(frozen=True, eq=False)
class Ranks:
    """Where scores stand among all rows.

    Attributes:
        starts: uint32 (S,), ascending: the first key of each slot that holds rows.
        counts: int64 (S,), rows of each slot.
        below: int64 (S,), rows in the slots before it.
        rows: all rows.
    """

    starts: NDArray[np.uint32]
    counts: NDArray[np.int64]
    below: NDArray[np.int64]
    rows: int

    @classmethod
    def of_slots(cls, starts: NDArray[np.uint32], counts: NDArray[np.int64]) -> Ranks:
        """Of slots in ascending order with their rows."""
        upto = counts.cumsum()
        return cls(starts, counts, upto - counts, int(upto[-1]) if len(upto) else 0)

    def scaled(self, scores: NDArray[np.float32]) -> NDArray[np.float64]:
        """Mid-ranks of scores (n,) that the population holds: float64 (n,), 0 to 1.

        ``(rows below + (ties - 1) / 2) / (rows - 1)``; 0.5 where there is one row. Off by at most
        ``0.5 / MOST_VALUES`` where slots hold several scores.
        """
        if self.rows == 1:
            return np.full(len(scores), 0.5)
        slot = np.searchsorted(self.starts, ordered_key(scores), side="right") - 1
        return (self.below[slot] + (self.counts[slot] - 1) / 2) / (self.rows - 1)


@dataclass(frozen=True)
class Moments:
    """Mean and population standard deviation, each correctly rounded but for the root."""

    mean: float
    deviation: float

    def scaled(self, scores: NDArray[np.float32]) -> NDArray[np.float64]:
        """Standard scores (n,), float64; 0 where all scores are equal."""
        if not self.deviation:
            return np.zeros(len(scores))
        return (scores.astype(np.float64) - self.mean) / self.deviation


def ranks(population: Population, most: int = MOST_VALUES) -> Ranks:
    """Ranks of the scores of all rows, as one group.

    Args:
        population: the rows.
        most: distinct scores up to which ranks are exact, and slots at most, about, beyond.
    """
    distinct = _Distinct(most)
    found = population.reduce(distinct, distinct.merge, _SCORES)
    if len(found[0]) > most:  # then it is cut off, and only its size counts
        found = _refined(population, most)
    return Ranks.of_slots(found[0].astype(np.uint32), found[1])


def moments(population: Population) -> Moments:
    """Mean and deviation of the scores of all rows; zeros without rows."""
    total = score_sum(population)
    if not total.count:
        return Moments(0.0, 0.0)
    squares = Fraction(population.reduce(_squares, int.__add__, _SCORES), 1 << _SQUARE_UNIT)
    mean = total.totals()[0] / total.count
    return Moments(float(mean), math.sqrt(squares / total.count - mean**2))


#: Keys or slots uint64 (S,), ascending, and their rows int64 (S,).
_Slots = tuple[NDArray[np.uint64], NDArray[np.int64]]


@dataclass(frozen=True)
class _Distinct:
    """The distinct keys of a block; of more than ``most`` only one more than these."""

    most: int

    def __call__(self, block: Block) -> _Slots:
        keys, counts = np.unique(ordered_key(block.need_scores()), return_counts=True)
        return self._few(keys.astype(np.uint64), counts.astype(np.int64))

    def merge(self, first: _Slots, second: _Slots) -> _Slots:
        """Both together."""
        return self._few(*_merge_slots(first, second))

    def _few(self, keys: NDArray[np.uint64], counts: NDArray[np.int64]) -> _Slots:
        return keys[: self.most + 1], counts[: self.most + 1]


def _merge_slots(first: _Slots, second: _Slots) -> _Slots:
    keys = np.concatenate([first[0], second[0]])
    order = np.argsort(keys, kind="stable")  # fast where both are sorted
    keys, counts = keys[order], np.concatenate([first[1], second[1]])[order]
    new = np.flatnonzero(np.diff(keys, prepend=~keys[:1]))
    return keys[new], np.add.reduceat(counts, new) if len(new) else counts


def _refined(population: Population, most: int) -> _Slots:
    """Slots of one key, or of at most a share ``1 / most`` of the rows."""
    columns = _SCORES | group_column(population)
    rows = int(population.reduce(_rows, int.__add__, columns))
    limit = max(1, rows // most)
    done: list[_Slots] = []
    starts = np.zeros(1, np.uint64)
    bits = np.full(1, _KEY_BITS, np.int64)  # width of each open slot
    counts = np.full(1, rows, np.int64)
    while len(starts):
        split = np.ceil(np.log2(counts / limit)).astype(np.int64).clip(1, bits)
        keys, counts = population.reduce(_Split(starts, bits, bits - split), _merge_slots, _SCORES)
        parent = np.searchsorted(starts, keys, side="right") - 1
        width = (bits - split)[parent]
        final = (counts <= limit) | (width == 0)
        done.append((keys[final], counts[final]))
        starts, bits, counts = keys[~final], width[~final], counts[~final]
    slots = np.concatenate([keys for keys, _ in done])
    order = np.argsort(slots, kind="stable")
    return slots[order], np.concatenate([found for _, found in done])[order]


@dataclass(frozen=True)
class _Split:
    """Rows of open slots, counted by the first key of the narrower slots that they fall into."""

    starts: NDArray[np.uint64]  # (S,) ascending
    bits: NDArray[np.int64]  # (S,) width of each: 2**bits keys
    width: NDArray[np.int64]  # (S,) of the narrower slots

    def __call__(self, block: Block) -> _Slots:
        keys = ordered_key(block.need_scores()).astype(np.uint64)
        slot = np.searchsorted(self.starts, keys, side="right") - 1
        inside = slot >= 0
        slot, keys = slot[inside], keys[inside]
        inside = (keys - self.starts[slot]) >> self.bits[slot].astype(np.uint64) == 0
        slot, keys = slot[inside], keys[inside]
        shift = self.width[slot].astype(np.uint64)
        found, counts = np.unique(keys >> shift << shift, return_counts=True)
        return found, counts.astype(np.int64)


def _rows(block: Block) -> int:
    return block.rows


def _squares(block: Block) -> int:
    """Sum of the squared scores in units of ``2**-298``, exactly."""
    total = 0
    scores = block.need_scores()
    for start in range(0, len(scores), _CHUNK):
        squared = scores[start : start + _CHUNK].astype(np.float64) ** 2  # 48 bits: exact
        mantissa, exponent = np.frexp(squared)
        whole = (mantissa * 2.0**48).astype(np.int64)
        place = exponent - exponent.min(initial=0)
        for part, shift in ((whole & ((1 << _HALF) - 1), 0), (whole >> _HALF, _HALF)):
            sums = np.bincount(place, weights=part)  # below 2**42: exact
            for offset in np.flatnonzero(sums):
                power = int(offset) + int(exponent.min(initial=0)) - 48 + shift + _SQUARE_UNIT
                value = int(sums[offset])
                total += value << power if power >= 0 else value >> -power
    return total
