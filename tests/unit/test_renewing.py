"""What is fitted before scoring is fitted anew where a file can be read that could not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataprune_ray import fitting, learning, renewing, scoring, surveying, training
from dataprune_ray.config import PruneConfig
from dataprune_ray.io import open_corpus
from dataprune_ray.planning import score_plan
from dataprune_ray.plans import Judges
from dataprune_ray.predicting import engine_for, learner_path
from dataprune_ray.renewing import renew
from dataprune_ray.training import TrainResult
from dataprune_ray.understanding import understand

CLASSES = ("0", "1", "2")
SETTINGS = {
    "output": "out",
    "features": ["x"],
    "label": "label",
    "id_column": "id",
    "model": "linear",
    "metric": ["learned"],
    "learned_metric": "loss",
    "learned_fraction": 0.5,
    "proxy_epochs": 2,
    "num_classes": 3,
}


@pytest.fixture
def in_process(monkeypatch):
    """Tasks, trainings and the actor pool run here; what is trained is not trained again."""

    def train(plans, _):
        missing = [plan for plan in plans if not renewing.exists(plan.checkpoint)]
        return [TrainResult(**training._loop({"plan": plan})) for plan in missing]

    monkeypatch.setattr(learning, "train", train)
    for module in (learning, surveying, fitting):
        monkeypatch.setattr(module, "run_tasks", lambda work, items, **_: map(work, items))
    monkeypatch.setattr(
        scoring, "_run_pool", lambda plan, missing, _: map(engine_for(plan).commit, missing)
    )


def write(folder, files=3, rows=60):
    """Rows of three classes in some files, and random weights of a linear model for them."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(files):
        labels = rng.integers(0, 3, rows)
        x = rng.normal(labels[:, None], 1, (rows, 4)).astype(np.float32)
        ids = np.arange(rows) + number * rows
        table = pa.table({"x": x.tolist(), "label": labels, "id": ids})
        kind = pa.list_(pa.float32(), 4)
        table = table.set_column(0, "x", table["x"].cast(kind))
        pq.write_table(table, folder / f"{number}.parquet")


def planned(corpus, scores, **changes):
    checkpoint = corpus.parent / "linear.pt"
    if not checkpoint.exists():
        training.torch.manual_seed(0)
        layer = training.torch.nn.Linear(4, 3)
        weights = {"1.weight": layer.weight.detach(), "1.bias": layer.bias.detach()}
        training.torch.save(weights, checkpoint)
    flat = {**SETTINGS, "input": str(corpus), "checkpoint": [str(checkpoint)], **changes}
    config = PruneConfig.from_flat(flat)
    known = understand(config, open_corpus(config.corpus))
    label = replace(known.label, classes=CLASSES)
    known = replace(
        known, rows=replace(known.rows, label=label), model=replace(known.model, label=label)
    )
    return score_plan(config, known, Judges(config.model.checkpoint), str(scores))


def scored(plan):
    counts = scoring.score(plan, scoring.Pool(1, 1.0, 0.0), lambda _: None)
    table = pa.concat_tables(pq.read_table(plan.path(f)) for f in plan.rows.fragments)
    return counts, table


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    "changes", [{}, {"metric": ["loss", "prototype"], "space": "inputs", "survey_rows": 100}]
)
def test_a_file_that_can_be_read_later_is_learned_from(tmp_path, changes):
    corpus = tmp_path / "corpus"
    write(corpus)
    whole = (corpus / "1.parquet").read_bytes()
    (corpus / "1.parquet").write_bytes(b"no Parquet" + bytes(len(whole) - 10))
    first = planned(corpus, tmp_path / "scores", **changes)
    counts, before = scored(first)
    assert sum(count.bad for count in counts) == 1  # the file
    assert len(before) == 121
    (corpus / "1.parquet").write_bytes(whole)
    counts, found = scored(planned(corpus, tmp_path / "scores", **changes))
    assert not any(count.reused for count in counts)
    _, expected = scored(planned(corpus, tmp_path / "fresh", **changes))
    assert len(found) == 180
    assert found.equals(expected)
    name = first.metrics[-1]
    both = before[name].drop_null().to_numpy()
    assert (both != np.delete(expected[name].to_numpy(), np.s_[60:120])).any()
    counts, again = scored(planned(corpus, tmp_path / "scores", **changes))
    assert all(count.reused for count in counts)
    assert again.equals(expected)


@pytest.mark.usefixtures("in_process")
def test_judges_that_were_trained_without_a_file_are_trained_anew(tmp_path, monkeypatch):
    corpus = tmp_path / "corpus"
    write(corpus)
    whole = (corpus / "1.parquet").read_bytes()
    (corpus / "1.parquet").write_bytes(b"no Parquet")
    monkeypatch.setattr(learning, "_commit", None)  # cut off after the judges
    with pytest.raises(TypeError):
        scored(planned(corpus, tmp_path / "scores"))
    monkeypatch.undo()
    (corpus / "1.parquet").write_bytes(whole)
    plan = planned(corpus, tmp_path / "scores")
    assert not (tmp_path / "scores" / "_learner.safetensors").exists()
    assert renew(plan)
    assert [p.name for p in (tmp_path / "scores").iterdir()] == ["_fitted.json"]
    assert not renew(plan)


def test_what_was_cut_off_is_begun_again_and_nothing_else_is_removed(tmp_path, monkeypatch):
    write(tmp_path / "corpus")
    plan = planned(tmp_path / "corpus", tmp_path / "scores")
    assert not renew(plan)  # nothing is fitted yet
    names = ["_learner.safetensors", "_learner.safetensors.json", "_judge-0.safetensors"]
    names += ["_judge-1.safetensors.json", "_space.safetensors", "_fit.json"]
    score_file = f"{plan.rows.fragments[0].name}.parquet"
    for name in (*names, score_file, "mine.parquet", "_plan.json"):
        (tmp_path / "scores" / name).write_bytes(b"{}")
    assert not renew(plan)
    assert (tmp_path / "scores" / score_file).exists()
    other = replace(plan, rows=replace(plan.rows, fragments=plan.rows.fragments[1:]))
    real, calls = renewing.remove_file, []

    def breaking(path):
        calls.append(path)
        if len(calls) == 3:
            raise OSError("cut off")
        real(path)

    monkeypatch.setattr(renewing, "remove_file", breaking)
    with pytest.raises(OSError, match="cut off"):
        renew(other)
    assert (tmp_path / "scores" / "_fit.json").exists()
    assert renew(other)
    assert not renew(other)
    left = {path.name for path in (tmp_path / "scores").iterdir()}
    assert left == {"mine.parquet", "_plan.json", "_fitted.json"}
    assert learner_path(plan.folder) in calls


def test_nothing_is_noted_where_nothing_is_fitted(tmp_path):
    write(tmp_path / "corpus")
    plan = planned(tmp_path / "corpus", tmp_path / "scores", metric=["loss"])
    assert not renew(plan)
    assert not (tmp_path / "scores").exists()
