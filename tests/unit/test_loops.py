"""Training goes on from a checkpoint bit for bit; tests agree with scikit-learn."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, log_loss, r2_score, recall_score
from torch import nn

from dataprune_ray.features.spec import LabelSpec
from dataprune_ray.loops import Batch, Loop, TestSums, evaluate, in_order, shuffled
from dataprune_ray.recipes import Recipe

CPU = torch.device("cpu")
CLASSES = LabelSpec("label", classes=("a", "b", "c"))
COUNTS = st.integers(0, 1000)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def data(rows=50, classes=3):
    generator = torch.Generator().manual_seed(5)
    return (
        torch.randn(rows, 4, generator=generator),
        torch.randint(0, classes, (rows,), generator=generator),
    )


def network(outputs=3):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, outputs))


class TestShuffled:
    @settings(deadline=None)
    @given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**31))
    def test_each_epoch_holds_every_row_once(self, rows, size, seed):
        values = torch.arange(rows)
        steps = math.ceil(rows / size)
        batches = list(itertools.islice(shuffled(values, values * 2, size, seed), 2 * steps))
        assert [batch.first for batch in batches] == ([True] + [False] * (steps - 1)) * 2
        for epoch in (batches[:steps], batches[steps:]):
            seen = torch.cat([batch.inputs for batch in epoch])
            assert sorted(seen.tolist()) == list(range(rows))
            assert all(torch.equal(batch.targets, batch.inputs * 2) for batch in epoch)

    def test_the_seed_decides_the_order_and_epochs_differ(self):
        values = torch.arange(64)

        def first(seed, count=2):
            batches = itertools.islice(shuffled(values, values, 64, seed), count)
            return [batch.inputs.tolist() for batch in batches]

        assert first(3) == first(3)
        assert first(3) != first(4)
        assert first(3)[0] != first(3)[1]

    def test_workers_get_full_batches_of_equal_number(self):
        values = torch.arange(10)
        batches = list(itertools.islice(shuffled(values, values, 4, 0, world=2, per_epoch=3), 6))
        assert [len(batch.inputs) for batch in batches] == [4] * 6
        seen = torch.cat([batch.inputs for batch in batches[:3]]).tolist()
        assert sorted(seen[:10]) == list(range(10))
        assert seen[10:] == seen[:2]

    def test_no_row_is_an_error_and_no_endless_loop(self):
        empty = torch.zeros(0)
        with pytest.raises(ValueError, match="no row"):
            next(shuffled(empty, empty, 4, 0))


class TestLoop:
    @pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
    @pytest.mark.parametrize("schedule", ["cosine", "one_cycle"])
    def test_restored_equals_uninterrupted_bit_for_bit(self, tmp_path, optimizer, schedule):
        recipe = Recipe(optimizer=optimizer, schedule=schedule, learning_rate=0.01)
        values, targets = data()

        def batches(start):
            return itertools.islice(shuffled(values, targets, 16, 9), start, None)

        whole = Loop(network(), recipe, CLASSES, 23, CPU)
        whole.run(batches(0))

        cut = Loop(network(), recipe, CLASSES, 23, CPU)
        cut.run(itertools.islice(batches(0), 10))
        assert cut.done == 10
        torch.save(cut.state(cut.model), tmp_path / "state.pt")
        torch.manual_seed(99)
        other = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        again = Loop(other, recipe, CLASSES, 23, CPU)
        again.restore(torch.load(tmp_path / "state.pt", weights_only=True), other)
        again.run(batches(10))

        assert again.done == whole.done == 23
        expected = whole.model.state_dict()
        for name, value in other.state_dict().items():
            assert torch.equal(value, expected[name]), name
        assert again.optimiser.param_groups[0]["lr"] == whole.optimiser.param_groups[0]["lr"]

    def test_is_the_plain_loop(self):
        recipe = Recipe(optimizer="sgd", learning_rate=0.05, label_smoothing=0.1)
        values, targets = data()
        loop = Loop(network(), recipe, CLASSES, 8, CPU)
        loop.run(shuffled(values, targets, 16, 2))

        plain = network()
        optimiser = torch.optim.SGD(plain.parameters(), 0.05, 0.9, nesterov=True)
        loss_of = nn.CrossEntropyLoss(label_smoothing=0.1)
        for batch in itertools.islice(shuffled(values, targets, 16, 2), 8):
            optimiser.zero_grad()
            loss_of(plain(batch.inputs), batch.targets).backward()
            optimiser.step()
        for ours, theirs in zip(loop.model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs)

    def test_stops_at_its_updates_and_says_each(self):
        seen = []
        loop = Loop(network(), Recipe(), CLASSES, 5, CPU)
        loop.run(shuffled(*data(), 16, 0), watch=seen.append)
        assert seen == [1, 2, 3, 4, 5]

    def test_stops_where_the_batches_end(self):
        loop = Loop(network(), Recipe(), CLASSES, 50, CPU)
        loop.run(itertools.islice(shuffled(*data(), 16, 0), 3))
        assert loop.done == 3

    def test_sums_are_of_the_last_epoch(self):
        loop = Loop(network(), Recipe(learning_rate=1e-12), CLASSES, 8, CPU)
        values, targets = data()
        loop.run(shuffled(values, targets, 50, 0))
        loss, correct, rows = loop.sums.tolist()
        loop.model.train()
        outputs = loop.model(values)
        assert rows == 50
        assert correct == (outputs.argmax(1) == targets).sum()
        assert loss / rows == pytest.approx(nn.CrossEntropyLoss()(outputs, targets).item(), 1e-4)

    def test_sums_of_an_epoch_are_of_the_weighted_losses(self):
        values, targets = data()
        weights = torch.rand(50, generator=torch.Generator().manual_seed(3)) * 2
        loop = Loop(network(), Recipe(learning_rate=1e-12), CLASSES, 5, CPU)
        pieces = zip(values.split(10), targets.split(10), weights.split(10), strict=True)
        loop.model.eval()  # no batch statistics: the rows' losses do not depend on the batch
        loop.model.train = lambda: None
        loop.run(Batch(x, y, number == 0, w) for number, (x, y, w) in enumerate(pieces))
        losses = nn.functional.cross_entropy(loop.model(values), targets, reduction="none")
        assert loop.sums[2] == 50
        assert float(loop.sums[0]) == pytest.approx(float((weights * losses).sum()), rel=1e-4)

    def test_what_augments_sees_each_batch(self):
        class Count(nn.Module):
            calls = 0

            def forward(self, inputs):
                self.calls += 1
                return inputs

        change = Count()
        Loop(network(), Recipe(), CLASSES, 4, CPU).run(shuffled(*data(), 16, 0), change)
        assert change.calls == 4


class TestEvaluate:
    def test_classification_as_scikit_learn(self):
        values, targets = data(2500)
        model = network()
        found = evaluate(model, CLASSES, in_order(values, targets), CPU)
        model.eval()
        with torch.no_grad():
            outputs = model(values)
        predicted = outputs.argmax(dim=1)
        assert found.score() == pytest.approx(100 * accuracy_score(targets, predicted))
        recalls = recall_score(targets, predicted, average=None, zero_division=0)
        np.testing.assert_allclose(found.class_scores(), 100 * recalls)
        expected = log_loss(targets, outputs.softmax(dim=1).double())
        assert found.loss / found.rows == pytest.approx(expected, rel=1e-5)
        assert found.rows == 2500

    def test_runs_in_evaluation_mode_and_leaves_training_mode(self):
        model = network()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        evaluate(model, CLASSES, in_order(*data()), CPU)
        assert model.training
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    @pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-3.0, 7.5), (1e6, 2.0)])
    def test_regression_as_scikit_learn(self, mean, std):
        values, _ = data(1500)
        label = LabelSpec("y", task="regression", mean=mean, std=std)
        noise = torch.randn(1500, generator=torch.Generator().manual_seed(2)).double()
        targets = mean + std * (values.sum(1).double() + noise)
        model = network(1)
        found = evaluate(model, label, in_order(values, targets), CPU)
        model.eval()
        with torch.no_grad():
            predicted = model(values)[:, 0].double() * std + mean
        assert found.score() == pytest.approx(100 * r2_score(targets, predicted), rel=1e-6)
        expected = ((predicted - targets) / std).square().mean()
        assert found.loss / found.rows == pytest.approx(float(expected), rel=1e-6)
        assert found.class_scores() == ()

    @pytest.mark.parametrize("constant", [0.0, 0.1, 1e7])
    def test_constant_targets_have_no_r2(self, constant):
        label = LabelSpec("y", task="regression", mean=0.7, std=0.3)
        targets = torch.full((1000,), constant)
        found = evaluate(network(1), label, in_order(torch.randn(1000, 4), targets), CPU)
        assert found.score() == 0.0

    def test_a_single_class(self):
        label = LabelSpec("label", classes=("only",))
        found = evaluate(network(1), label, in_order(*data(classes=1)), CPU)
        assert (found.score(), found.class_scores()) == (100.0, (100.0,))

    def test_a_class_that_no_row_has_has_no_accuracy(self):
        values, targets = data(classes=2)
        found = evaluate(network(), CLASSES, in_order(values, targets), CPU)
        assert found.class_scores()[2] is None

    def test_no_row_scores_nothing(self):
        found = evaluate(network(), CLASSES, iter(()), CPU)
        assert (found.rows, found.score(), found.class_scores()) == (0, 0.0, (None, None, None))


class TestTestSums:
    @settings(deadline=None)
    @given(
        st.lists(COUNTS, min_size=1, max_size=5).flatmap(
            lambda t: st.tuples(st.just(t), st.tuples(*[st.integers(0, n) for n in t]))
        ),
        COUNTS,
    )
    def test_lists_restore_classification(self, counts, rows):
        tested, correct = counts
        sums = TestSums(1.5, rows, tuple(correct), tuple(tested))
        assert TestSums.from_list(sums.as_list()) == sums

    def test_lists_add_up_to_the_test_of_all_rows(self):
        values, targets = data(60)
        parts = [
            evaluate(network(), CLASSES, in_order(values[i::3], targets[i::3]), CPU)
            for i in range(3)
        ]
        added = TestSums.from_list(np.sum([part.as_list() for part in parts], axis=0).tolist())
        whole = evaluate(network(), CLASSES, in_order(values, targets), CPU)
        assert (added.rows, added.correct, added.tested) == (60, whole.correct, whole.tested)
        assert added.loss == pytest.approx(whole.loss, rel=1e-6)
        assert added.score() == whole.score()

    def test_lists_add_up_for_regression(self):
        label = LabelSpec("y", task="regression", mean=4.0, std=2.0)
        values, _ = data(60)
        targets = values.sum(1) * 2 + 4
        parts = [
            evaluate(network(1), label, in_order(values[i::3], targets[i::3]), CPU)
            for i in range(3)
        ]
        added = TestSums.from_list(np.sum([part.as_list() for part in parts], axis=0).tolist())
        whole = evaluate(network(1), label, in_order(values, targets), CPU)
        assert added.score() == pytest.approx(whole.score(), rel=1e-6)

    @settings(deadline=None)
    @given(st.lists(st.tuples(st.floats(-50, 50), st.floats(-50, 50)), min_size=2, max_size=30))
    def test_r2_as_scikit_learn(self, pairs):
        targets, predicted = map(np.array, zip(*pairs, strict=True))
        sums = TestSums(
            0.0,
            len(pairs),
            squares=float(((targets - predicted) ** 2).sum()),
            total=float(targets.sum()),
            total_squares=float((targets**2).sum()),
        )
        if np.ptp(targets) > 0.01:
            expected = 100 * r2_score(targets, predicted)
            assert sums.score() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_in_order_gives_every_row_once():
    values, targets = torch.arange(2500), torch.arange(2500) * 3
    pieces = list(in_order(values, targets))
    assert torch.equal(torch.cat([piece for piece, _ in pieces]), values)
    assert torch.equal(torch.cat([piece for _, piece in pieces]), targets)
    assert max(len(piece) for piece, _ in pieces) < 2500


def test_a_batch_knows_whether_an_epoch_begins():
    batch = Batch(torch.zeros(1), torch.zeros(1), first=True)
    assert batch.first
