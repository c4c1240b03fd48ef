"""Plans from settings and what is known of a corpus: of scoring, and of the proxies' trainings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from dataprune_ray import schema
from dataprune_ray.config import AUTO, PruneConfig
from dataprune_ray.io.filesystems import join
from dataprune_ray.metrics import MetricOptions
from dataprune_ray.models import ModelSpec
from dataprune_ray.plans import Judges, Learning, ScorePlan
from dataprune_ray.space import SpaceOptions
from dataprune_ray.training import TrainPlan, TrainResult
from dataprune_ray.understanding import Understanding

#: Inputs of a forward pass, as float32: what caches like.
_PASS_BYTES = 4 << 20


def rows_per_pass(model: ModelSpec) -> int:
    """A power of two from 32 to 1,024; the same on every machine, as the last bits depend on it."""
    fitting = max(1, _PASS_BYTES // (4 * math.prod(model.features.shape)))
    return max(32, min(1024, 1 << int(math.log2(fitting))))


def _batch_size(config: PruneConfig, model: ModelSpec) -> int:
    """Rows of a forward pass, or where a worker that sizes them by itself may start."""
    given = config.score.batch_size
    return given if isinstance(given, int) else rows_per_pass(model)


def score_plan(
    config: PruneConfig, understanding: Understanding, judges: Judges, folder: str
) -> ScorePlan:
    """What scoring actors are told, to write the score table into ``folder``."""
    score = config.score
    copies = any(m.fit and schema.DIGEST in m.fit.columns for m in understanding.metrics)
    return ScorePlan(
        rows=replace(understanding.rows, extra=understanding.space_column, digests=copies),
        model=understanding.model,
        judges=judges,
        metrics=tuple(m.name for m in understanding.metrics if not (m.combines or m.joined)),
        expressions=tuple(m.name for m in understanding.metrics if m.combines),
        options=MetricOptions(
            gradient_weight=score.gradient_weight,
            loss_weight=score.loss_weight,
            surprisal_weight=score.surprisal_weight,
            mutual_information_weight=score.mutual_information_weight,
            duplicate_epsilon=_epsilon(config),
            window=score.dynamics_window,
        ),
        folder=folder,
        batch_size=_batch_size(config, understanding.model),
        precision=config.score.precision,
        use_gpu=config.score.num_gpus > 0,
        memory_share=min(1.0, score.num_gpus) if score.batch_size == AUTO else 0.0,
        space=SpaceOptions(
            source=score.space,
            density=score.density,
            clusters=score.clusters,
            neighbours=config.quality.neighbours,
            survey_rows=score.survey_rows,
            whiten=score.whiten,
        ),
        learning=_learning(config, understanding),
    )


def _learning(config: PruneConfig, understanding: Understanding) -> Learning | None:
    """How the metric ``learned`` is predicted, where it is asked for."""
    if not any(metric.learns for metric in understanding.metrics):
        return None
    model = config.model
    return Learning(
        target=config.score.learned_metric,
        fraction=config.score.learned_fraction,
        epochs=model.proxy_epochs,
        batch_size=model.proxy_batch_size,
        learning_rate=model.proxy_learning_rate,
        memory_bytes=model.proxy_memory_mb << 20,
        num_gpus=config.score.num_gpus,
    )


def judges(config: PruneConfig, proxies: Sequence[TrainResult]) -> Judges:
    """The checkpoints that score the rows: the given ones, or the trained proxies'."""
    if config.model.given or not proxies:
        return Judges(config.model.given, config.model.trajectory)
    return Judges(tuple(proxy.checkpoint for proxy in proxies), proxies[0].trajectory)


def proxy_name(index: int) -> str:
    """File name of the proxy of one seed."""
    return f"seed-{index}.safetensors"


def proxy_plans(config: PruneConfig, understanding: Understanding, folder: str) -> list[TrainPlan]:
    """The proxy runs, one per seed; the first keeps its epochs where a metric looks at them."""
    seeds = range(1 if understanding.one_run else config.model.proxy_seeds)
    first, *others = (
        train_plan(config, understanding, seed, join(folder, proxy_name(seed))) for seed in seeds
    )
    if understanding.needs_trajectory:
        first = replace(first, kept_epochs=config.model.kept_epochs)
    return [first, *others]


def train_plan(
    config: PruneConfig, understanding: Understanding, index: int, checkpoint: str
) -> TrainPlan:
    """The proxy run of one seed."""
    model = config.model
    return TrainPlan(
        rows=understanding.rows.sampled(model.proxy_fraction),
        model=understanding.model,
        checkpoint=checkpoint,
        seed=config.select.seed + index,
        epochs=model.proxy_epochs,
        batch_size=model.proxy_batch_size,
        learning_rate=model.proxy_learning_rate,
        memory_bytes=model.proxy_memory_mb << 20,
        workers=model.proxy_workers,
        num_gpus=config.score.num_gpus,
    )


def _epsilon(config: PruneConfig) -> float:
    """Distance up to which rows are duplicates: the selection's, unless another one is given."""
    for given in (config.score.duplicate_epsilon, config.select.dedup):
        if given is not None:
            return given
    return MetricOptions().duplicate_epsilon
