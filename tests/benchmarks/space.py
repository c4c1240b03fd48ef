"""Nearest neighbours and k-means of the feature space against scikit-learn and faiss, one thread.

Neighbours: 10 of each of ``--queries`` rows among ``--rows``. Ours sums every difference in double
precision and orders equal distances, so that no cancellation decides; the others' answers are
compared with it. k-means: ours is scikit-learn's from a fixed seed; faiss gets as many rounds.
``inertia`` is the sum of squared distances to the nearest centre, over ours. Ratios of time are
reference / ours: larger is better.

    python tests/benchmarks/space.py [--rows 20000] [--queries 5000] [--dimensions 64]
"""

from __future__ import annotations

import argparse

import faiss
import numpy as np
import torch
from common import interleaved, machine, report
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from dataprune_ray.space.clusters import k_means
from dataprune_ray.space.neighbours import Sample

COUNT, CLUSTERS, ROUNDS = 10, 100, 25
Rows = NDArray[np.float64]


def features(rows: int, dimensions: int, seed: int) -> Rows:
    """Rows around 300 centres, of unit variance within."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(300, dimensions)) * 2
    return centres[rng.integers(0, 300, rows)] + rng.normal(size=(rows, dimensions))


def neighbours(rows: Rows, queries: Rows, repeats: int) -> None:
    """Time the three and compare what they found."""
    hashes = np.arange(len(rows), dtype=np.uint64)
    others = np.arange(len(rows), len(rows) + len(queries), dtype=np.uint64)

    def by_faiss() -> NDArray[np.int64]:
        index = faiss.IndexFlatL2(rows.shape[1])
        index.add(rows.astype(np.float32))
        return np.asarray(index.search(queries.astype(np.float32), COUNT)[1])

    def by_sklearn() -> NDArray[np.int64]:
        search = NearestNeighbors(n_neighbors=COUNT, algorithm="brute").fit(rows)
        return np.asarray(search.kneighbors(queries, return_distance=False))

    seconds, found = interleaved(
        {
            "ours": lambda: Sample(rows, hashes).nearest(queries, others, COUNT).index,
            "sklearn": by_sklearn,
            "faiss": by_faiss,
        },
        dict.fromkeys(("ours", "sklearn", "faiss"), repeats),
    )
    names = ("sklearn", "faiss")
    report(
        "neighbours",
        rows=len(rows),
        queries=len(queries),
        dimensions=rows.shape[1],
        repeats=repeats,
        **{f"{name}_s": value for name, value in seconds.items()},
        **{f"{name}_over_ours": seconds[name] / seconds["ours"] for name in names},
        **{f"{name}_same": float((found[name] == found["ours"]).mean()) for name in names},
        **machine(),
    )


def clusters(rows: Rows, repeats: int) -> None:
    """Time the three and compare how well their centres fit."""

    def by_faiss() -> Rows:
        fitted = faiss.Kmeans(rows.shape[1], CLUSTERS, niter=ROUNDS, nredo=4, seed=0)
        fitted.train(rows.astype(np.float32))
        return np.asarray(fitted.centroids, np.float64)

    seconds, found = interleaved(
        {
            "ours": lambda: k_means(rows, CLUSTERS, 0),
            "sklearn": lambda: (
                KMeans(CLUSTERS, n_init=4, random_state=1).fit(rows).cluster_centers_
            ),
            "faiss": by_faiss,
        },
        dict.fromkeys(("ours", "sklearn", "faiss"), repeats),
    )
    inertia = {
        name: float(torch.cdist(torch.tensor(rows), torch.tensor(c)).min(dim=1)[0].square().sum())
        for name, c in found.items()
    }
    names = ("sklearn", "faiss")
    report(
        "kmeans",
        rows=len(rows),
        dimensions=rows.shape[1],
        clusters=CLUSTERS,
        repeats=repeats,
        **{f"{name}_s": value for name, value in seconds.items()},
        **{f"{name}_over_ours": seconds[name] / seconds["ours"] for name in names},
        **{f"{name}_inertia": inertia[name] / inertia["ours"] for name in names},
        **machine(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--queries", type=int, default=5_000)
    parser.add_argument("--dimensions", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    faiss.omp_set_num_threads(1)
    rows = features(options.rows, options.dimensions, 1)
    with threadpool_limits(1):
        neighbours(rows, features(options.queries, options.dimensions, 2), options.repeats)
        clusters(rows, options.repeats)


if __name__ == "__main__":
    main()
