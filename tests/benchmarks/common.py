"""What the benchmarks share: interleaved timing, memory of this process, one line of JSON."""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any


def report(name: str, **figures: Any) -> None:
    """Print one benchmark's figures as one JSON line."""
    rounded = {key: float(f"{v:.4g}") if isinstance(v, float) else v for key, v in figures.items()}
    sys.stdout.write(json.dumps({"benchmark": name, **rounded}) + "\n")
    sys.stdout.flush()


def interleaved(
    functions: Mapping[str, Callable[[], Any]], repeats: Mapping[str, int]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Time functions in turn, so that a busy moment of the machine hits all alike.

    Args:
        functions: what to time, by name.
        repeats: how often each is run.

    Returns:
        Median seconds and last result, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    results: dict[str, Any] = {}
    for turn in range(max(repeats.values())):
        for name, function in functions.items():
            if turn < repeats[name]:
                start = time.perf_counter()
                results[name] = function()
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}, results


def peak_rss_mb() -> float:
    """Highest resident memory of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {"cpus": os.cpu_count(), "python": sys.version.split()[0]}
