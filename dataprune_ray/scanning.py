"""What only the whole corpus tells: its classes, and the moments that standardise its numbers.

A pass over the label and numeric columns alone, one task a fragment, merged exactly: the result
does not depend on how the corpus is cut. It is skipped where the schema already says everything.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dataprune_ray.cutoff import ExactSum
from dataprune_ray.errors import BadDataError, ConfigError
from dataprune_ray.features import FeatureSpec, LabelSpec, TabularColumn, column, top_level
from dataprune_ray.features.encode import numeric
from dataprune_ray.features.labels import cast_labels
from dataprune_ray.io import READ_ERRORS, get_reader
from dataprune_ray.io.corpus import Fragment, Span
from dataprune_ray.io.rows import RowPlan, identify
from dataprune_ray.tasks import run_tasks

#: More distinct labels than this are not classes.
MOST_CLASSES = 100_000
_BATCH_ROWS = 65_536
_TARGET = ""  # name of a regression label among the summed columns


@dataclass
class _Seen:
    """Mergeable summary: label counts by text, and exact sums of numeric columns.

    Summed are values in the first pass and squared distances from the mean in the second, each as
    two float32 parts.
    """

    labels: Counter[str] = field(default_factory=Counter)
    sums: dict[str, ExactSum] = field(default_factory=dict)

    def merge(self, other: _Seen) -> None:
        self.labels.update(other.labels)
        for name, total in other.sums.items():
            self.sums.setdefault(name, ExactSum(2)).merge(total)


def needs_scan(features: FeatureSpec, label: LabelSpec) -> bool:
    """Whether something is open that only the rows tell."""
    open_label = label.column is not None and not label.classes
    return open_label or any(not entry.categorical for entry in features.tabular)


def scanned_values(features: FeatureSpec, label: LabelSpec) -> int:
    """Values of each row that `scan` reads: numbers in two passes, classes in one."""
    if not needs_scan(features, label):
        return 0
    numbers = sum(not entry.categorical for entry in features.tabular)
    if label.column is None or label.classes:
        return 2 * numbers
    return 2 * numbers + (2 if label.task == "regression" else 1)


def scan(plan: RowPlan) -> tuple[FeatureSpec, LabelSpec]:
    """Complete a plan's features and label from all rows.

    Raises:
        ConfigError: the label has too many distinct values to be a class.
        BadDataError: no row has a label.
    """
    seen = _pass(plan, None)
    means = {name: float(total.means().sum()) for name, total in seen.sums.items() if total.count}
    squares = _pass(plan, means).sums if means else {}
    moments = {name: (mean, _deviation(squares[name])) for name, mean in means.items()}
    tabular = tuple(_with_moments(entry, moments) for entry in plan.features.tabular)
    return replace(plan.features, tabular=tabular), _complete_label(plan.label, seen, moments)


def _pass(plan: RowPlan, means: dict[str, float] | None) -> _Seen:
    seen = _Seen()
    for part in run_tasks(partial(_scan_fragment, plan, means), plan.fragments):
        seen.merge(part)
        if len(seen.labels) > MOST_CLASSES:
            raise ConfigError(
                "label",
                plan.label.column,
                f"more than {MOST_CLASSES} distinct values: not a class; use --task regression",
            )
    return seen


def _deviation(squares: ExactSum) -> float:
    """Standard deviation, 1 for a constant column: it then standardises to zeros."""
    return math.sqrt(float(squares.means().sum())) or 1.0


def _with_moments(entry: TabularColumn, moments: dict[str, tuple[float, float]]) -> TabularColumn:
    if entry.categorical or entry.name not in moments:
        return entry
    mean, std = moments[entry.name]
    return replace(entry, mean=mean, std=std)


def _complete_label(
    label: LabelSpec, seen: _Seen, moments: dict[str, tuple[float, float]]
) -> LabelSpec:
    if label.column is None:
        return label
    if label.task == "regression":
        mean, std = moments.get(_TARGET, (0.0, 1.0))
        return replace(label, mean=mean, std=std)
    if label.classes:
        return label
    if not seen.labels:
        raise BadDataError(f"label={label.column!r}: no row has a label; use --label none")
    if label.stored == "string":
        classes = tuple(sorted(seen.labels))
    else:
        values = sorted(map(int, seen.labels))
        dense = values[0] >= 0 and values[-1] < 2 * len(values)
        classes = tuple(map(str, range(values[-1] + 1) if dense else values))
    return replace(label, classes=classes, names=label.names or classes)


def _scan_fragment(plan: RowPlan, means: dict[str, float] | None, fragment: Fragment) -> _Seen:
    """A fragment's summary, of the second pass where ``means`` are known.

    What cannot be read is left to scoring, which reports it.
    """
    seen = _Seen()
    numbers = [entry.name for entry in plan.features.tabular if not entry.categorical]
    label = plan.label if plan.label.column is not None and not plan.label.classes else None
    paths = [*numbers, *([label.column] if label is not None and label.column else [])]
    paths += [plan.id_column] if plan.splits and plan.id_column is not None else []
    names = list(dict.fromkeys(top_level(path, plan.schema) for path in paths))
    key = get_reader(plan.format).key_column
    names += [key] if plan.splits and key else []
    for span in fragment.spans:
        if span.error is not None:
            continue
        try:
            for batch in _batches(plan, span, names):
                for name in numbers:
                    _add(seen, name, numeric(column(batch, name)), means)
                if label is not None and label.column is not None:
                    values, _ = cast_labels(column(batch, label.column), label)
                    if label.task == "regression":
                        _add(seen, _TARGET, numeric(values), means)
                    elif means is None:
                        _count_labels(seen, values)
        except READ_ERRORS:
            continue
    return seen


def _batches(plan: RowPlan, span: Span, names: list[str]) -> Iterator[pa.RecordBatch]:
    """The span's batches, without the rows that the plan's splits leave out."""
    start = span.start
    for batch in get_reader(plan.format).read(plan.root, span, names, _BATCH_ROWS):
        if plan.splits:
            rows = np.arange(start, start + batch.num_rows, dtype=np.int64)
            _, row_hash, _ = identify(plan, span.file, rows, batch)
            admitted = np.all([split.admits(row_hash) for split in plan.splits], axis=0)
            yield batch.filter(pa.array(admitted))
        else:
            yield batch
        start += batch.num_rows


def _add(
    seen: _Seen, name: str, values: npt.NDArray[np.float64], means: dict[str, float] | None
) -> None:
    known = values[np.isfinite(values)]
    with np.errstate(over="ignore"):
        if means is not None:
            known = np.square(known - means.get(name, 0.0))
        high = known.astype(np.float32)
        parts = np.stack([high, (known - high).astype(np.float32)], axis=1)  # (n, 2)
    seen.sums.setdefault(name, ExactSum(2)).add(parts[np.isfinite(parts).all(axis=1)])


def _count_labels(seen: _Seen, values: pa.Array) -> None:
    for entry in pc.value_counts(values.drop_null().cast(pa.string())):
        seen.labels[entry["values"].as_py()] += entry["counts"].as_py()
