"""The quality pass: every row judged by a model that has not seen it, one quality file a fragment.

Rows are dealt to folds by identity hash. A model is trained on the other folds' rows; a sample of
each fold is kept in that model's features; then Ray tasks judge fragment after fragment. What is
committed is not done again.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from dataprune_ray import schema
from dataprune_ray.config import PruneConfig
from dataprune_ray.config.prune import AUTO
from dataprune_ray.deciding import identity_sum
from dataprune_ray.errors import BadDataError, ConfigError
from dataprune_ray.evidence import Fold, JudgePlan, judge_fragment
from dataprune_ray.findings import QualityTable
from dataprune_ray.io.corpus import Fragment
from dataprune_ray.io.filesystems import exists, join, list_names, open_input, read_bytes
from dataprune_ray.io.leftovers import remove_other_fragments
from dataprune_ray.io.splits import Split, places
from dataprune_ray.planning import score_plan, train_plan
from dataprune_ray.plans import Judges
from dataprune_ray.progress import Progress
from dataprune_ray.samples import Sampled, fit_reference, sample_fragment
from dataprune_ray.strategies import extra_metrics, get_strategy
from dataprune_ray.tasks import run_tasks
from dataprune_ray.training import train
from dataprune_ray.understanding import Understanding

logger = logging.getLogger("dataprune")

FOLDER = "quality"


def is_asked(config: PruneConfig) -> bool:
    """Whether the settings ask for the quality pass."""
    if config.select.strategy == AUTO and not config.tune.candidates:
        return True  # the noise share sets what is tried
    if config.select.estimates_noise:
        return True
    return config.quality.quality or config.quality.rescue > 0


def check(config: PruneConfig, understanding: Understanding) -> None:
    """Refuse settings that the quality pass cannot follow; said before Ray starts.

    Raises:
        ConfigError: naming the setting.
    """
    if not is_asked(config):
        return
    label = understanding.label
    for name in ("noise_cut", "beta"):
        if getattr(config.select, name) == AUTO and (
            label.column is None or label.task == "regression"
        ):
            raise ConfigError(
                name, AUTO, "is estimated from class labels, of which there are none; give a number"
            )
    if label.column is None and not config.model.given:
        raise ConfigError(
            "quality", True, "an unlabelled corpus is judged by a given model; pass --checkpoint"
        )
    rescue = config.quality.rescue
    if not rescue:
        return
    if label.column is None or label.task == "regression":
        raise ConfigError("rescue", rescue, "needs a class label that models can agree with")
    name = config.select.strategy
    if name != AUTO and not get_strategy(name).uses_keep:
        raise ConfigError(
            "rescue", rescue, f"--strategy {name} has no budget of rows to give some of"
        )


def judge_rows(
    config: PruneConfig,
    understanding: Understanding,
    fragments: tuple[Fragment, ...],
    scores: str,
    folder: str,
    split_seed: int | None = None,
) -> QualityTable:
    """Judge every scored row out of fold.

    Args:
        config: folds, sample size and neighbours, and how proxies are trained.
        understanding: complete, with the deciding metric first.
        fragments: those of the score table.
        scores: folder of the score table.
        folder: where the quality files go.
        split_seed: of the folds, where the rows are a fold of the configured seed themselves.

    Raises:
        ConfigError: the model shows no features, or the settings do not fit.
        BadDataError: the corpus holds other rows than were scored, or a fold none to train on.
    """
    check(config, understanding)
    seed = config.select.seed if split_seed is None else split_seed
    plan = _plan(config, understanding, fragments, scores, folder, seed)
    paths = [join(scores, f"{fragment.name}.parquet") for fragment in fragments]
    census = _census(plan, config.quality.quality_sample, paths)
    plan = replace(plan, census=census.text)
    _train(config, understanding, plan)
    _sample(config, plan, fragments, census)
    missing = _missing(plan, fragments)
    progress = Progress("judging", "fragments", len(fragments))
    progress.add(len(fragments) - len(missing), reused=True)
    told = replace(plan, rows=replace(plan.rows, fragments=()))
    gpus = config.score.num_gpus
    for _ in run_tasks(partial(judge_fragment, told), missing, num_gpus=gpus):
        progress.add(1)
    return QualityTable(
        folder=folder,
        names=tuple(fragment.name for fragment in fragments),
        classes=plan.classes,
        seed=config.select.seed,
        group_column=schema.LABEL if plan.rows.group is None else schema.GROUP,
    )


def screen_columns(config: PruneConfig, understanding: Understanding) -> tuple[str, ...]:
    """Score columns that rows are dropped by before the strategy looks at them."""
    names = [] if understanding.noise is None else [understanding.noise.name]
    return tuple(dict.fromkeys([*names, *extra_metrics(config.select)]))


def _plan(
    config: PruneConfig,
    understanding: Understanding,
    fragments: tuple[Fragment, ...],
    scores: str,
    folder: str,
    seed: int,
) -> JudgePlan:
    labelled = understanding.label.column is not None
    count = config.quality.quality_folds if labelled else 1
    folds = tuple(
        Fold(
            split=Split.fold(count, index, seed),
            checkpoint=join(folder, f"fold-{index}.safetensors")
            if labelled
            else config.model.given[0],
            reference=join(folder, f"reference-{index}.safetensors"),
        )
        for index in range(count)
    )
    return JudgePlan(
        rows=replace(understanding.rows, fragments=fragments),
        model=understanding.model,
        folds=folds,
        scores=scores,
        metric=understanding.metrics[0].name,
        others=screen_columns(config, understanding),
        folder=folder,
        neighbours=config.quality.neighbours,
        batch_size=score_plan(config, understanding, Judges(), folder).batch_size,
        use_gpu=config.score.num_gpus > 0,
    )


def _train(config: PruneConfig, understanding: Understanding, plan: JudgePlan) -> None:
    """A model for each fold, trained on the rows of all the others."""
    if understanding.label.column is None:
        return
    work = []
    for index, fold in enumerate(plan.folds):
        whole = train_plan(config, understanding, index, fold.checkpoint)
        work.append(replace(whole, rows=whole.rows.within(fold.split.others())))
    logger.info("training %d models that have not seen a fold each", len(work))
    for result in train(work, lambda _: None):
        logger.info("fold model: %s rows, loss %.4g", f"{result.rows:,}", result.loss)


# Which rows are judged ---------------------------------------------------------------------------


class _Census:
    """The scored rows: how many, a digest of their identities, and each fold's lowest places."""

    def __init__(self, limit: int, lowest: list[npt.NDArray[np.uint64]]) -> None:
        self.limit = limit
        self.rows = 0
        self.digest = 0
        self.lowest = lowest

    def merge(self, other: _Census) -> None:
        """Add other rows."""
        self.rows += other.rows
        self.digest = (self.digest + other.digest) % (1 << 128)
        both = zip(self.lowest, other.lowest, strict=True)
        self.lowest = [np.sort(np.concatenate(pair))[: self.limit] for pair in both]

    @property
    def text(self) -> str:
        """The same for the same set of rows."""
        return f"{self.rows}:{self.digest:032x}"

    def lasts(self, plan: JudgePlan) -> list[int]:
        """The last place of each fold's sample: all of the fold where it is small enough."""
        return [
            int(found[-1]) if len(found) == self.limit else fold.split.high - 1
            for found, fold in zip(self.lowest, plan.folds, strict=True)
        ]


def _census(plan: JudgePlan, limit: int, paths: list[str]) -> _Census:
    splits = [fold.split for fold in plan.folds]
    total = _Census(limit, [np.zeros(0, np.uint64) for _ in splits])
    for found in run_tasks(partial(_census_of, splits, limit), paths):
        total.merge(found)
    return total


def _census_of(splits: list[Split], limit: int, path: str) -> _Census:
    with open_input(path) as file:
        table = pq.read_table(file, columns=[schema.ROW_HASH, schema.ERROR], use_threads=False)
    row_hash = table.filter(table[schema.ERROR].is_null())[schema.ROW_HASH].to_numpy()
    own = [np.sort(places(row_hash[s.admits(row_hash)], s.seed))[:limit] for s in splits]
    found = _Census(limit, own)
    found.rows, found.digest = len(row_hash), identity_sum(row_hash)
    return found


def _sample(
    config: PruneConfig, plan: JudgePlan, fragments: tuple[Fragment, ...], census: _Census
) -> None:
    """The sample of each fold, unless it is there.

    Raises:
        BadDataError: no row of a fold can be judged, though some were scored.
    """
    if all(_is_of(fold.reference, plan.census) for fold in plan.folds):
        return
    remove_other_fragments(plan.folder, ())  # they were judged by other samples
    told = replace(plan, rows=replace(plan.rows, fragments=()))
    parts: dict[int, list[Sampled]] = {fold: [] for fold in range(len(plan.folds))}
    gather = partial(sample_fragment, told, census.lasts(plan))
    for found in run_tasks(gather, fragments, num_gpus=config.score.num_gpus):
        for fold, part in found:
            parts[fold].append(part)
    work = list(parts.items())
    empty = [fold for fold, held in work if not sum(len(part.place) for part in held)]
    if empty:
        raise BadDataError(
            f"fold {empty[0]} of {len(work)} has no row that its model can judge; "
            "lower --quality-folds or leave --quality out"
        )
    fit = partial(fit_reference, told, config.select.seed, config.quality.quality_sample)
    for _ in run_tasks(fit, work, num_cpus=1):
        pass


def _is_of(reference: str, census: str) -> bool:
    """Whether a fold's sample is there and was taken from these rows."""
    if not exists(reference):
        return False
    content = read_bytes(reference)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return bool(header.get("__metadata__", {}).get("census") == census)


def _missing(plan: JudgePlan, fragments: tuple[Fragment, ...]) -> list[Fragment]:
    """Fragments without a quality file of these rows; files of other fragments are removed."""
    names = {f"{fragment.name}.parquet" for fragment in fragments}
    remove_other_fragments(plan.folder, names)
    present = set(list_names(plan.folder, ".parquet"))
    judged = set()
    held = [f for f in fragments if f"{f.name}.parquet" in present]
    for name, census in run_tasks(partial(_note_of, plan.folder), [f.name for f in held]):
        if census == plan.census:
            judged.add(name)
    return [fragment for fragment in fragments if fragment.name not in judged]


def _note_of(folder: str, name: str) -> tuple[str, str]:
    with open_input(join(folder, f"{name}.parquet")) as file:
        note = json.loads(pq.read_metadata(file).metadata[schema.NOTE])
    return name, note["census"]
