"""Arrays in every storage form: tensor columns, nested lists, raw bytes, ``.npy`` members."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Container
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dataprune_ray.features.columns import column, is_text, top_level
from dataprune_ray.features.encoded import Array, Encoded, collect, finite_rows, positions
from dataprune_ray.features.spec import FeatureSpec

NPY_MAGIC = b"\x93NUMPY"


def stored_shape(kind: pa.DataType) -> tuple[int, ...] | None:
    """Shape of one value where the type tells."""
    if isinstance(kind, pa.FixedShapeTensorType):
        return tuple(kind.shape)
    if pa.types.is_fixed_size_list(kind):
        inner = stored_shape(kind.value_type) or ()
        return (kind.list_size, *inner)
    return None


def raw_layout(path: str, schema: pa.Schema) -> tuple[np.dtype[Any], tuple[int, ...]] | None:
    """Data type and shape of a binary column of raw array bytes, from its field's metadata."""
    field = schema.field(top_level(path, schema))
    note = (field.metadata or {}).get(b"dataprune")
    if note is None or field.name != path:
        return None
    layout = json.loads(note)
    return np.dtype(layout["dtype"]), tuple(int(n) for n in layout["shape"])


def encode_tensors(
    spec: FeatureSpec, batch: pa.RecordBatch, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Encoded:
    """The feature column's arrays as ``dtype`` (m, *shape), ``shape`` being that of the values."""
    values = column(batch, spec.columns[0])
    if is_text(values.type):
        return _raw_bytes(values, raw_layout(spec.columns[0], batch.schema), shape, dtype)
    size = int(np.prod(shape))
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    errors = dict.fromkeys(positions(np.asarray(values.is_null())), "tensor is null")
    lengths, fitting = _list_lengths(values, shape)
    for position in positions(~fitting):
        found = "rows of several lengths" if lengths[position] == size else lengths[position]
        errors.setdefault(position, f"tensor has {found}, not {size} values")
    flat = _leaves(values, errors)
    if flat.null_count and dtype.kind in "iu":
        holes = np.any(np.asarray(flat.is_null()).reshape(-1, size), axis=1)
        known = [i for i in range(len(values)) if i not in errors]
        errors |= {known[i]: "tensor holds a null" for i in positions(holes)}
        flat = _leaves(values, errors)
    good = np.ones(len(values), bool)
    good[list(errors)] = False
    rows = flat.to_numpy(zero_copy_only=False).reshape(-1, *shape)
    with np.errstate(over="ignore"):
        return finite_rows(rows.astype(dtype, copy=False), good, errors)


def _leaves(values: pa.Array, without: Container[int]) -> pa.Array:
    """The numbers of nested lists, in order, of all rows but some."""
    flat = values
    if without:
        flat = values.filter(pa.array([i not in without for i in range(len(values))], pa.bool_()))
    while pa.types.is_nested(flat.type):
        flat = flat.flatten()
    return flat


def _list_lengths(
    values: pa.Array, shape: tuple[int, ...]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Numbers in each row's nested lists, and whether these are of ``shape``; a null has none."""
    fixed = stored_shape(values.type)
    if fixed is not None:
        lengths = np.full(len(values), int(np.prod(fixed)))
        return lengths, lengths == int(np.prod(shape))
    outer = np.asarray(
        pc.list_value_length(values).fill_null(0).to_numpy(zero_copy_only=False), np.int64
    )
    fitting = outer == (shape[0] if shape else -1)
    if not pa.types.is_nested(values.type.value_type):
        return outer, fitting & (len(shape) == 1)
    inner, inner_fitting = _list_lengths(values.flatten(), shape[1:])
    ends = np.cumsum(outer)
    total, misfits = _sums(inner, ends, outer), _sums(~inner_fitting, ends, outer)
    return total, fitting & (misfits == 0)


def _sums(
    parts: Array, ends: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    sums = np.concatenate([[0], np.cumsum(parts, dtype=np.int64)])
    return np.asarray(sums[ends] - sums[ends - lengths], np.int64)


def _raw_bytes(
    values: pa.Array,
    layout: tuple[np.dtype[Any], tuple[int, ...]] | None,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
) -> Encoded:
    """Raw array bytes (one memory view for a clean column) or ``.npy`` members, row by row."""
    if layout is not None:
        stored, _ = layout
        width = stored.itemsize * int(np.prod(shape))
        lengths = pc.binary_length(values).fill_null(-1).to_numpy(zero_copy_only=False)
        if len(values) and (lengths == width).all():
            start = _first_offset(values)
            buffer = np.frombuffer(
                values.buffers()[2], stored, len(values) * width // stored.itemsize, start
            )
            rows = buffer.reshape(-1, *shape)
            return finite_rows(rows.astype(dtype, copy=False), np.ones(len(values), bool), {})
    rows_list: list[Array] = []
    errors: dict[int, str] = {}
    for position, payload in enumerate(values.to_pylist()):
        try:
            array = _array_of(payload, layout, shape)
            if dtype.kind != "f" and array.dtype != dtype:
                raise ValueError(f"values are {array.dtype}, not {dtype}")  # noqa: TRY301
            rows_list.append(array.astype(dtype, copy=False))
        except Exception as error:  # noqa: BLE001 - numpy raises anything on broken bytes
            errors[position] = f"tensor cannot be decoded: {error}"
    return collect(rows_list, errors, len(values), shape, dtype)


def _first_offset(values: pa.Array) -> int:
    wide = pa.types.is_large_binary(values.type)
    offsets = np.frombuffer(values.buffers()[1], np.int64 if wide else np.int32)
    return int(offsets[values.offset])


def _array_of(
    payload: bytes | None,
    layout: tuple[np.dtype[Any], tuple[int, ...]] | None,
    shape: tuple[int, ...],
) -> Array:
    if payload is None:
        raise ValueError("null")
    if payload[:6] == NPY_MAGIC:
        array = load_array(payload)
        if array.shape != shape:
            raise ValueError(f"shape {array.shape} is not {shape}")
        return array
    if layout is None:
        raise ValueError("neither .npy bytes nor a column with a 'dataprune' dtype and shape note")
    array = np.frombuffer(payload, layout[0])
    if array.size != int(np.prod(shape)):
        raise ValueError(f"{array.size} values, not {int(np.prod(shape))}")
    return array.reshape(shape)


def load_array(payload: bytes | memoryview) -> Array:
    """The array of numbers in ``.npy`` bytes; nothing is unpickled.

    Raises:
        ValueError: not such bytes, or cut short, or not numbers.
    """
    content = io.BytesIO(payload)
    version = np.lib.format.read_magic(content)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(content)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(content)
    else:
        raise ValueError(f"version {version} of .npy is not supported")
    if dtype.kind not in "biuf":
        raise ValueError(f"values are {dtype}, not numbers")
    held, said = len(payload) - content.tell(), math.prod(shape) * dtype.itemsize
    if held != said:
        raise ValueError(f"{held} bytes of values, not {said}")
    content.seek(0)
    array: Array = np.load(content, allow_pickle=False)
    return array
