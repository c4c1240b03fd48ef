"""Second stage of metrics that need the whole corpus: reductions over score files, then values.

It runs without the model, over columns that scoring has stored. Reductions are exact, so the
result does not depend on how the corpus is cut.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataprune_ray import schema
from dataprune_ray.engine import score_column
from dataprune_ray.errors import BadDataError
from dataprune_ray.io.filesystems import (
    atomic_output,
    exists,
    join,
    open_input,
    read_bytes,
    remove_file,
    write_bytes,
)
from dataprune_ray.io.leftovers import remove_other_fragments
from dataprune_ray.io.scores import group_codes
from dataprune_ray.metrics import METRICS, ClusterFit, CorpusFit, Extent, Step
from dataprune_ray.placing import digest_rows, load_space, vector_rows
from dataprune_ray.plans import ScorePlan
from dataprune_ray.shuffling import compare_clusters, compared, remove_scratch
from dataprune_ray.space import later_copies
from dataprune_ray.tasks import run_tasks

#: What second stages found over the whole corpus.
FIT_FILE = "_fit.json"  # hidden from Parquet readers by its name
_BUCKETS = "shuffle_buckets"


def finish(plan: ScorePlan) -> None:
    """Replace temporary columns by the metrics that need the whole corpus.

    What the reductions find is committed first, so that a run that was cut off half way through
    the files finishes the rest with the same numbers.
    """
    if not plan.fitted:
        return
    paths = [plan.path(fragment) for fragment in plan.rows.fragments]
    work = Work.of(plan)
    files = list(enumerate(paths))
    saved = join(plan.folder, FIT_FILE)
    if exists(saved):
        work = replace(work, found=from_json(json.loads(read_bytes(saved))))
    else:
        work = _shuffled(_reduced(work, paths), paths)
        write_bytes(saved, json.dumps(to_json(work.found)).encode())
    for _ in run_tasks(partial(_complete, work), files):
        pass
    remove_scratch(plan.folder)


def forget(plan: ScorePlan) -> bool:
    """Undo a second stage over a corpus of which some rows were not there yet.

    Whether there was one; the score files that it finished are removed with it, the findings
    last: cut off half way, this is begun again.
    """
    saved = join(plan.folder, FIT_FILE)
    if not plan.fitted or not exists(saved):
        return False
    remove_other_fragments(plan.folder, ())
    remove_file(plan.space_path)
    remove_scratch(plan.folder)
    remove_file(saved)
    return True


def fitted_in_memory(plan: ScorePlan, table: pa.Table) -> pa.Table:
    """A small score table with its temporary columns replaced by the metrics made from them."""
    if not plan.fitted:
        return table
    work = Work.of(plan)
    good, columns = work.columns(table, shuffled=True)
    for steps in work.rounds():
        found = {s.name: s.value(s.kernel(columns, work.found, work.extent)) for s in steps}
        work = replace(work, found={**work.found, **found})
    copies = np.zeros(int(good.sum()), np.bool_)
    if schema.DIGEST in columns:
        copies = later_copies(columns[schema.DIGEST], columns[schema.ROW_HASH])
    shuffled = {
        name: fit.over(columns, copies, plan.options).values for name, fit in work.shuffled.items()
    }
    return work.complete(table, good, columns, shuffled).select(work.layout.names).cast(work.layout)


def to_json(found: dict[str, npt.NDArray[Any]]) -> dict[str, Any]:
    """Findings of float64 and int64, without loss: floats are written as Python reads them."""
    return {
        name: {"dtype": str(v.dtype), "shape": list(v.shape), "values": v.ravel().tolist()}
        for name, v in found.items()
    }


def from_json(content: dict[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """What `to_json` described."""
    return {
        name: np.array(entry["values"], entry["dtype"]).reshape(entry["shape"])
        for name, entry in content.items()
    }


@dataclass(frozen=True)
class Work:
    """The second stages of a plan, and what their steps have found so far.

    ``fits`` go over the score files one by one, ``shuffled`` ones over clusters of all rows.
    """

    plan: ScorePlan
    fits: dict[str, CorpusFit]
    shuffled: dict[str, ClusterFit]
    extent: Extent
    found: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: ScorePlan) -> Work:
        """Before the first step, without the fragments."""
        stages = {name: METRICS[name].fit for name in plan.fitted}
        label = plan.model.label
        space = load_space(plan.space_path) if plan.placed else None
        clusters = 0 if space is None else space.clusters
        extent = Extent(outputs=label.outputs, classes=len(label.classes), clusters=clusters)
        return cls(
            replace(plan, rows=replace(plan.rows, fragments=())),
            {name: fit for name, fit in stages.items() if isinstance(fit, CorpusFit)},
            {name: fit for name, fit in stages.items() if isinstance(fit, ClusterFit)},
            extent,
        )

    @property
    def layout(self) -> pa.Schema:
        """Schema of a finished score file."""
        return self.plan.finished

    def reads(self, *, shuffled: bool = False) -> list[str]:
        """Columns that second stages read file by file, or all of them."""
        fits = [*self.fits.values(), *(self.shuffled.values() if shuffled else ())]
        return list(dict.fromkeys(name for fit in fits for name in fit.columns))

    def rounds(self) -> Iterator[list[Step]]:
        """The first steps of all second stages, then the second ones, each name once."""
        deepest = max((len(fit.steps) for fit in self.fits.values()), default=0)
        for depth in range(deepest):
            steps = [fit.steps[depth] for fit in self.fits.values() if depth < len(fit.steps)]
            yield list({step.name: step for step in steps}.values())

    def columns(
        self, table: pa.Table, *, shuffled: bool = False
    ) -> tuple[npt.NDArray[np.bool_], dict[str, Any]]:
        """Which rows (n,) have no error, and the columns that are read, of those (m, …)."""
        good = np.asarray(pc.is_null(table[schema.ERROR]))
        rows = table.filter(pa.array(good)) if not good.all() else table
        codes = {name: code for code, name in enumerate(self.plan.rows.label.classes)}
        found: dict[str, Any] = {}
        for name in self.reads(shuffled=shuffled):
            values = rows[name].combine_chunks()
            if name == schema.LABEL and self.plan.rows.label.task == "classification":
                found[name] = group_codes(values, codes, self.plan.folder)
            elif name == schema.VECTOR:
                found[name] = vector_rows(values)
            elif name == schema.DIGEST:
                found[name] = digest_rows(values)
            elif pa.types.is_fixed_size_list(values.type):
                flat = values.flatten().to_numpy(zero_copy_only=False)
                found[name] = flat.reshape(len(values), values.type.list_size)
            else:
                found[name] = values.to_numpy(zero_copy_only=False)
        return good, found

    def complete(
        self,
        table: pa.Table,
        good: npt.NDArray[np.bool_],
        columns: dict[str, Any],
        shuffled: Mapping[str, npt.NDArray[Any]],
    ) -> pa.Table:
        """The table with the metrics appended, of which ``shuffled`` ones are given (m,).

        Raises:
            BadDataError: a value is not finite.
        """
        options = self.plan.options
        own = {name: fit.values(columns, self.found, options) for name, fit in self.fits.items()}
        for name, given in (*own.items(), *shuffled.items()):
            values = given.astype(np.float32)
            if not np.isfinite(values).all():
                raise BadDataError(f"{name} is not finite for a row whose columns are")
            column = score_column(values, np.flatnonzero(good), ~good, len(good))
            table = table.append_column(name, column)
        return table


def _reduced(work: Work, paths: list[str]) -> Work:
    """With what all steps find in these files."""
    for steps in work.rounds():
        empty = work.columns(work.plan.layout.empty_table())[1]
        totals = {step.name: step.kernel(empty, work.found, work.extent) for step in steps}
        for part in run_tasks(partial(_reduce_file, work, steps), paths):
            for step in steps:
                totals[step.name] = step.merge(totals[step.name], part[step.name])
        found = {step.name: np.asarray(step.value(totals[step.name])) for step in steps}
        work = replace(work, found={**work.found, **found})
    return work


def _reduce_file(work: Work, steps: list[Step], path: str) -> dict[str, Any]:
    names = list(dict.fromkeys([schema.ERROR, *work.reads()]))
    totals: dict[str, Any] = {}
    with open_input(path) as file:
        for table in _row_groups(file, names):
            _, columns = work.columns(table)
            for step in steps:
                part = step.kernel(columns, work.found, work.extent)
                name = step.name
                totals[name] = step.merge(totals[name], part) if name in totals else part
    if not totals:
        empty = work.columns(work.plan.layout.empty_table())[1]
        totals = {step.name: step.kernel(empty, work.found, work.extent) for step in steps}
    return totals


def _row_groups(file: Any, columns: list[str] | None = None) -> Iterator[pa.Table]:
    parquet = pq.ParquetFile(file)
    for group in range(parquet.num_row_groups):
        yield parquet.read_row_group(group, columns=columns, use_threads=False)


def _shuffled(work: Work, paths: list[str]) -> Work:
    """With how many buckets hold what was found by a shuffle, where a metric asks for one."""
    if not work.shuffled:
        return work
    space = load_space(work.plan.space_path)
    assert space is not None  # noqa: S101 - rows have been placed in it
    clusters, width = space.spheres
    plan, metrics = work.plan, tuple(work.shuffled)
    buckets = compare_clusters(plan.folder, paths, metrics, plan.options, clusters, width)
    return replace(work, found={**work.found, _BUCKETS: np.array(buckets)})


def _complete(work: Work, item: tuple[int, str]) -> None:
    """Rewrite a score file with its fitted metrics instead of its temporary columns, once."""
    number, path = item
    layout = work.layout
    with open_input(path) as file:
        footer = pq.read_metadata(file)
    stored = footer.schema.to_arrow_schema().names
    if set(layout.names) <= set(stored):  # finished, perhaps with formulas since
        return
    names = [name for name in stored if name in layout.names or name in work.reads()]
    buckets, rows = int(work.found.get(_BUCKETS, 0)), footer.num_rows
    found = compared(work.plan.folder, buckets, tuple(work.shuffled), number, rows)
    start = 0
    with (
        open_input(path) as file,
        atomic_output(path) as stream,
        pq.ParquetWriter(stream, layout, use_dictionary=list(schema.REPEATED)) as writer,
    ):
        note = pq.ParquetFile(file).metadata.metadata[schema.NOTE].decode()
        for table in _row_groups(file, names):
            good, columns = work.columns(table)
            end = start + table.num_rows
            own = {name: values[start:end][good] for name, values in found.items()}
            start = end
            finished = work.complete(table, good, columns, own)
            writer.write_table(finished.select(layout.names).cast(layout))
        writer.add_key_value_metadata({schema.NOTE.decode(): note})
