"""Work within clusters of directions: rows of one cluster at a time, large clusters in pieces.

The values of a row depend on the rows of its cluster alone, never on their order or on how a
corpus is cut. What compares all rows of a cluster grows with the square of its size, so each such
function says from how many rows on a cluster is split.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from dataprune_ray.space.clusters import spherical_k_means
from dataprune_ray.space.steady import in_blocks

_SAMPLE = 16_384
_DEEPEST = 4
_TINY = 1e-12

Vectors = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Members:
    """Rows of clusters.

    ``vectors`` float32 (m, D) of length 1; ``similarity`` float32 (m,), the cosine to the centre
    of the row's cluster; ``row_hash`` uint64 (m,), identities.
    """

    vectors: Vectors
    similarity: NDArray[np.float32]
    row_hash: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.row_hash)

    def take(self, rows: NDArray[np.intp]) -> Members:
        """Some of the rows, in this order."""
        return Members(self.vectors[rows], self.similarity[rows], self.row_hash[rows])


@dataclass(frozen=True, eq=False)
class ClusterValues:
    """Values float32 (n,), and how many clusters were split."""

    values: NDArray[np.float32]
    split: int


def normalised(features: NDArray[np.floating]) -> Vectors:
    """Features (n, D) scaled to length 1; zeros stay zeros."""
    exact = features.astype(np.float64)
    length = np.sqrt((exact**2).sum(axis=1, keepdims=True))
    return np.asarray(exact / np.maximum(length, _TINY), np.float32)


def nearest_direction(
    vectors: Vectors, centres: NDArray[np.float64]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The centre (k, D) of largest cosine, the first of equals, and that cosine: (n,) each."""
    rows = vectors.astype(np.float64)
    index = in_blocks(rows, lambda part: (part @ centres.T).argmax(axis=1)).astype(np.int32)
    return index, (rows * centres[index]).sum(axis=1).astype(np.float32)


def within_clusters(
    function: Callable[[Members], NDArray[np.float32]],
    rows: Members,
    cluster: NDArray[np.int32],
    left_out: NDArray[np.bool_],
    most: int,
) -> ClusterValues:
    """``function`` of the rows of each cluster; 0 for rows that are left out.

    Args:
        function: values float32 (m,) of the rows of a cluster, or of a piece of a large one. It
            is given the rows by their similarity to the centre, the least first, equals by hash.
        rows: all rows of some clusters.
        cluster: of each row (n,).
        left_out: rows that belong to no cluster (n,).
        most: rows of a cluster above which it is split into pieces that lie together.
    """
    values = np.zeros(len(rows), np.float32)
    split = 0
    order = np.flatnonzero(~left_out)
    order = order[np.argsort(cluster[order], kind="stable")]
    starts = np.flatnonzero(np.diff(cluster[order], prepend=-1))
    with threadpool_limits(1):
        for members in np.split(order, starts[1:]) if len(order) else []:
            split += len(members) > most
            for piece, inner in _pieces(rows.take(members), most):
                values[members[piece]] = function(inner)
    return ClusterValues(values, split)


def _pieces(rows: Members, most: int, depth: int = 0) -> Iterator[tuple[NDArray[np.intp], Members]]:
    """Rows of a cluster in their order, in pieces of at most ``most`` that lie together.

    Similarities are those to the centre of the piece.
    """
    order = np.lexsort((rows.row_hash, rows.similarity))
    if len(order) <= most:
        yield order, rows.take(order)
        return
    parts = math.ceil(2 * len(order) / most)
    sample = np.argsort(rows.row_hash)[:_SAMPLE]
    centres = spherical_k_means(rows.vectors[sample].astype(np.float64), parts, seed=depth)
    nearest, closeness = nearest_direction(rows.vectors, centres)
    if depth == _DEEPEST or np.bincount(nearest).max() == len(order):  # nearly all alike
        for start in range(0, len(order), most):
            part = order[start : start + most]
            yield part, rows.take(part)
        return
    for code in np.unique(nearest):
        members = np.flatnonzero(nearest == code)
        near = Members(rows.vectors[members], closeness[members], rows.row_hash[members])
        for piece, inner in _pieces(near, most, depth + 1):
            yield members[piece], inner
