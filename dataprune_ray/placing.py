"""Rows in the feature space: the features of a batch, and the columns that say where it lies."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dataprune_ray.features import LabelSpec
from dataprune_ray.io.filesystems import exists, read_bytes
from dataprune_ray.io.rows import RowBatch
from dataprune_ray.space import Space

#: Name of the features that places come from: checked to be finite with the columns, not stored.
FEATURES = "features"


def load_space(path: str) -> Space | None:
    """The fitted space, where there is one already."""
    return Space.from_bytes(read_bytes(path))[0] if exists(path) else None


def place(
    space: Space | None,
    label: LabelSpec,
    batch: RowBatch,
    given: npt.NDArray[np.float32] | None,
) -> dict[str, npt.NDArray[Any]]:
    """`FEATURES` (m, D) of the good rows, and with a space their columns (m,).

    ``given`` are a model's features; without them they are the batch's extra ones or its inputs.
    """
    features = _features(batch, given)
    if space is None:
        return {FEATURES: features}
    finite: npt.NDArray[np.bool_] = np.asarray(np.isfinite(features).all(axis=1))
    classified = label.column is not None and label.task == "classification"
    found = space.place(
        features[finite].reshape(-1, space.width),
        batch.targets[finite] if classified else None,
        batch.row_hash[batch.good][finite],
    )
    return {FEATURES: features} | {name: _spread(v, finite) for name, v in found.items()}


def _features(batch: RowBatch, given: npt.NDArray[np.float32] | None) -> npt.NDArray[np.float32]:
    rows = len(batch.targets)
    values: npt.NDArray[Any] = batch.values if batch.extra is None else batch.extra
    flat = np.asarray(values if given is None else given, np.float32)
    return flat.reshape(rows, flat.size // max(rows, 1))


def _spread(values: npt.NDArray[Any], where: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """Values of the rows ``where`` (n,) holds among all rows, zeros for the others."""
    full = np.zeros(len(where), values.dtype)
    full[where] = values
    return full
