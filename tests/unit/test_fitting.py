"""Second stages over score files: findings kept without loss, columns that come and go."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataprune_ray import schema
from dataprune_ray.errors import BadDataError
from dataprune_ray.features import FeatureSpec, LabelSpec
from dataprune_ray.fitting import Work, fitted_in_memory, from_json, to_json
from dataprune_ray.io.rows import RowPlan
from dataprune_ray.metrics import METRICS, CorpusFit, MetricOptions
from dataprune_ray.models import ModelSpec
from dataprune_ray.plans import ScorePlan

LABEL = LabelSpec("label", classes=("0", "1", "2"))
FEATURES = FeatureSpec("tensor", ("x",), (2,))


def plan(metrics):
    rows = RowPlan("root", "parquet", pa.schema([]), (), FEATURES, LABEL)
    model = ModelSpec("linear", FEATURES, LABEL)
    return ScorePlan(rows, model, ("a.pt",), metrics, MetricOptions(), "folder")


def table(chosen, outputs, errors):
    """A score file's table as scoring writes it, outputs null where there is an error."""
    rows = len(errors)
    layout = chosen.layout
    columns = {
        schema.FILE: pa.array(["f"] * rows).cast(layout.field(schema.FILE).type),
        schema.ROW: pa.array(range(rows), pa.int64()),
        schema.KEY: pa.nulls(rows, pa.string()),
        schema.ROW_HASH: pa.array(range(rows), pa.uint64()),
        schema.LABEL: pa.array([i % 3 for i in range(rows)], pa.int64()),
        "el2n": pa.array([i / 8 for i in range(rows)], pa.float32()),
        schema.ERROR: pa.array(errors, pa.string()),
        schema.OUTPUTS: pa.array(outputs, layout.field(schema.OUTPUTS).type),
    }
    return pa.table([columns[name] for name in layout.names], schema=layout)


floats = st.floats(allow_nan=False, width=64)


@given(st.lists(floats, max_size=6), st.lists(st.integers(-(2**63), 2**63 - 1), max_size=6))
def test_findings_come_back_as_they_were(numbers, counts):
    found = {"a": np.array(numbers), "b": np.array(counts, np.int64)[None], "c": np.float64(0.1)}
    back = from_json(json.loads(json.dumps(to_json(found))))
    for name, value in found.items():
        assert back[name].dtype == value.dtype
        assert back[name].shape == value.shape
        assert (back[name] == value).all()


def test_temporary_columns_are_replaced_by_metrics():
    chosen = plan(("el2n", "output_deviation", "random"))
    assert chosen.layout.names[-1] == schema.OUTPUTS
    outputs = [[3.0, 0.0, 0.0], None, [-3.0, 0.0, 0.0], [0.0, 1.0, -1.0]]
    written = table(plan(("el2n", "output_deviation")), outputs, [None, "bad", None, None])
    found = fitted_in_memory(plan(("output_deviation", "el2n")), written)
    assert found.column_names[5:] == ["output_deviation", "el2n", "error"]
    assert found["output_deviation"].to_pylist()[1] is None
    assert found["output_deviation"][0].as_py() == 1.0
    assert found["el2n"].to_pylist() == [0.0, 0.125, 0.25, 0.375]


def test_labels_are_codes_and_values_must_be_finite(monkeypatch):
    fit = CorpusFit(("label", "el2n"), lambda c, *_: c["label"] + 10 / c["el2n"])
    monkeypatch.setitem(METRICS, "margin", METRICS["output_deviation"].__class__(
        **{**vars(METRICS["margin"]), "score": None, "fit": fit}
    ))  # fmt: skip
    chosen = plan(("el2n", "margin", "output_deviation"))
    written = table(chosen, [[0.0] * 3] * 4, ["bad", None, None, None])
    found = fitted_in_memory(chosen, written)["margin"].to_pylist()
    assert found == [None, 81.0, 42.0, pytest.approx(10 / 0.375)]
    with pytest.raises(BadDataError, match="margin is not finite"), np.errstate(divide="ignore"):
        fitted_in_memory(chosen, table(chosen, [[0.0] * 3] * 2, [None, None]))


def test_steps_of_one_name_are_made_once():
    work = Work.of(plan(("output_deviation", "el2n")))
    assert [[s.name for s in steps] for steps in work.rounds()] == [
        ["output_mean"],
        ["output_deviation_largest"],
    ]
