"""Log density of rows under a model fitted to a sample: k-means, nearest neighbours, or a mixture.

All three see the same coordinates: the sample's first principal components, at most 16, divided by
one number so that their mean variance is 1. In more dimensions volumes, and so densities, differ by
hundreds of orders of magnitude between rows and say nothing. Values are in nats.

`gmm` is smooth and the default; `knn` follows any shape but costs a search per row; `kmeans` has
one value per cluster, so most rows tie.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dataprune_ray.space.clusters import k_means
from dataprune_ray.space.neighbours import Sample
from dataprune_ray.space.steady import Rows, in_blocks, nearest_centre

Density = Literal["gmm", "kmeans", "knn"]
Tensors = Mapping[str, NDArray[Any]]

_DIMENSIONS = 16
#: Principal components with less variance than this share of the first one's are left out.
_LEAST_VARIANCE = 1e-8
#: Variance added to each dimension of a mixture's components, where the mean variance is 1.
_REGULARISATION = 1e-4
#: Distances below this share of the typical one count as this: copies have none.
_LEAST_RADIUS = 1e-3


def fit_density(
    kind: Density,
    rows: Rows,
    row_hash: NDArray[np.uint64],
    clusters: int,
    neighbours: int,
    seed: int,
) -> dict[str, NDArray[Any]]:
    """A density model of sampled rows (m, D), m >= 1, centred: its tensors.

    ``clusters`` are those of k-means, and at most so many components has the mixture.
    """
    tensors = _axes(rows, seed)
    reduced = _reduced(tensors, rows)
    if kind == "gmm":
        return tensors | _fit_mixture(reduced, clusters, seed)
    if kind == "kmeans":
        return tensors | _fit_clusters(reduced, clusters, seed)
    sample = {"density_rows": reduced, "density_row_hash": row_hash}
    radius = _radii(sample, reduced, row_hash, neighbours)[0]
    return tensors | sample | {"density_least": np.array([_typical(radius) * _LEAST_RADIUS])}


def log_density(
    kind: Density, tensors: Tensors, rows: Rows, row_hash: NDArray[np.uint64], neighbours: int
) -> Rows:
    """Log density of rows (n, D) with identities (n,), from the tensors of `fit_density`."""
    reduced = _reduced(tensors, rows)
    if kind == "gmm":
        return in_blocks(reduced, lambda part: _mixture(tensors, part))
    if kind == "kmeans":
        nearest, _ = nearest_centre(reduced, tensors["density_centres"])
        return np.asarray(tensors["density_log"][nearest])
    radius, count, others = _radii(tensors, reduced, row_hash, neighbours)
    radius = np.maximum(radius, tensors["density_least"][0])
    size = reduced.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.log(count) - np.log(others) - ball(size) - size * np.log(radius)
    return np.where(count > 0, found, 0.0)  # a sample of one row says nothing of it


def _axes(rows: Rows, seed: int) -> dict[str, NDArray[Any]]:
    """Centre (D,) and axes (D, d) of the coordinates."""
    from sklearn.decomposition import PCA  # noqa: PLC0415 - a second, for those who fit only

    centre = rows.mean(axis=0)
    if not (rows - centre).any():  # one row, or copies of one
        return {"density_centre": centre, "density_axes": np.eye(rows.shape[1])[:, :1]}
    pca = PCA(min(_DIMENSIONS, *rows.shape), random_state=seed).fit(rows)
    variance = np.asarray(pca.explained_variance_)
    kept = variance > _LEAST_VARIANCE * float(variance[0])
    unit = math.sqrt(float(variance[kept].mean()))
    axes = np.ascontiguousarray(pca.components_[kept].T, np.float64) / unit
    return {"density_centre": np.asarray(pca.mean_, np.float64), "density_axes": axes}


def ball(dimensions: int) -> float:
    """Log volume of the ball of radius 1."""
    return dimensions / 2 * math.log(math.pi) - math.lgamma(dimensions / 2 + 1)


def _reduced(tensors: Tensors, rows: Rows) -> Rows:
    centre, axes = tensors["density_centre"], tensors["density_axes"]
    return in_blocks(rows, lambda part: (part - centre) @ axes)


def _typical(values: Rows) -> float:
    """Median of the positive values; 1 where there are none."""
    positive = values[(values > 0) & np.isfinite(values)]
    return float(np.median(positive)) if len(positive) else 1.0


def _fit_mixture(rows: Rows, components: int, seed: int) -> dict[str, NDArray[Any]]:
    """Gaussian mixture with full covariances.

    Components with fewer than 2 d rows are left out: around an outlier they would make it the
    likeliest row of all.
    """
    from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415 - a second, for those who fit only
    from sklearn.mixture import GaussianMixture  # noqa: PLC0415

    least = 2 * rows.shape[1]
    count = max(1, min(components, len(rows) // least))
    mixture = GaussianMixture(count, reg_covar=_REGULARISATION, random_state=seed)
    if len(rows) == 1:  # a mixture is not fitted to one row
        rows = np.repeat(rows, 2, axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 100 rounds are near enough
        mixture.fit(rows)
    weights = mixture.weights_
    kept = weights >= min(least / len(rows), weights.max())
    return {
        "density_log_weights": np.log(weights[kept] / weights[kept].sum()),
        "density_means": mixture.means_[kept],
        "density_precisions": mixture.precisions_cholesky_[kept],
    }


def _mixture(tensors: Tensors, rows: Rows) -> Rows:
    """``log sum_c w_c N(x; mu_c, S_c)``, ``S_c^-1 = P_c P_c^T``, P_c upper triangular."""
    parts = []
    for weight, mean, precision in zip(
        tensors["density_log_weights"],
        tensors["density_means"],
        tensors["density_precisions"],
        strict=True,
    ):
        squared = (((rows - mean) @ precision) ** 2).sum(axis=1)
        scale = np.log(np.diagonal(precision)).sum()
        constant = rows.shape[1] * math.log(2 * math.pi)
        parts.append(weight + scale - 0.5 * (constant + squared))
    return np.asarray(np.logaddexp.reduce(np.stack(parts, axis=1), axis=1))


def _fit_clusters(rows: Rows, clusters: int, seed: int) -> dict[str, NDArray[Any]]:
    """``p(x) = (n_k / m) / V_k``, V_k of the ball with the cluster's mean squared radius.

    One more row at the mean radius of all clusters counts for it, so that a cluster of one row or
    of copies has a volume.
    """
    centres = k_means(rows, clusters, seed)
    nearest, distance = nearest_centre(rows, centres)
    count = np.bincount(nearest, minlength=len(centres))
    size = rows.shape[1]
    squared = np.bincount(nearest, distance**2, len(centres))
    mean = float((distance**2).mean()) or 1.0
    radius = np.sqrt((squared + mean) / (count + 1) * (size + 2) / size)
    log_share = np.log(np.maximum(count, 1) / len(rows))
    return {
        "density_centres": centres,
        "density_log": log_share - ball(size) - size * np.log(radius),
    }


def _radii(
    tensors: Tensors, reduced: Rows, row_hash: NDArray[np.uint64], neighbours: int
) -> tuple[Rows, NDArray[np.int64], NDArray[np.int64]]:
    """Distance to the last neighbour (n,), how many neighbours, and how many others there are."""
    sample = Sample(tensors["density_rows"], tensors["density_row_hash"])
    found = sample.nearest(reduced, row_hash, neighbours)
    count = found.there.sum(axis=1)
    radius = np.where(found.there, found.distance, 0.0).max(axis=1, initial=0.0)
    others = len(sample.rows) - np.isin(row_hash, sample.row_hash)
    return radius, count, others
