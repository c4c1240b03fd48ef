"""The shuffle by cluster in which near duplicates are found, in files beside the scores.

Vectors that scoring has stored are dealt to buckets of clusters, digests to buckets of their own.
A task per digest bucket finds exact copies; then a task per cluster bucket compares the rest; what
it finds is joined back by file and position. A task holds one bucket, some `_BUCKET_BYTES`, unless
a single cluster is larger. Everything is made of committed score files, so that an attempt that was
cut off is begun again; the files are removed at the end.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataprune_ray import schema
from dataprune_ray.io.filesystems import (
    atomic_output,
    join,
    list_names,
    open_input,
    remove_file,
)
from dataprune_ray.placing import digest_rows, vector_rows
from dataprune_ray.space import later_copies, redundancy
from dataprune_ray.tasks import run_tasks

logger = logging.getLogger("dataprune")

_BUCKET_BYTES = 128 << 20
_SCRATCH = re.compile(r"_(near|exact|copies|found)-\d{5,}\.arrow")
_FILE, _POSITION, _BUCKET, _VALUE = "file", "position", "bucket", "value"
_PLACE = [(_FILE, pa.int32()), (_POSITION, pa.int32())]
_NEAR = pa.schema(
    [
        *_PLACE,
        (schema.ROW_HASH, pa.uint64()),
        (schema.SPHERE, pa.int32()),
        (schema.SPHERE_SIMILARITY, pa.float32()),
        (schema.VECTOR, schema.PLACED[schema.VECTOR]),
    ]
)
_EXACT = pa.schema(
    [
        *_PLACE,
        (schema.ROW_HASH, pa.uint64()),
        (schema.DIGEST, schema.PLACED[schema.DIGEST]),
        (_BUCKET, pa.int32()),
    ]
)
_COPIES = pa.schema(_PLACE)
_FOUND = pa.schema([(_POSITION, pa.int32()), (_VALUE, pa.float32())])


@dataclass(frozen=True)
class Shuffle:
    """One search: score files ``paths`` in ``folder``, ``clusters`` dealt to ``buckets``."""

    folder: str
    paths: tuple[str, ...]
    clusters: int
    epsilon: float
    groups: int = 1
    buckets: int = 1

    def path(self, kind: str, number: int) -> str:
        """A scratch file."""
        return join(self.folder, f"_{kind}-{number:05d}.arrow")


def find_redundant(
    folder: str, paths: Sequence[str], clusters: int, width: int, epsilon: float
) -> int:
    """Commit the redundancy of all rows of score files; how many buckets hold it.

    Args:
        folder: where the files lie, and scratch files go.
        paths: the score files, with `schema.VECTOR` and what belongs to it.
        clusters: how many clusters there are.
        width: dimensions of the vectors.
        epsilon: of `space.redundancy`.
    """
    rows = sum(run_tasks(_rows, paths))
    parts = max(1, math.ceil(rows * (4 * width + 64) / _BUCKET_BYTES))
    groups, buckets = min(parts, max(1, len(paths))), min(parts, clusters)
    work = Shuffle(folder, tuple(paths), clusters, epsilon, groups, buckets)
    for _ in run_tasks(partial(_deal, work), range(groups)):
        pass
    copies = sum(run_tasks(partial(_find_copies, work), range(buckets)))
    near = split = 0
    for found in run_tasks(partial(_compare, work), range(buckets)):
        near, split = near + found[0], split + found[1]
    logger.info(
        "%s exact copies, %s rows beyond cosine %g of another; %d clusters of %d were split",
        f"{copies:,}",
        f"{near:,}",
        1.0 - epsilon,
        split,
        clusters,
    )
    return buckets


def redundancy_of(folder: str, buckets: int, file: int, rows: int) -> npt.NDArray[np.float32]:
    """What was found of a score file, by its number among the files: (rows,), NaN of bad rows."""
    values = np.full(rows, np.nan, np.float32)
    work = Shuffle(folder, (), 1, 0.0)
    for bucket in range(buckets):
        batch = _read(work.path("found", bucket), file)
        values[batch.column(_POSITION).to_numpy()] = batch.column(_VALUE).to_numpy()
    return values


def remove_scratch(folder: str) -> None:
    """Delete what a search leaves, finished or not."""
    for name in list_names(folder, ".arrow"):
        if _SCRATCH.fullmatch(name):
            remove_file(join(folder, name))


# Tasks -------------------------------------------------------------------------------------------


def _rows(path: str) -> int:
    with open_input(path) as file:
        return int(pq.read_metadata(file).num_rows)


def _deal(work: Shuffle, group: int) -> None:
    """Write the vectors and digests of some score files, one batch for each bucket."""
    size = math.ceil(len(work.paths) / work.groups)
    near: list[list[pa.RecordBatch]] = [[] for _ in range(work.buckets)]
    exact: list[list[pa.RecordBatch]] = [[] for _ in range(work.buckets)]
    for number in range(group * size, min((group + 1) * size, len(work.paths))):
        table = _stored(work.paths[number], number)
        bucket = table[schema.SPHERE].to_numpy().astype(np.int64) * work.buckets // work.clusters
        table = table.append_column(_BUCKET, pa.array(bucket, pa.int32()))
        key = digest_rows(table[schema.DIGEST].combine_chunks())[:, 0]
        for index in range(work.buckets):
            near[index] += _batches(table.filter(pa.array(bucket == index)), _NEAR)
            mine = pa.array(key % np.uint64(work.buckets) == np.uint64(index))
            exact[index] += _batches(table.filter(mine), _EXACT)
    _write(work.path("near", group), _NEAR, near)
    _write(work.path("exact", group), _EXACT, exact)


def _stored(path: str, number: int) -> pa.Table:
    """Good rows of a score file, with their place."""
    names = [f.name for f in _NEAR if f.name not in (_FILE, _POSITION)]
    with open_input(path) as file:
        columns = [*names, schema.DIGEST, schema.ERROR]
        table = pq.read_table(file, columns=columns, use_threads=False)
    table = table.append_column(_POSITION, pa.array(np.arange(len(table)), pa.int32()))
    table = table.append_column(_FILE, pa.array(np.full(len(table), number), pa.int32()))
    return table.filter(pc.is_null(table[schema.ERROR]))


def _find_copies(work: Shuffle, bucket: int) -> int:
    """Write the places of exact copies, one batch for each bucket of clusters; how many."""
    table = _gathered([work.path("exact", group) for group in range(work.groups)], bucket, _EXACT)
    digests = digest_rows(table[schema.DIGEST].combine_chunks())
    found = table.filter(pa.array(later_copies(digests, table[schema.ROW_HASH].to_numpy())))
    target = found[_BUCKET].to_numpy()
    parts = [
        _batches(found.filter(pa.array(target == index)), _COPIES) for index in range(work.buckets)
    ]
    _write(work.path("copies", bucket), _COPIES, parts)
    return len(target)


def _compare(work: Shuffle, bucket: int) -> tuple[int, int]:
    """Write the redundancy of a bucket's rows, one batch for each score file.

    How many rows that are no copies lie beyond the limit, and how many clusters were split.
    """
    table = _gathered([work.path("near", group) for group in range(work.groups)], bucket, _NEAR)
    known = _gathered([work.path("copies", b) for b in range(work.buckets)], bucket, _COPIES)
    copies = np.isin(_places(table), _places(known))
    found = redundancy(
        vectors=vector_rows(table[schema.VECTOR].combine_chunks()),
        cluster=table[schema.SPHERE].to_numpy(),
        similarity=table[schema.SPHERE_SIMILARITY].to_numpy(),
        row_hash=table[schema.ROW_HASH].to_numpy(),
        copies=copies,
        epsilon=work.epsilon,
    )
    files, position = table[_FILE].to_numpy(), table[_POSITION].to_numpy()
    order = np.argsort(files, kind="stable")
    bounds = np.searchsorted(files[order], np.arange(len(work.paths) + 1))
    parts = []
    for number in range(len(work.paths)):
        rows = order[bounds[number] : bounds[number + 1]]
        arrays = [pa.array(position[rows]), pa.array(found.values[rows])]
        parts.append([pa.RecordBatch.from_arrays(arrays, schema=_FOUND)])
    _write(work.path("found", bucket), _FOUND, parts)
    beyond = found.values[~copies] > np.float32(1.0 - work.epsilon)
    return int(beyond.sum()), found.split


def _places(table: pa.Table) -> npt.NDArray[np.int64]:
    files = table[_FILE].to_numpy().astype(np.int64)
    return np.asarray((files << 32) | table[_POSITION].to_numpy())


# Files of one batch per bucket --------------------------------------------------------------------


def _batches(table: pa.Table, layout: pa.Schema) -> list[pa.RecordBatch]:
    return list(table.select(layout.names).cast(layout).to_batches())


def _write(path: str, layout: pa.Schema, parts: Iterable[list[pa.RecordBatch]]) -> None:
    with atomic_output(path) as stream, pa.ipc.new_file(stream, layout) as writer:
        for batches in parts:
            whole = pa.Table.from_batches(batches, layout).combine_chunks().to_batches()
            empty = pa.RecordBatch.from_pylist([], schema=layout)
            writer.write_batch(whole[0] if whole else empty)


def _read(path: str, number: int) -> pa.RecordBatch:
    with open_input(path) as file:
        return pa.ipc.open_file(file).get_batch(number)


def _gathered(paths: Iterable[str], number: int, layout: pa.Schema) -> pa.Table:
    return pa.Table.from_batches([_read(path, number) for path in paths], layout)
