"""The jobs' recipes: each function reads top to bottom as what the job does."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from dataprune_ray import galleries, incremental, manifest, telemetry
from dataprune_ray.baseline import open_baseline, saved_fragments, weights_digest
from dataprune_ray.cluster import Cluster, cluster, pool_of
from dataprune_ray.config import PruneConfig, parse_limit
from dataprune_ray.cutoff import KeepRule
from dataprune_ray.deciding import Decided, WritePlan, decide
from dataprune_ray.drifting import drift_since, rows_of_baseline
from dataprune_ray.engine import FragmentCount, check_models
from dataprune_ray.errors import BadDataError, ConfigError
from dataprune_ray.incremental import Reuse
from dataprune_ray.io import open_corpus
from dataprune_ray.io.corpus import Corpus
from dataprune_ray.io.filesystems import exists, join, resolve, write_bytes
from dataprune_ray.io.leftovers import tidied
from dataprune_ray.io.lock import locked
from dataprune_ray.io.output import MANIFEST, REPORT, Output, claim, finished, remove_leftovers
from dataprune_ray.io.webdataset import with_members
from dataprune_ray.journal import Journal
from dataprune_ray.preview import Preview, expect
from dataprune_ray.progress import Progress
from dataprune_ray.proxies import obtain
from dataprune_ray.report import render
from dataprune_ray.scoring import score
from dataprune_ray.selecting import ScoreTable, select
from dataprune_ray.strategies import ScoreInfo
from dataprune_ray.training import TrainResult
from dataprune_ray.understanding import (
    Understanding,
    as_saved,
    check_names,
    complete,
    restore,
    save,
    saved_plan,
    score_plan,
    understand,
)
from dataprune_ray.writing import Written, plan_parts, write_parts

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
        corpus = open_corpus(config.corpus)
    done = _finished(config, corpus)
    if done is not None:
        return done
    with journal.stage("list files"):
        corpus, reuse = _planned(config, corpus)
        understanding = understand(config, corpus)
    for note in understanding.notes:
        logger.info("%s", note)
    with ExitStack() as held:
        held.enter_context(locked(config.write.output))
        output = _claim(config, corpus)
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
    corpus = open_corpus(config.corpus)
    understanding = understand(config, corpus)
    for note in understanding.notes:
        logger.info("%s", note)
    baseline = open_baseline(config)
    with cluster(config.run.address) as found:
        pool = pool_of(config.score, found)
        if baseline is None:
            return expect(config, corpus, complete(understanding), pool)
        logger.info("%s", incremental.compare(baseline, corpus).text)
        judged = config.replace(checkpoint=config.model.checkpoint or baseline.proxies)
        return expect(judged, corpus, as_saved(understanding, baseline.plan), pool)


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
    logger.info("running on %s: %g CPUs, %g GPUs", found.where, found.cpus, found.gpus)
    with journal.stage("scan labels"):
        understanding = _completed(config, corpus, understanding, reuse)
    with journal.stage("train proxy"):
        proxies = obtain(config, understanding, output, reuse.baseline if reuse else None)
    with journal.stage("score"):
        counts, corpus, scores = _score(
            config, corpus, understanding, proxies, output, found, reuse
        )
    rows, bad = sum(c.rows for c in counts), sum(c.bad for c in counts)
    _check_bad_rows(config, output, rows, bad, journal)
    with journal.stage("select"):
        table = _score_table(config, understanding, corpus, scores)
        rule = select(table, config.select, _score_info(understanding))
    logger.info("%s", rule.explanation)
    with journal.stage("decide"):
        plan = _write_plan(config, corpus, understanding, rule, output, scores)
        decided, kept = _decide(plan, corpus, rows)
    with journal.stage("write"):
        written = _write(config, plan, corpus, kept, rows)
    _warn_of_losses(understanding, decided, journal)
    with journal.stage("drift"):
        drift = drift_since(config, table, understanding, decided, reuse, journal)
    with journal.stage("report"):
        outcome = manifest.Outcome(
            config=config,
            command=command,
            corpus=corpus,
            understanding=understanding,
            rule=rule,
            decided=decided,
            written=tuple(written),
            proxies=tuple(proxies),
            reused=sum(c.rows for c in counts if c.reused),
            seconds=journal.seconds,
            warnings=tuple(journal.warnings),
            output=output.root,
            scores=scores,
            reuse=reuse,
            rows_of_baseline=rows_of_baseline(corpus, counts, reuse),
            drift=drift,
        )
        names = [fragment.name for fragment in corpus.fragments]
        shown = galleries.collect(understanding.rows, output.root, names, rule, plan.metric)
        bad_rows = galleries.bad_examples(output.root)
        page = manifest.report_data(
            outcome, manifest.score_histogram(outcome, table), shown, bad_rows
        )
        write_bytes(output.path(REPORT), render(page).encode())
    remove_leftovers(output.root, ("data", "scores", "decisions", "quarantine", "proxy"))
    content = manifest.manifest(outcome)
    write_bytes(output.path(MANIFEST), manifest.to_bytes(content))
    return content


# Stages ------------------------------------------------------------------------------------------


def _finished(config: PruneConfig, corpus: Corpus) -> dict[str, Any] | None:
    """The manifest, where this very run is finished already; that takes no lock."""
    if config.write.overwrite:
        return None
    root = config.write.output
    done = finished(root, config.decisive(), corpus.fingerprint())
    if done is not None:
        logger.info("finished already: %s", root)
    return done


def _claim(config: PruneConfig, corpus: Corpus) -> Output:
    own = resolve(join(config.write.output, "scores"))[1]
    inside = config.run.scores is not None and resolve(config.run.scores)[1].rstrip("/") == own
    return claim(
        config.write.output,
        config.decisive(),
        corpus.fingerprint(),
        overwrite=config.write.overwrite,
        resume=config.write.resume,
        keep_scores=inside,
    )


def _planned(config: PruneConfig, corpus: Corpus) -> tuple[Corpus, Reuse | None]:
    """The corpus in the fragments of an earlier score table, or with a baseline's files apart."""
    baseline = open_baseline(config)
    if config.run.scores is not None:
        saved = saved_plan(config.run.scores)
        if saved["corpus"] == corpus.fingerprint() and "fragments" in saved:
            corpus = replace(corpus, fragments=saved_fragments(saved))
        return corpus, None
    if baseline is None:
        return corpus, None
    reuse = Reuse(baseline, incremental.compare(baseline, corpus))
    logger.info("%s", reuse.text)
    return replace(corpus, fragments=incremental.planned(config, corpus, reuse.changes)), reuse


def _completed(
    config: PruneConfig, corpus: Corpus, understanding: Understanding, reuse: Reuse | None
) -> Understanding:
    if reuse is not None:
        return as_saved(understanding, reuse.baseline.plan)
    if config.run.scores is not None:
        return restore(understanding, corpus, config.run.scores)
    return complete(understanding)


def _score(
    config: PruneConfig,
    corpus: Corpus,
    understanding: Understanding,
    proxies: list[TrainResult],
    output: Output,
    found: Cluster,
    reuse: Reuse | None,
) -> tuple[list[FragmentCount], Corpus, str]:
    """The score table: its counts, the corpus with all its columns, and where the table lies."""
    folder = config.run.scores or output.path("scores")
    checkpoints = config.model.checkpoint or tuple(proxy.checkpoint for proxy in proxies)
    plan = score_plan(config, understanding, checkpoints, folder)
    if config.run.scores is not None:
        for fragment in corpus.fragments:
            if not exists(plan.path(fragment)):
                raise ConfigError("scores", folder, f"has no scores of fragment {fragment.name}")
    else:
        check_models(plan)
    if reuse is not None:
        incremental.assemble(plan, reuse)
    progress = Progress("scoring", "rows", corpus.rows)
    counts = score(
        plan,
        pool_of(config.score, found),
        lambda count: progress.add(count.rows, reused=count.reused),
        foreign=config.run.scores is not None,
    )
    if config.run.scores is None:
        save(understanding, corpus, plan, tuple(map(weights_digest, checkpoints)))
    members = {name for count in counts for name in count.members}
    if corpus.format == "webdataset":
        corpus = replace(corpus, schema=with_members(corpus.schema, members))
    return counts, corpus, folder


def _check_bad_rows(
    config: PruneConfig, output: Output, rows: int, bad: int, journal: Journal
) -> None:
    value, is_share = parse_limit(config.score.max_bad_rows)
    limit = value * rows if is_share else value
    if bad > limit:
        examples = manifest.bad_examples_of_scores(output.path("scores"))
        raise BadDataError(
            f"{bad:,} of {rows:,} rows are bad, --max-bad-rows {config.score.max_bad_rows} allows "
            f"{limit:,.0f}; nothing was written to data/. First: {'; '.join(examples)}"
        )
    if bad:
        journal.warn(f"{bad:,} of {rows:,} rows are bad and quarantined")


def _score_table(
    config: PruneConfig, understanding: Understanding, corpus: Corpus, scores: str
) -> ScoreTable:
    grouped = understanding.strategy.needs_labels
    return ScoreTable(
        paths=[join(scores, f"{fragment.name}.parquet") for fragment in corpus.fragments],
        metric=understanding.metrics[0].name,
        group_column="label" if grouped else None,
        groups=understanding.label.classes if grouped else ("",),
        seed=config.select.seed,
    )


def _score_info(understanding: Understanding) -> ScoreInfo:
    metric = understanding.metrics[0]
    return ScoreInfo(metric.name, metric.polarity, metric.low, metric.high)


def _write_plan(
    config: PruneConfig,
    corpus: Corpus,
    understanding: Understanding,
    rule: KeepRule,
    output: Output,
    scores: str,
) -> WritePlan:
    return WritePlan(
        root=corpus.root,
        format=corpus.format,
        schema=corpus.schema,
        output=output.root,
        scores=scores,
        metric=understanding.metrics[0].name,
        rule=rule,
        grouped=understanding.strategy.needs_labels,
        seed=config.select.seed,
        label_type=understanding.label.type,
    )


def _decide(plan: WritePlan, corpus: Corpus, rows: int) -> tuple[Decided, list[int]]:
    progress = Progress("deciding", "rows", rows)
    decided, kept = decide(plan, corpus.fragments, lambda counts: progress.add(counts.rows))
    telemetry.count_quarantined(telemetry.run_name(plan.output), decided.bad)
    return decided, kept


def _write(
    config: PruneConfig, plan: WritePlan, corpus: Corpus, kept: list[int], rows: int
) -> list[Written]:
    per_row = max(1, corpus.size // max(rows, 1))
    target = config.write.part_rows or max(1, config.write.part_bytes // per_row)
    parts = plan_parts(corpus.fragments, kept, target)
    progress = Progress("writing", "rows", sum(kept))
    run = telemetry.run_name(plan.output)

    def count(part: Written) -> None:
        progress.add(part.rows)
        telemetry.count_written(run, part.rows, part.bytes)

    return write_parts(plan, corpus, parts, count)


def _warn_of_losses(understanding: Understanding, decided: Decided, journal: Journal) -> None:
    if not decided.kept:
        journal.warn("no row is kept: data/ holds one empty part")
        return
    if understanding.label.task != "classification":
        return
    lost = sorted(set(decided.dropped_by_class) - set(decided.kept_by_class))
    if lost:
        shown = ", ".join(lost[:5]) + (" …" if len(lost) > 5 else "")  # noqa: PLR2004
        journal.warn(
            f"no row of class {shown} is kept; --strategy class_balanced keeps every class"
        )
