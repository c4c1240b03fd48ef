"""Score tables of other runs joined to one's own: against a plain join in numpy, and the errors."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from dataprune_ray import combining, comparing, joining, schema, status, trying
from dataprune_ray.config import CompareConfig, CorpusConfig, PruneConfig
from dataprune_ray.errors import ConfigError, UnknownNameError
from dataprune_ray.io import open_corpus
from dataprune_ray.io.corpus import Fragment, Span
from dataprune_ray.io.joined import (
    Source,
    digests_of,
    joined_in,
    open_joined,
    same_rows,
    with_columns,
)
from dataprune_ray.io.output import claim, finished
from dataprune_ray.io.scores import FilePopulation
from dataprune_ray.metrics import METRICS, joined_metrics, resolve_metric
from dataprune_ray.naming import check_names
from dataprune_ray.plans import FragmentCount
from dataprune_ray.verdict import Tuned

FORMULA = "rank(el2n) + 0.5 * rank(image.margin) - 0.25 * image.el2n"


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Tasks run in this process."""
    for module in (combining, joining):
        monkeypatch.setattr(module, "run_tasks", map)
    monkeypatch.setattr(combining, "ScoreTable", FilePopulation)


def piece(columns, hashes, errors, start=0, file="a.parquet"):
    """Rows of a score table with float32 columns, null where there is an error."""
    bad = np.array([error is not None for error in errors], bool)
    return pa.table(
        {
            schema.FILE: pa.array([file] * len(hashes), pa.string()).dictionary_encode(),
            schema.ROW: pa.array(np.arange(start, start + len(hashes))),
            schema.ROW_HASH: pa.array(hashes, pa.uint64()),
            schema.LABEL: pa.array(np.zeros(len(hashes), np.int64)),
            **{name: pa.array(values, mask=bad) for name, values in columns.items()},
            schema.ERROR: pa.array(errors, pa.string()),
        }
    )


def fragment(start, rows, index=0):
    return Fragment(index, (Span("a.parquet", start, rows),))


def write(folder, name, table, group_rows=7):
    folder.mkdir(parents=True, exist_ok=True)
    bad = len(table) - table[schema.ERROR].null_count
    with pq.ParquetWriter(folder / f"{name}.parquet", table.schema) as writer:
        writer.write_table(table, row_group_size=group_rows)
        note = {"rows": len(table), "bad": bad, "unread": 0, "members": []}
        writer.add_key_value_metadata({schema.NOTE.decode(): json.dumps(note)})


def save_plan(folder, fragments=(), metrics=("el2n", "margin"), **more):
    folder.mkdir(parents=True, exist_ok=True)
    plan = {
        "corpus": "c0",
        "id_column": None,
        "metrics": list(metrics),
        "fragments": [one.to_json() for one in fragments],
        **more,
    }
    (folder / "_plan.json").write_text(json.dumps(plan))
    return str(folder)


class Plan:
    """What of a scoring plan the passes look at."""

    def __init__(self, folder, fragments, expressions=()):
        self.folder, self.fragments, self.expressions = folder, tuple(fragments), expressions
        self.metrics, self.rows = ("el2n",), self

    def path(self, one):
        return str(self.folder / f"{one.name}.parquet")


def reasons(marks):
    return [None if mark is None else f"reason {mark}" for mark in marks]


VALUES = st.floats(-2, 2, width=32)
TABLES = st.integers(4, 40).flatmap(
    lambda rows: st.tuples(
        st.lists(st.tuples(VALUES, VALUES, VALUES), min_size=rows, max_size=rows),
        st.lists(st.sampled_from([None, None, None, 1]), min_size=rows, max_size=rows),
        st.lists(st.sampled_from([None, None, 2]), min_size=rows, max_size=rows),
        st.integers(0, rows),
    )
)


# The join ----------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(given_table=TABLES)
def test_a_joined_formula_is_the_formula_of_a_join_in_numpy(given_table):
    values, own_bad, their_bad, cut = given_table
    el2n, other, margin = np.array(values, np.float32).T
    own_bad[:3] = their_bad[:3] = [None] * 3
    hashes = np.arange(len(values), dtype=np.uint64) * np.uint64(7919)
    own_errors, their_errors = reasons(own_bad), reasons(their_bad)
    parts = [slice(0, cut), slice(cut, len(values))]
    fragments = [fragment(p.start, p.stop - p.start, i) for i, p in enumerate(parts)]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for one, p in zip(fragments, parts, strict=True):
            mine = piece({"el2n": el2n[p]}, hashes[p], own_errors[p], p.start)
            write(folder / "own", one.name, mine)
            held = {"el2n": other[p], "margin": margin[p]}
            write(folder / "image", one.name, piece(held, hashes[p], their_errors[p], p.start), 3)
        tables = open_joined([f"image={save_plan(folder / 'image', fragments)}"])
        plan = Plan(folder / "own", fragments, (FORMULA,))
        counts = [FragmentCount(i, p.stop - p.start, 0) for i, p in enumerate(parts)]
        found = joining.join_scores(plan, tables, ["image.margin", "image.el2n"], counts)
        combining.combine(plan)
        table = pa.concat_tables(pq.read_table(plan.path(one)) for one in fragments)
        notes = [pq.read_metadata(plan.path(one)).metadata[schema.NOTE] for one in fragments]
    good = np.array([a is None and b is None for a, b in zip(own_bad, their_bad, strict=True)])
    ranks = [(rankdata(v[good]) - 1) / (good.sum() - 1) for v in (el2n, margin)]
    expected = ranks[0] + 0.5 * ranks[1] - 0.25 * other[good].astype(np.float64)
    np.testing.assert_allclose(table[FORMULA].drop_null(), expected, atol=1e-6)
    for name, source in (("el2n", el2n), ("image.el2n", other), ("image.margin", margin)):
        column = table[name].to_numpy()
        np.testing.assert_array_equal(column[good], source[good])
        assert np.isnan(column[~good].astype(float)).all()
    expected_errors = [
        mine or (None if theirs is None else f"image: {theirs}")
        for mine, theirs in zip(own_errors, their_errors, strict=True)
    ]
    assert table[schema.ERROR].to_pylist() == expected_errors
    assert [count.bad for count in found] == [int((~good[p]).sum()) for p in parts]
    assert [json.loads(note)["bad"] for note in notes] == [count.bad for count in found]
    assert [count.rows for count in found] == [count.rows for count in counts]


def test_files_are_joined_once_and_keep_their_row_groups(tmp_path):
    hashes, one = np.arange(20, dtype=np.uint64), fragment(0, 20)
    values = np.linspace(0, 1, 20, dtype=np.float32)
    errors = [None] * 19 + ["broken"]
    write(tmp_path / "own", one.name, piece({"el2n": values}, hashes, [None] * 20))
    write(tmp_path / "image", one.name, piece({"el2n": values}, hashes, errors))
    tables = open_joined([f"image={save_plan(tmp_path / 'image', [one])}"])
    plan, counts = Plan(tmp_path / "own", [one]), [FragmentCount(0, 20, 0)]
    first = joining.join_scores(plan, tables, ["image.el2n"], counts)
    groups = pq.read_metadata(plan.path(one))
    assert [groups.row_group(n).num_rows for n in range(groups.num_row_groups)] == [7, 7, 6]
    stamp = Path(plan.path(one)).stat().st_mtime_ns
    assert joining.join_scores(plan, tables, ["image.el2n"], counts) == first
    assert first[0].bad == 1
    assert Path(plan.path(one)).stat().st_mtime_ns == stamp
    assert joining.join_scores(plan, (), [], counts) is counts
    save_plan(tmp_path / "image", [one], metrics=["el2n"])
    with pytest.raises(ConfigError, match=r"with_scores='.*image': changed while this run used"):
        joining.join_scores(plan, tables, ["image.el2n"], counts)


def test_rows_are_the_same_by_identity_or_by_position():
    none = [None] * 3
    mine = piece({}, [1, 2, 3], none)
    assert same_rows(mine, piece({}, [1, 2, 3], none, start=9, file="moved.parquet"))
    assert same_rows(mine, piece({}, [7, 8, 9], none))  # known by another column there
    assert not same_rows(mine, piece({}, [1, 2, 4], none, start=1))
    assert not same_rows(mine, piece({}, [7, 8, 9], none, file="b.parquet"))
    assert not same_rows(mine, mine.slice(0, 2))
    source = Source("image", "pruned/image/scores", {"image.el2n": "el2n"})
    other = piece({"el2n": np.zeros(2, np.float32)}, [1, 2], none[:2])
    told = r"with_scores='pruned/image/scores': its rows of a.parquet are not those of this run"
    with pytest.raises(ConfigError, match=told):
        with_columns(mine, other, source)


def test_two_tables_tell_which_of_them_a_row_is_bad_in():
    zeros = np.zeros(4, np.float32)
    table = piece({"loss": zeros}, [1, 2, 3, 4], [None, None, None, "own"])
    for name, errors in (("a", [None, "x", "y", "z"]), ("b", [None, None, "w", "z"])):
        source = Source(name, name, {f"{name}.el2n": "el2n"})
        table = with_columns(table, piece({"el2n": zeros + 1}, [1, 2, 3, 4], errors), source)
    assert table[schema.ERROR].to_pylist() == [None, "a: x", "a: y", "own"]
    for name, value in (("loss", 0.0), ("a.el2n", 1.0), ("b.el2n", 1.0)):
        assert table[name].to_pylist() == [value, None, None, None]
    assert table[schema.LABEL].null_count == 0


# Tables that can be joined -----------------------------------------------------------------------


def test_a_table_is_named_by_its_folder_or_its_output(tmp_path):
    save_plan(tmp_path / "out" / "scores", [fragment(0, 3)])
    whole, inner = open_joined([f"a={tmp_path}/out", f"b={tmp_path}/out/scores"])
    assert whole.folder == inner.folder == f"{tmp_path}/out/scores"
    assert digests_of([whole, inner]) == {"a": whole.digest, "b": whole.digest}
    assert whole.offers == {"el2n": "el2n", "margin": "margin"}
    assert whole.fragments == (fragment(0, 3),)


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        (["image"], "give NAME=DIR"),
        (["=out"], "give NAME=DIR"),
        (["image="], "give NAME=DIR"),
        (["my image=out"], "give NAME=DIR"),
        (["lambda=out"], "give NAME=DIR"),
        (["a.b=out"], "give NAME=DIR"),
        (["image=out", "image=out"], "image is a score table already"),
        (["image=nowhere"], "with_scores='nowhere': holds no complete score table; name a run's"),
        (["image=old"], "says too little of it"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, monkeypatch, entries, told):
    monkeypatch.chdir(tmp_path)
    save_plan(tmp_path / "out" / "scores")
    save_plan(tmp_path / "old", metrics=["learned"])
    with pytest.raises(ConfigError, match=told):
        open_joined(entries)


def test_tables_must_be_of_the_corpus_and_in_the_same_fragments(tmp_path):
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"x": [1.0, 2.0], "label": [0, 1]}), tmp_path / "in" / "a.parquet")
    corpus = open_corpus(CorpusConfig(input=str(tmp_path / "in")))
    print_of, one = corpus.fingerprint(), fragment(0, 2, 5)

    def table(name, fragments, corpus=print_of, files=True):
        folder = tmp_path / name
        save_plan(folder, fragments, corpus=corpus)
        for each in fragments if files else ():
            write(folder, each.name, piece({}, [1, 2], [None, None]))
        return open_joined([f"{name}={folder}"])[0]

    first = table("first", [one])
    assert joining.shared_fragments(corpus, [first, table("second", [one])]) == (one,)
    refused = {
        "belongs to another corpus": table("a", [one], corpus="another"),
        "is cut in other fragments than .*first; .*--fragment-rows": table("b", [fragment(0, 1)]),
        "lacks 1 of 1 score files": table("c", [one], files=False),
    }
    for told, bad in refused.items():
        with pytest.raises(ConfigError, match=f"with_scores='.*/{bad.name}': {told}"):
            joining.shared_fragments(corpus, [first, bad])


# Names -------------------------------------------------------------------------------------------


@pytest.fixture
def tables(tmp_path):
    image = save_plan(tmp_path / "image", metrics=["el2n", "margin", "rank(el2n) + loss"])
    text = save_plan(tmp_path / "text", metrics=["learned"], learned_metric="aum")
    return [f"image={image}", f"text={text}"]


def pruning(**changes):
    return PruneConfig.from_flat({"input": "in", "output": "out", **changes})


def test_metrics_of_tables_have_the_traits_of_what_they_measure(tables):
    formula = "rank(el2n) - rank(image.margin) - rank(text.learned)"
    metrics, _ = check_names(pruning(metric=[formula], with_scores=tables))
    found = {metric.name: metric for metric in metrics}
    assert list(found) == [formula, "el2n", "image.margin", "text.learned"]
    assert found[formula].polarity == "high"
    assert (found["text.learned"].polarity, found["text.learned"].low) == ("low", -1.0)
    joined = [name for name, metric in found.items() if metric.joined]
    assert joined == ["image.margin", "text.learned"]
    assert not any(found[name].needs or found[name].combines for name in joined)
    (only,), _ = check_names(pruning(metric=["image.margin"], with_scores=tables[:1]))
    assert (only.name, only.joined, only.polarity) == ("image.margin", True, "low")


def test_noise_can_be_told_by_a_joined_metric(tables):
    asked = {"noise_cut": 0.1, "noise_metric": "image.margin", "with_scores": tables[:1]}
    metrics, _ = check_names(pruning(metric=["loss"], **asked))
    assert [metric.name for metric in metrics] == ["loss", "image.margin"]
    asked["noise_metric"] = "entropy"
    with pytest.raises(UnknownNameError, match=r"noise_metric='entropy'.*image\.el2n"):
        check_names(pruning(metric=["image.el2n"], **asked))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"metric": ["rank(image.loss)"]}, r"metric='image.loss': unknown; .*: image.el2n, image."),
        ({"metric": ["img.el2n"]}, r"no score table is named 'img'; there are image, text; pass"),
        ({"metric": ["rank(el3n)"]}, r"metric='el3n': unknown; choose one of: .*image.el2n"),
        ({"metric": ["image.el2n"]}, r"with_scores='text=.*': no metric names it"),
        ({"scores": "x"}, "cannot be combined with --scores"),
        ({"baseline": "x"}, "cannot be combined with --baseline"),
        ({"dry_run": True, "output": ""}, "cannot be combined with --dry-run"),
    ],
)
def test_what_cannot_be_joined_is_refused_before_anything_runs(tables, changes, told):
    asked = {"metric": ["rank(image.el2n)-rank(text.learned)"], "with_scores": tables, **changes}
    with pytest.raises(ConfigError, match=told):
        check_names(pruning(**asked))


def test_a_table_that_was_joined_is_cut_again_by_the_same_names(tmp_path, tables):
    opened = open_joined(tables[1:])[0]
    held = {"text": opened.to_json(["image.el2n", "text.learned"])}
    assert held["text"]["metrics"] == {"learned": "aum"}
    scores = save_plan(tmp_path / "both", metrics=["text.learned"], joined=held)
    metrics, _ = check_names(pruning(metric=["text.learned"], scores=scores))
    assert [(metric.name, metric.polarity) for metric in metrics] == [("text.learned", "low")]
    plan = json.loads((tmp_path / "both" / "_plan.json").read_text())
    assert joined_metrics(joined_in(plan))["text.learned"] == metrics[0]
    with pytest.raises(ConfigError, match=r"choose one of: text\.learned"):
        check_names(pruning(metric=["text.aum"], scores=scores))


def test_a_joined_metric_alone_is_itself():
    known = joined_metrics({"image": {"el2n": "el2n"}})
    assert resolve_metric("image.el2n", "aum", known) is known["image.el2n"]
    assert resolve_metric(" image.el2n", "aum", known).combines == ("image.el2n",)
    assert known["image.el2n"].noise_end == METRICS["el2n"].noise_end


# What depends on them ----------------------------------------------------------------------------


def test_a_run_is_tied_to_the_tables_that_it_joins(tmp_path):
    root, asked = str(tmp_path / "out"), {"keep": 0.5}
    claim(root, asked, "c0", overwrite=False, resume=True, joined={"image": "d1"})
    assert claim(root, asked, "c0", overwrite=False, resume=True, joined={"image": "d1"}).resumed
    with pytest.raises(ConfigError, match="with_scores='image': this score table changed since"):
        claim(root, asked, "c0", overwrite=False, resume=True, joined={"image": "d2"})
    (tmp_path / "out" / "manifest.json").write_text("{}")
    assert finished(root, asked, "c0", {"image": "d1"}) == {}
    assert finished(root, asked, "c0", {"image": "d2"}) is None
    assert finished(root, asked, "c0") is None
    again = claim(root, asked, "c0", overwrite=True, resume=True, joined={"image": "d2"})
    assert again.finished is None
    assert pruning(with_scores=["a=b"]).decisive() != pruning().decisive()


def test_rows_cannot_be_held_out_of_a_joined_table():
    label = SimpleNamespace(column="label", task="classification")
    known = SimpleNamespace(label=label, joined_columns=("image.el2n",))
    subjects = [SimpleNamespace(understanding=known, weighted=False)]
    with pytest.raises(ConfigError, match=r"test=None: image.el2n was scored by a run that has"):
        comparing.check_arms(CompareConfig.from_flat({"folds": 3}), subjects)


def test_settings_of_a_search_name_the_table_that_was_joined():
    config = pruning(strategy="auto", with_scores=["image=x"], metric=["rank(image.el2n)"])
    tuned = Tuned("ratio", "ratio", 0.0, 0.5, None, "", (), 10)
    best = trying.settings(config, "out/scores", tuned)
    assert best["scores"] == "out/scores"
    assert "with_scores" not in best


@pytest.mark.parametrize(
    ("metric", "proxies"),
    [
        ("rank(image.el2n)", 0),
        ("image.el2n", 0),
        ("rank(el2n) + rank(image.el2n)", 3),
        ("rank(aum) + 1", 1),
    ],
)
def test_proxies_are_those_of_ones_own_metrics(metric, proxies):
    found = status._proxies({"metric": [metric], "proxy_seeds": 3}, {"proxy": []})
    assert (found.done, found.total) == (0, proxies)
