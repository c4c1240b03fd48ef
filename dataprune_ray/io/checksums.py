"""Checksums of corpus files, where they are cheap: a touched file need not count as a changed one.

On a disk the checksum is the SHA-256 of the whole file, read by the worker that has just read it
for its rows, up to `MOST_BYTES`. In an object store it is what the store keeps anyway: the ETag of
S3, the MD5 of Google Cloud Storage. Where there is neither, a file has no checksum, and its size
and modification time alone decide. A checksum is of all bytes or not there at all.
"""

from __future__ import annotations

import hashlib
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.fs as pafs

from dataprune_ray.io.corpus import SourceFile
from dataprune_ray.io.filesystems import corpus_path, resolve
from dataprune_ray.io.retries import retried

logger = logging.getLogger("dataprune")

#: A larger file on a disk has no checksum: one worker reads it at once, and many share its rows.
MOST_BYTES = 1 << 30
_BLOCK = 1 << 20
_THREADS = 16
#: Where a store's answer holds a checksum of an object's bytes.
_STORED = ("ETag", "md5Hash")


@dataclass(frozen=True)
class Mark:
    """A file's size in bytes, its version as listed, and the checksum that it had as such."""

    size: int
    version: str
    checksum: str


def mark(root: str, path: str) -> Mark | None:
    """A corpus file's checksum now, with the size and version that it belongs to.

    None where none is cheap, where the file cannot be read, and where it changes meanwhile.
    """
    whole = corpus_path(root, path)
    try:
        before = retried(_listed, whole)
        checksum = retried(_checksum, whole, before[0])
        if checksum is None or retried(_listed, whole) != before:
            return None
    except (OSError, pa.ArrowException):
        return None
    return Mark(*before, checksum)


def _listed(path: str) -> tuple[int, str]:
    filesystem, inner = resolve(path)
    info = filesystem.get_file_info(inner)
    return info.size or 0, str(info.mtime_ns or 0)


def _checksum(path: str, size: int) -> str | None:
    filesystem, inner = resolve(path)
    if not isinstance(filesystem, pafs.LocalFileSystem):
        with filesystem.open_input_stream(inner) as stream:
            found = {_text(name): _text(value) for name, value in stream.metadata().items()}
        return next((f"{name} {found[name]}" for name in _STORED if found.get(name)), None)
    if size > MOST_BYTES:
        return None
    digest = hashlib.sha256()
    with filesystem.open_input_stream(inner) as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return f"sha256 {digest.hexdigest()}"


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def same(root: str, file: SourceFile, known: Mark) -> bool:
    """Whether a listed file has the content that a mark is of, whatever its modification time."""
    if file.size != known.size:
        return False
    if file.version == known.version:
        return True
    now = mark(root, file.path)
    return now == Mark(file.size, file.version, known.checksum)


def same_files(root: str, files: list[tuple[SourceFile, Mark]]) -> list[bool]:
    """`same` of several files, side by side."""
    doubtful = sum(f.version != m.version and f.size == m.size for f, m in files)
    if doubtful:
        logger.info("comparing the contents of %s files with another modification time", doubtful)
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda pair: same(root, *pair), files))
