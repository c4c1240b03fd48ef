"""Columns by path: ``label``, ``img.bytes`` (field of a struct), ``json.label`` (JSON member)."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.compute as pc


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


def column(batch: pa.RecordBatch, path: str) -> pa.Array:
    """The values at a path; a row where the path leads nowhere is null.

    Dictionary encoding is resolved.
    """
    name = top_level(path, batch.schema)
    values = batch.column(name)
    if isinstance(values.type, pa.BaseExtensionType) and not isinstance(
        values.type, pa.FixedShapeTensorType
    ):
        values = values.storage
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    for part in path[len(name) + 1 :].split(".") if path != name else ():
        if pa.types.is_struct(values.type):
            values = pc.struct_field(values, part)
        else:
            values = _json_member(values, part)
    return values


def _json_member(values: pa.Array, name: str) -> pa.Array:
    found = []
    for value in values.to_pylist():
        member = None
        if value is not None:
            try:
                document = json.loads(value)
            except (ValueError, UnicodeDecodeError):
                document = None
            member = document.get(name) if isinstance(document, dict) else None
        found.append(member)
    try:
        return pa.array(found)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if v is None else str(v) for v in found], pa.string())
