"""What the benchmarks share: interleaved timing, memory of this process, one line of JSON."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any


def report(name: str, **figures: Any) -> None:
    """Print one benchmark's figures as one JSON line, floats to four digits."""
    sys.stdout.write(json.dumps({"benchmark": name, **_rounded(figures)}) + "\n")
    sys.stdout.flush()


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


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


def peak_growth_mb(function: Callable[[], Any]) -> float:
    """How far the resident memory of this process rises above its start during a call, in MB.

    Linux only: the kernel's high-water mark is reset first, so nothing done before hides it.
    """
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _high_water_mb()
    function()
    return _high_water_mb() - before


def run_alone(script: str, *arguments: str) -> None:
    """One side in a fresh process that finds the modules that this one finds."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([p for p in sys.path if p])}
    subprocess.run([sys.executable, script, *arguments], check=True, env=environment)


def peak_of_tree_mb(process: subprocess.Popen[Any]) -> float:
    """Wait for a process; the largest memory that it and its descendants held together, in MB.

    Linux only. The proportional set size counts pages that processes share once.
    """
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, sum(map(_proportional_mb, _descendants(process.pid))))
        time.sleep(0.5)
    return peak


def _descendants(pid: int) -> Iterator[int]:
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found = children.read_text(encoding="ascii").split()
        except OSError:  # it ended
            continue
        for child in found:
            yield from _descendants(int(child))


def _proportional_mb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:  # it ended
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024 / 1e6


def _high_water_mb() -> float:
    return _status_mb("self", "VmHWM")


class Workers:
    """The Ray workers below this process, and how far their resident memory rises."""

    def __init__(self) -> None:
        self._before = {pid: _status_mb(pid, "VmRSS") for pid in _workers()}
        for pid in self._before:
            Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")

    def growth_mb(self) -> float:
        """Peaks above the start, in MB, summed over the workers that were there."""
        return sum(_status_mb(pid, "VmHWM") - start for pid, start in self._before.items())

    def peak_mb(self) -> float:
        """Peaks in MB, shared memory and libraries among them, summed over the workers."""
        return sum(_status_mb(pid, "VmHWM") for pid in self._before)


def _workers() -> list[str]:
    """Processes below this one that Ray runs tasks in."""
    parents, found = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[folder.name] = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if (folder / "cmdline").read_bytes().startswith(b"ray::"):
                found.append(folder.name)
        except OSError:  # it has ended
            continue
    return [pid for pid in found if str(os.getpid()) in _ancestors(pid, parents)]


def _ancestors(pid: str, parents: Mapping[str, str]) -> list[str]:
    chain = [pid]
    while chain[-1] in parents:
        chain.append(parents[chain[-1]])
    return chain


def _status_mb(pid: str, field: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    (line,) = [line for line in lines if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024 / 1e6


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {"cpus": os.cpu_count(), "python": sys.version.split()[0]}
