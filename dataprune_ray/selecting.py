"""Score table to keep rule: reductions as plain Ray tasks over score files.

Only small results travel: a task reads the needed columns of a few score files batch by batch,
and the driver merges as results arrive. Nothing is sorted, shuffled or collected.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa
import ray

from dataprune_ray.config import SelectConfig
from dataprune_ray.cutoff import Block, Column, KeepRule, empty_block
from dataprune_ray.io.scores import ScoreFiles, ScoreView, reduce_files
from dataprune_ray.strategies import ScoreInfo, compile_rule, get_strategy
from dataprune_ray.tasks import TASK_CPUS, unordered

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
        size = min(_MOST_FILES, -(-len(self.paths) // (4 * cpus)))
        batches = (self.paths[i : i + size] for i in range(0, len(self.paths), size))
        view = ray.put(self.view(columns))
        work = ray.put((kernel, merge))
        results = unordered(
            (_reduce_task.remote(list(batch), view, work) for batch in batches),
            in_flight=4 * cpus,
        )
        merged: S = next(results)
        for result in results:
            merged = merge(merged, result)
        return merged


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


_reduce_task = ray.remote(
    num_cpus=TASK_CPUS, scheduling_strategy="SPREAD", retry_exceptions=[OSError]
)(_reduce_files)
