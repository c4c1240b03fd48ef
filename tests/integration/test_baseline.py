"""Runs that reuse the scores of a baseline: what is scored, what comes out, what is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray

sys.path.insert(0, str(Path(__file__).parent))

from corpora import digit_rows, image_table, linear_checkpoint, write_parquet, write_tars

from dataprune_ray.config import PruneConfig
from dataprune_ray.errors import ConfigError, GateError
from dataprune_ray.manifest import check_drift
from dataprune_ray.pipeline import preview, prune

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("local_ray")


def run(corpus, output, **changes):
    base = {"input": str(corpus), "output": str(output), "model": "linear", "actors": 1}
    return prune(PruneConfig.from_flat({**base, **changes}))


def grow(corpus, table):
    """Two files more, one changed, one gone, and one only touched."""
    os.utime(corpus / "002.parquet", ns=(1, 1))
    pq.write_table(table.slice(1500, 60), corpus / "0025.parquet")
    pq.write_table(table.slice(1560, 60), corpus / "zzz.parquet")
    pq.write_table(table.slice(1620, 90), corpus / "004.parquet")
    (corpus / "007.parquet").unlink()


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """A finished run over ten files, and the corpus as it is since."""
    folder = tmp_path_factory.mktemp("grown")
    images, labels = digit_rows()
    table = image_table(images, labels)
    corpus = Path(write_parquet(folder / "corpus", table.slice(0, 1500), files=10))
    checkpoint = [linear_checkpoint(folder / "linear.pt", images, labels)]
    first = run(corpus, folder / "first", checkpoint=checkpoint)
    grow(corpus, table)
    return {"corpus": corpus, "checkpoint": checkpoint, "first": first, "folder": folder}


def test_exactly_the_new_and_changed_files_are_scored(grown, tmp_path):
    first = grown["folder"] / "first"
    doctored = tmp_path / "first"
    shutil.copytree(first, doctored)
    settings = {"checkpoint": grown["checkpoint"], "baseline": str(doctored), "keep": 0.3}
    again = run(grown["corpus"], tmp_path / "again", **settings)
    scratch = run(
        grown["corpus"], tmp_path / "scratch", checkpoint=settings["checkpoint"], keep=0.3
    )
    assert again["baseline"]["files"] == {
        "reused": 8, "scored": 3, "new": 2, "changed": 1, "vanished": 1,
    }  # fmt: skip
    assert again["baseline"]["rows"] == {"reused": 1200, "scored": 210}
    assert again["rows"]["in"] == scratch["rows"]["in"] == 1410
    assert again["content_hash"] == scratch["content_hash"]
    assert [p["sha256"] for p in again["outputs"]] == [p["sha256"] for p in scratch["outputs"]]
    columns = ["file", "row", "row_hash", "label", "el2n", "error"]
    tables = [
        pq.read_table(tmp_path / name / "scores", columns=columns).to_pylist()
        for name in ("again", "scratch")
    ]
    assert tables[0] == tables[1]
    assert "drift since" in (tmp_path / "again" / "report.html").read_text().lower()
    assert 0 <= again["drift"]["psi"] < 0.25
    cut = run(
        grown["corpus"], tmp_path / "cut", scores=f"{tmp_path}/again/scores", keep=0.2
    )  # fmt: skip
    assert cut["rows"]["kept"] == 282


def test_what_differs_is_refused_and_named(grown, tmp_path):
    first = str(grown["folder"] / "first")
    base = {"checkpoint": grown["checkpoint"], "baseline": first}
    cases = [
        ({"metric": ["margin"]}, "metric="),
        ({"metric": ["el2n", "output_deviation"]}, "metric='output_deviation': looks at"),
        ({"precision": "bfloat16"}, "precision="),
        ({"model": "mlp"}, "model="),
        ({"mean": [0.5]}, "mean="),
        ({"checkpoint": []}, "checkpoint="),
        ({"baseline": str(tmp_path)}, "baseline=.*is not the output of a finished run"),
        ({"scores": f"{first}/scores"}, "scores=.*cannot be combined"),
    ]
    for changes, message in cases:
        with pytest.raises(ConfigError, match=message):
            run(grown["corpus"], tmp_path / "out", **{**base, **changes})
    with pytest.raises(ConfigError, match="is the output itself"):
        run(grown["corpus"], first, **base)
    assert not (tmp_path / "out").exists()


def expected(corpus, output, **changes):
    base = {"input": str(corpus), "output": str(output), "model": "linear", "actors": 1}
    return preview(PruneConfig.from_flat({**base, "dry_run": True, **changes}))


def job(*words):
    """The prune job in a process of its own that joins the tests' Ray: exit code, last line."""
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, str(ROOT / "jobs" / "prune.py"), f"--address={address}", "--json"]
    done = subprocess.run(
        [*command, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


def test_drift_gates_and_repeats(grown, tmp_path):
    settings = {"checkpoint": grown["checkpoint"], "baseline": str(grown["folder"] / "first")}
    settings |= {"max_drift": 0.0, "seed": 3}
    words = [f"--{k.replace('_', '-')}={v}" for k, v in settings.items() if k != "checkpoint"]
    words += [f"--input={grown['corpus']}", f"--output={tmp_path / 'out'}", "--model=linear"]
    code, line = job(*words, f"--checkpoint={grown['checkpoint'][0]}", "--actors=1")
    assert code == line["exit_code"] == 3
    assert "beyond --max-drift 0" in line["error"]
    assert line["drift"]["exceeded"]
    assert line["drift"]["worst_psi"] > line["drift"]["max_drift"] == 0
    assert line["baseline"]["rows"] == {"reused": 1200, "scored": 210}
    found = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert found["baseline"]["rows"] == {"reused": 1200, "scored": 210}
    assert found["drift"]["exceeded"]
    assert pq.read_table(tmp_path / "out" / "data").num_rows == found["rows"]["kept"] == 705
    os.utime(grown["corpus"] / "003.parquet", ns=(3, 3))  # touched since: still the same corpus
    again = run(grown["corpus"], tmp_path / "out", **settings)
    assert again == found
    with pytest.raises(GateError, match="beyond --max-drift 0"):
        check_drift(again)
    look = expected(grown["corpus"], tmp_path / "none", **settings)
    assert (look.rows, look.sampled, look.kept) == (1410, 1410, 705)
    assert look.cutoff == found["rule"]["cutoffs"][""]


def test_a_dry_run_with_a_baseline_looks_and_writes_nothing(grown, tmp_path, caplog):
    first = grown["folder"] / "first"
    settings = {"checkpoint": grown["checkpoint"], "baseline": str(first)}
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    caplog.set_level("INFO", "dataprune")
    expected(grown["corpus"], tmp_path / "out", **settings)
    assert "8 files unchanged, 2 new, 1 changed, 1 vanished" in caplog.text
    for changes, message in (
        ({"metric": ["margin"]}, "metric="),
        ({"baseline": str(tmp_path)}, "is not the output of a finished run"),
    ):
        with pytest.raises(ConfigError, match=message):
            expected(grown["corpus"], tmp_path / "out", **{**settings, **changes})
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == before
    assert list(tmp_path.iterdir()) == []


def test_proxies_are_used_again_and_unknown_labels_are_bad(tmp_path):
    images, labels = digit_rows(600)
    table = image_table(images, labels)
    corpus = Path(write_parquet(tmp_path / "corpus", table, files=3))
    options = {"proxy_seeds": 1, "proxy_epochs": 1, "max_bad_rows": "10"}
    first = run(corpus, tmp_path / "a", **options)
    pq.write_table(image_table(images[:4], labels[:4] + 40, range(4)), corpus / "new.parquet")
    look = expected(corpus, tmp_path / "b", **options, baseline=str(tmp_path / "a"))
    assert (look.rows, look.bad, look.estimates[0].of("train proxy")) == (604, 4, 0.0)
    second = run(corpus, tmp_path / "b", **options, baseline=str(tmp_path / "a"))
    assert look.cutoff == second["rule"]["cutoffs"][""]
    weights = [(tmp_path / n / "proxy" / "seed-0.safetensors").read_bytes() for n in "ab"]
    assert weights[0] == weights[1]
    assert second["model"]["proxies"][0]["reused"]
    assert second["baseline"]["proxies_reused"]
    assert second["rows"]["quarantined"] == 4
    assert any("does not know" in text for text in second["warnings"])
    assert second["content_hash"] == first["content_hash"]
    with pytest.raises(ConfigError, match="seed=1"):
        run(corpus, tmp_path / "c", **options, baseline=str(tmp_path / "b"), seed=1)
    third = run(corpus, tmp_path / "c", **options, baseline=str(tmp_path / "b"))
    assert third["baseline"]["files"]["scored"] == 0


def test_archives_are_reused(tmp_path):
    images, labels = digit_rows(200)
    write_tars(tmp_path / "corpus", image_table(images[:120], labels[:120]))
    options = {"label": "cls", "checkpoint": [linear_checkpoint(tmp_path / "l.pt", images, labels)]}
    run(tmp_path / "corpus", tmp_path / "a", **options)
    write_tars(tmp_path / "more", image_table(images[120:], labels[120:]), files=1)
    (tmp_path / "more" / "shard-0.tar").rename(tmp_path / "corpus" / "shard-9.tar")
    again = run(tmp_path / "corpus", tmp_path / "b", **options, baseline=str(tmp_path / "a"))
    assert again["baseline"]["rows"] == {"reused": 120, "scored": 80}
    scratch = run(tmp_path / "corpus", tmp_path / "c", **options)
    assert again["content_hash"] == scratch["content_hash"]
    assert [p["sha256"] for p in again["outputs"]] == [p["sha256"] for p in scratch["outputs"]]
