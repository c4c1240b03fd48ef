"""The stages of a prune run, each a function of what the stages before it found."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from dataprune_ray import galleries, incremental, manifest, schema, telemetry
from dataprune_ray.baseline import open_baseline, weights_digest
from dataprune_ray.cluster import Cluster, pool_of
from dataprune_ray.combining import combine
from dataprune_ray.config import AUTO, PruneConfig, parse_limit
from dataprune_ray.cutoff import KeepRule
from dataprune_ray.cutoff.population import UNGROUPED
from dataprune_ray.deciding import Decided, WritePlan, decide
from dataprune_ray.engine import check_models
from dataprune_ray.errors import BadDataError, ConfigError
from dataprune_ray.findings import Marks, summarise
from dataprune_ray.incremental import Reuse
from dataprune_ray.io.corpus import Corpus, Fragment
from dataprune_ray.io.filesystems import exists, join, list_names, resolve, write_bytes
from dataprune_ray.io.joined import JoinedTable, digests_of, open_joined
from dataprune_ray.io.output import (
    PLAN,
    REPORT,
    REPORT_DATA,
    Output,
    claim,
    entries_of,
    finished,
    read_run,
)
from dataprune_ray.io.scores import saved_fragments, saved_plan
from dataprune_ray.io.webdataset import with_members
from dataprune_ray.joining import join_scores, shared_fragments
from dataprune_ray.journal import Journal
from dataprune_ray.learning import agreement_in, warning_of
from dataprune_ray.planning import judges, score_plan
from dataprune_ray.plans import FragmentCount
from dataprune_ray.progress import Progress
from dataprune_ray.quality import Quality
from dataprune_ray.quality.rescue import Rescue
from dataprune_ray.report import render, to_json
from dataprune_ray.rescuing import parted
from dataprune_ray.scoring import score
from dataprune_ray.selecting import ScoreTable, distinct_groups
from dataprune_ray.strategies import get_strategy
from dataprune_ray.training import TrainResult
from dataprune_ray.unchanged import settled
from dataprune_ray.understanding import Understanding, as_saved, complete, restore, save
from dataprune_ray.verdict import Tuned
from dataprune_ray.writing import Written, plan_parts, write_parts

logger = logging.getLogger("dataprune")


def recognised(config: PruneConfig, corpus: Corpus) -> Corpus:
    """The corpus as the output's earlier run, or the given scores' run, listed it.

    Only modification times can differ: see `dataprune_ray.unchanged.settled`.
    """
    scores, root = config.run.scores, config.write.output
    if scores is not None:  # without a plan it is refused, but only where the run is not finished
        has_plan = exists(join(scores, PLAN))
        return settled(corpus, scores, saved_plan(scores)["corpus"]) if has_plan else corpus
    run = read_run(root) if entries_of(root) and not config.write.overwrite else None
    return corpus if run is None else settled(corpus, join(root, "scores"), run["inputs"])


def finished_run(config: PruneConfig, corpus: Corpus) -> dict[str, Any] | None:
    """The manifest, where this very run is finished already; that takes no lock."""
    if config.write.overwrite:
        return None
    root = config.write.output
    joined = digests_of(open_joined(config.run.with_scores))
    done = finished(root, config.decisive(), corpus.fingerprint(), joined)
    if done is not None:
        logger.info("finished already: %s", root)
    return done


def claim_output(config: PruneConfig, corpus: Corpus, joined: Sequence[JoinedTable]) -> Output:
    """The output directory, made this run's own; it is tied to the score tables it joins."""
    own = resolve(join(config.write.output, "scores"))[1]
    inside = config.run.scores is not None and resolve(config.run.scores)[1].rstrip("/") == own
    return claim(
        config.write.output,
        config.decisive(),
        corpus.fingerprint(),
        overwrite=config.write.overwrite,
        resume=config.write.resume,
        keep_scores=inside,
        joined=digests_of(joined),
    )


def planned(config: PruneConfig, corpus: Corpus) -> tuple[Corpus, Reuse | None]:
    """The corpus in the fragments of other score tables, or with a baseline's files apart."""
    baseline = open_baseline(config)
    if config.run.with_scores:
        tables = open_joined(config.run.with_scores)
        return replace(corpus, fragments=shared_fragments(corpus, tables)), None
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


def completed(
    config: PruneConfig, corpus: Corpus, understanding: Understanding, reuse: Reuse | None
) -> Understanding:
    """What only the whole corpus tells, or what an earlier run saved."""
    if reuse is not None:
        return as_saved(understanding, reuse.baseline.plan)
    if config.run.scores is not None:
        return restore(understanding, corpus, config.run.scores)
    return complete(understanding)


def score_rows(
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
    plan = score_plan(config, understanding, judges(config, proxies), folder)
    plan = replace(plan, checksums=True)
    if config.run.scores is not None:
        present = set(list_names(folder, ".parquet"))
        for fragment in corpus.fragments:
            if f"{fragment.name}.parquet" not in present:
                raise ConfigError("scores", folder, f"has no scores of fragment {fragment.name}")
    else:
        check_models(plan)
    if reuse is not None:
        incremental.assemble(plan, corpus, reuse)
    progress = Progress("scoring", "rows", corpus.rows)
    counts = score(
        plan,
        pool_of(config.score, found),
        lambda count: progress.add(count.rows, reused=count.reused),
        foreign=config.run.scores is not None,
    )
    if config.run.scores is None:
        joined, columns = understanding.joined, understanding.joined_columns
        counts = join_scores(plan, joined, columns, counts)
        combine(plan)
        save(understanding, corpus, plan, tuple(map(weights_digest, plan.judges.paths)))
    members = {name for count in counts for name in count.members}
    if corpus.format == "webdataset":
        corpus = replace(corpus, schema=with_members(corpus.schema, members))
    return counts, corpus, folder


def learned(understanding: Understanding, scores: str, journal: Journal) -> dict[str, Any] | None:
    """How well a predicted metric is predicted, with a warning where that is poor."""
    if not any(metric.learns for metric in understanding.metrics):
        return None
    found = agreement_in(scores)
    warning = warning_of(found)
    if warning is not None:
        journal.warn(warning)
    return found


def check_bad_rows(
    config: PruneConfig, output: Output, counts: list[FragmentCount], journal: Journal
) -> None:
    """Hold the bad rows against the limit.

    Raises:
        BadDataError: there are more.
    """
    rows, bad = sum(count.rows for count in counts), sum(count.bad for count in counts)
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


def with_groups(
    understanding: Understanding, fragments: Iterable[Fragment], scores: str
) -> Understanding:
    """With the values of the group column, where one is given."""
    if understanding.rows.group is None:
        return understanding
    paths = [join(scores, f"{fragment.name}.parquet") for fragment in fragments]
    return replace(understanding, groups=distinct_groups(paths))


def score_table(
    config: PruneConfig, understanding: Understanding, fragments: Iterable[Fragment], scores: str
) -> ScoreTable:
    """The score table as the population that the strategy cuts."""
    paths = [join(scores, f"{fragment.name}.parquet") for fragment in fragments]
    column = understanding.group_column
    groups: tuple[str, ...] = UNGROUPED
    if column is not None:
        classed = column == schema.LABEL
        known = understanding.label.classes if classed else understanding.groups
        groups = known or distinct_groups(paths)
    return ScoreTable(
        paths=paths,
        metric=understanding.metrics[0].name,
        group_column=column,
        groups=groups,
        seed=config.select.seed,
    )


def write_plan(
    config: PruneConfig,
    corpus: Corpus,
    understanding: Understanding,
    rule: KeepRule,
    output: Output,
    scores: str,
    rescue: Rescue | None = None,
) -> WritePlan:
    """What the tasks that decide and write are told."""
    return WritePlan(
        root=corpus.root,
        format=corpus.format,
        schema=corpus.schema,
        output=output.root,
        scores=scores,
        metric=understanding.metrics[0].name,
        rule=rule,
        group_column=understanding.group_column,
        seed=config.select.seed,
        label_type=understanding.label.type,
        quality=output.path("quality"),
        rescue=rescue,
    )


def decide_rows(plan: WritePlan, corpus: Corpus, rows: int) -> tuple[Decided, list[int]]:
    """Decisions and quarantine of every fragment, and the kept rows by fragment."""
    progress = Progress("deciding", "rows", rows)
    decided, kept = decide(plan, corpus.fragments, lambda counts: progress.add(counts.rows))
    telemetry.count_quarantined(telemetry.run_name(plan.output), decided.bad)
    return decided, kept


def write_kept(
    config: PruneConfig, plan: WritePlan, corpus: Corpus, kept: list[int], rows: int
) -> list[Written]:
    """The parts of ``data/``."""
    per_row = max(1, corpus.size // max(rows, 1))
    target = config.write.part_rows or max(1, config.write.part_bytes // per_row)
    parts = plan_parts(corpus.fragments, kept, target)
    progress = Progress("writing", "rows", sum(kept))
    run = telemetry.run_name(plan.output)

    def count(part: Written) -> None:
        progress.add(part.rows)
        telemetry.count_written(run, part.rows, part.bytes)

    return write_parts(plan, corpus, parts, count)


def warn_of_losses(understanding: Understanding, decided: Decided, journal: Journal) -> None:
    """Warn where nothing is kept, of a class or at all."""
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


def with_noise_share(
    config: PruneConfig, marks: Marks | None
) -> tuple[PruneConfig, dict[str, float]]:
    """Settings with the shares of noise that were to be estimated, and these by name.

    Raises:
        BadDataError: nothing could be estimated.
    """
    if not config.select.estimates_noise:
        return config, {}
    if marks is None or marks.noise is None:
        raise BadDataError(
            "the share of wrong labels cannot be estimated: no row was judged; give --noise-cut "
            "and --beta as numbers"
        )
    share = marks.noise.share
    found = {name: share for name in ("beta", "noise_cut") if getattr(config.select, name) == AUTO}
    return config.replace(**found), found


def with_strategy(
    config: PruneConfig, understanding: Understanding, tuned: Tuned
) -> tuple[PruneConfig, Understanding]:
    """Settings and understanding with the strategy that was chosen by trial."""
    chosen = {"strategy": tuned.strategy, "beta": tuned.beta, "keep": tuned.keep}
    strategy = get_strategy(tuned.strategy)
    return config.replace(**chosen), replace(understanding, strategy=strategy)


def quality_of(
    marks: Marks | None, output: Output, decided: Decided, rescue: Rescue | None
) -> Quality | None:
    """What the quality table says of the cut, where there is one."""
    if marks is None:
        return None
    lost = len(set(decided.dropped_by_class) - set(decided.kept_by_class) - {""})
    found = summarise(marks, output.path("decisions"), rescue, lost)
    if found.noise_share is not None:
        logger.info("about %.1f %% of the labels are wrong", 100 * found.noise_share)
    return found


def write_report(
    outcome: manifest.Outcome, table: ScoreTable, metric: str, marks: Marks | None = None
) -> None:
    """``report.html``, and beside it what a later comparison needs to add itself to it."""
    rows, output = outcome.understanding.rows, outcome.output
    names = [fragment.name for fragment in outcome.corpus.fragments]
    shown = galleries.collect(rows, output, names, outcome.rule, metric, marks)
    parts = None
    if marks is not None and outcome.rescue is not None:
        parts = parted(marks.table, outcome.rescue)
    histogram = manifest.score_histogram(outcome, table, parts)
    page = manifest.report_data(outcome, histogram, shown, galleries.bad_examples(output))
    write_bytes(join(output, REPORT_DATA), to_json(page))
    write_bytes(join(output, REPORT), render(page).encode())
