"""A run's cut made again without some rows: nothing that decides it has seen them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

from dataprune_ray import judging, stages
from dataprune_ray.arms import names_of
from dataprune_ray.combining import combine
from dataprune_ray.cutoff import KeepRule, kept_counts
from dataprune_ray.findings import Marks
from dataprune_ray.io.filesystems import join
from dataprune_ray.io.rows import RowPlan
from dataprune_ray.io.splits import Split
from dataprune_ray.planning import judges, proxy_plans, score_plan
from dataprune_ray.plans import Judges, ScorePlan
from dataprune_ray.quality.rescue import Rescue
from dataprune_ray.rescuing import rescue_rows
from dataprune_ray.scanning import needs_scan, scan
from dataprune_ray.scoring import score_in_tasks
from dataprune_ray.selecting import select
from dataprune_ray.subjects import Subject
from dataprune_ray.training import train
from dataprune_ray.understanding import Understanding

#: Added to the seed of the folds that judge rows: with the same seed, the rows of one of as many
#: folds would be those that are held out here.
_JUDGING_SEED = 2


@dataclass(frozen=True)
class FoldCut:
    """A cut among the rows outside a split: its table, its rule, and how many rows it keeps.

    ``quality`` is the folder of the judgements that ``rescue`` looks at, where rows are rescued.
    """

    rows: RowPlan
    scores: str
    fragments: tuple[str, ...]
    rule: KeepRule
    group_column: str | None
    kept: int
    rescue: Rescue | None = None
    quality: str = ""


def cut_folds(subject: Subject, splits: Sequence[Split], folder: str) -> list[FoldCut]:
    """Prune the rows outside each split as the subject was pruned; what is there is not redone.

    Raises:
        ConfigError: the strategy does not fit what is left.
    """
    insides = [_without(subject.understanding, split) for split in splits]
    places = [join(folder, f"fold-{_digest(subject, split)}") for split in splits]
    models = _models(subject, insides, places)
    plans = []
    for inside, place, found in zip(insides, places, models, strict=True):
        plans.append(score_plan(subject.config, inside, found, join(place, "scores")))
    score_in_tasks(plans, subject.config.score.num_gpus)
    for plan in plans:
        combine(plan)
    return [
        _cut(subject, inside, plan, join(place, judging.FOLDER))
        for inside, plan, place in zip(insides, plans, places, strict=True)
    ]


def _without(understanding: Understanding, split: Split) -> Understanding:
    """The rows outside the split, with moments of their own; the classes stay."""
    rows = understanding.rows.within(split.others())
    features, label = rows.features, rows.label
    if needs_scan(features, label):
        features, label = scan(rows)
    return replace(
        understanding,
        rows=replace(rows, features=features, label=label),
        model=replace(understanding.model, features=features, label=label),
    )


def _digest(subject: Subject, split: Split) -> str:
    """Tells folds of other runs, settings or splits apart."""
    settings = {k: v for k, v in subject.config.decisive().items() if k != "output"}
    content = [settings, subject.corpus.fingerprint(), repr(split)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def _models(
    subject: Subject, insides: Sequence[Understanding], places: Sequence[str]
) -> list[Judges]:
    """Checkpoints by fold: the given ones, or proxies trained on the fold's rows alone."""
    config = subject.config
    if config.model.given or not subject.understanding.needs_model:
        return [judges(config, ()) for _ in insides]
    plans = [
        proxy_plans(config, inside, join(place, "proxy"))
        for inside, place in zip(insides, places, strict=True)
    ]
    done = iter(train([plan for fold in plans for plan in fold], lambda _: None))
    return [judges(config, list(islice(done, len(fold)))) for fold in plans]


def _cut(subject: Subject, inside: Understanding, plan: ScorePlan, quality: str) -> FoldCut:
    config, fragments = subject.config, inside.rows.fragments
    info = inside.info
    table = stages.score_table(config, inside, fragments, plan.folder)
    rule, rescue = select(table, config.select, info), None
    kept = int(sum(kept_counts(table, rule)))  # rescued rows take the place of others
    if config.quality.rescue:
        seed = config.select.seed + _JUDGING_SEED
        judged = judging.judge_rows(config, inside, fragments, plan.folder, quality, seed)
        rule, rescue = rescue_rows(Marks.of(judged), rule, config, info)
    return FoldCut(
        inside.rows,
        plan.folder,
        names_of(fragments),
        rule,
        table.group_column,
        kept,
        rescue,
        quality,
    )
