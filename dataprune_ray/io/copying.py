"""Kept rows of Parquet files, row group by row group, as encoded row groups of a new file.

A row group that is kept whole is taken as it is, one without a kept row is not read, and of the
others the kept rows are decoded and encoded again, neighbours together, so that a new row group has
about as many rows as one of the corpus. What is put together how depends on files and kept rows
alone, never on the number of threads: the same rows give the same bytes.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dataprune_ray.errors import BadDataError, StorageError
from dataprune_ray.io.corpus import Span
from dataprune_ray.io.filesystems import corpus_path, open_input
from dataprune_ray.io.parquet import READ_ERRORS
from dataprune_ray.io.retries import retried
from dataprune_ray.io.rowgroups import (
    Footer,
    RowGroup,
    can_move,
    groups_of,
    read_footer,
    take_group,
)
from dataprune_ray.io.steady import steadily

A = TypeVar("A")
R = TypeVar("R")

#: Bytes of a row group, decoded, and of one that is taken as it is.
GROUP_BYTES = 64 << 20
_BATCH_BYTES = 2 << 20
_LEAST_ROWS, _MOST_ROWS = 64, 16_384  # of a batch
_CAREFUL_ROWS = 32  # of a batch, where a larger one failed
_TOGETHER_ROWS = 1 << 17  # decoded at a time at most, where threads decode ahead
_LEAST_SHARE = 16  # of a usual row group that stands alone, before one that is taken as it is


@dataclass(frozen=True)
class Style:
    """How new row groups are written.

    ``dictionary`` names the columns that get a dictionary by their paths; True: all of them.
    """

    schema: pa.Schema
    compression: str
    group_rows: int
    dictionary: tuple[str, ...] | bool = True

    def groups(self, tables: Iterable[pa.Table]) -> list[RowGroup]:
        """A row group of each table."""
        return groups_of(self.encode(tables))

    def encode(self, tables: Iterable[pa.Table]) -> pa.Buffer:
        """A Parquet file in memory: a row group of each table."""
        sink = pa.BufferOutputStream()
        chosen = list(self.dictionary) if isinstance(self.dictionary, tuple) else self.dictionary
        with pq.ParquetWriter(
            sink,
            self.schema,
            compression=self.compression,
            store_schema=True,
            use_dictionary=chosen or False,
        ) as writer:
            for table in tables:
                writer.write_table(table, row_group_size=max(table.num_rows, 1))
        return sink.getvalue()

    def empty(self) -> Footer:
        """Footer of a file of no rows."""
        return read_footer(pa.BufferReader(self.encode(())))


@dataclass(frozen=True)
class Source:
    """An open corpus file's path and footer."""

    name: str
    path: str
    footer: Footer


@dataclass(frozen=True)
class Piece:
    """A row group with kept rows; ``kept`` has their positions in it, ascending (k,)."""

    source: Source
    group: int
    rows: int
    first: int  # its first row's position in the file
    kept: npt.NDArray[np.int64] = field(compare=False)

    @property
    def whole(self) -> bool:
        """Whether every row is kept."""
        return len(self.kept) == self.rows

    @property
    def size(self) -> int:
        """About the bytes of its kept rows, encoded but not compressed."""
        total: int = self.source.footer.metadata.row_group(self.group).total_byte_size
        return total * len(self.kept) // max(self.rows, 1)

    @property
    def batch_rows(self) -> int:
        """Rows to decode at a time: what a cache holds."""
        width = max(1, self.size // max(len(self.kept), 1))
        return min(max(_BATCH_BYTES // width, _LEAST_ROWS), _MOST_ROWS)


@dataclass(frozen=True)
class Unit:
    """What becomes one row group: one that is taken as it is, or the kept rows of several."""

    pieces: tuple[Piece, ...]
    as_it_is: bool = False


def open_source(root: str, name: str) -> Source:
    """A corpus file with its footer.

    Raises:
        BadDataError: it cannot be read.
    """
    path = corpus_path(root, name)
    try:
        return Source(name, path, retried(_footer, path))
    except StorageError:
        raise
    except READ_ERRORS as error:
        raise cannot_copy(name, 0, error) from error


def _footer(path: str) -> Footer:
    with open_input(path) as file:
        footer = read_footer(file)
    footer.metadata  # noqa: B018 - damage is found here
    return footer


def pieces_of(source: Source, span: Span, kept: npt.NDArray[np.int64]) -> Iterator[Piece]:
    """The row groups of a span that have kept rows.

    Args:
        source: the span's file.
        span: rows of it, in whole row groups.
        kept: positions in the file of the kept rows, ascending (k,).

    Raises:
        BadDataError: the file has other row groups than the span says.
    """
    metadata = source.footer.metadata
    groups = range(*(span.groups or (0, 0)))
    sizes = [metadata.row_group(g).num_rows for g in groups if g < metadata.num_row_groups]
    if len(sizes) != len(groups) or sum(sizes) != span.rows:
        raise BadDataError(
            f"{source.name}: {sum(sizes)} rows instead of {span.rows} in row groups {groups}; "
            "the file changed since it was scored: run anew with --overwrite"
        )
    start = span.start
    for group, rows in zip(groups, sizes, strict=True):
        low, high = np.searchsorted(kept, [start, start + rows])
        if low < high:
            yield Piece(source, group, rows, start, kept[low:high] - start)
        start += rows


def plan_units(
    pieces: Iterable[Piece], movable: Callable[[Piece], bool], rows: int
) -> Iterator[Unit]:
    """Put row groups together to new ones of about ``rows`` rows, in order.

    A whole one is taken as it is where it is ``movable`` and large enough, and where what waits
    before it is none or not tiny; decoding such a tiny rest with it costs less than its reader's
    time would.
    """
    waiting: list[Piece] = []
    held = size = 0
    for piece in pieces:
        count = len(piece.kept)
        alone = not waiting or held * _LEAST_SHARE >= rows
        if piece.whole and 2 * piece.rows >= rows and alone and movable(piece):
            if waiting:
                yield Unit(tuple(waiting))
                waiting, held, size = [], 0, 0
            yield Unit((piece,), as_it_is=True)
            continue
        over = held + count - rows
        if waiting and (over > rows - held or size + piece.size > GROUP_BYTES):
            yield Unit(tuple(waiting))
            waiting, held, size = [], 0, 0
        waiting.append(piece)
        held += count
        size += piece.size
        if held >= rows or size >= GROUP_BYTES:
            yield Unit(tuple(waiting))
            waiting, held, size = [], 0, 0
    if waiting:
        yield Unit(tuple(waiting))


def is_movable(piece: Piece, into: Footer, compression: str) -> bool:
    """Whether a row group can be taken as it is into a file like ``into``, and is not too large."""
    meta = piece.source.footer.metadata.row_group(piece.group)
    if sum(meta.column(i).total_compressed_size for i in range(meta.num_columns)) > GROUP_BYTES:
        return False
    try:
        return can_move(piece.source.footer, piece.group, into, compression)
    except ValueError:  # pyarrow could read it: it tells what is damaged, and reads the rows
        return False


def produce(unit: Unit, style: Style, threads: int = 1) -> list[RowGroup]:
    """The unit, encoded; more than one row group only where decoding finds it far too large.

    Several pieces are decoded by so many threads.

    Raises:
        BadDataError: a row group cannot be read.
        StorageError: the storage failed for longer than it is waited for.
    """
    if unit.as_it_is:
        return [_taken(unit.pieces[0])]
    held = sum(len(piece.kept) for piece in unit.pieces)
    if threads > 1 and len(unit.pieces) > 1 and held <= _TOGETHER_ROWS:
        lists: Iterator[Iterable[pa.RecordBatch]] = in_order(
            lambda p: list(_decoded(p, style.schema)), unit.pieces, threads
        )
    else:
        lists = (_decoded(piece, style.schema) for piece in unit.pieces)
    batches = itertools.chain.from_iterable(lists)
    return style.groups(tables_of(batches, style.schema))


def tables_of(batches: Iterable[pa.RecordBatch], layout: pa.Schema) -> Iterator[pa.Table]:
    """Batches put together, to tables of at most about `GROUP_BYTES`."""
    waiting: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        waiting.append(batch)
        size += batch.nbytes
        if size >= GROUP_BYTES:
            yield pa.Table.from_batches(waiting, layout)
            waiting, size = [], 0
    if waiting:
        yield pa.Table.from_batches(waiting, layout)


def _taken(piece: Piece) -> RowGroup:
    try:
        return retried(_take, piece)
    except StorageError:
        raise
    except READ_ERRORS as error:
        raise cannot_copy(piece.source.name, piece.first, error) from error


def _take(piece: Piece) -> RowGroup:
    with open_input(piece.source.path) as file:
        return take_group(piece.source.footer, piece.group, lambda at, size: file.read_at(size, at))


def _decoded(piece: Piece, layout: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The kept rows of a row group; where it is damaged after the last of them, that is no harm."""
    taken = 0
    failure: Exception | None = None
    for rows in (piece.batch_rows, _CAREFUL_ROWS):
        start = 0
        try:
            for batch in steadily(partial(_batches, piece, rows)):
                end = int(np.searchsorted(piece.kept, start + batch.num_rows))
                if taken < end:
                    yield conform(chosen(batch, piece.kept[taken:end] - start), layout)
                    taken = end
                start += batch.num_rows
                if taken == len(piece.kept):
                    return
        except StorageError:
            raise
        except READ_ERRORS as error:
            failure = error
        else:
            failure = ValueError(f"{start} rows instead of {piece.rows} in row group {piece.group}")
    if failure is not None:
        raise cannot_copy(piece.source.name, piece.first + start, failure) from failure


def _batches(piece: Piece, rows: int) -> Iterator[pa.RecordBatch]:
    """All rows of a row group, so many at a time."""
    with open_input(piece.source.path) as file:
        parquet = pq.ParquetFile(file, metadata=piece.source.footer.metadata)
        yield from parquet.iter_batches(rows, [piece.group], use_threads=False)


def chosen(batch: pa.RecordBatch, positions: npt.NDArray[np.int64]) -> pa.RecordBatch:
    """The rows of a batch at positions, ascending (k,)."""
    if len(positions) == batch.num_rows:
        return batch
    mask = np.zeros(batch.num_rows, np.bool_)
    mask[positions] = True
    return batch.filter(pa.array(mask))


def conform(batch: pa.RecordBatch, target: pa.Schema) -> pa.RecordBatch:
    """Columns in the corpus's order and encoding; a member no sample of the batch has is null."""
    arrays = []
    for field_ in target:
        if field_.name not in batch.schema.names:
            arrays.append(pa.nulls(batch.num_rows, field_.type))
            continue
        values = batch.column(field_.name)
        arrays.append(values if values.type == field_.type else values.cast(field_.type))
    return pa.RecordBatch.from_arrays(arrays, schema=target)


def in_order(function: Callable[[A], R], items: Iterable[A], threads: int) -> Iterator[R]:
    """``function`` of each item by so many threads, in order; as many more wait to be taken."""
    with ThreadPoolExecutor(threads) as pool:
        running: deque[Future[R]] = deque()
        try:
            for item in items:
                running.append(pool.submit(function, item))
                if len(running) > 2 * threads:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()


def cannot_copy(name: str, first: int, error: Exception) -> BadDataError:
    """What is said of a file that was scored and cannot be read any more."""
    return BadDataError(
        f"{name}: rows from {first} on cannot be copied: {error}; "
        "repair or remove the file and run again"
    )
