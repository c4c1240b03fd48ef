"""Row groups of Parquet files as bytes: taken from a file, and joined to a new one as they are.

Pages do not say where they lie; only the footer does. So an encoded row group can move to another
file of the same schema if the new footer has its new offsets. Page indexes and bloom filters stay
behind: they are optional and lie outside of the row group. Use `pyarrow` to encode and decode; a
file that pyarrow has just encoded in memory is a source of row groups like any other.

Format: https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
"""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dataprune_ray.io.compact import I16, I64, LIST, STRUCT, Field, Items, Struct, decode, encode

_MAGIC = b"PAR1"
_TAIL = 8  # the footer's length and the magic
_FIRST_READ = 64 << 10
_PAGE_HEADER = 256  # bytes that hold the header of a dictionary page
_THREADS = 16
_MOST_GROUPS = 1 << 15  # that have an ordinal, of 16 bits

# Numbers of fields in parquet.thrift.
_FILE_SCHEMA, _FILE_ROWS, _FILE_GROUPS, _FILE_CREATED_BY, _FILE_ORDERS = 2, 3, 4, 6, 7
_FILE_ENCRYPTION = (8, 9)
_ELEMENT_NAME = 4
_GROUP_CHUNKS, _GROUP_ROWS, _GROUP_OFFSET, _GROUP_COMPRESSED, _GROUP_ORDINAL = 1, 3, 5, 6, 7
_CHUNK_PATH, _CHUNK_OFFSET, _CHUNK_META = 1, 2, 3
_CHUNK_INDEXES = (4, 5, 6, 7)  # where offset index and column index lie
_CHUNK_ENCRYPTION = (8, 9)
_META_PATH, _META_CODEC, _META_VALUES, _META_COMPRESSED = 3, 4, 5, 7
_META_DATA, _META_INDEX, _META_DICTIONARY, _META_ENCODINGS = 9, 10, 11, 13
_META_BLOOM = (14, 15)
_STATS_TYPE, _STATS_ENCODING, _STATS_COUNT = 1, 2, 3
_PAGE_DICTIONARY, _DICTIONARY_VALUES = 7, 1
_DICTIONARY_PAGE = 2
_DICTIONARY_ENCODINGS = (2, 8)

_CODECS = {"none": 0, "snappy": 1, "gzip": 2, "brotli": 4, "zstd": 6, "lz4": 7}
_WRITER = re.compile(rb"parquet-cpp-arrow version (\d+)\.")
_FIRST_SOUND = 4  # readers mistrust statistics or pages of some versions before


@dataclass(frozen=True)
class RowGroup:
    """An encoded row group: its bytes, and its description with offsets into them."""

    pieces: tuple[Any, ...]  # buffers
    description: Struct

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.description[_GROUP_ROWS].value)


class Footer:
    """The footer of a Parquet file, as bytes, as a tree and as pyarrow has it."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    @cached_property
    def tree(self) -> Struct:
        """All fields.

        Raises:
            ValueError: it is damaged.
        """
        return decode(self.content)

    @cached_property
    def metadata(self) -> pq.FileMetaData:
        """As pyarrow reads it.

        Raises:
            ArrowException, OSError: it is damaged.
        """
        size = len(self.content).to_bytes(4, "little")
        return pq.read_metadata(pa.BufferReader(_MAGIC + self.content + size + _MAGIC))

    def group(self, index: int) -> Struct:
        """Description of a row group."""
        group: Struct = self.tree[_FILE_GROUPS].value.values[index]
        return group

    @cached_property
    def layout(self) -> tuple[Any, ...]:
        """What files whose row groups can be joined have in common.

        Every element of the schema, save the root's name, and the order by which statistics hold.
        """
        root, *elements = self.tree[_FILE_SCHEMA].value.values
        bare = {number: field for number, field in root.items() if number != _ELEMENT_NAME}
        return bare, elements, self.tree.get(_FILE_ORDERS)


def read_footer(file: Any) -> Footer:
    """The footer of an open file.

    Raises:
        ValueError: it is not a Parquet file in plain text.
    """
    size = file.size()
    first = min(size, _FIRST_READ)
    tail = bytes(file.read_at(first, size - first))
    if tail[-4:] != _MAGIC or size < _TAIL + len(_MAGIC):
        raise ValueError("Parquet magic bytes not found in footer")
    length = int.from_bytes(tail[-_TAIL:-4], "little")
    if length > size - _TAIL - len(_MAGIC):
        raise ValueError(f"a footer of {length} bytes does not fit into the file's {size}")
    if length + _TAIL > len(tail):
        return Footer(bytes(file.read_at(length, size - _TAIL - length)))
    return Footer(tail[-_TAIL - length : -_TAIL])


def can_move(footer: Footer, index: int, into: Footer, compression: str) -> bool:
    """Whether a row group fits as it is into a file like ``into``, of the given compression.

    Its file has the same layout, was written by a version of Arrow whose pages and statistics
    readers take at face value, and keeps the row group itself, unencrypted and in that codec.
    """
    tree = footer.tree
    writer = _WRITER.match(tree[_FILE_CREATED_BY].value if _FILE_CREATED_BY in tree else b"")
    if writer is None or int(writer[1]) < _FIRST_SOUND or footer.layout != into.layout:
        return False
    if any(number in tree for number in _FILE_ENCRYPTION):
        return False
    return all(_is_plain(chunk, compression) for chunk in _chunks(footer.group(index)))


def _is_plain(chunk: Struct, compression: str) -> bool:
    if _CHUNK_META not in chunk or any(n in chunk for n in (_CHUNK_PATH, *_CHUNK_ENCRYPTION)):
        return False
    meta = chunk[_CHUNK_META].value
    return meta[_META_CODEC].value == _CODECS.get(compression) and _META_INDEX not in meta


def take_group(footer: Footer, index: int, read: Callable[[int, int], Any]) -> RowGroup:
    """A row group of a file; ``read`` gives bytes by offset and length.

    Raises:
        ValueError: the file ends before the row group does.
    """
    group = footer.group(index)
    extents = [_extent(chunk) for chunk in _chunks(group)]
    runs: list[tuple[int, int]] = []
    moved: list[int] = []  # where each chunk begins among the bytes
    size = 0
    for start, length in extents:
        if runs and sum(runs[-1]) == start:
            runs[-1] = (runs[-1][0], runs[-1][1] + length)
        else:
            runs.append((start, length))
        moved.append(size)
        size += length
    pieces = tuple(read(start, length) for start, length in runs)
    if [len(piece) for piece in pieces] != [length for _, length in runs]:
        raise ValueError(f"row group {index} reaches beyond the end of the file")
    chunks = [
        _shifted(chunk, new - start)
        for chunk, new, (start, _) in zip(_chunks(group), moved, extents, strict=True)
    ]
    return RowGroup(pieces, {**group, _GROUP_CHUNKS: Field(LIST, Items(STRUCT, chunks))})


def groups_of(content: pa.Buffer) -> list[RowGroup]:
    """All row groups of a Parquet file in memory; nothing is copied."""
    footer = read_footer(pa.BufferReader(content))
    count = len(footer.tree[_FILE_GROUPS].value.values)
    return [take_group(footer, index, content.slice) for index in range(count)]


def _chunks(group: Struct) -> list[Struct]:
    chunks: list[Struct] = group[_GROUP_CHUNKS].value.values
    return chunks


def _extent(chunk: Struct) -> tuple[int, int]:
    """Offset and length of a column chunk, its dictionary included."""
    meta = chunk[_CHUNK_META].value
    offsets = [meta[n].value for n in (_META_DATA, _META_DICTIONARY) if n in meta]
    return min(offsets), meta[_META_COMPRESSED].value


def _shifted(chunk: Struct, by: int) -> Struct:
    """A column chunk's description without what stays behind, its offsets moved."""
    meta = {n: f for n, f in chunk[_CHUNK_META].value.items() if n not in _META_BLOOM}
    for number in (_META_DATA, _META_DICTIONARY):
        if number in meta:
            meta[number] = Field(I64, meta[number].value + by)
    kept = {n: f for n, f in chunk.items() if n not in _CHUNK_INDEXES}
    return {**kept, _CHUNK_OFFSET: Field(I64, 0), _CHUNK_META: Field(STRUCT, meta)}


class Joiner:
    """Writes a Parquet file of encoded row groups.

    Schema and key-value metadata are those of ``like``, a file of no rows; what ``write`` is given
    is the file from its start to its end, and only ever goes on.
    """

    def __init__(self, write: Callable[[Any], Any], like: Footer) -> None:
        self._write = write
        self._like = like
        self._groups: list[Struct] = []
        self._size = 0
        self.rows = 0
        self._put(_MAGIC)

    def append(self, group: RowGroup) -> None:
        """Add a row group whose file fits, see `can_move`."""
        start = self._size
        for piece in group.pieces:
            self._put(piece)
        chunks = [_shifted(chunk, start) for chunk in _chunks(group.description)]
        description = {
            **group.description,
            _GROUP_CHUNKS: Field(LIST, Items(STRUCT, chunks)),
            _GROUP_OFFSET: Field(I64, start),
            _GROUP_COMPRESSED: Field(I64, self._size - start),
        }
        description.pop(_GROUP_ORDINAL, None)
        if len(self._groups) < _MOST_GROUPS:
            description[_GROUP_ORDINAL] = Field(I16, len(self._groups))
        self._groups.append(dict(sorted(description.items())))
        self.rows += group.rows

    def close(self) -> None:
        """Write the footer."""
        tree = {
            **self._like.tree,
            _FILE_ROWS: Field(I64, self.rows),
            _FILE_GROUPS: Field(LIST, Items(STRUCT, self._groups)),
        }
        footer = encode(tree)
        self._put(footer + len(footer).to_bytes(4, "little") + _MAGIC)

    def _put(self, data: Any) -> None:
        self._write(data)
        self._size += len(data)


def dictionary_columns(footer: Footer, read: Callable[[int, int], Any]) -> tuple[str, ...]:
    """Paths of the columns whose dictionary saves something, by the file's largest row group.

    A writer that tries a dictionary gives up where it grows too large, or ends with one that holds
    most values once: there it costs time and space alone. ``read`` is called by several threads.

    Raises:
        ValueError: the file is damaged.
    """
    groups: list[Struct] = footer.tree[_FILE_GROUPS].value.values
    if not groups:
        return ()
    largest = max(groups, key=lambda group: int(group[_GROUP_ROWS].value))
    metas = [chunk[_CHUNK_META].value for chunk in _chunks(largest) if _CHUNK_META in chunk]
    with ThreadPoolExecutor(_THREADS) as pool:
        saves = pool.map(lambda meta: _dictionary_saves(meta, read), metas)
        return tuple(
            b".".join(meta[_META_PATH].value.values).decode()
            for meta, useful in zip(metas, saves, strict=True)
            if useful
        )


def _dictionary_saves(meta: Struct, read: Callable[[int, int], Any]) -> bool:
    if _META_DICTIONARY not in meta or not _is_mostly_coded(meta):
        return False
    header = decode(bytes(read(meta[_META_DICTIONARY].value, _PAGE_HEADER)))
    if _PAGE_DICTIONARY not in header:
        raise ValueError("no dictionary page where the footer says one is")
    distinct: int = header[_PAGE_DICTIONARY].value[_DICTIONARY_VALUES].value
    values: int = meta[_META_VALUES].value
    return 2 * distinct <= values


def _is_mostly_coded(meta: Struct) -> bool:
    """Whether most data pages refer to the dictionary; also where nothing says so."""
    if _META_ENCODINGS not in meta:
        return True
    balance = 0
    for pages in meta[_META_ENCODINGS].value.values:
        if pages[_STATS_TYPE].value != _DICTIONARY_PAGE:
            coded = pages[_STATS_ENCODING].value in _DICTIONARY_ENCODINGS
            balance += pages[_STATS_COUNT].value * (1 if coded else -1)
    return balance >= 0
