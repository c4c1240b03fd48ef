"""Reuse by file: fragments kept apart, files compared, score files put together row by row."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataprune_ray import schema
from dataprune_ray.baseline import Baseline
from dataprune_ray.errors import BadDataError, ConfigError
from dataprune_ray.incremental import Piece, _assemble, compare, hold_to
from dataprune_ray.io.checksums import Mark
from dataprune_ray.io.corpus import Corpus, SourceFile, plan_fragments
from dataprune_ray.io.output import Output

LAYOUT = schema.score_schema(pa.int64(), ["el2n"])


def source(path, rows, version="1", group=10):
    groups = tuple(min(group, rows - start) for start in range(0, rows, group))
    return SourceFile(path, 100 + rows, version, groups)


def baseline(root, files, target=30):
    fragments = plan_fragments(files, target)
    inputs = [
        {k: getattr(f, k) for k in ("path", "size", "version", "rows", "error")} for f in files
    ]
    plan = {"fragments": [fragment.to_json() for fragment in fragments]}
    return Baseline(str(root), {}, {"inputs": inputs}, plan, "digest")


def write_scores(found, members=(), unread=0, checksum="c", version="1"):
    sizes = {entry["path"]: entry["size"] for entry in found.manifest["inputs"]}
    for fragment in found.fragments:
        rows = [(s.file, s.start + i) for s in fragment.spans for i in range(s.rows)]
        table = pa.table(
            {
                "file": pa.array([f for f, _ in rows]).dictionary_encode(),
                "row": [r for _, r in rows],
                "key": pa.nulls(len(rows), pa.string()),
                "row_hash": pa.array([hash((f, r)) % 2**60 for f, r in rows], pa.uint64()),
                "label": [r % 3 for _, r in rows],
                "el2n": pa.array([r / 100 for _, r in rows], pa.float32()),
                "error": pa.array(["bad" if r == 7 else None for _, r in rows], pa.string()),
            }
        ).cast(LAYOUT)
        begun = [s.file for s in fragment.spans if s.start == 0]
        marks = {name: (sizes[name], version, f"{checksum} {name}") for name in begun}
        note = {"rows": len(rows), "bad": 0, "members": list(members), "unread": unread}
        note[schema.FILES] = marks
        table = table.replace_schema_metadata({schema.NOTE: json.dumps(note)})
        pq.write_table(table, f"{found.scores}/{fragment.name}.parquet")


def corpus(files):
    return Corpus("root", "parquet", pa.schema([]), tuple(files), ())


def test_files_kept_apart_share_no_fragment():
    files = [source(f"{i}.parquet", 5) for i in range(8)]
    apart = frozenset({"2.parquet", "3.parquet", "6.parquet"})
    plan = plan_fragments(files, 1000, apart)
    spans = [[s.file[0] for s in f.spans] for f in plan]
    assert spans == [["0", "1"], ["2", "3"], ["4", "5"], ["6"], ["7"]]
    assert [f.index for f in plan] == list(range(5))
    assert plan_fragments(files, 1000, frozenset(f.path for f in files)) == plan_fragments(
        files, 1000
    )


def test_files_are_compared_by_path_size_version_rows_and_error(tmp_path):
    before = [source(name, 20) for name in "abcde"] + [source("empty", 0)]
    now = [before[0], source("b", 21), replace(before[2], version="2"), before[5]]
    now += [replace(before[4], error="columns differ"), source("n", 3)]
    found = compare(baseline(tmp_path, before), corpus(sorted(now, key=lambda f: f.path)))
    assert found.reused == ("a", "empty")
    assert found.changed == ("b", "c", "e")
    assert (found.new, found.vanished) == (("n",), ("d",))


def test_files_with_other_times_are_compared_by_content(tmp_path, monkeypatch):
    (tmp_path / "scores").mkdir()
    before = [source(name, 20) for name in "abcde"] + [source("empty", 0)]
    found = baseline(tmp_path, before)
    write_scores(found)
    now = [replace(f, version="2") for f in before]
    now[4] = replace(now[4], size=7)
    asked = []

    def mark(root, path):
        asked.append((root, path))
        return {
            "a": Mark(120, "2", "c a"),
            "b": Mark(120, "2", "of other content"),
            "c": Mark(120, "3", "c c"),  # written again since it was listed
            "d": None,
        }[path]

    monkeypatch.setattr("dataprune_ray.io.checksums.mark", mark)
    changes = compare(found, corpus(now))
    assert changes.reused == ("a", "empty")
    assert changes.changed == ("b", "c", "d", "e")
    assert sorted(asked) == [("root", name) for name in "abcd"]


def test_a_checksum_of_another_version_than_the_listed_one_proves_nothing(tmp_path, monkeypatch):
    (tmp_path / "scores").mkdir()
    found = baseline(tmp_path, [source("a", 20)])
    write_scores(found, version="another")
    monkeypatch.setattr("dataprune_ray.io.checksums.mark", lambda *_: Mark(120, "2", "c a"))
    assert compare(found, corpus([source("a", 20, version="2")])).changed == ("a",)


@pytest.mark.parametrize("target", [10, 25, 30, 70, 1000])
def test_score_files_are_put_together_for_other_fragments(tmp_path, target):
    files = [source("a", 64), source("b", 5), source("c", 6), source("d", 100)]
    (tmp_path / "scores").mkdir()
    found = baseline(tmp_path, files)
    write_scores(found, members=["png"], unread=2)
    pieces = {}
    for fragment in found.fragments:
        for span in fragment.spans:
            pieces.setdefault(span.file, []).append((fragment.name, span))
    rows, marks = [], {}
    for fragment in plan_fragments([files[0], files[2], files[3]], target):
        path = str(tmp_path / f"{fragment.name}.parquet")
        chosen = {s.file: pieces[s.file] for s in fragment.spans}
        versions = {"a": ("1", "1"), "c": ("1", "9"), "d": ("0", "0")}
        piece = Piece(path, fragment, chosen, versions)
        assert _assemble(found.scores, LAYOUT, piece) == fragment.rows
        table = pq.read_table(path)
        assert table.schema.equals(LAYOUT)
        note = json.loads(pq.read_metadata(path).metadata[schema.NOTE])
        assert note["bad"] == table["row"].to_pylist().count(7)
        assert (note["members"], note["unread"] > 0) == (["png"], True)
        marks |= note[schema.FILES]
        rows += zip(table["file"].to_pylist(), table["row"].to_pylist(), strict=True)
        assert np.allclose(table["el2n"].to_numpy(), table["row"].to_numpy() / 100)
    # under the version of now; none of "d", whose checksum is not of the version that was listed
    assert marks == {"a": [164, "1", "c a"], "c": [106, "9", "c c"]}
    assert rows == [(f.path, i) for f in (files[0], files[2], files[3]) for i in range(f.rows)]


def test_missing_rows_are_an_error(tmp_path):
    (tmp_path / "scores").mkdir()
    found = baseline(tmp_path, [source("a", 20)])
    write_scores(found)
    (longer,) = plan_fragments([source("a", 25, group=25)], 100)
    pieces = {"a": [(found.fragments[0].name, found.fragments[0].spans[0])]}
    with pytest.raises(BadDataError, match="20 of 25 scores of a"):
        _assemble(found.scores, LAYOUT, Piece(str(tmp_path / "x.parquet"), longer, pieces, {}))
    assert not (tmp_path / "x.parquet").exists()


def test_a_continued_run_is_held_to_its_baseline(tmp_path):
    first = baseline(tmp_path / "base", [source("a", 20)])
    output = Output(str(tmp_path / "out"))
    hold_to(output, first)
    hold_to(output, first)
    with pytest.raises(ConfigError, match=r"baseline=.*changed since this run began"):
        hold_to(output, replace(first, digest="other"))
