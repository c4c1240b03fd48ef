"""Models on their device, and what they say of encoded rows: every model runs once per batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dataprune_ray import schema
from dataprune_ray.batching import BatchSize, fitting_rows
from dataprune_ray.clock import Clock
from dataprune_ray.devices import Lane, lane_of, packed, unpacked
from dataprune_ray.features import encode_example
from dataprune_ray.io.filesystems import read_bytes
from dataprune_ray.metrics import METRICS, Epoch, ModelOutputs
from dataprune_ray.models import (
    FeatureTap,
    ModelSpec,
    build_model,
    image_transform,
    load_state,
    read_state,
)
from dataprune_ray.placing import FEATURES
from dataprune_ray.plans import ScorePlan
from dataprune_ray.recipes import autocast

#: Rows below which matrix kernels may round differently: shorter batches are padded up to this.
_STEADY_ROWS = 32
#: Encoded rows of a batch that is sized to a GPU: several batches wait in memory.
_HOST_BYTES = 128 << 20
_MOST_ROWS = 8192

Columns = dict[str, npt.NDArray[np.float32]]


def load_model(spec: ModelSpec, path: str) -> nn.Module:
    """A model with a checkpoint's weights, on the CPU.

    Raises:
        ConfigError: the checkpoint cannot be loaded safely or does not fit the model.
    """
    model = build_model(spec, spec.label.outputs)
    load_state(model, read_state(path, read_bytes(path)), path)
    return model


class Seen(NamedTuple):
    """Logits float32 (B, C) and features float32 (B, D), where the model shows any."""

    logits: Tensor
    features: Tensor | None


class Forward:
    """The models that a plan looks at, on a device.

    ``clock`` and ``lane`` are shared by all that belong to one worker.
    """

    def __init__(
        self, plan: ScorePlan, clock: Clock | None = None, lane: Lane | None = None
    ) -> None:
        self.plan = plan
        self.clock = clock or Clock()
        self.lane = lane or lane_of(gpu=plan.use_gpu)
        self.judges = plan.used
        self.taps = {path: self._load(path) for path in self.judges.paths}
        self.autocast = autocast(plan.precision, self.lane.device)
        self._channels_last = self._arranged()

    def _load(self, path: str) -> FeatureTap:
        return FeatureTap(load_model(self.plan.model, path).to(self.lane.device).eval())

    def _arranged(self) -> bool:
        """Whether inputs go to the models with their channels last."""
        if not self.taps or not self.lane.channels_last or "gradients" in self.plan.needs:
            return False  # gradients of single rows have little of it
        return self.lane.arrange([tap.model for tap in self.taps.values()], self._example)

    @cached_property
    def _example(self) -> npt.NDArray[Any]:
        spec = self.plan.model
        return encode_example(spec.features, image_transform(spec))

    @cached_property
    def sizes(self) -> BatchSize:
        """Rows of a forward pass: the plan's, or as many as the device likes best."""
        rows, share = self.plan.batch_size, self.plan.memory_share
        budget = self.lane.budget(share) if share and self.taps else 0
        if budget:
            rows = self._fitting(budget)
        return BatchSize(rows, self.plan.model.name, self.lane.release)

    def _fitting(self, budget: int) -> int:
        """Try batches of zeros; what they give is thrown away."""
        example = self._example
        kind = np.float32 if self.plan.model.label.task == "regression" else np.int64
        most = max(_STEADY_ROWS, min(_MOST_ROWS, _HOST_BYTES // max(1, example[0].nbytes)))

        def attempt(rows: int) -> tuple[float, int]:
            values = np.broadcast_to(example[:1], (rows, *example.shape[1:]))
            targets = np.zeros(rows, kind)
            return self.lane.measure(lambda: self._try(values, targets))

        try:
            return fitting_rows(attempt, budget, _STEADY_ROWS, most)
        finally:
            self.lane.release()

    def _try(self, values: npt.NDArray[Any], targets: npt.NDArray[Any]) -> None:
        self._columns(*self.prepared(values, targets, len(values)))

    def run(self, values: npt.NDArray[Any], targets: npt.NDArray[Any]) -> Columns:
        """What the models say of encoded rows (m, …) with targets (m,): columns, m values each."""
        return self.launch(values, targets)()

    def launch(self, values: npt.NDArray[Any], targets: npt.NDArray[Any]) -> Callable[[], Columns]:
        """Have the device work on rows; what is returned waits for the columns of `run`.

        Raises:
            ConfigError: memory does not suffice for a single row.
        """

        def start(part: slice) -> tuple[Callable[[], npt.NDArray[Any]], dict[str, int | None]]:
            return self._forward(values[part], targets[part])

        if not self.taps:
            return dict
        parts = [p for _, p in self.sizes.parts(len(values), values.shape[1:], start)]

        def collect() -> Columns:
            with self.clock.at("back"):
                found = [unpacked(fetch(), widths) for fetch, widths in parts]
                names = found[0] if found else ()
                return {name: np.concatenate([part[name] for part in found]) for name in names}

        return collect

    def _forward(
        self, values: npt.NDArray[Any], targets: npt.NDArray[Any]
    ) -> tuple[Callable[[], npt.NDArray[Any]], dict[str, int | None]]:
        """What gives the packed columns of one batch, and their widths."""
        with self.clock.at("copy"):
            inputs, labels = self.prepared(values, targets, self.steady_rows)
        with self.clock.at("model"), self.lane.working():
            found = self._columns(inputs, labels)
            together = packed(found, len(values))
        widths = {name: None if c.ndim == 1 else c.shape[1] for name, c in found.items()}
        with self.clock.at("back"):
            return self.lane.fetch(together), widths

    @torch.no_grad()
    def _columns(self, inputs: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        """Columns (B,) or (B, W) of a prepared batch."""
        seen = {path: self.see(path, inputs) for path in self.judges.models}
        found = self._dynamics(inputs, labels, seen)
        if seen:
            found |= self._statics(self.outputs(inputs, labels, seen))
        if self.plan.shows_features:
            features = next(iter(seen.values())).features
            assert features is not None  # noqa: S101 - see `check_models`
            found[FEATURES] = features
        return found

    @property
    def steady_rows(self) -> int:
        """Rows that a batch is padded to, so that its rounding does not depend on its length."""
        return min(_STEADY_ROWS, self.sizes.rows)

    def prepared(
        self, values: npt.NDArray[Any], targets: npt.NDArray[Any], least: int
    ) -> tuple[Tensor, Tensor | None]:
        """Inputs and known labels on the device, padded to ``least`` rows with the last one."""
        padding = least - len(values)
        if padding > 0:
            values = np.concatenate([values, np.repeat(values[-1:], padding, axis=0)])
            targets = np.concatenate([targets, np.repeat(targets[-1:], padding, axis=0)])
        known = self.plan.model.label.column is not None
        labels = self.lane.send(targets) if known else None
        inputs = self.lane.send(values)
        if self._channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return inputs, labels

    def see(self, path: str, inputs: Tensor) -> Seen:
        """What one checkpoint gives."""
        with self.autocast:
            output, features = self.taps[path](inputs)
        return Seen(output.float(), None if features is None else features.float())

    def _dynamics(
        self, inputs: Tensor, labels: Tensor | None, seen: dict[str, Seen]
    ) -> dict[str, Tensor]:
        """Every checkpoint of the trajectory in turn, none of them twice."""
        tracks = {name: METRICS[name].track for name in self.plan.dynamic}
        trackers = {n: track(self.plan.options) for n, track in tracks.items() if track is not None}
        for path in self.judges.trajectory:
            judged = seen.get(path) or self.see(path, inputs)
            epoch = Epoch(judged.logits, labels)
            for tracker in trackers.values():
                tracker.add(epoch)
        return {name: tracker.value() for name, tracker in trackers.items()}

    def _statics(self, outputs: ModelOutputs) -> dict[str, Tensor]:
        found = {
            name: score(outputs)
            for name in self.plan.direct
            if (score := METRICS[name].score) is not None
        }
        if schema.OUTPUTS in self.plan.temporary:
            found[schema.OUTPUTS] = outputs.logits.mean(dim=0)
        return found

    def outputs(self, inputs: Tensor, labels: Tensor | None, seen: dict[str, Seen]) -> ModelOutputs:
        """What metrics are computed from."""
        features = [one.features for one in seen.values() if one.features is not None]
        taps = [self.taps[path] for path in seen]
        return ModelOutputs(
            logits=torch.stack([one.logits for one in seen.values()]),
            labels=labels,
            features=tuple(features) if len(features) == len(seen) else None,
            has_bias=taps[0].has_bias,
            regression=self.plan.model.label.task == "regression",
            inputs=inputs if "gradients" in self.plan.needs else None,
            models=tuple(tap.model for tap in taps),
            options=self.plan.options,
        )
