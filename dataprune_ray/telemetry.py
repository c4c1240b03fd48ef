"""A run's counts as metrics of Ray, which every node offers to Prometheus.

Ray names them ``ray_dataprune_rows_scored_total`` and so on. Each carries the tag ``run``, the
output without credentials. Rows are counted by the worker that has committed their scores, once a
fragment; a fragment that was scored before is not counted again. The manifest stays the authority:
what a worker counted just before it was killed may never be collected.
"""

from __future__ import annotations

from functools import cache

from ray.util.metrics import Counter, Gauge

from dataprune_ray.io.filesystems import redact

_RUN = "run"
_STAGE = "stage"
_COUNTERS = {
    "dataprune_rows_scored": "Rows whose scores are committed, bad rows among them.",
    "dataprune_rows_kept": "Rows written to data/.",
    "dataprune_rows_quarantined": "Bad rows, set aside with their reason.",
    "dataprune_bytes_written": "Bytes of the parts below data/.",
}


def run_name(path: str) -> str:
    """The tag of the run that an output directory, or its score table, belongs to."""
    return redact(path).rstrip("/").removesuffix("/scores")


def count_scored(run: str, rows: int) -> None:
    """Count rows whose scores are committed."""
    _add("dataprune_rows_scored", run, rows)


def count_quarantined(run: str, rows: int) -> None:
    """Count bad rows."""
    _add("dataprune_rows_quarantined", run, rows)


def count_written(run: str, rows: int, size: int) -> None:
    """Count a part of so many rows and bytes."""
    _add("dataprune_rows_kept", run, rows)
    _add("dataprune_bytes_written", run, size)


def set_stage_seconds(run: str, stage: str, seconds: float) -> None:
    """Note how long a stage took."""
    _stage_seconds().set(seconds, {_RUN: run, _STAGE: stage})


def _add(name: str, run: str, count: int) -> None:
    if count:  # a counter does not take zero
        _counter(name).inc(count, {_RUN: run})


@cache
def _counter(name: str) -> Counter:
    return Counter(name, _COUNTERS[name], (_RUN,))


@cache
def _stage_seconds() -> Gauge:
    return Gauge("dataprune_stage_seconds", "Seconds that a stage of a run took.", (_RUN, _STAGE))
