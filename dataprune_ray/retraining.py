"""The trainings of a comparison's rounds: each arm from each seed, in memory or streamed."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Sequence

from dataprune_ray.arms import Arm
from dataprune_ray.comparing import FOLDER, Entry, Round
from dataprune_ray.config import CompareConfig
from dataprune_ray.holding import Held, Limit, hold, in_split, members, weights_of
from dataprune_ray.io.filesystems import join
from dataprune_ray.io.rows import RowPlan
from dataprune_ray.models import ModelSpec
from dataprune_ray.recipes import Recipe
from dataprune_ray.streams import StreamPlan, stream_trial
from dataprune_ray.subjects import Subject
from dataprune_ray.trials import TrialData, TrialPlan, record, recorded, run_trials
from dataprune_ray.verdict import FULL, TrialRun

logger = logging.getLogger("dataprune")


def train_all(
    config: CompareConfig, subjects: Sequence[Subject], bouts: Sequence[Round], root: str
) -> list[TrialRun]:
    """Every training of every round; finished ones are taken from their records."""
    folder = join(root, FOLDER)
    if config.train.workers:
        return _streamed(config, subjects, bouts, folder)
    advice = "stream the rows through Ray Train with --workers"
    limit = Limit(config.train.train_memory_mb, advice)
    held: dict[str, Held] = {}

    def in_memory(rows: RowPlan, model: ModelSpec) -> Held:
        key = repr((rows.root, rows.features, rows.label, rows.splits))
        if key not in held:
            held[key] = hold(rows, model, limit)
        return held[key]

    work: list[tuple[TrialPlan, TrialData]] = []
    for bout in bouts:
        train = in_memory(bout.rows, bout.model)
        if bout.held_out is None:
            test, test_members = in_memory(bout.test, bout.model), None
        else:
            test, test_members = train, in_split(bout.held_out, train)
        placed = [(entry, members(entry.arm, train)) for entry in bout.entries]
        full = next((found.rows for entry, found in placed if entry.arm.name == FULL), 0)
        full = full or members(bout.whole, train).rows
        for entry, found in placed:
            same, weights = bout.held_out is not None, weights_of(entry.arm, train, found)
            data = TrialData(train, found, test, test_members, same, weights)
            trainings = plans(config, subjects, bout, entry, found.rows, full)
            work += [(plan, data) for plan in trainings]
    logger.info("training %d models", len(work))
    return run_trials(work, folder, _say_trained)


def _streamed(
    config: CompareConfig, subjects: Sequence[Subject], bouts: Sequence[Round], folder: str
) -> list[TrialRun]:
    found = []
    for bout in bouts:
        sizes = [entry.arm.size() for entry in bout.entries]
        full = bout.whole.size().rows
        for entry, size in zip(bout.entries, sizes, strict=True):
            for plan in plans(config, subjects, bout, entry, size.rows, full):
                stream = StreamPlan(
                    plan,
                    bout.rows,
                    entry.arm,
                    bout.test,
                    config.train.workers,
                    folder,
                    config.train.max_failures,
                    size.scale,
                )
                stream.check()
                run = recorded(plan, folder)
                if run is None:
                    run = stream_trial(stream)
                    record(plan, run, folder)
                found.append(run)
                _say_trained(run)
    return found


def plans(
    config: CompareConfig,
    subjects: Sequence[Subject],
    bout: Round,
    entry: Entry,
    rows: int,
    full: int,
) -> Iterator[TrialPlan]:
    """The trainings of one entry: each seed under each budget.

    With equal updates every arm makes as many as the full one; with equal epochs as many passes.
    """
    recipe = Recipe.of(config.train)
    per_epoch = math.ceil(rows / recipe.batch_size)
    whole = math.ceil(full / recipe.batch_size)
    equal = config.train.updates or config.train.epochs * whole
    updates = {"updates": equal, "epochs": max(1, round(equal / whole * per_epoch))}
    asked = ["updates", "epochs"] if config.train.budget == "both" else [config.train.budget]
    seeds = range(config.train.seeds) if entry.seed is None else [entry.seed]
    for budget in asked:
        for seed in seeds:
            yield TrialPlan(
                arm=entry.arm.name,
                seed=seed,
                fold=bout.fold,
                budget=budget,
                rows=rows,
                updates=updates[budget],
                per_epoch=per_epoch,
                recipe=recipe,
                model=bout.model,
                identity=_identity(subjects, bout, entry.arm),
                curve_points=config.train.curve_points,
                num_gpus=config.train.train_gpus,
            )


def _identity(subjects: Sequence[Subject], bout: Round, arm: Arm) -> str:
    """What a result depends on beside its plan: the corpus, the cut, the test rows."""
    content = [
        subjects[0].corpus.fingerprint(),
        [subject.manifest["content_hash"] for subject in subjects],
        arm.digest(),
        repr(bout.held_out),
        bout.tested,
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _say_trained(run: TrialRun) -> None:
    fold = "" if run.fold is None else f", fold {run.fold}"
    logger.info(
        "%s seed %d%s: %.2f points after %s updates of %s rows, %.1f s",
        run.arm,
        run.seed,
        fold,
        run.score,
        f"{run.updates:,}",
        f"{run.rows:,}",
        run.seconds,
    )
