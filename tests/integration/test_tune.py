"""Searching a strategy on digits with wrong labels: rounds, the choice, its settings, the gate."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))

from corpora import digit_rows, image_table, write_parquet

from dataprune_ray.config import PruneConfig
from dataprune_ray.errors import ConfigError, GateError
from dataprune_ray.pipeline import preview, prune, tune

pytestmark = pytest.mark.usefixtures("local_ray")
NOISY = 0.3


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """Digits of which three in ten have another label, and what the true ones are."""
    folder = tmp_path_factory.mktemp("tune")
    images, labels = digit_rows()
    rng = np.random.default_rng(1)
    wrong = rng.random(len(labels)) < NOISY
    given = np.where(wrong, (labels + rng.integers(1, 10, len(labels))) % 10, labels)
    write_parquet(folder / "train", image_table(images, given), files=3)
    return {"folder": folder, "wrong": wrong}


def settings(noisy, output, **changes):
    base = {
        "input": str(noisy["folder"] / "train"),
        "output": str(noisy["folder"] / output),
        "id_column": "id",
        "model": "linear",
        "proxy_seeds": 1,
        "proxy_epochs": 6,
        "proxy_learning_rate": 0.01,
        "learning_rate": 0.02,
        "candidates": ["ratio", "window:0.3", "stratified:0.3"],
        "keep": 0.3,
        "epochs": 12,
        "seeds": 2,
        "rounds": 2,
        "actors": 1,
        "quality_folds": 2,
    }
    return PruneConfig.from_flat({**base, **changes})


@pytest.fixture(scope="module")
def tuned(noisy):
    return tune(settings(noisy, "tuned"))


def by_round(tuned):
    rounds = {}
    for step in tuned["steps"]:
        rounds.setdefault(step["round"], {})[step["candidate"]] = step
    return rounds


def test_rounds_halve_the_candidates_double_the_updates_and_keep_random(tuned):
    first, second = by_round(tuned).values()
    assert set(first) == {"ratio", "window:0.3", "stratified:0.3", "random"}
    assert {step["survived"] for step in second.values()} == {True} or len(second) > 1
    assert set(second) == {name for name, step in first.items() if step["survived"]}
    assert "random" in second
    best_half = sorted(first, key=lambda name: -first[name]["mean"])[:2]
    assert set(second) == {*best_half, "random"}
    updates = {step["updates"] for step in first.values()}, {s["updates"] for s in second.values()}
    (small,), (large,) = updates
    assert large == pytest.approx(2 * small, abs=1)


def test_the_hardest_rows_of_a_noisy_corpus_are_not_chosen(tuned):
    first = by_round(tuned)[1]
    assert first["ratio"]["mean"] < first["random"]["mean"]
    assert tuned["strategy"] != "ratio"
    assert tuned["chosen"] in tuned["reason"] or tuned["chosen"] == "random"


def test_the_choice_is_confirmed_on_seeds_that_no_round_used(noisy, tuned):
    records = [json.loads(p.read_text()) for p in (noisy["folder"] / "tuned/tune").glob("*.json")]
    fresh = [record for record in records if record["seed"] >= 1_000]
    assert {record["seed"] for record in fresh} == {1_000, 1_001}
    best = max(by_round(tuned)[2].values(), key=lambda step: step["mean"])["candidate"]
    assert {record["arm"] for record in fresh} == {best, "random"}
    assert {record["test_rows"] for record in records} == {tuned["validation_rows"]}


def test_a_search_goes_on_where_it_stopped(noisy, tuned):
    folder = noisy["folder"] / "tuned" / "tune"
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    assert before
    again = tune(settings(noisy, "tuned"))
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.json")} == before
    assert again["steps"] == tuned["steps"]
    assert again["chosen"] == tuned["chosen"]


def test_its_settings_prune_as_the_automatic_strategy_does(noisy, tuned):
    best = yaml.safe_load((noisy["folder"] / "tuned" / "best.yaml").read_text())
    assert best["strategy"] == tuned["strategy"]
    by_file = prune(PruneConfig.from_flat({**best, "output": str(noisy["folder"] / "by-file")}))
    by_auto = prune(settings(noisy, "by-auto", strategy="auto", quality=True))
    assert by_auto["tuned"]["noise_share"] == pytest.approx(NOISY, abs=0.08)
    assert by_auto["tuned"]["chosen"] == tuned["chosen"]
    assert by_auto["strategy"] == tuned["strategy"]
    assert by_auto["content_hash"] == by_file["content_hash"]
    kept = ds.dataset(noisy["folder"] / "by-auto" / "data", format="parquet").to_table()
    assert len(kept) == by_auto["rows"]["kept"] == int(0.3 * 1797 + 0.5)
    if tuned["strategy"] != "random":
        assert noisy["wrong"][kept["id"].to_numpy()].mean() < NOISY / 2
    assert "How the strategy was found" in (noisy["folder"] / "by-auto/report.html").read_text()


def test_the_smallest_keep_that_passes_is_taken_and_none_is_an_error(noisy, tuned):
    changes = {
        "candidates": ["class_balanced"],
        "rounds": 1,
        "scores": f"{tuned['output']}/scores",
        "epochs": 2,
    }
    found = tune(settings(noisy, "any", **changes, keeps=[0.6, 0.2], max_drop=90.0))
    assert found["keep"] == 0.2
    assert {step["keep"] for step in found["steps"]} == {0.6, 0.2}
    strict = {"max_drop": 0.0, "confidence": 0.999, "keeps": [0.02]}
    with pytest.raises(GateError, match=r"no keep of 0\.02 passes"):
        tune(settings(noisy, "strict", **changes, **strict))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates": ["nothing"]}, "strategy='nothing'"),
        ({"candidates": ["ratio:0.2"]}, "leave beta out"),
        ({"candidates": ["window:x"]}, "give a beta"),
        ({"candidates": ["threshold"]}, "does not keep a given fraction"),
        ({"keeps": [0.0]}, "keeps=0.0"),
        ({"label": "none", "checkpoint": "x"}, "checkpoint='x'|label"),
    ],
)
def test_wrong_settings_are_refused_before_anything_runs(noisy, changes, message):
    with pytest.raises(ConfigError, match=message):
        tune(settings(noisy, "refused", **changes))
    assert not (noisy["folder"] / "refused").exists()


def test_a_dry_run_cannot_choose(noisy):
    with pytest.raises(ConfigError, match="--dry-run"):
        preview(settings(noisy, "dry", strategy="auto", dry_run=True))
