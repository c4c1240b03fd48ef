"""Checksums of corpus files, and corpora whose files were touched but not changed."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataprune_ray import schema
from dataprune_ray.config import CorpusConfig
from dataprune_ray.io import checksums, open_corpus
from dataprune_ray.io.checksums import Mark, mark, same_files
from dataprune_ray.io.corpus import SourceFile
from dataprune_ray.unchanged import settled


def touch(path, ns=7_000_000_000):
    os.utime(path, ns=(ns, ns))


def test_the_checksum_is_that_of_the_whole_file(tmp_path):
    content = os.urandom(3 * checksums._BLOCK + 5)
    (tmp_path / "a").write_bytes(content)
    touch(tmp_path / "a")
    expected = Mark(len(content), "7000000000", f"sha256 {hashlib.sha256(content).hexdigest()}")
    for root in (str(tmp_path), str(tmp_path / "a"), f"file://{tmp_path}"):
        assert mark(root, "a") == expected


def test_no_checksum_where_it_is_not_cheap_or_cannot_be_had(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"12345")
    assert mark(str(tmp_path), "missing") is None
    monkeypatch.setattr(checksums, "MOST_BYTES", 4)
    assert mark(str(tmp_path), "a") is None
    monkeypatch.setattr(checksums, "MOST_BYTES", 5)
    assert mark(str(tmp_path), "a") is not None
    (tmp_path / "empty").write_bytes(b"")
    assert mark(str(tmp_path), "empty").size == 0


def test_a_file_that_changes_while_it_is_read_has_no_checksum(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"12345")
    real = checksums._checksum

    def disturbed(path, size):
        found = real(path, size)
        touch(tmp_path / "a")
        return found

    monkeypatch.setattr(checksums, "_checksum", disturbed)
    assert mark(str(tmp_path), "a") is None


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"Content-Length": b"5", "ETag": b'"6210-1"'}, 'ETag "6210-1"'),
        ({"etag": b"of a generation", "md5Hash": b"XUFA=="}, "md5Hash XUFA=="),
        ({"etag": b"of a generation", "md5Hash": b""}, None),  # a composed object has none
        ({}, None),
    ],
)
def test_a_store_is_asked_for_the_checksum_that_it_keeps(monkeypatch, answer, expected):
    class Stream:
        metadata = staticmethod(lambda: answer)
        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda *_: None  # noqa: E731

    class Store:
        open_input_stream = staticmethod(lambda _: Stream())

    monkeypatch.setattr(checksums, "resolve", lambda path: (Store(), path))
    assert checksums._checksum("s3://b/a", 5) == expected


def test_same_content_is_told_from_changed_content(tmp_path):
    for name in "abcd":
        (tmp_path / name).write_bytes(b"12345")
    known = {name: mark(str(tmp_path), name) for name in "abcd"}
    touch(tmp_path / "b")
    (tmp_path / "c").write_bytes(b"12346")
    touch(tmp_path / "c")
    (tmp_path / "d").write_bytes(b"123456")
    files = []
    for name in "abcd":
        info = (tmp_path / name).stat()
        files.append((SourceFile(name, info.st_size, str(info.st_mtime_ns)), known[name]))
    assert same_files(str(tmp_path), files) == [True, True, False, False]
    later = replace(files[1][0], version="8")  # touched again since it was listed
    assert same_files(str(tmp_path), [(later, known["b"])]) == [False]
    assert same_files(str(tmp_path), []) == []


@pytest.fixture
def scored(tmp_path):
    """A corpus of three files and an empty one, and score files that note two of them."""
    (tmp_path / "in").mkdir()
    for number in range(3):
        pq.write_table(pa.table({"x": [number, 5]}), tmp_path / "in" / f"{number}.parquet")
    pq.write_table(pa.table({"x": pa.array([], pa.int64())}), tmp_path / "in" / "3.parquet")
    (tmp_path / "scores").mkdir()
    for number in range(2):
        found = mark(str(tmp_path / "in"), f"{number}.parquet")
        note = {schema.FILES: {f"{number}.parquet": [found.size, found.version, found.checksum]}}
        table = pa.table({"row": [1]}).replace_schema_metadata({schema.NOTE: json.dumps(note)})
        pq.write_table(table, tmp_path / "scores" / f"{number}.parquet")
    return tmp_path


def listed(folder):
    return open_corpus(CorpusConfig(input=str(folder / "in")))


def test_touched_files_are_listed_as_before(scored):
    before = listed(scored)
    expected = before.fingerprint()
    touch(scored / "in" / "0.parquet")
    touch(scored / "in" / "1.parquet", ns=9_000_000_000)
    touch(scored / "in" / "3.parquet")  # has no rows: its time does not matter
    now = listed(scored)
    assert now.fingerprint() != expected
    found = settled(now, str(scored / "scores"), expected)
    assert found.fingerprint() == expected
    assert found.files[:3] == before.files[:3]
    assert settled(found, str(scored / "nowhere"), expected) is found


def test_a_touched_file_without_a_noted_checksum_counts_as_changed(scored):
    expected = listed(scored).fingerprint()
    touch(scored / "in" / "2.parquet")  # no checksum is known of it
    now = listed(scored)
    assert settled(now, str(scored / "scores"), expected) is now
    assert settled(now, str(scored / "nowhere"), expected) is now


def test_a_change_of_content_alone_is_seen(scored):
    before = listed(scored)
    pq.write_table(pa.table({"x": [8, 5]}), scored / "in" / "0.parquet")
    touch(scored / "in" / "0.parquet")
    now = listed(scored)
    assert now.files[0].size == before.files[0].size
    assert settled(now, str(scored / "scores"), before.fingerprint()) is now


def test_files_are_not_read_where_that_would_not_help(scored, monkeypatch):
    expected = listed(scored).fingerprint()
    for name in ("0", "2"):
        touch(scored / "in" / f"{name}.parquet")
    now = listed(scored)
    monkeypatch.setattr("dataprune_ray.io.checksums.mark", lambda *_: pytest.fail("read"))
    assert settled(now, str(scored / "scores"), expected) is now
