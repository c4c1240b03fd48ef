"""Predicted importance: the choice of a predictor, its scale, and what it says of rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.neighbors import KNeighborsRegressor

from dataprune_ray.errors import ConfigError, UnknownNameError
from dataprune_ray.metrics import METRICS, ModelOutputs, resolve_metric
from dataprune_ray.prediction import CUES, LEAST_ROWS, Learner, Lesson, cues_of


def lesson(rows=600, kind="cue", seed=0):
    """Rows whose target follows from the first cue, from several cues, or from the features."""
    rng = np.random.default_rng(seed)
    cues = rng.uniform(size=(rows, len(CUES))).astype(np.float32)
    features = rng.normal(size=(rows, 3)).astype(np.float32)
    target = {
        "cue": 5 - 3 * cues[:, 0],
        "cues": cues[:, 1] * np.where(cues[:, 2] > 0.5, 1, -1),
        "features": features[:, 0] / np.linalg.norm(features, axis=1),
        "nothing": rng.normal(size=rows),
    }[kind]
    judge = rng.integers(0, 2, rows)
    return Lesson(cues, features, judge, target.astype(np.float32))


@pytest.mark.parametrize(
    ("kind", "chosen"),
    [("cue", "out_of_fold"), ("cues", "boosting"), ("features", "neighbours")],
)
def test_the_predictor_that_ranks_held_out_rows_best_is_chosen(kind, chosen):
    known, unseen = lesson(kind=kind), lesson(kind=kind, seed=1)
    learner = Learner(known, 0)
    assert learner.agreement.chosen == chosen
    said = learner.predict(unseen.cues, unseen.features, unseen.judge)
    assert said.dtype == np.float32
    found = learner.agreement
    assert stats.spearmanr(said, unseen.target).statistic == pytest.approx(found.spearman, abs=0.1)
    assert found.low < found.spearman <= found.high
    assert found.rows + round(0.7 * len(known)) == found.fitted == len(known)


def test_the_interval_is_fishers_with_the_factor_of_ranks():
    found = Learner(lesson(kind="features"), 0).agreement
    half = 1.959964 * math.sqrt(1.06 / (found.rows - 3))
    assert found.low == pytest.approx(math.tanh(math.atanh(found.spearman) - half), abs=1e-3)
    assert found.high == pytest.approx(math.tanh(math.atanh(found.spearman) + half), abs=1e-3)


def test_predictions_have_the_distribution_of_the_exact_scores():
    """A regression draws them together, and a cut at an end would take exact rows alone."""
    known, unseen = lesson(4000, "features"), lesson(4000, "features", seed=1)
    rng = np.random.default_rng(2)
    for rows in (known, unseen):
        rows.target[:] += rng.normal(size=len(rows)).astype(np.float32)
    said = Learner(known, 0).predict(unseen.cues, unseen.features, unseen.judge)
    judged = [known.judge == judge for judge in (0, 1)]
    unit = known.features / np.linalg.norm(known.features, axis=1, keepdims=True)
    alone = KNeighborsRegressor(10).fit(unit[judged[0]], known.target[judged[0]])
    assert np.std(alone.predict(unit[judged[1]])) < 0.75 * np.std(known.target)
    assert np.std(said) == pytest.approx(np.std(unseen.target), rel=0.1)
    for share in (0.05, 0.5, 0.95):
        assert np.quantile(said, share) == pytest.approx(np.quantile(unseen.target, share), abs=0.2)


def test_neighbours_are_those_that_the_same_model_judged():
    known, unseen = lesson(kind="features"), lesson(40, "features", seed=1)
    learner = Learner(known, 0)
    assert learner.agreement.chosen == "neighbours"
    expected = np.zeros(len(unseen))
    unit = [x.features / np.linalg.norm(x.features, axis=1, keepdims=True) for x in (known, unseen)]
    for judge in (0, 1):
        own, other = known.judge == judge, unseen.judge == judge
        reference = KNeighborsRegressor(10).fit(unit[0][own], known.target[own])
        expected[other] = reference.predict(unit[1][other])
    said = learner.predict(unseen.cues, unseen.features, unseen.judge)
    assert stats.spearmanr(said, expected).statistic > 0.999


def test_a_row_is_predicted_alike_in_any_batch_and_after_storing():
    for kind in ("cue", "cues", "features"):
        learner, rows = Learner(lesson(kind=kind), 3), lesson(50, kind, seed=1)
        whole = learner.predict(rows.cues, rows.features, rows.judge)
        again = Learner.from_bytes(learner.to_bytes())
        assert again.agreement == learner.agreement
        for start in range(0, 50, 7):
            part = rows.part(slice(start, start + 7))
            found = again.predict(part.cues, part.features, part.judge)
            np.testing.assert_array_equal(found, whole[start : start + 7])
    empty = learner.predict(np.zeros((0, 1)), np.zeros((0, 1)), np.zeros(0, np.int64))
    assert empty.shape == (0,)


def test_where_nothing_can_be_learned_the_correlation_says_so():
    found = Learner(lesson(2000, "nothing"), 0).agreement
    assert abs(found.spearman) < 0.15
    constant = lesson(100)
    constant.target[:] = 2.0
    learner = Learner(constant, 0)
    assert learner.agreement.spearman == 0.0
    assert set(learner.predict(constant.cues, constant.features, constant.judge)) == {2.0}
    with pytest.raises(ValueError, match="too few"):
        Learner(lesson(LEAST_ROWS - 1), 0)


def test_cues_are_the_metrics_of_their_names():
    outputs = ModelOutputs(torch.randn(1, 9, 4), torch.randint(0, 4, (9,)))
    found = cues_of(outputs)
    assert found.shape == (9, len(CUES))
    for column, name in enumerate(CUES[:-1]):
        np.testing.assert_array_equal(found[:, column], METRICS[name].score(outputs).numpy())
    own = torch.softmax(outputs.logits[0], -1)[torch.arange(9), outputs.labels]
    np.testing.assert_allclose(found[:, -1], own.numpy(), rtol=1e-6)
    regression = ModelOutputs(torch.tensor([[[2.0], [5.0]]]), torch.tensor([1.0, 5.0]))
    found = cues_of(ModelOutputs(regression.logits, regression.labels, regression=True))
    assert found.tolist() == [[1.0, 2.0, 1.0], [0.0, 5.0, 5.0]]


def test_the_metric_has_the_traits_of_what_it_predicts():
    found = resolve_metric("learned", "margin")
    assert (found.name, found.polarity, found.low, found.high) == ("learned", "low", -1.0, 1.0)
    assert found.needs >= METRICS["margin"].needs | {"labels"}
    assert resolve_metric("learned", "forgetting").track is not None
    assert resolve_metric("el2n", "no matter") is METRICS["el2n"]
    with pytest.raises(UnknownNameError, match="learned_metric='ame'"):
        resolve_metric("learned", "ame")
    for name in ("random", "output_deviation", "learned"):
        with pytest.raises(ConfigError, match=f"learned_metric='{name}'"):
            resolve_metric("learned", name)
