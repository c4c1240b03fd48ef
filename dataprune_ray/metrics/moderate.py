"""Moderate coreset: rows whose distance to their class's centre is near the class's median.

The centres come from the survey; the medians are those of the whole corpus, exactly: distances map
to ordered integers, and three counts of their leading, middle and last bits find the two in the
middle of each class, however the rows are dealt to files.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from dataprune_ray import schema
from dataprune_ray.cutoff import ordered_key, score_of_key
from dataprune_ray.metrics.base import (
    Columns,
    CorpusFit,
    Extent,
    Found,
    Metric,
    MetricOptions,
    Step,
)

#: Bits that each step counts, the leading ones first: 32 together.
_BITS = (11, 11, 10)
_NAMES = ("class_distance_high", "class_distance_middle", "class_distance_low")

Integers = npt.NDArray[np.int64]


def _counts(columns: Columns, found: Found, extent: Extent, depth: int) -> Integers:
    """Rows by class and by the bits of this depth: (2, C, bins), of the lower and upper median.

    Only rows whose bits before are those of the median count.
    """
    keys = ordered_key(np.ascontiguousarray(columns[schema.CLASS_DISTANCE])).astype(np.int64)
    labels = columns[schema.LABEL].astype(np.int64)
    bins = 1 << _BITS[depth]
    after = sum(_BITS[depth + 1 :])
    prefixes, _ = _medians(found, depth, extent.classes)
    counts = []
    for prefix in prefixes:
        near = (keys >> (after + _BITS[depth])) == prefix[labels]
        cell = labels[near] * bins + ((keys[near] >> after) & (bins - 1))
        counts.append(np.bincount(cell, minlength=extent.classes * bins).reshape(-1, bins))
    return np.stack(counts)


def _medians(found: Found, depth: int, classes: int) -> tuple[Integers, Integers]:
    """Leading bits of both medians (2, C) after ``depth`` steps, and their ranks among equals."""
    prefix = np.zeros((2, classes), np.int64)
    rank = np.zeros((2, classes), np.int64)
    for step in range(depth):
        counts = found[_NAMES[step]]
        if step == 0:
            rows = counts[0].sum(axis=1)
            rank = np.stack([np.maximum(rows - 1, 0) // 2, rows // 2])
        ends = counts.cumsum(axis=2)
        place = np.minimum((ends <= rank[..., None]).sum(axis=2), counts.shape[2] - 1)
        starts = ends - counts
        rank = rank - np.take_along_axis(starts, place[..., None], axis=2)[..., 0]
        prefix = (prefix << _BITS[step]) | place
    return prefix, rank


def _high(columns: Columns, found: Found, extent: Extent) -> Any:
    return _counts(columns, found, extent, 0)


def _middle(columns: Columns, found: Found, extent: Extent) -> Any:
    return _counts(columns, found, extent, 1)


def _low(columns: Columns, found: Found, extent: Extent) -> Any:
    return _counts(columns, found, extent, 2)


def class_medians(found: Found) -> npt.NDArray[np.float64]:
    """Median distance of each class (C,), the mean of both in the middle as usual."""
    prefix, _ = _medians(found, len(_BITS), found[_NAMES[0]].shape[1])
    both = score_of_key(prefix.astype(np.uint32).ravel()).reshape(prefix.shape)
    return np.asarray(both.astype(np.float64).mean(axis=0))


def _values(columns: Columns, found: Found, _: MetricOptions) -> npt.NDArray[np.float64]:
    distance = columns[schema.CLASS_DISTANCE].astype(np.float64)
    return np.asarray(np.abs(distance - class_medians(found)[columns[schema.LABEL]]))


MODERATE = Metric(
    name="moderate",
    summary="|d - median of d in the class|, d the distance to the class's centre in the survey",
    advice="not for classes of several kinds: one centre does not describe them",
    needs=frozenset({"space", "labels"}),
    polarity="low",
    low=0.0,
    high=math.inf,
    noise_end="high",
    regression=False,
    cost="survey and features",
    score=None,
    fit=CorpusFit(
        (schema.CLASS_DISTANCE, schema.LABEL),
        _values,
        tuple(Step(n, k, np.add) for n, k in zip(_NAMES, (_high, _middle, _low), strict=True)),
    ),
)
