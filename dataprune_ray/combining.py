"""Formulas of metrics as score columns: the last pass over score files, after all second stages.

What ``rank`` and ``zscore`` need is reduced over the whole table first, so a formula's values do
not depend on how the corpus is cut. Where a file lacks a formula, all files get it anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dataprune_ray import schema
from dataprune_ray.cutoff import (
    Block,
    MemoryPopulation,
    Population,
    derived,
    extremes,
    moments,
    ranks,
)
from dataprune_ray.cutoff.population import UNGROUPED
from dataprune_ray.engine import score_column
from dataprune_ray.errors import ConfigError
from dataprune_ray.io.filesystems import atomic_output, open_input
from dataprune_ray.metrics.expression import Expression, Scale
from dataprune_ray.plans import ScorePlan
from dataprune_ray.selecting import ScoreTable
from dataprune_ray.tasks import run_tasks

#: Scales by the text of the function call, such as ``rank(el2n)``.
Scales = Mapping[str, Scale]


def combine(plan: ScorePlan) -> None:
    """Add the plan's formulas to its score files, unless they are all there.

    Raises:
        ConfigError: a formula has no value for some row.
    """
    if not plan.expressions:
        return
    paths = [plan.path(fragment) for fragment in plan.rows.fragments]
    if all(run_tasks(partial(_has, plan.expressions), paths)):
        return
    metric = Expression(plan.expressions[0]).metrics[0]
    found = scales(plan.expressions, ScoreTable(paths, metric))
    for _ in run_tasks(partial(_add, plan.expressions, found), paths):
        pass


def combined_in_memory(plan: ScorePlan, table: pa.Table) -> pa.Table:
    """A small finished score table with the plan's formulas."""
    if not plan.expressions:
        return table
    right = table.filter(table[schema.ERROR].is_null())
    columns = {name: right[name].to_numpy() for name in plan.metrics}
    block = Block(columns[plan.metrics[0]], others=columns)
    found = scales(plan.expressions, MemoryPopulation([block]))
    return _with(plan.expressions, found, table)


def scales(texts: Sequence[str], population: Population) -> Scales:
    """What the functions of formulas find over a population with the metrics as columns.

    Raises:
        ConfigError: an argument is not finite, or one of ``log`` is not positive.
    """
    found: dict[str, Scale] = {}
    for text in texts:
        for name, argument in Expression(text).stages():
            whole = f"{name}({argument})"
            if whole in found:
                continue
            inner = Expression(argument)
            values = derived(population, UNGROUPED, _Values(inner, found), frozenset(inner.metrics))
            if name == "log":
                _check_positive(values, argument)
            else:
                found[whole] = ranks(values) if name == "rank" else moments(values)
    return found


def _check_positive(values: Population, argument: str) -> None:
    bounds = extremes(values)
    if bounds is not None and bounds[0] <= 0:
        raise ConfigError(
            "metric",
            f"log({argument})",
            f"the smallest {argument} is {bounds[0]:.6g}; a logarithm needs values above 0",
        )


@dataclass(frozen=True)
class _Values:
    """A block with a formula's values as its scores."""

    expression: Expression
    found: Scales

    def __call__(self, block: Block) -> Block:
        values = self.expression.values(block.others, self.found, rows=block.rows)
        return Block(values, block.hashes, rows=block.rows)


def _has(texts: Sequence[str], path: str) -> bool:
    with open_input(path) as file:
        return set(texts) <= set(pq.read_schema(file).names)


def _with(texts: Sequence[str], found: Scales, table: pa.Table) -> pa.Table:
    """The table with a column of each formula, in place of one of that name."""
    good = np.asarray(table[schema.ERROR].combine_chunks().is_null())
    held = [name for name in table.column_names if name not in texts]
    right, result = table.filter(pa.array(good)), table.select(held)
    for text in texts:
        expression = Expression(text)
        columns: dict[str, NDArray[np.float32]] = {
            name: right[name].to_numpy() for name in expression.metrics
        }
        values = expression.values(columns, found, rows=len(right))
        column = score_column(values, np.flatnonzero(good), ~good, len(good))
        result = result.append_column(pa.field(text, pa.float32()), column)
    return result


def _add(texts: Sequence[str], found: Scales, path: str) -> None:
    """Rewrite a score file with the formulas."""
    with open_input(path) as file:
        parquet = pq.ParquetFile(file)
        note = parquet.metadata.metadata[schema.NOTE].decode()
        layout = _with(texts, found, parquet.schema_arrow.empty_table()).schema
        with (
            atomic_output(path) as stream,
            pq.ParquetWriter(stream, layout, use_dictionary=list(schema.REPEATED)) as writer,
        ):
            for group in range(parquet.num_row_groups):
                writer.write_table(_with(texts, found, parquet.read_row_group(group)).cast(layout))
            writer.add_key_value_metadata({schema.NOTE.decode(): note})
