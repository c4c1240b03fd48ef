"""The jobs' recipes: each function reads top to bottom as what the job does."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from dataprune_ray import (
    comparing,
    concluding,
    incremental,
    judging,
    manifest,
    retraining,
    stages,
    telemetry,
    trying,
    tuning,
)
from dataprune_ray.baseline import open_baseline
from dataprune_ray.cluster import Cluster, cluster
from dataprune_ray.config import AUTO, CompareConfig, PruneConfig
from dataprune_ray.drifting import drift_since, rows_of_baseline
from dataprune_ray.errors import ConfigError
from dataprune_ray.estimating import check_plans
from dataprune_ray.findings import Marks
from dataprune_ray.incremental import Reuse
from dataprune_ray.io import open_corpus
from dataprune_ray.io.corpus import Corpus
from dataprune_ray.io.filesystems import write_bytes
from dataprune_ray.io.leftovers import tidied
from dataprune_ray.io.lock import locked
from dataprune_ray.io.output import MANIFEST, Output, remove_leftovers
from dataprune_ray.journal import Journal
from dataprune_ray.naming import check_names
from dataprune_ray.plans import FragmentCount, scoring_of
from dataprune_ray.preview import Preview, expect
from dataprune_ray.proxies import obtain
from dataprune_ray.rescuing import rescue_rows
from dataprune_ray.scanning import scanned_values
from dataprune_ray.selecting import select
from dataprune_ray.training import TrainResult
from dataprune_ray.understanding import (
    Understanding,
    as_saved,
    complete,
    understand,
)
from dataprune_ray.verdict import Tuned
from dataprune_ray.writing import forget_records

logger = logging.getLogger("dataprune")


def prune(config: PruneConfig, command: str = "") -> dict[str, Any]:
    """Score a corpus, keep the rows that a strategy selects, write them; the run's manifest.

    Raises:
        ConfigError: the settings are wrong; said before Ray starts wherever that can be known.
        BadDataError: more bad rows than allowed; ``data/`` is not written then.
    """
    journal = Journal()
    check_names(config)
    with journal.stage("list files"):
        corpus = stages.recognised(config, open_corpus(config.corpus))
    done = stages.finished_run(config, corpus)
    if done is not None:
        return done
    with journal.stage("list files"):
        corpus, reuse = stages.planned(config, corpus)
        understanding = understand(config, corpus)
    if config.select.strategy == AUTO:
        tuning.check(config, understanding)
    judging.check(config, understanding)
    for note in understanding.notes:
        logger.info("%s", note)
    with ExitStack() as held:
        held.enter_context(locked(config.write.output))
        output = stages.claim_output(config, corpus, understanding.joined)
        if output.finished is not None:  # by a run that ended just now
            return output.finished
        held.enter_context(tidied(output))
        if reuse is not None:
            incremental.hold_to(output, reuse.baseline)
        started = time.perf_counter()
        found = held.enter_context(cluster(config.run.address))
        journal.seconds["start Ray"] = time.perf_counter() - started
        journal.run = telemetry.run_name(output.root)
        return _prune_on(config, command, corpus, understanding, output, found, journal, reuse)


def preview(config: PruneConfig) -> Preview:
    """Score a sample and say what `prune` would do and cost; nothing is written.

    Raises:
        ConfigError: the settings are wrong.
        BadDataError: no row of the sample can be scored.
    """
    check_names(config)
    if config.select.strategy == AUTO:
        raise ConfigError(
            "strategy", AUTO, "is chosen by trainings, which --dry-run does not make; name one"
        )
    for name in ("noise_cut", "beta"):
        if getattr(config.select, name) == AUTO:
            advice = "is estimated by trainings, which --dry-run does not make; give a number"
            raise ConfigError(name, AUTO, advice)
    check_plans(config)
    corpus = open_corpus(config.corpus)
    understanding = understand(config, corpus)
    for note in understanding.notes:
        logger.info("%s", note)
    baseline = open_baseline(config)
    with cluster(config.run.address) as found:
        if baseline is None:
            scanned = scanned_values(understanding.rows.features, understanding.label)
            return expect(config, corpus, complete(understanding), found, scanned=scanned)
        logger.info("%s", incremental.compare(baseline, corpus).text)
        judged = config
        if not config.model.given:
            judged = config.replace(checkpoint=baseline.proxies, trajectory=baseline.trajectory)
        saved = as_saved(understanding, baseline.plan)
        return expect(judged, corpus, saved, found, scanned=0)


def tune(config: PruneConfig, command: str = "") -> dict[str, Any]:
    """Score a corpus and search the strategy, or the smallest keep, that serves it best.

    Raises:
        ConfigError: the settings are wrong.
        BadDataError: more bad rows than allowed.
        GateError: none of ``keeps`` passes the gate.
    """
    config = config.replace(strategy=AUTO)
    journal = Journal()
    check_names(config)
    corpus = stages.recognised(config, open_corpus(config.corpus))
    corpus, reuse = stages.planned(config, corpus)
    understanding = understand(config, corpus)
    tuning.check(config, understanding)
    judging.check(config, understanding)
    with locked(config.write.output), cluster(config.run.address) as found:
        output = stages.claim_output(config, corpus, understanding.joined)
        with tidied(output):
            scored = _scored(config, corpus, understanding, output, found, journal, reuse)
            marks = _judged(config, scored, output, journal)
            config, _ = stages.with_noise_share(config, marks)
            with journal.stage("choose strategy"):
                tuned = _tuned(config, scored, output, marks)
            return trying.write(config, scored.scores, tuned, output, journal, command)


def compare(config: CompareConfig, command: str = "") -> dict[str, Any]:
    """Retrain on the full, the pruned and equally large random sets; what that showed.

    `concluding.check_gate` holds what is returned to the gate.

    Raises:
        ConfigError: the settings are wrong or the pruned output is not finished.
    """
    subjects = comparing.open_subjects(config)
    root = concluding.place(config, subjects)
    with locked(root), cluster(config.run.address) as found:
        logger.info("running on %s: %g CPUs, %g GPUs", found.where, found.cpus, found.gpus)
        if config.run.overwrite:
            concluding.forget(root)
        bouts = comparing.rounds(config, subjects, root)
        runs = retraining.train_all(config, subjects, bouts, root)
        shared = concluding.shared_rows(config, bouts)
        comparison = concluding.conclude(config, subjects, bouts, runs, shared)
        return concluding.write(config, subjects, comparison, shared, root, command)


# Parts that recipes share ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scored:
    """A scored corpus: what is known of it now, its models, counts, and where its scores lie."""

    corpus: Corpus
    understanding: Understanding
    proxies: tuple[TrainResult, ...]
    counts: tuple[FragmentCount, ...]
    scores: str
    learned: dict[str, Any] | None

    @property
    def rows(self) -> int:
        """All rows, bad ones too."""
        return sum(count.rows for count in self.counts)


def _scored(
    config: PruneConfig,
    corpus: Corpus,
    understanding: Understanding,
    output: Output,
    found: Cluster,
    journal: Journal,
    reuse: Reuse | None,
) -> _Scored:
    logger.info("running on %s: %g CPUs, %g GPUs", found.where, found.cpus, found.gpus)
    with journal.stage("scan labels"):
        understanding = stages.completed(config, corpus, understanding, reuse)
    with journal.stage("train proxy"):
        proxies = obtain(config, understanding, output, reuse.baseline if reuse else None)
    with journal.stage("score"):
        counts, corpus, scores = stages.score_rows(
            config, corpus, understanding, proxies, output, found, reuse
        )
    journal.scored(scoring_of(counts))
    stages.check_bad_rows(config, output, counts, journal)
    understanding = stages.with_groups(understanding, corpus.fragments, scores)
    learned = stages.learned(understanding, scores, journal)
    return _Scored(corpus, understanding, tuple(proxies), tuple(counts), scores, learned)


def _judged(config: PruneConfig, scored: _Scored, output: Output, journal: Journal) -> Marks | None:
    if not judging.is_asked(config):
        return None
    with journal.stage("quality"):
        fragments, folder = scored.corpus.fragments, output.path(judging.FOLDER)
        table = judging.judge_rows(config, scored.understanding, fragments, scored.scores, folder)
        return Marks.of(table)


def _tuned(config: PruneConfig, scored: _Scored, output: Output, marks: Marks | None) -> Tuned:
    noise = None if marks is None or marks.noise is None else marks.noise.share
    return tuning.choose(
        config, scored.understanding, scored.corpus, scored.scores, output.root, noise
    )


def _prune_on(
    config: PruneConfig,
    command: str,
    corpus: Corpus,
    understanding: Understanding,
    output: Output,
    found: Cluster,
    journal: Journal,
    reuse: Reuse | None,
) -> dict[str, Any]:
    scored = _scored(config, corpus, understanding, output, found, journal, reuse)
    corpus, understanding, scores = scored.corpus, scored.understanding, scored.scores
    asked, tuned = config, None
    marks = _judged(config, scored, output, journal)
    config, estimated = stages.with_noise_share(config, marks)
    if config.select.strategy == AUTO:
        with journal.stage("choose strategy"):
            tuned = _tuned(config, scored, output, marks)
        config, understanding = stages.with_strategy(config, understanding, tuned)
    with journal.stage("select"):
        table = stages.score_table(config, understanding, corpus.fragments, scores)
        info, rescue = understanding.info, None
        rule = select(table, config.select, info, journal.warn)
        if config.quality.rescue and marks is not None:
            rule, rescue = rescue_rows(marks, rule, config, info)
    logger.info("%s", rule.explanation)
    with journal.stage("decide"):
        plan = stages.write_plan(config, corpus, understanding, rule, output, scores, rescue)
        decided, kept = stages.decide_rows(plan, corpus, scored.rows)
    with journal.stage("write"):
        written = stages.write_kept(config, plan, corpus, kept, scored.rows)
    stages.warn_of_losses(understanding, decided, journal)
    with journal.stage("drift"):
        drift = drift_since(config, table, understanding, decided, reuse, journal)
    with journal.stage("report"):
        quality = stages.quality_of(marks, output, decided, rescue)
        outcome = manifest.Outcome(
            config=asked,
            command=command,
            corpus=corpus,
            understanding=understanding,
            rule=rule,
            decided=decided,
            written=tuple(written),
            proxies=scored.proxies,
            reused=sum(c.rows for c in scored.counts if c.reused),
            seconds=journal.seconds,
            warnings=tuple(journal.warnings),
            output=output.root,
            scores=scores,
            reuse=reuse,
            rows_of_baseline=rows_of_baseline(corpus, list(scored.counts), reuse),
            drift=drift,
            tuned=tuned,
            quality=quality,
            rescue=rescue,
            estimated=estimated,
            learned=scored.learned,
            scoring=journal.scoring,
        )
        stages.write_report(outcome, table, plan.metric, marks)
    remove_leftovers(output.root, ("data", "scores", "decisions", "quarantine", "proxy", "quality"))
    content = manifest.manifest(outcome)
    write_bytes(output.path(MANIFEST), manifest.to_bytes(content))
    forget_records(plan, written)
    return content
