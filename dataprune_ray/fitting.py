"""Second stage of metrics that need the whole corpus: statistics of stored outputs, then values.

It runs over score files, without the model. Statistics are exact sums and maxima, so the result
does not depend on how the corpus is cut.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dataprune_ray import schema
from dataprune_ray.cutoff import ExactSum
from dataprune_ray.engine import NOTE, ScorePlan, score_column
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
from dataprune_ray.metrics import METRICS
from dataprune_ray.tasks import run_tasks

_FIT_FILE = "_fit.json"  # hidden from Parquet readers by its name


def finish(plan: ScorePlan) -> None:
    """Replace stored outputs by the metrics that need the whole corpus.

    The corpus's statistics are committed first, so that a run that was cut off half way through
    the files finishes the rest with the same numbers.
    """
    if not plan.fitted:
        return
    paths = [plan.path(fragment) for fragment in plan.rows.fragments]
    saved = join(plan.folder, _FIT_FILE)
    if exists(saved):
        fit = Fit.from_json(json.loads(read_bytes(saved)))
    else:
        fit = _fit(plan, paths)
        write_bytes(saved, json.dumps(fit.to_json()).encode())
    for _ in run_tasks(partial(_complete, plan.metrics, fit), paths):
        pass


def forget(plan: ScorePlan) -> bool:
    """Undo a second stage over a corpus of which some rows were not there yet.

    Whether there was one; the score files that it finished are removed with it, the statistics
    last: cut off half way, this is begun again.
    """
    saved = join(plan.folder, _FIT_FILE)
    if not plan.fitted or not exists(saved):
        return False
    remove_other_fragments(plan.folder, ())
    remove_file(saved)
    return True


@dataclass(frozen=True)
class Fit:
    """Mean output float64 (C,) of the corpus, and the largest value of each fitted metric."""

    mean: npt.NDArray[np.float64]
    largest: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Lossless, as hexadecimal floats."""
        return {
            "mean": [value.hex() for value in self.mean.tolist()],
            "largest": {name: value.hex() for name, value in self.largest.items()},
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Fit:
        """What `to_json` described."""
        mean = np.array([float.fromhex(text) for text in value["mean"]])
        return cls(mean, {name: float.fromhex(text) for name, text in value["largest"].items()})


def _fit(plan: ScorePlan, paths: list[str]) -> Fit:
    total = ExactSum(plan.model.label.outputs)
    for part in run_tasks(partial(_sum_outputs, total.columns), paths):
        total.merge(part)
    mean = total.means() if total.count else np.zeros(total.columns)
    largest = dict.fromkeys(plan.fitted, 0.0)
    for found in run_tasks(partial(_largest, plan.fitted, mean), paths):
        largest = {name: max(value, found[name]) for name, value in largest.items()}
    return Fit(mean, largest)


def fitted_in_memory(plan: ScorePlan, table: pa.Table) -> pa.Table:
    """A small score table with its stored outputs replaced by the metrics made from them."""
    if not plan.fitted:
        return table
    good, outputs = _outputs_of(table)
    mean = ExactSum(plan.model.label.outputs).add(outputs).means() if len(outputs) else None
    largest = {}
    if mean is not None:
        for name in plan.fitted:
            largest[name] = float(_fitted_values(name, outputs, mean).max())
    fit = Fit(np.zeros(outputs.shape[1]) if mean is None else mean, largest)
    return _with_fitted(table, good, outputs, fit).drop_columns([schema.OUTPUTS])


def _output_rows(file: Any) -> Iterator[tuple[pa.Table, npt.NDArray[np.bool_], Any]]:
    """Row groups of a score file: the table, which rows have outputs, and those (m, C)."""
    parquet = pq.ParquetFile(file)
    for group in range(parquet.num_row_groups):
        table = parquet.read_row_group(group)
        yield table, *_outputs_of(table)


def _outputs_of(table: pa.Table) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
    stored = table[schema.OUTPUTS].combine_chunks()
    good = np.asarray(stored.is_valid())
    values = stored.flatten().to_numpy(zero_copy_only=False)
    return good, values.reshape(good.sum(), stored.type.list_size)


def _with_fitted(
    table: pa.Table, good: npt.NDArray[np.bool_], outputs: npt.NDArray[np.float32], fit: Fit
) -> pa.Table:
    for name, largest in fit.largest.items():
        values = _fitted_values(name, outputs, fit.mean) / (largest or 1.0)
        column = score_column(values.astype(np.float32), np.flatnonzero(good), ~good, len(good))
        table = table.append_column(name, column)
    return table


def _sum_outputs(columns: int, path: str) -> ExactSum:
    total = ExactSum(columns)
    with open_input(path) as file:
        for _, _, outputs in _output_rows(file):
            total.add(outputs)
    return total


def _largest(names: tuple[str, ...], mean: npt.NDArray[np.float64], path: str) -> dict[str, float]:
    largest = dict.fromkeys(names, 0.0)
    with open_input(path) as file:
        for _, _, outputs in _output_rows(file):
            for name in names:
                values = _fitted_values(name, outputs, mean)
                largest[name] = max(largest[name], float(values.max(initial=0.0)))
    return largest


def _fitted_values(
    name: str, outputs: npt.NDArray[np.float32], mean: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    fit = METRICS[name].fit
    if fit is None:
        raise ValueError(f"metric {name!r} has no second stage")
    return fit.score(outputs, mean)


def _complete(metrics: tuple[str, ...], fit: Fit, path: str) -> None:
    """Rewrite a score file with its fitted metrics instead of its outputs, once."""
    with open_input(path) as file:
        stored = pq.read_schema(file)
    if schema.OUTPUTS not in stored.names:
        return
    label = stored.field(schema.LABEL).type
    layout = schema.score_schema(label, metrics)
    with (
        open_input(path) as file,
        atomic_output(path) as stream,
        pq.ParquetWriter(stream, layout, use_dictionary=[schema.FILE, schema.ERROR]) as writer,
    ):
        note = pq.ParquetFile(file).metadata.metadata[NOTE].decode()
        for table, good, outputs in _output_rows(file):
            whole = _with_fitted(table, good, outputs, fit)
            writer.write_table(whole.select(layout.names).cast(layout))
        writer.add_key_value_metadata({NOTE.decode(): note})
