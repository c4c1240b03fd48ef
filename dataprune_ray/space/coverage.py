"""Orders in which the rows of a cluster cover it, each row the best addition to those before it.

`k_center` is the farthest-first traversal (Gonzalez 1985), the k-center greedy of Sener and
Savarese (2018): its first k rows leave no row farther than twice the smallest radius that k rows
can have. `facility_location` maximises the summed similarity of all rows to their most similar
chosen one (Nemhauser et al. 1978; Lin and Bilmes 2009; Mirzasoleiman et al. 2020): its first k
rows reach ``1 - 1 / e`` of the largest sum at least. Both orders are nested, so one serves any k.

Similarities are ``1 - distance**2 / 4``, that is ``(1 + cosine) / 2`` of vectors of length 1; zeros
are like zeros. They are rounded to multiples of 2**-23: sums are exact then, and ties are ties,
which the smallest identity hash decides. Not for clusters of any size: all pairs are held, 4 bytes
each.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dataprune_ray.space.within import Members

#: Rows of a cluster above which it is split: all pairs take 256 MiB.
MOST_ROWS = 8192
_UNIT = 1 << 23
#: Rows whose similarities are looked at together: their sum is an int32.
_BLOCK = 128

Order = NDArray[np.intp]


def k_center(rows: Members) -> NDArray[np.float32]:
    """Places of rows in a farthest-first traversal: float32 (m,), 1 for the first, down to 1 / m.

    It starts at the row nearest the cluster's centre.
    """
    canonical = rows.take(np.argsort(rows.row_hash))
    return _scattered(rows, _farthest_first(canonical))


def facility_location(rows: Members) -> NDArray[np.float32]:
    """Places of rows in the greedy order of facility location: as those of `k_center`."""
    canonical = rows.take(np.argsort(rows.row_hash))
    return _scattered(rows, _most_similar_first(canonical))


def _scattered(rows: Members, order: Order) -> NDArray[np.float32]:
    """``1 - place / m`` of rows, by the order (m,) of the same rows sorted by hash."""
    values = np.empty(len(rows), np.float32)
    values[np.argsort(rows.row_hash)[order]] = 1.0 - np.arange(len(rows)) / len(rows)
    return values


def _similarities(rows: Members) -> NDArray[np.int32]:
    """Similarities of all pairs, in units of 2**-23: int32 (m, m)."""
    vectors = rows.vectors.astype(np.float64)
    squares = (vectors**2).sum(axis=1)
    similar = np.empty((len(rows), len(rows)), np.int32)
    for start in range(0, len(rows), _BLOCK):
        part = slice(start, start + _BLOCK)
        distances = squares[part, None] + squares - 2.0 * vectors[part] @ vectors.T  # squared
        similar[part] = np.clip(np.rint((1.0 - distances / 4.0) * _UNIT), 0, _UNIT)
    return similar


def _farthest_first(rows: Members) -> Order:
    """Row after row with the smallest similarity to those before it, the first of equals."""
    similar = _similarities(rows)
    order = np.empty(len(rows), np.intp)
    nearest = np.zeros(len(rows), np.int32)  # similarity to the nearest chosen row
    chosen = rows.similarity.argmax()
    for place in range(len(rows)):
        order[place] = chosen
        np.maximum(nearest, similar[chosen], out=nearest)
        nearest[chosen] = _UNIT + 1  # never again
        chosen = nearest.argmin()
    return order


def _most_similar_first(rows: Members) -> Order:
    """Row after row with the largest gain, the first of equals.

    The gain of a row is what it adds to the sum over all rows of the similarity to their most
    similar chosen one. A choice changes the gains by those rows alone that it is more similar to
    than all before it; their shares are recomputed.
    """
    similar = _similarities(rows)
    order = np.empty(len(rows), np.intp)
    best = np.zeros(len(rows), np.int32)
    gains = similar.sum(axis=0, dtype=np.int64)
    for place in range(len(rows)):
        order[place] = chosen = gains.argmax()
        now = similar[:, chosen]
        changed = np.flatnonzero(now > best)
        for start in range(0, len(changed), _BLOCK):
            part = changed[start : start + _BLOCK]
            low = best[part, None]
            lost = np.clip(similar[part], low, now[part, None]) - low
            gains -= lost.sum(axis=0, dtype=np.int32)
        best[changed] = now[changed]
        gains[chosen] = -1  # never again: no other gain is negative, and it only falls
    return order
