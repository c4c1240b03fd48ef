"""What the nearest rows of a sample say about a row: do they share its label, how far are they.

Features are the penultimate ones of one model, scaled to length 1, so that distances grow with the
angle. Features of two models are never compared: each model has a reference of its own. Not an
index: neighbours are searched among all rows of the sample, which is why it is a sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MOST_CLUSTERS = 64
_TINY = 1e-12


def normalised(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Features (n, D) scaled to length 1; zeros stay zeros."""
    length = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    return np.asarray(features / np.maximum(length, _TINY), np.float32)


@dataclass(frozen=True, eq=False)
class Neighbourhood:
    """What neighbours say of rows (n,); NaN where a row has none.

    ``agreement`` float32: share of the neighbours with the row's label; ``distance`` float32: mean
    distance to them, in units of the sample's median; ``cluster`` int32.
    """

    agreement: NDArray[np.float32]
    distance: NDArray[np.float32]
    cluster: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Reference:
    """A sample among which neighbours and clusters are searched.

    Attributes:
        features: float32 (m, D), normalised.
        labels: int64 (m,), class codes.
        row_hash: uint64 (m,), identities: no row is a neighbour of itself.
        centres: float32 (c, D), of k-means.
        unit: median over the sample of the mean distance to a row's neighbours; makes distances of
            different models comparable.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    row_hash: NDArray[np.uint64]
    centres: NDArray[np.float32]
    unit: float

    @classmethod
    def fit(
        cls,
        features: NDArray[np.float32],
        labels: NDArray[np.int64],
        row_hash: NDArray[np.uint64],
        neighbours: int,
        seed: int,
    ) -> Reference:
        """Cluster a sample of at least one row and measure its median distance.

        There are ``sqrt(m / 2)`` clusters, at most 64.
        """
        from sklearn.cluster import MiniBatchKMeans  # noqa: PLC0415 - a second, for those who fit only

        count = min(_MOST_CLUSTERS, max(1, math.isqrt(len(features) // 2)))
        fitted = MiniBatchKMeans(count, random_state=seed, n_init=3).fit(features)
        centres = fitted.cluster_centers_.astype(np.float32)
        plain = cls(features, labels, row_hash, centres, 1.0)
        known = plain.judge(features, labels, row_hash, neighbours).distance
        known = known[~np.isnan(known)]
        unit = float(np.median(known)) if len(known) else 0.0
        return cls(features, labels, row_hash, centres, unit or 1.0)

    def judge(
        self,
        features: NDArray[np.float32],
        labels: NDArray[np.int64],
        row_hash: NDArray[np.uint64],
        neighbours: int,
    ) -> Neighbourhood:
        """Ask the ``neighbours`` nearest rows of the sample, each row but itself.

        Args:
            features: float32 (n, D), normalised, of the same model.
            labels: int64 (n,), class codes.
            row_hash: uint64 (n,).
            neighbours: how many; all others where the sample is smaller.
        """
        from sklearn.neighbors import NearestNeighbors  # noqa: PLC0415 - a second, for those who fit only

        if not len(features):
            none = np.zeros(0, np.float32)
            return Neighbourhood(none, none, np.zeros(0, np.int32))
        asked = min(neighbours + 1, len(self.features))
        search = NearestNeighbors(n_neighbors=asked, algorithm="brute").fit(self.features)
        distance, index = search.kneighbors(features)
        others = self.row_hash[index] != row_hash[:, None]  # (n, asked)
        if asked == neighbours + 1:  # the last one is asked only in a row's own stead
            others[others.all(axis=1), -1] = False
        count = others.sum(axis=1)
        with np.errstate(invalid="ignore"):
            same = (self.labels[index] == labels[:, None]) & others
            agreement = same.sum(axis=1) / count
            mean = np.where(others, distance, 0.0).sum(axis=1) / count / self.unit
        return Neighbourhood(
            agreement.astype(np.float32), mean.astype(np.float32), self._clusters(features)
        )

    def _clusters(self, features: NDArray[np.float32]) -> NDArray[np.int32]:
        """The nearest centre of each row (n,)."""
        centres = self.centres.astype(np.float64)
        gap = (centres**2).sum(axis=1) - 2.0 * features.astype(np.float64) @ centres.T
        return np.asarray(gap.argmin(axis=1), np.int32)
