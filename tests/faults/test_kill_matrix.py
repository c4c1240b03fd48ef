"""Whatever is killed, the same command again ends in the output of an undisturbed run."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

from harness import Job, Moment, assert_same, kill, killed_rounds, wait_until

SEED = 20
DRIVER_KILLS = [
    "start", "scores", "scores", "scores", "scores", "decisions", "decisions", "decisions",
    "data", "data", "data", "report.html",
]  # fmt: skip


def test_the_driver_killed_in_every_stage(folder, corpus, reference, environment):
    output, log = folder / "driver", folder / "driver.log"
    kills = killed_rounds(corpus, output, log, DRIVER_KILLS, SEED, environment)
    assert len(kills) == len(DRIVER_KILLS)
    assert_same(corpus, output, reference)


def test_workers_killed_in_every_stage(folder, corpus, reference, environment):
    output, log = folder / "workers", folder / "workers.log"
    rng = random.Random(SEED)
    job = Job(corpus.command(output), log, environment)
    kills = 0
    try:
        for stage, files, word in (
            ("scores", 2, "MapBatches"),
            ("scores", 12, "MapBatches"),
            ("decisions", 1, "_call"),
            ("decisions", 12, "_call"),
            ("data", 1, "_call"),
            ("data", 8, "_call"),
        ):
            moment = Moment(stage, files + rng.randint(0, 3), rng.uniform(0, 0.05))
            if not wait_until(job, output, moment):
                break
            workers = job.workers(word) or job.workers("")
            kill(rng.sample(workers, 1) if workers else [])
            kills += bool(workers)
        assert job.wait() == 0, log.read_text()
    finally:
        job.end()
    assert kills >= 4
    assert_same(corpus, output, reference)


def test_a_node_lost_twice(folder, corpus, reference, environment):
    output, log = folder / "nodes", folder / "nodes.log"
    script = Path(__file__).parent / "two_nodes.py"
    nodes = subprocess.Popen(
        [sys.executable, str(script)],
        env=Job.environment(environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(folder / "cluster.log").open("wb"),
        text=True,
        start_new_session=True,
    )
    cluster = Job.of(nodes, folder / "cluster.log")
    job = None
    try:
        address = nodes.stdout.readline().strip()
        assert address.startswith("address="), (folder / "cluster.log").read_text()
        command = corpus.command(output, f"--address={address.removeprefix('address=')}")
        job = Job(command, log, environment)
        for stage, files in (("scores", 8), ("data", 4)):
            assert wait_until(job, output, Moment(stage, files, 0.02)), log.read_text()
            nodes.stdin.write("lose\n")
            nodes.stdin.flush()
            assert nodes.stdout.readline().strip() == "lost", (folder / "cluster.log").read_text()
        assert job.wait() == 0, log.read_text()
    finally:
        if job is not None:
            job.end()
        cluster.end()
    assert_same(corpus, output, reference)
