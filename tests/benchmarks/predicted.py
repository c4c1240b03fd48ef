"""What the cost model predicts against what a job really takes, stage by stage.

Both sides are processor seconds of all processes, so that other load on the machine does not count:
the sample is timed by this process's own, and the job's are read from ``/proc`` between its stages.
With two corpora of one kind, the difference between the larger and the smaller is compared, too:
it holds no start-up. Prints one line of JSON for each.

    python tests/benchmarks/predicted.py CORPUS LARGER_CORPUS --settings '{"label": "label"}'
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import torch
from common import machine, report

from dataprune_ray import preview, probing
from dataprune_ray.cluster import Cluster
from dataprune_ray.config import PruneConfig
from dataprune_ray.io import open_corpus
from dataprune_ray.probing import Probe, probed
from dataprune_ray.understanding import understand

TICKS = os.sysconf("SC_CLK_TCK")
LOOK_SECONDS = 0.2
#: Stages of a manifest, and those of the model that they hold.
STAGES = {
    "train proxy": ("train proxy",),
    "score": ("survey", "learn", "score", "second stages"),
    "select": ("select",),
    "decide": ("decide",),
    "write": ("write",),
    "report": ("report",),
}
JOB = """
import json, sys
from contextlib import contextmanager
sys.path.insert(0, sys.argv[2])
from predicted import Busy
from dataprune_ray.config import PruneConfig
from dataprune_ray.journal import Journal
from dataprune_ray.pipeline import prune

spent, stage, busy = {}, Journal.stage, Busy()
@contextmanager
def counting(self, name):
    before = busy.seconds()
    with stage(self, name):
        yield
    spent[name] = spent.get(name, 0.0) + busy.seconds() - before
Journal.stage = counting
manifest = prune(PruneConfig.from_flat(json.loads(sys.argv[1])))
print(json.dumps({"busy": spent, "seconds": manifest["seconds"]}))
"""


class Busy:
    """Processor seconds of this process and all below it, also of those that have ended.

    A thread looks several times a second, so that little of a process is missed at its end.
    """

    def __init__(self) -> None:
        self.seen: dict[int, float] = {}
        self.lock = threading.Lock()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.seconds()
            time.sleep(LOOK_SECONDS)

    def seconds(self) -> float:
        """The sum so far."""
        found: dict[int, tuple[int, float]] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                fields = (folder / "stat").read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
            values = fields.rpartition(")")[2].split()
            found[int(folder.name)] = int(values[1]), sum(map(int, values[11:13])) / TICKS
        below = {os.getpid()}
        while more := {pid for pid, (parent, _) in found.items() if parent in below} - below:
            below |= more
        with self.lock:
            for pid in below & found.keys():
                self.seen[pid] = max(self.seen.get(pid, 0.0), found[pid][1])
            return sum(self.seen.values())


def predicted(flat: dict[str, Any]) -> dict[str, float]:
    """Processor seconds by stage, as a dry run works them out, without start-ups."""
    config = PruneConfig.from_flat({**flat, "dry_run": True, "output": ""})
    corpus = open_corpus(config.corpus)
    understanding = understand(config, corpus)

    def here(*arguments: Any) -> Any:
        plan = probing._sample_plan(*arguments)
        return probed(Probe(config, plan, understanding, plan.fragments[:1]))

    cluster = Cluster(2.0, 0.0, "", local=True)
    with (
        patch.object(time, "perf_counter", time.process_time),
        patch.object(preview, "scored_sample", here),
    ):
        found = preview.expect(config, corpus, understanding, cluster, scanned=0)
    hours = {stage.name: stage.core_hours for stage in found.estimates[0].stages}
    return {
        name: 3600 * sum(hours.get(part, 0.0) for part in parts) for name, parts in STAGES.items()
    }


def real(flat: dict[str, Any]) -> tuple[dict[str, float], float]:
    """Processor seconds by stage of a job in a process of its own, and its seconds in all."""
    command = [sys.executable, "-c", JOB, json.dumps(flat), str(Path(__file__).parent)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return {name: found["busy"][name] for name in STAGES}, sum(found["seconds"].values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpora", nargs="+", help="of ascending size")
    parser.add_argument("--settings", default="{}", help="flat settings, as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    sides = []
    with tempfile.TemporaryDirectory(prefix="dataprune-predicted-") as name:
        for index, corpus in enumerate(options.corpora):
            flat = {**json.loads(options.settings), "input": corpus}
            expected = predicted(flat)
            found, seconds = real({**flat, "output": f"{name}/{index}"})
            sides.append((expected, found))
            report(
                "predicted", corpus=corpus, expected=expected, real=found, seconds=seconds,
                **machine(),
            )  # fmt: skip
    if len(sides) > 1:
        first, last = sides[0], sides[-1]
        expected, found = ({k: b[k] - a[k] for k in a} for a, b in zip(first, last, strict=True))
        total = sum(expected.values()) / sum(found.values())
        report("predicted difference", expected=expected, real=found, ratio=total, **machine())


if __name__ == "__main__":
    main()
