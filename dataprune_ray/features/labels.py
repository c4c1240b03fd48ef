"""Label columns to class indices or targets, and to the form the score table stores."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataprune_ray.features.columns import as_bytes, column, is_text
from dataprune_ray.features.encoded import Encoded, all_good, positions
from dataprune_ray.features.spec import LabelSpec

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


def encode_labels(spec: LabelSpec, batch: pa.RecordBatch) -> tuple[Encoded, pa.Array]:
    """Class indices int64 or targets float32, and the labels as the score table stores them.

    An unlabelled corpus gives zeros that nothing reads and nulls.
    """
    rows = batch.num_rows
    if spec.column is None:
        return all_good(np.zeros(rows, np.int64)), pa.nulls(rows, spec.type)
    raw = column(batch, spec.column)
    stored, bad = cast_labels(raw, spec)
    errors = dict.fromkeys(positions(np.asarray(raw.is_null())), "label is null")
    for position, value in bad.items():
        errors.setdefault(position, f"label {value!r} is not {_KINDS[spec.stored]}")
    if spec.task == "regression":
        with np.errstate(over="ignore"):
            values = stored.to_numpy(zero_copy_only=False).astype(np.float32)
        for position in positions(~np.isfinite(values)):
            errors.setdefault(position, "label is not finite")
    else:
        table = pa.array(spec.classes, pa.string()).cast(spec.type)
        index = pc.index_in(stored, value_set=table).fill_null(-1)
        values = index.to_numpy(zero_copy_only=False).astype(np.int64)
        for position in positions(values < 0):
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
