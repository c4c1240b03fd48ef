"""Score table to keep rule: reductions as plain Ray tasks over score files.

Only small results travel: a task reads the needed columns of a few score files batch by batch,
and the driver merges as results arrive. Nothing is sorted, shuffled or collected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray

from dataprune_ray import schema
from dataprune_ray.config import SelectConfig
from dataprune_ray.cutoff import Block, Column, KeepRule, empty_block, seeded_hash
from dataprune_ray.cutoff.population import UNGROUPED
from dataprune_ray.errors import BadDataError, ConfigError
from dataprune_ray.io.filesystems import redact, resolve
from dataprune_ray.io.scores import group_codes
from dataprune_ray.strategies import ScoreInfo, get_strategy
from dataprune_ray.tasks import TASK_CPUS, unordered

S = TypeVar("S")

#: Rows per block: a few megabytes, and enough to pay for the largest histogram.
_BATCH_ROWS = 1 << 18
#: A task reads at most this many files, so that a lost one costs little.
_MOST_FILES = 64


@dataclass(frozen=True)
class ScoreTable:
    """The scored rows of a score table, as a population.

    Rows whose ``error`` is set are not part of it.

    Attributes:
        paths: score files, as paths or URIs; read in parallel, a few to a task.
        metric: score column; only read where a kernel asks for scores.
        group_column: label column that groups the rows, int64 or string; None: one group.
        groups: group names by code, the labels as strings; ``("",)`` without a group column.
        seed: mixed into the identity hashes.
    """

    paths: Sequence[str]
    metric: str
    group_column: str | None = None
    groups: tuple[str, ...] = UNGROUPED
    seed: int = 0

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
        view = ray.put(_View(self.metric, self.group_column, self.groups, self.seed, columns))
        work = ray.put((kernel, merge))
        results = unordered(
            (_reduce_task.remote(list(batch), view, work) for batch in batches),
            in_flight=4 * cpus,
        )
        merged: S = next(results)
        for result in results:
            merged = merge(merged, result)
        return merged


def select(table: ScoreTable, config: SelectConfig, info: ScoreInfo) -> KeepRule:
    """Compile the configured strategy over a score table.

    Raises:
        ConfigError: no such strategy, or it does not fit the metric or the scores.
        BadDataError: the scores cannot be cut exactly.
    """
    return get_strategy(config.strategy).compile(table, config, info)


@dataclass(frozen=True)
class _View:
    """How score files are read as blocks."""

    metric: str
    group_column: str | None
    groups: tuple[str, ...]
    seed: int
    columns: frozenset[Column]

    def names(self) -> list[str]:
        """Columns of the file that the blocks are made of."""
        names = [schema.ERROR]
        if "scores" in self.columns:
            names.append(self.metric)
        if "hashes" in self.columns:
            names.append(schema.ROW_HASH)
        if "groups" in self.columns and self.group_column is not None:
            names.append(self.group_column)
        return names


def _reduce_files(
    paths: list[str],
    view: _View,
    work: tuple[Callable[[Block], S], Callable[[S, S], S]],
) -> S:
    """The body of one task: kernel and merge over the blocks of a few files."""
    pa.set_cpu_count(1)
    kernel, merge = work
    codes = {name: code for code, name in enumerate(view.groups)}
    blocks = (block for path in paths for block in _read_blocks(path, view, codes))
    first = next(blocks, None)
    merged = kernel(empty_block(view.columns) if first is None else first)
    for block in blocks:
        merged = merge(merged, kernel(block))
    return merged


_reduce_task = ray.remote(
    num_cpus=TASK_CPUS, scheduling_strategy="SPREAD", retry_exceptions=[OSError]
)(_reduce_files)


def _read_blocks(path: str, view: _View, codes: Mapping[str, int]) -> Iterator[Block]:
    """The rows of one score file that have no error, block by block."""
    filesystem, inner = resolve(path)
    names = view.names()
    with filesystem.open_input_file(inner) as source, pq.ParquetFile(source) as file:
        present = file.schema_arrow.names
        for name in names:
            if name not in present:
                found = ", ".join(present)
                raise ConfigError("scores", redact(path), f"has no column {name!r}; has: {found}")
        if len(names) > 1 and _no_errors(file.metadata, present.index(schema.ERROR)):
            names.remove(schema.ERROR)  # reading it would cost as much as the scores
        for batch in file.iter_batches(_BATCH_ROWS, columns=names, use_threads=False):
            if schema.ERROR in names:
                batch = batch.filter(pc.is_null(batch.column(schema.ERROR)))  # noqa: PLW2901
            yield _block(batch, view, codes, path)


def _no_errors(metadata: Any, column: int) -> bool:
    """Whether the footer proves that the ``error`` column, at this position, holds nothing."""
    for group in range(metadata.num_row_groups):
        chunk = metadata.row_group(group).column(column)
        if chunk.path_in_schema != schema.ERROR:
            return False  # nested columns before it have moved it
        statistics = chunk.statistics
        if statistics is None or not statistics.has_null_count:
            return False
        if statistics.null_count < metadata.row_group(group).num_rows:
            return False
    return True


def _block(batch: Any, view: _View, codes: Mapping[str, int], path: str) -> Block:
    """A record batch of rows without error as a block."""
    scores = hashes = groups = None
    if "scores" in view.columns:
        scores = _scores(batch.column(view.metric), view.metric, path)
    if "hashes" in view.columns:
        identity = batch.column(schema.ROW_HASH).to_numpy(zero_copy_only=False)
        hashes = seeded_hash(identity, view.seed)
    if "groups" in view.columns and view.group_column is not None:
        groups = group_codes(batch.column(view.group_column), codes, path)
    elif "groups" in view.columns:
        groups = np.zeros(batch.num_rows, np.int32)
    return Block(scores, hashes, groups, batch.num_rows)


def _scores(column: Any, metric: str, path: str) -> NDArray[np.float32]:
    """Scores (n,) of rows without error.

    Raises:
        BadDataError: a score is missing, NaN or infinite.
    """
    scores: NDArray[np.float32] = column.to_numpy(zero_copy_only=False)
    bad = len(scores) - int(np.count_nonzero(np.isfinite(scores)))
    if bad:
        raise BadDataError(
            f"{redact(path)}: {bad} rows have no finite {metric} and no error; "
            "the score table is damaged, score the corpus again"
        )
    return scores
