"""Corpora and outputs at ``gs://`` URIs, against an emulator in a process of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataprune_ray.config import CorpusConfig
from dataprune_ray.errors import ConfigError
from dataprune_ray.io import get_reader, open_corpus
from dataprune_ray.io.checksums import mark, same
from dataprune_ray.io.corpus import SourceFile
from dataprune_ray.io.filesystems import (
    atomic_output,
    corpus_path,
    exists,
    join,
    list_files,
    list_names,
    read_bytes,
    remove_file,
    remove_tree,
    write_bytes,
)
from dataprune_ray.io.lock import LOCK, locked
from dataprune_ray.io.output import MANIFEST, claim, remove_run

SERVE = """
import sys
from gcp_storage_emulator.server import create_server
create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket="corpora").run()
"""


@pytest.fixture(scope="module")
def bucket():
    """The emulator's bucket as a function from names to URIs."""
    pytest.importorskip("gcp_storage_emulator", reason='pip install "dataprune-ray[test]"')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    query = f"scheme=http&endpoint_override=127.0.0.1:{port}&retry_limit_seconds=20"
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert server.poll() is None
            time.sleep(0.1)
        yield lambda name: f"gs://anonymous@corpora/{name}?{query}"
    finally:
        server.kill()
        server.wait()


def put(path, table, **options):
    with atomic_output(path) as stream, pq.ParquetWriter(stream, table.schema) as writer:
        writer.write_table(table, **options)


def test_a_corpus_is_read_and_an_output_written(bucket):
    root, output = bucket("in"), bucket("out")
    tables = {f"{n}/a b.parquet": pa.table({"x": range(n, n + 50)}) for n in (0, 50)}
    for name, table in tables.items():
        put(join(root, name), table, row_group_size=20)
    write_bytes(join(root, "_SUCCESS"), b"")
    corpus = open_corpus(CorpusConfig(input=root, fragment_rows=20))
    assert [file.path for file in corpus.files] == ["0/a b.parquet", "50/a b.parquet"]
    assert [fragment.rows for fragment in corpus.fragments] == [20, 20, 10, 20, 20, 10]
    reader = get_reader("parquet")
    for fragment in corpus.fragments:  # as the writer does: a part of each, copied
        batches = list(reader.read(root, fragment.spans[0], None, 7))
        part = pa.Table.from_batches(batches, corpus.schema)
        put(join(output, "data", f"part-{fragment.index:05d}.parquet"), part)
    parts = [join(output, "data", name) for name in list_names(join(output, "data"), ".parquet")]
    assert len(parts) == 6
    assert pa.concat_tables(map(_read, parts)).equals(pa.concat_tables(tables.values()))
    file = corpus.files[0].path
    assert corpus_path(root, file) == join(root, file)
    assert open_corpus(CorpusConfig(input=join(root, file))).rows == 50


def _read(path):
    return pq.read_table(pa.BufferReader(read_bytes(path)))


def test_what_fails_leaves_no_object_and_what_is_removed_is_gone(bucket):
    root = bucket("half")
    with suppress(KeyError), atomic_output(join(root, "a")) as stream:
        stream.write(b"half")
        raise KeyError
    assert not exists(join(root, "a"))
    for name in ("a", "sub/b", "sub/c"):
        write_bytes(join(root, name), name.encode())
    assert [(f.path, f.size) for f in list_files(root)] == [("a", 1), ("sub/b", 5), ("sub/c", 5)]
    remove_file(join(root, "a"))
    remove_file(join(root, "a"))
    remove_tree(root, "sub")
    with pytest.raises(ConfigError, match="no such file or folder"):
        list_files(bucket("never"))
    assert not exists(join(root, "sub/b"))


def test_an_uploaded_again_object_is_known_by_its_checksum(bucket):
    root = bucket("again")
    write_bytes(join(root, "x"), b"content")
    known, (first,) = mark(root, "x"), list_files(root)
    assert known.checksum.startswith("md5Hash ")
    assert (known.size, known.version) == (7, first.version)
    results = []
    for content in (b"content", b"c0ntent"):
        write_bytes(join(root, "x"), content)
        (now,) = list_files(root)
        assert now.version != first.version
        results.append(same(root, SourceFile("x", now.size, now.version), known))
    assert results == [True, False]


def test_an_output_is_claimed_locked_and_removed(bucket):
    root = bucket("claimed")
    with locked(root):
        assert exists(join(root, LOCK))
        claim(root, {"keep": 0.5}, "f", overwrite=False, resume=True)
    assert not exists(join(root, LOCK))
    write_bytes(join(root, "data", "part-00000.parquet"), b"x")
    write_bytes(join(root, MANIFEST), b"{}")
    write_bytes(join(root, "mine.txt"), b"x")
    assert claim(root, {"keep": 0.5}, "f", overwrite=False, resume=True).finished == {}
    with pytest.raises(ConfigError, match=r"keep=0\.4"):
        claim(root, {"keep": 0.4}, "f", overwrite=False, resume=True)
    remove_run(root)
    assert [file.path for file in list_files(root)] == ["mine.txt"]
