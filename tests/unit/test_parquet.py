"""Parquet corpora: discovery, file errors, fragments and row groups."""

from __future__ import annotations

import os
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataprune_ray.config import CorpusConfig
from dataprune_ray.errors import BadDataError, ConfigError, UnknownNameError
from dataprune_ray.io import READERS, get_reader, open_corpus
from dataprune_ray.io.corpus import Fragment, SourceFile, Span, fragment_target, plan_fragments
from dataprune_ray.io.parquet import ParquetReader, compression_of

READER = ParquetReader()


def table(start: int, rows: int) -> pa.Table:
    return pa.table(
        {
            "id": pa.array(range(start, start + rows)),
            "x": pa.array(np.arange(start, start + rows) / 2),
            "name": [f"row {i}" for i in range(start, start + rows)],
        }
    )


def write(root, name: str, content: pa.Table, **options) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content, path, **options)


def read_all(corpus, columns=None, batch_rows=7) -> pa.Table:
    batches = []
    for fragment in corpus.fragments:
        for span in fragment.spans:
            found = list(READER.read(corpus.root, span, columns, batch_rows))
            assert sum(b.num_rows for b in found) == span.rows
            assert all(b.num_rows <= batch_rows for b in found)
            batches += found
    names = columns or corpus.schema.names
    return pa.concat_tables(pa.Table.from_batches([b]).select(names) for b in batches)


def opened(root, **settings):
    return open_corpus(CorpusConfig(input=str(root), **settings))


def test_nested_folders_are_read_in_path_order(tmp_path):
    write(tmp_path, "b/2.parquet", table(20, 10), row_group_size=3)
    write(tmp_path, "a.parquet", table(0, 10))
    write(tmp_path, "b/1.pq", table(10, 10), row_group_size=4)
    write(tmp_path, "_meta/x.parquet", table(100, 5))
    (tmp_path / "README.md").write_text("hello")
    corpus = opened(tmp_path)
    assert corpus.format == "parquet"
    assert [f.path for f in corpus.files] == ["a.parquet", "b/1.pq", "b/2.parquet"]
    assert [f.groups for f in corpus.files] == [(10,), (4, 4, 2), (3, 3, 3, 1)]
    assert corpus.rows == 30
    assert corpus.size == sum(f.size for f in corpus.files)
    assert read_all(corpus).equals(table(0, 30))
    assert read_all(corpus, ["name"])["name"].to_pylist() == table(0, 30)["name"].to_pylist()
    for rows in (1, 5, 12):
        assert read_all(opened(tmp_path, fragment_rows=rows)).equals(table(0, 30))


def test_a_single_file_is_a_corpus(tmp_path):
    write(tmp_path, "one.parquet", table(0, 9), row_group_size=2)
    corpus = opened(tmp_path / "one.parquet", fragment_rows=4)
    assert [f.path for f in corpus.files] == ["one.parquet"]
    assert read_all(corpus).equals(table(0, 9))


def test_column_order_and_encoding_may_differ(tmp_path):
    first, second, third = table(0, 5), table(5, 5), table(10, 5)
    write(tmp_path, "1.parquet", first)
    write(tmp_path, "2.parquet", second.select(["name", "id", "x"]))
    encoded = third.set_column(2, "name", third["name"].dictionary_encode())
    write(tmp_path, "3.parquet", encoded)
    wide = table(15, 5).set_column(2, "name", table(15, 5)["name"].cast(pa.large_string()))
    write(tmp_path, "4.parquet", wide)
    corpus = opened(tmp_path)
    assert [f.error for f in corpus.files] == [None] * 4
    ids = [i for b in batches_of(corpus) for i in b["id"].to_pylist()]
    assert ids == list(range(20))
    names = [n for b in batches_of(corpus) for n in b["name"].to_pylist()]
    assert names == table(0, 20)["name"].to_pylist()


def batches_of(corpus):
    for fragment in corpus.fragments:
        for span in fragment.spans:
            yield from READER.read(corpus.root, span, None, 100)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.drop_columns(["x"]), r"missing \['x'\], unexpected \[\]"),
        (lambda t: t.append_column("y", t["x"]), r"missing \[\], unexpected \['y'\]"),
        (lambda t: t.rename_columns(["id", "X", "name"]), r"missing \['x'\], unexpected \['X'\]"),
        (
            lambda t: t.set_column(1, "x", t["x"].cast(pa.float32())),
            "column 'x' is float, the corpus has double",
        ),
        (
            lambda t: t.set_column(0, "id", t["name"].dictionary_encode()),
            "column 'id' is dictionary",
        ),
    ],
)
def test_a_file_with_other_columns_is_an_error_of_known_length(tmp_path, change, reason):
    write(tmp_path, "1.parquet", table(0, 5))
    write(tmp_path, "2.parquet", change(table(5, 6)), row_group_size=2)
    write(tmp_path, "3.parquet", table(11, 4))
    corpus = opened(tmp_path)
    first, second, third = corpus.files
    assert first.error is third.error is None
    assert re.search(reason, second.error)
    spans = [s for f in corpus.fragments for s in f.spans if s.file == "2.parquet"]
    assert [(s.start, s.rows, s.error) for s in spans] == [(0, 6, second.error)]
    assert corpus.rows == 15


@pytest.mark.parametrize("damage", ["truncated", "empty", "magic", "garbage"])
def test_an_unreadable_file_is_an_error(tmp_path, damage):
    write(tmp_path, "1.parquet", table(0, 5))
    write(tmp_path, "2.parquet", table(5, 5))
    path = tmp_path / "2.parquet"
    content = path.read_bytes()
    path.write_bytes(
        {
            "truncated": content[: len(content) // 2],
            "empty": b"",
            "magic": content[:-4] + b"XXXX",
            "garbage": os.urandom(500),
        }[damage]
    )
    corpus = opened(tmp_path)
    assert corpus.files[0].error is None
    assert corpus.files[1].error.startswith("unreadable file: ")
    assert corpus.files[1].groups is None
    assert [s.error is None for f in corpus.fragments for s in f.spans] == [True, False]


def test_a_corpus_of_which_nothing_can_be_read_is_bad_data(tmp_path):
    (tmp_path / "1.parquet").write_bytes(b"nothing")
    with pytest.raises(BadDataError, match=r"input=.*no file can be read"):
        opened(tmp_path)


def test_a_file_without_rows_has_no_say_in_the_schema(tmp_path):
    write(tmp_path, "1.parquet", pa.table({"other": pa.array([], pa.int8())}))
    write(tmp_path, "2.parquet", table(0, 3))
    write(tmp_path, "3.parquet", table(0, 0))
    corpus = opened(tmp_path)
    assert [f.error for f in corpus.files] == [None] * 3
    assert corpus.schema.equals(table(0, 3).schema)
    assert corpus.rows == 3
    assert read_all(corpus).equals(table(0, 3))


def test_files_without_rows_give_no_fragment(tmp_path):
    write(tmp_path, "1.parquet", table(0, 0))
    corpus = opened(tmp_path)
    assert corpus.rows == 0
    assert corpus.fragments == ()
    write(tmp_path, "2.parquet", table(0, 3))
    assert read_all(opened(tmp_path)).equals(table(0, 3))


@pytest.mark.parametrize("batch_rows", [1, 7, 10, 25, 1000])
@pytest.mark.parametrize("damaged", [0, 2, 4])
def test_damage_costs_no_row_group_before_it(tmp_path, batch_rows, damaged):
    write(tmp_path, "a.parquet", table(0, 50), row_group_size=10, compression="none")
    path = tmp_path / "a.parquet"
    span = opened(tmp_path).fragments[0].spans[0]
    content = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(damaged).column(1).data_page_offset
    content[start : start + 40] = b"\xff" * 40
    path.write_bytes(content)
    ids = []

    def consume():
        for batch in READER.read(str(tmp_path), span, None, batch_rows):
            ids.extend(batch["id"].to_pylist())

    with pytest.raises(OSError, match=r"."):
        consume()
    assert ids == list(range(damaged * 10))


def test_narrow_reads_the_row_groups_that_overlap(tmp_path):
    write(tmp_path, "a.parquet", table(0, 50), row_group_size=10)
    span = opened(tmp_path).fragments[0].spans[0]
    assert span == Span("a.parquet", 0, 50, (0, 5))
    for first in range(0, 50, 3):
        for last in range(first, 50, 4):
            part = READER.narrow(str(tmp_path), span, first, last)
            ids = [
                i
                for b in READER.read(str(tmp_path), part, ["id"], 100)
                for i in b["id"].to_pylist()
            ]
            assert ids == list(range(first // 10 * 10, last // 10 * 10 + 10))
            assert (part.start, part.rows) == (ids[0], len(ids))
    tail = Span("a.parquet", 30, 20, (3, 5))
    assert READER.narrow(str(tmp_path), tail, 42, 43) == Span("a.parquet", 40, 10, (4, 5))
    nothing = READER.narrow(str(tmp_path), tail, 0, 5)
    assert nothing.rows == 0
    assert list(READER.read(str(tmp_path), nothing, None, 10)) == []
    unreadable = Span("a.parquet", error="x")
    assert READER.narrow(str(tmp_path), unreadable, 0, 0) is unreadable


@pytest.mark.parametrize("codec", ["none", "snappy", "zstd", "gzip"])
def test_the_codec_is_named_as_writers_name_it(tmp_path, codec):
    write(tmp_path, "a.parquet", table(0, 5), compression=codec)
    assert compression_of(str(tmp_path), "a.parquet") == codec
    pq.ParquetWriter(tmp_path / "b.parquet", table(0, 1).schema, compression=codec).close()
    assert compression_of(str(tmp_path), "b.parquet") == "snappy"


# What is opened


def test_several_formats_have_to_be_chosen_from(tmp_path):
    write(tmp_path, "a.parquet", table(0, 5))
    (tmp_path / "b.tar").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"format='auto': .*'parquet': 1, 'webdataset': 1"):
        opened(tmp_path)
    assert opened(tmp_path, format="parquet").rows == 5


@pytest.mark.parametrize(
    ("settings", "suffix"), [({}, ".parquet"), ({"format": "webdataset"}, ".tar.gz")]
)
def test_a_folder_without_such_files_is_refused(tmp_path, settings, suffix):
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(ConfigError, match=f"input='.*': no .* files .*{suffix}"):
        opened(tmp_path, **settings)


def test_an_unknown_format_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"format='csv'.*parquet, webdataset"):
        get_reader("csv")
    assert all(get_reader(name) is reader for name, reader in READERS.items())


def test_the_fingerprint_follows_the_files(tmp_path):
    write(tmp_path, "a.parquet", table(0, 5))
    before = opened(tmp_path).fingerprint()
    assert opened(tmp_path, fragment_rows=1).fingerprint() == before
    os.utime(tmp_path / "a.parquet", ns=(1, 1))
    changed = opened(tmp_path).fingerprint()
    (tmp_path / "a.parquet").rename(tmp_path / "b.parquet")
    assert len({before, changed, opened(tmp_path).fingerprint()}) == 3


# Fragments


@st.composite
def file_lists(draw):
    groups = st.none() | st.lists(st.integers(0, 30), max_size=6).map(tuple)
    found = []
    for i in range(draw(st.integers(0, 8))):
        error = draw(st.sampled_from([None, None, None, "broken"]))
        found.append(SourceFile(f"{i}.x", 1, "v", draw(groups), error))
    return found


@given(file_lists(), st.integers(1, 50))
def test_every_row_is_in_exactly_one_span(files, target):
    fragments = plan_fragments(files, target)
    assert [f.index for f in fragments] == list(range(len(fragments)))
    assert len({f.name for f in fragments}) == len(fragments)
    spans = [span for fragment in fragments for span in fragment.spans]
    order = [file.path for file in files]
    assert [s.file for s in spans] == sorted((s.file for s in spans), key=order.index)
    for file in files:
        own = [s for s in spans if s.file == file.path]
        if file.error is not None:
            assert [(s.rows, s.error) for s in own] == [(file.rows or 0, "broken")]
        elif file.groups is None:
            assert own == [Span(file.path)]
        else:
            covered = [i for s in own for i in range(s.start, s.start + s.rows)]
            assert covered == list(range(file.rows))
            for s in own:
                assert sum(file.groups[slice(*s.groups)]) == s.rows
                assert sum(file.groups[: s.groups[0]]) == s.start
    for fragment in fragments:
        assert fragment.spans
        if any(s.rows is None for s in fragment.spans):
            assert len(fragment.spans) == 1
            assert fragment.rows is None
        else:
            sizes = [s.rows for s in fragment.spans]
            assert fragment.rows == sum(sizes)
            assert sum(sizes) <= target or len([n for n in sizes if n]) == 1
    assert plan_fragments(files, target) == fragments
    assert [Fragment.from_json(f.to_json()) for f in fragments] == list(fragments)


def test_small_files_are_joined_and_large_ones_split():
    small = [SourceFile(f"{i}", 1, "v", (10,)) for i in range(10)]
    assert [f.rows for f in plan_fragments(small, 35)] == [30, 30, 30, 10]
    large = [SourceFile("a", 1, "v", (10,) * 10)]
    assert [f.rows for f in plan_fragments(large, 35)] == [30, 30, 30, 10]
    assert [f.rows for f in plan_fragments(large, 5)] == [10] * 10


def test_the_name_of_a_fragment_follows_its_rows():
    files = [SourceFile("a", 1, "v", (10,) * 4)]
    first, second = plan_fragments(files, 20)
    assert first.name[:7] == "000000-"
    assert first.name == plan_fragments(files, 20)[0].name
    assert first.name != plan_fragments(files, 30)[0].name
    assert first.name[7:] != second.name[7:]


@given(st.integers(0, 10**10))
def test_the_size_of_fragments_suits_the_corpus(rows):
    target = fragment_target([SourceFile("a", 1, "v", (rows,)), SourceFile("b", 1, "v")])
    assert 1024 <= target <= 65_536
    assert target.bit_count() == 1
    if rows >= 16 * 1024:
        assert rows / target >= 16
