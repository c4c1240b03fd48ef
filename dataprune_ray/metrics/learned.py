"""An expensive metric, exact on a sample of the rows and predicted for all others."""

from __future__ import annotations

import math
from dataclasses import replace

from dataprune_ray.errors import ConfigError
from dataprune_ray.metrics.base import Metric

LEARNED = Metric(
    name="learned",
    summary="--learned-metric: exact for a sample of the rows, predicted for the others by what "
    "ranks held-out rows best",
    advice="not for metrics that cost a forward pass: predicting costs one, too",
    needs=frozenset({"logits", "labels"}),
    polarity="none",
    low=-math.inf,
    high=math.inf,
    noise_end=None,
    regression=True,
    cost="two models trained on the sample + forward pass",
    score=None,
    learns=True,
)


def learned_from(target: Metric) -> Metric:
    """The metric ``learned`` with the polarity, range and needs of what it predicts.

    Raises:
        ConfigError: the target cannot be computed for a row at a time.
    """
    if target.score is None and target.track is None:
        raise ConfigError(
            "learned_metric",
            target.name,
            "is not computed from a model for each row alone, so a sample tells nothing of it; "
            "name another metric, or score it itself",
        )
    return replace(
        target,
        name=LEARNED.name,
        summary=f"{target.name}, {LEARNED.summary.partition(': ')[2]}",
        advice=LEARNED.advice,
        needs=target.needs | LEARNED.needs,
        cost=LEARNED.cost,
        learns=True,
    )
