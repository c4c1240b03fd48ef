"""Scoring in a worker process, actor or task; it imports no more than that takes."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from dataprune_ray import telemetry
from dataprune_ray.errors import DataPruneError
from dataprune_ray.io.corpus import Fragment
from dataprune_ray.io.retries import retried
from dataprune_ray.plans import FragmentCount, ScorePlan
from dataprune_ray.predicting import engine_for


def score_one(item: tuple[ScorePlan, Fragment]) -> FragmentCount:
    """Score and commit one fragment on one thread."""
    plan, fragment = item
    torch.set_num_threads(1)
    return engine_for(plan).commit(fragment)


class FragmentScorer:
    """A Ray Data actor: loads the models once, then scores fragment after fragment."""

    def __init__(self, plan: ScorePlan) -> None:
        torch.set_num_threads(1)
        pa.set_cpu_count(1)
        self.engine = engine_for(plan)
        self.run = telemetry.run_name(plan.folder)

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Score and commit the batch's ``fragment``s; their counts."""
        fragments = [Fragment.from_json(text) for text in batch["fragment"]]
        failure = ""
        try:
            counts = [retried(self.engine.commit, fragment) for fragment in fragments]
        except DataPruneError as error:  # as a value: Ray Data would pass on its text alone
            counts = [FragmentCount(fragment.index, 0, 0) for fragment in fragments]
            failure = pickle.dumps(error).hex()
        telemetry.count_scored(self.run, sum(count.rows for count in counts))
        return {
            "count": np.array([count.to_json() for count in counts]),
            "failure": np.array([failure for _ in counts]),
        }
