"""Fits the cost model (``dataprune_ray/calibration.py``) to measurements made here.

What a row costs is the processor time of the run's own code over synthetic corpora of several row
widths, in this process and one thread, without Ray: other load on the machine moves it little.
Copying is fitted by least squares of the relative error, with no constant below zero. Start-ups
are what the stages of small jobs took, the least of several jobs. Prints three lines of JSON with
the constants, the first with how far the fit of copying is off at most.

    python tests/benchmarks/costs.py [--rows 200000] [--repeats 3]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from common import machine, report
from scipy.optimize import nnls

from dataprune_ray import stages
from dataprune_ray.config import PruneConfig
from dataprune_ray.cutoff import Counted, KeepRule, histogram
from dataprune_ray.deciding import WritePlan, _decide
from dataprune_ray.galleries import _candidates
from dataprune_ray.io import open_corpus
from dataprune_ray.io.corpus import Corpus
from dataprune_ray.io.output import Output
from dataprune_ray.io.scores import FilePopulation
from dataprune_ray.planning import judges, score_plan
from dataprune_ray.predicting import engine_for
from dataprune_ray.scanning import _scan_fragment
from dataprune_ray.strategies import compile_rule
from dataprune_ray.understanding import Understanding, understand
from dataprune_ray.writing import Part, _write_part, plan_parts

CLASSES = 10
FILES = 8
#: Sides of square images of bytes (rows of 36, 784 and 4,096), and of how many rows less.
SIDES = {6: 1, 28: 2, 64: 8}
KEEPS = (0.1, 0.5, 0.9)
SMALL_ROWS = 20_000
NO_TASKS, NO_BLOCKS = 400, 100
JOB = """
import json, sys
from dataprune_ray.config import PruneConfig
from dataprune_ray.pipeline import prune
print(json.dumps(prune(PruneConfig.from_flat(json.loads(sys.argv[1])))["seconds"]))
"""
HANDING_OUT = """
import json, os, sys, time
os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
import ray, ray.data
from dataprune_ray.cluster import cluster
from dataprune_ray.tasks import run_tasks

class Nothing:
    def __call__(self, batch):
        return batch

def blocks(count):
    started = time.perf_counter()
    items = ray.data.from_items([{"n": n} for n in range(count)], override_num_blocks=count)
    pool = ray.data.ActorPoolStrategy(size=1)
    list(items.map_batches(Nothing, batch_size=1, compute=pool, num_cpus=0.5).iter_rows())
    return time.perf_counter() - started

def tasks(count):
    started = time.perf_counter()
    list(run_tasks(abs, range(count)))
    return time.perf_counter() - started

few, many = int(sys.argv[1]), int(sys.argv[2])
with cluster(None):
    for function, count in ((tasks, few), (blocks, many)):
        function(2)
        print((function(count) - function(count // 4)) / (count - count // 4))
"""


@dataclass(frozen=True)
class Scored:
    """A scored corpus, and the processor seconds that its score files took per row."""

    config: PruneConfig
    corpus: Corpus
    understanding: Understanding
    scores: str
    row_bytes: float

    @property
    def paths(self) -> list[str]:
        """Its score files."""
        return [f"{self.scores}/{fragment.name}.parquet" for fragment in self.corpus.fragments]


def write_images(folder: Path, rows: int, side: int) -> None:
    """Raw uint8 images of random pixels, as binary with their shape noted, and labels."""
    rng = np.random.default_rng(side)
    note = {b"dataprune": json.dumps({"dtype": "uint8", "shape": [side, side]}).encode()}
    layout = pa.schema([pa.field("img", pa.binary(), metadata=note), pa.field("label", pa.int64())])
    folder.mkdir(parents=True)
    for index in range(FILES):
        count = rows // FILES
        width = side * side
        offsets = pa.py_buffer(np.arange(0, (count + 1) * width, width, dtype=np.int32))
        pixels = pa.py_buffer(rng.integers(0, 256, count * width, np.uint8))
        images = pa.Array.from_buffers(pa.binary(), count, [None, offsets, pixels])
        table = pa.table([images, pa.array(rng.integers(0, CLASSES, count))], schema=layout)
        pq.write_table(table, folder / f"{index:03d}.parquet", row_group_size=8192)


def settings(root: Path, rows: int, side: int) -> dict[str, Any]:
    """A corpus of one row width and a linear model for it: the flat settings of a job."""
    corpus, checkpoint = root / f"images-{side}-{rows}", root / f"linear-{side}.pt"
    if not corpus.exists():
        write_images(corpus, rows, side)
        weights = {"1.weight": torch.randn(CLASSES, side * side), "1.bias": torch.zeros(CLASSES)}
        torch.save(weights, checkpoint)
    return {
        "input": str(corpus),
        "output": str(root / f"out-{side}-{rows}"),
        "model": "linear",
        "checkpoint": [str(checkpoint)],
        "num_classes": CLASSES,
    }


def scored(flat: dict[str, Any], side: int) -> Scored:
    """Score a corpus in this process."""
    config = PruneConfig.from_flat(flat)
    corpus = open_corpus(config.corpus)
    understanding = understand(config, corpus)
    scores = f"{config.write.output}/scores"
    engine = engine_for(score_plan(config, understanding, judges(config, ()), scores))
    for fragment in corpus.fragments:
        engine.commit(fragment)
    return Scored(config, corpus, understanding, scores, side * side + 4 + 8)


def busy(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """The least processor seconds of some calls, and what the last returned."""
    found = []
    for _ in range(repeats):
        started = time.process_time()
        result = work()
        found.append(time.process_time() - started)
    return min(found), result


def rule_of(one: Scored, keep: float) -> tuple[KeepRule, int]:
    """The rule of a fraction by score, and the passes that it took."""
    population = Counted(FilePopulation(one.paths, one.understanding.metrics[0].name))
    config = one.config.replace(keep=keep).select
    found = compile_rule(one.understanding.strategy, population, config, one.understanding.info)
    return found.rule, population.passes


def write_plan(one: Scored, rule: KeepRule, output: str) -> WritePlan:
    """What deciding and writing are told."""
    return stages.write_plan(
        one.config, one.corpus, one.understanding, rule, Output(output), one.scores
    )


def decided(plan: WritePlan, corpus: Corpus) -> list[int]:
    """Decide every fragment; the kept rows of each."""
    return [_decide(plan, item)[1].kept for item in enumerate(corpus.fragments)]


def looked_at(one: Scored, plan: WritePlan) -> None:
    """What a report reads: the scores' histogram, and candidates for the galleries."""
    population = FilePopulation(one.paths, plan.metric)
    histogram(population, [0.0, 0.5, 1.0, 2.0], plan.rule)
    for fragment in one.corpus.fragments:
        _candidates(dict(plan.rule.cutoffs), f"{plan.output}/decisions", None, fragment.name)


def copied(plan: WritePlan, part: Part) -> None:
    """Write a part, whether or not an earlier call did."""
    Path(part.record(plan)).unlink(missing_ok=True)
    _write_part(plan, part)


def labels_of(one: Scored) -> None:
    """Scan the labels, as where their classes are not known."""
    rows = one.understanding.rows
    plan = replace(rows, label=replace(rows.label, classes=()))
    for fragment in one.corpus.fragments:
        _scan_fragment(plan, None, fragment)


def per_row(root: Path, rows: int, repeats: int) -> dict[str, float]:
    """Everything that a row costs, by the names of the constants."""
    found: dict[str, float] = {}
    copies: list[tuple[list[float], float]] = []
    for side, fewer in SIDES.items():
        count = rows // fewer // FILES * FILES
        one = scored(settings(root, count, side), side)
        for keep in KEEPS:
            seconds, (rule, passes) = busy(partial(rule_of, one, keep), repeats)
            plan = write_plan(one, rule, f"{one.config.write.output}-{keep}")
            decide, kept = busy(partial(decided, plan, one.corpus), 1)
            (part,) = plan_parts(one.corpus.fragments, kept, count)
            copy, _ = busy(partial(copied, plan, part), repeats)
            bytes_read, bytes_written = count * one.row_bytes, sum(kept) * one.row_bytes
            copies.append(([count, bytes_read, bytes_written], copy))
        if fewer == 1:
            shown, _ = busy(partial(looked_at, one, plan), repeats)
            scan, _ = busy(partial(labels_of, one), repeats)
            size = sum(p.stat().st_size for p in Path(plan.output, "decisions").glob("*.parquet"))
            found = {
                "cut_row": seconds / passes / count,
                "decide_row": decide / count,
                "report_row": shown / count,
                "scan_value": scan / count,
                "decision_bytes_row": size / count,
            }
    constants, worst = fitted(copies)
    names = ("copy_row", "read_byte", "write_byte")
    return {**found, **dict(zip(names, constants, strict=True)), "copy_error": worst}


def fitted(found: Iterable[tuple[list[float], float]]) -> tuple[list[float], float]:
    """Constants, 0 or more, of least squared relative error, and the largest such error."""
    factors, seconds = zip(*found, strict=True)
    relative = np.array(factors) / np.array(seconds)[:, None]
    scale = relative.max(axis=0)
    constants, _ = nnls(relative / scale, np.ones(len(relative)))
    constants = constants / scale
    return constants.tolist(), float(np.abs(relative @ constants - 1.0).max())


def small_job(flat: dict[str, Any]) -> dict[str, float]:
    """Seconds by stage of a job in a process of its own."""
    command = [sys.executable, "-c", JOB, json.dumps(flat)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def start_ups(root: Path, repeats: int) -> dict[str, float]:
    """What stages take before their first row: the least of small jobs, whose rows cost little."""
    given = settings(root, SMALL_ROWS, min(SIDES))
    trained = {k: v for k, v in given.items() if k not in ("checkpoint", "num_classes")}
    trained |= {"proxy_epochs": 1, "proxy_seeds": 1, "proxy_fraction": 0.1}
    jobs = [
        small_job({**flat, "output": f"{root}/small-{name}-{turn}"})
        for turn in range(repeats)
        for name, flat in (("given", given), ("trained", trained))
    ]
    names = {
        "start Ray": "start_ray",
        "scan labels": "start_scan",
        "train proxy": "start_train",
        "score": "start_pool",
        "select": "start_select",
        "decide": "start_decide",
        "write": "start_write",
        "report": "start_report",
    }
    first, second = jobs[::2], jobs[1::2]  # of the latter, labels are scanned and proxies trained
    chosen = {"scan labels": second, "train proxy": second, "score": second, "start Ray": jobs}
    return {
        constant: min(job[stage] for job in chosen.get(stage, first))
        for stage, constant in names.items()
    }


def handing_out() -> dict[str, float]:
    """Seconds of the driver per task, and per block of an actor pool."""
    command = [sys.executable, "-c", HANDING_OUT, str(NO_TASKS), str(NO_BLOCKS)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(zip(("task", "block"), map(float, done.stdout.split()[-2:]), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rows", type=int, default=400_000, help="of 36 bytes; fewer of wider ones"
    )
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    figures = {"rows": options.rows, **machine()}
    with tempfile.TemporaryDirectory(prefix="dataprune-costs-") as name:
        rates = per_row(Path(name), options.rows, options.repeats)
        report("costs per row", copy_error=rates.pop("copy_error"), constants=rates, **figures)
        report("costs of handing out", constants=handing_out(), **figures)
        found = start_ups(Path(name), options.repeats)
        report("costs of starting", constants=found, **figures)


if __name__ == "__main__":
    main()
