"""The prune job in a process tree of its own, killed at chosen moments; what must hold after."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow.dataset as ds
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "integration"))

from corpora import digit_rows, image_table, linear_checkpoint, write_parquet  # noqa: E402

RUN_SECONDS = 600  # a run takes seconds, but the machine may be busy
ORDER = ("start", "scores", "decisions", "data", "manifest", "finished")
#: Files that the stages of an undisturbed run commit.
FILES = {"scores": 36, "decisions": 36, "data": 23}


@dataclass(frozen=True)
class Corpus:
    """A corpus with many fragments and a few bad rows, a checkpoint for it, and its rows."""

    input: str
    checkpoint: str
    rows: int

    def command(self, output, *more, source=None):
        flags = {
            "input": source or self.input, "output": output, "checkpoint": self.checkpoint,
            "model": "linear", "keep": 0.5, "fragment-rows": 50, "part-rows": 40,
            "max-bad-rows": "1%", "actors": 2, "metric": "el2n,output_deviation",
        }  # fmt: skip
        words = [f"--{name}={value}" for name, value in flags.items()]
        return [sys.executable, str(ROOT / "jobs" / "prune.py"), *words, *map(str, more)]


def make_corpus(folder):
    """Digits in three files, 36 fragments and three broken images."""
    images, labels = digit_rows()
    table = image_table(images, labels)
    rows = table.to_pylist()
    for row in (7, 800, 1500):
        rows[row]["img"]["bytes"] = b"not an image"
    broken = type(table).from_pylist(rows, table.schema)
    source = write_parquet(folder / "corpus", broken, files=3, group_rows=50)
    return Corpus(source, linear_checkpoint(folder / "linear.pt", images, labels), len(table))


# Processes ---------------------------------------------------------------------------------------


def processes():
    """Parent, session and command line of every process, by id."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError, IndexError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                line = (
                    (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
                if fields[0] != "Z":
                    found[int(folder.name)] = (int(fields[1]), int(fields[3]), line)
    return found


class Job:
    """A run of a command as the leader of its own session."""

    def __init__(self, command, log, environment=None):
        with log.open("ab") as file:
            process = subprocess.Popen(
                command,
                env=self.environment(environment),
                cwd=log.parent,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self._adopt(process, log)

    @classmethod
    def of(cls, process, log):
        """A process that was started as the leader of a session already."""
        job = cls.__new__(cls)
        job._adopt(process, log)
        return job

    @staticmethod
    def environment(more=None):
        """This process's environment without its Ray, and with the package importable."""
        base = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        return base | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)} | (more or {})

    def _adopt(self, process, log):
        self.process = process
        self.log = log
        self.started = time.time_ns()
        self.known = {process.pid}

    def tree(self):
        """Its own processes: descendants, and what is left of its session; with command lines."""
        found = processes()
        grown = True
        while grown:
            more = {
                pid
                for pid, (parent, session, _) in found.items()
                if parent in self.known or session == self.process.pid
            }
            grown = not more <= self.known
            self.known |= more
        return {pid: found[pid][2] for pid in self.known if pid in found}

    def workers(self, word):
        """Ids of the Ray workers whose title holds a word; a node dies with its agents."""
        found = self.tree().items()
        return sorted(
            p for p, t in found if t.startswith("ray::") and word in t and "Agent" not in t
        )

    def kill(self, *, driver_only=False):
        """SIGKILL the driver alone, or it and everything below it."""
        below = set(self.tree()) - {self.process.pid}
        self.process.kill()
        self.process.wait()
        if not driver_only:
            kill(below)

    def end(self):
        """Whatever happened, leave no process behind."""
        for _ in range(100):
            left = self.tree()
            if not left:
                break
            kill(left)
            self.process.poll()
            time.sleep(0.1)

    def wait(self, seconds=RUN_SECONDS):
        """The exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end in {seconds} s:\n{self.log.read_text()}") from None
        finally:
            self.end()


def kill(pids):
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


# Moments -----------------------------------------------------------------------------------------


class Folder:
    """An output on this machine, and when its files were last written."""

    pause = 0.004  # seconds between looks at it

    def __init__(self, path):
        self.path = Path(path)

    def files(self, stage):
        """Modification times in ns of a stage's finished files, by name."""
        found = {}
        with suppress(FileNotFoundError):
            for entry in os.scandir(self.path / stage):
                with suppress(FileNotFoundError):
                    if entry.name.endswith(".parquet") and not entry.name.startswith("."):
                        found[entry.name] = entry.stat().st_mtime_ns
        return found

    def written(self, name):
        """Modification time in ns of one file, None where it is not there."""
        with suppress(FileNotFoundError):
            return (self.path / name).stat().st_mtime_ns
        return None

    def read(self, name):
        return (self.path / name).read_bytes()

    def unlock(self):
        """The lock of a killed run is the operating system's and gone."""


def place(output):
    """An output by its path, or what already behaves like a `Folder`."""
    return output if hasattr(output, "written") else Folder(output)


@dataclass(frozen=True)
class Moment:
    """So many files of a stage are committed by this attempt, and some seconds more.

    The seconds end with the stage at the latest. The stage ``manifest`` lies between the last part
    of the data and the manifest; ``start`` begins when the output is claimed.
    """

    stage: str
    files: int
    delay: float

    @classmethod
    def random(cls, rng, stage):
        most = {"start": 0, "scores": 12, "decisions": 30, "data": 18, "manifest": 0}[stage]
        seconds = {"start": 0.15, "scores": 0.15, "decisions": 0.03, "data": 0.03, "manifest": 1.0}
        return cls(stage, rng.randint(0, most), rng.uniform(0, seconds[stage]))


def fresh(output, stage, since):
    """How many finished files a stage has that are newer than an attempt's start."""
    return sum(time > since for time in place(output).files(stage).values())


def is_there(output, name, since=-1):
    """Whether an output has a file that is newer than an attempt's start."""
    written = place(output).written(name)
    return written is not None and written > since


def stage_of(output, since):
    """The stage that an attempt is in."""
    if is_there(output, "manifest.json"):
        return "finished"
    if fresh(output, "data", 0) == FILES["data"]:
        return "manifest"
    if fresh(output, "data", 0) or fresh(output, "decisions", 0) == FILES["decisions"]:
        return "data"
    if fresh(output, "decisions", 0) or fresh(output, "scores", 0) == FILES["scores"]:
        return "decisions"
    return "scores" if fresh(output, "scores", since) else "start"


def reached(output, moment, since):
    """Whether a moment has come, but for its delay, or a later stage has begun."""
    if moment.stage == "start":
        return is_there(output, "run.json")
    stage = stage_of(output, since)
    if stage == moment.stage and stage != "manifest":
        begun = fresh(output, stage, since) > 0  # by this attempt: files of others do not count
        return begun and fresh(output, stage, 0) > moment.files
    return ORDER.index(stage) >= ORDER.index(moment.stage)


def wait_until(job, output, moment):
    """Wait for a moment; False where the job ended first."""
    deadline = time.monotonic() + RUN_SECONDS
    while not reached(output, moment, job.started):
        if job.process.poll() is not None:
            return False
        assert time.monotonic() < deadline, job.log.read_text()
        time.sleep(place(output).pause)
    over = time.monotonic() + moment.delay
    while time.monotonic() < over and not _ends(output, moment.stage, job.started):
        time.sleep(place(output).pause / 2)
    return True


def _ends(output, stage, since):
    """Whether a stage is about to end."""
    if stage == "manifest":
        return is_there(output, "report.html", since)
    return stage != "start" and fresh(output, stage, 0) >= FILES[stage] - 2


def killed_rounds(corpus, output, log, stages, seed, environment=None, command=None):
    """Kill and restart a run at a random moment of each stage, let the last one end.

    ``output`` is a path, or a `Folder` in a store with the ``command`` that writes it. Returns the
    kills as (stage, driver alone), and the stages left because a kill came too late for its stage
    or the run ended before.
    """
    rng = random.Random(seed)
    kills, left = [], list(stages)
    command = command or corpus.command(output)
    for stage in stages:
        moment, driver_only = Moment.random(rng, stage), rng.random() < 0.5
        place(output).unlock()
        job = Job(command, log, environment)
        try:
            if not wait_until(job, output, moment):
                assert job.wait() == 0, log.read_text()
                break
            found = stage_of(output, job.started)
            job.kill(driver_only=driver_only)
            if is_there(output, "manifest.json"):
                break
            if stage in {found, "start"}:
                kills.append((stage, driver_only))
                left.remove(stage)
            if driver_only:  # leftovers of the killed run and its successor live at once
                time.sleep(rng.uniform(0, 0.5))
        except BaseException:
            job.end()
            raise
        finally:
            if not driver_only:
                job.end()
    committed = fresh(output, "scores", 0)
    finished = is_there(output, "manifest.json")
    place(output).unlock()
    assert Job(command, log, environment).wait() == 0, log.read_text()
    if committed and not finished:
        manifest = json.loads(place(output).read("manifest.json"))
        assert manifest["rows"]["scores_reused"] == manifest["reused"]["scores"] > 0
    return kills, left


# What must hold ----------------------------------------------------------------------------------


def assert_same(corpus, output, reference):
    """A finished output is the undisturbed one: rows, parts, bytes; every row once; no litter."""
    output, reference = Path(output), Path(reference)
    found = json.loads((output / "manifest.json").read_text())
    expected = json.loads((reference / "manifest.json").read_text())
    assert found["content_hash"] == expected["content_hash"]
    assert found["outputs"] == expected["outputs"]
    assert [
        hashlib.sha256((output / p["path"]).read_bytes()).hexdigest() for p in found["outputs"]
    ] == [p["sha256"] for p in expected["outputs"]]
    counts = {**found["rows"], "scores_reused": 0}
    assert counts == {**expected["rows"], "scores_reused": 0}
    for folder in ("data", "scores", "decisions", "quarantine"):
        assert names(output / folder) == names(reference / folder)
    assert not [p for p in output.rglob("*") if p.name.startswith(".writing-")]
    assert every_row_once(output) == corpus.rows


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def every_row_once(output):
    """Rows in kept, dropped or quarantined; each in exactly one of them."""
    decisions = pq.read_table(output / "decisions", columns=["file", "row", "kept", "key"])
    quarantine = pq.read_table(output / "quarantine", columns=["file", "row"])
    seen = Counter()
    for table in (decisions, quarantine):
        seen.update(zip(table["file"].to_pylist(), table["row"].to_pylist(), strict=True))
    assert set(seen.values()) == {1}
    kept = sum(decisions["kept"].to_pylist())
    assert ds.dataset(output / "data", format="parquet").count_rows() == kept
    return len(seen)
