"""k-means from a fixed seed; scikit-learn's, on batches where the sample is large."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning

from dataprune_ray.space.steady import Rows

#: Rows x dimensions x clusters from which k-means runs on batches.
_LARGE = 1 << 31


def k_means(rows: Rows, clusters: int, seed: int) -> Rows:
    """Centres (k, D) of rows (m, D), m >= 1; k is ``clusters``, or m where that is less."""
    count = min(clusters, len(rows))
    if rows.size * count > _LARGE:
        model = MiniBatchKMeans(count, n_init=3, random_state=seed)
    else:
        model = KMeans(count, n_init=4, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # copies: fewer different rows
        return np.asarray(model.fit(rows).cluster_centers_, np.float64)
