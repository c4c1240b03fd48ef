"""The training loop, run by Ray Train: proxy models now, comparison arms by the same loop.

Rows are read once per run into memory, at most ``memory_bytes`` of them (more are sampled by
hash), in the order of their identity hash: the model does not depend on how the corpus lies in
files. A run without workers is a Ray task in which Ray Train runs the loop locally; with workers
the rows are dealt to them by hash and gradients are averaged.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.train
import ray.train.torch
import safetensors.torch
import torch
from torch import Tensor, nn

from dataprune_ray.cutoff import seeded_hash
from dataprune_ray.errors import BadDataError
from dataprune_ray.io.filesystems import beside, exists, read_bytes, redact, write_bytes
from dataprune_ray.io.rows import RowPlan, ahead, read_rows
from dataprune_ray.loops import Loop, shuffled, unstandardise
from dataprune_ray.models import ModelSpec, build_model, core_of, image_transform
from dataprune_ray.recipes import Recipe
from dataprune_ray.tasks import run_tasks

logger = logging.getLogger(__name__)

#: Workers that a run may lose before it fails; each time it begins anew, to the same result.
_LOST_WORKERS = 3


@dataclass(frozen=True)
class TrainPlan:
    """One training run: what is read, what is trained, where its weights go.

    ``updates`` overrides ``epochs``. Weights after the epochs ``kept_epochs`` (from 1, the last
    one at the end) are kept, too. ``threads`` is fixed, not taken from the machine, because
    the number of threads changes the last bits of a gradient.
    """

    rows: RowPlan
    model: ModelSpec
    checkpoint: str
    seed: int
    epochs: int = 10
    updates: int | None = None
    batch_size: int = 128
    learning_rate: float = 1e-3
    memory_bytes: int = 2 << 30
    workers: int = 0
    num_gpus: float = 0.0
    threads: int = 1
    kept_epochs: tuple[int, ...] = ()

    @property
    def trajectory(self) -> tuple[str, ...]:
        """Paths of the weights after each of ``kept_epochs``."""
        return _trajectory(self.checkpoint, self.kept_epochs)


@dataclass(frozen=True)
class TrainResult:
    """What a run reports: training loss and accuracy (None for regression) of its last epoch."""

    seed: int
    rows: int
    rows_available: int
    updates: int
    loss: float
    accuracy: float | None
    seconds: float
    checkpoint: str
    reused: bool = False
    kept_epochs: tuple[int, ...] = ()

    @property
    def trajectory(self) -> tuple[str, ...]:
        """Paths of the weights after each of ``kept_epochs``."""
        return _trajectory(self.checkpoint, self.kept_epochs)


def train(plans: list[TrainPlan], progress: Callable[[TrainResult], None]) -> list[TrainResult]:
    """Run the plans, side by side where the cluster has room; results in the plans' order.

    A run whose checkpoint and record are already there is not repeated.

    Raises:
        BadDataError: there is no good row to train on.
    """
    results: dict[str, TrainResult] = {}
    for plan in plans:
        if exists(plan.checkpoint) and exists(_record(plan)):
            results[plan.checkpoint] = replace(read_result(_record(plan)), reused=True)
    waiting = [plan for plan in plans if plan.checkpoint not in results]
    for result in _run(waiting):
        results[result.checkpoint] = result
    for plan in plans:
        progress(results[plan.checkpoint])
    return [results[plan.checkpoint] for plan in plans]


def _run(plans: list[TrainPlan]) -> Iterator[TrainResult]:
    if not plans:
        return
    if plans[0].workers == 0:
        gpus = plans[0].num_gpus
        yield from run_tasks(fit, plans, num_cpus=1, num_gpus=gpus)
        return
    for plan in plans:
        yield fit(plan)


def fit(plan: TrainPlan) -> TrainResult:
    """Run one plan here, or on its workers, and record the result beside the checkpoint."""
    use_gpu = plan.num_gpus > 0
    resources = {"CPU": 1.0, **({"GPU": plan.num_gpus} if use_gpu else {})}
    trainer = ray.train.torch.TorchTrainer(
        _loop,
        train_loop_config={"plan": plan},
        scaling_config=ray.train.ScalingConfig(
            num_workers=plan.workers,
            use_gpu=use_gpu,
            resources_per_worker=resources if plan.workers else None,
        ),
        run_config=ray.train.RunConfig(
            failure_config=ray.train.FailureConfig(max_failures=_LOST_WORKERS)
        )
        if plan.workers
        else None,
    )
    returned: dict[str, Any] = trainer.fit().return_value
    result = TrainResult(**returned)
    write_bytes(_record(plan), json.dumps(asdict(result)).encode())
    return result


def read_result(record: str) -> TrainResult:
    """The result that a finished run left beside its checkpoint."""
    stored = json.loads(read_bytes(record))
    return TrainResult(**{**stored, "kept_epochs": tuple(stored.get("kept_epochs", ()))})


def _trajectory(checkpoint: str, epochs: tuple[int, ...]) -> tuple[str, ...]:
    """Where the weights after some epochs lie; those after the last one are the result."""
    if not epochs:
        return ()
    before = [beside(checkpoint, f".epoch-{epoch:03d}.safetensors") for epoch in epochs[:-1]]
    return (*before, checkpoint)


def _record(plan: TrainPlan) -> str:
    return beside(plan.checkpoint, ".json")


# The loop, on each worker ------------------------------------------------------------------------


def _loop(config: dict[str, Any]) -> dict[str, Any]:
    plan: TrainPlan = config["plan"]
    started = time.perf_counter()
    torch.set_num_threads(plan.threads)
    pa.set_cpu_count(1)
    context = ray.train.get_context() if plan.workers else None
    rank, world = (context.get_world_rank(), context.get_world_size()) if context else (0, 1)
    rows = load(plan, rank, world)
    torch.manual_seed(plan.seed)
    model = build_model(plan.model, plan.model.label.outputs)
    device = torch.device("cuda" if plan.num_gpus and torch.cuda.is_available() else "cpu")
    model.to(device)
    trained = ray.train.torch.prepare_model(model) if plan.workers else model
    keep = partial(_write_weights, model=model) if rank == 0 else None
    loss, accuracy, updates = optimise(plan, trained, rows, device, rank, world, keep)
    held = [float(len(rows.targets)), float(rows.available)]
    count, available = map(int, sum_everywhere(held, world, device))
    if rank == 0:
        unstandardise(plan.model.label, model)
        _write_weights(plan.checkpoint, model)
    return {
        "seed": plan.seed,
        "rows": count,
        "rows_available": available,
        "updates": updates,
        "loss": loss,
        "accuracy": accuracy,
        "seconds": time.perf_counter() - started,
        "checkpoint": plan.checkpoint,
        "kept_epochs": plan.kept_epochs,
    }


def _write_weights(path: str, model: nn.Module) -> None:
    state = {n: t.detach().cpu().contiguous() for n, t in core_of(model).state_dict().items()}
    write_bytes(path, safetensors.torch.save(state))


@dataclass(frozen=True)
class TrainRows:
    """Encoded rows (n, …) and targets (n,), in identity order; ``available`` before sampling."""

    values: Tensor
    targets: Tensor
    available: int


def load(plan: TrainPlan, rank: int = 0, world: int = 1) -> TrainRows:
    """Read this worker's good rows into memory.

    Raises:
        BadDataError: there is none.
    """
    transform = image_transform(plan.model)
    held = Reservoir(plan.memory_bytes // world, plan.rows.seed)
    for fragment in plan.rows.fragments:
        for batch in ahead(read_rows(plan.rows, fragment, transform)):
            hashes = batch.row_hash[batch.good]
            mine = seeded_hash(hashes, plan.rows.seed) % np.uint64(world) == np.uint64(rank)
            held.add(hashes[mine], batch.values[mine], batch.targets[mine])
    if not held.count:
        raise BadDataError(
            f"no good row of {redact(plan.rows.root)!r} to train on: see the errors of its rows"
        )
    hashes, values, targets = held.content()
    order = np.argsort(hashes, kind="stable")
    return TrainRows(torch.from_numpy(values[order]), torch.from_numpy(targets[order]), held.count)


class Reservoir:
    """The rows of smallest seeded hash that fit into ``limit`` bytes; ``count`` were offered.

    While rows come in, a quarter more than the limit is held.
    """

    def __init__(self, limit: int, seed: int) -> None:
        self.limit = limit
        self.seed = seed
        self.count = 0
        self._bound = np.uint64(2**64 - 1)
        self._size = 0  # bytes of the inputs held
        self._parts: list[tuple[npt.NDArray[np.uint64], npt.NDArray[Any], npt.NDArray[Any]]] = []

    def add(
        self, hashes: npt.NDArray[np.uint64], values: npt.NDArray[Any], targets: npt.NDArray[Any]
    ) -> None:
        """Offer rows: identity hashes (n,), inputs (n, …), targets (n,)."""
        self.count += len(hashes)
        self._parts.append((hashes, values, targets))
        self._size += values.nbytes
        self._keep_below(self._bound, first=len(self._parts) - 1)
        if self._size > self.limit + self.limit // 4:
            self._trim()

    def _trim(self) -> None:
        """Lower the bound to what fits; one row always does."""
        ranks = np.concatenate([seeded_hash(hashes, self.seed) for hashes, _, _ in self._parts])
        sizes = np.concatenate([np.full(len(h), v[:1].nbytes) for h, v, _ in self._parts])
        order = np.argsort(ranks, kind="stable")
        fitting = int(np.searchsorted(np.cumsum(sizes[order]), self.limit, side="right"))
        if fitting < len(order):
            self._bound = ranks[order[max(fitting, 1) - 1]]
            self._keep_below(self._bound)

    def _keep_below(self, bound: np.uint64, first: int = 0) -> None:
        for index in range(first, len(self._parts)):
            hashes, values, targets = self._parts[index]
            chosen = seeded_hash(hashes, self.seed) <= bound
            if not chosen.all():
                self._parts[index] = (hashes[chosen], values[chosen], targets[chosen])
                self._size += self._parts[index][1].nbytes - values.nbytes
        self._parts[first:] = [part for part in self._parts[first:] if len(part[0])]

    def content(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[Any], npt.NDArray[Any]]:
        """The rows held, as one set of arrays; there must be one."""
        self._trim()
        parts = [part for part in self._parts if len(part[0])]
        values = [part[1] for part in parts]
        if len({v.shape[1:] for v in values}) > 1:  # texts: batches are padded to their own length
            width = max(v.shape[1] for v in values)
            values = [np.pad(v, ((0, 0), (0, width - v.shape[1]))) for v in values]
        return (
            np.concatenate([part[0] for part in parts]),
            np.concatenate(values),
            np.concatenate([part[2] for part in parts]),
        )


def optimise(
    plan: TrainPlan,
    model: nn.Module,
    rows: TrainRows,
    device: torch.device,
    rank: int,
    world: int,
    keep: Callable[[str], None] | None = None,
) -> tuple[float, float | None, int]:
    """Adam with constant step size over shuffled epochs: last epoch's loss, accuracy, updates.

    ``keep`` writes the weights of the plan's trajectory, but for the last epoch's.
    """
    size = max(1, plan.batch_size // world)
    per_epoch = _largest_everywhere(math.ceil(len(rows.targets) / size), world, device)
    updates = plan.updates if plan.updates is not None else plan.epochs * per_epoch
    loop = Loop(model, Recipe(learning_rate=plan.learning_rate), plan.model.label, updates, device)
    seed = plan.seed * 1_000_003 + rank
    batches = shuffled(rows.values, rows.targets, size, seed, world=world, per_epoch=per_epoch)
    places = dict(zip(plan.kept_epochs, plan.trajectory, strict=True))

    def watch(done: int) -> None:
        epoch, rest = divmod(done, per_epoch)
        if keep is not None and not rest and epoch in places and done < updates:
            keep(places[epoch])

    loop.run(batches, watch=watch if places else None)
    losses, correct, seen = sum_everywhere(loop.sums.tolist(), world, device)
    regression = plan.model.label.task == "regression"
    accuracy = None if regression or not seen else correct / seen
    return losses / max(seen, 1.0), accuracy, updates


def _largest_everywhere(value: int, world: int, device: torch.device) -> int:
    if world == 1:
        return value
    tensor = torch.tensor(value, device=device)
    torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
    return int(tensor)


def sum_everywhere(values: list[float], world: int, device: torch.device) -> list[float]:
    """The values added up over all workers."""
    if world == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.SUM)
    return tensor.tolist()
