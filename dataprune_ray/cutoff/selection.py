"""The exact cut: a selection over (score, hash) by mergeable counts.

A pass counts, for every group at once, how the rows in question fall into bins of their keys, and
keeps the one bin that the quota ends in. Once few are in question they are fetched and the rest
decided at once; of tied rows only the hashes next to the share that is kept. So a billion rows cost
two passes over their scores, one over the hashes of ties, and no sort, shuffle or sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dataprune_ray.cutoff.kernels import (
    CountCells,
    CountEvenly,
    Counts,
    GatherHashes,
    GatherScores,
    Hashes,
    Interval,
    bins_of_cells,
)
from dataprune_ray.cutoff.keys import HASH_MAX, End
from dataprune_ray.cutoff.population import Column, Population, group_column
from dataprune_ray.cutoff.search import Cut, Groups, Search, check_quotas
from dataprune_ray.errors import BadDataError

#: Bins of one pass, all groups together (8 bytes each): they fit into a core's cache.
_MAX_BINS = 1 << 19
#: Bits of the bins of one group.
_MAX_DIGIT = 16
#: Distinct scores (16 bytes each) or hashes (12 bytes) that are fetched rather than counted.
_MAX_GATHERED = 1 << 22
_CELL = np.uint64(16)
#: Hashes of a group that are fetched without a guess where the quota ends.
_FEW = 64
#: Standard deviations, and rows, from the guess to its bounds: another pass is hardly ever needed.
_SIGMAS, _MARGIN = 8.0, 32.0


@dataclass(frozen=True)
class Opening:
    """The first pass of a cut by score: counts that serve any quotas.

    Attributes:
        end: the kept end.
        bins: as the bins were asked for (see ``kernels.bins_of_cells``).
        counts: int64 (G, B), rows by group and bin of their scores.
    """

    end: End
    bins: int
    counts: NDArray[np.int64]

    @property
    def sizes(self) -> list[int]:
        """Rows by group code."""
        return [int(size) for size in self.counts.sum(axis=1)]


def open_cut(population: Population, end: End) -> Opening:
    """Count all rows by group and score: gives the sizes of the groups before they are cut."""
    groups = len(population.groups)
    bins = min(1 << _MAX_DIGIT, max(2, _MAX_BINS // groups))
    columns = frozenset({"scores"}) | group_column(population)
    counts = population.reduce(CountCells(groups, bins, end), Counts.merge, columns).rows
    return Opening(end, bins, counts.reshape(groups, -1))


def exact_cut(
    population: Population,
    quotas: Sequence[int],
    *,
    end: End,
    by_score: bool,
    opening: Opening | None = None,
    sizes: Sequence[int] | None = None,
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
        opening: of the same population and end, where it was taken: saves a pass.
        sizes: rows by group code, where they are known: saves a pass of a cut by hash alone.

    Returns:
        One cut per group.

    Raises:
        ValueError: a quota is negative or exceeds its group, or there is not one per group; an
            opening is of another end.
        BadDataError: rows share score and hash, so that no rule can tell them apart.
    """
    if len(quotas) != len(population.groups):
        raise ValueError(f"{len(quotas)} quotas for {len(population.groups)} groups")
    if min(quotas, default=0) < 0:
        raise ValueError(f"quotas must not be negative, found {min(quotas)}")
    search = Search.start(quotas)
    if opening is not None and opening.end != end:
        raise ValueError(f"the opening is of the {opening.end} end, the cut of the {end} end")
    if by_score and search.open.any():
        _resolve_scores(population, search, opening or open_cut(population, end), end)
    elif sizes is not None:
        search.inside[:] = sizes
        check_quotas(search.need, search.inside)
    _resolve_hashes(population, search, end if by_score else None)
    if search.open.any():
        name = population.groups[int(np.flatnonzero(search.open)[0])]
        where = f" in group {name!r}" if name else ""
        raise BadDataError(
            f"rows{where} share the same identity, so an exact cut cannot tell them apart: "
            "the id column is not unique; choose another --id-column or leave it out"
        )
    return [search.cut(group, end) for group in range(len(quotas))]


def _resolve_scores(population: Population, search: Search, opening: Opening, end: End) -> None:
    """Find the score key that the quota of every open group ends in."""
    columns: frozenset[Column] = frozenset({"scores"}) | group_column(population)
    active = np.flatnonzero(search.open)
    bins = bins_of_cells(opening.bins)
    chosen, below, inside = _bin_of(search.need[active], opening.counts[active])
    first = np.searchsorted(bins, chosen, side="left").astype(np.uint64)
    after = np.searchsorted(bins, chosen, side="right").astype(np.uint64)
    low, high = first << _CELL, (after << _CELL) - np.uint64(1)
    search.narrow(active, below, inside, low, high)
    while len(active := np.flatnonzero(search.open & (search.low < search.high))):
        interval = search.interval(active, "scores", end)
        last_pass = int((search.high - search.low).max()) < 1 << _digit_bits(len(active))
        if last_pass or int(search.inside[active].sum()) > _MAX_GATHERED:
            _count(population, search, active, interval, columns)
        else:
            found = population.reduce(GatherScores(interval), list.__add__, columns)
            _take_score(search, active, found)
    search.fix_scores()


def _resolve_hashes(population: Population, search: Search, end: End | None) -> None:
    """Find the hash that bounds the kept rows of every open group, among ties if by score."""
    columns: frozenset[Column] = frozenset({"hashes"}) | group_column(population)
    if end is not None:
        columns |= {"scores"}
    search.low[:], search.high[:] = 0, HASH_MAX
    guessed = False
    while True:
        whole = search.open & (search.need == search.inside)
        search.hash_max[whole] = search.high[whole]
        search.open &= ~whole
        active = np.flatnonzero(search.open & (search.low < search.high))
        if not len(active):
            return
        interval = search.interval(active, "hashes", end)
        if guessed or (search.inside[active] < 0).any():
            guess = None
        else:
            guess = _guess(search, active, interval)
        guessed = guess is not None
        if guess is None:
            _count(population, search, active, interval, columns)
        else:
            _take_hash(search, active, guess, population.reduce(guess, guess.merge, columns))


def _count(
    population: Population,
    search: Search,
    active: Groups,
    interval: Interval,
    columns: frozenset[Column],
) -> None:
    """Divide the interval of every active group (A,) evenly, and move to one of the parts."""
    start, width = search.low[active], search.high[active] - search.low[active]
    length = _bit_length(width)
    bits = min(_digit_bits(len(active)), int(length.max()))
    shift = np.maximum(length - bits, 0).astype(np.uint64)
    kernel = CountEvenly(interval, bits, start, shift)
    counts = population.reduce(kernel, Counts.merge, columns).rows
    chosen, below, inside = _bin_of(search.need[active], counts.reshape(len(active), -1))
    place = chosen.astype(np.uint64)
    last = np.minimum(width, ((place + np.uint64(1)) << shift) - np.uint64(1))
    search.narrow(active, below, inside, start + (place << shift), start + last)


def _bit_length(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Bits of each value (n,), 1 or more."""
    length = np.frexp(values.astype(np.float64))[1].astype(np.int64).clip(1, 64)
    # One too many where a value was rounded up to a power of two.
    rounded = (values >> (length - 1).astype(np.uint64) == 0) & (length > 1)
    return np.asarray(length - rounded, np.int64)


def _bin_of(
    need: NDArray[np.int64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The bin of ``counts`` (A, B) that each quota ends in, and the rows before and in it."""
    upto = counts.cumsum(axis=1)
    check_quotas(need, upto[:, -1])
    chosen = (upto >= need[:, None]).argmax(axis=1)
    rows = np.arange(len(need))
    inside = counts[rows, chosen]
    return chosen, upto[rows, chosen] - inside, inside


def _take_score(search: Search, active: Groups, found: list[NDArray[np.uint64]]) -> None:
    """Move every active group (A,) to the one score key that its quota ends in."""
    keys, counts = np.concatenate(found[::2]), np.concatenate(found[1::2])
    order = np.argsort(keys)
    keys, upto = keys[order], np.append(0, counts[order].astype(np.int64).cumsum())
    slots = np.arange(len(active), dtype=np.uint64) << np.uint64(32)
    start = upto[np.searchsorted(keys, slots)]
    chosen = keys[np.searchsorted(upto, start + search.need[active]) - 1]
    first = upto[np.searchsorted(keys, chosen, side="left")]
    after = upto[np.searchsorted(keys, chosen, side="right")]
    key = chosen & np.uint64(2**32 - 1)
    search.narrow(active, first - start, after - first, key, key)


def _guess(search: Search, active: Groups, interval: Interval) -> GatherHashes | None:
    """Bounds of the hash that each quota ends at, as hashes are uniform; None: too many between.

    The k-th of n uniform values has mean ``k / (n + 1)`` and variance ``mean (1 - mean) / (n + 2)``
    (a beta distribution).
    """
    need, inside = search.need[active], search.inside[active]
    mean = need / (inside + 1)
    around = _SIGMAS * np.sqrt(mean * (1 - mean) / (inside + 2)) + _MARGIN / inside
    few = inside <= _FEW
    from_share = np.where(few, 0.0, np.maximum(mean - around, 0.0))
    to_share = np.where(few, 1.0, np.minimum(mean + around, 1.0))
    if float((inside * (to_share - from_share)).sum()) > _MAX_GATHERED:
        return None
    start, width = search.low[active], search.high[active] - search.low[active]
    low = _part(width, from_share)
    high = np.where(to_share < 1, _part(width, np.where(to_share < 1, to_share, 0.0)), width)
    return GatherHashes(interval, start + low, start + high, 2 * _MAX_GATHERED)


def _part(width: NDArray[np.uint64], share: NDArray[np.float64]) -> NDArray[np.uint64]:
    """About ``share * width``, where the share is below 1; never more than the width."""
    return np.minimum((share * width.astype(np.float64)).astype(np.uint64), width)


def _take_hash(search: Search, active: Groups, guess: GatherHashes, found: Hashes) -> None:
    """Move every active group (A,) to the hash its quota ends at; to a side of the guess if not."""
    need, below, inside = search.need[active], found.below, found.inside
    cases = [need <= below, need > below + inside]  # the quota ends before, or behind
    one = np.uint64(1)
    search.narrow(
        active,
        np.select(cases, [np.zeros_like(below), below + inside], below),
        np.select(cases, [below, search.inside[active] - below - inside], inside),
        np.select(cases, [search.low[active], guess.high + one], guess.low),
        np.select(cases, [guess.low - one, search.high[active]], guess.high),
    )
    hit = np.flatnonzero(~(cases[0] | cases[1]))
    if not found.values or not len(hit):
        return
    slots, values = np.concatenate(found.slots), np.concatenate(found.values)
    order = np.lexsort((values, slots))
    slots, values = slots[order], values[order]
    first = np.searchsorted(slots, hit)
    bound = np.zeros(len(active), np.uint64)
    bound[hit] = values[first + search.need[active[hit]] - 1]
    before = np.bincount(slots[values < bound[slots]], minlength=len(active))[hit]
    equal = np.bincount(slots[values == bound[slots]], minlength=len(active))[hit]
    search.narrow(active[hit], before, equal, bound[hit], bound[hit])


def _digit_bits(groups: int) -> int:
    """Bits of the bins of each group that a pass counts."""
    return max(1, min(_MAX_DIGIT, (_MAX_BINS // groups).bit_length() - 1))
