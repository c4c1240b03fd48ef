"""Redundancy: how much of a row another one that is kept says already; exact copies are at 1."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dataprune_ray import schema
from dataprune_ray.metrics.base import Columns, CorpusFit, Found, Metric, MetricOptions
from dataprune_ray.space import later_copies, redundancy


def _values(columns: Columns, _: Found, options: MetricOptions) -> npt.NDArray[np.float64]:
    copies = later_copies(columns[schema.DIGEST], columns[schema.ROW_HASH])
    found = redundancy(
        vectors=columns[schema.VECTOR],
        cluster=columns[schema.SPHERE],
        similarity=columns[schema.SPHERE_SIMILARITY],
        row_hash=columns[schema.ROW_HASH],
        copies=copies,
        epsilon=options.duplicate_epsilon,
    )
    return found.values.astype(np.float64)


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
    fit=CorpusFit(
        (schema.ROW_HASH, schema.DIGEST, schema.VECTOR, schema.SPHERE, schema.SPHERE_SIMILARITY),
        _values,
        whole=True,
    ),
)
