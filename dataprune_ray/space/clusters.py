"""k-means from a fixed seed; scikit-learn's, on batches where the sample is large."""

from __future__ import annotations

import warnings

import numpy as np

from dataprune_ray.space.steady import Rows

#: Rows x dimensions x clusters from which k-means runs on batches.
_LARGE = 1 << 31
_ROUNDS = 20


def k_means(rows: Rows, clusters: int, seed: int) -> Rows:
    """Centres (k, D) of rows (m, D), m >= 1; k is ``clusters``, or m where that is less."""
    from sklearn.cluster import KMeans, MiniBatchKMeans  # noqa: PLC0415 - a second, for those who fit only
    from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415

    count = min(clusters, len(rows))
    if rows.size * count > _LARGE:
        model = MiniBatchKMeans(count, n_init=3, random_state=seed)
    else:
        model = KMeans(count, n_init=4, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # copies: fewer different rows
        return np.asarray(model.fit(rows).cluster_centers_, np.float64)


def spherical_k_means(rows: Rows, clusters: int, seed: int) -> Rows:
    """Centres of length 1 (k, D) of rows of length 1 (m, D), by cosine (Dhillon and Modha 2001).

    k-means of the rows, then rounds in which each row goes to the centre of largest cosine and a
    centre becomes the direction of its rows' sum; one without rows stays.
    """
    centres = _directions(k_means(rows, clusters, seed))
    before = None
    for _ in range(_ROUNDS):
        nearest = (rows @ centres.T).argmax(axis=1)
        if before is not None and (nearest == before).all():
            break
        before = nearest
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, rows)
        filled = (np.abs(sums) > 0).any(axis=1)
        centres[filled] = _directions(sums[filled])
    return centres


def _directions(rows: Rows) -> Rows:
    length = np.sqrt((rows**2).sum(axis=1, keepdims=True))
    return np.asarray(rows / np.maximum(length, np.finfo(np.float64).tiny))
