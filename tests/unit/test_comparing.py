"""Comparisons without Ray: equal updates and equal epochs, arms asked for, places, the gate."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from dataprune_ray import comparing, concluding, retraining
from dataprune_ray.arms import Arm
from dataprune_ray.comparing import Entry, Round
from dataprune_ray.config import CompareConfig
from dataprune_ray.errors import ConfigError, GateError
from dataprune_ray.features import FeatureSpec, LabelSpec
from dataprune_ray.models import ModelSpec
from dataprune_ray.summary import comparison_for_scheduler, comparison_text

MODEL = ModelSpec("linear", FeatureSpec("tensor", ("x",), (3,)), LabelSpec("y", classes=("0", "1")))
SUBJECT = SimpleNamespace(
    corpus=SimpleNamespace(fingerprint=lambda: "f"), manifest={"content_hash": "h"}, root="pruned"
)


def planned(rows, full, seed=None, **settings):
    config = CompareConfig.from_flat({"train_batch_size": 100, "epochs": 4, **settings})
    entry = Entry(Arm("pruned", "s", ("f",)), seed)
    bout = Round(None, SimpleNamespace(), MODEL, (entry,), SimpleNamespace(), None, "t")
    return list(retraining.plans(config, [SUBJECT], bout, entry, rows, full))


def test_equal_updates_are_those_of_the_full_arm():
    found = planned(301, 1_001)
    assert {plan.updates for plan in found} == {4 * 11}
    assert [plan.seed for plan in found] == [0, 1, 2]
    assert {plan.per_epoch for plan in found} == {4}


def test_equal_epochs_are_as_many_passes():
    (plan,) = planned(301, 1_001, seeds=1, budget="epochs")
    assert plan.updates == 4 * 4
    (plan,) = planned(301, 1_001, seeds=1, budget="epochs", updates=22)
    assert plan.updates == 2 * 4


def test_both_budgets_share_a_training_where_it_is_the_same():
    updates, epochs = planned(1_001, 1_001, seeds=1, budget="both")
    assert updates.digest() == epochs.digest()
    updates, epochs = planned(301, 1_001, seeds=1, budget="both")
    assert updates.digest() != epochs.digest()


def test_an_entry_with_a_seed_is_trained_from_that_alone():
    assert [plan.seed for plan in planned(301, 1_001, seed=2)] == [2]


def test_everything_that_matters_is_in_the_digest():
    (base,) = planned(301, 1_001, seeds=1)
    for changed in ({"learning_rate": 0.1}, {"optimizer": "sgd"}, {"updates": 7}):
        assert planned(301, 1_001, seeds=1, **changed)[0].digest() != base.digest()
    same = {"train_gpus": 1.0, "budget": "updates", "max_failures": 9, "train_memory_mb": 7}
    assert planned(301, 1_001, seeds=1, **same)[0].digest() == base.digest()


def test_arms_that_were_asked_for():
    names = ["full", "pruned", "random", "random_balanced", "pruned:b", "random:b"]
    entries = [Entry(Arm(name, "s", ())) for name in names]
    config = CompareConfig.from_flat({"arms": ["pruned", "random"]})
    found = [entry.arm.name for entry in comparing._asked(config, entries)]
    assert found == ["pruned", "random", "pruned:b", "random:b"]
    assert len(comparing._asked(CompareConfig(), entries)) == len(names)


def test_a_foreign_folder_is_not_written_into(tmp_path):
    config = CompareConfig.from_flat({"output": str(tmp_path)})
    assert concluding.place(config, [SUBJECT]) == str(tmp_path)
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match=r"thesis\.tex"):
        concluding.place(config, [SUBJECT])
    (tmp_path / concluding.RESULT).write_text("{}")
    assert concluding.place(config, [SUBJECT]) == str(tmp_path)
    assert concluding.place(CompareConfig(), [SUBJECT]) == "pruned"


def test_an_earlier_comparison_is_forgotten_and_nothing_else(tmp_path):
    (tmp_path / "comparison").mkdir()
    (tmp_path / "comparison" / "trial.json").write_text("{}")
    (tmp_path / "comparison.json").write_text("{}")
    (tmp_path / "manifest.json").write_text("{}")
    concluding.forget(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


ARM = {
    "arm": "pruned",
    "budget": "updates",
    "rows": 300,
    "keep": 0.3,
    "mean": 97.5,
    "std": 0.1,
    "runs": 3,
    "updates": 44.0,
    "seconds": 1.5,
    "to_full": {"mean": -0.25, "low": -0.5, "high": 0.0, "pairs": 3},
    "to_random": {"mean": 1.0, "low": None, "high": None, "pairs": 1},
    "worst_class": ["seven", -2.0],
}
FOUND = {
    "measure": "accuracy",
    "test": "100 rows of t",
    "arms": [ARM],
    "costs": {
        "prune_seconds": [["score", 8.0], ["write", 2.0]],
        "saved_seconds": 4.0,
        "measured": True,
        "break_even": 2.5,
    },
    "passed": False,
    "reasons": ["pruned minus full: too low."],
    "notes": ["A note."],
    "output": "o/",
}


def test_the_text_holds_the_table_the_costs_and_the_verdict():
    text = comparison_text(FOUND)
    for part in (
        "97.50 ± 0.10",
        "-0.25 [-0.50, +0.00]",
        "+1.00 [one pair]",
        "seven, -2.00 points",
        "Pruning took 10.0 s; a training saves 4.0 s (measured)",
        "after 2.5 trainings",
        "Gate FAILED: pruned minus full: too low.",
        "Note: A note.",
        "o/comparison.json",
    ):
        assert part in text, part
    never = {**FOUND["costs"], "break_even": None}
    assert "does not pay" in comparison_text({**FOUND, "costs": never})


def test_a_scheduler_reads_the_verdict():
    line = json.loads(json.dumps(comparison_for_scheduler(FOUND)))
    assert line["passed"] is False
    assert line["arms"][0]["to_full"]["mean"] == -0.25


def test_the_gate_is_an_error_of_its_own():
    concluding.check_gate({"passed": True, "reasons": []})
    with pytest.raises(GateError, match="too low") as caught:
        concluding.check_gate(FOUND)
    assert caught.value.exit_code == 3
