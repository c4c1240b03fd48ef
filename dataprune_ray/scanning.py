"""What only the whole corpus tells: its classes, and the moments that standardise its numbers.

A pass over the label and numeric columns alone, one task a fragment, merged exactly: the result
does not depend on how the corpus is cut. It is skipped where the schema already says everything.
"""

from __future__ import annotations

import math
from collections import Counter
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
from dataprune_ray.io.corpus import Fragment
from dataprune_ray.io.rows import RowPlan
from dataprune_ray.tasks import run_tasks

#: More distinct labels than this are not classes.
MOST_CLASSES = 100_000
_BATCH_ROWS = 65_536


@dataclass
class _Seen:
    """Mergeable summary: label counts by text, and exact sums of numeric columns and squares."""

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


def scan(plan: RowPlan) -> tuple[FeatureSpec, LabelSpec]:
    """Complete a plan's features and label from all rows.

    Raises:
        ConfigError: the label has too many distinct values to be a class.
        BadDataError: no row has a label.
    """
    seen = _Seen()
    for part in run_tasks(partial(_scan_fragment, plan), plan.fragments):
        seen.merge(part)
        if len(seen.labels) > MOST_CLASSES:
            raise ConfigError(
                "label",
                plan.label.column,
                f"more than {MOST_CLASSES} distinct values: not a class; use --task regression",
            )
    tabular = tuple(
        entry if entry.categorical else _with_moments(entry, seen)
        for entry in plan.features.tabular
    )
    return replace(plan.features, tabular=tabular), _complete_label(plan.label, seen)


def _with_moments(entry: TabularColumn, seen: _Seen) -> TabularColumn:
    mean, std = _moments(seen.sums.get(entry.name))
    return replace(entry, mean=mean, std=std)


def _moments(total: ExactSum | None) -> tuple[float, float]:
    if total is None or not total.count:
        return 0.0, 1.0
    mean, square = total.means()
    deviation = math.sqrt(max(square - mean * mean, 0.0))
    return float(mean), deviation or 1.0


def _complete_label(label: LabelSpec, seen: _Seen) -> LabelSpec:
    if label.column is None:
        return label
    if label.task == "regression":
        mean, std = _moments(seen.sums.get(""))
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


def _scan_fragment(plan: RowPlan, fragment: Fragment) -> _Seen:
    """A fragment's summary; what cannot be read is left to scoring, which reports it."""
    seen = _Seen()
    numbers = [entry.name for entry in plan.features.tabular if not entry.categorical]
    label = plan.label if plan.label.column is not None and not plan.label.classes else None
    paths = [*numbers, *([label.column] if label is not None and label.column else [])]
    names = list(dict.fromkeys(top_level(path, plan.schema) for path in paths))
    for span in fragment.spans:
        if span.error is not None:
            continue
        try:
            for batch in get_reader(plan.format).read(plan.root, span, names, _BATCH_ROWS):
                for name in numbers:
                    _add(seen, name, numeric(column(batch, name)))
                if label is not None and label.column is not None:
                    values, _ = cast_labels(column(batch, label.column), label)
                    _add_labels(seen, label, values)
        except READ_ERRORS:
            continue
    return seen


def _add(seen: _Seen, name: str, values: npt.NDArray[np.float64]) -> None:
    with np.errstate(over="ignore"):
        known = values[np.isfinite(values)].astype(np.float32)
        pair = np.stack([known, known * known], axis=1)  # (n, 2)
    seen.sums.setdefault(name, ExactSum(2)).add(pair[np.isfinite(pair).all(axis=1)])


def _add_labels(seen: _Seen, label: LabelSpec, values: pa.Array) -> None:
    if label.task == "regression":
        _add(seen, "", numeric(values))
        return
    for entry in pc.value_counts(values.drop_null().cast(pa.string())):
        seen.labels[entry["values"].as_py()] += entry["counts"].as_py()
