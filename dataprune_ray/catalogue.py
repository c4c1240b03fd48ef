"""The catalogue of metrics and strategies, as the registries declare them: tables and JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dataprune_ray.metrics import METRICS, Metric
from dataprune_ray.strategies import STRATEGIES, Strategy


def catalogue() -> dict[str, list[dict[str, Any]]]:
    """Every metric and strategy, JSON-ready; an open end of a range is null."""
    return {
        "metrics": [_metric(metric) for _, metric in sorted(METRICS.items())],
        "strategies": [_strategy(strategy) for strategy in STRATEGIES.values()],
    }


def text() -> str:
    """The same as two tables; under each row what it is, and when not to use it."""
    found = catalogue()
    metrics = [
        (
            *(entry["name"], _joined(entry["needs"]), entry["polarity"]),
            *(_range(entry["range"]), entry["noise_end"] or "-", entry["cost"]),
        )
        for entry in found["metrics"]
    ]
    strategies = [
        (
            *(entry["name"], entry["needs"] or "-", entry["looks_at"]),
            *("yes" if entry[name] else "-" for name in ("keep", "beta")),
        )
        for entry in found["strategies"]
    ]
    lines = ["Metrics (--metric)", ""]
    lines += _table(
        ("name", "needs", "kept end", "range", "noise at", "cost"), metrics, found["metrics"]
    )
    lines += ["", "Strategies (--strategy)", ""]
    head = ("name", "needs", "looks at", "--keep", "--beta")
    return "\n".join([*lines, *_table(head, strategies, found["strategies"])])


def _metric(metric: Metric) -> dict[str, Any]:
    return {
        "name": metric.name,
        "needs": sorted(metric.needs),
        "polarity": metric.polarity,
        "range": [v if math.isfinite(v) else None for v in (metric.low, metric.high)],
        "noise_end": metric.noise_end,
        "regression": metric.regression,
        "cost": metric.cost,
        "summary": metric.summary,
        "advice": metric.advice,
    }


def _strategy(strategy: Strategy) -> dict[str, Any]:
    return {
        "name": strategy.name,
        "needs": "classes or groups" if strategy.needs_labels else "",
        "looks_at": "score" if strategy.uses_score else "hash",
        "keep": strategy.uses_keep,
        "beta": strategy.uses_beta,
        "summary": strategy.summary,
        "advice": strategy.advice,
    }


def _joined(names: Sequence[str]) -> str:
    return ", ".join(names) or "-"


def _range(bounds: Sequence[float | None]) -> str:
    low, high = bounds
    first = "-inf" if low is None else f"{low:.4g}"
    return f"{first} to {'inf' if high is None else f'{high:.4g}'}"


def _table(
    head: Sequence[str], rows: Sequence[Sequence[str]], entries: Sequence[dict[str, Any]]
) -> list[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = (f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True))
        return f"  {'  '.join(padded)}".rstrip()

    lines = [line(head)]
    for row, entry in zip(rows, entries, strict=True):
        lines += [line(row), f"      {entry['summary']}", f"      {entry['advice']}"]
    return lines
