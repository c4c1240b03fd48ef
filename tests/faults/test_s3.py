"""Corpus and output in an object store: a real S3 server in a process of its own."""

from __future__ import annotations

import json
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from harness import Job, every_row_once, killed_rounds
from proxy import FaultyProxy

SECRET = "s3cr3tKEYthatNobodyMayRead"
ACCESS = "AKIAhiddenACCESSkey"
BUCKET = "corpora"
SEED = 30
MOST_RUNS = 3
#: Stages of one chain: killed in the first, run again and killed in the second, and so on.
DRIVER_KILLS = ("scores", "decisions", "data", "manifest")
#: Objects that belong to a finished run beside those in its folders.
ALONE = {"manifest.json", "report.html", "report.json", "run.json"}


@pytest.fixture(scope="module")
def port(folder):
    """The port of the S3 server."""
    pytest.importorskip("moto", reason='pip install "dataprune-ray[test]"')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    code = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{number}'])"
    server = Job([sys.executable, "-c", code], folder / "s3.log")
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection(("127.0.0.1", number), 1):
                break
            assert server.process.poll() is None, (folder / "s3.log").read_text()
            time.sleep(0.1)
        yield number
    finally:
        server.end()


@pytest.fixture(scope="module")
def store(port, corpus):
    """The store, with the corpus in it."""
    made = pafs.S3FileSystem(
        access_key=ACCESS,
        secret_key=SECRET,
        endpoint_override=f"127.0.0.1:{port}",
        scheme="http",
        region="us-east-1",
        allow_bucket_creation=True,
    )
    made.create_dir(BUCKET)
    for path in sorted(Path(corpus.input).iterdir()):
        with made.open_output_stream(f"{BUCKET}/in/{path.name}") as stream:
            stream.write(path.read_bytes())
    return made


@pytest.fixture(scope="module")
def credentials(environment):
    return {
        **environment,
        "AWS_ACCESS_KEY_ID": ACCESS,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def uri(name, address):
    return f"s3://{BUCKET}/{name}?endpoint_override={address}&scheme=http"


def read(store, name):
    with store.open_input_file(f"{BUCKET}/{name}") as file:
        return file.read()


def names(store, folder):
    found = store.get_file_info(pafs.FileSelector(f"{BUCKET}/{folder}", recursive=True))
    return sorted(entry.path for entry in found if entry.type == pafs.FileType.File)


def assert_same(store, output, reference, log):
    manifest = json.loads(read(store, f"{output}/manifest.json"))
    expected = json.loads((reference / "manifest.json").read_text())
    assert manifest["content_hash"] == expected["content_hash"]
    assert [p["sha256"] for p in manifest["outputs"]] == [p["sha256"] for p in expected["outputs"]]
    for part in manifest["outputs"]:
        assert read(store, f"{output}/{part['path']}") == (reference / part["path"]).read_bytes()
    for folder in ("data", "scores", "decisions", "quarantine"):
        found = [name.rpartition("/")[2] for name in names(store, f"{output}/{folder}")]
        assert found == sorted(path.name for path in (reference / folder).iterdir())
    assert {n.rpartition("/")[2] for n in names(store, output) if n.count("/") == 2} == ALONE
    content = {name: read(store, name.removeprefix(f"{BUCKET}/")) for name in names(store, output)}
    content["log"] = log.read_bytes()
    for text in (SECRET, ACCESS):
        assert not [name for name, found in content.items() if text.encode() in found]
    for name in ("manifest.json", "report.html"):
        assert b"endpoint_override" not in content[f"{BUCKET}/{output}/{name}"]
    assert b"endpoint_override" not in content["log"]


class Bucket:
    """An output in the store, for the harness what its `Folder` is on a disk."""

    pause = 0.1

    def __init__(self, store, name):
        self.store = store
        self.name = name

    def files(self, stage):
        selector = pafs.FileSelector(f"{BUCKET}/{self.name}/{stage}", allow_not_found=True)
        found = self.store.get_file_info(selector)
        return {e.base_name: e.mtime_ns for e in found if e.base_name.endswith(".parquet")}

    def written(self, name):
        found = self.store.get_file_info(f"{BUCKET}/{self.name}/{name}")
        return found.mtime_ns if found.type == pafs.FileType.File else None

    def read(self, name):
        return read(self.store, f"{self.name}/{name}")

    def unlock(self):
        """What a killed run's lock does by itself, but within 90 s."""
        with suppress(FileNotFoundError):
            self.store.delete_file(f"{BUCKET}/{self.name}/.lock")


def test_the_driver_killed_in_every_stage(port, store, corpus, reference, credentials, folder):
    address = f"127.0.0.1:{port}"
    left = list(DRIVER_KILLS)
    for number in range(MOST_RUNS):
        name, log = f"killed-{number}", folder / f"s3-killed-{number}.log"
        command = corpus.command(uri(name, address), source=uri("in", address))
        output = Bucket(store, name)
        seed = SEED + number
        _, left = killed_rounds(corpus, output, log, left, seed, credentials, command)
        assert_same(store, name, reference, log)
        assert rows_of(store, name, folder) == corpus.rows
        if not left:
            break
    assert not left


def rows_of(store, name, folder):
    """Rows of an output, each checked to be kept, dropped or quarantined once."""
    here = folder / name
    for path in names(store, name):
        if path.endswith(".parquet"):
            copy = here / path.removeprefix(f"{BUCKET}/{name}/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(read(store, path.removeprefix(f"{BUCKET}/")))
    return every_row_once(here)


def names_or_none(store, folder):
    with suppress(FileNotFoundError):
        return names(store, folder)
    return []


def test_a_store_that_fails_and_stalls_changes_nothing(
    port, store, corpus, reference, credentials, folder
):
    log = folder / "s3-faulty.log"
    proxy = FaultyProxy(port, seed=3)
    command = corpus.command(uri("faulty", proxy.address), source=uri("in", proxy.address))
    job = Job(command, log, credentials)
    try:
        while len(names_or_none(store, "faulty/scores")) < 3:
            assert job.process.poll() is None, log.read_text()
            time.sleep(0.02)
        proxy.break_down(8)  # longer than the client asks again by itself
        assert job.wait() == 0, log.read_text()
    finally:
        job.end()
        proxy.close()
    assert proxy.failed > 50
    assert_same(store, "faulty", reference, log)
