"""The exact cut: a radix selection over (score, hash) by mergeable histograms.

Each pass counts, for every group at once, how the candidates fall into bins of the next few bits
of their key, and keeps the one bin that the quota ends in. Once few candidates are left they are
fetched and the last bits decided at once. So a billion rows cost a few passes over one column and
no sort, shuffle or sample of the corpus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dataprune_ray.cutoff.keys import HASH_MAX, ordered_key, score_of_key
from dataprune_ray.cutoff.population import Block, Column, Population, group_column
from dataprune_ray.errors import BadDataError

#: The end of the score that is kept.
End = Literal["high", "low"]

_SCORE_BITS = 32
_HASH_BITS = 64
_MAX_DIGIT = 16
#: Bins of one pass, all groups together (int64 each).
_MAX_BINS = 1 << 20
#: Candidates that are fetched and sorted rather than counted (16 bytes each).
_MAX_GATHERED = 1 << 18


@dataclass(frozen=True)
class Cut:
    """Where one group is cut so that exactly ``quota`` of its rows are kept.

    Attributes:
        quota: rows kept.
        score: score of the last kept row, a score that occurs; None for quota 0 or by hash alone.
        hash_max: rows tied at ``score`` (or all rows, by hash alone) are kept up to this hash;
            ``HASH_MAX`` keeps them all.
        tied: rows that have exactly ``score``; 0 by hash alone.
        tied_kept: how many of them are kept.
    """

    quota: int
    score: float | None
    hash_max: int
    tied: int
    tied_kept: int


def exact_cut(
    population: Population, quotas: Sequence[int], *, end: End, by_score: bool
) -> list[Cut]:
    """Cut every group so that exactly its quota of rows is kept.

    Rows rank by score (from the kept end), then by ascending hash; with ``by_score=False`` by
    hash alone. Scores are resolved to the last bit, so a cut's score is one that occurs; the hash
    column is read only where a tie has to be cut.

    Args:
        population: the rows; use ``pooled`` to cut a grouped population as a whole.
        quotas: rows to keep by group code, each between 0 and the size of the group.
        end: which scores rank first.
        by_score: False to ignore the scores.

    Returns:
        One cut per group.

    Raises:
        ValueError: a quota is negative or exceeds its group, or there is not one per group.
        BadDataError: rows share score and hash, so that no rule can tell them apart.
    """
    if len(quotas) != len(population.groups):
        raise ValueError(f"{len(quotas)} quotas for {len(population.groups)} groups")
    if min(quotas, default=0) < 0:
        raise ValueError(f"quotas must not be negative, found {min(quotas)}")
    search = _Search.start(quotas)
    if by_score:
        _descend(population, search, end=end, field="scores")
        search.fix_scores()
    _descend(population, search, end=end if by_score else None, field="hashes")
    if search.open.any():
        name = population.groups[int(np.flatnonzero(search.open)[0])]
        where = f" in group {name!r}" if name else ""
        raise BadDataError(
            f"rows{where} share the same identity, so an exact cut cannot tell them apart: "
            "the id column is not unique; choose another --id-column or leave it out"
        )
    return [search.cut(group, end) for group in range(len(quotas))]


@dataclass
class _Search:
    """State of all groups (G,) between passes."""

    quota: NDArray[np.int64]
    need: NDArray[np.int64]  # rows still to be taken from the candidates
    inside: NDArray[np.int64]  # candidates
    open: NDArray[np.bool_]  # not decided yet
    prefix: NDArray[np.uint64]  # bits of the current field that are known
    hash_max: NDArray[np.uint64]
    tied: NDArray[np.int64]
    tied_kept: NDArray[np.int64]
    score_key: NDArray[np.uint32] | None = None  # once the scores are resolved

    @classmethod
    def start(cls, quotas: Sequence[int]) -> _Search:
        quota = np.array(quotas, dtype=np.int64)
        return cls(
            quota=quota,
            need=quota.copy(),
            inside=np.zeros_like(quota),
            open=quota > 0,
            prefix=np.zeros(len(quota), np.uint64),
            hash_max=np.where(quota > 0, np.uint64(HASH_MAX), np.uint64(0)),
            tied=np.zeros_like(quota),
            tied_kept=np.zeros_like(quota),
        )

    def fix_scores(self) -> None:
        """Take the scores as resolved: only groups that take part of a tie stay open."""
        self.score_key = self.prefix.astype(np.uint32)
        self.tied, self.tied_kept = self.inside.copy(), self.need.copy()
        self.open &= self.need < self.inside

    def cut(self, group: int, end: End) -> Cut:
        score = None
        if self.score_key is not None and self.quota[group] > 0:
            key = self.score_key[group : group + 1]
            score = float(score_of_key(~key if end == "high" else key)[0])
        return Cut(
            quota=int(self.quota[group]),
            score=score,
            hash_max=int(self.hash_max[group]),
            tied=int(self.tied[group]),
            tied_kept=int(self.tied_kept[group]),
        )


def _descend(
    population: Population,
    search: _Search,
    *,
    end: End | None,
    field: Literal["scores", "hashes"],
) -> None:
    """Resolve one field of the key, most significant digit first, for all open groups."""
    shift = _SCORE_BITS if field == "scores" else _HASH_BITS
    columns: frozenset[Column] = frozenset({field}) | group_column(population)
    if end is not None:
        columns |= {"scores"}
    search.prefix[:] = 0
    counted = field == "hashes" and end is not None  # candidates are known to be the ties
    while shift and search.open.any():
        active = np.flatnonzero(search.open)
        few = counted and int(search.inside[active].sum()) <= _MAX_GATHERED
        bits = shift if few else _digit_bits(len(active), shift)
        shift -= bits
        slots = np.full(len(search.open), -1, np.int64)
        slots[active] = np.arange(len(active))
        digits = _Digits(field, end, shift, bits, slots, search.prefix, search.score_key)
        if few:
            _take_value(search, active, population.reduce(digits.gather, _join, columns))
        else:
            counts = population.reduce(digits.count, _add, columns)
            _take_bin(search, active, counts.reshape(len(active), -1), bits)
        counted = True
        if field == "hashes":
            whole = active[search.need[active] == search.inside[active]]
            last = (search.prefix[whole] + np.uint64(1)) << np.uint64(shift)
            search.hash_max[whole] = last - np.uint64(1)
            search.open[whole] = False


def _take_bin(
    search: _Search, active: NDArray[np.int64], counts: NDArray[np.int64], bits: int
) -> None:
    """Move every active group (A,) to the bin of ``counts`` (A, 2**bits) its quota ends in."""
    upto = counts.cumsum(axis=1)
    need = search.need[active]
    if (upto[:, -1] < need).any():
        bad = int(np.flatnonzero(upto[:, -1] < need)[0])
        raise ValueError(f"quota {need[bad]} exceeds the {upto[bad, -1]} rows of its group")
    chosen = (upto >= need[:, None]).argmax(axis=1)
    rows = np.arange(len(active))
    inside = counts[rows, chosen]
    search.need[active] = need - (upto[rows, chosen] - inside)
    search.inside[active] = inside
    known = search.prefix[active] << np.uint64(bits)
    search.prefix[active] = known | chosen.astype(np.uint64)


def _take_value(search: _Search, active: NDArray[np.int64], found: _Gathered) -> None:
    """Move every active group (A,) to the one value of its candidates that its quota ends in."""
    slots, values = np.concatenate(found[0]), np.concatenate(found[1])
    order = np.lexsort((values, slots))
    slots, values = slots[order], values[order]
    first = np.searchsorted(slots, np.arange(len(active)))
    chosen = values[first + search.need[active] - 1]
    below = np.bincount(slots[values < chosen[slots]], minlength=len(active))
    search.need[active] -= below
    search.inside[active] = np.bincount(slots[values == chosen[slots]], minlength=len(active))
    search.prefix[active] = chosen


def _digit_bits(groups: int, left: int) -> int:
    """Bits of the next digit: as few passes as the bins allow, then as even as possible."""
    most = max(1, min(_MAX_DIGIT, (_MAX_BINS // groups).bit_length() - 1))
    passes = -(-left // most)
    return -(-left // passes)


#: Slots int64 (n,) and values uint64 (n,) of candidates, in pieces: joined once, at the end.
_Gathered = tuple[list[NDArray[np.int64]], list[NDArray[np.uint64]]]


@dataclass(frozen=True)
class _Digits:
    """Kernels that look at the next bits of one field among the candidates of a pass."""

    field: Literal["scores", "hashes"]
    end: End | None  # None: scores are ignored
    shift: int
    bits: int
    slots: NDArray[np.int64]  # (G,) position among the active groups, -1 where decided
    prefix: NDArray[np.uint64]  # (G,)
    score_key: NDArray[np.uint32] | None  # (G,) once the scores are resolved

    def count(self, block: Block) -> NDArray[np.int64]:
        """Candidates by slot and digit: int64 (A * 2**bits,)."""
        slots, values = self._candidates(block)
        kind = values.dtype.type
        digit = ((values >> kind(self.shift)) & kind((1 << self.bits) - 1)).astype(np.int64)
        if slots is not None:
            digit |= slots << self.bits
        return np.bincount(digit, minlength=(int(self.slots.max()) + 1) << self.bits)

    def gather(self, block: Block) -> _Gathered:
        """The candidates themselves: slot and whole value of the field."""
        slots, values = self._candidates(block)
        if slots is None:
            slots = np.zeros(len(values), np.int64)
        return [slots], [values.astype(np.uint64)]

    def _candidates(
        self, block: Block
    ) -> tuple[NDArray[np.int64] | None, NDArray[np.uint32] | NDArray[np.uint64]]:
        """Slots (None where there is one group) and values of the rows still in question."""
        codes = block.codes(len(self.slots))
        slots = None if codes is None else self.slots[codes]
        chosen = None if slots is None else slots >= 0
        if self.field == "scores":
            values: NDArray[np.uint32] | NDArray[np.uint64] = _rank_key(block, self.end)
        else:
            values = block.need_hashes()
            if self.score_key is not None:
                tied = _rank_key(block, self.end) == _pick(self.score_key, codes)
                chosen = tied if chosen is None else chosen & tied
        high = self.shift + self.bits
        if high < (_SCORE_BITS if self.field == "scores" else _HASH_BITS):
            kind = values.dtype.type
            same = (values >> kind(high)) == _pick(self.prefix.astype(kind), codes)
            chosen = same if chosen is None else chosen & same
        if chosen is None:
            return slots, values
        return None if slots is None else slots[chosen], values[chosen]


def _add(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """The sum, in place where the first array is not shared (what a task returns is)."""
    return np.add(first, second, out=first if first.flags.writeable else None)


def _join(first: _Gathered, second: _Gathered) -> _Gathered:
    first[0].extend(second[0])
    first[1].extend(second[1])
    return first


def _rank_key(block: Block, end: End | None) -> NDArray[np.uint32]:
    """Keys of the scores (n,), ascending from the kept end."""
    keys = ordered_key(block.need_scores())
    return ~keys if end == "high" else keys


def _pick(values: NDArray[Any], codes: NDArray[np.int32] | None) -> Any:
    """The value of each row's group: an array (n,), or a scalar where there is one group."""
    return values[0] if codes is None else values[codes]
