"""Which columns are the features and the label: said by the user, or recognised from a sample."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from PIL import Image

from dataprune_ray.config import CorpusConfig
from dataprune_ray.errors import BadDataError, ConfigError
from dataprune_ray.features.columns import (
    as_bytes,
    column,
    is_text,
    leads_somewhere,
    top_level,
)
from dataprune_ray.features.images import formats, to_chw
from dataprune_ray.features.labels import cast_labels, plain_labels
from dataprune_ray.features.spec import (
    TEXT_TOKENS,
    FeatureSpec,
    LabelSpec,
    Modality,
    TabularColumn,
)
from dataprune_ray.features.tensors import load_array, raw_layout, stored_shape

LABEL_NAMES = ("label", "labels", "target", "class", "cls", "json.label", "fine_label", "y")
IMAGE_MEMBERS = ("jpg", "jpeg", "png", "webp", "img", "image", "ppm", "bmp", "gif", "tif", "tiff")
_NOT_FEATURES = frozenset({"id", "idx", "index", "__key__", "clean_label", "uid", "uuid"})
_MIXED_IMAGE_SIZE = 224
_ONE_SIZE = 0.8  # share of images of one size from which the others count as bad rows
_WORDS_OF_A_TEXT = 2.5
_NUMBERS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


@dataclass(frozen=True)
class Recognised:
    """The decision, with sentences that say what was chosen and why."""

    features: FeatureSpec
    label: LabelSpec
    notes: tuple[str, ...]


def recognise(config: CorpusConfig, schema: pa.Schema, sample: pa.RecordBatch) -> Recognised:
    """Decide the features and the label of a corpus from its schema and first rows.

    Class lists and tabular moments that need the whole corpus are left open (see `LabelSpec`).

    Raises:
        ConfigError: a named column does not exist or the features cannot be recognised.
    """
    notes: list[str] = []
    label = _label(config, schema, sample, notes)
    names = config.features or _feature_columns(config, schema, sample, label.column)
    for name in names:
        _require("features", name, schema)
        if name == label.column:
            raise ConfigError("features", name, "is the label")
    if config.id_column is not None:
        _require("id_column", config.id_column, schema)
    modality = config.modality if config.modality != "auto" else _modality(names, schema, sample)
    _check_modality(modality, names, schema, sample)
    builders = {"image": _image, "tensor": _tensor, "text": _text, "tabular": _tabular}
    features = builders[modality](config, tuple(names), schema, sample)
    how = "as asked" if config.modality != "auto" else "recognised"
    shape = " x ".join(map(str, features.shape))
    notes.insert(0, f"{modality} features ({how}) from {', '.join(names)}, {shape} per row")
    return Recognised(features, label, tuple(notes))


def _require(field: str, name: str, schema: pa.Schema) -> None:
    if leads_somewhere(name, schema):
        return
    try:
        head = top_level(name, schema)
    except KeyError:
        raise ConfigError(field, name, f"no such column; the corpus has {schema.names}") from None
    kind = schema.field(head).type
    raise ConfigError(field, name, f"leads nowhere: column {head!r} is {kind}")


# Labels ------------------------------------------------------------------------------------------


def _label(
    config: CorpusConfig, schema: pa.Schema, sample: pa.RecordBatch, notes: list[str]
) -> LabelSpec:
    if config.label == "none":
        notes.append("no label, as asked")
        return _unlabelled(config)
    name = config.label
    if name is None:
        known = [n for n in schema.names if n.lower() in LABEL_NAMES and n not in LABEL_NAMES]
        name = next((n for n in (*LABEL_NAMES, *known) if _is_label(n, schema, sample)), None)
        if name is None:
            notes.append("no label column recognised; --label names one")
            return _unlabelled(config)
        notes.append(f"label column {name!r} (recognised)")
    _require("label", name, schema)
    values = plain_labels(column(sample, name))
    if pa.types.is_nested(values.type):
        raise ConfigError("label", name, f"a label must be a number or a string, not {values.type}")
    floating = pa.types.is_floating(values.type)
    if pa.types.is_string(values.type):
        values = _mostly_numbers(column(sample, name), values)
    task = config.task if config.task != "auto" else "regression" if floating else "classification"
    if task == "regression":
        return LabelSpec(name, "regression", "float64")
    stored = "string" if pa.types.is_string(values.type) else "int64"
    if pa.types.is_null(values.type):
        stored = "int64"
    names = class_names(schema, name)
    count = config.num_classes or (len(names) if names else None)
    classes = tuple(map(str, range(count))) if count and stored == "int64" else ()
    return LabelSpec(name, "classification", stored, classes, names + classes[len(names) :])


def _unlabelled(config: CorpusConfig) -> LabelSpec:
    """No label; a given model's outputs are as many as ``num_classes`` says."""
    return LabelSpec(None, classes=tuple(map(str, range(config.num_classes or 0))))


def _mostly_numbers(raw: pa.Array, texts: pa.Array) -> pa.Array:
    """Bytes as integers where more than half of them are: the others are bad rows."""
    if not (pa.types.is_binary(raw.type) or pa.types.is_large_binary(raw.type)):
        return texts
    numbers, bad = cast_labels(raw, LabelSpec(None))
    return numbers if 2 * len(bad) < len(raw) - raw.null_count else texts


def _is_label(name: str, schema: pa.Schema, sample: pa.RecordBatch) -> bool:
    if not leads_somewhere(name, schema):
        return False
    return bool(column(sample, name).null_count < max(sample.num_rows, 1)) or sample.num_rows == 0


def class_names(schema: pa.Schema, label: str) -> tuple[str, ...]:
    """Names of a Hugging Face ``ClassLabel`` column, from the schema's metadata."""
    feature = _hugging_face(schema).get(label)
    if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
        return tuple(map(str, feature.get("names") or ()))
    return ()


def _hugging_face(schema: pa.Schema) -> dict[str, object]:
    note = (schema.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(note)["info"]["features"] if note else {}
    except (ValueError, KeyError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


# Features ----------------------------------------------------------------------------------------


def _feature_columns(
    config: CorpusConfig, schema: pa.Schema, sample: pa.RecordBatch, label: str | None
) -> tuple[str, ...]:
    taken = {config.id_column, label, (label or "").partition(".")[0]}
    taken |= {(config.id_column or "").partition(".")[0]}
    skipped = _NOT_FEATURES | {"json"}
    names = [n for n in schema.names if n not in taken and n.lower() not in skipped]
    kinds = {name: _kind(name, schema, sample) for name in names}
    wanted = config.modality
    for modality in ("image", "tensor", "text"):
        found = [n for n in names if kinds[n] == modality]
        if found and wanted in ("auto", modality):
            if modality == "text" and wanted == "auto" and "number" in kinds.values():
                break
            return tuple(found) if modality == "text" else (found[0],)
    columns = tuple(n for n in names if kinds[n] in ("number", "category", "text"))
    if not columns or wanted not in ("auto", "tabular"):
        shown = {n: str(schema.field(n).type) for n in names}
        raise ConfigError("features", "", f"no {wanted} features recognised in {shown}; name them")
    return columns


def _modality(names: Sequence[str], schema: pa.Schema, sample: pa.RecordBatch) -> Modality:
    kinds = {_kind(name, schema, sample) for name in names}
    if len(names) == 1 and kinds <= {"image", "tensor"}:
        return "image" if kinds == {"image"} else "tensor"
    if kinds <= {"text"}:
        return "text"
    if kinds & {"image", "tensor", "other"}:
        raise ConfigError("features", ",".join(names), f"cannot be combined: {sorted(kinds)}")
    return "tabular"


def _check_modality(
    modality: str, names: Sequence[str], schema: pa.Schema, sample: pa.RecordBatch
) -> None:
    """Refuse columns that cannot be read as the modality that was asked for."""
    for name in names:
        values = column(sample, name)
        kind = values.type
        number = any(is_kind(kind) for is_kind in _NUMBERS)
        layout = raw_layout(name, schema)
        if modality == "text":
            fits, wanted = is_text(kind), "text or bytes"
        elif modality == "tabular":
            fits, wanted = number or is_text(kind) or pa.types.is_temporal(kind), "number or text"
        elif modality == "image" and (layout is not None or stored_shape(kind) is not None):
            shape = layout[1] if layout is not None else stored_shape(kind) or ()
            value = pa.from_numpy_dtype(layout[0]) if layout is not None else _value_type(kind)
            fits, wanted = _like_image(shape, value), "uint8 (H, W), (H, W, C) or (C, H, W)"
        elif modality == "image":
            fits, wanted = is_text(kind) or _is_image_struct(kind), "encoded image"
        else:
            nested = isinstance(kind, pa.FixedShapeTensorType) or _is_list(kind)
            fits, wanted = is_text(kind) or (nested and _like_numbers(kind)), "list of numbers"
        if not fits:
            raise ConfigError("features", name, f"a column of {kind} is no {modality}: no {wanted}")


def _kind(name: str, schema: pa.Schema, sample: pa.RecordBatch) -> str:
    """One of image, tensor, text, category, number, other."""
    values = column(sample, name)
    kind = values.type
    if _is_image_struct(kind):
        return "image"
    if (isinstance(kind, pa.FixedShapeTensorType) or _is_list(kind)) and _like_numbers(kind):
        shape = stored_shape(kind) or ()
        return "image" if _like_image(shape, _value_type(kind)) else "tensor"
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        layout = raw_layout(name, schema)
        if layout is not None:
            return "image" if _like_image(layout[1], pa.from_numpy_dtype(layout[0])) else "tensor"
        return _kind_of_bytes(name, values)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        texts = [t for t in as_bytes(values) if t]
        words = np.mean([len(t.split()) for t in texts]) if texts else 0.0
        return "text" if words >= _WORDS_OF_A_TEXT else "category"
    return "number" if any(is_kind(kind) for is_kind in _NUMBERS) else "other"


def _kind_of_bytes(name: str, values: pa.Array) -> str:
    if name in IMAGE_MEMBERS:
        return "image"
    if name == "txt":
        return "text"
    kinds = (_kind_of_payload(payload) for payload in values.to_pylist() if payload)
    return next((kind for kind in kinds if kind is not None), "other")


def _kind_of_payload(payload: bytes) -> str | None:
    """What one value is, or None where that cannot be told."""
    try:
        if payload[:6] == b"\x93NUMPY":
            array = load_array(payload)
            like = _like_image(array.shape, pa.from_numpy_dtype(array.dtype))
            return "image" if like else "tensor"
        with Image.open(io.BytesIO(payload)):
            return "image"
    except Exception:  # noqa: BLE001 - decoders raise anything on broken bytes
        return None


def _value_type(kind: pa.DataType) -> pa.DataType:
    while isinstance(kind, pa.FixedShapeTensorType) or _is_list(kind):
        kind = kind.value_type
    return kind


def _is_list(kind: pa.DataType) -> bool:
    return any(is_kind(kind) for is_kind in _LISTS)


def _like_numbers(kind: pa.DataType) -> bool:
    value = _value_type(kind)
    return any(is_kind(value) for is_kind in _NUMBERS)


def _is_image_struct(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)


def _like_image(shape: tuple[int, ...], value: pa.DataType) -> bool:
    if value != pa.uint8():
        return False
    return len(shape) == 2 or (len(shape) == 3 and (shape[-1] in (1, 3) or shape[0] in (1, 3)))  # noqa: PLR2004


def _image(
    config: CorpusConfig, names: tuple[str, ...], schema: pa.Schema, sample: pa.RecordBatch
) -> FeatureSpec:
    name = _single(names, "image")
    values = column(sample, name)
    layout = raw_layout(name, schema)
    shape = layout[1] if layout is not None else stored_shape(values.type)
    size = config.image_size
    if shape is None:
        shapes = [s for s in map(_image_shape, _payloads(values)) if s is not None]
        if not shapes and not len(values):
            raise BadDataError(f"features={name!r}: the corpus has no rows")
        if not shapes:
            raise BadDataError(f"features={name!r}: none of the first {len(values)} images decodes")
        grey = sum(s[0] == 1 for s in shapes)
        channels = 1 if grey >= _ONE_SIZE * len(shapes) else 3
        ((usual, count),) = Counter(s[1:] for s in shapes).most_common(1)
        if size is None and count < _ONE_SIZE * len(shapes):
            size = _MIXED_IMAGE_SIZE
        chw = (channels, size, size) if size else (channels, *usual)
    else:
        chw = to_chw(shape)
        if size is not None and chw[1:] != (size, size):
            raise ConfigError("image_size", size, "applies to encoded images, not to pixel arrays")
    return FeatureSpec("image", names, chw, size, config.max_pixels)


def _payloads(values: pa.Array) -> list[bytes]:
    found = values.to_pylist()
    return [v["bytes"] if isinstance(v, dict) else v for v in found if v is not None]


def _image_shape(payload: bytes | None) -> tuple[int, int, int] | None:
    if not payload:
        return None
    try:
        if payload[:6] == b"\x93NUMPY":
            return to_chw(load_array(payload).shape)
        with Image.open(io.BytesIO(payload), formats=formats()) as image:
            grey = image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16")
            return (1 if grey else 3, image.height, image.width)
    except Exception:  # noqa: BLE001 - decoders raise anything on broken bytes
        return None


def _tensor(
    config: CorpusConfig,  # noqa: ARG001
    names: tuple[str, ...],
    schema: pa.Schema,
    sample: pa.RecordBatch,
) -> FeatureSpec:
    name = _single(names, "tensor")
    values = column(sample, name)
    layout = raw_layout(name, schema)
    shape = layout[1] if layout is not None else stored_shape(values.type)
    if shape is None:
        nested = pa.types.is_nested(values.type)
        shapes = list(
            filter(None, map(_nested_shape if nested else _npy_shape, values.to_pylist()))
        )
        shape = max(shapes, key=shapes.count) if shapes else None
    if shape is None:
        raise ConfigError("features", name, "its shape cannot be told from the first rows")
    return FeatureSpec("tensor", names, tuple(shape))


def _nested_shape(value: object) -> tuple[int, ...] | None:
    """Shape of nested lists, or None where they are ragged or empty."""
    if not isinstance(value, list):
        return ()
    inner = {_nested_shape(item) for item in value}
    only = inner.pop() if len(inner) == 1 else None
    return None if only is None else (len(value), *only)


def _npy_shape(payload: bytes | None) -> tuple[int, ...] | None:
    try:
        return load_array(payload).shape if payload else None
    except ValueError:
        return None


def _text(
    config: CorpusConfig,  # noqa: ARG001
    names: tuple[str, ...],
    schema: pa.Schema,  # noqa: ARG001
    sample: pa.RecordBatch,  # noqa: ARG001
) -> FeatureSpec:
    return FeatureSpec("text", names, (TEXT_TOKENS,))


def _tabular(
    config: CorpusConfig,  # noqa: ARG001
    names: tuple[str, ...],
    schema: pa.Schema,
    sample: pa.RecordBatch,
) -> FeatureSpec:
    columns = tuple(TabularColumn(n, _kind(n, schema, sample) != "number") for n in names)
    width = sum(entry.width for entry in columns)
    return FeatureSpec("tabular", names, (width,), tabular=columns)


def _single(names: tuple[str, ...], modality: str) -> str:
    if len(names) != 1:
        raise ConfigError("features", ",".join(names), f"{modality} features are one column")
    return names[0]
