"""Batches to arrays; a row that cannot be encoded gets a reason instead."""

from __future__ import annotations

import io
import json
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageOps
from sklearn.feature_extraction.text import HashingVectorizer

from dataprune_ray.features.columns import column
from dataprune_ray.features.spec import (
    CATEGORY_BUCKETS,
    TEXT_BUCKETS,
    TEXT_TOKENS,
    FeatureSpec,
    LabelSpec,
)

Array = npt.NDArray[Any]
#: Per-image transform: uint8 (C, H, W) to a float array or tensor of a fixed shape.
Transform = Callable[[Array], Array]

_DECODE_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError, EOFError)
_NPY_MAGIC = b"\x93NUMPY"


@dataclass(frozen=True)
class Encoded:
    """``values`` of the rows where ``good``, in order; ``errors`` of the others by position.

    ``good`` is bool (n,), ``values`` has ``good.sum()`` rows, ``errors`` maps position to reason.
    """

    values: Array
    good: npt.NDArray[np.bool_]
    errors: dict[int, str]


def encode(spec: FeatureSpec, batch: pa.RecordBatch, transform: Transform | None = None) -> Encoded:
    """Encode a batch's feature columns as `FeatureSpec` says.

    ``transform`` replaces an image's uint8 pixels by whatever it returns, image by image.
    """
    if spec.modality == "image":
        return _images(spec, column(batch, spec.columns[0]), transform)
    if spec.modality == "tensor":
        return _tensors(spec, column(batch, spec.columns[0]), batch.schema, np.dtype(np.float32))
    if spec.modality == "text":
        return _texts([column(batch, name) for name in spec.columns])
    return _tabular(spec, batch)


def encode_example(spec: FeatureSpec, transform: Transform | None = None) -> Array:
    """Two model inputs of zeros, as a batch: to see whether a model takes them."""
    dtype = {"image": np.uint8, "text": np.int64}.get(spec.modality, np.float32)
    rows = np.zeros((2, *spec.shape), dtype)
    if transform is None:
        return rows
    return np.stack([np.asarray(transform(row)) for row in rows])


def encode_labels(spec: LabelSpec, batch: pa.RecordBatch) -> tuple[Encoded, pa.Array]:
    """Class indices int64 or targets float32, and the labels as the score table stores them.

    An unlabelled corpus gives zeros that nothing reads and nulls.
    """
    rows = batch.num_rows
    if spec.column is None:
        return _all_good(np.zeros(rows, np.int64)), pa.nulls(rows, spec.type)
    raw = plain_labels(column(batch, spec.column))
    stored, bad = _cast_labels(raw, spec.type)
    errors = dict.fromkeys(bad, "")
    for position in bad:
        errors[position] = f"label {raw[position].as_py()!r} is not a {spec.stored}"
    for position in _positions(np.asarray(raw.is_null())):
        errors[position] = "label is null"
    if spec.task == "regression":
        values = stored.to_numpy(zero_copy_only=False).astype(np.float32)
        for position in _positions(~np.isfinite(values)):
            errors.setdefault(position, "label is not finite")
    else:
        table = pa.array(spec.classes, pa.string()).cast(spec.type)
        index = pc.index_in(stored, value_set=table).fill_null(-1)
        values = index.to_numpy(zero_copy_only=False).astype(np.int64)
        for position in _positions(values < 0):
            value = stored[position].as_py()
            errors.setdefault(
                int(position), f"label {value!r} is outside the {len(spec.classes)} classes"
            )
    good = np.ones(rows, bool)
    good[list(errors)] = False
    return Encoded(values[good], good, errors), stored


def plain_labels(values: pa.Array) -> pa.Array:
    r"""Labels as int64, float64 or string; text of archive members (``b"3\\n"``) is parsed."""
    kind = values.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        texts = [
            None if v is None else v.decode("utf-8", "replace").strip() for v in values.to_pylist()
        ]
        array = pa.array(texts, pa.string())
        try:
            return array.cast(pa.int64())
        except pa.ArrowInvalid:
            return array
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind):
        return values.cast(pa.int64())
    if pa.types.is_floating(kind):
        return values.cast(pa.float64())
    if pa.types.is_large_string(kind):
        return values.cast(pa.string())
    return values


def _cast_labels(values: pa.Array, target: pa.DataType) -> tuple[pa.Array, list[int]]:
    """Cast; positions whose value has no such form become null and are returned."""
    if values.type == target:
        return values, []
    try:
        return values.cast(target), []
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        cast, bad = [], []
        for position, value in enumerate(values.to_pylist()):
            try:
                cast.append(None if value is None else pa.scalar(value).cast(target).as_py())
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                cast.append(None)
                bad.append(position)
        return pa.array(cast, target), bad


# Images ------------------------------------------------------------------------------------------


def _images(spec: FeatureSpec, values: pa.Array, transform: Transform | None) -> Encoded:
    if isinstance(values.type, pa.FixedShapeTensorType) or not _holds_bytes(values.type):
        return _pixel_tensors(spec, values, transform)
    payloads = values
    if pa.types.is_struct(values.type):
        payloads = pc.struct_field(values, "bytes")
    images: list[Array] = []
    errors: dict[int, str] = {}
    for position, payload in enumerate(payloads):
        buffer = payload.as_buffer() if payload.is_valid else None
        if buffer is None or buffer.size == 0:
            errors[position] = "image is null" if buffer is None else "image has no bytes"
            continue
        try:
            image = decode_image(memoryview(buffer), spec)
            images.append(image if transform is None else transform(image))
        except _DECODE_ERRORS as error:
            errors[position] = f"image cannot be decoded: {error}"
    return _collect(images, errors, len(payloads), spec.shape, np.dtype(np.uint8))


def decode_image(payload: bytes | memoryview, spec: FeatureSpec) -> npt.NDArray[np.uint8]:
    """Decode one encoded image (or ``.npy`` array) to uint8 (C, H, W) as the spec says.

    Raises:
        ValueError: more pixels than ``spec.max_pixels``, or a shape other than ``spec.shape``.
        OSError: not an image, or a truncated one.
    """
    if bytes(payload[:6]) == _NPY_MAGIC:
        return _array_pixels(np.load(io.BytesIO(payload), allow_pickle=False), spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(payload)) as opened:
            if opened.width * opened.height > spec.max_pixels:
                raise ValueError(
                    f"{opened.width} x {opened.height} pixels exceed {spec.max_pixels}"
                )
            opened.load()
            image = opened.convert("L" if spec.shape[0] == 1 else "RGB")
    if spec.any_size:
        return np.ascontiguousarray(_planes(image))
    if spec.image_size is not None and image.size != (spec.image_size, spec.image_size):
        image = ImageOps.fit(image, (spec.image_size, spec.image_size), Image.Resampling.BILINEAR)
    pixels = _planes(image)
    if pixels.shape != spec.shape:
        raise ValueError(f"shape {pixels.shape} is not {spec.shape}; --image-size resizes")
    return pixels


def _planes(image: Image.Image) -> npt.NDArray[np.uint8]:
    pixels = np.asarray(image, np.uint8)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)  # noqa: PLR2004


def _array_pixels(array: Array, spec: FeatureSpec) -> npt.NDArray[np.uint8]:
    channels_first = _channels_first(array.shape, spec.shape)
    if channels_first is None or array.dtype != np.uint8:
        raise ValueError(f"array of {array.dtype} {array.shape} is not a uint8 {spec.shape} image")
    return np.ascontiguousarray(
        array.reshape(spec.shape) if channels_first else array.transpose(2, 0, 1)
    )


def _channels_first(found: tuple[int, ...], wanted: tuple[int, ...]) -> bool | None:
    channels, height, width = wanted
    if found in {(channels, height, width), (height, width) if channels == 1 else ()}:
        return True
    return False if found == (height, width, channels) else None


def _pixel_tensors(spec: FeatureSpec, values: pa.Array, transform: Transform | None) -> Encoded:
    encoded = _tensors(spec, values, None, np.dtype(np.uint8))
    pixels = encoded.values
    shape = stored_shape(values.type) or spec.shape
    if _channels_first(shape, spec.shape) is False:
        channels, height, width = spec.shape
        pixels = pixels.reshape(-1, height, width, channels).transpose(0, 3, 1, 2)
    if transform is not None:
        pixels = (
            np.stack([np.asarray(transform(image)) for image in pixels]) if len(pixels) else pixels
        )
    return Encoded(np.ascontiguousarray(pixels), encoded.good, encoded.errors)


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return True
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


# Tensors -----------------------------------------------------------------------------------------


def stored_shape(kind: pa.DataType) -> tuple[int, ...] | None:
    """Shape of one value where the type tells."""
    if isinstance(kind, pa.FixedShapeTensorType):
        return tuple(kind.shape)
    if pa.types.is_fixed_size_list(kind):
        inner = stored_shape(kind.value_type) or ()
        return (kind.list_size, *inner)
    return None


def raw_layout(field: pa.Field) -> tuple[np.dtype[Any], tuple[int, ...]] | None:
    """Data type and shape of a binary column of raw array bytes, from its field's metadata."""
    note = (field.metadata or {}).get(b"dataprune")
    if note is None:
        return None
    layout = json.loads(note)
    return np.dtype(layout["dtype"]), tuple(int(n) for n in layout["shape"])


def _tensors(
    spec: FeatureSpec, values: pa.Array, schema: pa.Schema | None, dtype: np.dtype[Any]
) -> Encoded:
    size = int(np.prod(spec.shape))
    if _holds_bytes(values.type):
        field = schema.field(spec.columns[0]) if schema is not None else None
        layout = raw_layout(field) if field is not None else None
        return _raw_bytes(values, layout, spec.shape, dtype)
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    errors = dict.fromkeys(_positions(np.asarray(values.is_null())), "tensor is null")
    lengths = _list_lengths(values)
    for position in _positions(lengths != size):
        errors.setdefault(position, f"tensor has {lengths[position]} values, not {size}")
    good = np.ones(len(values), bool)
    good[list(errors)] = False
    flat = values.filter(pa.array(good)) if errors else values
    while pa.types.is_nested(flat.type):
        flat = flat.flatten()
    numbers = flat.to_numpy(zero_copy_only=False)
    rows = numbers.reshape(-1, size)
    return _finite(rows.astype(dtype, copy=False).reshape(-1, *spec.shape), good, errors)


def _list_lengths(values: pa.Array) -> npt.NDArray[np.int64]:
    shape = stored_shape(values.type)
    if shape is not None:
        return np.full(len(values), int(np.prod(shape)))
    lengths = pc.list_value_length(values).fill_null(0).to_numpy(zero_copy_only=False)
    return np.asarray(lengths, np.int64)


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
            whole = pa.array(values, type=pa.large_binary()) if values.offset else values
            start = _first_offset(whole)
            buffer = np.frombuffer(
                whole.buffers()[2], stored, len(values) * width // stored.itemsize, start
            )
            rows = buffer.reshape(-1, *shape)
            return _finite(rows.astype(dtype, copy=False), np.ones(len(values), bool), {})
    rows_list: list[Array] = []
    errors: dict[int, str] = {}
    for position, payload in enumerate(values.to_pylist()):
        try:
            rows_list.append(_array_of(payload, layout, shape).astype(dtype, copy=False))
        except (ValueError, OSError, EOFError) as error:
            errors[position] = f"tensor cannot be decoded: {error}"
    return _collect(rows_list, errors, len(values), shape, dtype)


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
    if payload[:6] == _NPY_MAGIC:
        array = np.load(io.BytesIO(payload), allow_pickle=False)
    elif layout is not None:
        array = np.frombuffer(payload, layout[0])
    else:
        raise ValueError("neither .npy bytes nor a column with a 'dataprune' dtype and shape note")
    if array.size != int(np.prod(shape)) or array.dtype.hasobject:
        raise ValueError(f"{array.size} values, not {int(np.prod(shape))}")
    reshaped: Array = array.reshape(shape)
    return reshaped


# Text and tables ---------------------------------------------------------------------------------


@cache
def _vectorizer() -> HashingVectorizer:
    return HashingVectorizer(
        n_features=TEXT_BUCKETS - 1,
        ngram_range=(1, 2),
        norm=None,
        alternate_sign=False,
        token_pattern=r"(?u)\b\w+\b",  # noqa: S106 - a pattern of words
    )


def _texts(columns: list[pa.Array]) -> Encoded:
    """Hashed words and word pairs, as sorted token ids from 1; several columns are joined."""
    errors: dict[int, str] = {}
    texts: list[str] = []
    for position, parts in enumerate(zip(*[c.to_pylist() for c in columns], strict=True)):
        try:
            texts.append(" ".join(p.decode("utf-8") if isinstance(p, bytes) else p for p in parts))
        except UnicodeDecodeError as error:
            errors[position] = f"text is not UTF-8: {error.reason} at byte {error.start}"
        except TypeError:
            errors[position] = "text is null"
    counts = _vectorizer().transform(texts) if texts else None
    lengths = np.diff(counts.indptr) if counts is not None else np.zeros(0, np.int64)
    width = int(min(max(lengths.max(initial=1), 1), TEXT_TOKENS))
    tokens = np.zeros((len(texts), width), np.int64)
    for row in range(len(texts)):
        assert counts is not None  # noqa: S101 - there are texts, so there are counts
        found = counts.indices[counts.indptr[row] : counts.indptr[row + 1]][:width]
        tokens[row, : len(found)] = found + 1
    good = np.ones(len(columns[0]), bool)
    good[list(errors)] = False
    return Encoded(tokens, good, errors)


def _tabular(spec: FeatureSpec, batch: pa.RecordBatch) -> Encoded:
    parts: list[Array] = []
    errors: dict[int, str] = {}
    for entry in spec.tabular:
        values = column(batch, entry.name)
        if entry.categorical:
            parts.append(_one_hot(values))
            continue
        numbers = numeric(values)
        known = ~np.asarray(values.is_null())
        for position in _positions(known & ~np.isfinite(numbers)):
            errors.setdefault(position, f"column {entry.name!r} is not finite")
        scaled = (np.where(known, numbers, entry.mean) - entry.mean) / entry.std
        parts.append(scaled.astype(np.float32)[:, None])
    rows = np.concatenate(parts, axis=1) if parts else np.zeros((batch.num_rows, 0), np.float32)
    good = np.ones(batch.num_rows, bool)
    good[list(errors)] = False
    return Encoded(rows[good] if errors else rows, good, errors)


def numeric(values: pa.Array) -> npt.NDArray[np.float64]:
    """A numeric or boolean column as float64 (n,), null as NaN."""
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.int8())
    if pa.types.is_decimal(values.type) or pa.types.is_temporal(values.type):
        values = values.cast(pa.int64() if pa.types.is_temporal(values.type) else pa.float64())
    return np.asarray(values.to_numpy(zero_copy_only=False), np.float64)


def _one_hot(values: pa.Array) -> npt.NDArray[np.float32]:
    """Hash of the category's text to one of `CATEGORY_BUCKETS`; null is a category of its own."""
    encoded = values.dictionary_encode()
    names = [str(v).encode() for v in encoded.dictionary.to_pylist()]
    buckets = np.array([*(1 + zlib.crc32(n) % (CATEGORY_BUCKETS - 1) for n in names), 0])
    codes = encoded.indices.fill_null(len(names)).to_numpy(zero_copy_only=False)
    hot = np.zeros((len(values), CATEGORY_BUCKETS), np.float32)
    hot[np.arange(len(values)), buckets[codes]] = 1.0
    return hot


# Shared ------------------------------------------------------------------------------------------


def _positions(mask: Array) -> list[int]:
    return [int(position) for position in np.flatnonzero(mask)]


def _all_good(values: Array) -> Encoded:
    return Encoded(values, np.ones(len(values), bool), {})


def _collect(
    rows: list[Array],
    errors: dict[int, str],
    total: int,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
) -> Encoded:
    good = np.ones(total, bool)
    good[list(errors)] = False
    values = np.stack([np.asarray(r) for r in rows]) if rows else np.zeros((0, *shape), dtype)
    if values.dtype.kind == "f":
        return _finite(values, good, errors)
    return Encoded(values, good, errors)


def _finite(values: Array, good: npt.NDArray[np.bool_], errors: dict[int, str]) -> Encoded:
    """Drop rows with NaN or infinity, naming them."""
    if values.dtype.kind != "f" or not len(values):
        return Encoded(values, good, errors)
    finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    if finite.all():
        return Encoded(values, good, errors)
    positions = np.flatnonzero(good)[~finite]
    errors = errors | {int(p): "feature is not finite" for p in positions}
    good = good.copy()
    good[positions] = False
    return Encoded(values[finite], good, errors)
