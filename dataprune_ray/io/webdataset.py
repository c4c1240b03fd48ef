"""WebDataset corpora: tar shards whose members are grouped into samples by key.

A sample's key is its members' path up to the first dot of the base name; the rest is the column.
Values are the members' bytes as stored. A sample is the run of consecutive members with one key.
An archive without its end mark was cut short: its last sample may lack members and is an error.
Archives are read as streams and never unpacked, so no member name can reach the file system.
"""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from tarfile import HeaderError, ReadError
from typing import Literal, Self

import pyarrow as pa

from dataprune_ray.errors import BadDataError
from dataprune_ray.io.corpus import MEMBERS, SourceFile, Span
from dataprune_ray.io.filesystems import FileInfo, corpus_path, open_input, redact
from dataprune_ray.io.retries import is_passing, retried

KEY = "__key__"
MAX_MEMBER_BYTES = 1 << 30
_PROBE_SAMPLES = 64
_PROBE_FILES = 4
_BATCH_BYTES = 64 << 20
_BLOCK = 1 << 20

Sample = dict[str, bytes | str]

#: What a broken archive raises while it is read.
READ_ERRORS = (OSError, EOFError, tarfile.TarError, zlib.error, pa.ArrowException, ValueError)


class WebDatasetReader:
    """Samples of tar shards as rows: ``__key__`` and one binary column per member extension."""

    suffixes = (".tar", ".tar.gz", ".tgz")
    key_column = KEY

    def inspect(self, root: str, files: Sequence[FileInfo]) -> tuple[pa.Schema, list[SourceFile]]:
        """See `Reader.inspect`; the columns are those of the first samples of the first shards."""
        names: set[str] = set()
        sources = []
        for position, file in enumerate(files):
            error = None
            if position < _PROBE_FILES:
                try:
                    retried(_probe, corpus_path(root, file.path), names)
                except READ_ERRORS as problem:
                    error = None if names else f"unreadable archive: {problem}"
            sources.append(SourceFile(file.path, file.size, file.version, None, error))
        if not names and any(source.error for source in sources):
            raise BadDataError(f"input={redact(root)!r}: no sample can be read: {sources[0].error}")
        fields = [pa.field(KEY, pa.string()), *[pa.field(n, pa.binary()) for n in sorted(names)]]
        return pa.schema(fields), sources

    def read(
        self, root: str, span: Span, columns: Sequence[str] | None, batch_rows: int
    ) -> Iterator[pa.RecordBatch]:
        """See `Reader.read`; a member that a sample lacks is null."""
        rows: list[Sample] = []
        held = 0
        wanted = None if columns is None else set(columns)
        members: set[str] = set()
        try:
            for sample in _samples(corpus_path(root, span.file), members, wanted):
                rows.append(sample)
                held += sum(map(len, sample.values()))
                if len(rows) >= batch_rows or held > _BATCH_BYTES:
                    yield _batch(rows, columns, members)
                    rows, held = [], 0
        except READ_ERRORS as error:
            if rows and not is_passing(error):
                yield _batch(rows, columns, members)
            raise
        if rows:
            yield _batch(rows, columns, members)

    def narrow(self, root: str, span: Span, first: int, last: int) -> Span:  # noqa: ARG002
        """See `Reader.narrow`: an archive is read from its start."""
        return span


def _probe(path: str, members: set[str]) -> None:
    """Collect the members of an archive's first samples."""
    for _ in islice(_samples(path, members, set()), _PROBE_SAMPLES):
        pass


def with_members(schema: pa.Schema, members: Iterable[str]) -> pa.Schema:
    """The schema with a binary column for every member extension that it lacks."""
    missing = sorted(set(members) - set(schema.names))
    return pa.schema([*schema, *[pa.field(name, pa.binary()) for name in missing]])


def _samples(path: str, members: set[str], wanted: set[str] | None = None) -> Iterator[Sample]:
    """The archive's samples with their wanted members; ``members`` collects all extensions."""
    sample: Sample = {}
    seen: set[str] = set()  # of the sample's extensions, wanted or not
    with open_input(path) as opened:
        mode: Literal["r|", "r|gz"] = (
            "r|gz" if path.partition("?")[0].endswith(("gz", "tgz")) else "r|"
        )
        with tarfile.open(fileobj=opened, mode=mode, tarinfo=_Member) as archive:
            for member in archive:
                if not member.isfile():
                    continue
                key, extension = _split(member.name)
                if not extension:
                    continue
                if sample and (sample[KEY] != key or extension in seen):
                    yield sample
                    sample, seen = {}, set()
                sample[KEY] = key
                seen.add(extension)
                members.add(extension)
                if wanted is None or extension in wanted:
                    if member.size > MAX_MEMBER_BYTES:
                        raise ValueError(
                            f"member {member.name!r} has {member.size} bytes, "
                            f"the limit is {MAX_MEMBER_BYTES}"
                        )
                    content = archive.extractfile(member)
                    sample[extension] = content.read() if content is not None else b""
            if sample:
                yield sample
            while rest := archive.fileobj.read(_BLOCK):
                if rest.strip(b"\0"):
                    raise ReadError("data after the end of the archive")


class _Member(tarfile.TarInfo):
    """A member whose header must be whole: `tarfile` takes a damaged one for the archive's end."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile)
        except HeaderError as error:
            if type(error).__name__ == "EOFHeaderError" or tarfile.offset == 0:
                raise
            raise ReadError(f"{error} at byte {tarfile.offset}") from None


def _split(name: str) -> tuple[str, str]:
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower() if stem else ""


def _batch(rows: list[Sample], columns: Sequence[str] | None, members: set[str]) -> pa.RecordBatch:
    names = list(columns) if columns is not None else _all_names(rows)
    arrays = [
        pa.array([row.get(n) for row in rows], pa.string() if n == KEY else pa.binary())
        for n in names
    ]
    batch = pa.RecordBatch.from_arrays(arrays, names)
    return batch.replace_schema_metadata({MEMBERS: json.dumps(sorted(members)).encode()})


def _all_names(rows: list[Sample]) -> list[str]:
    names = sorted({name for row in rows for name in row} - {KEY})
    return [KEY, *names]
