"""Fragments to encoded rows: identity, label and model input of every row, or why it has none.

Whatever is wrong with a row or a file ends up as an error of the rows concerned; nothing that a
corpus holds makes the iteration raise, and no row is left out.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dataprune_ray.clock import Clock
from dataprune_ray.cutoff import seeded_hash
from dataprune_ray.errors import StorageError
from dataprune_ray.features import (
    FeatureSpec,
    LabelSpec,
    column,
    encode,
    encode_labels,
    group_values,
    top_level,
)
from dataprune_ray.features.digest import digests
from dataprune_ray.io import READ_ERRORS, get_reader
from dataprune_ray.io.corpus import MEMBERS, Corpus, Fragment, Span
from dataprune_ray.io.filesystems import redact
from dataprune_ray.io.identity import as_keys, file_seed, key_hashes, position_hashes
from dataprune_ray.io.repeats import Repeats
from dataprune_ray.io.splits import Split

T = TypeVar("T")

_BATCH_BYTES = 16 << 20
_MOST_ROWS = 8192
_ALL = 2**64 - 1
_REPEATED = "__repeated__"  # column that marks rows whose key came before in their file
#: How the errors of rows begin that storage kept back: another run may well be able to read them.
STORAGE_FAILED = "storage failed"


@dataclass(frozen=True)
class RowPlan:
    """How rows are read: sent once to every worker.

    ``sample_below`` keeps the rows whose seeded hash is at most that value: a random sample that
    does not depend on how the corpus is cut. ``splits`` keep the rows that each of them admits.
    ``extra`` are features that are read besides those of the model; ``digests`` asks for digests
    of the rows' content; ``group`` is a column whose values are groups of rows; images are decoded
    by ``decode_threads`` threads.
    """

    root: str
    format: str
    schema: pa.Schema
    fragments: tuple[Fragment, ...]
    features: FeatureSpec
    label: LabelSpec
    id_column: str | None = None
    seed: int = 0
    sample_below: int = _ALL
    splits: tuple[Split, ...] = ()
    extra: FeatureSpec | None = None
    digests: bool = False
    group: str | None = None
    decode_threads: int = 1

    @classmethod
    def of(
        cls,
        corpus: Corpus,
        features: FeatureSpec,
        label: LabelSpec,
        id_column: str | None,
        seed: int,
    ) -> RowPlan:
        """Plan for reading a whole corpus."""
        return cls(
            corpus.root,
            corpus.format,
            corpus.schema,
            corpus.fragments,
            features,
            label,
            id_column,
            seed,
        )

    def sampled(self, fraction: float) -> RowPlan:
        """The same plan for a share of the rows, chosen by hash."""
        return replace(self, sample_below=min(int(fraction * 2**64), _ALL))

    def within(self, *splits: Split) -> RowPlan:
        """The same plan for the rows that these splits admit, too."""
        return replace(self, splits=(*self.splits, *splits))

    @property
    def share(self) -> float:
        """The share of the rows that is read, but for chance."""
        share = (self.sample_below + 1) / 2**64
        for split in self.splits:
            share *= split.admitted
        return share

    def chosen(self, row_hash: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_] | None:
        """Which rows of identity hashes (n,) are read, bool (n,); None where all are."""
        if self.sample_below == _ALL and not self.splits:
            return None
        chosen = seeded_hash(row_hash, self.seed) <= self.sample_below
        for split in self.splits:
            chosen &= split.admits(row_hash)
        return chosen


@dataclass(frozen=True)
class RowBatch:
    """``n`` rows of one file, ``m`` of them good.

    ``rows`` int64 (n,) positions (-1: the whole file), ``keys`` strings (n,), ``row_hash`` uint64
    (n,), ``stored`` labels as in the score table (n,), ``good`` bool (n,), ``errors`` by index;
    ``values`` (m, …) model inputs, ``targets`` (m,) and ``extra`` features (m, …) of the good rows,
    and digests of their content uint64 (m, 2).
    """

    file: str
    rows: npt.NDArray[np.int64]
    keys: pa.Array
    row_hash: npt.NDArray[np.uint64]
    stored: pa.Array
    good: npt.NDArray[np.bool_]
    errors: dict[int, str]
    values: npt.NDArray[Any]
    targets: npt.NDArray[Any]
    extra: npt.NDArray[np.float32] | None = None  # where the plan asks for it
    digests: npt.NDArray[np.uint64] | None = None
    group: pa.Array | None = None  # text (n,), where the plan asks for it
    members: tuple[str, ...] = ()  # columns seen so far, where the format has no schema of its own

    def __len__(self) -> int:
        return len(self.rows)

    def need_read(self) -> None:
        """Refuse rows that storage kept back, where a sample must not miss any.

        Raises:
            StorageError: there are some.
        """
        for reason in self.errors.values():
            if reason.startswith(STORAGE_FAILED):
                raise StorageError(f"{redact(self.file)}: {reason}")


def read_rows(
    plan: RowPlan,
    fragment: Fragment,
    transform: Callable[[Any], Any] | None = None,
    clock: Clock | None = None,
    pass_rows: int = 0,
) -> Iterator[RowBatch]:
    """Every row of a fragment in order, encoded.

    ``clock`` counts the seconds that reading and decoding take. Batches are made to hold a
    multiple of ``pass_rows``, so that a model that takes as many at once seldom runs half empty.
    """
    clock = clock or Clock()
    size = batch_rows(plan.features, pass_rows)
    for span in fragment.spans:
        yield from _read_span(plan, span, transform, clock, size)


def batch_rows(features: FeatureSpec, pass_rows: int = 0) -> int:
    """Rows that are read at a time: about `_BATCH_BYTES`, and a multiple of ``pass_rows``."""
    rows = max(32, min(_MOST_ROWS, _BATCH_BYTES // max(features.row_bytes, 1)))
    if not pass_rows:
        return rows
    return max(rows // pass_rows, 1) * pass_rows


def columns_to_read(plan: RowPlan) -> list[str]:
    """Stored columns that features, label and key come from."""
    paths = [*plan.features.columns, *(plan.extra.columns if plan.extra else ())]
    paths += [p for p in (plan.label.column, plan.id_column, plan.group) if p is not None]
    key = get_reader(plan.format).key_column
    names = [top_level(path, plan.schema) for path in paths] + ([key] if key else [])
    return list(dict.fromkeys(names))


def _read_span(
    plan: RowPlan,
    span: Span,
    transform: Callable[[Any], Any] | None,
    clock: Clock,
    size: int,
) -> Iterator[RowBatch]:
    if span.error is not None:
        yield from _failed(plan, span, 0, span.error)
        return
    reader = get_reader(plan.format)
    columns = columns_to_read(plan)
    batches = clock.each("read", reader.read(plan.root, span, columns, size))
    repeats = Repeats()
    done = 0
    while True:
        try:
            batch = next(batches, None)
        except StorageError as error:
            yield from _failed(plan, span, done, str(error))
            return
        except READ_ERRORS as error:
            yield from _failed(plan, span, done, f"file breaks off: {error}")
            return
        if batch is None:
            break
        known = _marked(plan, noted(batch, plan.schema), repeats)
        encoded = _contained(plan, span.file, span.start + done, known, transform)
        yield from clock.each("decode", encoded)
        done += batch.num_rows
    if span.rows is not None and done != span.rows:
        yield from _failed(plan, span, done, f"file ends early: {done} of {span.rows} rows")


def noted(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The batch with the corpus's field metadata, which carries raw tensors' shapes."""
    fields = [
        schema.field(f.name).with_type(f.type) if f.name in schema.names else f
        for f in batch.schema
    ]
    return pa.RecordBatch.from_arrays(
        batch.columns, schema=pa.schema(fields, batch.schema.metadata)
    )


def _marked(plan: RowPlan, batch: pa.RecordBatch, repeats: Repeats) -> pa.RecordBatch:
    """The batch, with a mark on rows that repeat a key of their file where that is the identity."""
    own_key = get_reader(plan.format).key_column
    if own_key is None or plan.id_column is not None:
        return batch
    again = repeats.mark(key_hashes(as_keys(batch.column(own_key)).fill_null("")))
    return batch.append_column(_REPEATED, pa.array(again)) if again.any() else batch


def _contained(
    plan: RowPlan,
    file: str,
    start: int,
    batch: pa.RecordBatch,
    transform: Callable[[Any], Any] | None,
) -> Iterator[RowBatch]:
    """The batch encoded; where that fails, in halves, down to the row that is to blame."""
    rows = batch.num_rows
    try:
        encoded = _encode_batch(plan, file, start, batch, transform)
    except Exception as error:  # noqa: BLE001 - whatever a decoder raises, it is this row's
        if rows == 1:
            reason = f"row cannot be encoded: {type(error).__name__}: {error}"
            yield from _failed(plan, Span(file, start, rows), 0, reason)
            return
        half = rows // 2
        yield from _contained(plan, file, start, batch.slice(0, half), transform)
        yield from _contained(plan, file, start + half, batch.slice(half), transform)
    else:
        yield encoded


def _encode_batch(
    plan: RowPlan,
    file: str,
    start: int,
    batch: pa.RecordBatch,
    transform: Callable[[Any], Any] | None,
) -> RowBatch:
    rows = np.arange(start, start + batch.num_rows, dtype=np.int64)
    keys, row_hash, errors = identify(plan, file, rows, batch)
    mask = plan.chosen(row_hash)
    if mask is not None:
        chosen = np.flatnonzero(mask)
        place = {int(old): new for new, old in enumerate(chosen)}
        errors = {place[i]: text for i, text in errors.items() if i in place}
        batch, keys = batch.take(pa.array(chosen)), keys.take(pa.array(chosen))
        rows, row_hash = rows[chosen], row_hash[chosen]
    features = encode(plan.features, batch, transform, plan.decode_threads)
    labels, stored = encode_labels(plan.label, batch)
    extra = encode(plan.extra, batch) if plan.extra else None
    if extra is not None and plan.extra is not None:
        extra_name = ".".join(plan.extra.columns)
        errors = {i: f"{extra_name}: {text}" for i, text in extra.errors.items()} | errors
    errors = {**labels.errors, **features.errors, **errors}
    good = np.ones(len(rows), bool)
    good[list(errors)] = False
    values, targets = features.values, labels.values
    if errors:
        values, targets = values[good[features.good]], targets[good[labels.good]]
    return RowBatch(
        file=file,
        rows=rows,
        keys=keys,
        row_hash=row_hash,
        stored=stored,
        group=None if plan.group is None else group_values(batch, plan.group),
        good=good,
        errors=errors,
        values=values,
        targets=targets,
        extra=None if extra is None else extra.values[good[extra.good]],
        digests=digests(plan.features, batch, values, good) if plan.digests else None,
        members=_members(batch),
    )


def _members(batch: pa.RecordBatch) -> tuple[str, ...]:
    note = (batch.schema.metadata or {}).get(MEMBERS)
    return tuple(json.loads(note)) if note else ()


def identify(
    plan: RowPlan, file: str, rows: npt.NDArray[np.int64], batch: pa.RecordBatch
) -> tuple[pa.Array, npt.NDArray[np.uint64], dict[int, str]]:
    """Keys, identity hashes, and the rows whose id is unusable (these are known by position).

    Of rows with one key in one archive the first has it as its identity; the others are errors.
    """
    by_position = position_hashes(file, int(rows[0]) if len(rows) else 0, len(rows))
    own_key = get_reader(plan.format).key_column
    name = plan.id_column or own_key
    if name is None:
        return pa.nulls(len(rows), pa.string()), by_position, {}
    try:
        keys = as_keys(column(batch, name))
    except pa.ArrowInvalid as error:
        reason = f"id column {name!r}: {error}"
        return (
            pa.nulls(len(rows), pa.string()),
            by_position,
            dict.fromkeys(range(len(rows)), reason),
        )
    missing = np.asarray(keys.is_null())
    hashes = key_hashes(keys.fill_null(""))
    if plan.id_column is None:  # a format's own key is unique in its file only
        hashes = seeded_hash(hashes, file_seed(file))
    errors = {int(i): f"id column {name!r} is null" for i in np.flatnonzero(missing)}
    if _REPEATED in batch.schema.names:
        again = np.asarray(batch.column(_REPEATED))
        for i in np.flatnonzero(again):
            errors[int(i)] = f"key is repeated in its archive: {keys[int(i)].as_py()!r}"
        missing = missing | again
    hashes = np.where(missing, by_position, hashes)
    return keys, hashes, errors


def _failed(plan: RowPlan, span: Span, done: int, reason: str) -> Iterator[RowBatch]:
    """The rows of a span that cannot be read; one row at -1 stands for a file of unknown length."""
    start, end = span.start + done, span.start + (span.rows or 0)
    for first in range(start, end if span.rows else start + 1, _MOST_ROWS):
        positions = np.arange(first, min(first + _MOST_ROWS, end) if span.rows else first + 1)
        hashes = position_hashes(span.file, first, len(positions))
        if not span.rows and not done:
            positions[0] = -1
        chosen = plan.chosen(hashes)
        if chosen is not None:
            positions, hashes = positions[chosen], hashes[chosen]
        size = len(positions)
        yield RowBatch(
            file=span.file,
            rows=positions,
            keys=pa.nulls(size, pa.string()),
            row_hash=hashes,
            stored=pa.nulls(size, plan.label.type),
            group=None if plan.group is None else pa.nulls(size, pa.string()),
            good=np.zeros(size, bool),
            errors=dict.fromkeys(range(size), reason),
            values=np.zeros((0, *plan.features.shape), np.float32),
            targets=np.zeros(0, np.int64),
        )


def ahead(items: Iterator[T], depth: int = 2) -> Iterator[T]:
    """The same items, produced ``depth`` ahead in a thread: decoding overlaps with the model."""
    buffer: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    stopped = threading.Event()

    def produce() -> None:
        try:
            for item in items:
                if stopped.is_set():
                    return
                buffer.put(("item", item))
            buffer.put(("end", None))
        except BaseException as error:  # noqa: BLE001 - raised again in the consumer
            buffer.put(("error", error))

    worker = threading.Thread(target=produce, name="decode-ahead", daemon=True)
    worker.start()
    try:
        while True:
            kind, content = buffer.get()
            if kind == "end":
                return
            if kind == "error":
                raise content
            yield content
    finally:
        stopped.set()
        while not buffer.empty():
            buffer.get_nowait()
