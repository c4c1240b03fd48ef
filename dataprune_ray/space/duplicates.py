"""Copies and near duplicates of rows, as SemDeDup finds them (Abbas et al. 2023).

Within a cluster of normalised features rows are taken in the order of their similarity to the
centre, the least similar first, as its authors do; equal ones by hash. A row's redundancy is its
largest cosine to a row that was kept before it, so what was dropped drops nothing else. Rows whose
content came before are copies: their redundancy is 1 and nothing is compared with them.

Not for clusters of any size: the work grows with its square, so a large one is split.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from dataprune_ray.space.clusters import spherical_k_means
from dataprune_ray.space.steady import in_blocks

#: Rows of a cluster above which it is split.
MOST_ROWS = 32_768
_SAMPLE = 16_384
_DEEPEST = 4
_BLOCK = 256
_TINY = 1e-12

Vectors = NDArray[np.float32]


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


def later_copies(digests: NDArray[np.uint64], row_hash: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which rows have the content digest (n, 2) of one with a smaller identity (n,): bool (n,)."""
    order = np.lexsort((row_hash, digests[:, 1], digests[:, 0]))
    sorted_digests = digests[order]
    found = np.zeros(len(digests), np.bool_)
    found[order[1:]] = (sorted_digests[1:] == sorted_digests[:-1]).all(axis=1)
    return found


@dataclass(frozen=True, eq=False)
class Redundancy:
    """Values float32 (n,) in [0, 1], and how many clusters were split."""

    values: NDArray[np.float32]
    split: int


def redundancy(
    vectors: Vectors,
    cluster: NDArray[np.int32],
    similarity: NDArray[np.float32],
    row_hash: NDArray[np.uint64],
    copies: NDArray[np.bool_],
    epsilon: float,
    most: int = MOST_ROWS,
) -> Redundancy:
    """Redundancy of all rows of some clusters.

    Args:
        vectors: normalised features (n, D).
        cluster: (n,).
        similarity: cosine to the cluster's centre (n,).
        row_hash: identities (n,).
        copies: see `later_copies` (n,).
        epsilon: a row is kept where its largest cosine is at most ``1 - epsilon``.
        most: rows of a cluster above which it is split.
    """
    values = np.ones(len(vectors), np.float32)
    split = 0
    own = np.flatnonzero(~copies)
    own = own[np.argsort(cluster[own], kind="stable")]
    starts = np.flatnonzero(np.diff(cluster[own], prepend=-1))
    with threadpool_limits(1):
        for members in np.split(own, starts[1:]) if len(own) else []:
            split += len(members) > most
            pieces = _pieces(vectors[members], similarity[members], row_hash[members], most)
            for piece in pieces:
                place = members[piece]
                values[place] = _greedy(vectors[place], epsilon)
    return Redundancy(values, split)


def _pieces(
    vectors: Vectors,
    similarity: NDArray[np.float32],
    row_hash: NDArray[np.uint64],
    most: int,
    depth: int = 0,
) -> list[NDArray[np.intp]]:
    """Rows of a cluster in their order, in pieces of at most ``most`` that lie together."""
    order = np.lexsort((row_hash, similarity))
    if len(order) <= most:
        return [order]
    parts = math.ceil(2 * len(order) / most)
    sample = np.argsort(row_hash)[:_SAMPLE]
    centres = spherical_k_means(vectors[sample].astype(np.float64), parts, seed=depth)
    nearest, closeness = nearest_direction(vectors, centres)
    if depth == _DEEPEST or np.bincount(nearest).max() == len(order):  # nearly all alike
        return [order[start : start + most] for start in range(0, len(order), most)]
    found = []
    for part in range(len(centres)):
        members = np.flatnonzero(nearest == part)
        inner = _pieces(vectors[members], closeness[members], row_hash[members], most, depth + 1)
        found += [members[piece] for piece in inner if len(piece)]
    return found


def _greedy(vectors: Vectors, epsilon: float) -> NDArray[np.float32]:
    """Largest cosine of each row (n, D) to an earlier kept one, 0 at least: float32 (n,)."""
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
