"""Metrics of a small run on Ray's Prometheus endpoint, scraped as Prometheus does.

The run has a Ray of its own in a process of its own, whose ports are free ones.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from corpora import digit_rows, image_table, linear_checkpoint, write_parquet

ROOT = Path(__file__).parents[2]
SECONDS = 120
SCRIPT = """
import json, sys
import ray
from dataprune_ray.config import PruneConfig
from dataprune_ray.pipeline import prune

port, settings = int(sys.argv[1]), json.loads(sys.argv[2])
ray.init(
    address="local",
    num_cpus=2, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False,
    _metrics_export_port=port, _system_config={"metrics_report_interval_ms": 500},
)
print(json.dumps(prune(PruneConfig.from_flat(settings))), flush=True)
sys.stdin.read()
ray.shutdown()
"""
LINE = re.compile(r"ray_dataprune_(\w+)\{(.*)\} (\S+)")


def free_port():
    with socket.socket() as each:
        each.bind(("127.0.0.1", 0))
        return each.getsockname()[1]


def scrape(port):
    """Values by metric, and by stage where there is one, summed over processes; the runs named."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    values, runs = {}, set()
    for name, tags, value in LINE.findall(text):
        tags_by_name = dict(re.findall(r'(\w+)="([^"]*)"', tags))
        runs.add(tags_by_name["run"])
        key = (name, tags_by_name["stage"]) if "stage" in tags_by_name else name
        values[key] = values.get(key, 0.0) + float(value)
    return values, runs


@pytest.fixture
def settings(tmp_path):
    images, labels = digit_rows(400)
    table = image_table(images, labels)
    label = pa.array([None if i in (3, 250) else int(v) for i, v in enumerate(labels)])
    table = table.set_column(1, "label", label)
    return {
        "input": write_parquet(tmp_path / "corpus", table, files=4),
        "output": f"file://{tmp_path}/out",
        "model": "linear",
        "checkpoint": [linear_checkpoint(tmp_path / "linear.pt", images, labels)],
        "actors": 1,
        "part_rows": 50,
        "fragment_rows": 100,
    }


def test_the_endpoint_shows_what_the_manifest_says(settings):
    port = free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(port), json.dumps(settings)],
        env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        manifest = {}
        for line in process.stdout:
            if line.startswith("{"):
                manifest = json.loads(line)
                break
        assert manifest, "the run failed"
        rows = manifest["rows"]
        assert (rows["in"], rows["kept"], rows["quarantined"]) == (400, 199, 2)
        expected = {
            "rows_scored_total": rows["in"],
            "rows_kept_total": rows["kept"],
            "rows_quarantined_total": rows["quarantined"],
            "bytes_written_total": sum(part["bytes"] for part in manifest["outputs"]),
        }
        found, runs = {}, set()
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline and not expected.items() <= found.items():
            time.sleep(0.5)
            with suppress(urllib.error.URLError):
                found, runs = scrape(port)
        assert {name: found.get(name) for name in expected} == expected
        assert runs == {manifest["output"]}
        stages = {key[1]: value for key, value in found.items() if isinstance(key, tuple)}
        timed = {k: v for k, v in manifest["seconds"].items() if k in stages}
        assert {"score", "select", "decide", "write"} <= timed.keys()
        assert timed == pytest.approx({name: stages[name] for name in timed}, abs=0.01)
    finally:
        process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()
        process.stdout.close()
