"""Full against pruned against random: what is trained on what, and what is concluded.

A given test set is held against the finished cut itself. A held-out share or folds are cut by row
identity, and each is pruned anew from the rows outside it: proxies trained, rows scored, the
strategy's cut made, all without a row that it is tested on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from dataprune_ray.arms import Arm, balanced_rule, random_rule
from dataprune_ray.config import CompareConfig, CorpusConfig, ModelConfig
from dataprune_ray.errors import ConfigError
from dataprune_ray.features import top_level
from dataprune_ray.folds import FoldCut, cut_folds
from dataprune_ray.io import open_corpus
from dataprune_ray.io.filesystems import join, redact
from dataprune_ray.io.rows import RowPlan
from dataprune_ray.io.splits import Split
from dataprune_ray.models import ModelSpec, resolve_spec
from dataprune_ray.recipes import Recipe, check_recipe
from dataprune_ray.selecting import ScoreTable
from dataprune_ray.subjects import Subject, open_subject
from dataprune_ray.verdict import (
    FULL,
    PRUNED,
    RANDOM,
    RANDOM_BALANCED,
)

logger = logging.getLogger("dataprune")

FOLDER = "comparison"
#: Seeds of random arms start here: none is the seed of a cut's ties or of its random strategy.
_RANDOM_SEED = 0x7A11


@dataclass(frozen=True)
class Entry:
    """An arm as it enters one round: with a seed, where its rows differ by seed."""

    arm: Arm
    seed: int | None = None


@dataclass(frozen=True)
class Round:
    """Arms that are trained on one set of rows and tested on another.

    ``held_out`` is the split of ``rows`` that is tested; ``test`` the rows of a given test set.
    """

    fold: int | None
    rows: RowPlan
    model: ModelSpec
    entries: tuple[Entry, ...]
    test: RowPlan
    held_out: Split | None
    tested: str  # fingerprint of a given test set

    @property
    def whole(self) -> Arm:
        """The full arm, whether or not it is trained."""
        first = self.entries[0].arm
        return Arm(FULL, first.scores, first.fragments)


def open_subjects(config: CompareConfig) -> list[Subject]:
    """The pruned outputs, all of one corpus.

    Raises:
        ConfigError: none is given, one is not finished, or they come from different corpora.
    """
    if not config.arms.pruned:
        raise ConfigError("pruned", "", "name the output of a finished run of jobs/prune.py")
    subjects = [open_subject(root, config.corpus) for root in config.arms.pruned]
    for subject in subjects[1:]:
        if subject.corpus.fingerprint() != subjects[0].corpus.fingerprint():
            raise ConfigError(
                "pruned", redact(subject.root), f"is not cut from {redact(subjects[0].corpus.root)}"
            )
    check_arms(config, subjects)
    return subjects


def check_arms(config: CompareConfig, subjects: Sequence[Subject]) -> None:
    """Refuse settings that do not fit the corpus or each other.

    Raises:
        ConfigError: naming the setting.
    """
    label = subjects[0].understanding.label
    if label.column is None:
        raise ConfigError("label", None, "a comparison trains models, so it needs labels")
    if config.arms.folds is not None and config.arms.test is not None:
        raise ConfigError("folds", config.arms.folds, "cannot be combined with a --test corpus")
    joined = [name for subject in subjects for name in subject.understanding.joined_columns]
    if config.arms.test is None and joined:
        raise ConfigError(
            "test",
            None,
            f"{joined[0]} was scored by a run that has seen the rows to hold out; pass --test with "
            "a corpus of its own",
        )
    if RANDOM_BALANCED in config.arms.arms and label.task == "regression":
        raise ConfigError(
            "arms", RANDOM_BALANCED, "needs classes; the label is a regression target"
        )
    if config.arms.use_weights and not any(subject.weighted for subject in subjects):
        raise ConfigError(
            "use_weights", True, "no pruned output has weights; prune with --strategy weighted"
        )
    check_recipe(Recipe.of(config.train), model_of(config, subjects[0]).features)


def model_of(config: CompareConfig, subject: Subject) -> ModelSpec:
    """The model that the arms train.

    Raises:
        ConfigError: it does not exist or does not fit the features.
    """
    judged = subject.understanding.model
    name = config.arms.model
    if name == "auto":
        return judged
    return resolve_spec(
        ModelConfig(model=name), subject.config.corpus, judged.features, judged.label
    )


# Rounds ------------------------------------------------------------------------------------------


def rounds(config: CompareConfig, subjects: Sequence[Subject], root: str) -> list[Round]:
    """What is trained and tested; where rows are held out, they are pruned without them here."""
    if config.arms.test is not None:
        return [_tested_round(config, subjects)]
    folds, seed = config.arms.folds, subjects[0].config.select.seed
    if folds is None:
        splits = [Split.share(config.arms.test_fraction, seed)]
    else:
        splits = [Split.fold(folds, index, seed) for index in range(folds)]
    cuts = [cut_folds(subject, splits, join(root, FOLDER)) for subject in subjects]
    return [
        _fold_round(config, subjects, [cut[index] for cut in cuts], splits[index], index)
        for index in range(len(splits))
    ]


def _tested_round(config: CompareConfig, subjects: Sequence[Subject]) -> Round:
    subject = subjects[0]
    label, rows = subject.understanding.label, subject.understanding.rows
    settings = {**subject.config.corpus.model_dump(), "input": config.arms.test}
    corpus = open_corpus(CorpusConfig.model_validate(settings))
    for path in (*rows.features.columns, label.column or ""):
        try:
            top_level(path, corpus.schema)
        except (KeyError, ConfigError):
            raise ConfigError(
                "test", redact(config.arms.test or ""), f"has no column {path!r}"
            ) from None
    test = RowPlan.of(corpus, rows.features, label, rows.id_column, rows.seed)
    model = model_of(config, subject)
    entries = [Entry(Arm(FULL, subject.scores, subject.fragments))]
    for number, one in enumerate(subjects):
        name = _name(number, one)
        decided = Arm(
            name,
            one.scores,
            one.fragments,
            decisions=join(one.root, "decisions"),
            weighted=config.arms.use_weights and one.weighted,
        )
        entries.append(Entry(decided))
        kept = int(one.manifest["rows"]["kept"])
        entries += _random_entries(config, one, one.scores, one.fragments, kept, number)
    return Round(None, rows, model, _asked(config, entries), test, None, corpus.fingerprint())


def _fold_round(
    config: CompareConfig,
    subjects: Sequence[Subject],
    cuts: Sequence[FoldCut],
    split: Split,
    index: int,
) -> Round:
    subject, first = subjects[0], cuts[0]
    model = replace(model_of(config, subject), features=first.rows.features, label=first.rows.label)
    entries = [Entry(Arm(FULL, first.scores, first.fragments))]
    for number, (one, cut) in enumerate(zip(subjects, cuts, strict=True)):
        entries.append(
            Entry(
                Arm(
                    _name(number, one),
                    cut.scores,
                    cut.fragments,
                    rule=cut.rule,
                    group_column=cut.group_column,
                    seed=one.config.select.seed,
                    weighted=config.arms.use_weights and one.weighted,
                    rescue=cut.rescue,
                    quality=cut.quality,
                )
            )
        )
        entries += _random_entries(config, one, cut.scores, cut.fragments, cut.kept, number)
    whole = replace(first.rows, splits=())
    fold = index if config.arms.folds is not None else 0
    return Round(fold, whole, model, _asked(config, entries), whole.within(split), split, "")


def _name(number: int, subject: Subject) -> str:
    return PRUNED if number == 0 else f"{PRUNED}:{subject.name}"


def _random_entries(
    config: CompareConfig,
    subject: Subject,
    scores: str,
    fragments: tuple[str, ...],
    kept: int,
    number: int,
) -> Iterator[Entry]:
    """Random arms of a cut's size: other rows for each seed, so that luck in them shows, too."""
    label = subject.understanding.label
    suffix = "" if number == 0 else f":{subject.name}"
    kinds = [RANDOM] if label.task == "regression" else [RANDOM, RANDOM_BALANCED]
    for kind in kinds:
        if config.arms.arms and kind not in config.arms.arms:
            continue
        for seed in range(config.train.seeds):
            table = ScoreTable(
                paths=[join(scores, f"{fragment}.parquet") for fragment in fragments],
                metric="",
                group_column="label" if kind == RANDOM_BALANCED else None,
                groups=label.classes if kind == RANDOM_BALANCED else ("",),
                seed=_RANDOM_SEED + seed,
            )
            rule = (
                balanced_rule(table, kept) if kind == RANDOM_BALANCED else random_rule(table, kept)
            )
            arm = Arm(
                kind + suffix,
                scores,
                fragments,
                rule=rule,
                group_column=table.group_column,
                seed=_RANDOM_SEED + seed,
            )
            yield Entry(arm, seed)


def _asked(config: CompareConfig, entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """The entries of the arms that were asked for; all where none were named."""
    asked = config.arms.arms
    if not asked:
        return tuple(entries)
    return tuple(entry for entry in entries if entry.arm.name.partition(":")[0] in asked)
