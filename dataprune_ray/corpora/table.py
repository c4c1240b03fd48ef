"""Delimited text files as plain columns, types inferred by pyarrow over every row.

``.csv`` is comma separated with quotes; ``.tsv`` and ``.tab`` are tab separated, where a quote is a
character like any other. Empty strings and words such as NA stay text in a text column. Files are
read twice: once for types and the number of rows, so that a late surprise widens a column instead
of ending the job, and once for the rows. An ``id`` column of the table's own is kept as it is.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from dataprune_ray.corpora.config import MakeCorpusConfig
from dataprune_ray.corpora.source import Source, only_split
from dataprune_ray.errors import BadDataError, ConfigError

#: pyarrow holds some thirty blocks; a block must hold a row, so it grows where a row is longer.
_BLOCK_BYTES = 2 * 2**20
_MOST_BLOCK_BYTES = 256 * 2**20
_MOST_CLASSES = 10_000
_TAB_SUFFIXES = frozenset({".tsv", ".tab"})
_SUFFIXES = _TAB_SUFFIXES | {".csv"}


@dataclass(frozen=True)
class _Scan:
    """Column types that all rows of all files fit, the rows' number, and the size of a block."""

    types: dict[str, pa.DataType]
    rows: int = 0
    block_bytes: int = _BLOCK_BYTES

    @property
    def names(self) -> list[str]:
        """Column names."""
        return list(self.types)


def open_table(config: MakeCorpusConfig) -> Source:
    """The file or files named after ``table:``.

    Raises:
        ConfigError: no such file, another ending, or files whose columns differ.
        BadDataError: a file is no valid table.
    """
    files = _find(config.data.source)
    scan = _scan(files, config.data.limit)
    split = only_split(config.data)
    label = config.noise.label
    if label != "none" and label not in scan.names:
        columns = ", ".join(scan.names)
        raise ConfigError("label", label, f"is no column; 'none', or one of: {columns}")
    return Source(
        "table",
        {split: partial(_batches, files, scan)},
        {split: scan.rows},
        label_values=partial(_distinct, files, scan, label),
        schema=pa.schema(list(scan.types.items())),
    )


def _find(source: str) -> list[Path]:
    pattern = source.partition(":")[2]
    names = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
    files = [Path(name) for name in names if Path(name).is_file()]
    if not files:
        raise ConfigError("source", source, "there is no such file")
    for file in files:
        if not _SUFFIXES & set(_endings(file)):
            raise ConfigError(
                "source", source, f"{file} must end in {', '.join(sorted(_SUFFIXES))}"
            )
    return files


def _endings(file: Path) -> list[str]:
    """The last ending, and the one before a compression's."""
    return [s.lower() for s in file.suffixes[-2:]]


def _open(file: Path, scan: _Scan) -> Any:
    if _TAB_SUFFIXES & set(_endings(file)):
        parse = csv.ParseOptions(delimiter="\t", quote_char=False)
    else:
        parse = csv.ParseOptions(newlines_in_values=True)
    return csv.open_csv(
        str(file),
        read_options=csv.ReadOptions(block_size=scan.block_bytes),
        parse_options=parse,
        convert_options=csv.ConvertOptions(column_types=scan.types),
    )


def _scan(files: Sequence[Path], limit: int | None) -> _Scan:
    scan = _Scan({})
    for file in files:
        found = _scan_file(file, scan, limit)
        if scan.names and found.names != scan.names:
            message = f"columns {found.names}, but the first file has {scan.names}"
            raise ConfigError("source", str(file), message)
        scan = found
        if limit is not None and scan.rows >= limit:
            return replace(scan, rows=limit)
    return scan


def _scan_file(file: Path, scan: _Scan, limit: int | None) -> _Scan:
    """``scan`` with a file added, widening a column's type whenever a value does not fit it."""
    while True:
        schema, rows = None, scan.rows
        try:
            with _open(file, scan) as reader:
                schema = reader.schema
                for batch in reader:
                    rows += len(batch)
                    if limit is not None and rows >= limit:
                        break
        except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
            scan = _widen(file, schema, scan, str(error))
        else:
            if len(set(schema.names)) != len(schema.names):
                raise ConfigError("source", str(file), f"has a column name twice: {schema.names}")
            types = dict(zip(schema.names, schema.types, strict=True))
            return replace(scan, types=types, rows=rows)


def _widen(file: Path, schema: pa.Schema | None, scan: _Scan, error: str) -> _Scan:
    """The scan made fit for what an error is about: a long row, or a value of another type."""
    if "straddl" in error and scan.block_bytes < _MOST_BLOCK_BYTES:
        return replace(scan, block_bytes=4 * scan.block_bytes)
    found = re.search(r"In CSV column #(\d+)", error)
    names = schema.names if schema is not None else scan.names
    if found is None or int(found[1]) >= len(names):
        raise BadDataError(f"{file}: {error}")
    name = names[int(found[1])]
    known = schema.field(name).type if schema is not None else scan.types[name]
    wider: pa.DataType
    if pa.types.is_null(known):
        wider = pa.int64()
    elif pa.types.is_int64(known):
        wider = pa.float64()
    elif not pa.types.is_binary(known):
        wider = pa.binary() if pa.types.is_string(known) else pa.string()
    else:
        raise BadDataError(f"{file}: {error}")
    return replace(scan, types={**scan.types, name: wider})


def _batches(files: Sequence[Path], scan: _Scan) -> Iterator[pa.RecordBatch]:
    for file in files:
        try:
            with _open(file, scan) as reader:
                yield from reader
        except (pa.ArrowInvalid, OSError) as error:
            raise BadDataError(f"{file}: {error}") from None


def _distinct(files: Sequence[Path], scan: _Scan, label: str) -> list[Any]:
    found: set[Any] = set()
    for batch in _batches(files, scan):
        found.update(pc.unique(batch.column(label)).to_pylist())
        if len(found) > _MOST_CLASSES:
            raise ConfigError("label", label, f"has more than {_MOST_CLASSES} values: no classes")
    return sorted(found - {None})
