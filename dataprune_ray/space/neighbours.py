"""The nearest rows of a sample, exactly: by distance, equal ones in the sample's order.

Candidates come from scikit-learn's brute force, then their distances are computed one by one, so
that no cancellation decides. Brute force over the sample: that is why it is a sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from dataprune_ray.space.steady import BLOCK, Rows, in_blocks

#: Candidates beyond the neighbours that are asked for.
_SPARE = 16
_INDEX = {"return_distance": False}
#: Bytes of differences held at once.
_BYTES = 32 << 20


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Rows (n, k), nearest first: index in the sample int64, distance float64 (inf: none)."""

    index: NDArray[np.int64]
    distance: Rows

    @property
    def there(self) -> NDArray[np.bool_]:
        """Which of them there are: a small sample may hold fewer than k others."""
        return np.isfinite(self.distance)


@dataclass(frozen=True, eq=False)
class Sample:
    """Rows (m, D), m >= 1, and their identities uint64 (m,): a row is no neighbour of itself."""

    rows: Rows
    row_hash: NDArray[np.uint64]

    @cached_property
    def _order(self) -> NDArray[np.intp]:
        return np.argsort(self.row_hash, kind="stable")

    @cached_property
    def _sorted_hash(self) -> NDArray[np.uint64]:
        return self.row_hash[self._order]

    @cached_property
    def _search(self) -> Any:
        from sklearn.neighbors import NearestNeighbors  # noqa: PLC0415 - a second of imports

        return NearestNeighbors(algorithm="brute").fit(self.rows)

    def nearest(self, rows: Rows, row_hash: NDArray[np.uint64], count: int) -> Neighbours:
        """The ``count`` nearest others of rows (n, D) with identities (n,)."""
        asked = min(count, len(self.rows))
        own = self._positions(row_hash)
        index = np.zeros((len(rows), asked), np.int64)
        distance = np.zeros((len(rows), asked))
        with threadpool_limits(1):  # a worker has a core
            for start in range(0, len(rows), BLOCK):
                part = slice(start, start + BLOCK)
                index[part], distance[part] = self._block(rows[part], own[part], asked)
        return Neighbours(index, distance)

    def _positions(self, row_hash: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Where rows are in the sample (n,); -1: not there."""
        known = self._sorted_hash
        found = self._order[np.minimum(np.searchsorted(known, row_hash), len(known) - 1)]
        return np.where(self.row_hash[found] == row_hash, found, -1)

    def _block(
        self, rows: Rows, own: NDArray[np.int64], asked: int
    ) -> tuple[NDArray[np.int64], Rows]:
        taken = min(asked + _SPARE, len(self.rows))
        index = in_blocks(rows, partial(self._search.kneighbors, n_neighbors=taken, **_INDEX))
        distance = self._distances(rows, index)
        itself = index == own[:, None]
        distance[itself] = np.inf
        index, distance = _ordered(index, distance)
        if taken < len(self.rows):  # equals may go on beyond the candidates
            last = np.where(itself.any(axis=1), distance[:, -2], distance[:, -1])
            for row in np.flatnonzero(distance[:, asked - 1] == last):
                whole = np.arange(len(self.rows))[None]
                exact = self._distances(rows[row : row + 1], whole)
                exact[whole == own[row]] = np.inf
                every, exact = _ordered(whole, exact)
                index[row, :asked], distance[row, :asked] = every[0, :asked], exact[0, :asked]
        return index[:, :asked], distance[:, :asked]

    def _distances(self, rows: Rows, index: NDArray[np.int64]) -> Rows:
        """Distances of rows (n, D) to those of the sample at index (n, c)."""
        found = np.empty(index.shape)
        width = max(1, _BYTES // (8 * rows.shape[1]))  # differences at a time
        wide = min(width, index.shape[1])
        high = max(1, width // wide)
        for first in range(0, len(rows), high):
            part = slice(first, first + high)
            for start in range(0, index.shape[1], wide):
                columns = slice(start, start + wide)
                gap = self.rows[index[part, columns]] - rows[part, None]
                found[part, columns] = np.sqrt((gap**2).sum(axis=2))
        return found


def _ordered(index: NDArray[np.int64], distance: Rows) -> tuple[NDArray[np.int64], Rows]:
    order = np.lexsort((index, distance), axis=1)
    return np.take_along_axis(index, order, axis=1), np.take_along_axis(distance, order, axis=1)
