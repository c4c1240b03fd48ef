"""What a run would do, from a sample: expected counts, the cutoff's uncertainty, time and bytes.

One Ray task reads row groups spread over the corpus, trains the proxy on the sample if there is no
checkpoint, scores the sample with the run's own code and returns a small table. Nothing is
written to the output.
"""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dataprune_ray import schema
from dataprune_ray.combining import combined_in_memory
from dataprune_ray.config import PruneConfig
from dataprune_ray.cutoff import Block, KeepRule, MemoryPopulation, seeded_hash
from dataprune_ray.engine import check_models
from dataprune_ray.errors import BadDataError
from dataprune_ray.fitting import fitted_in_memory
from dataprune_ray.io.corpus import Corpus, Fragment, SourceFile, Span
from dataprune_ray.io.rows import RowPlan
from dataprune_ray.learning import learn_here
from dataprune_ray.planning import judges, proxy_plans, score_plan
from dataprune_ray.predicting import engine_for
from dataprune_ray.scoring import Pool
from dataprune_ray.strategies import compile_rule
from dataprune_ray.surveying import survey_here
from dataprune_ray.tasks import run_tasks
from dataprune_ray.training import TrainResult, fit
from dataprune_ray.understanding import Understanding

logger = logging.getLogger("dataprune")

_UNITS = 32
_SHOWN = 20
_Z95 = 1.959964
#: Seconds of a run that do not grow with the corpus: Ray, pools, report.
_FIXED_SECONDS = 20.0


@dataclass(frozen=True)
class Share:
    """Expected rows of a class or file, from its part of the sample."""

    name: str
    sampled: int
    rows: int
    kept: int


@dataclass(frozen=True)
class Preview:
    """The expected outcome of a run."""

    sampled: int
    bad: int
    rows: int
    rows_known: bool
    kept: int
    bytes_saved: int
    explanation: str
    cutoff: float | None
    cutoff_low: float | None
    cutoff_high: float | None
    classes: tuple[Share, ...]
    files: tuple[Share, ...]
    seconds_proxy: float
    seconds_scoring: float
    seconds_other: float

    @property
    def seconds(self) -> float:
        """Estimated seconds of the whole run."""
        return self.seconds_proxy + self.seconds_scoring + self.seconds_other

    def to_json(self) -> dict[str, Any]:
        """Everything, JSON-ready."""
        content = {k: v for k, v in vars(self).items() if k not in ("classes", "files")}
        for name in ("classes", "files"):
            content[name] = [vars(share) for share in getattr(self, name)]
        return {"preview": {**content, "seconds": self.seconds}}

    def text(self) -> str:
        """The preview that the prune job prints."""
        about = "" if self.rows_known else "about "
        lines = [
            f"Preview from {self.sampled:,} sampled rows ({self.bad:,} bad); nothing was written.",
            "",
            f"  rows         {about}{self.rows:,}",
            f"  would keep   about {self.kept:,}",
            f"  saves        about {self.bytes_saved / 1e6:,.1f} MB",
        ]
        if self.cutoff is not None:
            between = f"{self.cutoff_low:.5g} to {self.cutoff_high:.5g}"
            lines.append(f"  cutoff       {self.cutoff:.5g} (95 % interval {between})")
        lines.append(
            f"  time         about {self.seconds:,.0f} s: proxy {self.seconds_proxy:,.0f}, "
            f"scoring {self.seconds_scoring:,.0f}, the rest {self.seconds_other:,.0f}"
        )
        lines += _table("class", self.classes) + _table("file", self.files)
        return "\n".join(lines)


def _table(title: str, shares: tuple[Share, ...]) -> list[str]:
    if not shares:
        return []
    width = max(len(title), *(len(s.name) for s in shares[:_SHOWN]))
    lines = ["", f"  {title:<{width}}  {'rows':>12}  {'would keep':>12}  {'sampled':>8}"]
    lines += [
        f"  {s.name:<{width}}  {s.rows:>12,}  {s.kept:>12,}  {s.sampled:>8,}"
        for s in shares[:_SHOWN]
    ]
    if len(shares) > _SHOWN:
        lines.append(f"  … and {len(shares) - _SHOWN:,} more")
    return lines


@dataclass(frozen=True)
class _Sample:
    """The scored sample, and what it cost."""

    table: pa.Table
    score_seconds: float
    update_seconds: float


def expect(
    config: PruneConfig, corpus: Corpus, understanding: Understanding, pool: Pool
) -> Preview:
    """Score a sample on the cluster and work out what the whole run would give.

    Raises:
        BadDataError: no row of the sample can be scored.
    """
    work = _Work(config, _sample_plan(config, corpus, understanding), understanding)
    (sample,) = run_tasks(_score_sample, [work], num_cpus=1, num_gpus=config.score.num_gpus)
    good = sample.table.filter(pa.compute.is_null(sample.table[schema.ERROR]))
    if not good.num_rows:
        errors = sample.table[schema.ERROR].unique().to_pylist()[:3]
        raise BadDataError(f"no row of the sample can be scored: {errors}")
    return _expected(config, corpus, understanding, pool, sample, good)


def _sample_plan(config: PruneConfig, corpus: Corpus, understanding: Understanding) -> RowPlan:
    """A few row groups (archives: whole ones) spread over the corpus, thinned out by hash."""
    rng = np.random.default_rng(config.select.seed)
    spans = [span for file in corpus.files if file.error is None for span in _units(file)]
    chosen = sorted(rng.permutation(len(spans))[:_UNITS].tolist())
    fragments = tuple(Fragment(n, (spans[position],)) for n, position in enumerate(chosen))
    plan = replace(understanding.rows, fragments=fragments)
    rows = sum(fragment.rows or 0 for fragment in fragments)
    if rows > config.run.sample_rows:
        plan = plan.sampled(config.run.sample_rows / rows)
    return plan


def _units(file: SourceFile) -> Iterator[Span]:
    """The parts of a file that can be read alone."""
    if file.groups is None:
        yield Span(file.path)
        return
    start = 0
    for group, rows in enumerate(file.groups):
        if rows:
            yield Span(file.path, start, rows, (group, group + 1))
        start += rows


@dataclass(frozen=True)
class _Work:
    config: PruneConfig
    rows: RowPlan
    understanding: Understanding


def _score_sample(work: _Work) -> _Sample:
    config, understanding = work.config, work.understanding
    with tempfile.TemporaryDirectory(prefix="dataprune-preview-") as folder:
        proxies: list[TrainResult] = []
        update_seconds = 0.0
        if not config.model.given and understanding.needs_model:
            proxy, *_ = proxy_plans(config, understanding, folder)
            proxies = [fit(replace(proxy, rows=work.rows, workers=0))]
            update_seconds = proxies[0].seconds / proxies[0].updates
        plan = score_plan(config, understanding, judges(config, proxies), folder)
        plan = replace(
            plan, rows=replace(work.rows, extra=plan.rows.extra, digests=plan.rows.digests)
        )
        check_models(plan)
        survey_here(plan)
        learn_here(plan)
        engine = engine_for(plan)
        started = time.perf_counter()
        parts = [t for f in work.rows.fragments for t in engine.tables(f, plan.layout, set())]
        seconds = time.perf_counter() - started
        table = pa.concat_tables(parts) if parts else plan.layout.empty_table()
        finished = combined_in_memory(plan, fitted_in_memory(plan, table))
    return _Sample(finished, seconds, update_seconds)


def _expected(
    config: PruneConfig,
    corpus: Corpus,
    understanding: Understanding,
    pool: Pool,
    sample: _Sample,
    good: pa.Table,
) -> Preview:
    labels = np.asarray(good[schema.LABEL].cast(pa.string()).to_pylist(), object)
    block, groups = _block(config, understanding, good, labels)
    whole = MemoryPopulation([block], groups)
    found = compile_rule(understanding.strategy, whole, config.select, understanding.info)
    for text in found.warnings:
        logger.warning("warning: %s", text)
    rule = found.rule
    kept = rule.apply(block)
    share = float(kept.mean())
    rows = corpus.rows if corpus.rows is not None else _rows_by_bytes(corpus, sample.table)
    files = np.asarray(good[schema.FILE].cast(pa.string()).to_pylist(), object)
    known = {f.path: f.rows for f in corpus.files if f.rows is not None}
    ranked = block.take(~rule.screened(block))
    beyond = float(replace(rule, noise=()).apply(ranked).mean()) if ranked.rows else 0.0
    low, high = _cutoff_interval(rule, ranked.need_scores(), beyond)
    model = config.model
    classes: tuple[Share, ...] = ()
    if understanding.label.task == "classification" and understanding.label.column is not None:
        classes = _named(
            understanding, _shares(labels, kept, rows, {}, understanding.label.classes)
        )
    updates = model.proxy_epochs * math.ceil(rows * model.proxy_fraction / model.proxy_batch_size)
    runs = 1 if model.given or understanding.one_run else model.proxy_seeds
    rounds = math.ceil(runs / max(pool.actors, 1))
    per_row = sample.score_seconds / max(sample.table.num_rows, 1)
    return Preview(
        sampled=sample.table.num_rows,
        bad=sample.table.num_rows - good.num_rows,
        rows=rows,
        rows_known=corpus.rows is not None,
        kept=round(share * rows),
        bytes_saved=round((1.0 - share) * corpus.size),
        explanation=rule.explanation,
        cutoff=rule.cutoffs.get(""),
        cutoff_low=low,
        cutoff_high=high,
        classes=classes,
        files=_shares(files, kept, rows, known, tuple(dict.fromkeys(files.tolist()))),
        seconds_proxy=sample.update_seconds * updates * rounds,
        seconds_scoring=per_row * rows * runs / max(pool.actors, 1),
        seconds_other=_FIXED_SECONDS + rows * 2e-6,
    )


def _block(
    config: PruneConfig, understanding: Understanding, good: pa.Table, labels: npt.NDArray[Any]
) -> tuple[Block, tuple[str, ...]]:
    scores = good[understanding.metrics[0].name].to_numpy()
    hashes = seeded_hash(good[schema.ROW_HASH].to_numpy(), config.select.seed)
    others = {metric.name: good[metric.name].to_numpy() for metric in understanding.metrics}
    if understanding.group_column is None:
        return Block(scores, hashes, others=others), ("",)
    groups = understanding.label.classes
    if understanding.group_column == schema.GROUP:
        labels = np.asarray(good[schema.GROUP].to_pylist(), object)
        groups = tuple(sorted(set(labels)))
    code = {name: position for position, name in enumerate(groups)}
    codes = np.array([code[x] for x in labels], np.int32)
    return Block(scores, hashes, codes, others=others), groups


def _cutoff_interval(
    rule: KeepRule, scores: npt.NDArray[np.float32], share: float
) -> tuple[float | None, float | None]:
    """95 % interval of the cutoff that a share of the rows lies beyond, kept or cut as noise.

    It is a quantile's: order statistics at binomial distance.
    """
    if rule.cutoffs.get("") is None or rule.end is None or not len(scores):
        return None, None
    ordered = np.sort(scores)
    below = 1.0 - share if rule.end == "high" else share
    spread = _Z95 * math.sqrt(len(ordered) * below * (1.0 - below))
    ranks = np.array([below * len(ordered) - spread, below * len(ordered) + spread])
    low, high = np.clip(np.round(ranks).astype(int), 0, len(ordered) - 1)
    return float(ordered[low]), float(ordered[high])


def _shares(
    names: npt.NDArray[Any],
    kept: npt.NDArray[np.bool_],
    rows: int,
    known: dict[str, int],
    order: tuple[str, ...],
) -> tuple[Share, ...]:
    """Expected rows by name, in the given order: exact totals where known, else by the sample."""
    total, chosen = Counter(names.tolist()), Counter(names[kept].tolist())
    shares = []
    for name in order:
        if total[name]:
            size = known.get(name, round(rows * total[name] / len(names)))
            shares.append(Share(name, total[name], size, round(size * chosen[name] / total[name])))
    return tuple(shares)


def _named(understanding: Understanding, shares: tuple[Share, ...]) -> tuple[Share, ...]:
    label = understanding.label
    names = dict(zip(label.classes, label.names or label.classes, strict=False))
    return tuple(replace(share, name=names.get(share.name, share.name)) for share in shares)


def _rows_by_bytes(corpus: Corpus, sampled: pa.Table) -> int:
    """Rows of archives, from the rows found in the sampled ones and their share of the bytes."""
    seen = Counter(sampled[schema.FILE].cast(pa.string()).to_pylist())
    size = sum(file.size for file in corpus.files if file.path in seen)
    return round(sum(seen.values()) * corpus.size / max(size, 1))
