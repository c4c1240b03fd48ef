"""What a run would cost here and on other clusters: the cost model, fed with a sample's figures."""

from __future__ import annotations

import math

from dataprune_ray.calibration import FITTED
from dataprune_ray.cluster import Cluster, pool_of
from dataprune_ray.config import PruneConfig, ScoreConfig
from dataprune_ray.costs import Estimate, Prices, Shape, Workload, estimate
from dataprune_ray.errors import ConfigError
from dataprune_ray.io.corpus import Corpus
from dataprune_ray.probing import Sample
from dataprune_ray.understanding import Understanding


def check_plans(config: PruneConfig) -> None:
    """Refuse plans that nothing was measured for.

    Raises:
        ConfigError: GPUs are planned, but the sample is scored on a CPU, or no CPUs beside them.
    """
    run = config.run
    if run.plan_gpus is None:
        return
    if not config.score.num_gpus:
        advice = "needs the speed of a GPU: pass --num-gpus, on a machine that has one"
        raise ConfigError("plan_gpus", run.plan_gpus, advice)
    if not run.plan_cpus:
        raise ConfigError("plan_gpus", run.plan_gpus, "needs the CPUs beside them: --plan-cpus")


def workload(
    config: PruneConfig,
    corpus: Corpus,
    understanding: Understanding,
    sample: Sample,
    *,
    rows: int,
    kept: int,
    passes: int,
    scanned: int,
) -> Workload:
    """What the whole run has to do.

    Args:
        config: the settings.
        corpus: what is read.
        understanding: what is known of it.
        sample: scored rows of it.
        rows: of the whole corpus, as expected.
        kept: of them.
        passes: over the score table that the rule of the sample took.
        scanned: values of a row that are scanned for labels and moments.
    """
    model = config.model
    proxied = not model.given and understanding.needs_model
    trainings = (1 if understanding.one_run else model.proxy_seeds) if proxied else 0
    train_rows = round(rows * model.proxy_fraction)
    if sample.encoded_bytes:
        fitting = int((model.proxy_memory_mb << 20) / sample.encoded_bytes)
        train_rows = min(train_rows, max(fitting, 1))
    target = config.write.part_rows or config.write.part_bytes * rows // max(corpus.size, 1)
    fragments = len(corpus.fragments)
    longest = max((fragment.rows or 0 for fragment in corpus.fragments), default=0)
    return Workload(
        rows=rows,
        kept=kept,
        stored_bytes=corpus.size,
        files=len(corpus.files),
        fragments=fragments,
        parts=max(1, math.ceil(kept / max(target, 1))),
        longest=longest or math.ceil(rows / max(fragments, 1)),
        passes=passes,
        checkpoints=sample.checkpoints + max(trainings - 1, 0),
        scanned=scanned,
        trainings=trainings,
        train_rows=train_rows if trainings else 0,
        updates=model.proxy_epochs * math.ceil(train_rows / model.proxy_batch_size),
        surveyed=min(rows, config.score.survey_rows) if sample.rates.survey else 0,
    )


def estimates(
    config: PruneConfig, work: Workload, sample: Sample, found: Cluster
) -> tuple[Estimate, ...]:
    """What the run costs on the present cluster, then on each that is planned."""
    run = config.run
    prices = Prices(run.cpu_hour_price, run.gpu_hour_price)
    gpus = run.plan_gpus if run.plan_gpus is not None else found.gpus
    planned = [Cluster(cpus, gpus, "planned", local=False) for cpus in run.plan_cpus]
    unbound = config.score.model_copy(update={"actors": None})
    shapes = [_shape(config.score, found), *(_shape(unbound, one) for one in planned)]
    return tuple(estimate(work, sample.rates, shape, prices, FITTED) for shape in shapes)


def _shape(config: ScoreConfig, found: Cluster) -> Shape:
    """A cluster with the pool that a run would make on it."""
    pool = pool_of(config, found)
    return Shape(found.cpus, found.gpus, pool.actors, pool.num_gpus)
