"""One training of an arm, without a cluster: its seed decides it, its record restores it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import r2_score
from torch import nn

from dataprune_ray.features.spec import FeatureSpec, LabelSpec
from dataprune_ray.holding import HeldRows
from dataprune_ray.models import ModelSpec, build_model
from dataprune_ray.recipes import Recipe
from dataprune_ray.trials import TrialPlan, _Rows, curve_updates, run_from_json, train_and_test

CPU = torch.device("cpu")
CLASSES = LabelSpec("label", classes=("a", "b", "c"))
TARGET = LabelSpec("y", task="regression", stored="float64")
TABLE = FeatureSpec("tabular", ("x",), (5,))
WEIGHTS = np.random.default_rng(3).normal(size=(5, 3))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def plan(label=CLASSES, features=TABLE, **fields):
    known = {"arm": "full", "seed": 0, "fold": None, "budget": "updates", "rows": 200}
    known |= {"updates": 40, "per_epoch": 7, "recipe": Recipe(batch_size=32, learning_rate=0.01)}
    known |= {"model": ModelSpec("mlp:16", features, label), "identity": "corpus"}
    return TrialPlan(**{**known, **fields})


def held(rows=200, seed=0, regression=False):
    random = np.random.default_rng(seed)
    values = random.normal(size=(rows, 5)).astype(np.float32)
    outputs = values @ WEIGHTS
    targets = (3 * outputs[:, 0] + 50).astype(np.float32) if regression else outputs.argmax(1)
    return HeldRows(np.arange(rows, dtype=np.uint64), values, targets)


def rows_of(data, positions=None):
    return _Rows(data, np.arange(len(data.hashes)) if positions is None else positions)


def train(one, data=None, tested=None):
    data = held() if data is None else data
    return train_and_test(one, rows_of(data), rows_of(tested or held(90, 1)), CPU)


def timeless(run):
    return replace(run, seconds=0.0, gpu_seconds=0.0)


class TestTrainAndTest:
    def test_learns_and_says_what_it_did(self):
        run = train(plan(curve_points=4))
        assert run.score > 80
        assert (run.updates, run.epochs, run.test_rows) == (40, 40 / 7, 90)
        assert [at for at, _ in run.curve] == [10, 20, 30, 40]
        assert run.curve[-1] == (40, run.score)
        assert run.curve[0][1] < run.score
        assert len(run.class_scores) == 3
        assert run.seconds > 0
        assert run.gpu_seconds == 0

    def test_the_seed_decides_everything(self):
        first = timeless(train(plan(curve_points=4)))
        torch.manual_seed(12345)
        assert timeless(train(plan(curve_points=4))) == first
        assert train(plan(seed=1)).loss != first.loss

    def test_testing_on_the_way_changes_nothing(self):
        assert train(plan(curve_points=8)).loss == train(plan()).loss

    def test_trains_on_its_own_rows_alone(self):
        data, spoilt = held(), held()
        mine = np.flatnonzero(np.arange(200) % 2)
        spoilt.values[::2], spoilt.targets[::2] = np.nan, 0
        tested = rows_of(held(90, 1))
        clean = train_and_test(plan(), rows_of(data, mine), tested, CPU)
        assert clean.loss == train_and_test(plan(), rows_of(spoilt, mine), tested, CPU).loss

    def test_weights_are_those_of_a_loop_written_out(self):
        """Against torch alone: plain Adam on the weighted losses of the same batches."""
        data, tested = held(), held(90, 1)
        mine = np.flatnonzero(np.arange(200) % 3)
        weights = np.random.default_rng(1).uniform(0.1, 3, len(mine)).astype(np.float32)
        one = plan(rows=len(mine), updates=25)
        run = train_and_test(one, _Rows(data, mine, weights), rows_of(tested), CPU)

        torch.manual_seed(0)
        model = build_model(one.model, 3)
        optimiser = torch.optim.Adam(model.parameters(), 0.01)
        x, y = torch.from_numpy(data.values[mine]), torch.from_numpy(data.targets[mine])
        order = torch.Generator().manual_seed(0)
        done = 0
        while done < 25:
            for index in torch.randperm(len(mine), generator=order).split(32)[: 25 - done]:
                losses = -model(x[index]).log_softmax(dim=1)[range(len(index)), y[index]]
                optimiser.zero_grad()
                (torch.from_numpy(weights)[index] * losses).mean().backward()
                optimiser.step()
                done += 1
        outputs = model.eval()(torch.from_numpy(tested.values))
        expected = nn.functional.cross_entropy(outputs, torch.from_numpy(tested.targets))
        assert run.loss == pytest.approx(float(expected), rel=1e-5)
        plain = train_and_test(one, rows_of(data, mine), rows_of(tested), CPU)
        assert plain.loss != pytest.approx(run.loss, rel=1e-3)
        ones = _Rows(data, mine, np.ones(len(mine), np.float32))
        assert train_and_test(one, ones, rows_of(tested), CPU).loss == pytest.approx(plain.loss)

    def test_held_rows_are_left_as_they_were(self):
        data = held()
        before = data.values.copy()
        data.values.flags.writeable = data.targets.flags.writeable = False
        train(plan(), data)
        assert (data.values == before).all()

    def test_regression_standardises_by_the_rows_it_trains_on(self):
        data, tested = held(400, regression=True), held(90, 1, regression=True)
        one = plan(TARGET, updates=300)
        run = train_and_test(one, rows_of(data), rows_of(tested), CPU)
        assert 90 < run.score <= 100
        label = replace(TARGET, mean=-1e3, std=123.0)
        again = train_and_test(plan(label, updates=300), rows_of(data), rows_of(tested), CPU)
        assert again.score == run.score
        assert run.class_scores == ()

    def test_a_constant_target_scores_nothing(self):
        data = held(regression=True)
        data.targets[:] = 0.1
        tested = HeldRows(data.hashes, data.values, data.targets)
        run = train_and_test(plan(TARGET), rows_of(data), rows_of(tested), CPU)
        assert run.score == 0.0
        assert np.isfinite(run.loss)

    def test_regression_scores_as_scikit_learn(self):
        class Fixed(nn.Module):
            def forward(self, inputs):
                return inputs[:, :1]

        data = held(regression=True)
        mean, std = data.targets.mean(dtype=np.float64), data.targets.std(dtype=np.float64)
        expected = 100 * r2_score(data.targets, data.values[:, 0] * std + mean)
        with pytest.MonkeyPatch.context() as patch:
            fixed = Fixed()
            fixed.unused = nn.Parameter(torch.zeros(1))
            patch.setattr("dataprune_ray.trials.build_model", lambda *_: fixed)
            run = train_and_test(plan(TARGET, updates=0), rows_of(data), rows_of(data), CPU)
        assert run.score == pytest.approx(expected, rel=1e-5)

    def test_a_single_class(self):
        data = held()
        data.targets[:] = 0
        label = LabelSpec("label", classes=("only",))
        run = train_and_test(plan(label), rows_of(data), rows_of(data), CPU)
        assert (run.score, run.class_scores) == (100.0, (100.0,))

    def test_augmented_images(self):
        random = np.random.default_rng(0)
        images = random.integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
        data = HeldRows(np.arange(40, dtype=np.uint64), images, random.integers(0, 3, 40))
        features = FeatureSpec("image", ("image",), (1, 8, 8))
        recipe = Recipe(batch_size=16, augment=("flip", "crop"))
        plans = [plan(features=features, updates=6, recipe=recipe) for _ in range(2)]
        first, again = (train_and_test(p, rows_of(data), rows_of(data), CPU) for p in plans)
        plain = plan(features=features, updates=6, recipe=replace(recipe, augment=()))
        assert first.loss == again.loss
        assert train_and_test(plain, rows_of(data), rows_of(data), CPU).loss != first.loss


class TestPlans:
    def test_the_digest_tells_apart_what_decides_and_nothing_else(self):
        base = plan()
        same = [replace(base, budget="epochs"), replace(base, num_gpus=1.0)]
        same.append(replace(base, model=replace(base.model, folder="/elsewhere")))
        other = [
            replace(base, seed=1),
            replace(base, fold=0),
            replace(base, arm="pruned"),
            replace(base, updates=41),
            replace(base, rows=199),
            replace(base, identity="another"),
            replace(base, threads=2),
            replace(base, recipe=replace(base.recipe, schedule="linear")),
            replace(base, model=replace(base.model, name="linear")),
        ]
        assert {one.digest() for one in same} == {base.digest()}
        assert len({one.digest() for one in [base, *other]}) == len(other) + 1

    def test_a_record_restores_the_run(self):
        tested = held(90, 1)
        tested.targets[tested.targets == 2] = 0
        run = train(plan(curve_points=3), tested=tested)
        assert run.class_scores[2] is None
        assert run_from_json(json.loads(json.dumps(asdict(run)))) == run

    @settings(deadline=None)
    @given(st.integers(1, 5000), st.integers(1, 30))
    def test_curves_are_measured_at_even_distances(self, updates, points):
        found = curve_updates(updates, points)
        assert len(found) == min(points, updates) - 1 or updates < 2 * points
        assert all(1 <= at < updates for at in found)
        for at in found:
            nearest = min(abs(at - updates * k / points) for k in range(1, points))
            assert nearest <= 1

    @pytest.mark.parametrize(
        ("updates", "points", "expected"),
        [(100, 4, {25, 50, 75}), (1, 8, set()), (3, 8, {1, 2}), (50, 1, set())],
    )
    def test_examples_of_curves(self, updates, points, expected):
        assert curve_updates(updates, points) == expected


class TestRows:
    def test_epochs_hold_the_chosen_rows(self):
        data = held()
        rows = _Rows(data, np.array([3, 8, 150]))
        batch = next(rows.batches(5, 0))
        assert sorted(batch.targets.tolist()) == sorted(data.targets[[3, 8, 150]].tolist())
        ((values, targets),) = rows.all()
        np.testing.assert_array_equal(values, data.values[[3, 8, 150]])
        assert len(rows) == len(targets) == 3
