import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import rankdata

sys.path.insert(0, str(Path(__file__).parent))

from corpora import (
    FACTORY,
    digit_rows,
    image_table,
    linear_checkpoint,
    png,
    write_parquet,
    write_tars,
)

from dataprune_ray.config import PruneConfig
from dataprune_ray.errors import BadDataError, ConfigError
from dataprune_ray.explaining import explain
from dataprune_ray.pipeline import preview, prune

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Digits as a Parquet corpus of three files, and a checkpoint for them."""
    folder = tmp_path_factory.mktemp("digits")
    images, labels = digit_rows()
    table = image_table(images, labels)
    return {
        "table": table,
        "input": write_parquet(folder / "corpus", table, files=3),
        "checkpoint": linear_checkpoint(folder / "linear.pt", images, labels),
        "images": images,
        "labels": labels,
    }


def settings(digits, output, **changes):
    base = {
        "input": digits["input"],
        "output": str(output),
        "model": "linear",
        "checkpoint": [digits["checkpoint"]],
        "keep": 0.5,
        "actors": 1,
    }
    return PruneConfig.from_flat({**base, **changes})


def run(digits, output, **changes):
    return prune(settings(digits, output, **changes))


def kept_ids(output):
    return ds.dataset(f"{output}/data", format="parquet").to_table()["id"].to_pylist()


def place_of(digits, row):
    """FILE:ROW of a row of the whole corpus."""
    for path in sorted(Path(digits["input"]).glob("*.parquet")):
        rows = pq.read_metadata(path).num_rows
        if row < rows:
            return f"{path.name}:{row}"
        row -= rows
    raise ValueError(row)


def reference_el2n(digits):
    state = torch.load(digits["checkpoint"], weights_only=True)
    x = torch.from_numpy(digits["images"].reshape(-1, 64)).double() / 255
    logits = x @ state["1.weight"].double().T + state["1.bias"].double()
    p = torch.softmax(logits, 1)
    p[torch.arange(len(p)), torch.from_numpy(digits["labels"])] -= 1
    return p.norm(dim=1).numpy()


def test_scores_cut_and_rows_are_right(digits, tmp_path):
    manifest = run(digits, tmp_path / "out", metric=["el2n", "output_deviation"], part_rows=250)
    scores = pq.read_table(tmp_path / "out" / "scores")
    expected = reference_el2n(digits)
    assert np.abs(scores["el2n"].to_numpy() - expected).max() < 1e-5
    assert scores["output_deviation"].to_numpy().max() == 1.0
    kept = np.zeros(1797, bool)
    kept[kept_ids(tmp_path / "out")] = True
    assert kept.sum() == manifest["rows"]["kept"] == 899
    assert expected[kept].min() >= expected[~kept].max() - 1e-6
    source = digits["table"].filter(pa.array(kept))
    written = pq.read_table(tmp_path / "out" / "data")
    assert written.equals(source)
    assert [part["rows"] for part in manifest["outputs"]] == [224, 225, 225, 225]
    decisions = pq.read_table(tmp_path / "out" / "decisions")
    assert decisions["kept"].to_pylist() == kept.tolist()
    assert manifest["rows"] == {
        "in": 1797, "kept": 899, "dropped": 898, "quarantined": 0, "scores_reused": 0,
    }  # fmt: skip
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest
    assert "el2n" in (tmp_path / "out" / "report.html").read_text()


def test_same_kept_set_whatever_the_layout(digits, tmp_path):
    reference = run(digits, tmp_path / "a", id_column="id", batch_size=64)
    resharded = write_parquet(tmp_path / "seven", digits["table"], files=7, group_rows=37)
    shuffled = digits["table"].take(np.random.default_rng(0).permutation(1797))
    tars = write_tars(tmp_path / "tars", shuffled)
    two_actors = run(digits, tmp_path / "b", id_column="id", batch_size=1024, actors=2)
    other_files = run(digits, tmp_path / "c", id_column="id", input=resharded, actors=2)
    archive = run(digits, tmp_path / "d", input=tars, label="cls", id_column="json.id", actors=2)
    hashes = {m["content_hash"] for m in (reference, two_actors, other_files, archive)}
    assert len(hashes) == 1
    assert kept_ids(tmp_path / "c") == kept_ids(tmp_path / "a")
    rows = pq.read_table(tmp_path / "d" / "data").to_pylist()
    found = {json.loads(row["json"])["id"]: row["png"] for row in rows}
    assert sorted(found) == sorted(kept_ids(tmp_path / "a"))
    originals = digits["table"]["img"].to_pylist()
    assert all(content == originals[i]["bytes"] for i, content in found.items())
    asked = ["0", "17", "1796"]
    pairs = zip(*(explain(str(tmp_path / n), asked) for n in ("b", "d")), strict=True)
    for ours, theirs in pairs:
        assert (ours.decision, ours.flip, ours.scores) == (
            theirs.decision, theirs.flip, theirs.scores,
        )  # fmt: skip
        near, near_too = ours.nearest.rows, theirs.nearest.rows
        assert [n.key for n in near] == [n.key for n in near_too]
        assert [n.distance for n in near] == pytest.approx([n.distance for n in near_too], abs=1e-6)


def test_proxy_does_not_depend_on_the_layout(digits, tmp_path):
    proxy = {"checkpoint": [], "proxy_seeds": 2, "proxy_epochs": 2, "id_column": "id"}
    resharded = write_parquet(tmp_path / "five", digits["table"], files=5, group_rows=91)
    first = run(digits, tmp_path / "a", **proxy)
    second = run(digits, tmp_path / "b", **proxy, input=resharded, actors=2, batch_size=1024)
    assert first["content_hash"] == second["content_hash"]
    assert [p["seed"] for p in first["model"]["proxies"]] == [0, 1]
    assert (tmp_path / "a" / "proxy" / "seed-1.safetensors").exists()


def test_a_weighted_draw_writes_inverse_probabilities(digits, tmp_path):
    out = tmp_path / "out"
    run(digits, out, strategy="weighted", beta=0.1, keep=0.25, weight_power=0.5)
    decisions = pq.read_table(out / "decisions")
    kept, weight = decisions["kept"].to_numpy(), decisions["weight"].to_numpy()
    assert sorted(kept_ids(out)) == np.flatnonzero(kept).tolist()
    assert kept.sum() == 449
    assert Counter(decisions["reason"].to_pylist()) == {
        "kept: drawn by weight": 449,
        "dropped: not drawn by weight": 1168,
        "dropped: cut as noise": 180,
    }
    assert (weight[~kept] == 1).all()
    assert weight[kept].min() >= 1
    assert abs(weight[kept].sum() - 1617) < 400  # the rows drawn from, estimated
    saved = json.loads((out / "manifest.json").read_text())["rule"]
    assert saved["draw"]["power"] == 0.5


def test_cut_again_without_a_model(digits, tmp_path):
    run(digits, tmp_path / "a", metric=["el2n", "margin"])
    again = run(
        digits,
        tmp_path / "b",
        checkpoint=[],
        scores=f"{tmp_path}/a/scores",
        metric=["margin"],
        strategy="class_balanced",
        keep=0.2,
    )
    assert again["model"]["proxies"] == []
    sizes = np.bincount(digits["labels"])
    assert [c["kept"] for c in again["classes"]] == [int(0.2 * n + 0.5) for n in sizes]
    direct = run(digits, tmp_path / "c", metric=["margin"], strategy="class_balanced", keep=0.2)
    assert direct["content_hash"] == again["content_hash"]
    kept = set(kept_ids(tmp_path / "b"))
    rows = range(0, 1797, 100)
    found = explain(str(tmp_path / "b"), [place_of(digits, row) for row in rows])
    assert [e.decision.kept for e in found] == [row in kept for row in rows]
    assert {e.decision.kept for e in found} == {True, False}
    for one in found:
        assert [s.metric for s in one.scores] == ["margin", "el2n"]
        assert (one.flip.keep < 0.2) == one.decision.kept
        assert len(one.nearest.rows) == 5
        assert one.nearest.searched == again["rows"]["kept"]
    in_place = {"scores": f"{tmp_path}/a/./scores/", "checkpoint": [], "overwrite": True}
    replaced = run(digits, tmp_path / "a", **in_place, metric=["margin"], keep=0.1)
    assert replaced["rows"]["kept"] == 180
    assert replaced["rows"]["scores_reused"] == 1797
    with pytest.raises(ConfigError, match=r"metric='loss'.*el2n, margin"):
        run(digits, tmp_path / "d", scores=f"{tmp_path}/a/scores", metric=["loss"])


def test_quotas_of_another_column_after_noise(digits, tmp_path):
    names = ["web", None, "book"]
    source = [names[0 if i % 10 < 6 else 1 if i % 10 < 9 else 2] for i in range(1797)]
    table = digits["table"].append_column("source", pa.array(source))
    folder, out = write_parquet(tmp_path / "in", table, files=3), tmp_path / "out"
    changes = {"input": folder, "strategy": "class_balanced", "group_column": "source"}
    changes |= {"noise_cut": 0.1, "noise_metric": "margin", "keep": 0.3}
    changes |= {"metric": ["rank(el2n)+0.5*rank(entropy)"]}
    expected = preview(settings(digits, out, **changes, dry_run=True, sample_rows=400))
    assert "rank(el2n) + 0.5 * rank(entropy)" in expected.explanation
    manifest = run(digits, out, **changes)
    scores = pq.read_table(out / "scores").to_pandas()
    parts = ((rankdata(scores[name]) - 1) / 1796 for name in ("el2n", "entropy"))
    formula = next(parts) + 0.5 * next(parts)
    assert np.abs(scores["rank(el2n) + 0.5 * rank(entropy)"] - formula).max() < 1e-6
    decisions = pq.read_table(out / "decisions").to_pandas()
    assert decisions["group"].tolist() == [name or "(null)" for name in source]
    noise = decisions["reason"] == "dropped: cut as noise"
    assert noise.sum() == manifest["reasons"]["dropped: cut as noise"] == 180
    assert scores["margin"][noise].max() <= scores["margin"][~noise].min()
    for name, left in decisions[~noise].groupby("group"):
        kept = left[left["kept"]]
        assert len(kept) == int(len(left) * 539 / 1617 + 0.5), name
        assert kept["score"].min() >= left[~left["kept"]]["score"].max()
    assert manifest["rows"]["kept"] == decisions["kept"].sum()
    assert set(manifest["rule"]["cutoffs"]) == {"web", "(null)", "book"}
    (found,) = explain(str(out), [place_of(digits, int(decisions.index[decisions["kept"]][0]))])
    assert "within group" in found.decision.ranked
    assert found.flip.keep is not None
    again = {**changes, "scores": str(out / "scores"), "strategy": "random_balanced"}
    assert run(digits, tmp_path / "two", **again)["reasons"]["dropped: cut as noise"] == 180
    with pytest.raises(ConfigError, match="group_column='id': the score table was made with"):
        run(digits, tmp_path / "three", **{**again, "group_column": "id"})


def test_finished_changed_overwritten(digits, tmp_path):
    out = tmp_path / "out"
    first = run(digits, out)
    stamp = (out / "manifest.json").stat().st_mtime_ns
    assert run(digits, out, actors=2, batch_size=32) == first
    assert (out / "manifest.json").stat().st_mtime_ns == stamp
    with pytest.raises(ConfigError, match=r"keep=0\.2: .* was made with 0\.5"):
        run(digits, out, keep=0.2)
    (out / "data" / "notes.txt").write_text("mine")
    again = run(digits, out, keep=0.2, overwrite=True)
    assert again["rows"]["kept"] == 359
    assert (out / "data" / "notes.txt").read_text() == "mine"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="output="):
        run(digits, tmp_path / "other")


def test_unfinished_run_continues(digits, tmp_path):
    out = tmp_path / "out"
    first = run(digits, out)
    parts = sorted((out / "scores").glob("*.parquet"))
    (out / "manifest.json").unlink()
    parts[0].unlink()
    (out / "scores" / f".writing-0a0a0a0a-{parts[0].name}").write_bytes(b"half")
    resumed = run(digits, out)
    assert resumed["content_hash"] == first["content_hash"]
    assert 0 < resumed["rows"]["scores_reused"] < 1797
    assert not list((out / "scores").glob(".writing-*"))
    assert [p["sha256"] for p in resumed["outputs"]] == [p["sha256"] for p in first["outputs"]]


def test_ties_are_cut_exactly(digits, tmp_path):
    state = {"1.weight": torch.zeros(10, 64), "1.bias": torch.zeros(10)}
    torch.save(state, tmp_path / "zero.pt")
    scored = {"checkpoint": [str(tmp_path / "zero.pt")]}
    for keep, kept in ((0.3, 539), (0.0, 0), (1.0, 1797)):
        out = tmp_path / f"keep-{keep}"
        assert run(digits, out, **scored, keep=keep)["rows"]["kept"] == kept
        table = pq.read_table(out / "data")
        assert table.num_rows == kept
        assert table.schema.equals(digits["table"].schema)
        scored = {"scores": f"{tmp_path}/keep-0.3/scores", "checkpoint": []}


def test_bad_rows_are_quarantined_with_their_reason(digits, tmp_path, monkeypatch):
    (tmp_path / "odd_models.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    images, labels = digit_rows(400)
    images[5, 0, 0] = 255
    rows = image_table(images, labels).to_pylist()
    rows[0]["img"]["bytes"] = b"not an image"
    rows[1]["img"] = None
    rows[2]["label"] = None
    rows[3]["img"]["bytes"] = png(np.zeros((9, 9), np.uint8))
    rows[4]["img"]["bytes"] = rows[4]["img"]["bytes"][:60]
    table = pa.Table.from_pylist(rows, image_table(images[:1], labels[:1]).schema)
    corpus = write_parquet(tmp_path / "corpus", table, files=2, group_rows=50)
    state = torch.load(digits["checkpoint"], weights_only=True)
    torch.save({k.replace("1.", "linear."): v for k, v in state.items()}, tmp_path / "odd.pt")
    changes = {"input": corpus, "model": "odd_models:odd", "checkpoint": [f"{tmp_path}/odd.pt"]}
    with pytest.raises(BadDataError, match=r"6 of 400 rows are bad.*000\.parquet:0: image cannot"):
        run(digits, tmp_path / "strict", **changes)
    assert not (tmp_path / "strict" / "data").exists()
    manifest = run(digits, tmp_path / "out", **changes, max_bad_rows="2%")
    assert manifest["rows"] == {
        "in": 400, "kept": 197, "dropped": 197, "quarantined": 6, "scores_reused": 0,
    }  # fmt: skip
    quarantine = pq.read_table(tmp_path / "out" / "quarantine").to_pylist()
    assert [row["row"] for row in quarantine] == [0, 1, 2, 3, 4, 5]
    reasons = [row["error"] for row in quarantine]
    assert reasons[1:3] == ["image is null", "label is null"]
    assert "is not" in reasons[3]
    assert reasons[5] == "el2n is not finite"
    assert set(kept_ids(tmp_path / "out")).isdisjoint(range(6))


def test_a_file_with_other_columns_is_quarantined_whole(digits, tmp_path):
    corpus = tmp_path / "corpus"
    write_parquet(corpus, digits["table"], files=3)
    other = digits["table"].slice(0, 50).drop_columns(["label"])
    pq.write_table(other, corpus / "zzz.parquet")
    (corpus / "broken.parquet").write_bytes(b"PAR1 but no more")
    changes = {"input": str(corpus), "max_bad_rows": "51"}
    manifest = run(digits, tmp_path / "out", **changes)
    assert manifest["rows"]["quarantined"] == 51
    assert manifest["rows"]["kept"] == 899
    errors = pq.read_table(tmp_path / "out" / "quarantine")["error"].to_pylist()
    assert sum("columns differ" in e for e in errors) == 50
    assert sum("unreadable file" in e for e in errors) == 1


@pytest.mark.parametrize("rows", [0, 1])
def test_tiny_corpora(digits, tmp_path, rows):
    corpus = write_parquet(tmp_path / "corpus", digits["table"].slice(0, rows))
    changes = {"input": corpus, "num_classes": 10, "features": ["img"], "image_size": 8}
    if rows == 0:
        with pytest.raises(BadDataError, match="no rows"):
            run(digits, tmp_path / "out", **changes)
        return
    manifest = run(digits, tmp_path / "out", **changes)
    assert manifest["rows"]["kept"] == 1


def test_string_labels_and_odd_column_types_survive(digits, tmp_path):
    names = np.array(
        ["null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"]
    )
    count = 300
    table = digits["table"].slice(0, count)
    rng = np.random.default_rng(1)
    texts = pa.array(names[digits["labels"][:count]])
    extra = {
        "label": texts.dictionary_encode(),
        "when": pa.array(rng.integers(0, 2**40, count), pa.timestamp("us", "UTC")),
        "price": pa.array([None if i % 7 == 0 else i for i in range(count)], pa.int16()),
        "tags": pa.array([["a"] * (i % 3) for i in range(count)]),
        "nested": pa.array([{"x": i, "y": [i, None]} for i in range(count)]),
        "big": pa.array([f"row {i}" for i in range(count)], pa.large_string()),
    }
    for name, values in extra.items():
        if name in table.schema.names:
            table = table.drop_columns([name])
        table = table.append_column(name, values)
    table = table.replace_schema_metadata({"made by": "a test"})
    corpus = write_parquet(tmp_path / "corpus", table, files=2, group_rows=40)
    changes = {"input": corpus, "checkpoint": [], "proxy_seeds": 1, "proxy_epochs": 1}
    manifest = run(digits, tmp_path / "out", **changes, strategy="class_balanced", keep=0.5)
    written = pq.read_table(tmp_path / "out" / "data")
    kept = written["id"].to_numpy()
    assert written.schema.equals(pq.read_schema(f"{corpus}/000.parquet"), check_metadata=True)
    assert written.to_pylist() == [table.slice(int(i), 1).to_pylist()[0] for i in kept]
    assert {c["name"] for c in manifest["classes"]} == set(names)


def test_columns_in_another_order(digits, tmp_path):
    corpus = tmp_path / "corpus"
    write_parquet(corpus, digits["table"].slice(0, 200))
    turned = digits["table"].slice(200, 200).select(["id", "label", "img"])
    pq.write_table(turned, corpus / "turned.parquet")
    manifest = run(digits, tmp_path / "out", input=str(corpus), keep=1.0)
    assert manifest["rows"]["kept"] == 400
    assert pq.read_table(tmp_path / "out" / "data").equals(digits["table"].slice(0, 400))


def test_regression_on_a_table(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 3)) * [1, 100, 0.01]
    price = x @ [2.0, 0.03, 50.0] + 1000
    columns = {f"x{i}": x[:, i] for i in range(3)} | {"shop": rng.choice(["a", "b"], 600)}
    table = pa.table({**columns, "price": price})
    corpus = write_parquet(tmp_path / "corpus", table, files=2)
    config = {"input": corpus, "output": f"{tmp_path}/out", "label": "price", "actors": 1}
    with pytest.raises(ConfigError, match=r"metric='el2n': is not defined for regression"):
        prune(PruneConfig.from_flat(config))
    changes = {"metric": ["loss", "grad_norm", "output_deviation"], "proxy_epochs": 30}
    manifest = prune(PruneConfig.from_flat({**config, **changes, "proxy_seeds": 1}))
    assert manifest["rows"]["kept"] == 300
    scores = pq.read_table(tmp_path / "out" / "scores")
    assert scores["loss"].to_numpy().mean() < 0.5 * price.var()
    assert scores["label"].to_numpy() == pytest.approx(price)


def test_text_corpus(tmp_path):
    words = ["good fine great film", "bad poor dull film"]
    texts = [f"{words[i % 2]} number {i}" for i in range(400)]
    table = pa.table({"sentence": texts, "label": [i % 2 for i in range(400)]})
    corpus = write_parquet(tmp_path / "corpus", table)
    config = {"input": corpus, "output": f"{tmp_path}/out", "actors": 1, "keep": 0.25}
    manifest = prune(PruneConfig.from_flat({**config, "proxy_seeds": 1, "proxy_epochs": 3}))
    assert manifest["rows"]["kept"] == 100
    assert manifest["recognised"][0].startswith("text features (recognised) from sentence")
    (found,) = explain(f"{tmp_path}/out", ["000.parquet:7"])
    assert found.nearest.model.endswith("proxy/seed-0.safetensors")
    distances = [n.distance for n in found.nearest.rows]
    assert (len(distances), found.nearest.searched) == (5, 100)
    assert distances == sorted(distances)


def test_wrong_settings_name_the_field(digits, tmp_path, monkeypatch):
    (tmp_path / "odd_models.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    cases = [
        ({"metric": ["el3n"]}, r"metric='el3n': unknown; choose one of: .*el2n"),
        ({"strategy": "best"}, r"strategy='best': unknown; choose one of: .*ratio"),
        ({"label": "none"}, r"metric='el2n': needs labels"),
        ({"label": "lable"}, r"label='lable': no such column; the corpus has"),
        ({"model": "mlp:64"}, r"checkpoint=.*does not fit the model"),
        ({"model": "nowhere:factory"}, r"model='nowhere:factory': cannot be imported"),
        ({"checkpoint": ["gone.pt"]}, r"checkpoint='gone\.pt': no such file"),
        ({"strategy": "threshold"}, r"threshold=None"),
        ({"strategy": "window", "beta": 0.3, "keep": 0.8}, r"beta=0\.3: .*keep=0\.8"),
        ({"strategy": "mean_ratio", "metric": ["loss"]}, r"loss"),
        ({"input": str(tmp_path / "nothing")}, r"input=.*no such file or folder"),
        ({"mean": [0.1, 0.2]}, r"mean=\(0\.1, 0\.2\): give 1 value"),
    ]
    for changes, message in cases:
        with pytest.raises(ConfigError, match=message):
            run(digits, out, **changes, overwrite=out.exists())
    state = {"0.weight": torch.zeros(10, 1, 8, 8), "0.bias": torch.zeros(10)}
    torch.save(state, tmp_path / "conv.pt")
    changes = {"model": "odd_models:no_linear", "checkpoint": [f"{tmp_path}/conv.pt"]}
    with pytest.raises(ConfigError, match=r"metric='grad_norm': needs penultimate features"):
        run(digits, out, **changes, metric=["grad_norm"], overwrite=out.exists())


def test_preview_is_near_the_run_and_writes_nothing(digits, tmp_path):
    changes = {"strategy": "class_balanced", "keep": 0.3, "sample_rows": 600, "dry_run": True}
    expected = preview(settings(digits, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()
    assert expected.rows == 1797
    assert abs(expected.kept - 0.3 * 1797) < 60
    assert {share.name for share in expected.classes} == set(map(str, range(10)))
    assert sum(share.rows for share in expected.files) == 1797
    ratio = preview(settings(digits, tmp_path / "out", keep=0.3, sample_rows=600, dry_run=True))
    true_cut = np.sort(reference_el2n(digits))[-539]
    assert ratio.cutoff_low <= true_cut <= ratio.cutoff_high
    assert "would keep" in ratio.text()
    changes = {"strategy": "window", "beta": 0.2, "sample_rows": 600, "dry_run": True}
    window = preview(settings(digits, tmp_path / "out", **changes, keep=0.1))
    assert (window.cutoff_low, window.cutoff_high) == (ratio.cutoff_low, ratio.cutoff_high)
    trained = preview(settings(digits, tmp_path / "out", checkpoint=[], proxy_epochs=1))
    assert trained.estimates[0].of("train proxy") > ratio.estimates[0].of("train proxy") == 0.0
    assert ratio.estimates[0].of("score") > 0


def test_what_an_unfinished_run_decided_and_wrote_is_not_done_again(digits, tmp_path, monkeypatch):
    monkeypatch.setattr("dataprune_ray.pipeline.forget_records", lambda *_: None)
    output = tmp_path / "out"
    first = run(digits, output, part_rows=200)
    assert first["reused"] == {"scores": 0, "decisions": 0, "parts": 0}
    monkeypatch.undo()
    (output / "manifest.json").unlink()  # as if it had been killed before the manifest
    files = [p for f in ("decisions", "data", "scores") for p in (output / f).glob("*.parquet")]
    parts = sorted((output / "data").glob("*.parquet"))
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
    parts[1].unlink()
    parts[2].write_bytes(parts[2].read_bytes()[:-1])
    again = run(digits, output, part_rows=200)
    rows = len(digits["table"])
    assert again["reused"] == {"scores": rows, "decisions": rows, "parts": len(parts) - 2}
    for path, (changed, content) in before.items():
        assert path.read_bytes() == content
        assert (path.stat().st_mtime_ns == changed) == (path not in parts[1:3])
    assert again["outputs"] == first["outputs"]
    assert again["content_hash"] == first["content_hash"]
    assert not list((output / "decisions").glob("_part-*"))
    assert "An attempt that was cut off" in (output / "report.html").read_text()


def test_parts_of_another_cut_are_written_anew(digits, tmp_path, monkeypatch):
    """Decisions that changed since a part was written make that part void."""
    monkeypatch.setattr("dataprune_ray.pipeline.forget_records", lambda *_: None)
    output = tmp_path / "out"
    first = run(digits, output, part_rows=300)
    (output / "manifest.json").unlink()
    lost = min((output / "decisions").glob("*.parquet"))
    lost.unlink()
    again = run(digits, output, part_rows=300)
    assert again["reused"]["decisions"] < len(digits["table"])
    assert again["reused"]["parts"] < len(first["outputs"])
    assert again["outputs"] == first["outputs"]
