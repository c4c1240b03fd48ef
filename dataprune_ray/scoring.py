"""Corpus to score table: an actor pool runs the model over fragments, one score file each.

An actor commits its fragment's score file atomically; only small numbers travel back. A fragment
whose score file is there already is not scored again.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow.parquet as pq
import ray.data

from dataprune_ray import schema
from dataprune_ray.errors import DataPruneError
from dataprune_ray.fitting import finish, forget
from dataprune_ray.io.corpus import Fragment
from dataprune_ray.io.filesystems import exists, list_names, open_input
from dataprune_ray.io.leftovers import remove_other_fragments
from dataprune_ray.io.retries import retried
from dataprune_ray.learning import learn
from dataprune_ray.plans import FragmentCount, ScorePlan
from dataprune_ray.renewing import renew
from dataprune_ray.scorer import FragmentScorer, score_one
from dataprune_ray.surveying import survey
from dataprune_ray.tasks import own_errors, run_tasks


@dataclass(frozen=True)
class Pool:
    """Size and resources of the actor pool."""

    actors: int
    num_cpus: float
    num_gpus: float


def score(
    plan: ScorePlan,
    pool: Pool,
    progress: Callable[[FragmentCount], None],
    *,
    foreign: bool = False,
) -> list[FragmentCount]:
    """Score every fragment that has no score file yet; counts of all, in fragment order.

    A fragment with rows that storage kept back is scored again. Score files of fragments that the
    corpus no longer has, because a file of it could not be opened before, are removed, and so is
    what was fitted without that file, with all scores. Neither is done in a ``foreign`` folder,
    which an earlier run made.
    """
    fragments = {f"{fragment.name}.parquet": fragment for fragment in plan.rows.fragments}
    if not foreign:
        renew(plan)
        remove_other_fragments(plan.folder, fragments)
    present = [name for name in list_names(plan.folder, ".parquet") if name in fragments]
    with ThreadPoolExecutor(16) as threads:
        found = threads.map(partial(_committed, plan), [fragments[name] for name in present])
        counts = [count for count, unread in found if foreign or not unread]
    if not foreign and len(counts) < len(fragments) and forget(plan):
        counts = []
    done = {count.index for count in counts}
    missing = [fragment for fragment in plan.rows.fragments if fragment.index not in done]
    for count in counts:
        progress(count)
    if missing:
        survey(plan, num_gpus=pool.num_gpus)
        learn(plan)
        with own_errors():
            for count in _run_pool(plan, missing, pool):
                counts.append(count)
                progress(count)
    finish(plan)
    return sorted(counts, key=lambda count: count.index)


def score_in_tasks(plans: Sequence[ScorePlan], num_gpus: float = 0.0) -> None:
    """Score several small tables side by side, in tasks: without the seconds a pool each costs.

    Fragments that have a score file are not scored again.
    """
    missing = [
        (plan, fragment)
        for plan in plans
        for fragment in plan.rows.fragments
        if not exists(plan.path(fragment))
    ]
    for plan in {id(plan): plan for plan, _ in missing}.values():
        survey(plan, num_gpus=num_gpus)
        learn(plan)
    bare = [(replace(plan, rows=replace(plan.rows, fragments=())), f) for plan, f in missing]
    for _ in run_tasks(score_one, bare, num_gpus=num_gpus):
        pass
    for plan in plans:
        finish(plan)


def _run_pool(plan: ScorePlan, missing: list[Fragment], pool: Pool) -> Iterator[FragmentCount]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    size = min(pool.actors, len(missing))
    gpu: dict[str, Any] = {"num_gpus": pool.num_gpus} if pool.num_gpus else {}
    rows = replace(plan.rows, fragments=(), decode_threads=max(1, int(pool.num_cpus)))
    counted = ray.data.from_items(
        [{"fragment": fragment.to_json()} for fragment in missing], override_num_blocks=len(missing)
    ).map_batches(
        FragmentScorer,
        fn_constructor_args=(replace(plan, rows=rows),),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1 if gpu else size, max_size=size),
        num_cpus=pool.num_cpus,
        **gpu,
    )
    for row in counted.iter_rows():
        if row["failure"]:
            failure: DataPruneError = pickle.loads(bytes.fromhex(row["failure"]))  # noqa: S301 - ours
            raise failure
        yield FragmentCount.from_json(row["count"])


def _committed(plan: ScorePlan, fragment: Fragment) -> tuple[FragmentCount, int]:
    """What a score file says of itself, and how many rows it lacks because storage failed."""
    note = json.loads(retried(_read_note, plan.path(fragment)))
    members = tuple(note["members"])
    count = FragmentCount(fragment.index, note["rows"], note["bad"], members, reused=True)
    return count, note.get("unread", 0)


def _read_note(path: str) -> bytes:
    with open_input(path) as file:
        note: bytes = pq.read_metadata(file).metadata[schema.NOTE]
    return note
