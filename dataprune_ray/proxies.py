"""Models that judge the rows where no checkpoint is given: trained, or a baseline's."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, replace

from dataprune_ray.baseline import Baseline
from dataprune_ray.config import PruneConfig
from dataprune_ray.io.filesystems import beside, exists, read_bytes, write_bytes
from dataprune_ray.io.output import Output
from dataprune_ray.training import TrainResult, train
from dataprune_ray.understanding import Understanding, train_plan

logger = logging.getLogger("dataprune")

_FOLDER = "proxy"


def obtain(
    config: PruneConfig, understanding: Understanding, output: Output, baseline: Baseline | None
) -> list[TrainResult]:
    """The proxies, where no model is given and some metric needs one; none otherwise.

    A baseline's are copied, never trained again: equal rows must score alike.
    """
    model = config.model
    if model.checkpoint or config.run.scores is not None or not understanding.needs_model:
        return []
    if baseline is not None:
        return [_inherited(path, index, output) for index, path in enumerate(baseline.proxies)]
    plans = [
        train_plan(config, understanding, index, output.path(_FOLDER, f"seed-{index}.safetensors"))
        for index in range(model.proxy_seeds)
    ]
    logger.info("training %d proxy models (%s)", len(plans), understanding.model.name)
    return train(plans, _say_trained)


def _inherited(path: str, index: int, output: Output) -> TrainResult:
    """A baseline's proxy, copied with its record."""
    checkpoint = output.path(_FOLDER, f"seed-{index}.safetensors")
    record = TrainResult(**json.loads(read_bytes(beside(path, ".json"))))
    record = replace(record, checkpoint=checkpoint, reused=True)
    copied = beside(checkpoint, ".json")
    if not exists(copied):
        write_bytes(checkpoint, read_bytes(path))
        write_bytes(copied, json.dumps(asdict(record)).encode())
    _say_trained(record)
    return record


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
