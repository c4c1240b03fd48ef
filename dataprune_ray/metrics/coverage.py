"""Coverage: how early a row is taken where rows are chosen that cover their cluster best."""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt

from dataprune_ray.metrics.base import ClusterFit, Metric, MetricOptions
from dataprune_ray.space import Members, facility_location, k_center
from dataprune_ray.space.coverage import MOST_ROWS


def _k_center(rows: Members, _: MetricOptions) -> npt.NDArray[np.float32]:
    return k_center(rows)


def _facility_location(rows: Members, _: MetricOptions) -> npt.NDArray[np.float32]:
    return facility_location(rows)


#: What both share: values are ``1 - place / rows of the cluster``.
_covering = partial(
    Metric,
    needs=frozenset({"space"}),
    polarity="high",
    low=0.0,
    high=1.0,
    noise_end=None,
    regression=True,
    cost="survey, features and a shuffle of them by cluster",
    score=None,
)

K_CENTER = _covering(
    name="k_center",
    summary="1 - place / rows of the cluster, places by farthest-first traversal (k-center)",
    advice="not on corpora with outliers or broken inputs: they are farthest and come first",
    fit=ClusterFit(_k_center, MOST_ROWS),
)

FACILITY_LOCATION = _covering(
    name="facility_location",
    summary="1 - place / rows of the cluster, places by greedy facility location",
    advice="not where rare rows must stay: dense regions come first",
    fit=ClusterFit(_facility_location, MOST_ROWS),
)
