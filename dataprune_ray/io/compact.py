"""Thrift's compact protocol, as Parquet's footers use it: bytes to a tree and back.

A tree keeps every field by its number, those too that nobody here knows, so that what is read and
written again is the same bytes. Nothing is known of Parquet here; see `rowgroups` for that. Not
meant for messages, calls or data from anyone but a Parquet file: there are libraries for these.

Protocol: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)

_INTEGERS = frozenset({I16, I32, I64})
_FLOAT = struct.Struct("<d")
_LONG_LIST = 15
_DEEPEST = 64


class Field(NamedTuple):
    """A value with its type in the protocol.

    Values are bool, int, float, bytes, `Items` (lists and sets), `Pairs` (maps) or a `Struct`.
    """

    kind: int
    value: Any


class Items(NamedTuple):
    """The elements of a list or set, all of type ``kind``."""

    kind: int
    values: list[Any]


class Pairs(NamedTuple):
    """The entries of a map."""

    key_kind: int
    value_kind: int
    entries: list[tuple[Any, Any]]


#: Fields by number, in the order in which they stand.
Struct = dict[int, Field]


def decode(content: bytes) -> Struct:
    """The struct that the bytes begin with.

    Raises:
        ValueError: they are not the compact protocol's.
    """
    try:
        return _Decoder(content).fields(0)
    except IndexError as error:
        raise ValueError(f"not a struct in Thrift's compact protocol: {error}") from error


def encode(fields: Struct) -> bytes:
    """The struct as bytes."""
    out = bytearray()
    _write_struct(out, fields)
    return bytes(out)


class _Decoder:
    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    def fields(self, depth: int) -> Struct:
        found: Struct = {}
        number = 0
        while (head := self._byte()) != 0:
            kind, delta = head & 0x0F, head >> 4
            number = number + delta if delta else self._signed()
            if number in found:
                raise ValueError(f"field {number} stands twice in a struct")
            value = kind == TRUE if kind in (TRUE, FALSE) else self._value(kind, depth)
            found[number] = Field(kind, value)
        return found

    def _value(self, kind: int, depth: int) -> Any:
        if depth > _DEEPEST:
            raise ValueError(f"values are nested more than {_DEEPEST} deep")
        if kind == STRUCT:
            return self.fields(depth + 1)
        if kind in (LIST, SET):
            head = self._byte()
            size = head >> 4
            size = self._unsigned() if size == _LONG_LIST else size
            return Items(head & 0x0F, self._many(size, head & 0x0F, depth))
        if kind == MAP:
            size = self._unsigned()
            kinds = self._byte() if size else 0
            return Pairs(kinds >> 4, kinds & 0x0F, self._pairs(size, kinds, depth))
        return self._plain(kind)

    def _plain(self, kind: int) -> bool | int | float | bytes:
        if kind in _INTEGERS:
            return self._signed()
        if kind == BINARY:
            return self._take(self._unsigned())
        if kind == DOUBLE:
            value: float = _FLOAT.unpack(self._take(_FLOAT.size))[0]
            return value
        if kind in (TRUE, FALSE):  # an element: a byte of its own
            return self._byte() == TRUE
        if kind == BYTE:
            return self._byte()
        raise ValueError(f"type {kind} is not one of the compact protocol")

    def _many(self, size: int, kind: int, depth: int) -> list[Any]:
        if size > len(self._content) - self._at:
            raise ValueError(f"a list of {size} elements is longer than what is left")
        return [self._value(kind, depth + 1) for _ in range(size)]

    def _pairs(self, size: int, kinds: int, depth: int) -> list[tuple[Any, Any]]:
        if size > len(self._content) - self._at:
            raise ValueError(f"a map of {size} entries is longer than what is left")
        key, value = kinds >> 4, kinds & 0x0F
        return [(self._value(key, depth + 1), self._value(value, depth + 1)) for _ in range(size)]

    def _byte(self) -> int:
        value = self._content[self._at]
        self._at += 1
        return value

    def _take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._content):
            raise ValueError(f"{size} bytes are more than what is left")
        value = self._content[self._at : end]
        self._at = end
        return value

    def _unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:  # noqa: PLR2004 - the bit that says that more follows
                return value
            shift += 7

    def _signed(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)


def _write_struct(out: bytearray, fields: Struct) -> None:
    before = 0
    for number, (kind, value) in fields.items():
        delta = number - before
        if 0 < delta < 16:  # noqa: PLR2004 - what half a byte holds
            out.append(delta << 4 | kind)
        else:
            out.append(kind)
            _write_signed(out, number)
        if kind not in (TRUE, FALSE):  # their value is their type
            _write(out, kind, value)
        before = number
    out.append(0)


def _write(out: bytearray, kind: int, value: Any) -> None:
    if kind == STRUCT:
        _write_struct(out, value)
    elif kind in (LIST, SET):
        _write_items(out, value)
    elif kind == MAP:
        _write_unsigned(out, len(value.entries))
        if value.entries:
            out.append(value.key_kind << 4 | value.value_kind)
        for key, entry in value.entries:
            _write(out, value.key_kind, key)
            _write(out, value.value_kind, entry)
    else:
        _write_plain(out, kind, value)


def _write_plain(out: bytearray, kind: int, value: Any) -> None:
    if kind in _INTEGERS:
        _write_signed(out, value)
    elif kind == BINARY:
        _write_unsigned(out, len(value))
        out += value
    elif kind == DOUBLE:
        out += _FLOAT.pack(value)
    elif kind in (TRUE, FALSE):
        out.append(TRUE if value else FALSE)
    elif kind == BYTE:
        out.append(value)
    else:
        raise ValueError(f"type {kind} is not one of the compact protocol")


def _write_items(out: bytearray, items: Items) -> None:
    size = len(items.values)
    if size < _LONG_LIST:
        out.append(size << 4 | items.kind)
    else:
        out.append(_LONG_LIST << 4 | items.kind)
        _write_unsigned(out, size)
    for value in items.values:
        _write(out, items.kind, value)


def _write_unsigned(out: bytearray, value: int) -> None:
    while value > 0x7F:  # noqa: PLR2004 - seven bits a byte
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _write_signed(out: bytearray, value: int) -> None:
    _write_unsigned(out, value << 1 if value >= 0 else (-value << 1) - 1)
