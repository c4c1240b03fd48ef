"""Schedules against closed forms and torch's own; optimisers, loss, augmentation, precision."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, OneCycleLR

from dataprune_ray.config import TrainConfig
from dataprune_ray.errors import ConfigError
from dataprune_ray.features.spec import FeatureSpec, LabelSpec
from dataprune_ray.recipes import (
    Recipe,
    augmentation,
    autocast,
    check_recipe,
    loss_of,
    make_optimiser,
    make_schedule,
    rate_share,
)

SCHEDULES = ("constant", "cosine", "linear", "one_cycle")
IMAGES = FeatureSpec("image", ("image",), (3, 16, 24))
CPU = torch.device("cpu")
CLASSES = LabelSpec("label", classes=("a", "b", "c"))


def shares(updates, **recipe):
    return [rate_share(Recipe(**recipe), step, updates) for step in range(updates + 1)]


def rates(scheduler, optimiser, updates):
    found = []
    for _ in range(updates):
        found.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    return found


class TestSchedules:
    @settings(deadline=None)
    @given(
        st.sampled_from(SCHEDULES),
        st.integers(1, 300),
        st.floats(0, 0.99, allow_nan=False),
    )
    def test_shares_lie_in_the_unit_interval(self, schedule, updates, warmup):
        found = shares(updates, schedule=schedule, warmup=warmup)
        assert all(0.0 <= share <= 1.0 for share in found)

    @pytest.mark.parametrize("schedule", SCHEDULES)
    @pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5])
    def test_no_jump(self, schedule, warmup):
        updates = 2000
        found = shares(updates, schedule=schedule, warmup=warmup)
        steepest = max(1 / max(warmup, 0.05), math.pi / 2 / 0.3) / (1 - warmup)
        jumps = [abs(b - a) for a, b in itertools.pairwise(found)]
        assert max(jumps) <= 1.1 * steepest / updates

    def test_closed_forms(self):
        updates = 50
        for step in range(updates + 1):
            done = step / updates
            cosine = rate_share(Recipe(schedule="cosine"), step, updates)
            assert cosine == pytest.approx((1 + math.cos(math.pi * done)) / 2)
            assert rate_share(Recipe(schedule="linear"), step, updates) == pytest.approx(1 - done)
            assert rate_share(Recipe(schedule="constant"), step, updates) == 1.0

    @pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
    def test_warm_up_rises_in_equal_steps_and_the_rest_is_the_schedule_itself(self, schedule):
        found = shares(100, schedule=schedule, warmup=0.2)
        assert found[:21] == pytest.approx([(step + 1) / 21 for step in range(20)] + [1.0])
        assert found[20:] == pytest.approx(shares(80, schedule=schedule))

    @pytest.mark.parametrize("schedule", SCHEDULES)
    def test_a_single_update_is_made_at_a_real_rate(self, schedule):
        assert rate_share(Recipe(schedule=schedule), 0, 1) > 0

    @pytest.mark.parametrize(
        ("schedule", "reference"),
        [
            ("cosine", CosineAnnealingLR),
            ("linear", lambda optimiser, n: LinearLR(optimiser, 1.0, 0.0, n)),
            (
                "one_cycle",
                lambda optimiser, n: OneCycleLR(
                    optimiser,
                    0.3,
                    total_steps=n,
                    pct_start=0.3,
                    div_factor=25.0,
                    final_div_factor=1e9,
                    cycle_momentum=False,
                ),
            ),
        ],
    )
    def test_against_torch(self, schedule, reference):
        updates = 3000
        recipe = Recipe(optimizer="sgd", schedule=schedule, learning_rate=0.3)
        model = nn.Linear(1, 1)
        optimiser = make_optimiser(recipe, model)
        ours = rates(make_schedule(recipe, optimiser, updates), optimiser, updates)
        other = torch.optim.SGD(model.parameters(), lr=0.3)
        theirs = rates(reference(other, updates), other, updates)
        # torch's one-cycle ends each phase an update earlier; the others agree to rounding
        tolerance = 0.3 * 6 / updates if schedule == "one_cycle" else 1e-9
        assert ours == pytest.approx(theirs, abs=tolerance)


class TestOptimisers:
    @pytest.mark.parametrize(
        ("recipe", "reference"),
        [
            (Recipe(weight_decay=0.1), lambda p: torch.optim.Adam(p, 1e-3, weight_decay=0.1)),
            (
                Recipe(optimizer="adamw", weight_decay=0.1),
                lambda p: torch.optim.AdamW(p, 1e-3, weight_decay=0.1),
            ),
            (
                Recipe(optimizer="sgd", weight_decay=0.1),
                lambda p: torch.optim.SGD(p, 1e-3, 0.9, weight_decay=0.1, nesterov=True),
            ),
            (Recipe(optimizer="sgd", momentum=0.0), lambda p: torch.optim.SGD(p, 1e-3)),
        ],
    )
    def test_steps_as_torch_does(self, recipe, reference):
        ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
        theirs.load_state_dict(ours.state_dict())
        values = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
        for model, optimiser in (
            (ours, make_optimiser(recipe, ours)),
            (theirs, reference(theirs.parameters())),
        ):
            for _ in range(5):
                optimiser.zero_grad()
                model(values).square().sum().backward()
                optimiser.step()
        torch.testing.assert_close(ours.weight, theirs.weight)


class TestLoss:
    def test_classification_is_smoothed_cross_entropy_written_out(self):
        outputs, targets = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
        logs = outputs.log_softmax(dim=1)
        hard = -logs[torch.arange(6), targets]
        expected = (0.8 * hard + 0.2 * -logs.mean(dim=1)).mean()
        torch.testing.assert_close(loss_of(CLASSES, outputs, targets, 0.2), expected)

    @pytest.mark.parametrize("smoothing", [0.0, 0.2])
    def test_weights_multiply_each_rows_loss_written_out(self, smoothing):
        generator = torch.Generator().manual_seed(2)
        outputs = torch.randn(7, 3, generator=generator, dtype=torch.float64)
        targets = torch.tensor([0, 1, 2, 2, 1, 0, 1])
        weights = torch.rand(7, generator=generator, dtype=torch.float64) * 3
        mine = outputs.clone().requires_grad_()
        loss = loss_of(CLASSES, mine, targets, smoothing, weights)
        loss.backward()
        aims = torch.nn.functional.one_hot(targets, 3) * (1 - smoothing) + smoothing / 3
        probabilities = outputs.softmax(dim=1)
        expected = sum(
            float(w * -(aim * p.log()).sum())
            for w, aim, p in zip(weights, aims, probabilities, strict=True)
        )
        assert float(loss) == pytest.approx(expected / 7)
        gradient = weights[:, None] * (probabilities - aims) / 7  # of softmax cross-entropy
        torch.testing.assert_close(mine.grad, gradient)

    def test_weights_of_a_regression(self):
        label = LabelSpec("y", task="regression", mean=10.0, std=2.0)
        outputs, targets = torch.tensor([[0.0], [1.0]]), torch.tensor([12.0, 16.0])
        found = loss_of(label, outputs, targets, weights=torch.tensor([0.5, 1.5]))
        assert float(found) == pytest.approx((0.5 * 1 + 1.5 * 4) / 2)

    def test_batches_of_weighted_losses_average_to_the_whole(self):
        """As gradients of several workers do: a batch's own weights are not divided by."""
        outputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(4))
        targets = torch.arange(8) % 3
        weights = torch.tensor([0.1, 0.2, 0.3, 0.4, 1.0, 2.0, 2.0, 2.0])
        halves = [slice(0, 4), slice(4, 8)]
        parts = [loss_of(CLASSES, outputs[h], targets[h], 0.0, weights[h]) for h in halves]
        whole = loss_of(CLASSES, outputs, targets, 0.0, weights)
        torch.testing.assert_close(sum(parts) / 2, whole)

    def test_regression_is_in_units_of_the_standardised_target(self):
        label = LabelSpec("y", task="regression", mean=10.0, std=4.0)
        outputs, targets = torch.tensor([[0.5], [-1.0]]), torch.tensor([12.0, 10.0])
        assert float(loss_of(label, outputs, targets)) == pytest.approx(0.5)


class TestAugmentation:
    @staticmethod
    def images(channels=3):
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, 256, (5, channels, 16, 24), generator=generator, dtype=torch.uint8)

    @pytest.mark.parametrize("names", [("flip",), ("crop",), ("trivial",), ("erase",)])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_keeps_shape_and_type_and_follows_the_seed(self, names, channels):
        change = augmentation(Recipe(augment=names), IMAGES)
        images = self.images(channels)
        found = []
        for seed in (1, 1, 2, 3, 4, 5):
            torch.manual_seed(seed)
            found.append(change(images))
        assert {(one.shape, one.dtype) for one in found} == {(images.shape, torch.uint8)}
        assert torch.equal(found[0], found[1])
        assert any(not torch.equal(found[0], other) for other in found[2:])
        assert torch.equal(images, self.images(channels))

    def test_rows_of_a_batch_are_changed_one_by_one(self):
        change = augmentation(Recipe(augment=("flip",)), IMAGES)
        images = self.images()[:1].repeat(64, 1, 1, 1)
        torch.manual_seed(0)
        flipped = (change(images) != images).flatten(1).any(dim=1)
        assert 10 < int(flipped.sum()) < 54
        assert torch.equal(change(images)[0], images[0]) or torch.equal(
            change(images)[0], images[0].flip(-1)
        )

    def test_none_leaves_batches_as_they_are(self):
        images = self.images()
        assert torch.equal(augmentation(Recipe(), IMAGES)(images), images)

    @pytest.mark.parametrize(
        ("recipe", "features", "field"),
        [
            (Recipe(augment=("flip",)), FeatureSpec("tabular", ("x",), (3,)), "augment"),
            (
                Recipe(augment=("flip",)),
                FeatureSpec("image", ("image",), (3, 8, 8), any_size=True),
                "augment",
            ),
            (Recipe(schedule="one_cycle", warmup=0.1), IMAGES, "warmup"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, recipe, features, field):
        with pytest.raises(ConfigError, match=field):
            check_recipe(recipe, features)


def test_a_configuration_gives_its_recipe():
    config = TrainConfig(
        optimizer="sgd", train_batch_size=7, augment=("flip",), train_precision="bfloat16"
    )
    expected = Recipe(
        batch_size=7, optimizer="sgd", augment=("flip",), precision="bfloat16", schedule="cosine"
    )
    assert Recipe.of(config) == expected


@pytest.mark.parametrize(
    ("precision", "kind"),
    [("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)],
)
def test_precision_on_a_cpu(precision, kind):
    with autocast(precision, CPU):
        assert nn.Linear(2, 2)(torch.zeros(1, 2)).dtype == kind
