"""Paths and URIs to `pyarrow.fs` file systems; files that appear whole or not at all.

A local file is written under a temporary name in its own folder, flushed to disk and renamed. What
goes to an object store is collected on this machine first and uploaded when it is complete: a store
shows an object only at the end of its upload, but a stream that is given up ends it as well.
Storage errors that may pass are waited out.
"""

from __future__ import annotations

import errno
import os
import posixpath
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.fs as pafs

from dataprune_ray.errors import ConfigError, DiskFullError
from dataprune_ray.io.retries import retried

#: Prefix of files that are still being written; readers skip them.
TEMPORARY_PREFIX = ".writing-"

_PASSWORD = re.compile(r":(?!\d*$)")  # a colon that no port follows
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_SPOOL_BYTES = 64 << 20  # held in memory of a file that goes to an object store


@dataclass(frozen=True)
class FileInfo:
    """A file below a root: ``path`` relative with ``/``, ``size`` in bytes, ``version`` opaque."""

    path: str
    size: int
    version: str


def resolve(path: str) -> tuple[pafs.FileSystem, str]:
    """File system and the path in it, for a local path or a ``file://``, ``s3://``, ``gs://`` URI.

    Raises:
        ConfigError: the scheme is not one that pyarrow knows.
    """
    if "://" not in path:
        return pafs.LocalFileSystem(), str(Path(path).expanduser().absolute())
    try:
        filesystem, inner = retried(pafs.FileSystem.from_uri, path)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        reason = str(error).replace(path, redact(path))
        raise ConfigError("path", redact(path), f"not a usable URI: {reason}") from None
    return filesystem, inner


def redact(path: str) -> str:
    """The path without user name, password and query, fit for messages and manifests."""
    if "://" not in path:
        return path
    scheme, _, rest = path.partition("?")[0].partition("://")
    host, slash, inner = rest.partition("/")
    bare = host.rpartition("@")[2]
    if "@" not in host and _PASSWORD.search(host) and "@" in inner:  # a slash in the password
        return f"{scheme}://{inner.rpartition('@')[2]}"
    return f"{scheme}://{bare}{slash}{inner}"


def without_password(path: str) -> str:
    """A URI without user name and password but with its query, which says where the server is."""
    query = path.partition("?")[1:]
    return redact(path) + "".join(query) if "://" in path else path


def beside(path: str, suffix: str) -> str:
    """The path with a suffix to its name; a URI's query stays at its end."""
    base, mark, query = path.partition("?") if "://" in path else (path, "", "")
    return base + suffix + mark + query


def join(root: str, *names: str) -> str:
    """Append plain path parts to a path or URI; a URI escapes them and keeps its query last."""
    if "://" not in root:
        return posixpath.join(root.rstrip("/") or "/", *names)
    base, mark, query = root.partition("?")
    quoted = [quote(name, safe="/=@:+,~!$&'()*") for name in names]
    return posixpath.join(base.rstrip("/"), *quoted) + mark + query


def list_files(root: str) -> list[FileInfo]:
    """Every regular file at or below ``root``, sorted by relative path.

    Hidden files and folders (``.``) and ``_`` markers are skipped, as every Parquet reader does.
    A link that leaves the root is not followed, and a file that links show twice is listed once.

    Raises:
        ConfigError: nothing lies at ``root``.
    """
    filesystem, inner = resolve(root)
    info = retried(filesystem.get_file_info, inner)
    if info.type == pafs.FileType.File:
        return [_file_info(info, posixpath.basename(inner))]
    if info.type == pafs.FileType.NotFound:
        raise ConfigError("input", redact(root), "no such file or folder")
    prefix = inner.rstrip("/") + "/"
    if isinstance(filesystem, pafs.LocalFileSystem):
        paths = [prefix + path for path in _local_files(Path(inner))]
        _refuse_undecodable(paths)
        entries = retried(filesystem.get_file_info, paths)
    else:
        entries = retried(filesystem.get_file_info, pafs.FileSelector(inner, recursive=True))
    found = [
        _file_info(entry, relative)
        for entry in entries
        if entry.type == pafs.FileType.File
        and not _hidden(relative := entry.path.removeprefix(prefix))
    ]
    return sorted(found, key=lambda file: file.path)


def _refuse_undecodable(paths: list[str]) -> None:
    for path in paths:
        if not path.isprintable() and path != path.encode(errors="replace").decode():
            shown = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            raise ConfigError("input", shown, "the file's name is not UTF-8; rename the file")


def _local_files(root: Path) -> list[str]:
    """Relative paths of the files below a folder, each once and under its real name if it can."""
    real_root = _real(root)
    names: dict[Path, str] = {}
    for folder, folders, files in os.walk(root, followlinks=True):
        above = _real(Path(folder))
        folders[:] = sorted(n for n in folders if _inside(Path(folder, n), real_root, above))
        for name in sorted(files):
            path = Path(folder, name)
            real = _real(path)
            relative = path.relative_to(root).as_posix()
            if _hidden(relative) or not (real.is_relative_to(real_root) and path.is_file()):
                continue
            if real not in names or real == real_root / relative:
                names[real] = relative
    return list(names.values())


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # unlike Path.resolve at ease with circular links


def _inside(folder: Path, root: Path, above: Path) -> bool:
    """Whether to go down into a folder: not hidden, not a way out of the root or back up."""
    real = _real(folder)
    return not _hidden(folder.name) and real.is_relative_to(root) and not above.is_relative_to(real)


def stamp(path: str) -> str | None:
    """Size and modification time of a file as text, which tell versions of it apart.

    None where there is no file.
    """
    filesystem, inner = resolve(path)
    info = retried(filesystem.get_file_info, inner)
    if info.type != pafs.FileType.File:
        return None
    return f"{info.size or 0}:{info.mtime_ns or 0}"


def _file_info(info: pafs.FileInfo, relative: str) -> FileInfo:
    return FileInfo(relative, info.size or 0, str(info.mtime_ns or 0))


def _hidden(relative: str) -> bool:
    return any(part.startswith((".", "_")) for part in relative.split("/"))


def corpus_path(root: str, relative: str) -> str:
    """Path of a corpus file: the root itself where the root is that file."""
    filesystem, inner = resolve(root)
    is_file = filesystem.get_file_info(inner).type == pafs.FileType.File
    return root if is_file else join(root, relative)


def exists(path: str) -> bool:
    """Whether a file or folder lies at ``path``."""
    filesystem, inner = resolve(path)
    return bool(retried(filesystem.get_file_info, inner).type != pafs.FileType.NotFound)


def open_input(path: str) -> pa.NativeFile:
    """Open a file for random access."""
    filesystem, inner = resolve(path)
    return retried(filesystem.open_input_file, inner)


def read_bytes(path: str) -> bytes:
    """A whole small file."""
    return retried(_read_bytes, path)


def _read_bytes(path: str) -> bytes:
    with open_input(path) as file:
        return bytes(file.read())


@contextmanager
def atomic_output(path: str) -> Iterator[Any]:
    """A binary stream whose content appears at ``path`` only when the block ends without error.

    Raises:
        DiskFullError: the content does not fit; nothing of it is left.
        StorageError: the storage failed for longer than it is waited for.
    """
    filesystem, inner = resolve(path)
    if isinstance(filesystem, pafs.LocalFileSystem):
        with _disk_full_at(redact(path)), _renamed(Path(inner)) as stream:
            yield stream
        return
    with _disk_full_at(tempfile.gettempdir()), tempfile.SpooledTemporaryFile(_SPOOL_BYTES) as spool:
        yield spool
        retried(_upload, filesystem, inner, spool)


@contextmanager
def _disk_full_at(place: str) -> Iterator[None]:
    """Say of a full disk which one it is."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        raise DiskFullError(place, error.strerror) from error


@contextmanager
def _renamed(path: Path) -> Iterator[Any]:
    """A stream into a temporary file beside ``path`` that takes its place at the end."""
    retried(path.parent.mkdir, parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex[:8]}-{path.name}"
    try:
        with retried(temporary.open, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        retried(temporary.replace, path)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    retried(_sync_folder, path.parent)


def _upload(filesystem: pafs.FileSystem, inner: str, content: Any) -> None:
    """Put an object from the start of ``content``; again is the same."""
    content.seek(0)
    with filesystem.open_output_stream(inner) as stream:
        shutil.copyfileobj(content, stream, 1 << 20)


def write_bytes(path: str, content: bytes) -> None:
    """Write a whole small file, atomically."""
    with atomic_output(path) as stream:
        stream.write(content)


def remove_file(path: str) -> None:
    """Delete one file if it is there."""
    filesystem, inner = resolve(path)
    with suppress(FileNotFoundError):
        retried(filesystem.delete_file, inner)


def remove_empty_folders(root: str, names: list[str]) -> None:
    """Delete the named sub-folders of a local ``root``, and those below, where they are empty."""
    filesystem, inner = resolve(root)
    if isinstance(filesystem, pafs.LocalFileSystem):
        for name in names:
            top = Path(inner) / name
            below = [path for path in top.rglob("*") if path.is_dir()]
            for folder in [*sorted(below, reverse=True), top]:
                with suppress(OSError):
                    folder.rmdir()


def remove_tree(root: str, name: str) -> None:
    """Delete the sub-folder ``name`` of ``root`` with everything in it, if it is there."""
    filesystem, inner = resolve(join(root, name))
    with suppress(FileNotFoundError):
        retried(filesystem.delete_dir, inner)


def list_names(folder: str, suffix: str) -> list[str]:
    """Names of finished files directly in ``folder`` that end in ``suffix``, sorted."""
    filesystem, inner = resolve(folder)
    entries = retried(filesystem.get_file_info, pafs.FileSelector(inner, allow_not_found=True))
    names = [entry.base_name for entry in entries if entry.type == pafs.FileType.File]
    return sorted(n for n in names if n.endswith(suffix) and not n.startswith(TEMPORARY_PREFIX))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
