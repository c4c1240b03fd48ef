"""Before scoring: two judges are trained on a sample, and a predictor is fitted to its scores.

What is fitted is committed beside the scores; where it is there, it is not fitted again
(`dataprune_ray.renewing` sees to it that it was fitted to the same files). At most
``_LESSON_ROWS`` rows of the sample are learned from, those of lowest place by hash, so the lesson
is the same however the corpus is cut.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dataprune_ray.errors import ConfigError
from dataprune_ray.io.corpus import Fragment
from dataprune_ray.io.filesystems import beside, exists, read_bytes, write_bytes
from dataprune_ray.io.rows import ahead, read_rows
from dataprune_ray.io.splits import places
from dataprune_ray.models import image_transform
from dataprune_ray.plans import ScorePlan
from dataprune_ray.predicting import (
    JUDGES,
    Apprentice,
    judge_path,
    judged_by,
    learner_path,
    sample_of,
)
from dataprune_ray.prediction import LEAST_ROWS, Learner, Lesson
from dataprune_ray.tasks import run_tasks
from dataprune_ray.training import TrainPlan, fit, train

logger = logging.getLogger("dataprune")

_LESSON_ROWS = 20_000
_TASKS = 64
_LOW = 0.5  # a correlation below which predictions are no stand-in


def learn(plan: ScorePlan) -> None:
    """Train the judges, score the sample and fit the predictor, where a metric is predicted.

    Raises:
        ConfigError: the sample is too small.
        StorageError: rows that storage keeps back could belong to the sample.
    """
    if plan.learning is None or exists(learner_path(plan.folder)):
        return
    train(_trainings(plan), lambda _: None)
    fragments = plan.rows.fragments
    groups = [fragments[start::_TASKS] for start in range(min(_TASKS, len(fragments)))]
    told = replace(plan, rows=replace(plan.rows, fragments=()))
    work = [(told, group) for group in groups]
    found = list(run_tasks(_examples, work, num_gpus=plan.learning.num_gpus))
    _commit(plan, found)


def learn_here(plan: ScorePlan) -> None:
    """The same in this process, for a small plan."""
    if plan.learning is None:
        return
    for training in _trainings(plan):
        fit(training)
    _commit(plan, [_examples((plan, plan.rows.fragments))])


def agreement_in(scores: str) -> dict[str, Any] | None:
    """What was learned for a score table, JSON-ready; None where nothing is predicted in it."""
    path = beside(learner_path(scores), ".json")
    return dict(json.loads(read_bytes(path))) if exists(path) else None


def warning_of(found: dict[str, Any] | None) -> str | None:
    """A warning, where predictions rank rows poorly."""
    if found is None or found["spearman_low"] >= _LOW:
        return None
    return (
        f"learned: predictions rank {found['target']} with a Spearman correlation of "
        f"{found['spearman']:.2f} [{found['spearman_low']:.2f}, {found['spearman_high']:.2f}] "
        f"only; a larger --learned-fraction, or --metric {found['target']} itself, is safer"
    )


def _trainings(plan: ScorePlan) -> list[TrainPlan]:
    learning = plan.learning
    if learning is None:
        return []
    return [
        TrainPlan(
            rows=plan.rows.within(sample_of(plan), judged_by(plan, judge).others()),
            model=plan.model,
            checkpoint=judge_path(plan, judge),
            seed=plan.rows.seed + judge,
            epochs=learning.epochs,
            batch_size=learning.batch_size,
            learning_rate=learning.learning_rate,
            memory_bytes=learning.memory_bytes,
            num_gpus=learning.num_gpus,
        )
        for judge in range(JUDGES)
    ]


@dataclass(frozen=True, eq=False)
class _Examples:
    """Sampled rows: places uint64 (m,), and what a lesson holds of them."""

    place: npt.NDArray[np.uint64]
    lesson: Lesson


def _examples(work: tuple[ScorePlan, Sequence[Fragment]]) -> _Examples | None:
    """The sampled rows of lowest place in some fragments; None where there are none."""
    plan, fragments = work
    torch.set_num_threads(1)
    apprentice = Apprentice(plan)
    transform = image_transform(plan.model)
    sample = sample_of(plan)
    found: _Examples | None = None
    for fragment in fragments:
        for batch in ahead(read_rows(plan.rows.within(sample), fragment, transform)):
            batch.need_read()
            if not batch.good.any():
                continue
            row_hash = batch.row_hash[batch.good]
            target = apprentice.exact(batch.values, batch.targets)
            cues, features, judge = apprentice.look(batch.values, batch.targets, row_hash)
            lesson = Lesson(cues, features, judge, target)
            more = _Examples(places(row_hash, sample.seed + 1), lesson)
            found = _lowest([found, more] if found else [more])
    return found


def _lowest(parts: Sequence[_Examples]) -> _Examples:
    """Finite rows of lowest place, in its order."""
    place = np.concatenate([part.place for part in parts])
    lesson = Lesson(
        np.concatenate([part.lesson.cues for part in parts]),
        np.concatenate([part.lesson.features for part in parts]),
        np.concatenate([part.lesson.judge for part in parts]),
        np.concatenate([part.lesson.target for part in parts]),
    )
    finite = np.isfinite(lesson.target) & np.isfinite(lesson.features).all(axis=1)
    order = np.flatnonzero(finite)[np.argsort(place[finite], kind="stable")][:_LESSON_ROWS]
    return _Examples(place[order], lesson.part(order))


def _commit(plan: ScorePlan, found: Sequence[_Examples | None]) -> None:
    learning = plan.learning
    parts = [part for part in found if part is not None]
    rows = sum(len(part.place) for part in parts)
    if learning is None or rows < LEAST_ROWS:
        fraction = learning.fraction if learning else 0.0
        raise ConfigError(
            "learned_fraction",
            fraction,
            f"gives a sample of {rows} good rows, {LEAST_ROWS} are needed; raise it",
        )
    learner = Learner(_lowest(parts).lesson, plan.rows.seed)
    about = {
        "target": learning.target,
        "fraction": learning.fraction,
        **learner.agreement.to_json(),
    }
    logger.info(
        "learned: %s by %s, Spearman %.3f [%.3f, %.3f] on %s rows held out",
        learning.target,
        about["chosen"],
        about["spearman"],
        about["spearman_low"],
        about["spearman_high"],
        f"{about['held_out_rows']:,}",
    )
    write_bytes(
        beside(learner_path(plan.folder), ".json"), (json.dumps(about, indent=2) + "\n").encode()
    )
    write_bytes(learner_path(plan.folder), learner.to_bytes())
