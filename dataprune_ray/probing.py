"""A sample of a corpus, scored in one Ray task with the run's own code, and what that costs.

Rows are chosen from row groups spread over the corpus. What a row costs is measured apart, on
whole batches of the first of these row groups: a thinned-out one is read as a whole, too, so it
tells nothing of the time per row. Each kind of work is timed after a first go that warms it up.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataprune_ray import schema
from dataprune_ray.combining import combined_in_memory
from dataprune_ray.config import PruneConfig
from dataprune_ray.costs import Rates
from dataprune_ray.engine import Engine, check_models
from dataprune_ray.fitting import fitted_in_memory
from dataprune_ray.io import get_reader
from dataprune_ray.io.corpus import Corpus, Fragment, SourceFile, Span
from dataprune_ray.io.rows import RowBatch, RowPlan, read_rows
from dataprune_ray.learning import learn_here
from dataprune_ray.planning import judges, proxy_plans, score_plan
from dataprune_ray.plans import ScorePlan
from dataprune_ray.predicting import engine_for
from dataprune_ray.surveying import survey_here
from dataprune_ray.tasks import run_tasks
from dataprune_ray.training import TrainPlan, TrainResult, fit
from dataprune_ray.understanding import Understanding

T = TypeVar("T")

_UNITS = 32
#: Seconds after which reading and scoring are known well enough.
_ENOUGH_SECONDS = 2.0
#: Rows of the batch that is looked at for the bytes of a row.
_LOOK_ROWS = 1024
#: Updates of the training that warms up, and that tells what is no update of the other one.
_WARM_UPDATES = 8


@dataclass(frozen=True)
class Sample:
    """The scored sample and what its rows cost.

    ``encoded_bytes`` are those of a row as a model takes it, ``checkpoints`` the models that
    scored every row.
    """

    table: pa.Table
    rates: Rates
    encoded_bytes: float
    checkpoints: int


@dataclass(frozen=True)
class Probe:
    """What the task that scores a sample is told; ``whole``, if any, is timed."""

    config: PruneConfig
    rows: RowPlan
    understanding: Understanding
    whole: tuple[Fragment, ...]


def scored_sample(config: PruneConfig, corpus: Corpus, understanding: Understanding) -> Sample:
    """A sample of ``--sample-rows`` rows, scored on the cluster."""
    plan = _sample_plan(config, corpus, understanding)
    probe = Probe(config, plan, understanding, plan.fragments[:1])
    (sample,) = run_tasks(probed, [probe], num_cpus=1, num_gpus=config.score.num_gpus)
    return sample


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


def probed(probe: Probe) -> Sample:
    """Score a sample in this process, with a proxy trained on it where no checkpoint is given."""
    config, understanding = probe.config, probe.understanding
    with tempfile.TemporaryDirectory(prefix="dataprune-preview-") as folder:
        proxies: list[TrainResult] = []
        update = 0.0
        if not config.model.given and understanding.needs_model:
            proxy, *_ = proxy_plans(config, understanding, folder)
            proxy = replace(proxy, rows=probe.rows, workers=0)
            update, trained = _trained(proxy)
            proxies = [trained]
        plan = score_plan(config, understanding, judges(config, proxies), folder)
        plan = replace(
            plan, rows=replace(probe.rows, extra=plan.rows.extra, digests=plan.rows.digests)
        )
        check_models(plan)
        survey, _ = _timed(lambda: survey_here(plan))
        learn, _ = _timed(lambda: learn_here(plan))
        engine = engine_for(plan)
        parts = [t for f in plan.rows.fragments for t in engine.tables(f, plan.layout, set())]
        table = pa.concat_tables(parts) if parts else plan.layout.empty_table()
        second, finished = _timed(lambda: combined_in_memory(plan, fitted_in_memory(plan, table)))
        rates, encoded = _rates(plan, engine, probe.whole)
    rows = max(table.num_rows, 1)
    rates = replace(
        rates,
        update=update,
        survey=survey / min(rows, plan.space.survey_rows) if plan.placed else 0.0,
        learn=learn / rows if plan.learning is not None else 0.0,
        second=second / rows if plan.fitted or plan.expressions else 0.0,
    )
    return Sample(finished, rates, encoded, len(engine.forward.judges.paths))


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    """Seconds of a call, and what it returned."""
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def _trained(plan: TrainPlan) -> tuple[float, TrainResult]:
    """Seconds of one update, and the trained proxy.

    A training of few updates goes first: the difference of both holds neither reading nor set-up.
    """
    first = fit(replace(plan, updates=_WARM_UPDATES))
    trained = fit(plan)
    more = trained.updates - first.updates
    if more <= 0:
        return trained.seconds / trained.updates, trained
    return max(trained.seconds - first.seconds, 0.0) / more, trained


def _rates(plan: ScorePlan, engine: Engine, whole: Sequence[Fragment]) -> tuple[Rates, float]:
    """What reading, models and the table cost per row of fragments; bytes of an encoded row."""
    rows = plan.rows.sampled(1.0)
    batches = chain.from_iterable(read_rows(rows, f, engine.transform) for f in whole)
    decode = forward = rest = 0.0
    done = encoded = 0
    tables = []
    while decode + forward + rest < _ENOUGH_SECONDS:
        seconds, batch = _timed(lambda: next(batches, None))
        if batch is None:
            break
        if not done:
            engine.table(batch, plan.layout)
        decode += seconds
        models = _forward(engine, batch)
        seconds, table = _timed(partial(engine.table, batch, plan.layout))
        forward, rest = forward + models, rest + max(seconds - models, 0.0)
        tables.append(table)
        done += len(batch)
        encoded += batch.values.nbytes
    seconds, size = _written(tables)
    count = max(done, 1)
    passes = max(len(engine.forward.judges.paths), 1)
    return Rates(
        decode=decode / count,
        forward=forward / count / passes,
        store=(rest + seconds) / count,
        row_bytes=_row_bytes(rows, whole),
        score_bytes=size / count,
    ), encoded / count


def _forward(engine: Engine, batch: RowBatch) -> float:
    """Seconds of all models on the good rows of a batch."""
    if not engine.forward.judges.paths or not len(batch.values):
        return 0.0
    seconds, _ = _timed(lambda: engine.forward.run(batch.values, batch.targets))
    return seconds


def _written(tables: list[pa.Table]) -> tuple[float, int]:
    """Seconds and bytes of writing a score file."""
    if not tables:
        return 0.0, 0
    table = pa.concat_tables(tables).unify_dictionaries()
    with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
        dictionaries = [schema.FILE, schema.ERROR]
        seconds, _ = _timed(lambda: pq.write_table(table, file.name, use_dictionary=dictionaries))
        return seconds, Path(file.name).stat().st_size


def _row_bytes(plan: RowPlan, fragments: Sequence[Fragment]) -> float:
    """Bytes in memory of a row as stored, all columns: what the write pass copies."""
    for span in (span for fragment in fragments for span in fragment.spans if not span.error):
        for batch in get_reader(plan.format).read(plan.root, span, None, _LOOK_ROWS):
            if batch.num_rows:
                return float(batch.nbytes / batch.num_rows)
    return 0.0
