"""The training loop and the test of what it trained: torch only, wherever the rows come from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from dataprune_ray.features import LabelSpec
from dataprune_ray.models import core_of, last_linear
from dataprune_ray.recipes import Recipe, autocast, loss_of, make_optimiser, make_schedule

_TEST_ROWS = 1024
#: A variance below this share of the mean square is what rounding leaves of none.
_ROUNDING = 1e-12


class Batch(NamedTuple):
    """Inputs (B, …) and targets (B,); ``first`` says that an epoch begins with it.

    ``weights`` (B,) of the rows' losses have a mean of 1 over all rows; None: all are 1.
    """

    inputs: Tensor
    targets: Tensor
    first: bool
    weights: Tensor | None = None


@dataclass
class Loop:
    """A training under way: what a checkpoint of it has to hold, and how far it came."""

    model: nn.Module
    recipe: Recipe
    label: LabelSpec
    updates: int
    device: torch.device

    def __post_init__(self) -> None:
        self.optimiser = make_optimiser(self.recipe, self.model)
        self.schedule = make_schedule(self.recipe, self.optimiser, self.updates)
        half = self.recipe.precision == "float16" and self.device.type == "cuda"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=half)
        self.done = 0
        self.sums = torch.zeros(3, dtype=torch.float64, device=self.device)

    def run(
        self,
        batches: Iterator[Batch],
        change: nn.Module | None = None,
        watch: Callable[[int], None] | None = None,
    ) -> None:
        """Go on until all updates are made or the batches end; ``watch`` sees each update's number.

        ``sums`` are loss, correct rows and rows since the last epoch began.
        """
        self.model.train()
        while self.done < self.updates:
            batch = next(batches, None)
            if batch is None:
                return
            if batch.first:
                self.sums.zero_()
            self._update(batch, change)
            self.done += 1
            if watch is not None:
                watch(self.done)

    def _update(self, batch: Batch, change: nn.Module | None) -> None:
        inputs = batch.inputs if change is None else change(batch.inputs)
        inputs = inputs.to(self.device, non_blocking=True)
        targets = batch.targets.to(self.device, non_blocking=True)
        weights = batch.weights
        if weights is not None:
            weights = weights.to(self.device, non_blocking=True)
        with autocast(self.recipe.precision, self.device):
            outputs = self.model(inputs)
            loss = loss_of(self.label, outputs, targets, self.recipe.label_smoothing, weights)
        self.optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.schedule.step()
        self.sums[0] += loss.detach() * len(targets)
        self.sums[2] += len(targets)
        if self.label.task == "classification":
            self.sums[1] += (outputs.argmax(dim=1) == targets).sum()

    def state(self, model: nn.Module) -> dict[str, Any]:
        """Everything that going on from here takes; ``model`` without what distributes it."""
        return {
            "model": model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "done": self.done,
        }

    def restore(self, state: dict[str, Any], model: nn.Module) -> None:
        """Go on from what `state` gave."""
        model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.done = state["done"]


def shuffled(
    values: Tensor,
    targets: Tensor,
    size: int,
    seed: int,
    *,
    world: int = 1,
    per_epoch: int | None = None,
) -> Iterator[Batch]:
    """Endless batches of ``size`` rows from shuffled epochs.

    The last batch of an epoch may be short. Among several workers (``world``) all batches are
    full, filled up from the start of the epoch, and every worker makes ``per_epoch`` of them.

    Raises:
        ValueError: there is no row.
    """
    rows = len(targets)
    if not rows:
        raise ValueError("there is no row to train on")
    steps = per_epoch or math.ceil(rows / size)
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(rows, generator=generator)
        for step in range(steps):
            start = step * size
            if world == 1:
                index = order[start : start + size]
            else:
                index = order[torch.arange(start, start + size).remainder(rows)]
            yield Batch(values[index], targets[index], step == 0)


@dataclass(frozen=True)
class TestSums:
    """Mergeable results of a test: losses and rows, correct and tested rows by class.

    For regression, ``squares`` is the sum of squared errors, ``total`` and ``total_squares`` are
    the sums of the targets and of their squares, both counted from any one value.
    """

    loss: float
    rows: int
    correct: tuple[int, ...] = ()
    tested: tuple[int, ...] = ()
    squares: float = 0.0
    total: float = 0.0
    total_squares: float = 0.0

    def score(self) -> float:
        """Points: accuracy in percent, or 100 R² for regression (0 for constant targets)."""
        if self.tested:
            return 100.0 * sum(self.correct) / max(sum(self.tested), 1)
        spread = self.total_squares - self.total**2 / max(self.rows, 1)
        if spread <= _ROUNDING * self.total_squares:
            return 0.0
        return 100.0 * (1.0 - self.squares / spread)

    def class_scores(self) -> tuple[float | None, ...]:
        """Accuracy in percent by class, None where no row has it."""
        pairs = zip(self.correct, self.tested, strict=True)
        return tuple(100.0 * c / n if n else None for c, n in pairs)

    def as_list(self) -> list[float]:
        """Numbers that add up over workers."""
        sums = [self.loss, float(self.rows), self.squares, self.total, self.total_squares]
        return [*sums, *map(float, self.correct), *map(float, self.tested)]

    @classmethod
    def from_list(cls, values: Sequence[float]) -> TestSums:
        """What `as_list` gave."""
        loss, rows, squares, total, total_squares, *counts = values
        half = len(counts) // 2
        correct, tested = counts[:half], counts[half:]
        return cls(
            loss,
            int(rows),
            tuple(map(int, correct)),
            tuple(map(int, tested)),
            squares,
            total,
            total_squares,
        )


def evaluate(
    model: nn.Module,
    label: LabelSpec,
    batches: Iterator[tuple[Tensor, Tensor]],
    device: torch.device,
    precision: str = "float32",
) -> TestSums:
    """Test a model in evaluation mode; the model is left in training mode.

    Regression outputs are in units of the standardised target, as they are while training.
    """
    regression = label.task == "regression"
    classes = 0 if regression else label.outputs
    hits = torch.zeros(2, max(classes, 1), dtype=torch.int64, device=device)
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    rows = 0
    model.eval()
    with torch.inference_mode():
        for inputs, raw in batches:
            targets = raw.to(device)
            with autocast(precision, device):
                outputs = model(inputs.to(device)).float()
            rows += len(targets)
            if regression:
                aims = targets.double() - label.mean
                errors = outputs[:, 0].double() * label.std - aims
                parts = [(errors / label.std).square(), errors.square(), aims, aims.square()]
                sums += torch.stack([part.sum() for part in parts])
                continue
            sums[0] += functional.cross_entropy(outputs, targets, reduction="sum")
            correct = targets[outputs.argmax(dim=1) == targets]
            hits[0] += torch.bincount(correct, minlength=classes)
            hits[1] += torch.bincount(targets, minlength=classes)
    model.train()
    loss, squares, total, total_squares = sums.tolist()
    correct_by_class = () if regression else tuple(hits[0].tolist())
    tested = () if regression else tuple(hits[1].tolist())
    return TestSums(loss, rows, correct_by_class, tested, squares, total, total_squares)


def in_order(values: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """All rows, once, in pieces."""
    for start in range(0, len(targets), _TEST_ROWS):
        part = slice(start, start + _TEST_ROWS)
        yield values[part], targets[part]


def unstandardise(label: LabelSpec, model: nn.Module) -> None:
    """Fold a regression label's scale into the last linear layer: outputs in the label's units."""
    linear = last_linear(core_of(model))
    if label.task != "regression" or linear is None or linear.bias is None:
        return
    with torch.no_grad():
        linear.weight.mul_(label.std)
        linear.bias.mul_(label.std).add_(label.mean)
