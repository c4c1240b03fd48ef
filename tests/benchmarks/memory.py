"""Peak memory of driver and workers as the corpus grows: neither should grow with its rows.

A synthetic table of small files' worth of rows, scored by a given linear checkpoint. Each size is a
run in a process of its own; resident memory of it and of its Ray workers is sampled. With
``--checkpoints`` of a training run, training dynamics are scored instead.

    python tests/benchmarks/memory.py [--rows 1000000,4000000,16000000] [--checkpoints 0]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from common import machine, report

FILE_ROWS = 250_000
COLUMNS = 8
CLASSES = 4
SAMPLE_SECONDS = 0.1
PAGE_BYTES = resource.getpagesize()
SCRIPT = """
import json, sys
from dataprune_ray.config import PruneConfig
from dataprune_ray.pipeline import prune
print(json.dumps(prune(PruneConfig.from_flat(json.loads(sys.argv[1])))["rows"]))
"""


def write_corpus(folder: Path, rows: int) -> None:
    folder.mkdir()
    for index, first in enumerate(range(0, rows, FILE_ROWS)):
        count = min(FILE_ROWS, rows - first)
        rng = np.random.default_rng(index)
        columns: dict[str, Any] = {
            f"x{i}": rng.standard_normal(count, np.float32) for i in range(COLUMNS)
        }
        columns["label"] = rng.integers(0, CLASSES, count)
        table = pa.table(columns)
        pq.write_table(table, folder / f"{index:05d}.parquet", row_group_size=65_536)


def own_mb(pid: int) -> float:
    """Resident memory of a process without what it shares, such as the object store; 0 if gone."""
    try:
        _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
    except OSError:
        return 0.0
    return (int(resident) - int(shared)) * PAGE_BYTES / 1e6


def workers_of(root: int) -> list[int]:
    """Ray's worker processes below a process."""
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text(encoding="utf-8", errors="replace")
            names[int(folder.name)] = (folder / "cmdline").read_bytes().decode("utf-8", "replace")
            parents[int(folder.name)] = int(fields.rpartition(")")[2].split()[1])
        except OSError:
            continue
    below = {root}
    for _ in range(4):  # driver, raylet, worker set-up, worker
        below |= {pid for pid, parent in parents.items() if parent in below}
    return [pid for pid in below if names[pid].startswith("ray::")]


def peaks_mb(settings: dict[str, Any]) -> tuple[float, float, float]:
    """Run once: peak MB of the driver and of its largest worker, and seconds."""
    driver = worker = 0.0
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, json.dumps(settings)], stdout=subprocess.PIPE, text=True
    )
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()))
    reader.start()
    while process.poll() is None:
        driver = max(driver, own_mb(process.pid))
        worker = max([worker, *(own_mb(child) for child in workers_of(process.pid))])
        time.sleep(SAMPLE_SECONDS)
    reader.join()
    if process.returncode:
        raise SystemExit(f"the run failed with exit code {process.returncode}")
    return driver, worker, time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="1000000,4000000,16000000", help="sizes, ascending")
    parser.add_argument("--checkpoints", type=int, default=0, help="of a run; 0: one model")
    options = parser.parse_args()
    sizes = [int(text) for text in options.rows.split(",")]
    figures: dict[str, Any] = {}
    drivers, workers = [], []
    with tempfile.TemporaryDirectory(prefix="dataprune-memory-") as name:
        root = Path(name)
        paths = [str(root / f"linear-{index}.pt") for index in range(options.checkpoints or 1)]
        for path in paths:
            weights = {"1.weight": torch.randn(CLASSES, COLUMNS), "1.bias": torch.zeros(CLASSES)}
            torch.save(weights, path)
        judged: dict[str, Any] = {"checkpoint": paths}
        if options.checkpoints:
            judged = {"trajectory": paths, "metric": ["aum", "forgetting", "dual", "tdds"]}
        for rows in sizes:
            write_corpus(root / f"in-{rows}", rows)
            settings = {
                "input": str(root / f"in-{rows}"),
                "output": str(root / f"out-{rows}"),
                "model": "linear",
                "keep": 0.5,
                **judged,
            }
            driver, worker, seconds = peaks_mb(settings)
            drivers.append(driver)
            workers.append(worker)
            figures |= {
                f"driver_mb_{rows}": driver,
                f"worker_mb_{rows}": worker,
                f"seconds_{rows}": seconds,
            }
    report(
        "memory_dynamics" if options.checkpoints else "memory",
        checkpoints=options.checkpoints,
        rows=sizes,
        **figures,
        rows_ratio=sizes[-1] / sizes[0],
        driver_ratio=drivers[-1] / drivers[0],
        worker_ratio=workers[-1] / workers[0],
        **machine(),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
