"""Metrics of other runs' score tables, named ``TABLE.METRIC``: nothing computes them here.

Use them to weigh several modalities of a row, each scored by a model of its own.
"""

from __future__ import annotations

from dataclasses import replace

from dataprune_ray.metrics.base import Metric


def joined_metric(table: str, metric: Metric) -> Metric:
    """A metric as another run's score table holds it: its traits, without what it needs."""
    return replace(
        metric,
        name=f"{table}.{metric.name}",
        summary=f"{metric.name} of the score table {table}",
        needs=frozenset(),
        regression=True,
        cost="none",
        score=None,
        fit=None,
        track=None,
        learns=False,
        joined=True,
    )
