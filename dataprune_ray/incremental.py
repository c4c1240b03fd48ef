"""Scores of an earlier run, used again where its corpus has not changed.

A file counts as unchanged where path, size and modification time are those that the earlier run
recorded, or where only the time differs and a checksum shows that the content does not; everything
else is scored. Fragments of unchanged files
never share one with files to score, and their score files are put together from the earlier ones
row by row, because fragments may have moved.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataprune_ray import schema
from dataprune_ray.baseline import Baseline
from dataprune_ray.config import PruneConfig
from dataprune_ray.errors import BadDataError, ConfigError
from dataprune_ray.io.checksums import Mark, same_files
from dataprune_ray.io.corpus import (
    Corpus,
    Fragment,
    SourceFile,
    Span,
    fragment_target,
    plan_fragments,
)
from dataprune_ray.io.filesystems import (
    atomic_output,
    exists,
    join,
    open_input,
    read_bytes,
    redact,
    write_bytes,
)
from dataprune_ray.io.output import BASELINE, Output
from dataprune_ray.plans import ScorePlan
from dataprune_ray.tasks import run_tasks
from dataprune_ray.unchanged import marks_in, marks_of


@dataclass(frozen=True)
class Changes:
    """Files by what became of them since the baseline, in path order."""

    reused: tuple[str, ...]
    new: tuple[str, ...]
    changed: tuple[str, ...]
    vanished: tuple[str, ...]

    @property
    def text(self) -> str:
        """How many of each kind."""
        return (
            f"{len(self.reused):,} files unchanged, {len(self.new):,} new, "
            f"{len(self.changed):,} changed, {len(self.vanished):,} vanished"
        )


@dataclass(frozen=True)
class Reuse:
    """A baseline and what changed since."""

    baseline: Baseline
    changes: Changes

    @property
    def text(self) -> str:
        """One sentence on it."""
        return f"baseline {redact(self.baseline.root)}: {self.changes.text}"

    def to_json(self) -> dict[str, Any]:
        """For the manifest: which baseline, and files by what became of them."""
        found = self.changes
        return {
            "path": redact(self.baseline.root),
            "content_hash": self.baseline.manifest["content_hash"],
            "files": {
                "reused": len(found.reused),
                "scored": len(found.new) + len(found.changed),
                "new": len(found.new),
                "changed": len(found.changed),
                "vanished": len(found.vanished),
            },
        }


# Files -------------------------------------------------------------------------------------------


def compare(baseline: Baseline, corpus: Corpus) -> Changes:
    """What became of every file since the baseline."""
    before = {file["path"]: file for file in baseline.manifest["inputs"]}
    known = {span.file for fragment in baseline.fragments for span in fragment.spans}
    now = {file.path: file for file in corpus.files}
    new = sorted(now.keys() - before.keys())
    alike = [
        file
        for path, file in now.items()
        if path in before and _alike(before[path], file) and (path in known or file.rows == 0)
    ]
    same = {f.path for f in alike if f.rows == 0 or f.version == before[f.path]["version"]}
    same |= _known_by_content(baseline, corpus, [f for f in alike if f.path not in same])
    changed = sorted(now.keys() - same - set(new))
    vanished = sorted(before.keys() - now.keys())
    return Changes(tuple(sorted(same)), tuple(new), tuple(changed), tuple(vanished))


def _alike(old: dict[str, Any], file: SourceFile) -> bool:
    now = (file.size, file.rows, file.error)
    return (old["size"], old["rows"], old["error"]) == now


def _known_by_content(baseline: Baseline, corpus: Corpus, files: list[SourceFile]) -> set[str]:
    """Those of the files, whose modification times differ, that the baseline has checksums of."""
    wanted = {file.path for file in files}
    paths = [
        join(baseline.scores, f"{fragment.name}.parquet")
        for fragment in baseline.fragments
        if any(span.start == 0 and span.file in wanted for span in fragment.spans)
    ]
    marks = marks_of(paths)
    listed = {entry["path"]: entry["version"] for entry in baseline.manifest["inputs"]}
    pairs = [
        (file, marks[file.path])
        for file in files
        if file.path in marks and marks[file.path].version == listed[file.path]
    ]
    found = same_files(corpus.root, pairs)
    return {file.path for (file, _), same in zip(pairs, found, strict=True) if same}


def planned(config: PruneConfig, corpus: Corpus, changes: Changes) -> tuple[Fragment, ...]:
    """The corpus's fragments, none with both reused and other files."""
    target = config.corpus.fragment_rows or fragment_target(corpus.files)
    return plan_fragments(corpus.files, target, apart=frozenset(changes.reused))


def hold_to(output: Output, baseline: Baseline) -> None:
    """Tie an output to one baseline, so that a continued run does not mix two.

    Raises:
        ConfigError: the run was begun with what the baseline was before.
    """
    path = output.path("scores", BASELINE)
    if exists(path):
        if json.loads(read_bytes(path))["digest"] != baseline.digest:
            advice = "changed since this run began; choose another --output or pass --overwrite"
            raise ConfigError("baseline", redact(baseline.root), advice)
        return
    write_bytes(path, (json.dumps({"digest": baseline.digest}) + "\n").encode())


# Scores ------------------------------------------------------------------------------------------


def assemble(plan: ScorePlan, corpus: Corpus, reuse: Reuse) -> None:
    """Put together the score files of unchanged files, where they are not there yet.

    Raises:
        BadDataError: the baseline's score table lacks rows.
    """
    baseline, unchanged = reuse.baseline, frozenset(reuse.changes.reused)
    pieces: dict[str, list[tuple[str, Span]]] = {}
    for fragment in baseline.fragments:
        for span in fragment.spans:
            if span.file in unchanged:
                pieces.setdefault(span.file, []).append((fragment.name, span))
    before = {entry["path"]: entry["version"] for entry in baseline.manifest["inputs"]}
    versions = {f.path: (before.get(f.path, ""), f.version) for f in corpus.files}
    items = [
        Piece(
            plan.path(fragment),
            fragment,
            {s.file: pieces[s.file] for s in fragment.spans},
            {s.file: versions[s.file] for s in fragment.spans},
        )
        for fragment in plan.rows.fragments
        if fragment.spans[0].file in unchanged and not exists(plan.path(fragment))
    ]
    for _ in run_tasks(partial(_assemble, baseline.scores, plan.layout), items):
        pass


def reused_fragments(corpus: Corpus, reuse: Reuse) -> frozenset[int]:
    """Indices of the fragments whose scores are the baseline's."""
    unchanged = frozenset(reuse.changes.reused)
    return frozenset(f.index for f in corpus.fragments if f.spans[0].file in unchanged)


@dataclass(frozen=True)
class Piece:
    """A score file to put together.

    ``sources`` names, for each corpus file, the baseline's score files and the spans in them that
    hold its rows; ``versions`` those of the corpus file in the baseline and now.
    """

    path: str
    fragment: Fragment
    sources: dict[str, list[tuple[str, Span]]]
    versions: dict[str, tuple[str, str]]

    def marks(self, known: dict[str, Mark]) -> dict[str, tuple[int, str, str]]:
        """The baseline's checksums of the files that begin here, as the note of now has them."""
        begun = {span.file for span in self.fragment.spans if span.start == 0}
        return {
            path: (known[path].size, self.versions[path][1], known[path].checksum)
            for path in sorted(begun & known.keys())
            if known[path].version == self.versions[path][0]
        }


def _assemble(scores: str, layout: pa.Schema, piece: Piece) -> int:
    """Write a fragment's score file from the baseline's; how many rows it has."""
    note: dict[str, Any] = {"rows": 0, "bad": 0, "members": set(), "unread": 0, schema.FILES: {}}
    with (
        atomic_output(piece.path) as stream,
        pq.ParquetWriter(stream, layout, use_dictionary=list(schema.REPEATED)) as writer,
    ):
        for table in _rows_of(scores, layout, piece.fragment, piece.sources, note):
            note["rows"] += table.num_rows
            note["bad"] += table.num_rows - table[schema.ERROR].null_count
            writer.write_table(table.unify_dictionaries())
        stored = {
            **note,
            "members": sorted(note["members"]),
            schema.FILES: piece.marks(note[schema.FILES]),
        }
        writer.add_key_value_metadata({schema.NOTE.decode(): json.dumps(stored)})
    return int(note["rows"])


def _rows_of(
    scores: str,
    layout: pa.Schema,
    fragment: Fragment,
    pieces: dict[str, list[tuple[str, Span]]],
    note: dict[str, Any],
) -> Iterator[pa.Table]:
    held: tuple[str, pa.Table] | None = None
    tables: list[pa.Table] = []
    for span in fragment.spans:
        found = 0
        for name, old in pieces[span.file]:
            if not _overlap(span, old):
                continue
            if held is None or held[0] != name:
                held = (name, _read(join(scores, f"{name}.parquet"), layout, note))
            part = held[1].filter(_within(held[1], span))
            found += part.num_rows
            tables.append(part)
        if span.rows and found != span.rows:
            raise BadDataError(
                f"{redact(scores)}: {found:,} of {span.rows:,} scores of {span.file}; "
                "the baseline is damaged, run without --baseline"
            )
    yield pa.concat_tables(tables) if tables else layout.empty_table()


def _overlap(span: Span, old: Span) -> bool:
    if not span.rows or not old.rows:
        return True
    return span.start < old.start + old.rows and old.start < span.start + span.rows


def _within(table: pa.Table, span: Span) -> pa.ChunkedArray:
    chosen = pc.equal(table[schema.FILE].cast(pa.string()), span.file)
    if not span.rows:
        return chosen
    row = table[schema.ROW].fill_null(span.start)
    inside = pc.and_(pc.greater_equal(row, span.start), pc.less(row, span.start + span.rows))
    return pc.and_(chosen, inside)


def _read(path: str, layout: pa.Schema, note: dict[str, Any]) -> pa.Table:
    with open_input(path) as file:
        parquet = pq.ParquetFile(file)
        stored = json.loads(parquet.metadata.metadata[schema.NOTE])
        table = parquet.read(columns=layout.names, use_threads=False)
    note["members"].update(stored["members"])
    note[schema.FILES].update(marks_in(stored))
    note["unread"] += int(stored.get("unread", 0))
    return table.select(layout.names).cast(layout)
