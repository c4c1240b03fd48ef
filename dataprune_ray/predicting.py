"""The metric ``learned`` in a scoring worker: exact on the sample, predicted for all other rows."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dataprune_ray.clock import Clock
from dataprune_ray.devices import Lane
from dataprune_ray.engine import Engine
from dataprune_ray.forward import Forward
from dataprune_ray.io.filesystems import join, read_bytes
from dataprune_ray.io.rows import RowBatch
from dataprune_ray.io.splits import Split
from dataprune_ray.metrics.learned import LEARNED
from dataprune_ray.plans import Judges, ScorePlan
from dataprune_ray.prediction import Learner, cues_of

#: Mixed in so that sample and judges have nothing to do with folds, ties or each other.
_SAMPLE_SALT = 0x1EA2
_JUDGE_SALT = 0x70D6E
JUDGES = 2


def sample_of(plan: ScorePlan) -> Split:
    """The rows whose target is exact."""
    fraction = plan.learning.fraction if plan.learning else 0.0
    return Split.share(fraction, (plan.rows.seed + _SAMPLE_SALT) % 2**63)


def judged_by(plan: ScorePlan, judge: int) -> Split:
    """The rows that a judge looks at; it is trained on the sample's others."""
    return Split.fold(JUDGES, judge, (plan.rows.seed + _JUDGE_SALT) % 2**63)


def judge_path(plan: ScorePlan, judge: int) -> str:
    """Where a judge's weights lie: beside the scores, hidden from readers of Parquet."""
    return join(plan.folder, f"_judge-{judge}.safetensors")


def learner_path(folder: str) -> str:
    """Where the fitted lesson lies in a score table's folder."""
    return join(folder, "_learner.safetensors")


def engine_for(plan: ScorePlan) -> Engine:
    """The engine that a plan asks for."""
    return Engine(plan) if plan.learning is None else PredictingEngine(plan)


class PredictingEngine(Engine):
    """An engine that fills in the column ``learned``, too."""

    def __init__(self, plan: ScorePlan) -> None:
        super().__init__(plan)
        self.sample = sample_of(plan)
        self.apprentice = Apprentice(plan, self.clock, self.forward.lane)

    @property
    def passes(self) -> tuple[Forward, ...]:
        """Those of the other metrics, the teacher and the judges."""
        return (self.forward, self.apprentice.teacher, *self.apprentice.judges)

    @property
    def pass_rows(self) -> int:
        """Rows of a forward pass, of the models that the target comes from."""
        return super().pass_rows or self.apprentice.teacher.sizes.rows

    @cached_property
    def learner(self) -> Learner:
        """The predictor, fitted again from the lesson that was committed."""
        return Learner.from_bytes(read_bytes(learner_path(self.plan.folder)))

    def _score(
        self,
        batch: RowBatch,
        row_hash: npt.NDArray[np.uint64],
        judged: dict[str, npt.NDArray[Any]],
    ) -> dict[str, npt.NDArray[Any]]:
        columns = super()._score(batch, row_hash, judged)
        known = self.sample.admits(row_hash)
        values = np.zeros(len(row_hash), np.float32)
        values[known] = self.apprentice.exact(batch.values[known], batch.targets[known])
        values[~known] = self.learner.predict(
            *self.apprentice.look(batch.values[~known], batch.targets[~known], row_hash[~known])
        )
        return {**columns, LEARNED.name: values}


class Apprentice:
    """The models that the target comes from, and judges that have not seen what they judge."""

    def __init__(
        self, plan: ScorePlan, clock: Clock | None = None, lane: Lane | None = None
    ) -> None:
        if plan.learning is None:
            raise ValueError("the plan has no metric to predict")
        self.target = plan.learning.target
        alone = replace(plan, metrics=(self.target,), learning=None)
        self.teacher = Forward(alone, clock, lane)
        self.splits = [judged_by(plan, judge) for judge in range(JUDGES)]
        self.judges = [
            _Judge(plan, judge_path(plan, judge), clock, lane) for judge in range(JUDGES)
        ]

    def exact(self, values: npt.NDArray[Any], targets: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """The target's exact scores of encoded rows (m, …) with targets (m,): float32 (m,)."""
        if not len(values):
            return np.zeros(0, np.float32)
        return self.teacher.run(values, targets)[self.target]

    def look(
        self,
        values: npt.NDArray[Any],
        targets: npt.NDArray[Any],
        row_hash: npt.NDArray[np.uint64],
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Cues (m, d), features (m, D) and the judge (m,) of each row."""
        judge = np.zeros(len(values), np.int64)
        parts = []
        for number, (split, look) in enumerate(zip(self.splits, self.judges, strict=True)):
            own = np.flatnonzero(split.admits(row_hash))
            if len(own):
                judge[own] = number
                parts.append((own, *look(values[own], targets[own])))
        if not parts:
            return np.zeros((0, 1), np.float32), np.zeros((0, 1), np.float32), judge
        order = np.argsort(np.concatenate([part[0] for part in parts]))
        cues = np.concatenate([part[1] for part in parts])[order]
        features = np.concatenate([part[2] for part in parts])[order]
        return cues, features, judge


class _Judge(Forward):
    """One judge: cues and features of rows."""

    def __init__(self, plan: ScorePlan, path: str, clock: Clock | None, lane: Lane | None) -> None:
        metric = "loss"  # any that looks at models in general: it is not computed
        alone = replace(plan, judges=Judges((path,)), metrics=(metric,), learning=None)
        super().__init__(alone, clock, lane)
        self.path = path

    def __call__(
        self, values: npt.NDArray[Any], targets: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Cues (m, d) and features (m, D) of m > 0 rows; outputs where the model shows none."""

        def look(part: slice) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
            return self._look(values[part], targets[part])

        looks = [found for _, found in self.sizes.parts(len(values), values.shape[1:], look)]
        cues, features = zip(*looks, strict=True)
        return np.concatenate(cues), np.concatenate(features)

    def _look(
        self, values: npt.NDArray[Any], targets: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        rows = len(values)
        with self.clock.at("copy"):
            inputs, labels = self.prepared(values, targets, self.steady_rows)
        with torch.no_grad(), self.clock.at("model"), self.lane.working():
            seen = self.see(self.path, inputs)
            outputs = self.outputs(inputs, labels, {self.path: seen})
            features = seen.logits if seen.features is None else seen.features
            return cues_of(outputs)[:rows], features[:rows].cpu().numpy()
