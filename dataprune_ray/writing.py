"""Keep rule to pruned dataset: parts of even size, copied from the source files.

From the kept rows of every fragment the rows are dealt to parts in corpus order; each part is an
independent task that reads what it covers and copies rows: no image is decoded and encoded again.
Where there are fewer parts than CPUs, a task has several threads; its part's bytes are the same.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dataprune_ray import schema
from dataprune_ray.deciding import WritePlan
from dataprune_ray.errors import BadDataError, StorageError
from dataprune_ray.io import READ_ERRORS, get_reader
from dataprune_ray.io.copying import (
    GROUP_BYTES,
    Piece,
    Source,
    Style,
    cannot_copy,
    chosen,
    conform,
    in_order,
    is_movable,
    open_source,
    pieces_of,
    plan_units,
    produce,
)
from dataprune_ray.io.corpus import Corpus, Fragment, Span
from dataprune_ray.io.filesystems import (
    atomic_output,
    exists,
    join,
    open_input,
    read_bytes,
    remove_file,
    stamp,
    write_bytes,
)
from dataprune_ray.io.leftovers import remove_other_parts
from dataprune_ray.io.parquet import compression_of, dictionaries_of
from dataprune_ray.io.rowgroups import Footer, Joiner, RowGroup
from dataprune_ray.tasks import cluster_cpus, run_tasks

_BATCH_ROWS = 4096
_MOST_THREADS = 4  # of a task
_READ_AHEAD = 2  # decision files
#: Requests to a store at a time.
_THREADS = 16


@dataclass(frozen=True)
class Slice:
    """The kept rows ``first`` to ``last`` (exclusive, counted among the kept) of one fragment."""

    fragment: Fragment
    first: int
    last: int


@dataclass(frozen=True)
class Part:
    """One output file."""

    index: int
    slices: tuple[Slice, ...]
    rows: int

    @property
    def name(self) -> str:
        """File name below ``data/``."""
        return f"part-{self.index:05d}.parquet"

    def record(self, plan: WritePlan) -> str:
        """Path of what is noted of it while its run is unfinished; hidden from Parquet readers."""
        return join(plan.output, "decisions", f"_part-{self.index:05d}.json")


@dataclass(frozen=True)
class Written:
    """A written part, as the manifest lists it."""

    path: str
    rows: int
    bytes: int
    sha256: str
    reused: bool = field(default=False, compare=False)  # by an earlier attempt

    def to_json(self) -> dict[str, Any]:
        """As the manifest lists it."""
        return {"path": self.path, "rows": self.rows, "bytes": self.bytes, "sha256": self.sha256}


def plan_parts(fragments: tuple[Fragment, ...], kept: list[int], rows_per_part: int) -> list[Part]:
    """Deal the kept rows, in corpus order, to parts whose sizes differ by at most one row."""
    total = sum(kept)
    count = math.ceil(total / rows_per_part) if total else 1
    bounds = [total * index // count for index in range(count + 1)]
    starts = np.concatenate([[0], np.cumsum(kept)])
    parts = []
    position = 0
    for index, (low, high) in enumerate(itertools.pairwise(bounds)):
        slices = []
        while position < len(fragments) and starts[position] < high:
            first, last = max(low, int(starts[position])), min(high, int(starts[position + 1]))
            if first < last:
                offset = int(starts[position])
                slices.append(Slice(fragments[position], first - offset, last - offset))
            if starts[position + 1] > high:
                break
            position += 1
        parts.append(Part(index, tuple(slices), high - low))
    return parts


def write_parts(
    plan: WritePlan, corpus: Corpus, parts: list[Part], progress: Callable[[Written], None]
) -> list[Written]:
    """Write every part; their rows, bytes and checksums, in order.

    A part is followed by a small record in ``decisions/``. With it, a part that an earlier attempt
    copied from the same decisions is not copied again. The records are of no use to a finished run.

    Raises:
        BadDataError: a source file changed or broke since it was scored.
    """
    remove_other_parts(join(plan.output, "data"), {part.name for part in parts})
    plan = replace(plan, **_source_style(corpus))
    threads = min(_MOST_THREADS, max(1, cluster_cpus() // max(1, len(parts))))
    written = {}
    for result in run_tasks(partial(_write_part, plan, threads=threads), parts):
        written[result.path] = result
        progress(result)
    return [written[f"data/{part.name}"] for part in parts]


def _source_style(corpus: Corpus) -> dict[str, Any]:
    """Compression, row group size and columns with a dictionary of the source, if it has them."""
    for file in corpus.files:
        if file.groups and file.error is None:
            per_row = max(1, corpus.size // max(1, sum(f.rows or 0 for f in corpus.files)))
            limit = max(1, GROUP_BYTES // per_row)
            return {
                "compression": compression_of(corpus.root, file.path),
                "group_rows": min(max(*file.groups, 1024), limit),
                "dictionary": dictionaries_of(corpus.root, file.path),
            }
    return {}


def _write_part(plan: WritePlan, part: Part, threads: int = 1) -> Written:
    path = join(plan.output, "data", part.name)
    record, basis = part.record(plan), _basis(plan, part)
    found = _committed(path, record, basis)
    if found is not None:
        return found
    style = Style(plan.schema, plan.compression, plan.group_rows, plan.dictionary)
    like = style.empty()
    digest = _Hashing()
    with atomic_output(path) as stream:
        joiner = Joiner(digest.to(stream), like)
        for group in _row_groups(plan, part, style, like, threads):
            joiner.append(group)
        joiner.close()
    if joiner.rows != part.rows:
        remove_file(path)
        raise BadDataError(
            f"data/{part.name}: {joiner.rows} rows instead of {part.rows}; a source file changed"
        )
    written = Written(f"data/{part.name}", joiner.rows, digest.size, digest.hexdigest())
    note = {"basis": basis, "stamp": stamp(path), "written": written.to_json()}
    write_bytes(record, json.dumps(note).encode())
    return written


def _basis(plan: WritePlan, part: Part) -> str:
    """Hex digest of everything that a part's bytes depend on: which rows, from which decisions."""
    sources = [
        (piece.fragment.name, piece.first, piece.last, stamp(_decisions_of(plan, piece.fragment)))
        for piece in part.slices
    ]
    layout = plan.schema.serialize().to_pybytes()
    content = repr(
        (plan.root, plan.format, plan.compression, plan.group_rows, plan.dictionary, sources)
    )
    return hashlib.sha256(content.encode() + layout).hexdigest()


def _committed(path: str, record: str, basis: str) -> Written | None:
    """A part that is there, unchanged since its record was written on the same basis."""
    if not exists(record):
        return None
    note = json.loads(read_bytes(record))
    if note["basis"] != basis or note["stamp"] != stamp(path):
        return None
    return Written(**note["written"], reused=True)


def _decisions_of(plan: WritePlan, fragment: Fragment) -> str:
    return join(plan.output, "decisions", f"{fragment.name}.parquet")


def forget_records(plan: WritePlan, parts: list[Written]) -> None:
    """Remove the parts' records, which a finished run has in its manifest."""
    records = [Part(index, (), 0).record(plan) for index in range(len(parts))]
    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(remove_file, records))


class _Hashing:
    """Passes on what is written and keeps the size and SHA-256 of it."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()
        self.size = 0

    def to(self, sink: Any) -> Callable[[Any], None]:
        """A function that writes to ``sink``."""

        def write(data: Any) -> None:
            self._sha.update(data)
            self.size += len(data)
            sink.write(memoryview(data))

        return write

    def hexdigest(self) -> str:
        return self._sha.hexdigest()


def _row_groups(
    plan: WritePlan, part: Part, style: Style, like: Footer, threads: int
) -> Iterator[RowGroup]:
    """The part's rows in row groups like the source's, encoded."""
    if plan.format == "parquet":
        movable = partial(is_movable, into=like, compression=plan.compression)
        units = plan_units(_pieces(plan, part), movable, plan.group_rows)
        found = in_order(partial(produce, style=style, threads=threads), units, threads)
    else:
        found = in_order(lambda table: style.groups([table]), _tables(plan, part), threads)
    for groups in found:
        yield from groups


def _pieces(plan: WritePlan, part: Part) -> Iterator[Piece]:
    """The row groups of a Parquet corpus with rows of the part, in order."""
    source: Source | None = None
    for span, positions in _kept_spans(plan, part):
        if source is None or source.name != span.file:
            source = open_source(plan.root, span.file)
        yield from pieces_of(source, span, positions)


def _tables(plan: WritePlan, part: Part) -> Iterator[pa.Table]:
    """The part's rows in tables as large as a row group."""
    waiting: list[pa.RecordBatch] = []
    held = size = 0
    for span, positions in _kept_spans(plan, part):
        for batch in _filtered(plan, span, positions):
            waiting.append(batch)
            held += batch.num_rows
            size += batch.nbytes
            if held >= plan.group_rows or size >= GROUP_BYTES:
                yield pa.Table.from_batches(waiting, plan.schema)
                waiting, held, size = [], 0, 0
    if waiting:
        yield pa.Table.from_batches(waiting, plan.schema)


def _kept_spans(plan: WritePlan, part: Part) -> Iterator[tuple[Span, npt.NDArray[np.int64]]]:
    """Spans with kept rows of the part, and these rows' positions in the file, ascending (k,)."""
    found = in_order(partial(_kept_positions, plan), part.slices, _READ_AHEAD)
    for piece, positions in zip(part.slices, found, strict=True):
        for span in piece.fragment.spans:
            if span.file in positions:
                yield span, positions[span.file]


def _kept_positions(plan: WritePlan, piece: Slice) -> dict[str, npt.NDArray[np.int64]]:
    """Positions of the slice's kept rows, by file, ascending."""
    with open_input(_decisions_of(plan, piece.fragment)) as file:
        columns = [schema.FILE, schema.ROW, schema.KEPT]
        table = pq.ParquetFile(file).read(columns, use_threads=False)
    kept = table.filter(table[schema.KEPT]).slice(piece.first, piece.last - piece.first)
    rows = kept[schema.ROW].to_numpy()
    names = kept[schema.FILE].unify_dictionaries().combine_chunks()
    codes = names.indices.to_numpy()
    return {names.dictionary[int(c)].as_py(): rows[codes == c] for c in np.unique(codes)}


def _filtered(
    plan: WritePlan, span: Span, positions: npt.NDArray[np.int64]
) -> Iterator[pa.RecordBatch]:
    """The rows of a span at the given positions of its file, as the corpus's schema has them."""
    reader = get_reader(plan.format)
    span = reader.narrow(plan.root, span, int(positions[0]), int(positions[-1]))
    start = span.start
    try:
        for batch in reader.read(plan.root, span, None, _BATCH_ROWS):
            low, high = np.searchsorted(positions, [start, start + batch.num_rows])
            if low < high:
                yield conform(chosen(batch, positions[low:high] - start), plan.schema)
            start += batch.num_rows
            if start > positions[-1]:
                return
    except StorageError:
        raise
    except READ_ERRORS as error:
        raise cannot_copy(span.file, start, error) from error
