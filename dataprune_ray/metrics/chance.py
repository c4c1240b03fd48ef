"""The baseline that every result has to beat: a random number per row, from its identity alone."""

from __future__ import annotations

from dataprune_ray.metrics.base import Metric

RANDOM = Metric(
    name="random",
    summary="uniform in [0, 1) from the hash of the row's identity and the seed",
    advice="not as an importance: it is the baseline",
    needs=frozenset(),
    polarity="high",
    low=0.0,
    high=1.0,
    noise_end=None,
    regression=True,
    cost="none",
    score=None,
)
