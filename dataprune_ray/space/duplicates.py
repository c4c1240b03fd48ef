"""Copies and near duplicates of rows, as SemDeDup finds them (Abbas et al. 2023).

Within a cluster of normalised features rows are taken in the order of their similarity to the
centre, the least similar first, as its authors do; equal ones by hash. A row's redundancy is its
largest cosine to a row that was kept before it, so what was dropped drops nothing else. Rows whose
content came before are copies: their redundancy is 1 and nothing is compared with them.

Not for clusters of any size: the work grows with its square, so a large one is split.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dataprune_ray.space.within import Members

#: Rows of a cluster above which it is split.
MOST_ROWS = 32_768
_BLOCK = 256


def later_copies(digests: NDArray[np.uint64], row_hash: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which rows have the content digest (n, 2) of one with a smaller identity (n,): bool (n,)."""
    order = np.lexsort((row_hash, digests[:, 1], digests[:, 0]))
    sorted_digests = digests[order]
    found = np.zeros(len(digests), np.bool_)
    found[order[1:]] = (sorted_digests[1:] == sorted_digests[:-1]).all(axis=1)
    return found


def redundancy(rows: Members, epsilon: float) -> NDArray[np.float32]:
    """Largest cosine of each row to an earlier kept one, 0 at least: float32 (m,) in [0, 1].

    Args:
        rows: of one cluster, without copies, in the order in which they are taken.
        epsilon: a row is kept where its largest cosine is at most ``1 - epsilon``.
    """
    vectors = rows.vectors
    values = np.zeros(len(vectors), np.float32)
    limit = np.float32(1.0 - epsilon)
    kept = np.empty_like(vectors)
    count = 0
    for start in range(0, len(vectors), _BLOCK):
        part = vectors[start : start + _BLOCK]
        best = (part @ kept[:count].T).max(axis=1, initial=0.0)
        inner = part @ part.T
        chosen: list[int] = []
        for row in range(len(part)):
            value = inner[row, chosen].max(initial=best[row])
            values[start + row] = min(value, np.float32(1.0))
            if values[start + row] <= limit:
                chosen.append(row)
        kept[count : count + len(chosen)] = part[chosen]
        count += len(chosen)
    return values
