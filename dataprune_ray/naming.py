"""Every name that settings hold, looked up before anything runs: metrics, strategy, files.

It looks at settings and at what earlier runs left, never at the corpus.
"""

from __future__ import annotations

from collections.abc import Sequence

from dataprune_ray.candidates import candidates
from dataprune_ray.config import AUTO, PruneConfig
from dataprune_ray.errors import ConfigError, UnknownNameError
from dataprune_ray.io.filesystems import exists, join, redact
from dataprune_ray.io.joined import joined_in, open_joined
from dataprune_ray.io.output import PLAN
from dataprune_ray.io.scores import saved_plan
from dataprune_ray.metrics import (
    METRICS,
    WINDOWED,
    Metric,
    is_expression,
    joined_metrics,
    resolve_metric,
)
from dataprune_ray.strategies import (
    ScoreInfo,
    Strategy,
    check_shares,
    extra_metrics,
    get_strategy,
    kept_end,
)
from dataprune_ray.verdict import RANDOM


def check_names(config: PruneConfig) -> tuple[tuple[Metric, ...], Strategy]:
    """Look up everything that a name in the settings refers to.

    Raises:
        ConfigError: an unknown name, a missing file, no input or output, shares of the rows that
            cannot be, or a metric without a better end where one must be known.
    """
    if not config.corpus.input:
        raise ConfigError("input", "", "name a corpus: a folder of Parquet files or tar shards")
    if not config.write.output and not config.run.dry_run:
        raise ConfigError("output", "", "name a directory for the result")
    target = config.score.learned_metric
    names = (*config.score.metric, *extra_metrics(config.select))
    joined = _joined_metrics(config, names)
    asked = [resolve_metric(name, target, joined) for name in names]
    parts = [resolve_metric(name, target, joined) for metric in asked for name in metric.combines]
    metrics = tuple({metric.name: metric for metric in (*asked, *parts)}.values())
    _check_joined(config, metrics)
    chosen = config.select.strategy
    strategy = get_strategy(RANDOM if chosen == AUTO else chosen)  # until one is chosen by trial
    noise_metric(config, metrics)
    check_shares(strategy, config.select)
    _check_end(config, metrics[0])
    model = config.model
    for field, paths in (("checkpoint", model.checkpoint), ("trajectory", model.trajectory)):
        for path in paths:
            if not exists(path):
                raise ConfigError(field, path, "no such file")
    if config.run.scores is None:
        _check_trajectory(config, metrics)
    return metrics, strategy


def _joined_metrics(config: PruneConfig, names: Sequence[str]) -> dict[str, Metric]:
    """Metrics of other runs' score tables that may be named, by ``TABLE.METRIC``.

    They are those of the given tables, or what a score table to be cut again was joined with.

    Raises:
        ConfigError: there is no such table, or it is given where nothing can be joined.
    """
    entries, scores = config.run.with_scores, config.run.scores
    if entries:
        _check_joinable(config)
        return joined_metrics({table.name: table.offers for table in open_joined(entries)})
    formulas = any(is_expression(name) for name in names)
    if scores is None or not formulas or not exists(join(scores, PLAN)):
        return {}
    return joined_metrics(joined_in(saved_plan(scores)))


def _check_joinable(config: PruneConfig) -> None:
    """Refuse score tables of other runs where nothing can be joined to them."""
    shown, advice = redact(config.run.with_scores[0]), None
    if config.run.scores is not None:
        advice = (
            "cannot be combined with --scores: joined columns are stored in the score table of "
            "the run that joins them; cut that one again, or leave --scores out"
        )
    elif config.run.baseline is not None:
        advice = "cannot be combined with --baseline; score the corpus anew, or join without it"
    elif config.run.dry_run:
        advice = "cannot be combined with --dry-run, which scores a sample and joins nothing"
    if advice is not None:
        raise ConfigError("with_scores", shown, advice)


def _check_joined(config: PruneConfig, metrics: tuple[Metric, ...]) -> None:
    """Refuse a score table of another run that no metric names."""
    used = {metric.name.partition(".")[0] for metric in metrics if metric.joined}
    for entry in config.run.with_scores:
        name = entry.partition("=")[0]
        if name not in used:
            advice = f"no metric names it, such as --metric 'rank({name}.el2n)'; leave it out"
            raise ConfigError("with_scores", redact(entry), advice)


def _check_end(config: PruneConfig, deciding: Metric) -> None:
    """Refuse a metric without a better end, where a strategy looks at its scores.

    Raises:
        ConfigError: ``keep_end`` must say which end is kept.
    """
    names = [config.select.strategy]
    if config.select.strategy == AUTO:
        tried = candidates(config.tune.candidates, 0.0, None, grouped=False)
        names = [one.strategy for one in tried]
    if any(get_strategy(name).uses_score for name in names):
        kept_end(config.select, ScoreInfo(deciding.name, deciding.polarity))


def _check_trajectory(config: PruneConfig, metrics: tuple[Metric, ...]) -> None:
    """Refuse training dynamics without a training run, or with a shorter one than they look at."""
    model = config.model
    for metric in metrics:
        if metric.track is None:
            continue
        if model.checkpoint and not model.trajectory:
            raise ConfigError(
                "metric",
                metric.name,
                "looks at the checkpoints of one training run; name them in the order of time with "
                "--trajectory, or leave out --checkpoint and a proxy is trained",
            )
        count = len(model.trajectory or model.kept_epochs)
        least = config.score.dynamics_window if metric.name in WINDOWED else 2
        if count < least:
            advice = (
                "name more of them" if model.trajectory else f"pass --proxy-epochs {least} or more"
            )
            raise ConfigError(
                "metric",
                metric.name,
                f"looks at {least} checkpoints of a run at least, there are {count}; {advice}"
                + (", or a smaller --dynamics-window" if metric.name in WINDOWED else ""),
            )


def noise_metric(config: PruneConfig, metrics: tuple[Metric, ...]) -> Metric | None:
    """The metric that noise is cut by before any strategy; None where that is not asked for.

    Raises:
        ConfigError: none of the metrics knows at which end noise gathers.
    """
    select = config.select
    if not select.noise_cut:
        return None
    known = METRICS | {metric.name: metric for metric in metrics if metric.joined}
    usable = sorted(name for name, metric in known.items() if metric.noise_end is not None)
    if select.noise_metric is not None:
        if select.noise_metric not in usable:
            raise UnknownNameError("noise_metric", select.noise_metric, usable)
        return known[select.noise_metric]
    for metric in metrics:
        if metric.noise_end is not None:
            return metric
    raise ConfigError(
        "noise_cut",
        select.noise_cut,
        f"none of {', '.join(m.name for m in metrics)} knows where mislabelled rows gather; pass "
        f"--noise-metric with one of {', '.join(usable)}",
    )
