"""Exact percentiles and ranks of a few rows, by one pass over the score files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataprune_ray import schema
from dataprune_ray.cutoff import Block, End, seeded_hash
from dataprune_ray.explaining.locating import Located
from dataprune_ray.explaining.records import ScoreRank
from dataprune_ray.explaining.runs import FinishedRun, in_shares
from dataprune_ray.io.filesystems import open_input

_BATCH_ROWS = 1 << 16
#: What is counted before the pairs (below, equal) of each metric.
_ROWS, _HASH_BEFORE, _TIES_BEFORE, _METRICS = range(4)
#: Scopes of the counts: all rows and the row's class, then all that screens leave and the group.
_LEFT = 2


@dataclass(frozen=True, eq=False)
class Counts:
    """Where a row stands among the scored rows.

    ``table`` int64 (4, 3 + 2 M): of all rows, of those of the row's class (zeros without classes),
    then of those that no screen drops all and those of the row's group, how many there are, how
    many have a lower hash, how many an equal deciding score and a lower hash; then for each of
    the M metrics how many score below it and how many the same.
    """

    metrics: tuple[str, ...]
    table: npt.NDArray[np.int64]

    @property
    def scored(self) -> int:
        """How many rows have scores."""
        return int(self.table[0, _ROWS])

    @property
    def left(self) -> int:
        """How many of them no screen drops."""
        return int(self.table[_LEFT, _ROWS])

    def rows(self, *, in_class: bool) -> int:
        """How many rows the strategy ranks."""
        return int(self.table[_LEFT + in_class, _ROWS])

    def hash_rank(self, *, in_class: bool) -> int:
        """Place by ascending seeded hash among the rows that the strategy ranks, 1 first."""
        return 1 + int(self.table[_LEFT + in_class, _HASH_BEFORE])

    def score_rank(self, end: End, *, in_class: bool, ties: bool = True) -> int:
        """Place by deciding score from ``end``, 1 first; ties by hash, or the first of them.

        Among the rows that the strategy ranks.
        """
        rows, _, before, below, equal = map(int, self.table[_LEFT + in_class, :5])
        better = below if end == "low" else rows - below - equal
        return 1 + better + (before if ties else 0)

    def place(self, metric: str, end: End) -> tuple[int, int]:
        """Place by any metric from ``end``, 1 for all that tie first, and how many rows have it."""
        at = _METRICS + 2 * self.metrics.index(metric)
        rows, below, equal = (int(self.table[0, column]) for column in (_ROWS, at, at + 1))
        return 1 + (below if end == "low" else rows - below - equal), rows

    def of(self, metric: str, score: float) -> ScoreRank:
        """The row's percentiles by a metric."""
        whole, own = (self._percentile(scope, metric) for scope in self.table[:_LEFT])
        if whole is None:
            raise ValueError("a scored row is counted at least once")
        return ScoreRank(metric, score, whole, own)

    def _percentile(self, counts: npt.NDArray[np.int64], metric: str) -> float | None:
        at = _METRICS + 2 * self.metrics.index(metric)
        rows, below, equal = int(counts[_ROWS]), int(counts[at]), int(counts[at + 1])
        return 100 * (below + equal / 2) / rows if rows else None


def count(run: FinishedRun, rows: Sequence[Located]) -> list[Counts]:
    """Count for each row, none of them with an error, how the others stand to it."""
    if not rows:
        return []
    names = [fragment.name for fragment in run.fragments]
    tables = in_shares(partial(_count_files, run, rows), names)
    return [Counts(run.metrics, table) for table in np.sum(tables, axis=0)]


def _count_files(
    run: FinishedRun, rows: Sequence[Located], names: Sequence[str]
) -> npt.NDArray[np.int64]:
    """Counts (rows, 4, 3 + 2 M) over some score files."""
    total = np.zeros((len(rows), 2 * _LEFT, _METRICS + 2 * len(run.metrics)), np.int64)
    for name in names:
        for batch in _good_rows(run, name):
            hashes = batch.column(schema.ROW_HASH).to_numpy(zero_copy_only=False)
            seeded = seeded_hash(hashes, run.config.select.seed)
            scores = [batch.column(m).to_numpy(zero_copy_only=False) for m in run.metrics]
            others = dict(zip(run.metrics, scores, strict=True))
            left = ~run.rule.screened(Block(scores[0], seeded, others=others))
            for position, row in enumerate(rows):
                scopes = _scopes(run, row, batch, left)
                total[position] += _stand(run, row, seeded, scores, scopes)
    return total


def _good_rows(run: FinishedRun, name: str) -> Iterator[pa.RecordBatch]:
    columns = [schema.LABEL, schema.ROW_HASH, schema.ERROR, *run.metrics]
    columns += [] if run.group_column in (None, schema.LABEL) else [schema.GROUP]
    with open_input(run.score_file(name)) as source, pq.ParquetFile(source) as file:
        for batch in file.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False):
            yield batch.filter(pc.is_null(batch.column(schema.ERROR)))


def _stand(
    run: FinishedRun,
    row: Located,
    hashes: npt.NDArray[np.uint64],
    scores: list[npt.NDArray[np.float32]],
    scopes: npt.NDArray[np.bool_],
) -> npt.NDArray[np.int64]:
    """How one batch stands to one row, in each of the scopes (4, n): (4, 3 + 2 M)."""
    earlier = hashes < row.one().need_hashes()[0]
    own = [np.float32(row.scores[name]) for name in run.metrics]
    tests = [np.ones(len(hashes), np.bool_), earlier, earlier & (scores[0] == own[0])]
    for values, score in zip(scores, own, strict=True):
        tests += [values < score, values == score]
    stacked = np.stack(tests)  # (3 + 2 M, n)
    return np.stack([stacked[:, scope].sum(axis=1) for scope in scopes])


def _scopes(
    run: FinishedRun, row: Located, batch: pa.RecordBatch, left: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Which rows of a batch belong to each scope of a row, of which some are ``left``: (4, n)."""
    nothing = np.zeros(batch.num_rows, np.bool_)
    own = _equal(batch.column(schema.LABEL), row.raw_label) if run.classed else nothing
    group = nothing
    if run.group_column is not None:
        value = row.raw_label if run.group_column == schema.LABEL else row.group
        group = _equal(batch.column(run.group_column), value)
    return np.stack([~nothing, own, left, group & left])


def _equal(values: pa.Array, value: Any) -> npt.NDArray[np.bool_]:
    same = pc.equal(values, pa.scalar(value, values.type)).fill_null(False)
    return np.asarray(same.to_numpy(zero_copy_only=False))
