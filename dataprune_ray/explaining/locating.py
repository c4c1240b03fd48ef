"""Rows of a score table by ``FILE:ROW``, ``FILE:KEY`` or key alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataprune_ray import schema
from dataprune_ray.cutoff import Block, seeded_hash
from dataprune_ray.errors import BadDataError, ConfigError
from dataprune_ray.explaining.runs import FinishedRun, in_shares
from dataprune_ray.io.filesystems import open_input, redact

_BATCH_ROWS = 1 << 16
_SHOWN = 3
#: How well a row answers that is known by its key alone, so that others may have it too.
_BY_KEY = 2
_MOST_DIGITS = 18  # of a position that an int64 holds


@dataclass(frozen=True, eq=False)
class Located:
    """A row of the score table.

    Attributes:
        asked: how it was asked for.
        fragment: name of its score file.
        position: its place in the score file.
        decided: its place in the decisions file, which holds rows without error only.
        file, row, key, label, error: as in the score table; the label as text.
        raw_label: the label as stored.
        scores: score by metric; empty with an error.
        row_hash: identity hash, without the seed.
        block: the row as a block of the population that the strategy saw; None with an error.
        group: the group that has a quota; '' where none have.
    """

    asked: str
    fragment: str
    position: int
    decided: int
    file: str
    row: int | None
    key: str | None
    label: str | None
    error: str | None
    raw_label: Any
    scores: dict[str, float] = field(default_factory=dict)
    row_hash: int = 0
    block: Block | None = None
    group: str = ""

    def one(self) -> Block:
        """The block of a row without error."""
        if self.block is None:
            raise ValueError("a row with an error has no block")
        return self.block


@dataclass(frozen=True)
class _Query:
    """What was asked: ``places`` are its readings as a file of the run and what follows it."""

    text: str
    places: tuple[tuple[str, str], ...]

    def closeness(self, file: str, row: int | None, key: str | None) -> int | None:
        """How a row answers, 0 best: by position, by key in its file, by key; None: it does not."""
        if any(file == f and row is not None and str(row) == rest for f, rest in self.places):
            return 0
        if any(file == f and key == rest for f, rest in self.places):
            return 1
        whole = row is None and (file == self.text or any(file == f for f, _ in self.places))
        return _BY_KEY if whole or (key is not None and key == self.text) else None


@dataclass(frozen=True)
class _Hit:
    query: int
    closeness: int
    fragment: str
    position: int
    decided: int
    file: str
    row: int | None
    key: str | None

    @property
    def place(self) -> str:
        return f"{self.file}:{self.row if self.key is None else self.key}"


def locate(run: FinishedRun, rows: Sequence[str]) -> list[Located]:
    """The rows that were asked for, in that order.

    Raises:
        ConfigError: a row is not in the run's corpus, or several answer to a key.
    """
    files = {span.file for fragment in run.fragments for span in fragment.spans}
    queries = [_Query(text, tuple(_places(text, files))) for text in rows]
    hits: dict[int, list[_Hit]] = {index: [] for index in range(len(queries))}
    named = {file for query in queries for file, _ in query.places} | (set(rows) & files)
    near = [f.name for f in run.fragments if any(span.file in named for span in f.spans)]
    _search(run, queries, near, hits)
    rest = [
        index for index, found in hits.items() if all(hit.closeness == _BY_KEY for hit in found)
    ]
    if rest:
        others = sorted({f.name for f in run.fragments} - set(near))
        _search(run, queries, others, {index: hits[index] for index in rest})
    return [_read(run, query.text, _best(query, hits[i])) for i, query in enumerate(queries)]


def _places(text: str, files: set[str]) -> Iterator[tuple[str, str]]:
    """Every way to read ``FILE:REST`` with a file of the run."""
    for position, character in enumerate(text):
        if character == ":" and text[:position] in files:
            yield text[:position], text[position + 1 :]


def _search(
    run: FinishedRun, queries: list[_Query], names: list[str], hits: dict[int, list[_Hit]]
) -> None:
    """Add the hits of the queries that ``hits`` lists, from some score files."""
    wanted = {index: queries[index] for index in hits}
    for found in in_shares(partial(_scan, run, wanted), names):
        for hit in found:
            hits[hit.query].append(hit)


def _best(query: _Query, hits: list[_Hit]) -> _Hit:
    closest = min((hit.closeness for hit in hits), default=None)
    found = [hit for hit in hits if hit.closeness == closest]
    if not found:
        raise ConfigError(
            "explain",
            query.text,
            "no such row in the run's corpus; give FILE:ROW with the file's path below the input "
            "and the row counted from 0, FILE:KEY, or the row's id",
        )
    if len(found) > 1:
        places = ", ".join(sorted(hit.place for hit in found)[:_SHOWN])
        advice = f"{len(found)} rows have that key; give one as FILE:KEY, such as {places}"
        raise ConfigError("explain", query.text, advice)
    return found[0]


def _scan(run: FinishedRun, queries: dict[int, _Query], names: Sequence[str]) -> list[_Hit]:
    """The rows of some score files that answer a query."""
    places = [place for query in queries.values() for place in query.places]
    texts = [query.text for query in queries.values()]
    keys = pa.array([*texts, *(rest for _, rest in places)], pa.string())
    files = pa.array([*texts, *(file for file, _ in places)], pa.string())
    rows = pa.array([int(rest) for _, rest in places if _is_position(rest)], pa.int64())
    columns = [schema.FILE, schema.ROW, schema.KEY, schema.ERROR]
    found: list[_Hit] = []
    for name in names:
        position = decided = 0
        for batch in _batches(run.score_file(name), columns):
            file = batch.column(schema.FILE).cast(pa.string())
            row, key = batch.column(schema.ROW), batch.column(schema.KEY)
            place = pc.or_(pc.is_in(row, value_set=rows), pc.is_null(row))
            by_place = pc.and_(pc.is_in(file, value_set=files), place)
            mask = pc.or_(by_place, pc.is_in(key, value_set=keys)).to_numpy(zero_copy_only=False)
            good = batch.column(schema.ERROR).is_null().to_numpy(zero_copy_only=False)
            for at in map(int, np.flatnonzero(mask)):
                identity = (file[at].as_py(), row[at].as_py(), key[at].as_py())
                before = decided + int(np.count_nonzero(good[:at]))
                for index, query in queries.items():
                    closeness = query.closeness(*identity)
                    if closeness is not None:
                        found.append(_Hit(index, closeness, name, position + at, before, *identity))
            position += batch.num_rows
            decided += int(np.count_nonzero(good))
    return found


def _is_position(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS


def _batches(path: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    with open_input(path) as source, pq.ParquetFile(source) as file:
        yield from file.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False)


def _read(run: FinishedRun, asked: str, hit: _Hit) -> Located:
    """The row's values; its block, where it has no error."""
    columns = [schema.LABEL, schema.ROW_HASH, schema.ERROR, *run.metrics]
    columns += [] if run.group_column in (None, schema.LABEL) else [schema.GROUP]
    values = row_at(run.score_file(hit.fragment), hit.position, columns)
    raw, error = values[schema.LABEL], values[schema.ERROR]
    label = None if raw is None else str(raw)
    where = (asked, hit.fragment, hit.position, hit.decided, hit.file, hit.row, hit.key)
    if error is not None:
        return Located(*where, label, error, raw)
    scores = {name: values[name] for name in run.metrics}
    identity = np.array([values[schema.ROW_HASH]], np.uint64)
    column = run.group_column
    group = "" if column is None else str(values[column])
    code = 0 if column is None else run.rule.groups.index(group)
    block = Block(
        scores=np.array([scores[run.metric]], np.float32),
        hashes=seeded_hash(identity, run.config.select.seed),
        groups=np.array([code], np.int32),
        others={name: np.array([score], np.float32) for name, score in scores.items()},
    )
    return Located(*where, label, None, raw, scores, values[schema.ROW_HASH], block, group)


def row_at(path: str, position: int, columns: list[str] | None = None) -> dict[str, Any]:
    """One row of a Parquet file, by its position.

    Raises:
        BadDataError: the file has fewer rows.
    """
    left = position
    with open_input(path) as source, pq.ParquetFile(source) as file:
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if left < rows:
                table = file.read_row_group(group, columns=columns, use_threads=False)
                (values,) = table.slice(left, 1).to_pylist()
                return dict(values)
            left -= rows
    raise BadDataError(f"{redact(path)} has no row {position}: it does not belong to the run")
