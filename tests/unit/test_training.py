from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dataprune_ray.cutoff import seeded_hash
from dataprune_ray.features import FeatureSpec, LabelSpec
from dataprune_ray.loops import unstandardise
from dataprune_ray.models import ModelSpec, build_model, core_of
from dataprune_ray.training import Reservoir, TrainPlan, TrainRows, optimise


def plan(label, **changes):
    model = ModelSpec("linear", FeatureSpec("tensor", ("x",), (3,)), label)
    return TrainPlan(rows=SimpleNamespace(), model=model, checkpoint="-", seed=0, **changes)


CLASSES = LabelSpec("y", classes=("0", "1"), names=("0", "1"))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(1, 200), st.integers(0, 5))
@settings(max_examples=50)
def test_reservoir_keeps_the_smallest_hashes_within_its_limit(sizes, limit_rows, seed):
    rows = sum(sizes)
    hashes = np.random.default_rng(seed).integers(0, 2**63, rows).astype(np.uint64)
    values = np.arange(rows, dtype=np.float32)[:, None]
    held = Reservoir(limit_rows * 4, seed)
    start = 0
    for size in sizes:
        part = slice(start, start + size)
        held.add(hashes[part], values[part], np.zeros(size, np.int64))
        start += size
    kept, kept_values, _ = held.content()
    assert held.count == rows
    assert len(kept) == min(rows, limit_rows)
    order = np.argsort(seeded_hash(hashes, seed))
    expected = set(hashes[order[: len(kept)]].tolist())
    assert set(kept.tolist()) == expected
    assert all(hashes[int(v)] == h for v, h in zip(kept_values[:, 0], kept, strict=True))


def test_the_reservoir_holds_few_batches_and_knows_their_bytes():
    held = Reservoir(40 * 4, 0)
    rng = np.random.default_rng(0)
    for _ in range(300):
        hashes = rng.integers(0, 2**64, 5, np.uint64)
        held.add(hashes, np.zeros((5, 1), np.float32), np.zeros(5))
        assert held._size == sum(values.nbytes for _, values, _ in held._parts)
        assert len(held._parts) <= 50  # of which none is empty
    assert len(held.content()[0]) == 40


def test_texts_of_different_length_are_padded_together():
    held = Reservoir(1 << 20, 0)
    held.add(np.array([1], np.uint64), np.array([[5, 6]]), np.zeros(1, np.int64))
    held.add(np.array([2], np.uint64), np.array([[7, 8, 9]]), np.zeros(1, np.int64))
    assert held.content()[1].tolist() == [[5, 6, 0], [7, 8, 9]]


def test_the_loop_is_adam_over_shuffled_epochs():
    x = torch.randn(10, 3, generator=torch.Generator().manual_seed(1))
    y = (x[:, 0] > 0).long()
    torch.manual_seed(0)
    model = build_model(plan(CLASSES).model, 2)
    twin = build_model(plan(CLASSES).model, 2)
    twin.load_state_dict(model.state_dict())
    training = plan(CLASSES, epochs=3, batch_size=4, learning_rate=0.01)
    rows = TrainRows(x, y, 10)
    _, _, updates = optimise(training, model, rows, torch.device("cpu"), 0, 1)
    assert updates == 9
    optimiser = torch.optim.Adam(twin.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        order = torch.randperm(10, generator=generator)
        for batch in order.split(4):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(twin(x[batch]), y[batch]).backward()
            optimiser.step()
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_updates_override_epochs_and_the_model_learns():
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(2))
    rows = TrainRows(x, (x[:, 1] > 0).long(), 200)
    torch.manual_seed(0)
    model = build_model(plan(CLASSES).model, 2)
    training = plan(CLASSES, epochs=1, updates=120, batch_size=20, learning_rate=0.05)
    loss, accuracy, updates = optimise(training, model, rows, torch.device("cpu"), 0, 1)
    assert updates == 120
    assert accuracy > 0.95
    assert loss < 0.3


def test_a_regressor_comes_out_in_the_labels_units():
    label = LabelSpec("y", "regression", "float64", mean=1000.0, std=50.0)
    training = plan(label, epochs=200, batch_size=50, learning_rate=0.05)
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(3))
    y = 1000 + 50 * x[:, 2]
    torch.manual_seed(0)
    model = build_model(training.model, 1)
    _, accuracy, _ = optimise(training, model, TrainRows(x, y, 200), torch.device("cpu"), 0, 1)
    unstandardise(label, model)
    assert accuracy is None
    with torch.no_grad():
        assert model(x)[:, 0].numpy() == pytest.approx(y.numpy(), abs=2.0)
    assert core_of(model)[-1].bias.item() == pytest.approx(1000, abs=2)


def test_the_weights_kept_on_the_way_are_those_of_shorter_runs():
    x = torch.randn(10, 3, generator=torch.Generator().manual_seed(1))
    rows = TrainRows(x, (x[:, 0] > 0).long(), 10)
    kept = {}

    def trained(epochs, **changes):
        torch.manual_seed(0)
        training = plan(CLASSES, epochs=epochs, batch_size=4, learning_rate=0.01, **changes)
        model = build_model(training.model, 2)

        def keep(path):
            kept[path] = [p.detach().clone() for p in model.parameters()]

        optimise(training, model, rows, torch.device("cpu"), 0, 1, keep)
        return list(model.parameters())

    trained(5, kept_epochs=(2, 3, 5))
    assert list(kept) == ["-.epoch-002.safetensors", "-.epoch-003.safetensors"]
    for path, epochs in zip(dict(kept), (2, 3), strict=True):
        for found, expected in zip(kept[path], trained(epochs), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_the_result_itself_ends_the_trajectory():
    assert plan(CLASSES).trajectory == ()
    assert plan(CLASSES, kept_epochs=(1, 10)).trajectory == ("-.epoch-001.safetensors", "-")
