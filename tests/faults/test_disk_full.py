"""A disk that fills up: a clear error, nothing half written, and the run goes on after."""

from __future__ import annotations

import os
import subprocess
import time

import pytest
from harness import Job, Moment, assert_same, wait_until

MEGABYTE = 1 << 20


@pytest.fixture
def disk(folder, request):
    """A small file system of its own."""
    point = folder / f"disk-{request.node.callspec.params['stage']}"
    point.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(point)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs more rights")
    yield point
    subprocess.run(["umount", "--lazy", str(point)], check=True)


def fill(path):
    """Write until nothing more fits."""
    with path.open("wb", buffering=0) as file:
        for size in (MEGABYTE, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue


@pytest.mark.parametrize("stage", ["scores", "data"])
def test_a_full_disk_is_named_and_the_run_goes_on_after(
    stage, disk, folder, corpus, reference, environment
):
    output, log = disk / "out", folder / f"full-{stage}.log"
    job = Job(corpus.command(output), log, environment)
    try:
        assert wait_until(job, output, Moment(stage, 1, 0.0)), log.read_text()
        fill(disk / "ballast")
        assert job.wait() == 1
    finally:
        job.end()
    said = log.read_text()
    assert f"error: disk full at {output}" in said
    assert "free some space there and run the same command again" in said
    assert not (output / "manifest.json").exists()
    time.sleep(0.1)
    assert not [path for path in output.rglob("*") if path.name.startswith(".writing-")]
    (disk / "ballast").unlink()
    assert Job(corpus.command(output), log, environment).wait() == 0, log.read_text()
    assert_same(corpus, output, reference)
