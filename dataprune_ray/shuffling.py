"""The shuffle by cluster in which rows are compared, in files beside the scores.

Vectors that scoring has stored are dealt to buckets of clusters. Where a metric leaves exact copies
out, digests are dealt to buckets of their own, and a task for each of them finds the copies. Then a
task per cluster bucket computes all metrics that compare rows of a cluster (`ClusterFit`); what it
finds is joined back by file and position. A task holds one bucket, some `_BUCKET_BYTES`, unless a
single cluster is larger, and what a metric needs for one cluster. Everything is made of committed
score files, so that an attempt that was cut off is begun again; the files are removed at the end.
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
from dataprune_ray.metrics import METRICS, ClusterFit, MetricOptions
from dataprune_ray.placing import digest_rows, vector_rows
from dataprune_ray.space import later_copies
from dataprune_ray.tasks import run_tasks

logger = logging.getLogger("dataprune")

_BUCKET_BYTES = 128 << 20
_SCRATCH = re.compile(r"_(near|exact|copies|found)-\d{5,}\.arrow")
_FILE, _POSITION, _BUCKET = "file", "position", "bucket"
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


@dataclass(frozen=True)
class Shuffle:
    """One shuffle: score files ``paths`` in ``folder``, ``clusters`` dealt to ``buckets``."""

    folder: str
    paths: tuple[str, ...]
    metrics: tuple[str, ...]
    options: MetricOptions
    clusters: int
    groups: int = 1
    buckets: int = 1

    @property
    def fits(self) -> dict[str, ClusterFit]:
        """What is computed, by metric."""
        fits = {name: METRICS[name].fit for name in self.metrics}
        return {name: fit for name, fit in fits.items() if isinstance(fit, ClusterFit)}

    @property
    def copies(self) -> bool:
        """Whether exact copies are told apart."""
        return any(fit.copies is not None for fit in self.fits.values())

    def path(self, kind: str, number: int) -> str:
        """A scratch file."""
        return _scratch(self.folder, kind, number)


def compare_clusters(
    folder: str,
    paths: Sequence[str],
    metrics: tuple[str, ...],
    options: MetricOptions,
    clusters: int,
    width: int,
) -> int:
    """Commit the metrics that compare rows of a cluster; how many buckets hold them.

    Args:
        folder: where the files lie, and scratch files go.
        paths: the score files, with the columns that the metrics read.
        metrics: names; the second stage of each is a `ClusterFit`.
        options: of the metrics.
        clusters: how many clusters there are.
        width: dimensions of the vectors.
    """
    rows = sum(run_tasks(_rows, paths))
    parts = max(1, math.ceil(rows * (4 * width + 64) / _BUCKET_BYTES))
    groups, buckets = min(parts, max(1, len(paths))), min(parts, clusters)
    work = Shuffle(folder, tuple(paths), metrics, options, clusters, groups, buckets)
    for _ in run_tasks(partial(_deal, work), range(groups)):
        pass
    if work.copies:
        copies = sum(run_tasks(partial(_find_copies, work), range(buckets)))
        logger.info("%s exact copies", f"{copies:,}")
    split = dict.fromkeys(metrics, 0)
    for found in run_tasks(partial(_compare, work), range(buckets)):
        split = {name: count + found[name] for name, count in split.items()}
    for name, count in split.items():
        logger.info("%s: %d clusters of %d were split", name, count, clusters)
    return buckets


def compared(
    folder: str, buckets: int, metrics: tuple[str, ...], file: int, rows: int
) -> dict[str, npt.NDArray[np.float32]]:
    """What was found of a score file, by its number among the files: (rows,), NaN of bad rows."""
    values = {name: np.full(rows, np.nan, np.float32) for name in metrics}
    for bucket in range(buckets):
        batch = _read(_scratch(folder, "found", bucket), file)
        for name, column in values.items():
            column[batch.column(_POSITION).to_numpy()] = batch.column(name).to_numpy()
    return values


def remove_scratch(folder: str) -> None:
    """Delete what a search leaves, finished or not."""
    for name in list_names(folder, ".arrow"):
        if _SCRATCH.fullmatch(name):
            remove_file(join(folder, name))


# Tasks -------------------------------------------------------------------------------------------


def _scratch(folder: str, kind: str, number: int) -> str:
    return join(folder, f"_{kind}-{number:05d}.arrow")


def _rows(path: str) -> int:
    with open_input(path) as file:
        return int(pq.read_metadata(file).num_rows)


def _deal(work: Shuffle, group: int) -> None:
    """Write the vectors and digests of some score files, one batch for each bucket."""
    size = math.ceil(len(work.paths) / work.groups)
    near: list[list[pa.RecordBatch]] = [[] for _ in range(work.buckets)]
    exact: list[list[pa.RecordBatch]] = [[] for _ in range(work.buckets)]
    for number in range(group * size, min((group + 1) * size, len(work.paths))):
        table = _stored(work.paths[number], number, copies=work.copies)
        bucket = table[schema.SPHERE].to_numpy().astype(np.int64) * work.buckets // work.clusters
        table = table.append_column(_BUCKET, pa.array(bucket, pa.int32()))
        for index in range(work.buckets):
            near[index] += _batches(table.filter(pa.array(bucket == index)), _NEAR)
        if not work.copies:
            continue
        key = digest_rows(table[schema.DIGEST].combine_chunks())[:, 0]
        for index in range(work.buckets):
            mine = pa.array(key % np.uint64(work.buckets) == np.uint64(index))
            exact[index] += _batches(table.filter(mine), _EXACT)
    _write(work.path("near", group), _NEAR, near)
    if work.copies:
        _write(work.path("exact", group), _EXACT, exact)


def _stored(path: str, number: int, *, copies: bool) -> pa.Table:
    """Good rows of a score file, with their place; with digests where copies are told apart."""
    names = [f.name for f in _NEAR if f.name not in (_FILE, _POSITION)]
    with open_input(path) as file:
        columns = [*names, *([schema.DIGEST] if copies else []), schema.ERROR]
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


def _compare(work: Shuffle, bucket: int) -> dict[str, int]:
    """Write the metrics of a bucket's rows, one batch for each score file.

    How many clusters were split for each metric.
    """
    table = _gathered([work.path("near", group) for group in range(work.groups)], bucket, _NEAR)
    copies = np.zeros(len(table), np.bool_)
    if work.copies:
        known = _gathered([work.path("copies", b) for b in range(work.buckets)], bucket, _COPIES)
        copies = np.isin(_places(table), _places(known))
    files, position = table[_FILE].to_numpy(), table[_POSITION].to_numpy()
    columns = {
        name: table[name].to_numpy()
        for name in (schema.ROW_HASH, schema.SPHERE, schema.SPHERE_SIMILARITY)
    }
    columns[schema.VECTOR] = vector_rows(table[schema.VECTOR].combine_chunks())
    found = {name: fit.over(columns, copies, work.options) for name, fit in work.fits.items()}
    layout = pa.schema([(_POSITION, pa.int32()), *((name, pa.float32()) for name in found)])
    order = np.argsort(files, kind="stable")
    bounds = np.searchsorted(files[order], np.arange(len(work.paths) + 1))
    parts = []
    for number in range(len(work.paths)):
        rows = order[bounds[number] : bounds[number + 1]]
        arrays = [position[rows], *(values.values[rows] for values in found.values())]
        parts.append([pa.RecordBatch.from_arrays([pa.array(a) for a in arrays], schema=layout)])
    _write(work.path("found", bucket), layout, parts)
    return {name: values.split for name, values in found.items()}


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
