"""The fitted space: what it keeps of a sample, and where it places a row.

Features are used as they are, less the sample's mean: all dimensions in their own unit, so a
feature with a large spread weighs more. Distances are Euclidean and in that unit; densities have
coordinates of their own (`dataprune_ray.space.density`). Every fit runs on one thread from a fixed
seed: a space depends on its sample alone.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from dataprune_ray import schema
from dataprune_ray.space.clusters import k_means, spherical_k_means
from dataprune_ray.space.density import Density, fit_density, log_density
from dataprune_ray.space.neighbours import Sample
from dataprune_ray.space.steady import Rows, distances, in_blocks, nearest_centre
from dataprune_ray.space.whitening import whitening
from dataprune_ray.space.within import nearest_direction, normalised

#: Sources of features besides a stored column.
MODEL, INPUTS = "model", "inputs"
_MOST_CLUSTERS = 64
_ROWS_PER_SPHERE = 8192


@dataclass(frozen=True)
class SpaceOptions:
    """Settings of a space.

    Attributes:
        source: `MODEL` (penultimate features of the first model), `INPUTS` (encoded inputs,
            flattened) or the name of a stored column of floats.
        density: the density model.
        clusters: of k-means; None: one for each class, or as many as the square root of half the
            sample, at most 64.
        neighbours: nearest rows of the sample that are asked.
        survey_rows: rows of the sample, at most.
        whiten: whether vectors are whitened features (see `space.whitening`), or plain ones.
    """

    source: str = MODEL
    density: Density = "gmm"
    clusters: int | None = None
    neighbours: int = 10
    survey_rows: int = 50_000
    whiten: bool = True


@dataclass(frozen=True, eq=False)
class Survey:
    """Sampled rows, at least one, in an order that does not depend on how the corpus is cut.

    ``features`` float32 (m, D); ``labels`` int64 (m,), codes of ``classes`` classes, where there
    are any; ``row_hash`` uint64 (m,); ``rows`` of the whole corpus, about.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    row_hash: NDArray[np.uint64]
    classes: int = 0
    rows: int = 0


@dataclass(frozen=True, eq=False)
class Space:
    """What placing rows takes: tensors by name, and the settings that they were fitted with."""

    tensors: dict[str, NDArray[Any]]
    columns: frozenset[str]
    density: Density
    neighbours: int

    @classmethod
    def fit(
        cls, survey: Survey, columns: frozenset[str], options: SpaceOptions, seed: int
    ) -> Space:
        """Fit what the ``columns`` (names in `schema.PLACED`) need to a sample."""
        features = survey.features.astype(np.float64)
        mean = features.mean(axis=0)
        rows = features - mean
        clusters = options.clusters or _clusters(survey)
        tensors: dict[str, NDArray[Any]] = {"mean": mean}
        with threadpool_limits(1):
            if columns & {schema.CLUSTER, schema.CENTRE_DISTANCE}:
                tensors["centres"] = k_means(rows, clusters, seed)
            if schema.LOG_DENSITY in columns:
                found = fit_density(
                    options.density, rows, survey.row_hash, clusters, options.neighbours, seed
                )
                tensors |= found
            if schema.SPHERE in columns:
                if options.whiten:
                    tensors["whitening"] = whitening(rows)
                vectors = _vectors(tensors, survey.features, rows).astype(np.float64)
                tensors["sphere_centres"] = spherical_k_means(vectors, _spheres(survey), seed)
        if schema.CLASS_DISTANCE in columns:
            tensors["class_centres"] = _class_centres(rows, survey)
        if schema.AGREEMENT in columns:
            tensors |= {
                "sample_features": survey.features,
                "sample_labels": survey.labels,
                "sample_row_hash": survey.row_hash,
            }
        return cls(tensors, columns, options.density, options.neighbours)

    @property
    def width(self) -> int:
        """Dimensions of the features."""
        return len(self.tensors["mean"])

    @property
    def clusters(self) -> int:
        """How many clusters there are."""
        return len(self.tensors.get("centres", ()))

    @property
    def spheres(self) -> tuple[int, int]:
        """How many clusters of directions there are, and the dimensions of vectors."""
        shape = self.tensors["sphere_centres"].shape
        return int(shape[0]), int(shape[1])

    def place(
        self,
        features: NDArray[np.float32],
        labels: NDArray[np.int64] | None,
        row_hash: NDArray[np.uint64],
    ) -> dict[str, NDArray[Any]]:
        """The columns of rows, each by its row alone.

        Args:
            features: float32 (n, D), finite.
            labels: int64 (n,), class codes; None without classes.
            row_hash: uint64 (n,).

        Returns:
            Clusters int32 (n,), `schema.VECTOR` float32 (n, d), the others float32 (n,).
        """
        rows = features.astype(np.float64) - self.tensors["mean"]
        found: dict[str, NDArray[Any]] = {}
        with threadpool_limits(1):
            if "centres" in self.tensors:
                nearest, distance = nearest_centre(rows, self.tensors["centres"])
                found |= {schema.CLUSTER: nearest, schema.CENTRE_DISTANCE: distance}
            if schema.LOG_DENSITY in self.columns:
                found[schema.LOG_DENSITY] = log_density(
                    self.density, self.tensors, rows, row_hash, self.neighbours
                )
            if schema.CLASS_DISTANCE in self.columns and labels is not None:
                centres = self.tensors["class_centres"]
                found[schema.CLASS_DISTANCE] = distances(rows, centres[labels])
            if "sphere_centres" in self.tensors:
                vectors = _vectors(self.tensors, features, rows)
                nearest, cosine = nearest_direction(vectors, self.tensors["sphere_centres"])
                found |= {schema.SPHERE: nearest, schema.SPHERE_SIMILARITY: cosine}
                found[schema.VECTOR] = vectors
            if schema.AGREEMENT in self.columns and labels is not None:
                found[schema.AGREEMENT] = self._agreement(rows, labels, row_hash)
        return {
            name: values if values.dtype == np.int32 else values.astype(np.float32)
            for name, values in found.items()
            if name in self.columns
        }

    @cached_property
    def _sample(self) -> Sample:
        rows = self.tensors["sample_features"].astype(np.float64) - self.tensors["mean"]
        return Sample(rows, self.tensors["sample_row_hash"])

    def _agreement(
        self, rows: Rows, labels: NDArray[np.int64], row_hash: NDArray[np.uint64]
    ) -> Rows:
        """Share of the nearest with the row's label; 0 where there is no other row at all."""
        found = self._sample.nearest(rows, row_hash, self.neighbours)
        same = (self.tensors["sample_labels"][found.index] == labels[:, None]) & found.there
        return np.asarray(same.sum(axis=1) / np.maximum(found.there.sum(axis=1), 1))

    def to_bytes(self, **notes: str) -> bytes:
        """The space as a safetensors file, with notes."""
        settings = {
            "columns": json.dumps(sorted(self.columns)),
            "density": self.density,
            "neighbours": str(self.neighbours),
        }
        tensors = {name: np.ascontiguousarray(values) for name, values in self.tensors.items()}
        content: bytes = safetensors.numpy.save(tensors, {**settings, **notes})
        return content

    @classmethod
    def from_bytes(cls, content: bytes) -> tuple[Space, dict[str, str]]:
        """What `to_bytes` wrote, and the notes."""
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        notes: dict[str, Any] = header["__metadata__"]
        columns = frozenset(json.loads(notes.pop("columns")))
        density, neighbours = notes.pop("density"), int(notes.pop("neighbours"))
        return cls(safetensors.numpy.load(content), columns, density, neighbours), notes


def _clusters(survey: Survey) -> int:
    return survey.classes or min(_MOST_CLUSTERS, max(1, math.isqrt(len(survey.features) // 2)))


def _vectors(
    tensors: dict[str, NDArray[Any]], features: NDArray[np.float32], rows: Rows
) -> NDArray[np.float32]:
    """Features (n, D) of length 1, whitened where that was fitted; ``rows`` are centred."""
    axes = tensors.get("whitening")
    if axes is None:
        return normalised(features)
    return normalised(in_blocks(rows, lambda part: part @ axes))


def _spheres(survey: Survey) -> int:
    """Clusters of directions: some 8,192 rows of the corpus each, and 16 of the survey at least."""
    wanted = math.ceil(max(survey.rows, len(survey.features)) / _ROWS_PER_SPHERE)
    return max(1, min(wanted, len(survey.features) // 16))


def _class_centres(rows: Rows, survey: Survey) -> Rows:
    """Mean of each class's rows (classes, D); of a class without one, the mean of all: zeros."""
    centres = np.zeros((survey.classes, rows.shape[1]))
    for code in np.unique(survey.labels):
        centres[code] = rows[survey.labels == code].mean(axis=0)
    return centres
