"""Metrics of the data distribution: where a row lies in a feature space, whatever the model says.

The space is fitted to a sample of the corpus (`dataprune_ray.space`), every row is placed in it by
itself, and counts over the whole corpus follow as a second stage. They differ most from the
metrics of a model's error, so they add to these more than another one of those does.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import numpy.typing as npt

from dataprune_ray import schema
from dataprune_ray.metrics.base import (
    Columns,
    CorpusFit,
    Extent,
    Found,
    Metric,
    MetricOptions,
    Step,
)

_COUNTS = "cluster_label_counts"
#: Added to each count, so that a pair that does not occur is rare, not impossible.
SMOOTHING = 0.5
#: Above this e to the power of it is no float32.
_LARGEST_EXPONENT = math.log(float(np.finfo(np.float32).max)) - 1e-6


def _surprisal(columns: Columns, _: Found, __: MetricOptions) -> npt.NDArray[np.float64]:
    return -columns[schema.LOG_DENSITY].astype(np.float64)


def _inverse_density(
    columns: Columns, found: Found, options: MetricOptions
) -> npt.NDArray[np.float64]:
    return np.exp(np.minimum(_surprisal(columns, found, options), _LARGEST_EXPONENT))


def _count(columns: Columns, _: Found, extent: Extent) -> npt.NDArray[np.int64]:
    """Rows of each cluster and class: int64 (k, C)."""
    size = extent.clusters * extent.classes
    cell = columns[schema.CLUSTER].astype(np.int64) * extent.classes + columns[schema.LABEL]
    return np.bincount(cell, minlength=size).reshape(extent.clusters, extent.classes)


def _mutual_information(
    columns: Columns, found: Found, _: MetricOptions
) -> npt.NDArray[np.float64]:
    table = found[_COUNTS] + SMOOTHING
    joint = np.log(table / table.sum())
    cluster = np.log(table.sum(axis=1) / table.sum())
    label = np.log(table.sum(axis=0) / table.sum())
    pairs = joint - cluster[:, None] - label
    return np.asarray(pairs[columns[schema.CLUSTER], columns[schema.LABEL]])


def _information(columns: Columns, found: Found, options: MetricOptions) -> npt.NDArray[np.float64]:
    surprisal = options.surprisal_weight * _surprisal(columns, found, options)
    mutual = options.mutual_information_weight * _mutual_information(columns, found, options)
    return surprisal + mutual


def _agreement(columns: Columns, _: Found, __: MetricOptions) -> npt.NDArray[np.float64]:
    return columns[schema.AGREEMENT].astype(np.float64)


def _prototype(columns: Columns, _: Found, __: MetricOptions) -> npt.NDArray[np.float64]:
    return columns[schema.CENTRE_DISTANCE].astype(np.float64)


_TABLE = Step(_COUNTS, _count, np.add)

#: What those share that look at a row's place alone.
_placed = partial(Metric, polarity="high", high=math.inf, cost="survey and features", score=None)

SURPRISAL = _placed(
    name="surprisal",
    summary="-log p(x) in nats, p from --density on the features",
    advice="not to find hard rows: outliers and broken inputs come first",
    needs=frozenset({"space"}),
    low=-math.inf,
    noise_end=None,
    regression=True,
    fit=CorpusFit((schema.LOG_DENSITY,), _surprisal),
)

INVERSE_DENSITY = _placed(
    name="inverse_density",
    summary="1 / p(x), p from --density on the features; at most the largest float32",
    advice="not in a sum or with a threshold: it spans many powers of ten, surprisal is its log",
    needs=frozenset({"space"}),
    low=0.0,
    noise_end=None,
    regression=True,
    fit=CorpusFit((schema.LOG_DENSITY,), _inverse_density),
)

MUTUAL_INFORMATION = _placed(
    name="mutual_information",
    summary="log p(k, y) / (p(k) p(y)) in nats, k the row's cluster; counts + 0.5",
    advice="not where rows of a cluster and a class must differ: they all tie",
    needs=frozenset({"space", "labels"}),
    low=-math.inf,
    noise_end="low",
    regression=False,
    fit=CorpusFit((schema.CLUSTER, schema.LABEL), _mutual_information, (_TABLE,)),
)

INFORMATION = _placed(
    name="information",
    summary="surprisal_weight * surprisal + mutual_information_weight * mutual_information",
    advice="not without a look at both terms: they pull apart, and surprisal has the larger spread",
    needs=frozenset({"space", "labels"}),
    low=-math.inf,
    noise_end=None,
    regression=False,
    fit=CorpusFit((schema.LOG_DENSITY, schema.CLUSTER, schema.LABEL), _information, (_TABLE,)),
)

PROTOTYPE = _placed(
    name="prototype",
    summary="distance to the nearest k-means centre of the features (Sorscher et al. 2022)",
    advice="not at a small keep fraction: keep the near rows then, with --keep-end low",
    needs=frozenset({"space"}),
    low=0.0,
    noise_end=None,
    regression=True,
    fit=CorpusFit((schema.CENTRE_DISTANCE,), _prototype),
)

KNN_LABEL_AGREEMENT = Metric(
    name="knn_label_agreement",
    summary="share of the --neighbours nearest rows of the survey with the row's label",
    advice="not as an importance: it finds wrong labels, and most rows tie at 1",
    needs=frozenset({"space", "labels"}),
    polarity="none",
    low=0.0,
    high=1.0,
    noise_end="low",
    regression=False,
    cost="survey, features and a search per row",
    score=None,
    fit=CorpusFit((schema.AGREEMENT,), _agreement),
)
