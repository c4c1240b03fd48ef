"""A corpus as the job sees it: files, their row groups, and fragments, the unit of work."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import pyarrow as pa

from dataprune_ray.io.filesystems import FileInfo

_FEW_FRAGMENTS = 16
_LEAST_ROWS = 1024
_MOST_ROWS = 65_536

#: Metadata key of a batch under which a reader notes the columns that it has seen.
MEMBERS = b"members"


@dataclass(frozen=True)
class SourceFile:
    """One corpus file.

    ``groups`` holds the rows of each row group, or None where only reading tells (archives).
    ``error`` says why nothing of the file can be read; such a file is quarantined whole.
    """

    path: str
    size: int
    version: str
    groups: tuple[int, ...] | None = None
    error: str | None = None

    @property
    def rows(self) -> int | None:
        """Rows of the file, where known before reading it."""
        return None if self.groups is None else sum(self.groups)


@dataclass(frozen=True)
class Span:
    """A run of consecutive rows of one file; ``rows`` is None for an archive read to its end."""

    file: str
    start: int = 0
    rows: int | None = None
    groups: tuple[int, int] | None = None  # first row group and the one after the last
    error: str | None = None


@dataclass(frozen=True)
class Fragment:
    """The unit of work and of commitment: one span, or several small files together."""

    index: int
    spans: tuple[Span, ...]

    @property
    def name(self) -> str:
        """Deterministic file stem of everything that is written for this fragment."""
        digest = hashlib.blake2b(repr(self.spans).encode(), digest_size=6).hexdigest()
        return f"{self.index:06d}-{digest}"

    def to_json(self) -> str:
        """The fragment as text that `from_json` restores."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Fragment:
        """What `to_json` described."""
        content = json.loads(text)
        spans = []
        for span in content["spans"]:
            groups = span.pop("groups")
            spans.append(Span(**span, groups=tuple(groups) if groups is not None else None))
        return cls(content["index"], tuple(spans))

    @property
    def rows(self) -> int | None:
        """Rows of the fragment, where known before reading it."""
        counts = [span.rows for span in self.spans]
        return None if None in counts else sum(count or 0 for count in counts)


@dataclass(frozen=True)
class Corpus:
    """A discovered corpus.

    ``schema`` is that of the rows as stored (what is written back), ``files`` in path order.
    """

    root: str
    format: str
    schema: pa.Schema
    files: tuple[SourceFile, ...]
    fragments: tuple[Fragment, ...]

    @property
    def rows(self) -> int | None:
        """All rows, where known before reading."""
        counts = [f.rows for f in self.fragments]
        return None if None in counts else sum(count or 0 for count in counts)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def fingerprint(self) -> str:
        """Hex digest over every file's path, size and, where it has rows, version."""
        digest = hashlib.sha256(self.format.encode())
        for file in self.files:
            version = "" if file.rows == 0 else file.version
            digest.update(repr((file.path, file.size, version)).encode())
        return digest.hexdigest()


class Reader(Protocol):
    """A storage format; its own key, where it has one, identifies a row within its file."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Endings of the file names that belong to it."""

    @property
    def key_column(self) -> str | None:
        """Column of the format's own row key."""

    def inspect(self, root: str, files: Sequence[FileInfo]) -> tuple[pa.Schema, list[SourceFile]]:
        """Schema of the stored rows, and each file with its row groups or its error.

        Raises:
            BadDataError: no file can be read at all.
        """

    def read(
        self, root: str, span: Span, columns: Sequence[str] | None, batch_rows: int
    ) -> Iterator[pa.RecordBatch]:
        """The span's rows in order; ``columns`` None reads them all, as stored.

        A format without a schema of its own notes in each batch's metadata under `MEMBERS` the
        JSON list of all columns seen so far.

        Raises:
            OSError, pa.ArrowException: the file broke off; batches before that were right.
        """

    def narrow(self, root: str, span: Span, first: int, last: int) -> Span:
        """The smallest readable part of a span with rows ``first`` to ``last`` of its file."""


def fragment_target(files: Sequence[SourceFile]) -> int:
    """Rows of a fragment that suit a corpus: 65,536, and less where there would be few of them.

    A power of two, so that a growing corpus seldom changes it.
    """
    rows = sum(file.rows or 0 for file in files)
    wanted = 1 << int(math.log2(max(rows // _FEW_FRAGMENTS, 1)))
    return min(max(wanted, _LEAST_ROWS), _MOST_ROWS)


def plan_fragments(
    files: Sequence[SourceFile], target_rows: int, apart: frozenset[str] = frozenset()
) -> tuple[Fragment, ...]:
    """Cut files into fragments of about ``target_rows`` rows: whole row groups, small files joined.

    The plan depends on the files alone, never on the cluster, so that work done on one cluster is
    recognised on another. Files whose paths are in ``apart`` share no fragment with others.
    """
    fragments: list[Fragment] = []
    waiting: list[Span] = []
    held = 0

    def flush() -> None:
        nonlocal held
        if waiting:
            fragments.append(Fragment(len(fragments), tuple(waiting)))
            waiting.clear()
            held = 0

    for file in files:
        if waiting and (waiting[-1].file in apart) != (file.path in apart):
            flush()
        for span in _spans(file, target_rows):
            if span.rows is None or held + span.rows > target_rows:
                flush()
            waiting.append(span)
            held += span.rows or 0
            if span.rows is None:
                flush()
    flush()
    return tuple(fragments)


def _spans(file: SourceFile, target_rows: int) -> Iterator[Span]:
    if file.error is not None:
        yield Span(file.path, rows=file.rows or 0, error=file.error)
        return
    if file.groups is None:
        yield Span(file.path)
        return
    start = first = held = 0
    for group, rows in enumerate(file.groups):
        if held and held + rows > target_rows:
            yield Span(file.path, start, held, (first, group))
            start, first, held = start + held, group, 0
        held += rows
    if held:
        yield Span(file.path, start, held, (first, len(file.groups)))
