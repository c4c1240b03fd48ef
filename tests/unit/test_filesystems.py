"""Paths, URIs, links and files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from dataprune_ray.errors import ConfigError, DiskFullError
from dataprune_ray.io import filesystems, retries
from dataprune_ray.io.filesystems import (
    atomic_output,
    corpus_path,
    exists,
    join,
    list_files,
    list_names,
    read_bytes,
    redact,
    remove_empty_folders,
    remove_file,
    resolve,
    write_bytes,
)


def put(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def half_written(path, error) -> None:
    with atomic_output(str(path)) as stream:
        stream.write(b"half")
        raise error


def listed(root) -> list[str]:
    return [file.path for file in list_files(str(root))]


def test_files_are_listed_by_relative_path_without_hidden_ones(tmp_path):
    put(tmp_path, "b/2.parquet", "a.parquet", "b/1.parquet", ".x", ".git/y", "_SUCCESS", "c/_d/z")
    assert listed(tmp_path) == ["a.parquet", "b/1.parquet", "b/2.parquet"]
    assert [file.size for file in list_files(str(tmp_path))] == [9, 11, 11]


def test_a_root_below_a_hidden_folder_is_not_hidden(tmp_path):
    put(tmp_path, ".cache/_corpus/a.parquet")
    assert listed(tmp_path / ".cache" / "_corpus") == ["a.parquet"]


def test_a_single_file_is_a_corpus(tmp_path):
    put(tmp_path, "one.parquet")
    root = str(tmp_path / "one.parquet")
    assert listed(root) == ["one.parquet"]
    assert corpus_path(root, "one.parquet") == root
    assert corpus_path(str(tmp_path), "one.parquet") == root


def test_a_missing_root_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"input='.*gone'.*no such file or folder"):
        list_files(str(tmp_path / "gone"))


def test_an_empty_folder_has_no_files(tmp_path):
    assert listed(tmp_path) == []


def test_links_that_leave_the_root_are_not_followed(tmp_path):
    put(tmp_path, "outside/secret.parquet", "root/a.parquet")
    (tmp_path / "root" / "file.parquet").symlink_to(tmp_path / "outside" / "secret.parquet")
    (tmp_path / "root" / "folder").symlink_to(tmp_path / "outside")
    (tmp_path / "root" / "broken.parquet").symlink_to(tmp_path / "gone")
    assert listed(tmp_path / "root") == ["a.parquet"]


def test_a_file_that_links_show_twice_is_listed_once_under_its_own_name(tmp_path):
    put(tmp_path, "z/data.parquet")
    (tmp_path / "a.parquet").symlink_to(tmp_path / "z" / "data.parquet")
    (tmp_path / "b").symlink_to(tmp_path / "z")
    assert listed(tmp_path) == ["z/data.parquet"]


def test_a_link_to_a_hidden_file_within_the_root_is_followed(tmp_path):
    put(tmp_path, ".blobs/1234")
    (tmp_path / "a.parquet").symlink_to(tmp_path / ".blobs" / "1234")
    assert listed(tmp_path) == ["a.parquet"]
    assert list_files(str(tmp_path))[0].size == len(".blobs/1234")


def test_links_in_a_circle_end(tmp_path):
    put(tmp_path, "a/1.parquet", "b/2.parquet")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "a").symlink_to(tmp_path / "a")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    assert listed(tmp_path) == ["a/1.parquet", "b/2.parquet"]


def test_a_root_that_is_a_link_or_has_dots_is_read(tmp_path, monkeypatch):
    put(tmp_path, "real/a.parquet", "real/sub/b.parquet")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    expected = ["a.parquet", "sub/b.parquet"]
    assert listed(tmp_path / "link") == expected
    assert listed(f"{tmp_path}/link/") == expected
    assert listed(f"{tmp_path}/real/sub/..") == expected
    monkeypatch.chdir(tmp_path / "real")
    assert listed(".") == expected


def test_the_version_changes_with_the_file(tmp_path):
    put(tmp_path, "a.parquet")
    before = list_files(str(tmp_path))[0].version
    os.utime(tmp_path / "a.parquet", ns=(1, 1))
    assert list_files(str(tmp_path))[0].version != before


@pytest.mark.parametrize("name", ["a b.parquet", "50%20.parquet", "x#1?.parquet", "é&[1].parquet"])
def test_uris_escape_what_a_path_may_hold(tmp_path, name):
    put(tmp_path, f"day=1/{name}")
    root = f"file://{tmp_path}"
    assert listed(root) == [f"day=1/{name}"]
    assert read_bytes(corpus_path(root, f"day=1/{name}")) == f"day=1/{name}".encode()


def test_a_uri_and_a_path_name_the_same_files(tmp_path):
    put(tmp_path, "b/2", "a")
    (tmp_path / "link").symlink_to("/etc")
    assert list_files(f"file://{tmp_path}") == list_files(str(tmp_path))


@pytest.mark.parametrize(
    ("root", "expected"),
    [
        ("/a/b", "/a/b/x/y"),
        ("/a/b/", "/a/b/x/y"),
        ("/", "/x/y"),
        ("rel?ative", "rel?ative/x/y"),
        ("s3://bucket/p", "s3://bucket/p/x/y"),
        ("s3://bucket/p/?region=eu&scheme=http", "s3://bucket/p/x/y?region=eu&scheme=http"),
    ],
)
def test_join_keeps_a_query_last(root, expected):
    assert join(root, "x", "y") == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/plain/a@b:c?d", "/plain/a@b:c?d"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("s3://KEY:SECRET@bucket/p?session_token=T", "s3://bucket/p"),
        ("s3://KEY:SEC/RET@bucket/p", "s3://bucket/p"),
        ("s3://KEY:SEC@RET@bucket/p", "s3://bucket/p"),
        ("http://host:9000/a@b", "http://host:9000/a@b"),
        ("gs://anonymous@bucket", "gs://bucket"),
    ],
)
def test_redact_hides_credentials(path, expected):
    assert redact(path) == expected


@pytest.mark.parametrize(
    "uri", ["ftp://KEY:SECRET@h/x", "s3://KEY:SEC/RET@b/x", "s3://K:SECRET@ /"]
)
def test_an_unusable_uri_is_refused_without_its_credentials(uri):
    with pytest.raises(ConfigError) as caught:
        resolve(uri)
    assert "SEC" not in str(caught.value)
    assert "KEY" not in str(caught.value)


def test_home_and_relative_paths_are_local(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/x")[1] == str(tmp_path / "x")
    monkeypatch.chdir(tmp_path)
    assert resolve("x/y")[1] == str(tmp_path / "x" / "y")


# Atomic output


@pytest.fixture
def object_store(tmp_path, monkeypatch):
    """A folder in the place of an object store: streams write to the final name."""
    (tmp_path / "store").mkdir()
    store = pafs.SubTreeFileSystem(str(tmp_path / "store"), pafs.LocalFileSystem())
    monkeypatch.setattr(filesystems, "resolve", lambda path: (store, path.removeprefix("s3://b/")))
    return tmp_path / "store"


def test_a_file_appears_whole_at_the_end(tmp_path):
    target = tmp_path / "new" / "folder" / "x.bin"
    with atomic_output(str(target)) as stream:
        stream.write(b"abc")
        assert not target.exists()
    assert target.read_bytes() == b"abc"
    assert names(target.parent) == ["x.bin"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_nothing_and_keeps_the_old_file(tmp_path, error):
    target = tmp_path / "x.bin"
    target.write_bytes(b"old")
    with pytest.raises(error):
        half_written(target, error)
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["x.bin"]


def test_an_object_appears_whole_or_not_at_all(object_store):
    with atomic_output("s3://b/good") as stream:
        stream.write(b"abc" * 1000)
        assert names(object_store) == []
    for name in ("bad", "good"):
        with pytest.raises(KeyError):
            half_written(f"s3://b/{name}", KeyError)
    assert names(object_store) == ["good"]
    assert (object_store / "good").read_bytes() == b"abc" * 1000


def test_parquet_can_be_written_to_an_object_store(object_store):
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    table = pa.table({"a": list(range(1000))})
    with atomic_output("s3://b/t") as stream, pq.ParquetWriter(stream, table.schema) as writer:
        writer.write_table(table)
    assert pq.read_table(object_store / "t").equals(table)


def test_unfinished_files_are_not_listed(tmp_path):
    put(tmp_path, "a.parquet", "b.txt", ".writing-1-c.parquet", "sub/d.parquet")
    assert list_names(str(tmp_path), ".parquet") == ["a.parquet"]
    assert list_names(str(tmp_path / "none"), ".parquet") == []


def test_removing_is_quiet_about_what_is_not_there(tmp_path):
    write_bytes(str(tmp_path / "a"), b"x")
    assert exists(str(tmp_path / "a"))
    remove_file(str(tmp_path / "a"))
    remove_file(str(tmp_path / "a"))
    assert not exists(str(tmp_path / "a"))
    put(tmp_path, "full/x")
    (tmp_path / "empty").mkdir()
    remove_empty_folders(str(tmp_path), ["full", "empty", "gone"])
    assert names(tmp_path) == ["full"]


def test_a_full_disk_is_named_and_nothing_is_left(tmp_path):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(DiskFullError, match=r"disk full at .*x\.bin.*free some space") as caught:
        half_written(tmp_path / "x.bin", full)
    assert caught.value.exit_code == 1
    assert names(tmp_path) == []


def test_an_upload_that_fails_for_a_moment_is_made_again(object_store, monkeypatch):
    original = shutil.copyfileobj
    failures = [TimeoutError("upload"), ConnectionResetError("upload")]

    def copy(source, target, length):
        if failures:
            target.write(source.read(2))
            raise failures.pop()
        original(source, target, length)

    monkeypatch.setattr(filesystems.shutil, "copyfileobj", copy)
    monkeypatch.setattr(retries.time, "sleep", lambda _: None)
    write_bytes("s3://b/x", b"abcdef")
    assert (object_store / "x").read_bytes() == b"abcdef"
    assert not failures


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/a/b.pt", "/a/b.pt.json"),
        ("s3://b/c.pt?region=x", "s3://b/c.pt.json?region=x"),
        ("/a/what?.pt", "/a/what?.pt.json"),
    ],
)
def test_a_suffix_goes_before_a_query(path, expected):
    assert filesystems.beside(path, ".json") == expected
