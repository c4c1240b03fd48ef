"""Formulas of metrics: against Python's own evaluation, scipy's ranks and numpy's moments."""

from __future__ import annotations

import json
import math
import re
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import rankdata

from dataprune_ray import combining, schema
from dataprune_ray.baseline import check_settings
from dataprune_ray.combining import scales
from dataprune_ray.config import PruneConfig
from dataprune_ray.cutoff import Block, MemoryPopulation, moments, ranks
from dataprune_ray.errors import ConfigError, UnknownNameError
from dataprune_ray.io.scores import FilePopulation
from dataprune_ray.metrics import METRICS, check_metrics, resolve_metric
from dataprune_ray.metrics.expression import Expression, is_expression, parse
from dataprune_ray.naming import check_names

BASE = ("el2n", "entropy", "margin", "confidence")
FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)
VALUES = hnp.arrays(
    np.float32,
    st.integers(1, 80),
    elements=st.one_of(FINITE, st.sampled_from([0.0, -0.0, 0.25, 1.0, -3.5])),
)


def population(values, parts=3, others=None):
    pieces = np.array_split(np.arange(len(values)), parts)
    return MemoryPopulation(
        [Block(values[p], others={k: v[p] for k, v in (others or {}).items()}) for p in pieces]
    )


def columns(rows, seed=0):
    rng = np.random.default_rng(seed)
    found = {name: rng.random(rows, np.float32) + np.float32(0.1) for name in BASE}
    found["margin"] = np.round(found["margin"] * 5) / np.float32(5)
    return found


def evaluated(text, held, parts=3):
    formula = parse(text, METRICS)
    rows = len(held["el2n"])
    found = scales([formula.text], population(np.zeros(rows, np.float32), parts, held))
    return formula.values(held, found, rows=rows)


# Ranks and moments -------------------------------------------------------------------------------


def by_scipy(values):
    if len(values) == 1:
        return np.array([0.5])
    return (rankdata(values.astype(np.float64)) - 1) / (len(values) - 1)


@given(values=VALUES, parts=st.integers(1, 7))
def test_ranks_are_those_of_scipy(values, parts):
    found = ranks(population(values, parts)).scaled(values)
    assert np.allclose(found, by_scipy(values), rtol=0, atol=1e-15)


@settings(max_examples=150)
@given(values=VALUES, most=st.sampled_from([1, 2, 5, 16, 64]), parts=st.integers(1, 5))
def test_refined_ranks_are_near_and_the_same_for_any_order(values, most, parts):
    whole = ranks(population(values, parts), most)
    assert np.abs(whole.scaled(values) - by_scipy(values)).max() <= 0.5 / most + 1e-12
    again = ranks(population(np.roll(values, 3), parts + 2), most)
    assert (again.scaled(values) == whole.scaled(values)).all()
    limit = max(1, len(values) // most)
    if len(np.unique(values)) > most:
        slots = np.searchsorted(whole.starts, ranks(population(values)).starts, side="right") - 1
        crowded = whole.counts > limit
        assert (np.bincount(slots, minlength=len(whole.counts))[crowded] == 1).all()
    assert whole.counts.sum() == whole.rows == len(values)


def test_many_distinct_values_need_little_memory():
    values = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    values[:90_000] = np.float32(1) + np.arange(90_000, dtype=np.float32) * np.float32(2**-23)
    found = ranks(population(values, 5), 4096)
    assert len(found.starts) < 8 * 4096
    assert np.abs(found.scaled(values) - by_scipy(values)).max() <= 0.5 / 4096


def test_the_order_of_ranks_is_the_order_of_the_values():
    values = np.random.default_rng(1).random(5000, np.float32) ** 9
    found = ranks(population(values), 100).scaled(values)
    assert (np.diff(found[np.argsort(values, kind="stable")]) >= 0).all()


@given(values=VALUES, parts=st.integers(1, 6))
def test_moments_are_exact(values, parts):
    found = moments(population(values, parts))
    exact = [Fraction(float(v)) for v in values]
    mean = sum(exact) / len(exact)
    variance = sum((v - mean) ** 2 for v in exact) / len(exact)
    assert found.mean == float(mean)
    assert found.deviation == pytest.approx(math.sqrt(variance), rel=1e-15)
    assert (found.deviation == 0) == (len(set(exact)) == 1)


def test_moments_of_nothing_and_of_what_is_constant():
    assert moments(population(np.zeros(0, np.float32))).deviation == 0
    values = np.full(9, 0.1, np.float32)
    assert moments(population(values)).scaled(values).tolist() == [0.0] * 9


# Formulas ----------------------------------------------------------------------------------------

LEAVES = st.sampled_from([*BASE, "0.5", "2", "0.25", "3.0"])
RISKY = re.compile(r"rank|/")
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        inner.map(lambda text: f"(-{text})"),
        inner.map(lambda text: f"rank({text})"),
        inner.map(lambda text: f"zscore({text})"),
    ),
    max_leaves=8,
)


def by_eval(text, held):
    """Python's evaluation over arrays, each function's argument rounded to float32 first."""

    def rounded(values):
        values = np.broadcast_to(np.asarray(values, float), (len(held["el2n"]),))
        with np.errstate(all="ignore"):
            values = values.astype(np.float32).astype(np.float64)
        assume(np.isfinite(values).all())  # refused, see below
        return values

    def rank(values):
        return by_scipy(rounded(values))

    def zscore(values):
        values = rounded(values)
        if len(np.unique(values)) == 1:
            return np.zeros(len(values))
        return (values - math.fsum(values) / len(values)) / values.std()

    space = {k: v.astype(np.float64) for k, v in held.items()}
    space |= {"rank": rank, "zscore": zscore, "log": lambda v: np.log(rounded(v))}
    with np.errstate(all="ignore"):
        return np.broadcast_to(eval(text, {}, space), (len(held["el2n"]),))


@settings(max_examples=200)
@given(text=TREES, seed=st.integers(0, 50), rows=st.integers(1, 30))
def test_random_formulas_are_what_python_makes_of_them(text, seed, rows):
    assume(any(name in text for name in BASE))
    # The last bits of a standard score differ: they must not be ranked, divided by or scaled up.
    assume("zscore" not in text or (text.count("zscore") == 1 and not RISKY.search(text)))
    held = columns(rows, seed)
    expected = by_eval(text, held)
    assume(np.isfinite(expected).all())
    assume(np.abs(expected).max() < 1e30)
    assume("zscore" not in text or rows > 2)
    found = evaluated(text, held)
    assert found.dtype == np.float32
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert parse(parse(text, METRICS).text, METRICS).text == parse(text, METRICS).text


@pytest.mark.parametrize("parts", [1, 4, 29])
def test_values_do_not_depend_on_the_split(parts):
    text = "0.7*rank(el2n)+0.3*rank(entropy)-zscore(log(margin+1))"
    held = columns(29, 3)
    assert (evaluated(text, held, parts) == evaluated(text, held)).all()


def test_one_spelling_names_the_column():
    spellings = ["0.7*rank(el2n)+0.3*rank(entropy)", " 0.70 * rank( el2n ) + (0.3*rank(entropy))"]
    texts = {parse(text, METRICS).text for text in spellings}
    assert texts == {"0.7 * rank(el2n) + 0.3 * rank(entropy)"}
    assert parse(spellings[0], METRICS).metrics == ("el2n", "entropy")
    assert is_expression(spellings[0])
    assert not is_expression("el2n")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rank(el2n", "neither a metric nor a formula"),
        ("el2n ** 2", r"cannot hold 'el2n \*\* 2'"),
        ("el2n.__class__ + 1", "no score table is named 'el2n'; pass --with-scores el2n=DIR"),
        ("a.b.el2n", "cannot hold 'a.b.el2n'"),
        ("rank(el2n).x", "cannot hold"),
        ("exec(el2n)", r"cannot hold 'exec\(el2n\)'"),
        ("rank(el2n, 2)", "cannot hold"),
        ("rank(el2n, key=1)", "cannot hold"),
        ("(lambda: el2n)()", "cannot hold"),
        ("[el2n][0]", "cannot hold"),
        ("el2n if 1 else 2", "cannot hold"),
        ("'a' + el2n", "cannot hold"),
        ("True + el2n", "cannot hold 'True'"),
        ("el2n + 1e999", "too large a number"),
        ("1 + 2", "names no metric"),
        ("+el2n", "cannot hold"),
        ("el2n + " * 100 + "1", "is longer than 500"),
        ("el2n; el2n", "neither a metric nor a formula"),
        ("", "neither a metric nor a formula"),
    ],
)
def test_anything_else_is_refused(text, told):
    with pytest.raises(ConfigError, match=told):
        parse(text, METRICS)


def test_an_unknown_metric_is_named():
    with pytest.raises(UnknownNameError, match=r"metric='el3n': unknown; choose one of: .*el2n"):
        parse("rank(el3n) + el2n", METRICS)


@pytest.mark.parametrize(
    ("text", "polarity"),
    [
        ("rank(el2n) + entropy", "high"),
        ("rank(el2n) - margin", "high"),
        ("-el2n + 2 * margin", "low"),
        ("el2n + margin", "none"),
        ("el2n - entropy", "none"),
        ("el2n / 2 - 3", "high"),
        ("el2n / -2", "low"),
        ("0 * el2n", "none"),
        ("0 * margin + el2n", "high"),
        ("el2n * entropy", "none"),
        ("1 / el2n", "none"),
        ("log(zscore(loss))", "high"),
        ("(2 - 3) * confidence", "high"),
        ("el2n * (1 - 1)", "none"),
    ],
)
def test_the_kept_end_follows_where_the_metrics_agree(text, polarity):
    assert resolve_metric(text, "el2n").polarity == polarity


def test_ranges_are_bounds():
    bounds = {
        "0.75 * rank(el2n) + 0.25 * rank(loss)": (0.0, 1.0),
        "-margin": (-1.0, 1.0),
        "2 * margin - 1": (-3.0, 1.0),
        "loss / 2": (0.0, math.inf),
        "loss - loss": (-math.inf, math.inf),
        "zscore(el2n)": (-math.inf, math.inf),
        "rank(el2n) / 0": (-math.inf, math.inf),
        "0 * loss": (-math.inf, math.inf),
    }
    for text, expected in bounds.items():
        metric = resolve_metric(text, "el2n")
        assert (metric.low, metric.high) == expected, text


def test_a_logarithm_needs_positive_values():
    held = columns(20)
    held["el2n"][7] = 0
    with pytest.raises(ConfigError, match=r"metric='log\(el2n\)': the smallest el2n is 0;"):
        evaluated("rank(log(el2n)) + entropy", held)
    assert np.isfinite(evaluated("log(el2n + 1)", held)).all()


def test_values_that_are_not_finite_are_refused():
    held = columns(20)
    held["el2n"][7] = held["el2n"][9] = 0
    with pytest.raises(ConfigError, match=r"metric='entropy / el2n': is not finite for [12] rows"):
        evaluated("entropy / el2n", held)


# In a run ----------------------------------------------------------------------------------------


def pruning(**changes):
    return PruneConfig.from_flat({"input": "in", "output": "out", **changes})


def test_a_formula_is_scored_after_its_metrics():
    config = pruning(metric=["rank(el2n)+rank(margin)", "loss"], keep_end="high")
    metrics, _ = check_names(config)
    assert [m.name for m in metrics] == ["rank(el2n) + rank(margin)", "loss", "el2n", "margin"]
    with pytest.raises(ConfigError, match="metric='loss': needs labels"):
        check_metrics(metrics, labelled=False, regression=False)
    with pytest.raises(ConfigError, match="is not defined for regression"):
        check_metrics(metrics, labelled=True, regression=True)


@pytest.mark.parametrize("metric", ["el2n + margin", "knn_label_agreement"])
@pytest.mark.parametrize(
    "chosen",
    [
        {"strategy": "ratio"},
        {"strategy": "class_balanced"},
        {"strategy": "auto"},
        {"strategy": "auto", "candidates": ["random", "window:0.1"]},
        {"strategy": "mean", "dry_run": True, "output": ""},
    ],
)
def test_an_end_to_keep_is_asked_for_before_anything_runs(metric, chosen):
    told = rf"keep_end='auto': metric '{re.escape(metric)}' has no better end of its own; pass"
    with pytest.raises(ConfigError, match=told):
        check_names(pruning(metric=[metric], **chosen))
    check_names(pruning(metric=[metric], keep_end="low", **chosen))


@pytest.mark.parametrize(
    "chosen",
    [
        {"strategy": "random"},
        {"strategy": "random_balanced"},
        {"strategy": "auto", "candidates": ["random"]},
    ],
)
def test_no_end_is_asked_for_where_scores_are_not_looked_at(chosen):
    check_names(pruning(metric=["el2n + margin", "loss"], **chosen))


def test_a_baseline_is_refused():
    with pytest.raises(ConfigError, match="looks at the whole corpus"):
        check_settings(pruning(metric=["2 * el2n"]), SimpleNamespace(settings={}))


class Plan:
    """What of a scoring plan the last pass looks at."""

    def __init__(self, folder, names, expressions):
        self.folder, self.expressions, self.metrics = folder, expressions, ("el2n", "entropy")
        self.rows = self
        self.fragments = names

    def path(self, name):
        return str(self.folder / name)


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(combining, "run_tasks", map)
    monkeypatch.setattr(combining, "ScoreTable", FilePopulation)


def write(path, held, part, bad=()):
    rows = len(held["el2n"][part])
    broken = np.isin(np.arange(rows), bad)
    scored = {
        schema.ROW_HASH: np.arange(rows, dtype=np.uint64),
        **{name: pa.array(held[name][part], mask=broken) for name in ("el2n", "entropy")},
        schema.FILE: pa.array(["f"] * rows).dictionary_encode(),
        schema.ERROR: pa.array(["bad" if b else None for b in broken], pa.string()),
    }
    table = pa.table(scored)
    with pq.ParquetWriter(path, table.schema) as writer:
        for first in range(0, rows, 4):
            writer.write_table(table.slice(first, 4))
        writer.add_key_value_metadata({schema.NOTE.decode(): json.dumps({"rows": rows})})


@pytest.mark.usefixtures("here")
def test_files_get_one_more_column_and_only_once(tmp_path):
    held, text = columns(20, 5), "rank(el2n) + 0.5 * zscore(entropy)"
    write(tmp_path / "a", held, slice(0, 9), bad=(3,))
    write(tmp_path / "b", held, slice(9, 20))
    plan = Plan(tmp_path, ["a", "b"], (text,))
    combining.combine(plan)
    good = np.arange(20) != 3
    expected = evaluated(text, {name: values[good] for name, values in held.items()})
    tables = [pq.read_table(tmp_path / name) for name in "ab"]
    found = pa.concat_tables(tables)[text]
    assert found.null_count == 1
    assert not found[3].is_valid
    assert (found.drop_null().to_numpy() == expected).all()
    assert found.type == pa.float32()
    assert json.loads(pq.read_metadata(tmp_path / "a").metadata[schema.NOTE]) == {"rows": 9}
    before = [(tmp_path / name).stat().st_mtime_ns for name in "ab"]
    combining.combine(plan)
    assert [(tmp_path / name).stat().st_mtime_ns for name in "ab"] == before
    held["el2n"][9:] = held["el2n"][9:][::-1] * 3
    write(tmp_path / "b", held, slice(9, 20))  # scored again: all ranks have moved
    combining.combine(plan)
    expected = evaluated(text, {name: values[good] for name, values in held.items()})
    found = pa.concat_tables([pq.read_table(tmp_path / name) for name in "ab"])[text]
    assert (found.drop_null().to_numpy() == expected).all()
    whole = pa.concat_tables([t.drop_columns([text]) for t in tables[:1]])
    assert combining.combined_in_memory(Plan(tmp_path, [], ()), whole).equals(whole)
    small = combining.combined_in_memory(plan, whole)
    assert small[text].null_count == 1


def test_a_formula_is_an_expression_of_its_text():
    assert Expression("rank(el2n)").metrics == ("el2n",)
    assert list(Expression("rank(el2n) + rank(rank(el2n) * 2)").stages()) == [
        ("rank", "el2n"),
        ("rank", "rank(el2n) * 2"),
    ]
