"""Parquet corpora: one file or nested folders of files, each with any number of row groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from dataprune_ray.errors import BadDataError
from dataprune_ray.io.corpus import SourceFile, Span
from dataprune_ray.io.filesystems import FileInfo, corpus_path, open_input, redact
from dataprune_ray.io.retries import is_passing, retried
from dataprune_ray.io.rowgroups import dictionary_columns, read_footer

#: What a broken Parquet file raises while it is opened or read.
READ_ERRORS = (OSError, pa.ArrowException, ValueError)


class ParquetReader:
    """Rows of Parquet files; the schema of the first file that has rows is the corpus's."""

    suffixes = (".parquet", ".parq", ".pq")
    key_column = None

    def inspect(self, root: str, files: Sequence[FileInfo]) -> tuple[pa.Schema, list[SourceFile]]:
        """See `Reader.inspect`; a file whose columns differ from the corpus's has an error."""
        with ThreadPoolExecutor(16) as pool:
            footers = list(pool.map(lambda file: _footer(root, file), files))
        schemas = [(found, source.rows) for found, source in footers if found is not None]
        schema = next(
            (found for found, rows in schemas if rows), schemas[0][0] if schemas else None
        )
        if schema is None:
            reasons = {source.error for _, source in footers}
            raise BadDataError(
                f"input={redact(root)!r}: no file can be read: {sorted(map(str, reasons))[:3]}"
            )
        return schema, [_checked(schema, found, source) for found, source in footers]

    def read(
        self, root: str, span: Span, columns: Sequence[str] | None, batch_rows: int
    ) -> Iterator[pa.RecordBatch]:
        """See `Reader.read`; a batch may span row groups, but damage costs none before its own."""
        if span.groups is None or span.groups[0] == span.groups[1]:
            return
        names = list(columns) if columns is not None else None
        with open_input(corpus_path(root, span.file)) as file:
            parquet = pq.ParquetFile(file)
            groups = list(range(*span.groups))
            done = 0
            try:
                for batch in parquet.iter_batches(batch_rows, groups, names, use_threads=False):
                    done += batch.num_rows
                    yield batch
            except READ_ERRORS as error:
                if not is_passing(error):
                    yield from _rest(parquet, groups, names, batch_rows, done)
                raise

    def narrow(self, root: str, span: Span, first: int, last: int) -> Span:
        """See `Reader.narrow`: the row groups that overlap."""
        if span.groups is None:
            return span
        metadata, _ = _metadata(root, span.file)
        start = begin = span.start
        rows = 0
        chosen: list[int] = []
        for group in range(*span.groups):
            size = metadata.row_group(group).num_rows
            if start <= last and start + size > first:
                if not chosen:
                    begin = start
                chosen.append(group)
                rows += size
            start += size
        if not chosen:
            return replace(span, start=begin, rows=0, groups=(span.groups[0], span.groups[0]))
        return replace(span, start=begin, rows=rows, groups=(chosen[0], chosen[-1] + 1))


def _rest(
    parquet: pq.ParquetFile, groups: list[int], names: list[str] | None, batch_rows: int, done: int
) -> Iterator[pa.RecordBatch]:
    """What follows the first ``done`` rows of some row groups, read group by group."""
    for group in groups:
        for batch in parquet.iter_batches(batch_rows, [group], names, use_threads=False):
            if done < batch.num_rows:
                yield batch.slice(done)
            done = max(done - batch.num_rows, 0)


def compression_of(root: str, file: str) -> str:
    """Codec of the file's first column chunk, as `pyarrow.parquet.ParquetWriter` names it."""
    metadata, _ = retried(_metadata, root, file)
    if not metadata.num_row_groups or not metadata.num_columns:
        return "snappy"
    codec: str = metadata.row_group(0).column(0).compression.lower()
    return "none" if codec == "uncompressed" else codec


def dictionaries_of(root: str, file: str) -> tuple[str, ...]:
    """Paths of the file's columns whose dictionaries save something, see `dictionary_columns`."""
    return retried(_dictionaries, root, file)


def _dictionaries(root: str, file: str) -> tuple[str, ...]:
    with open_input(corpus_path(root, file)) as opened:
        footer = read_footer(opened)
        return dictionary_columns(footer, lambda at, size: opened.read_at(size, at))


def _metadata(root: str, file: str) -> tuple[pq.FileMetaData, pa.Schema]:
    with open_input(corpus_path(root, file)) as opened:
        parquet = pq.ParquetFile(opened)
        return parquet.metadata, parquet.schema_arrow


def _footer(root: str, file: FileInfo) -> tuple[pa.Schema | None, SourceFile]:
    try:
        metadata, schema = retried(_metadata, root, file.path)
        groups = _group_rows(metadata)
        return schema, SourceFile(file.path, file.size, file.version, groups)
    except READ_ERRORS as error:
        reason = f"unreadable file: {error}"
        return None, SourceFile(file.path, file.size, file.version, None, reason)


def _group_rows(metadata: pq.FileMetaData) -> tuple[int, ...]:
    """Rows of each row group.

    Raises:
        ValueError: the counts in the footer do not agree with each other.
    """
    rows = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
    flat = [
        position
        for position in range(metadata.num_columns)
        if metadata.schema.column(position).max_repetition_level == 0
    ]
    for index, count in enumerate(rows):
        group = metadata.row_group(index)
        values = {group.column(position).num_values for position in flat[:1]}
        if count < 0 or not values <= {count}:
            raise ValueError(
                f"the footer contradicts itself: row group {index} has {count} rows "
                f"and columns of {sorted(values)} values"
            )
    if metadata.num_rows != sum(rows):
        raise ValueError(
            f"the footer contradicts itself: {metadata.num_rows} rows, {sum(rows)} in row groups"
        )
    return rows


def _checked(expected: pa.Schema, found: pa.Schema | None, source: SourceFile) -> SourceFile:
    if found is None or not source.rows:
        return source
    problem = _difference(expected, found)
    if problem is None:
        return source
    return SourceFile(source.path, source.size, source.version, source.groups, problem)


def _difference(expected: pa.Schema, found: pa.Schema) -> str | None:
    missing = [name for name in expected.names if name not in found.names]
    extra = [name for name in found.names if name not in expected.names]
    if missing or extra:
        return f"columns differ from the corpus: missing {missing}, unexpected {extra}"
    for field in expected:
        other = found.field(field.name).type
        if _plain(other) != _plain(field.type):
            return f"column {field.name!r} is {other}, the corpus has {field.type}"
    return None


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type without encodings that leave values alone."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_large_string(kind):
        return pa.string()
    if pa.types.is_large_binary(kind):
        return pa.binary()
    return kind
