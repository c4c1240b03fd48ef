"""Models that judge the rows where no checkpoint is given: trained, or a baseline's."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, replace

from dataprune_ray.baseline import Baseline
from dataprune_ray.config import PruneConfig
from dataprune_ray.io.filesystems import beside, exists, read_bytes, write_bytes
from dataprune_ray.io.output import Output
from dataprune_ray.planning import proxy_name, proxy_plans
from dataprune_ray.training import TrainResult, read_result, train
from dataprune_ray.understanding import Understanding

logger = logging.getLogger("dataprune")

_FOLDER = "proxy"


def obtain(
    config: PruneConfig, understanding: Understanding, output: Output, baseline: Baseline | None
) -> list[TrainResult]:
    """The proxies, where no model is given and some metric needs one; none otherwise.

    A baseline's are copied, never trained again: equal rows must score alike.
    """
    if config.model.given or config.run.scores is not None or not understanding.needs_model:
        return []
    if baseline is not None:
        return [_inherited(path, index, output) for index, path in enumerate(baseline.proxies)]
    plans = proxy_plans(config, understanding, output.path(_FOLDER))
    logger.info("training %d proxy models (%s)", len(plans), understanding.model.name)
    return train(plans, _say_trained)


def _inherited(path: str, index: int, output: Output) -> TrainResult:
    """A baseline's proxy, copied with its trajectory and its record."""
    theirs = replace(read_result(beside(path, ".json")), checkpoint=path)
    ours = replace(theirs, checkpoint=output.path(_FOLDER, proxy_name(index)), reused=True)
    copied = beside(ours.checkpoint, ".json")
    if not exists(copied):
        write_bytes(ours.checkpoint, read_bytes(path))
        for source, target in zip(theirs.trajectory[:-1], ours.trajectory[:-1], strict=True):
            write_bytes(target, read_bytes(source))
        write_bytes(copied, json.dumps(asdict(ours)).encode())
    _say_trained(ours)
    return ours


def _say_trained(result: TrainResult) -> None:
    accuracy = "" if result.accuracy is None else f", accuracy {100 * result.accuracy:.1f} %"
    reused = " (from an earlier run)" if result.reused else ""
    logger.info(
        "proxy seed %d: %s of %s rows, %s updates, loss %.4g%s, %.1f s%s",
        result.seed,
        f"{result.rows:,}",
        f"{result.rows_available:,}",
        f"{result.updates:,}",
        result.loss,
        accuracy,
        result.seconds,
        reused,
    )
