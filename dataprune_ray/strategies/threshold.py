"""Keep every row at or beyond a score: a given one, the mean, or a share of the maximum.

Use these where the score itself has a meaning. Not where a number of rows matters: how many are
kept follows from the scores.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from dataprune_ray.config import SelectConfig
from dataprune_ray.cutoff import KeepRule, Population, extremes, score_sum
from dataprune_ray.errors import ConfigError
from dataprune_ray.strategies.base import (
    ScoreInfo,
    Strategy,
    compare,
    decimal_fraction,
    float32_bound,
    kept_end,
    nearest_float32,
    rule_of_threshold,
)


def threshold(population: Population, config: SelectConfig, info: ScoreInfo) -> KeepRule:
    """Keep ``score >= threshold`` (``<=`` at the low end).

    The threshold is compared as the float32 next to it, as scores are stored: 0.7 keeps a score
    of 0.7 at either end.
    """
    end = kept_end(config, info)
    value = config.threshold
    if value is None:
        raise ConfigError("threshold", None, "strategy 'threshold' needs one; pass --threshold")
    if not math.isfinite(value) or abs(value) > float(np.finfo(np.float32).max):
        raise ConfigError("threshold", value, "must be a finite number that a float32 can hold")
    cutoff = nearest_float32(decimal_fraction(value))
    sentence = f"Keep every row whose {info.metric} is {compare(end)} {value:.6g}."
    return rule_of_threshold(population, info, end, cutoff, sentence)


def mean(population: Population, config: SelectConfig, info: ScoreInfo) -> KeepRule:
    """Keep every row at or beyond the exact mean score."""
    end = kept_end(config, info)
    total = score_sum(population)
    if total.count == 0:
        return rule_of_threshold(population, info, end, None, "Keep nothing: there are no rows.")
    cutoff = float32_bound(total.totals()[0] / total.count, end)
    sentence = f"Keep every row whose {info.metric} is {compare(end)} the mean, {total.mean():.6g}."
    return rule_of_threshold(population, info, end, cutoff, sentence)


def max_fraction(population: Population, config: SelectConfig, info: ScoreInfo) -> KeepRule:
    """Drop ``score < max_fraction * max`` (low end: keep ``score <= max_fraction * max``).

    Raises:
        ConfigError: the highest score is negative, so that a share of it lies above it.
    """
    end = kept_end(config, info)
    found = extremes(population)
    if found is None:
        return rule_of_threshold(population, info, end, None, "Keep nothing: there are no rows.")
    highest = found[1]
    if highest < 0:
        raise ConfigError(
            "strategy",
            "max_fraction",
            f"the highest {info.metric} is {highest:.6g}; a share of the maximum needs it to be "
            "0 or more. Use 'quantile' or 'threshold'",
        )
    share = config.max_fraction
    cutoff = nearest_float32(decimal_fraction(share) * Fraction(highest))
    sentence = f"Keep every row whose {info.metric} is {compare(end)} {cutoff:.6g}, "
    sentence += f"{share:.6g} of the maximum {highest:.6g}."
    return rule_of_threshold(population, info, end, cutoff, sentence)


THRESHOLD = Strategy(
    name="threshold",
    summary="every row whose score is at or beyond --threshold",
    advice="not where a number of rows matters: what is kept follows from the scores",
    needs_labels=False,
    uses_score=True,
    uses_keep=False,
    compile=threshold,
)

MEAN = Strategy(
    name="mean",
    summary="every row whose score is at or beyond the exact mean",
    advice="not for skewed scores: a few large ones lift the mean and little is kept",
    needs_labels=False,
    uses_score=True,
    uses_keep=False,
    compile=mean,
)

MAX_FRACTION = Strategy(
    name="max_fraction",
    summary="every row whose score is at or beyond --max-fraction times the maximum",
    advice="not for scores with outliers: one extreme row moves the cutoff of all",
    needs_labels=False,
    uses_score=True,
    uses_keep=False,
    compile=max_fraction,
)
