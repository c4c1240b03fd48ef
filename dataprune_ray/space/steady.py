"""Matrix products whose last bits do not depend on how many rows are asked at once.

A matrix kernel may round a row differently in a short batch than in a long one. Here each product
has the same number of rows, padded with zeros, in double precision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Rows of one product.
BLOCK = 256

Rows = NDArray[np.float64]


def in_blocks(rows: Rows, function: Callable[[Rows], NDArray[Any]]) -> NDArray[Any]:
    """``function`` of (256, D), row by row, over rows (n, D): its values (n, …)."""
    parts = []
    for start in range(0, max(len(rows), 1), BLOCK):
        part = rows[start : start + BLOCK]
        padded = np.zeros((BLOCK, rows.shape[1]))
        padded[: len(part)] = part
        parts.append(function(padded)[: len(part)])
    return np.concatenate(parts)


def nearest_centre(rows: Rows, centres: Rows) -> tuple[NDArray[np.int32], Rows]:
    """The nearest of the centres (k, D) to rows (n, D), the first of equals, and its distance."""
    squares = (centres**2).sum(axis=1)
    index = in_blocks(rows, lambda part: (squares - 2.0 * part @ centres.T).argmin(axis=1))
    return index.astype(np.int32), distances(rows, centres[index])


def distances(rows: Rows, others: Rows) -> Rows:
    """Euclidean distance of each row (n, D) to its other (n, D)."""
    return np.asarray(np.sqrt(((rows - others) ** 2).sum(axis=1)))
