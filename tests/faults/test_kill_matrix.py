"""Whatever is killed, the same command again ends in the output of an undisturbed run."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from harness import (
    FILES,
    Job,
    Moment,
    assert_same,
    fresh,
    kill,
    killed_rounds,
    stage_of,
    wait_until,
)

SEED = 20
MOST_RUNS = 4
#: Kills by stage. With four lost nodes, the driver killed between them, and its four kills over a
#: store there are 23 in all.
DRIVER_KILLS = ["start", "scores", "decisions", "data", "data", "manifest"]
WORKER_KILLS = ["scores", "scores", "scores", "decisions", "decisions", "data", "data", "manifest"]


def test_the_stages_have_the_files_that_moments_count(reference):
    assert {stage: fresh(reference, stage, 0) for stage in FILES} == FILES


def test_the_driver_killed_in_every_stage(folder, corpus, reference, environment):
    left, kills = DRIVER_KILLS, []
    for number in range(MOST_RUNS):
        output, log = folder / f"driver-{number}", folder / f"driver-{number}.log"
        more, left = killed_rounds(corpus, output, log, left, SEED + number, environment)
        kills += more
        assert_same(corpus, output, reference)
        if not left:
            break
    assert sorted(stage for stage, _ in kills) == sorted(DRIVER_KILLS)
    assert {alone for _, alone in kills} == {True, False}


def test_workers_killed_in_every_stage(folder, corpus, reference, environment):
    rng = random.Random(SEED)
    left = WORKER_KILLS
    for number in range(MOST_RUNS):
        output, log = folder / f"workers-{number}", folder / f"workers-{number}.log"
        left = workers_killed(corpus, output, log, left, rng, environment)
        assert_same(corpus, output, reference)
        if not left:
            break
    assert not left


def workers_killed(corpus, output, log, stages, rng, environment):
    """One run whose workers are killed: actors that score, then tasks; the stages not hit."""
    left = list(stages)
    job = Job(corpus.command(output), log, environment)
    try:
        for stage in stages:
            if not wait_until(job, output, Moment.random(rng, stage)):
                break
            busy = job.workers("MapBatches" if stage == "scores" else "_call")
            workers = busy or job.workers("")
            if workers and stage_of(output, job.started) == stage:
                kill(rng.sample(workers, 1))
                left.remove(stage)
        assert job.wait() == 0, log.read_text()
    finally:
        job.end()
    return left


@pytest.fixture
def cluster(folder, environment):
    """A head and two nodes; their addresses, and what loses a node."""
    log = folder / "cluster.log"
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "three_nodes.py")],
        env=Job.environment(environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log.open("wb"),
        text=True,
        start_new_session=True,
    )

    def ask(word):
        process.stdin.write(f"{word}\n")
        process.stdin.flush()
        answer = process.stdout.readline().strip()
        assert answer, log.read_text()
        return answer

    job = Job.of(process, log)
    try:
        yield ask
    finally:
        job.end()


def test_nodes_lost_in_every_stage(cluster, folder, corpus, reference, environment):
    output, log = folder / "nodes", folder / "nodes.log"
    command = corpus.command(output, f"--address={cluster('address')}")
    rng = random.Random(SEED)
    for stages in (("scores", "data"), ("decisions", "manifest")):
        assert cluster("whole") == "3"
        job = Job(command, log, environment)
        try:
            for stage in stages:
                assert wait_until(job, output, Moment.random(rng, stage)), log.read_text()
                assert cluster("lose") == "lost"
            if stages[0] == "scores":  # the driver is killed, too, and the run goes on after
                assert wait_until(job, output, Moment("manifest", 0, 0.1)), log.read_text()
                assert not (output / "manifest.json").exists()
                job.kill(driver_only=True)
            else:
                assert job.wait() == 0, log.read_text()
        finally:
            job.end()
    assert_same(corpus, output, reference)
