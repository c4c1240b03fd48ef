"""Corpus to score table: an actor pool runs the model over fragments, one score file each.

An actor commits its fragment's score file atomically; only small numbers travel back. A fragment
whose score file is there already is not scored again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
import torch

from dataprune_ray import telemetry
from dataprune_ray.engine import NOTE, Engine, FragmentCount, ScorePlan
from dataprune_ray.fitting import finish
from dataprune_ray.io.corpus import Fragment
from dataprune_ray.io.filesystems import list_names, open_input
from dataprune_ray.tasks import own_errors


@dataclass(frozen=True)
class Pool:
    """Size and resources of the actor pool."""

    actors: int
    num_cpus: float
    num_gpus: float


def score(
    plan: ScorePlan, pool: Pool, progress: Callable[[FragmentCount], None]
) -> list[FragmentCount]:
    """Score every fragment that has no score file yet; counts of all, in fragment order."""
    present = set(list_names(plan.folder, ".parquet"))
    committed = [f for f in plan.rows.fragments if f"{f.name}.parquet" in present]
    missing = [f for f in plan.rows.fragments if f"{f.name}.parquet" not in present]
    counts = [_committed(plan, fragment) for fragment in committed]
    for count in counts:
        progress(count)
    if missing:
        with own_errors():
            for count in _run_pool(plan, missing, pool):
                counts.append(count)
                progress(count)
    finish(plan)
    return sorted(counts, key=lambda count: count.index)


def _run_pool(plan: ScorePlan, missing: list[Fragment], pool: Pool) -> Iterator[FragmentCount]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    size = min(pool.actors, len(missing))
    gpu: dict[str, Any] = {"num_gpus": pool.num_gpus} if pool.num_gpus else {}
    counted = ray.data.from_items(
        [{"fragment": fragment.to_json()} for fragment in missing], override_num_blocks=len(missing)
    ).map_batches(
        FragmentScorer,
        fn_constructor_args=(replace(plan, rows=replace(plan.rows, fragments=())),),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1 if gpu else size, max_size=size),
        num_cpus=pool.num_cpus,
        **gpu,
    )
    for row in counted.iter_rows():
        yield FragmentCount(
            int(row["index"]),
            int(row["rows"]),
            int(row["bad"]),
            float(row["seconds"]),
            tuple(json.loads(row["members"])),
        )


def _committed(plan: ScorePlan, fragment: Fragment) -> FragmentCount:
    with open_input(plan.path(fragment)) as file:
        note = json.loads(pq.read_metadata(file).metadata[NOTE])
    members = tuple(note["members"])
    return FragmentCount(fragment.index, note["rows"], note["bad"], 0.0, members, reused=True)


class FragmentScorer:
    """A Ray Data actor: loads the models once, then scores fragment after fragment."""

    def __init__(self, plan: ScorePlan) -> None:
        torch.set_num_threads(1)
        pa.set_cpu_count(1)
        self.engine = Engine(plan)
        self.run = telemetry.run_name(plan.folder)

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Score and commit the batch's ``fragment``s; their counts."""
        counts = [self.engine.commit(Fragment.from_json(text)) for text in batch["fragment"]]
        telemetry.count_scored(self.run, sum(count.rows for count in counts))
        return {
            "index": np.array([count.index for count in counts]),
            "rows": np.array([count.rows for count in counts]),
            "bad": np.array([count.bad for count in counts]),
            "seconds": np.array([count.seconds for count in counts]),
            "members": np.array([json.dumps(count.members) for count in counts]),
        }
