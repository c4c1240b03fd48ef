"""Trainings by several Ray Train workers, fed by Ray Data: for corpora that fit no memory.

Fragments are read and decoded in the pipeline, rows of other arms or folds are left out there,
and each worker shuffles its shard in a buffer. A checkpoint after each epoch lets a training go
on after a lost worker, with the same updates, seeds and learning curve, though not to the last
bit: Ray Data deals rows to workers as they come. Shards are of equal size, so up to
``workers - 1`` rows of an epoch are left out of it. The first worker tests.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray.data
import ray.train
import ray.train.torch
import torch
from torch import Tensor

from dataprune_ray.arms import Arm, KeptRows, kept_rows, names_of
from dataprune_ray.errors import ConfigError
from dataprune_ray.features.spec import TEXT_TOKENS
from dataprune_ray.io.corpus import Fragment
from dataprune_ray.io.filesystems import remove_tree, resolve
from dataprune_ray.io.rows import RowPlan, ahead, read_rows
from dataprune_ray.loops import Batch, Loop, evaluate
from dataprune_ray.models import ModelSpec, build_model, image_transform
from dataprune_ray.recipes import augmentation
from dataprune_ray.trials import TrialPlan, curve_updates, finished_run
from dataprune_ray.verdict import TrialRun

_BUFFER_BYTES = 256 << 20
_CHECKPOINT = "training.pt"
_TEST_ROWS = 1024


@dataclass(frozen=True)
class StreamPlan:
    """A training whose rows are streamed: ``arm`` among ``rows``, tested on ``test``.

    The arm's weights, if it has any, are multiplied with ``scale``: so their mean is 1.
    """

    trial: TrialPlan
    rows: RowPlan
    arm: Arm
    test: RowPlan
    workers: int
    storage: str
    max_failures: int
    scale: float = 1.0

    def check(self) -> None:
        """Refuse an arm whose score table is cut into other fragments than the corpus.

        Raises:
            ConfigError: it is.
        """
        own = set(names_of(self.rows.fragments))
        if own != set(self.arm.fragments):
            raise ConfigError(
                "pruned",
                self.arm.name,
                "was scored in other fragments than the first pruned output; compare it with "
                "--workers 0, or prune it from the first one's --scores",
            )


def stream_trial(plan: StreamPlan) -> TrialRun:
    """Train and test one arm."""
    trial = plan.trial
    per_worker = {"CPU": 0.5 if trial.num_gpus else 1.0}
    if _cpus() <= plan.workers:
        per_worker["CPU"] = max(_cpus() / 2 / plan.workers, 0.1)  # the readers need the rest
    if trial.num_gpus:
        per_worker["GPU"] = trial.num_gpus
    ray.data.DataContext.get_current().enable_progress_bars = False
    filesystem, storage = resolve(plan.storage)  # Ray takes neither relative paths nor our URIs
    trainer = ray.train.torch.TorchTrainer(
        _loop,
        train_loop_config={"plan": trial, "workers": plan.workers},
        datasets={
            "train": _dataset(plan.rows, trial.model, plan.arm, plan.scale),
            "test": _dataset(plan.test, trial.model, None),
        },
        dataset_config=ray.train.DataConfig(datasets_to_split=["train"]),
        scaling_config=ray.train.ScalingConfig(
            num_workers=plan.workers,
            use_gpu=trial.num_gpus > 0,
            resources_per_worker=per_worker,
        ),
        run_config=ray.train.RunConfig(
            name=f"train-{trial.digest()}",
            storage_path=storage,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=plan.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
        ),
    )
    run: TrialRun = trainer.fit().return_value["run"]
    remove_tree(plan.storage, f"train-{trial.digest()}")
    return run


def _cpus() -> float:
    return float(ray.cluster_resources().get("CPU", 1.0))


def _dataset(rows: RowPlan, model: ModelSpec, arm: Arm | None, scale: float = 1.0) -> Any:
    fragments = [{"fragment": fragment.to_json()} for fragment in rows.fragments]
    reader = _Reader(replace(rows, fragments=()), model, arm, scale)
    return ray.data.from_items(fragments, override_num_blocks=len(fragments)).map_batches(
        reader, batch_size=1, num_cpus=0.25
    )


@dataclass(frozen=True)
class _Reader:
    """Reads fragments in the pipeline: the arm's good rows as ``inputs`` and ``targets``.

    An arm with weights has them, times ``scale``, as ``weights``.
    """

    rows: RowPlan
    model: ModelSpec
    arm: Arm | None
    scale: float = 1.0

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> Iterator[dict[str, npt.NDArray[Any]]]:
        pa.set_cpu_count(1)
        transform = image_transform(self.model)
        for text in batch["fragment"]:
            fragment = Fragment.from_json(text)
            kept = None if self.arm is None else kept_rows(self.arm, fragment.name)
            for read in ahead(read_rows(self.rows, fragment, transform)):
                found = {"inputs": read.values, "targets": read.targets}
                if kept is not None:
                    found = self._own(found, read.row_hash[read.good], kept)
                if len(found["targets"]):
                    yield {**found, "inputs": self._padded(found["inputs"])}

    def _own(
        self, found: dict[str, npt.NDArray[Any]], hashes: npt.NDArray[np.uint64], kept: KeptRows
    ) -> dict[str, npt.NDArray[Any]]:
        """The arm's rows of those with ``hashes`` (n,)."""
        mine = np.isin(hashes, kept.hashes)
        own = {name: values[mine] for name, values in found.items()}
        if kept.weights is not None:
            order = np.argsort(kept.hashes, kind="stable")
            place = np.searchsorted(kept.hashes[order], hashes[mine])
            own["weights"] = kept.weights[order][place] * np.float32(self.scale)
        return own

    def _padded(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Texts at full length: blocks of one column have one shape."""
        if self.model.features.modality != "text":
            return values
        return np.pad(values, ((0, 0), (0, TEXT_TOKENS - values.shape[1])))


# On each worker ----------------------------------------------------------------------------------


@dataclass
class _SoFar:
    """What a training has to show beside its model: it goes on with that, too.

    ``curve`` holds (updates, score); ``seconds`` are of training alone.
    """

    curve: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0


def _loop(config: dict[str, Any]) -> dict[str, Any]:
    plan: TrialPlan = config["plan"]
    torch.set_num_threads(plan.threads)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    torch.manual_seed(plan.seed)
    model = build_model(plan.model, plan.model.label.outputs).to(device)
    trained = ray.train.torch.prepare_model(model) if world > 1 else model
    loop = Loop(trained, plan.recipe, plan.model.label, plan.updates, device)
    so_far = _restore(loop, model)
    change = augmentation(plan.recipe, plan.model.features) if plan.recipe.augment else None
    points = curve_updates(plan.updates, plan.curve_points)

    def watch(done: int) -> None:
        if rank == 0 and done in points:
            began = time.perf_counter()
            so_far.curve.append((done, _test(plan, model, device).score()))
            so_far.seconds -= time.perf_counter() - began

    while loop.done < plan.updates:
        began, before = time.perf_counter(), loop.done
        epoch = loop.done // max(plan.per_epoch, 1)
        seed = plan.seed * 1_000_003 + epoch * world + rank
        torch.manual_seed(seed)  # dropout and augmentation: by worker, and alike after a restart
        loop.run(_epoch(plan, world, seed), change, watch)
        if loop.done == before:
            raise RuntimeError(f"worker {rank} got no rows of arm {plan.arm}")
        so_far.seconds += time.perf_counter() - began
        _report(loop, model, so_far, rank)
    if rank:
        return {}
    run = finished_run(plan, _test(plan, model, device), so_far.seconds, so_far.curve)
    return {"run": replace(run, gpu_seconds=so_far.seconds * plan.num_gpus * world)}


def _epoch(plan: TrialPlan, world: int, seed: int) -> Iterator[Batch]:
    """One pass over this worker's shard, shuffled in a buffer."""
    size = max(1, plan.recipe.batch_size // world)
    row = max(plan.model.features.row_bytes, 1)
    batches = ray.train.get_dataset_shard("train").iter_torch_batches(
        batch_size=size,
        local_shuffle_buffer_size=max(size, min(_BUFFER_BYTES // row, 1 << 17)),
        local_shuffle_seed=seed,
    )
    for number, batch in enumerate(batches):
        yield Batch(batch["inputs"], batch["targets"], number == 0, batch.get("weights"))


def _test(plan: TrialPlan, model: torch.nn.Module, device: torch.device) -> Any:
    def rows() -> Iterator[tuple[Tensor, Tensor]]:
        shard = ray.train.get_dataset_shard("test")
        for batch in shard.iter_torch_batches(batch_size=_TEST_ROWS):
            yield batch["inputs"], batch["targets"]

    return evaluate(model, plan.model.label, rows(), device, plan.recipe.precision)


def _report(loop: Loop, model: torch.nn.Module, so_far: _SoFar, rank: int) -> None:
    if rank:
        ray.train.report({"updates": loop.done})
        return
    with tempfile.TemporaryDirectory() as folder:
        state = {**loop.state(model), "so_far": asdict(so_far)}
        torch.save(state, Path(folder) / _CHECKPOINT)
        checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report({"updates": loop.done}, checkpoint=checkpoint)


def _restore(loop: Loop, model: torch.nn.Module) -> _SoFar:
    """Go on from the last checkpoint, where there is one."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return _SoFar()
    with checkpoint.as_directory() as folder:
        path = Path(folder) / _CHECKPOINT
        state = torch.load(path, map_location=loop.device, weights_only=True)
    loop.restore(state, model)
    return _SoFar(**state["so_far"])
