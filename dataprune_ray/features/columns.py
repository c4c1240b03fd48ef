"""Columns by path: ``label``, ``img.bytes`` (field of a struct), ``json.label`` (JSON member)."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_TEXTS = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_binary,
    pa.types.is_large_binary,
)


def top_level(path: str, schema: pa.Schema) -> str:
    """The stored column that a path starts at.

    Raises:
        KeyError: the schema has no such column.
    """
    if path in schema.names:
        return path
    head = path.partition(".")[0]
    if head in schema.names:
        return head
    raise KeyError(path)


def is_text(kind: pa.DataType) -> bool:
    """Whether values of the type are text or bytes."""
    return any(is_kind(kind) for is_kind in _TEXTS)


def as_bytes(values: pa.Array) -> list[bytes | None]:
    """Text or bytes as stored, whether it is UTF-8 or not; other values as UTF-8 text."""
    if is_text(values.type):
        return list(values.cast(pa.large_binary()).to_pylist())
    return [None if v is None else str(v).encode() for v in values.to_pylist()]


def leads_somewhere(path: str, schema: pa.Schema) -> bool:
    """Whether a path exists, as far as the schema tells: members of JSON text may be anything."""
    try:
        name = top_level(path, schema)
    except KeyError:
        return False
    kind = _plain(schema.field(name).type)
    for part in _members(path, name):
        if is_text(kind):
            return True
        if not pa.types.is_struct(kind) or kind.get_field_index(part) < 0:
            return False
        kind = _plain(kind.field(part).type)
    return True


def column(batch: pa.RecordBatch, path: str) -> pa.Array:
    """The values at a path; a row where the path leads nowhere is null.

    Dictionary encoding is resolved.
    """
    name = top_level(path, batch.schema)
    values = _decoded(batch.column(name))
    for part in _members(path, name):
        if not pa.types.is_struct(values.type):
            values = _json_member(values, part)
        elif values.type.get_field_index(part) < 0:
            values = pa.nulls(len(values))
        else:
            values = _decoded(pc.struct_field(values, part))
    return values


def _members(path: str, name: str) -> list[str]:
    return path[len(name) + 1 :].split(".") if path != name else []


def _plain(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType) and not isinstance(kind, pa.FixedShapeTensorType):
        kind = kind.storage_type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _decoded(values: pa.Array) -> pa.Array:
    if isinstance(values.type, pa.BaseExtensionType) and not isinstance(
        values.type, pa.FixedShapeTensorType
    ):
        values = values.storage
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def _json_member(values: pa.Array, name: str) -> pa.Array:
    if not is_text(values.type):
        return pa.nulls(len(values))
    found = [_member(value, name) for value in as_bytes(values)]
    try:
        return pa.array(found)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array([None if v is None else str(v) for v in found], pa.string())


def _member(document: bytes | None, name: str) -> Any:
    try:
        content = json.loads(document) if document is not None else None
    except (ValueError, RecursionError):
        return None
    return content.get(name) if isinstance(content, dict) else None
