"""Batches to arrays; a row that cannot be encoded gets a reason instead."""

from __future__ import annotations

import io
import json
import math
import warnings
import zlib
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageOps
from sklearn.feature_extraction.text import HashingVectorizer

from dataprune_ray.features.columns import as_bytes, column, is_text, top_level
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

_LABELS: tuple[tuple[Callable[[pa.DataType], bool], pa.DataType], ...] = (
    (pa.types.is_boolean, pa.int64()),
    (pa.types.is_integer, pa.int64()),
    (pa.types.is_floating, pa.float64()),
    (pa.types.is_decimal, pa.float64()),
    (pa.types.is_string, pa.string()),
    (pa.types.is_large_string, pa.string()),
    (pa.types.is_binary, pa.int64()),
    (pa.types.is_large_binary, pa.int64()),
)
_KINDS = {"int64": "an integer", "string": "text", "float64": "a number"}
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
        return _images(spec, batch, transform)
    if spec.modality == "tensor":
        return _tensors(spec, batch, spec.shape, np.dtype(np.float32))
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
    raw = column(batch, spec.column)
    stored, bad = cast_labels(raw, spec)
    errors = dict.fromkeys(_positions(np.asarray(raw.is_null())), "label is null")
    for position, value in bad.items():
        errors.setdefault(position, f"label {value!r} is not {_KINDS[spec.stored]}")
    if spec.task == "regression":
        with np.errstate(over="ignore"):
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


def plain_labels(values: pa.Array, *, text: bool = False) -> pa.Array:
    r"""Labels as int64, float64 or string; text of archive members (``b"3\\n"``) is parsed.

    ``text`` leaves it as it is. Bytes that are not UTF-8 are replaced.
    """
    kind = values.type
    target = next((kept for is_kind, kept in _LABELS if is_kind(kind)), kind)
    if is_text(kind):
        values = _utf8(values)
        if text or target == pa.string():
            return values
    try:
        return values.cast(target)
    except pa.ArrowInvalid:  # no number, or one beyond 63 bits
        return values


def _utf8(values: pa.Array) -> pa.Array:
    """Text as it is, bytes without white space around them."""
    stored = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    try:
        texts = values.cast(pa.string())
        texts.validate(full=True)
    except pa.ArrowInvalid:
        decoded = [None if v is None else v.decode("utf-8", "replace") for v in as_bytes(values)]
        texts = pa.array(decoded, pa.string())
    return texts if stored else pc.utf8_trim_whitespace(texts)


def cast_labels(raw: pa.Array, spec: LabelSpec) -> tuple[pa.Array, dict[int, object]]:
    """A label column as the score table stores it; values without such a form by position.

    These, and nulls, are null in the result.
    """
    values = plain_labels(raw, text=spec.stored == "string")
    if values.type == spec.type:
        return values, {}
    try:
        return values.cast(spec.type), {}
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        cast = [_cast(value, spec.type) for value in values.to_pylist()]
        known = values.is_valid().to_pylist()
        bad = {i: values[i].as_py() for i in range(len(cast)) if known[i] and cast[i] is None}
        return pa.array(cast, spec.type), bad


def _cast(value: object, target: pa.DataType) -> object:
    try:
        return pa.scalar(value).cast(target).as_py()
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
        return None


# Images ------------------------------------------------------------------------------------------


def _images(spec: FeatureSpec, batch: pa.RecordBatch, transform: Transform | None) -> Encoded:
    values = column(batch, spec.columns[0])
    layout = raw_layout(spec.columns[0], batch.schema)
    if layout is not None or not (is_text(values.type) or pa.types.is_struct(values.type)):
        shape = layout[1] if layout is not None else stored_shape(values.type) or spec.shape
        return _pixel_tensors(spec, _tensors(spec, batch, shape, np.dtype(np.uint8)), transform)
    if pa.types.is_struct(values.type):
        values = pc.struct_field(values, "bytes")
    if spec.any_size and transform is None:  # whoever needs no transform needs one shape alone
        spec = replace(spec, any_size=False, fit=True)
    images: list[Array] = []
    errors: dict[int, str] = {}
    for position, payload in enumerate(values):
        buffer = payload.as_buffer() if payload.is_valid else None
        if buffer is None or buffer.size == 0:
            errors[position] = "image is null" if buffer is None else "image has no bytes"
            continue
        try:
            image = decode_image(memoryview(buffer), spec)
            images.append(image if transform is None else np.asarray(transform(image)))
        except Exception as error:  # noqa: BLE001 - decoders raise anything on broken bytes
            errors[position] = f"image cannot be decoded: {error}"
    return _collect(images, errors, len(values), spec.shape, np.dtype(np.uint8))


def decode_image(payload: bytes | memoryview, spec: FeatureSpec) -> npt.NDArray[np.uint8]:
    """Decode one encoded image (or ``.npy`` array) to uint8 (C, H, W) as the spec says.

    Raises:
        ValueError: more pixels than ``spec.max_pixels``, or a shape other than ``spec.shape``.
        OSError: not an image, or a truncated one.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with _open(payload) as opened:
            if opened.width * opened.height > spec.max_pixels:
                raise ValueError(
                    f"{opened.width} x {opened.height} pixels exceed {spec.max_pixels}"
                )
            opened.load()
            image = _eight_bits(opened).convert("L" if spec.shape[0] == 1 else "RGB")
    if spec.any_size:
        return np.ascontiguousarray(_planes(image))
    height, width = (spec.image_size, spec.image_size) if spec.image_size else spec.shape[1:]
    if (spec.fit or spec.image_size) and image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    pixels = _planes(image)
    if pixels.shape != spec.shape:
        raise ValueError(f"shape {pixels.shape} is not {spec.shape}; --image-size resizes")
    return pixels


def _open(payload: bytes | memoryview) -> Image.Image:
    if bytes(payload[:6]) != _NPY_MAGIC:
        return Image.open(io.BytesIO(payload))
    array = load_array(payload)
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise ValueError(f"array of {array.dtype} {array.shape} is not a uint8 image")
    pixels = to_planes(array[None], array.shape)[0]  # (C, H, W)
    if len(pixels) not in (1, 3):
        raise ValueError(f"array of shape {array.shape} has neither 1 nor 3 channels")
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image; of 16 bits per pixel the upper 8, where Pillow would clip."""
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))


def _planes(image: Image.Image) -> npt.NDArray[np.uint8]:
    pixels = np.asarray(image, np.uint8)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)  # noqa: PLR2004


def to_chw(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Channels, height and width of a pixel array (H, W), (H, W, C) or (C, H, W)."""
    if len(shape) == 2:  # noqa: PLR2004
        return (1, shape[0], shape[1])
    if shape[-1] in (1, 3):
        return (shape[2], shape[0], shape[1])
    return (shape[0], shape[1], shape[2])


def to_planes(pixels: Array, shape: tuple[int, ...]) -> Array:
    """Pixel arrays (N, *shape) as (N, C, H, W)."""
    if len(shape) == 3 and shape[-1] in (1, 3):  # noqa: PLR2004
        return pixels.transpose(0, 3, 1, 2)
    return pixels.reshape(-1, *to_chw(shape))


def _pixel_tensors(spec: FeatureSpec, encoded: Encoded, transform: Transform | None) -> Encoded:
    pixels = to_planes(encoded.values, encoded.values.shape[1:])
    if pixels.shape[1] == 1 and spec.shape[0] > 1:  # grey pixels for a model of colours
        pixels = pixels.repeat(spec.shape[0], axis=1)
    pixels = np.ascontiguousarray(pixels)
    if transform is None or not len(pixels):
        return Encoded(pixels, encoded.good, encoded.errors)
    rows = [np.asarray(transform(image)) for image in pixels]
    return _collect(rows, encoded.errors, len(encoded.good), rows[0].shape, rows[0].dtype)


# Tensors -----------------------------------------------------------------------------------------


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


def _tensors(
    spec: FeatureSpec, batch: pa.RecordBatch, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Encoded:
    """The feature column's arrays as ``dtype`` (m, *shape), ``shape`` being that of the values."""
    values = column(batch, spec.columns[0])
    if is_text(values.type):
        return _raw_bytes(values, raw_layout(spec.columns[0], batch.schema), shape, dtype)
    size = int(np.prod(shape))
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    errors = dict.fromkeys(_positions(np.asarray(values.is_null())), "tensor is null")
    lengths, fitting = _list_lengths(values, shape)
    for position in _positions(~fitting):
        found = "rows of several lengths" if lengths[position] == size else lengths[position]
        errors.setdefault(position, f"tensor has {found}, not {size} values")
    flat = _leaves(values, errors)
    if flat.null_count and dtype.kind in "iu":
        holes = np.any(np.asarray(flat.is_null()).reshape(-1, size), axis=1)
        known = [i for i in range(len(values)) if i not in errors]
        errors |= {known[i]: "tensor holds a null" for i in _positions(holes)}
        flat = _leaves(values, errors)
    good = np.ones(len(values), bool)
    good[list(errors)] = False
    rows = flat.to_numpy(zero_copy_only=False).reshape(-1, *shape)
    with np.errstate(over="ignore"):
        return _finite(rows.astype(dtype, copy=False), good, errors)


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
            return _finite(rows.astype(dtype, copy=False), np.ones(len(values), bool), {})
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
    for position, parts in enumerate(zip(*map(as_bytes, columns), strict=True)):
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            errors[position] = "text is null"
            continue
        try:
            texts.append(b" ".join(known).decode("utf-8"))
        except UnicodeDecodeError as error:
            errors[position] = f"text is not UTF-8: {error.reason} at byte {error.start}"
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
        numbers, bad = _numbers(values)
        for position, value in bad.items():
            errors.setdefault(position, f"column {entry.name!r} has {value!r}, not a number")
        known = ~np.asarray(values.is_null())
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = (np.where(known, numbers, entry.mean) - entry.mean) / entry.std
            parts.append(scaled.astype(np.float32)[:, None])
        for position in _positions(~np.isfinite(parts[-1][:, 0])):
            errors.setdefault(position, f"column {entry.name!r} is not finite")
    rows = np.concatenate(parts, axis=1) if parts else np.zeros((batch.num_rows, 0), np.float32)
    good = np.ones(batch.num_rows, bool)
    good[list(errors)] = False
    return Encoded(rows[good] if errors else rows, good, errors)


def _numbers(values: pa.Array) -> tuple[npt.NDArray[np.float64], dict[int, object]]:
    """Numbers float64 (n,), and the values that are none: JSON members have no fixed type."""
    values = _flat(values)
    if not is_text(values.type):
        return numeric(values), {}
    cast, bad = cast_labels(values, LabelSpec(None, "regression", "float64"))
    return numeric(cast), bad


def _flat(values: pa.Array) -> pa.Array:
    """Lists and objects that JSON members may hold as their text."""
    if not pa.types.is_nested(values.type):
        return values
    return pa.array([None if v is None else str(v) for v in values.to_pylist()], pa.string())


def numeric(values: pa.Array) -> npt.NDArray[np.float64]:
    """A numeric or boolean column as float64 (n,), null as NaN."""
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.int8())
    if pa.types.is_decimal(values.type) or pa.types.is_temporal(values.type):
        values = values.cast(pa.int64() if pa.types.is_temporal(values.type) else pa.float64())
    return np.asarray(values.to_numpy(zero_copy_only=False), np.float64)


def _one_hot(values: pa.Array) -> npt.NDArray[np.float32]:
    """Hash of the category's text to one of `CATEGORY_BUCKETS`; null is a category of its own."""
    values = _flat(values)
    encoded = values.dictionary_encode()
    names = [name or b"" for name in as_bytes(encoded.dictionary)]
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
    """Stack the rows without an error; one of another shape than the first's has one."""
    places = [i for i in range(total) if i not in errors]
    for place, row in zip(places, rows, strict=True):
        if row.shape != rows[0].shape:
            errors[place] = f"shape {row.shape} is not {rows[0].shape}"
    good = np.ones(total, bool)
    good[list(errors)] = False
    rows = [row for place, row in zip(places, rows, strict=True) if good[place]]
    values = np.stack(rows) if rows else np.zeros((0, *shape), dtype)
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
