"""What a quality table says: label noise, outliers, coverage, as reductions over its files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dataprune_ray import schema
from dataprune_ray.io.filesystems import join, open_input
from dataprune_ray.io.judgements import Judged, distances
from dataprune_ray.io.scores import group_codes
from dataprune_ray.quality import Quality
from dataprune_ray.quality.noise import (
    ClassSums,
    calibrated,
    confident_joint,
    counted_class,
    share_of_noise,
    suspected,
)
from dataprune_ray.quality.outliers import Fences, fences
from dataprune_ray.quality.rescue import RESCUED, Rescue
from dataprune_ray.selecting import ScoreTable
from dataprune_ray.tasks import run_tasks

S = TypeVar("S")

_FILES_PER_TASK = 16
#: Shares are summed in units of this, so that sums do not depend on an order.
_UNIT = 2.0**-32


@dataclass(frozen=True)
class QualityTable:
    """The quality files of a run.

    Attributes:
        folder: where they lie.
        names: names of the fragments.
        classes: class labels by code; none for regression and unlabelled corpora.
        seed: of the row hashes.
        group_column: of the groups that have quotas.
    """

    folder: str
    names: tuple[str, ...]
    classes: tuple[str, ...]
    seed: int
    group_column: str = schema.LABEL

    @property
    def paths(self) -> list[str]:
        """The files, in fragment order."""
        return [join(self.folder, f"{name}.parquet") for name in self.names]


@dataclass(frozen=True, eq=False)
class Noise:
    """Label noise: its estimated share, the calibrated joint (C, C) and thresholds (C,)."""

    share: float
    joint: npt.NDArray[np.float64]
    thresholds: npt.NDArray[np.float64]


def noise(table: QualityTable) -> Noise | None:
    """Label noise by confident learning; None without classes."""
    if not table.classes:
        return None
    sums = _reduced(partial(_sums, table.classes), table.paths, ClassSums.merge)
    if sums is None:
        return None
    thresholds = sums.thresholds()
    joint = _reduced(partial(_joint, table.classes, thresholds), table.paths, _add)
    if joint is None:
        return None
    distribution = calibrated(joint, sums.rows)
    return Noise(share_of_noise(distribution), distribution, thresholds)


def noise_share(table: QualityTable) -> float | None:
    """Estimated share of wrong labels, 0 to 1; None without classes."""
    found = noise(table)
    return None if found is None else found.share


def distance_fences(table: QualityTable) -> Fences | None:
    """Fences of the neighbour distance; None where no row was judged."""
    return fences(ScoreTable(table.paths, schema.DISTANCE, seed=table.seed, where=Judged()))


def score_fences(table: QualityTable) -> Fences | None:
    """Fences of the deciding score over all scored rows; None where there are none."""
    return fences(ScoreTable(table.paths, schema.SCORE, seed=table.seed))


@dataclass(frozen=True, eq=False)
class Marks:
    """What turns a row's judgement into a mark: thresholds (C,) of the classes, and fences."""

    table: QualityTable
    noise: Noise | None
    distance: Fences | None
    score: Fences | None

    @classmethod
    def of(cls, table: QualityTable) -> Marks:
        """Of a whole quality table."""
        return cls(table, noise(table), distance_fences(table), score_fences(table))

    def scored_rows(self, name: str) -> pa.Table:
        """The rows of a fragment that have a score, in the order of its decisions."""
        with open_input(join(self.table.folder, f"{name}.parquet")) as file:
            rows = pq.read_table(file, use_threads=False)
        return rows.filter(rows[schema.ERROR].is_null())

    def suspected(self, rows: pa.Table) -> npt.NDArray[np.bool_]:
        """Which rows (n,) of `scored_rows` are probably mislabelled."""
        marked = np.zeros(rows.num_rows, np.bool_)
        if self.noise is not None:
            judged, given, classes, probabilities = _labelled(self.table.classes, rows)
            counted = counted_class(classes, probabilities, self.noise.thresholds)
            marked[judged] = suspected(given, counted)
        return marked

    def far(self, rows: pa.Table) -> npt.NDArray[np.bool_]:
        """Which rows (n,) lie beyond the upper fence of the neighbour distance."""
        if self.distance is None:
            return np.zeros(rows.num_rows, np.bool_)
        return np.asarray(distances(rows) > self.distance.high)

    def odd(self, rows: pa.Table) -> npt.NDArray[np.bool_]:
        """Which rows (n,) have a score beyond a fence."""
        if self.score is None:
            return np.zeros(rows.num_rows, np.bool_)
        return self.score.outside(rows[schema.SCORE].to_numpy())


@dataclass
class _Counts:
    """Mergeable counts of a summary; ``disagreement`` in units of 2**-32."""

    rows: int = 0
    disagreement: int = 0
    suspected: int = 0
    suspected_kept: int = 0
    odd_dropped: int = 0
    far_dropped: int = 0
    rescued: int = 0
    clusters: Counter[int] = field(default_factory=Counter)
    clusters_kept: Counter[int] = field(default_factory=Counter)

    def merge(self, other: _Counts) -> _Counts:
        """Both together, in this one."""
        for name in vars(other):
            value = getattr(other, name)
            if isinstance(value, Counter):
                getattr(self, name).update(value)
            else:
                setattr(self, name, getattr(self, name) + value)
        return self


def summarise(marks: Marks, decisions: str, rescue: Rescue | None, classes_lost: int) -> Quality:
    """What the quality table says of a cut.

    Args:
        marks: of the quality table.
        decisions: folder of the decisions.
        rescue: what was rescued, if anything; its count is held against the decisions.
        classes_lost: classes of which nothing is kept.

    Raises:
        ValueError: the decisions hold another number of rescued rows.
    """
    counts = _Counts()
    for found in run_tasks(partial(_count, marks, decisions), marks.table.names):
        counts.merge(found)
    if counts.rescued != (0 if rescue is None else rescue.rows):
        raise ValueError(f"{counts.rescued} rows were rescued, not what the rule says")
    labelled = bool(marks.table.classes and counts.rows)
    return Quality(
        rows=counts.rows,
        noise_share=None if marks.noise is None else marks.noise.share,
        neighbour_disagreement=counts.disagreement * _UNIT / counts.rows if labelled else None,
        suspected=counts.suspected,
        suspected_kept=counts.suspected_kept,
        dropped_score_outliers=counts.odd_dropped,
        dropped_density_outliers=counts.far_dropped,
        rescued=counts.rescued,
        clusters=tuple(
            (rows, counts.clusters_kept[cluster])
            for cluster, rows in sorted(counts.clusters.items(), key=lambda c: (-c[1], c[0]))
        ),
        empty_clusters=sum(not counts.clusters_kept[cluster] for cluster in counts.clusters),
        classes_lost=classes_lost,
    )


def _count(marks: Marks, decisions: str, name: str) -> _Counts:
    rows = marks.scored_rows(name)
    with open_input(join(decisions, f"{name}.parquet")) as file:
        made = pq.read_table(file, columns=[schema.KEPT, schema.REASON], use_threads=False)
    kept = made[schema.KEPT].to_numpy()
    wrong = marks.suspected(rows)
    judged = np.asarray(rows[schema.DISTANCE].is_valid())
    cluster = rows[schema.CLUSTER].fill_null(-1).to_numpy()
    agreement = rows[schema.AGREEMENT].drop_null().to_numpy().astype(np.float64)
    return _Counts(
        rows=int(judged.sum()),
        disagreement=int(np.rint((1.0 - agreement) / _UNIT).astype(np.int64).sum()),
        suspected=int(wrong.sum()),
        suspected_kept=int((wrong & kept).sum()),
        odd_dropped=int((marks.odd(rows) & ~kept).sum()),
        far_dropped=int((marks.far(rows) & ~kept).sum()),
        rescued=made[schema.REASON].to_pylist().count(RESCUED),
        clusters=Counter(cluster[judged].tolist()),
        clusters_kept=Counter(cluster[judged & kept].tolist()),
    )


# Reductions --------------------------------------------------------------------------------------


def _reduced(
    kernel: Callable[[str], S], paths: Sequence[str], merge: Callable[[S, S], S]
) -> S | None:
    """What a kernel gives of each file, merged; None where there are no files."""
    chunks = [paths[i : i + _FILES_PER_TASK] for i in range(0, len(paths), _FILES_PER_TASK)]
    merged: S | None = None
    for found in run_tasks(partial(_chunk, kernel, merge), chunks):
        merged = found if merged is None else merge(merged, found)
    return merged


def _chunk(kernel: Callable[[str], S], merge: Callable[[S, S], S], paths: Sequence[str]) -> S:
    merged = kernel(paths[0])
    for path in paths[1:]:
        merged = merge(merged, kernel(path))
    return merged


def _sums(classes: tuple[str, ...], path: str) -> ClassSums:
    rows = _read(path, [schema.SELF_CONFIDENCE])
    judged, given, _, _ = _labelled(classes, rows)
    confidence = rows[schema.SELF_CONFIDENCE].to_numpy()[judged]
    return ClassSums.of(given, confidence, len(classes))


def _joint(
    classes: tuple[str, ...], thresholds: npt.NDArray[np.float64], path: str
) -> npt.NDArray[np.int64]:
    _, given, top, probabilities = _labelled(classes, _read(path, []))
    return confident_joint(given, counted_class(top, probabilities, thresholds), len(classes))


def _add(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return first + second


def _read(path: str, more: list[str]) -> pa.Table:
    columns = [schema.LABEL, schema.DISTANCE, schema.TOP_CLASS, schema.TOP_PROBABILITY, *more]
    with open_input(path) as file:
        return pq.read_table(file, columns=columns, use_threads=False)


def _labelled(
    classes: tuple[str, ...], rows: pa.Table
) -> tuple[
    npt.NDArray[np.bool_],
    npt.NDArray[np.int32],
    npt.NDArray[np.int32],
    npt.NDArray[np.float32],
]:
    """Which rows (n,) were judged; their (m) labels as codes, and top classes and p (m, M)."""
    judged = np.asarray(rows[schema.DISTANCE].is_valid())
    codes = {name: code for code, name in enumerate(classes)}
    labels = rows[schema.LABEL].filter(pa.array(judged)).combine_chunks()
    given = group_codes(labels, codes, "quality table")
    return (
        judged,
        given,
        _matrix(rows[schema.TOP_CLASS], int(judged.sum())),
        _matrix(rows[schema.TOP_PROBABILITY], int(judged.sum())),
    )


def _matrix(column: pa.ChunkedArray, rows: int) -> npt.NDArray[Any]:
    """The valid lists of a column as an array (rows, M)."""
    lists = column.combine_chunks()
    return np.asarray(lists.flatten().to_numpy(zero_copy_only=False)).reshape(
        rows, lists.type.list_size
    )
