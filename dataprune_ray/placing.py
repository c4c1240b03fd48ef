"""Rows in the feature space: the features of a batch, and the columns that say where it lies."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dataprune_ray import schema
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
    if batch.digests is not None:
        found[schema.DIGEST] = batch.digests[finite]
    return {FEATURES: features} | {name: _spread(v, finite) for name, v in found.items()}


def binary_column(
    values: npt.NDArray[Any],
    good: npt.NDArray[np.int64],
    bad: npt.NDArray[np.bool_],
    kind: pa.DataType,
) -> pa.Array:
    """Rows of numbers (m, w) of the good rows as bytes in a column of all rows, null where bad."""
    width = values.itemsize * values.shape[1]
    chosen = ~bad[good]
    data = np.ascontiguousarray(values[chosen])
    if pa.types.is_fixed_size_binary(kind):
        known = pa.FixedSizeBinaryArray.from_buffers(kind, len(data), [None, pa.py_buffer(data)])
    else:
        offsets = np.arange(len(data) + 1, dtype=np.int32) * width
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
        known = pa.Array.from_buffers(kind, len(data), buffers)
    place = np.full(len(bad), -1, np.int64)
    place[good[chosen]] = np.arange(len(data))
    return known.take(pa.array(place, mask=place < 0))


def vector_rows(column: pa.Array) -> npt.NDArray[np.float32]:
    """Vectors (n, D) of a column without nulls."""
    return _numbers(column, np.dtype(np.float32))


def digest_rows(column: pa.Array) -> npt.NDArray[np.uint64]:
    """Digests (n, 2) of a column without nulls."""
    return _numbers(column, np.dtype(np.uint64)).reshape(-1, 2)


def _numbers(column: pa.Array, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    flat = np.frombuffer(b"".join(column.to_pylist()), dtype)
    return flat.reshape(len(column), flat.size // max(len(column), 1))


def _features(batch: RowBatch, given: npt.NDArray[np.float32] | None) -> npt.NDArray[np.float32]:
    rows = len(batch.targets)
    values: npt.NDArray[Any] = batch.values if batch.extra is None else batch.extra
    flat = np.asarray(values if given is None else given, np.float32)
    return flat.reshape(rows, flat.size // max(rows, 1))


def _spread(values: npt.NDArray[Any], where: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """Values of the rows ``where`` (n,) holds among all rows, zeros for the others."""
    full = np.zeros((len(where), *values.shape[1:]), values.dtype)
    full[where] = values
    return full
