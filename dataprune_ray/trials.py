"""Trainings of arms on rows in memory, each a Ray task in which Ray Train runs the loop locally.

Rows lie once in the object store and are shared by all trainings of a machine; an arm is a set of
positions among them. Each finished training leaves a small record, so that a comparison that was
cut off goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.train
import ray.train.torch
import torch
from torch import Tensor, nn

from dataprune_ray.features import LabelSpec
from dataprune_ray.holding import Held, HeldRows, check_apart
from dataprune_ray.io.filesystems import exists, join, read_bytes, write_bytes
from dataprune_ray.loops import Batch, Loop, TestSums, evaluate, in_order, shuffled
from dataprune_ray.models import ModelSpec, build_model
from dataprune_ray.recipes import Recipe, augmentation
from dataprune_ray.tasks import run_tasks
from dataprune_ray.verdict import TrialRun

_SEED_STRIDE = 1_000_003  # as the proxies': shuffling and initialisation have seeds of their own


@dataclass(frozen=True)
class TrialPlan:
    """One training of one arm.

    ``per_epoch`` are the updates of a pass over the arm's rows; ``curve_points`` tests are made
    on the way. ``identity`` stands for everything else that the result depends on, such as the
    corpus and the cut. ``threads`` is fixed because their number changes the last bits.
    """

    arm: str
    seed: int
    fold: int | None
    budget: str
    rows: int
    updates: int
    per_epoch: int
    recipe: Recipe
    model: ModelSpec
    identity: str
    curve_points: int = 0
    num_gpus: float = 0.0
    threads: int = 1

    def digest(self) -> str:
        """Hex digest of everything that the training depends on."""
        decisive = replace(self, budget="", num_gpus=0.0, model=replace(self.model, folder=""))
        return hashlib.sha256(repr(decisive).encode()).hexdigest()[:16]

    def record(self, folder: str) -> str:
        """Path of its record."""
        return join(folder, f"trial-{self.digest()}.json")


@dataclass(frozen=True)
class TrialData:
    """What a training reads, as references into the object store.

    Attributes:
        train: rows, of which those at ``members`` are the arm's; None: all of them.
        test: rows that are tested, those at ``test_members``.
        same_corpus: identities tell whether a row is in both; across corpora they do not.
        weights: of the losses of ``members``, with a mean of 1; None: all are 1.
    """

    train: Held
    members: Held | None
    test: Held
    test_members: Held | None
    same_corpus: bool = False
    weights: Held | None = None


def run_trials(
    plans: Sequence[tuple[TrialPlan, TrialData]],
    folder: str,
    progress: Callable[[TrialRun], None],
) -> list[TrialRun]:
    """Train and test every plan, side by side where the cluster has room; results in their order.

    A training whose record lies in ``folder`` is not repeated, and one that two budgets have in
    common is made once.

    Raises:
        DataPruneError: an arm holds rows of its test set.
    """
    found: dict[str, TrialRun] = {}
    waiting: dict[str, tuple[TrialPlan, TrialData]] = {}
    for plan, data in plans:
        digest = plan.digest()
        if digest in found:
            continue
        done = recorded(plan, folder)
        if done is None:
            waiting[digest] = (plan, data)
        else:
            found[digest] = done
            progress(done)
    gpus = max((plan.num_gpus for plan, _ in waiting.values()), default=0.0)
    work = run_tasks(partial(_trial, folder), waiting.values(), num_cpus=1, num_gpus=gpus)
    for digest, run in work:
        found[digest] = run
        progress(run)
    return [replace(found[plan.digest()], budget=plan.budget) for plan, _ in plans]


def recorded(plan: TrialPlan, folder: str) -> TrialRun | None:
    """The run of a plan that is finished already."""
    path = plan.record(folder)
    if not exists(path):
        return None
    return replace(run_from_json(json.loads(read_bytes(path))), budget=plan.budget)


def record(plan: TrialPlan, run: TrialRun, folder: str) -> None:
    """Commit a finished run, so that it is not made again."""
    write_bytes(plan.record(folder), json.dumps(asdict(run)).encode())


def run_from_json(content: dict[str, Any]) -> TrialRun:
    """A run as its record holds it."""
    curve = tuple((int(at), float(score)) for at, score in content["curve"])
    return TrialRun(**{**content, "curve": curve, "class_scores": tuple(content["class_scores"])})


def _trial(folder: str, item: tuple[TrialPlan, TrialData]) -> tuple[str, TrialRun]:
    """The body of one task."""
    plan, data = item
    trainer = ray.train.torch.TorchTrainer(
        _loop,
        train_loop_config={"plan": plan, "data": data},
        scaling_config=ray.train.ScalingConfig(num_workers=0, use_gpu=plan.num_gpus > 0),
    )
    run: TrialRun = trainer.fit().return_value["run"]
    record(plan, run, folder)
    return plan.digest(), run


def _loop(config: dict[str, Any]) -> dict[str, Any]:
    plan: TrialPlan = config["plan"]
    data: TrialData = config["data"]
    torch.set_num_threads(plan.threads)
    pa.set_cpu_count(1)
    rows: HeldRows = ray.get(data.train.ref)
    tested: HeldRows = ray.get(data.test.ref)
    mine = _chosen(rows, data.members)
    aims = _chosen(tested, data.test_members)
    if data.same_corpus:
        check_apart(rows.hashes[mine], tested.hashes[aims], plan.arm)
    device = torch.device("cuda" if plan.num_gpus and torch.cuda.is_available() else "cpu")
    weights = None if data.weights is None else ray.get(data.weights.ref)
    return {"run": train_and_test(plan, _Rows(rows, mine, weights), _Rows(tested, aims), device)}


def _chosen(rows: HeldRows, members: Held | None) -> npt.NDArray[np.int64]:
    if members is None:
        return np.arange(len(rows.hashes))
    positions: npt.NDArray[np.int64] = ray.get(members.ref)
    return positions


class _Rows:
    """Some held rows as tensors: a batch copies its rows alone.

    ``weights`` (m,) are those of the rows at ``positions`` (m,).
    """

    def __init__(
        self,
        rows: HeldRows,
        positions: npt.NDArray[np.int64],
        weights: npt.NDArray[np.float32] | None = None,
    ) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the store's memory is read-only, and never written
            self._values = torch.from_numpy(rows.values)
            self._targets = torch.from_numpy(rows.targets)
        self._positions = torch.from_numpy(np.array(positions))
        self._weights = None if weights is None else torch.from_numpy(np.array(weights))

    def __len__(self) -> int:
        return len(self._positions)

    @property
    def targets(self) -> Tensor:
        """All targets (n,), copied."""
        return self._targets[self._positions]

    def batches(self, size: int, seed: int) -> Iterator[Batch]:
        """Endless batches from shuffled epochs."""
        numbers = torch.arange(len(self))
        for batch in shuffled(self._positions, numbers, size, seed):
            weights = None if self._weights is None else self._weights[batch.targets]
            mine = batch.inputs
            yield Batch(self._values[mine], self._targets[mine], batch.first, weights)

    def all(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every row once, in pieces."""
        for positions, _ in in_order(self._positions, self._positions):
            yield self._values[positions], self._targets[positions]


def train_and_test(plan: TrialPlan, rows: _Rows, tested: _Rows, device: torch.device) -> TrialRun:
    """One training from its seed, with the tests of its learning curve and the last one."""
    label = _standardised(plan.model.label, rows.targets)
    torch.manual_seed(plan.seed)
    model = build_model(plan.model, plan.model.label.outputs).to(device)
    if device.type == "cuda" and plan.model.features.modality == "image":
        model = model.to(memory_format=torch.channels_last)
    loop = Loop(model, plan.recipe, label, plan.updates, device)
    points = curve_updates(plan.updates, plan.curve_points)
    curve: list[tuple[int, float]] = []
    testing = 0.0

    def test() -> TestSums:
        return evaluate(model, label, tested.all(), device, plan.recipe.precision)

    def watch(done: int) -> None:
        nonlocal testing
        if done in points:
            began = time.perf_counter()
            curve.append((done, test().score()))
            testing += time.perf_counter() - began

    started = time.perf_counter()
    batches = rows.batches(plan.recipe.batch_size, plan.seed * _SEED_STRIDE)
    loop.run(batches, _change(plan), watch)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - started - testing
    return finished_run(plan, test(), seconds, curve)


def finished_run(
    plan: TrialPlan, sums: TestSums, seconds: float, curve: Sequence[tuple[int, float]]
) -> TrialRun:
    """The run that a plan and its last test make; ``seconds`` are of the training alone."""
    return TrialRun(
        arm=plan.arm,
        seed=plan.seed,
        fold=plan.fold,
        budget=plan.budget,
        rows=plan.rows,
        updates=plan.updates,
        epochs=plan.updates / plan.per_epoch,
        seconds=seconds,
        gpu_seconds=seconds * plan.num_gpus,
        score=sums.score(),
        loss=sums.loss / max(sums.rows, 1),
        test_rows=sums.rows,
        class_scores=sums.class_scores(),
        curve=(*curve, (plan.updates, sums.score())),
    )


def curve_updates(updates: int, points: int) -> frozenset[int]:
    """The updates after which a learning curve is measured, the last one apart."""
    return frozenset(max(1, updates * point // points) for point in range(1, points)) - {updates}


def _change(plan: TrialPlan) -> nn.Module | None:
    if not plan.recipe.augment:
        return None
    return augmentation(plan.recipe, plan.model.features)


def _standardised(label: LabelSpec, targets: Tensor) -> LabelSpec:
    """A regression label with the moments of the rows that are trained on, not of tested ones."""
    if label.task != "regression":
        return label
    values = targets.double()
    return replace(label, mean=float(values.mean()), std=float(values.std(correction=0)) or 1.0)
