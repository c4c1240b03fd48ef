"""Score table to keep rule: reductions as plain Ray tasks over score files.

Only small results travel: a task reads the needed columns of a few score files batch by batch,
and the driver merges as results arrive. Nothing is sorted, shuffled or collected.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from dataprune_ray import schema
from dataprune_ray.config import SelectConfig
from dataprune_ray.cutoff import Block, Column, KeepRule, empty_block
from dataprune_ray.errors import ConfigError
from dataprune_ray.io.filesystems import open_input
from dataprune_ray.io.scores import ScoreFiles, ScoreView, reduce_files
from dataprune_ray.strategies import ScoreInfo, compile_rule, get_strategy
from dataprune_ray.tasks import run_tasks, task_cpus, unordered

S = TypeVar("S")

logger = logging.getLogger("dataprune")

#: A task reads at most this many files, so that a lost one costs little.
_MOST_FILES = 64


@dataclass(frozen=True)
class ScoreTable(ScoreFiles):
    """The scored rows of a score table, as a population reduced by tasks of a few files each."""

    def reduce(
        self,
        kernel: Callable[[Block], S],
        merge: Callable[[S, S], S],
        columns: frozenset[Column],
    ) -> S:
        """Map ``kernel`` over all blocks in Ray tasks and merge what they return.

        Raises:
            ConfigError: a score file lacks a column that is asked for.
            BadDataError: a row without error has no finite score, or a label without a group.
        """
        if not self.paths:
            return kernel(empty_block(columns))
        cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
        size = files_per_task(len(self.paths), cpus)
        batches = (self.paths[i : i + size] for i in range(0, len(self.paths), size))
        view = ray.put(self.view(columns))
        work = ray.put((kernel, merge))
        task = _reduce_task.options(num_cpus=task_cpus())
        results = unordered(
            (task.remote(list(batch), view, work) for batch in batches),
            limit=4 * cpus,
        )
        merged: S = next(results)
        for result in results:
            merged = merge(merged, result)
        return merged


def files_per_task(files: int, cpus: int) -> int:
    """Score files of one task: few enough that every CPU has several tasks."""
    return max(1, min(_MOST_FILES, -(-files // (4 * cpus))))


#: Groups that quotas are counted for, at most.
MOST_GROUPS = 10_000


def distinct_groups(paths: Sequence[str]) -> tuple[str, ...]:
    """The values of the group column of all scored rows, in order.

    Raises:
        ConfigError: there are more than `MOST_GROUPS`.
    """
    chunks = [paths[i : i + _MOST_FILES] for i in range(0, len(paths), _MOST_FILES)]
    found: set[str] = set()
    for values in run_tasks(_groups_of, chunks):
        found |= values
        if len(found) > MOST_GROUPS:
            raise ConfigError(
                "group_column",
                f"{len(found):,} values and more",
                f"quotas are counted for {MOST_GROUPS:,} at most; name a coarser column",
            )
    return tuple(sorted(found))


def _groups_of(paths: Sequence[str]) -> set[str]:
    """The groups of the scored rows of some files; a few more than `MOST_GROUPS` at most."""
    found: set[str] = set()
    for path in paths:
        with open_input(path) as file:
            parquet = pq.ParquetFile(file)
            for batch in parquet.iter_batches(columns=[schema.GROUP, schema.ERROR]):
                right = batch.filter(pc.is_null(batch.column(schema.ERROR)))
                found.update(right.column(schema.GROUP).unique().to_pylist())
                if len(found) > MOST_GROUPS:
                    return found
    return found


def _log(text: str) -> None:
    logger.warning("warning: %s", text)


def select(
    table: ScoreTable,
    config: SelectConfig,
    info: ScoreInfo,
    warn: Callable[[str], None] = _log,
) -> KeepRule:
    """Compile the configured strategy over the rows of a score table that are not screened out.

    Args:
        table: all scored rows.
        config: its shares of noise are known.
        info: the deciding metric, and the one that tells noise.
        warn: told where fewer rows than asked are cut or kept.

    Raises:
        ConfigError: no such strategy, or it does not fit the metric or the scores.
        BadDataError: the scores cannot be cut exactly.
    """
    found = compile_rule(get_strategy(config.strategy), table, config, info)
    for text in found.warnings:
        warn(text)
    return found.rule


def _reduce_files(
    paths: list[str],
    view: ScoreView,
    work: tuple[Callable[[Block], S], Callable[[S, S], S]],
) -> S:
    """The body of one task: kernel and merge over the blocks of a few files."""
    pa.set_cpu_count(1)
    return reduce_files(paths, view, *work)


_reduce_task = ray.remote(scheduling_strategy="SPREAD", retry_exceptions=[OSError])(_reduce_files)
