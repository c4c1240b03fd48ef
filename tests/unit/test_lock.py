"""One run at a time: locks that are refused, released, left behind and taken over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pyarrow.fs as pafs
import pytest

from dataprune_ray.errors import ConfigError
from dataprune_ray.io.lock import LOCK, held_by_heartbeat, locked

HOLDER = """
import sys, time
from dataprune_ray.io.lock import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_refused_and_told_by_whom(tmp_path, holder):
    with pytest.raises(ConfigError, match=rf"process {holder.pid} on .*, since 20") as caught:
        locked(str(tmp_path)).__enter__()
    assert caught.value.field == "output"


def test_a_killed_holder_leaves_no_lock(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (tmp_path / LOCK).exists()
    with locked(str(tmp_path)):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LOCK).exists()


def test_the_lock_is_released_on_errors_and_makes_its_folder(tmp_path):
    root = str(tmp_path / "new" / "out")
    with pytest.raises(ZeroDivisionError), locked(root):
        1 / 0  # noqa: B018
    with locked(root), pytest.raises(ConfigError, match="another run"):
        locked(root).__enter__()
    with locked(root):
        pass


def beating(store, **changes):
    times = {"beat": 0.05, "stale": 0.5, "settle": 0.0, **changes}
    return held_by_heartbeat(store, f"out/{LOCK}", "s3://bucket/out", **times)


@pytest.fixture
def store(tmp_path):
    (tmp_path / "out").mkdir()
    return pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())


def test_a_heartbeat_keeps_others_away(store, tmp_path):
    with beating(store):
        first = json.loads((tmp_path / "out" / LOCK).read_text())["beat"]
        time.sleep(0.7)
        with pytest.raises(ConfigError, match=rf"process {os.getpid()} on "):
            beating(store).__enter__()
        assert json.loads((tmp_path / "out" / LOCK).read_text())["beat"] > first
    assert not (tmp_path / "out" / LOCK).exists()
    with pytest.raises(ZeroDivisionError), beating(store):
        1 / 0  # noqa: B018
    assert not (tmp_path / "out" / LOCK).exists()


@pytest.mark.parametrize(("age", "shortest"), [(0.0, 0.45), (0.3, 0.15), (60.0, 0.0), (-900, 0.45)])
def test_a_heartbeat_that_stopped_is_taken_over(store, tmp_path, caplog, age, shortest):
    """Also where the clock of the machine that held it is ahead."""
    caplog.set_level("INFO", "dataprune")
    left = {"host": "gone", "pid": 7, "since": "2020", "token": "x", "beat": time.time() - age}
    (tmp_path / "out" / LOCK).write_text(json.dumps(left))
    started = time.monotonic()
    with beating(store):
        assert shortest <= time.monotonic() - started < shortest + 5
        assert json.loads((tmp_path / "out" / LOCK).read_text())["pid"] == os.getpid()
    said = "process 7 on gone, since 2020); if that was killed, this run goes on in 1 s at most"
    assert (said in caplog.text) == (shortest > 0)


def test_a_lock_that_ends_while_it_is_waited_for_is_free_at_once(store, tmp_path):
    left = {"host": "b", "pid": 7, "token": "x", "beat": time.time()}
    (tmp_path / "out" / LOCK).write_text(json.dumps(left))
    threading.Timer(0.3, (tmp_path / "out" / LOCK).unlink).start()
    started = time.monotonic()
    with beating(store, stale=60.0):
        assert time.monotonic() - started < 30


def test_what_lost_its_lock_leaves_the_new_one_alone(store, tmp_path):
    other = {"host": "b", "pid": 8, "token": "y", "beat": time.time()}
    (tmp_path / "new").write_text(json.dumps(other))
    with beating(store, beat=0.2):
        (tmp_path / "new").replace(tmp_path / "out" / LOCK)
        time.sleep(0.5)
    assert json.loads((tmp_path / "out" / LOCK).read_text())["token"] == "y"


def test_of_two_that_write_at_once_the_first_gives_way(store, tmp_path, monkeypatch):
    other = {"host": "b", "pid": 8, "token": "y", "beat": time.time()}
    write = lambda _: (tmp_path / "out" / LOCK).write_text(json.dumps(other))  # noqa: E731
    monkeypatch.setattr(time, "sleep", write)
    with pytest.raises(ConfigError, match="process 8 on b"):
        beating(store).__enter__()
