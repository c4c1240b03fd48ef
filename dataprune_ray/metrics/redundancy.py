"""Redundancy: how much of a row another one that is kept says already; exact copies are at 1."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dataprune_ray.metrics.base import ClusterFit, Metric, MetricOptions
from dataprune_ray.space import Members, redundancy
from dataprune_ray.space.duplicates import MOST_ROWS


def _values(rows: Members, options: MetricOptions) -> npt.NDArray[np.float32]:
    return redundancy(rows, options.duplicate_epsilon)


REDUNDANCY = Metric(
    name="redundancy",
    summary="largest cosine to an earlier kept row of the cluster; 1 for exact copies (SemDeDup)",
    advice="not as an importance of its own: it says what can go, not what is hard or rare",
    needs=frozenset({"space"}),
    polarity="low",
    low=0.0,
    high=1.0,
    noise_end=None,
    regression=True,
    cost="survey, features and a shuffle of them by cluster",
    score=None,
    fit=ClusterFit(_values, MOST_ROWS, copies=1.0),
)
