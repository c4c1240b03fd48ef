"""The prune job submitted to a running cluster: a real head, in processes of its own.

Nothing here calls ``ray.init``: a Ray that other tests hold in this process is neither used nor
disturbed, and the head is stopped by its own process group.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

from dataprune_ray.corpora import make_digits

ROOT = Path(__file__).parents[2]
EXCLUDED = [".git", ".venv", "**/__pycache__", "**/.*_cache", ".hypothesis", "corpus", "pruned"]
HEAD_SECONDS = 90
JOB_SECONDS = 240


def free_ports(number):
    """Ports that nothing listens on; held open together so that they differ."""
    sockets = [socket.socket() for _ in range(number)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def stop(process):
    """End a process and all of its group, politely first."""
    for number, patience in ((signal.SIGTERM, 15), (signal.SIGKILL, 5)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    assert process.poll() is not None


@pytest.fixture(scope="module")
def folder():
    """A folder with a short path: Ray's sockets lie below it, and their names are limited."""
    made = Path(tempfile.mkdtemp(prefix="dp", dir="/tmp"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def client(folder):
    """A client of a head with two CPUs that lives as long as this module's tests."""
    port, dashboard, agent, runtime, metrics, grpc, remote = free_ports(7)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    environment.pop("PYTHONPATH", None)
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block",
        "--num-cpus=2", "--object-store-memory=200000000", "--node-ip-address=127.0.0.1",
        f"--port={port}", f"--dashboard-port={dashboard}", f"--temp-dir={folder / 'ray'}",
        f"--dashboard-agent-listen-port={agent}", f"--runtime-env-agent-port={runtime}",
        f"--metrics-export-port={metrics}", f"--dashboard-agent-grpc-port={grpc}",
        f"--ray-client-server-port={remote}", "--min-worker-port=0", "--max-worker-port=0",
    ]  # fmt: skip
    with (folder / "head.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield wait_for_head(process, f"http://127.0.0.1:{dashboard}", folder / "head.log")
        finally:
            stop(process)


def wait_for_head(process, address, log):
    deadline = time.monotonic() + HEAD_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(ConnectionError, RuntimeError):
            return JobSubmissionClient(address)
        time.sleep(1)
    return pytest.fail(f"no head answers at {address}:\n{log.read_text()}")


def run_job(client, *arguments):
    """Submit the prune job as ``ray job submit --working-dir .`` does; its details and logs."""
    job = client.submit_job(
        entrypoint=" ".join(["python jobs/prune.py", *map(str, arguments)]),
        runtime_env={"working_dir": str(ROOT), "excludes": EXCLUDED},
    )
    deadline = time.monotonic() + JOB_SECONDS
    while not client.get_job_status(job).is_terminal():
        if time.monotonic() > deadline:
            client.stop_job(job)
            pytest.fail(f"the job did not end in {JOB_SECONDS} s:\n{client.get_job_logs(job)}")
        time.sleep(1)
    return client.get_job_info(job), client.get_job_logs(job)


def test_a_submitted_job_prunes_and_a_wrong_one_says_why(client, folder):
    corpus, output = make_digits(folder / "digits"), folder / "pruned"
    quick = ("--proxy-seeds", 1, "--proxy-epochs", 1)

    info, logs = run_job(client, "--input", corpus, "--output", output, "--keep", 0.3, *quick)
    assert info.status == JobStatus.SUCCEEDED, logs
    assert info.driver_exit_code == 0
    assert "running on the cluster at" in logs
    assert "Keep exactly 539 of 1,797 rows" in logs
    assert f"pruned data  {output}/data" in logs
    assert f"report       {output}/report.html" in logs

    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["rows"]["in"] == 1797
    assert manifest["rows"]["kept"] == 539
    assert pq.read_table(output / "data").num_rows == 539
    assert pq.read_table(output / "scores").num_rows == 1797
    assert (output / "report.html").stat().st_size > 10_000

    info, logs = run_job(client, "--input", corpus, "--output", folder / "no", "--metric", "e12n")
    assert info.status == JobStatus.FAILED
    assert info.driver_exit_code == 2
    assert "error: metric='e12n': unknown; choose one of: aum, aum_logits" in logs
    assert not (folder / "no").exists()
