"""Comparisons on digits: what arms are trained on, leaks, budgets, streams, resuming, the gate."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch

sys.path.insert(0, str(Path(__file__).parent))

from corpora import digit_rows, image_table, linear_checkpoint, write_parquet, write_tars

from dataprune_ray import comparing, folds, holding
from dataprune_ray.arms import kept_hashes
from dataprune_ray.concluding import check_gate
from dataprune_ray.config import CompareConfig, PruneConfig
from dataprune_ray.errors import ConfigError, DataPruneError, GateError
from dataprune_ray.inference import interval
from dataprune_ray.io import open_corpus
from dataprune_ray.io.identity import as_keys, key_hashes
from dataprune_ray.io.splits import Split
from dataprune_ray.pipeline import compare, prune
from dataprune_ray.understanding import complete, understand

pytestmark = pytest.mark.usefixtures("local_ray")
TRAIN = 1_400


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Digits pruned to 0.4 by a given checkpoint, and 397 digits to test on."""
    folder = tmp_path_factory.mktemp("compare")
    images, labels = digit_rows()
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = order[:TRAIN], order[TRAIN:]
    table = image_table(images[train], labels[train], train)
    write_parquet(folder / "train", table, files=3)
    write_parquet(folder / "test", image_table(images[test], labels[test], test))
    checkpoint = linear_checkpoint(folder / "linear.pt", images[train], labels[train])
    settings = {
        "input": str(folder / "train"),
        "model": "linear",
        "checkpoint": checkpoint,
        "id_column": "id",
        "strategy": "class_balanced",
        "actors": 1,
    }
    for keep in (0.4, 0.1):
        output = str(folder / f"pruned-{round(100 * keep)}")
        prune(PruneConfig.from_flat({**settings, "keep": keep, "output": output}))
    return folder


def run(place, **changes):
    base = {
        "pruned": str(place / "pruned-40"),
        "test": str(place / "test"),
        "output": str(place / "compared"),
        "seeds": 2,
        "epochs": 4,
        "learning_rate": 0.01,
        "train_batch_size": 64,
    }
    settings = {k: v for k, v in {**base, **changes}.items() if v is not None}
    return compare(CompareConfig.from_flat(settings))


def arms_of(found):
    return {(arm["arm"], arm["budget"]): arm for arm in found["arms"]}


@pytest.fixture(scope="module")
def compared(place):
    return run(place)


def test_every_arm_has_its_size_and_all_make_the_same_updates(compared, place):
    arms = arms_of(compared)
    names = ["full", "pruned", "random", "random_balanced"]
    assert [name for name, _ in arms] == names
    kept = json.loads((place / "pruned-40" / "manifest.json").read_text())["rows"]["kept"]
    assert [arms[name, "updates"]["rows"] for name in names] == [TRAIN, kept, kept, kept]
    assert {run["updates"] for run in compared["runs"]} == {4 * -(-TRAIN // 64)}
    assert all(run["test_rows"] == 397 for run in compared["runs"])
    assert len(compared["runs"]) == 8


def test_the_table_can_be_redone_from_the_single_runs(compared, place):
    stored = json.loads((place / "compared" / "comparison.json").read_text())
    assert stored == compared
    arm = arms_of(compared)["pruned", "updates"]
    scores = {
        name: [r["score"] for r in compared["runs"] if r["arm"] == name]
        for name in ("full", "pruned")
    }
    assert arm["mean"] == pytest.approx(np.mean(scores["pruned"]))
    assert arm["std"] == pytest.approx(np.std(scores["pruned"], ddof=1))
    expected = interval(np.subtract(scores["pruned"], scores["full"]), 0.95)
    assert arm["to_full"]["mean"] == pytest.approx(expected.mean)
    assert arm["to_full"]["low"] == pytest.approx(expected.low)


def test_a_run_is_what_a_plain_loop_makes_of_the_pruned_files(compared, place):
    """The pruned arm against torch alone, reading the files that the prune job wrote."""
    import io  # noqa: PLC0415

    from PIL import Image  # noqa: PLC0415

    def read(folder):
        table = pa.concat_tables([pq.read_table(p) for p in sorted(Path(folder).glob("*.parquet"))])
        pixels = [np.asarray(Image.open(io.BytesIO(r["bytes"]))) for r in table["img"].to_pylist()]
        keys = as_keys(table["id"].combine_chunks())
        order = np.argsort(key_hashes(keys))
        x = torch.from_numpy(np.stack(pixels)[order]).float().flatten(1) / 255
        return x, torch.from_numpy(table["label"].to_numpy()[order].copy())

    x, y = read(place / "pruned-40" / "data")
    tx, ty = read(place / "test")
    seed, size, epochs = 1, 64, 4
    updates = epochs * -(-TRAIN // size)
    torch.manual_seed(seed)
    model = torch.nn.Linear(64, 10)
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    generator = torch.Generator().manual_seed(seed * 1_000_003)
    done = 0
    while done < updates:
        for index in torch.randperm(len(y), generator=generator).split(size):
            if done == updates:
                break
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(model(x[index]), y[index]).backward()
            optimiser.step()
            schedule.step()
            done += 1
    accuracy = 100 * float((model(tx).argmax(1) == ty).float().mean())
    (mine,) = [r for r in compared["runs"] if r["arm"] == "pruned" and r["seed"] == seed]
    assert mine["score"] == pytest.approx(accuracy, abs=0.3)  # one test row of 397


def test_finished_trainings_are_not_made_again(compared, place):
    records = sorted((place / "compared" / "comparison").glob("trial-*.json"))
    assert len(records) == 8
    before = {path: path.stat().st_mtime_ns for path in records[1:]}
    records[0].unlink()
    again = run(place)
    assert {path: path.stat().st_mtime_ns for path in records[1:]} == before
    assert records[0].exists()
    for old, new in zip(compared["runs"], again["runs"], strict=True):
        assert {**old, "seconds": 0} == {**new, "seconds": 0}


def test_equal_epochs_are_fewer_updates_and_the_full_arm_is_trained_once(place, compared):
    found = run(place, budget="both")
    arms = arms_of(found)
    assert arms["pruned", "epochs"]["updates"] == 4 * -(-560 // 64)
    assert arms["full", "epochs"]["mean"] == arms["full", "updates"]["mean"]
    assert found["costs"]["measured"]
    assert not compared["costs"]["measured"]


def test_several_cuts_have_random_arms_of_their_own_sizes(place):
    pruned = [str(place / "pruned-40"), str(place / "pruned-10")]
    found = run(place, pruned=pruned, arms=["full", "pruned", "random"])
    rows = {arm["arm"]: arm["rows"] for arm in found["arms"]}
    assert rows["pruned:pruned-10"] == rows["random:pruned-10"] < rows["random"] == rows["pruned"]
    runs = [r for r in found["runs"] if r["arm"].endswith(":pruned-10")]
    ours, theirs = ([r["score"] for r in runs if r["arm"].startswith(k)] for k in ("pr", "ra"))
    arm = arms_of(found)["pruned:pruned-10", "updates"]
    assert arm["to_random"]["mean"] == pytest.approx(np.mean(np.subtract(ours, theirs)))


def test_a_weighted_cut_is_trained_with_its_weights(place):
    """Those of its decisions, with a mean of 1 over the arm; other arms are as they were."""
    output = str(place / "pruned-weighted")
    settings = {"input": str(place / "train"), "model": "linear", "id_column": "id", "actors": 1}
    settings |= {"checkpoint": str(place / "linear.pt"), "metric": "loss", "keep": 0.3}
    prune(PruneConfig.from_flat({**settings, "strategy": "weighted", "output": output}))
    changes = {"pruned": output, "seeds": 1, "epochs": 1, "arms": ["pruned", "random"]}
    plain = run(place, **changes, output=str(place / "unweighted"))
    found = run(place, **changes, output=str(place / "weighted"), use_weights=True)
    assert (plain["weighted"], found["weighted"]) == ([], ["pruned"])
    assert any("--use-weights" in note for note in found["notes"])
    losses = [{r["arm"]: r["loss"] for r in one["runs"]} for one in (plain, found)]
    assert losses[0]["random"] == losses[1]["random"]
    assert losses[0]["pruned"] != losses[1]["pruned"]

    asked = {"pruned": output, "test": str(place / "test"), "use_weights": True}
    config = CompareConfig.from_flat(asked)
    (bout,) = comparing.rounds(config, comparing.open_subjects(config), output)
    (arm,) = [entry.arm for entry in bout.entries if entry.arm.name == "pruned"]
    decisions = pq.read_table(Path(output) / "decisions").to_pandas().query("kept")
    train = holding.hold(bout.rows, bout.model, holding.Limit(1 << 10, ""))
    placed = holding.members(arm, train)
    positions, weights = ray.get([placed.ref, holding.weights_of(arm, train, placed).ref])
    known = decisions.set_index("key")["weight"]
    expected = known.loc[[hashed_ids(known.index)[h] for h in ray.get(train.ref).hashes[positions]]]
    np.testing.assert_allclose(weights, expected / expected.mean(), rtol=1e-5)
    size = arm.size()
    assert size.rows == len(decisions)
    assert size.scale == pytest.approx(1 / decisions["weight"].mean())

    with pytest.raises(ConfigError, match="use_weights=True: no pruned output has weights"):
        run(place, use_weights=True)


def hashed_ids(keys):
    """Keys by their identity hash."""
    return dict(zip(key_hashes(as_keys(pa.array(keys))).tolist(), keys, strict=True))


def test_the_gate_ends_with_an_error_after_everything_is_written(place):
    found = run(place, max_drop=0.0, beat_random=True, pruned=str(place / "pruned-10"))
    assert not found["passed"]
    with pytest.raises(GateError, match="pruned minus full") as caught:
        check_gate(found)
    assert caught.value.exit_code == 3
    check_gate(run(place, max_drop=60.0))


def test_folds_test_every_row_once_and_never_train_on_it(place):
    found = run(place, test=None, folds=3, seeds=1, epochs=1, model="linear")
    assert sum(r["test_rows"] for r in found["runs"] if r["arm"] == "full") == TRAIN
    for fold in range(3):
        rows = {r["arm"]: r["rows"] for r in found["runs"] if r["fold"] == fold}
        tested = next(r["test_rows"] for r in found["runs"] if r["fold"] == fold)
        assert rows["full"] + tested == TRAIN
        assert rows["pruned"] == rows["random"] == pytest.approx(0.4 * rows["full"], abs=5)
    assert any("checkpoint" in note for note in found["notes"])
    assert arms_of(found)["pruned", "updates"]["to_full"]["pairs"] == 3


def test_a_fold_is_pruned_by_models_that_have_not_seen_its_rows(place, tmp_path):
    """Scores, proxies and cut of a fold come from the rows outside it alone."""
    trained = str(tmp_path / "trained")
    settings = {
        "input": str(place / "train"),
        "output": trained,
        "model": "linear",
        "id_column": "id",
        "proxy_seeds": 1,
        "proxy_epochs": 2,
        "actors": 1,
    }
    prune(PruneConfig.from_flat(settings))
    config = CompareConfig.from_flat({"pruned": trained, "folds": 3})
    (subject,) = comparing.open_subjects(config)
    splits = [Split.fold(3, index) for index in range(3)]
    cuts = folds.cut_folds(subject, splits, str(tmp_path / "folds"))
    for split, cut in zip(splits, cuts, strict=True):
        arm = comparing.Arm("full", cut.scores, cut.fragments)
        scored = np.concatenate([kept_hashes(arm, name) for name in cut.fragments])
        assert not split.admits(scored).any()
        assert cut.kept == int(0.5 * len(scored) + 0.5)
        (proxy,) = Path(cut.scores).parent.glob("proxy/*.json")
        assert json.loads(proxy.read_text())["rows_available"] == len(scored)


def test_a_planted_leak_is_caught(place, monkeypatch):
    """A cut that was made with the fold's own test rows ends the comparison."""
    monkeypatch.setattr(
        folds, "_without", lambda understanding, split: understanding if split else None
    )
    monkeypatch.setattr(folds, "_digest", lambda _, split: f"{split.low:012x}"[-12:])
    with pytest.raises(DataPruneError, match=r"leak: [\d,]+ of the [\d,]+ rows that arm"):
        run(place, test=None, folds=3, seeds=1, output=str(place / "leaking"))


def test_a_test_corpus_may_have_the_same_ids(place):
    """Ids and file names of two corpora have nothing to do with each other."""
    images, labels = digit_rows()
    write_parquet(place / "test-ids", image_table(images[-300:], labels[-300:]))
    output = str(place / "same-ids")
    changes = {"test": str(place / "test-ids"), "seeds": 1, "epochs": 1, "arms": ["pruned"]}
    assert run(place, **changes, output=output)["runs"][0]["test_rows"] == 300


def test_memory_is_held_to_its_limit_where_only_reading_tells_the_size(tmp_path):
    """Tar shards tell no row counts and texts no lengths; both are refused while they are read."""
    images, labels = digit_rows(60)
    write_tars(tmp_path / "tars", image_table(images, labels))
    words = [" ".join(["word"] * (1 + n % 7)) for n in range(60)]
    write_parquet(tmp_path / "texts", pa.table({"text": words, "label": labels}), files=2)
    for folder in ("tars", "texts"):
        model = {"input": str(tmp_path / folder), "output": str(tmp_path / "out")}
        config = PruneConfig.from_flat(model)
        found = complete(understand(config, open_corpus(config.corpus)))
        held = holding.hold(found.rows, found.model, holding.Limit(1, ""))
        assert held.rows == len(ray.get(held.ref).hashes) == 60
        limit = holding.Limit(0, "use --workers")
        with pytest.raises(ConfigError, match=r"=0: \d+ rows of .* read so far.* use --workers"):
            holding.hold(found.rows, found.model, limit)


def test_labels_of_pure_chance_are_not_predicted_in_any_fold(tmp_path):
    """Random labels: cross-validated accuracy is chance, however the rows were selected."""
    images, labels = digit_rows(1_200)
    chance = np.random.default_rng(5).integers(0, 10, len(labels))
    write_parquet(tmp_path / "train", image_table(images, chance), files=2)
    output = str(tmp_path / "pruned")
    settings = {"input": str(tmp_path / "train"), "output": output, "model": "linear", "actors": 1}
    prune(PruneConfig.from_flat({**settings, "proxy_seeds": 1, "proxy_epochs": 3}))
    found = run(tmp_path, pruned=output, test=None, folds=3, seeds=1)
    for arm in found["arms"]:
        assert arm["mean"] == pytest.approx(10, abs=4)


STREAMED = {"workers": 2, "seeds": 1, "arms": ["pruned"], "curve_points": 2}


@pytest.fixture(scope="module")
def streamed(place):
    return run(place, **STREAMED, output=str(place / "streamed"))


def test_streamed_workers_train_as_well_and_on_the_same_rows(place, compared, streamed):
    (arm,) = streamed["arms"]
    memory = arms_of(compared)["pruned", "updates"]
    assert (arm["rows"], arm["updates"]) == (memory["rows"], memory["updates"])
    assert arm["mean"] == pytest.approx(memory["mean"], abs=6)
    assert streamed["runs"][0]["test_rows"] == 397
    assert not streamed["passed"]  # without the full arm there is nothing to hold it against
    assert not list((place / "streamed" / "comparison").glob("train-*"))
    (record,) = (place / "streamed" / "comparison").glob("trial-*.json")
    before = record.stat().st_mtime_ns
    assert run(place, **STREAMED, output=str(place / "streamed"))["runs"] == streamed["runs"]
    assert record.stat().st_mtime_ns == before


MORTAL = '''
import os, signal
from pathlib import Path

import torch
import torch.distributed

HERE = Path(__file__).parent

class Mortal(torch.nn.Module):
    """A linear model that counts its updates, and whose second worker is killed when told to."""
    def __init__(self, num_classes):
        super().__init__()
        self.linear = torch.nn.Linear(64, num_classes)
        self.updates = 0
    def forward(self, x):
        if self.training and torch.distributed.is_initialized():
            self.updates += 1
            rank = torch.distributed.get_rank()
            (HERE / f"rank{rank}-{os.getpid()}").write_text(str(self.updates))
            order = HERE / "kill-at"
            if rank == 1 and order.exists() and self.updates == int(order.read_text()):
                order.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
        return self.linear(x.flatten(1))

def mortal(num_classes):
    return Mortal(num_classes)
'''


def test_a_training_goes_on_after_a_lost_worker(place, streamed, tmp_path, monkeypatch):
    """SIGKILL in the sixth epoch: the five before it are not made again, and nothing is missing."""
    monkeypatch.chdir(tmp_path)  # and an output by a relative path, as people give them
    (tmp_path / "mortal.py").write_text(MORTAL)
    (tmp_path / "kill-at").write_text("50")
    found = run(place, **STREAMED, model="mortal:mortal", output="shaken")
    lives = sorted(tmp_path.glob("rank0-*"), key=lambda path: path.stat().st_mtime_ns)
    first, *_, last = (int(path.read_text()) for path in lives)  # a busy machine may lose more
    (calm,), (shaken,) = streamed["runs"], found["runs"]
    assert first in (49, 50, 51)  # workers wait for each other's gradients
    resumed = calm["updates"] - last  # an epoch: 9 updates of 32 rows from each shard
    assert resumed == 5 * 9 if len(lives) == 2 else resumed % 9 == 0 < resumed
    assert not list((tmp_path / "shaken" / "comparison").glob("train-*"))
    for field in ("updates", "epochs", "rows", "test_rows"):
        assert shaken[field] == calm[field], field
    assert [at for at, _ in shaken["curve"]] == [at for at, _ in calm["curve"]] == [44, 88]
    assert shaken["loss"] == pytest.approx(calm["loss"], rel=0.05)
    assert shaken["score"] == pytest.approx(calm["score"], abs=2)


def test_a_regression_is_compared_by_r_squared(tmp_path):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(900, 3))
    y = 40 + 5 * x[:, 0] - 3 * x[:, 1] + rng.normal(scale=0.5, size=900)
    table = pa.table({**{f"x{i}": x[:, i] for i in range(3)}, "y": y})
    write_parquet(tmp_path / "train", table, files=2)
    output = str(tmp_path / "pruned")
    settings = {"input": str(tmp_path / "train"), "label": "y", "metric": "loss", "model": "linear"}
    prune(PruneConfig.from_flat({**settings, "output": output, "keep": 0.5, "actors": 1}))
    found = run(tmp_path, pruned=output, test=None, epochs=15, learning_rate=0.05, output=None)
    assert found["measure"] == "R²"
    full = arms_of(found)["full", "updates"]
    assert full["mean"] == pytest.approx(100 * (1 - 0.25 / (34 + 0.25)), abs=3)
    assert [arm["arm"] for arm in found["arms"]] == ["full", "pruned", "random"]
    with pytest.raises(ConfigError, match="random_balanced"):
        run(tmp_path, pruned=output, test=None, arms=["random_balanced"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pruned": ()}, "pruned="),
        ({"pruned": "nowhere"}, "not the output of a finished run"),
        ({"folds": 3}, "cannot be combined with a --test"),
        ({"augment": ["flip"], "model": "linear", "test": "TEXT"}, "no column|cannot"),
        ({"train_memory_mb": 0}, "greater than or equal to 1"),
        ({"model": "resnet"}, "unknown"),
    ],
)
def test_wrong_settings_name_the_field(place, changes, message):
    changes = {
        k: str(place / "pruned-40" / "scores") if v == "TEXT" else v for k, v in changes.items()
    }
    with pytest.raises(ConfigError, match=message) as caught:
        run(place, **changes)
    assert caught.value.exit_code == 2


def test_a_changed_corpus_is_refused(place, tmp_path):
    images, labels = digit_rows(200)
    write_parquet(tmp_path / "train", image_table(images, labels))
    output = str(tmp_path / "pruned")
    checkpoint = str(place / "linear.pt")
    settings = {"input": str(tmp_path / "train"), "output": output, "model": "linear"}
    prune(PruneConfig.from_flat({**settings, "checkpoint": checkpoint, "actors": 1}))
    write_parquet(tmp_path / "train", image_table(images[:150], labels[:150]))
    with pytest.raises(ConfigError, match="changed since it was pruned"):
        run(tmp_path, pruned=output, test=None)
