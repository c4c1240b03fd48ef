"""Tar shards: grouping by key, and archives that are damaged anywhere."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataprune_ray.config import CorpusConfig
from dataprune_ray.errors import BadDataError
from dataprune_ray.features import FeatureSpec, LabelSpec
from dataprune_ray.io import open_corpus, rows, webdataset
from dataprune_ray.io.corpus import MEMBERS, Fragment, Span
from dataprune_ray.io.repeats import Repeats
from dataprune_ray.io.rows import RowPlan, read_rows
from dataprune_ray.io.webdataset import READ_ERRORS, WebDatasetReader, with_members

READER = WebDatasetReader()
SIX = [(f"s{i}.{e}", f"{i}{e}".encode() * 50) for i in range(6) for e in ("jpg", "cls")]


def archive(members, *, compressed=False, form=tarfile.USTAR_FORMAT, end=True) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                info.type, info.linkname = content.encode(), "s0.jpg"
                tar.addfile(info)
        size = tar.offset
    content = stream.getvalue() if end else stream.getvalue()[:size]
    return gzip.compress(content) if compressed else content


def put(root, content: bytes, name="a.tar"):
    (root / name).write_bytes(content)
    return Span(name)


def rows_of(root, span, columns=None, batch_rows=4):
    return [row for b in READER.read(str(root), span, columns, batch_rows) for row in b.to_pylist()]


def broken_rows(root, span, batch_rows=4):
    """The rows before the damage, and the error."""
    found = []
    try:
        for batch in READER.read(str(root), span, None, batch_rows):
            found += batch["__key__"].to_pylist()
    except READ_ERRORS as error:
        return found, str(error)
    pytest.fail(f"no error, but {len(found)} rows")


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz"])
@pytest.mark.parametrize(
    "form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=str
)
def test_samples_come_in_order_with_their_bytes(tmp_path, name, form):
    long = "f" * 90 + "/" + "g" * 60
    members = [*SIX, (f"{long}.jpg", b"x"), (f"{long}.cls", b"1")]
    span = put(tmp_path, archive(members, compressed=name != "a.tar", form=form), name)
    for batch_rows in (1, 3, 100):
        found = rows_of(tmp_path, span, batch_rows=batch_rows)
        assert [row["__key__"] for row in found] == [*(f"s{i}" for i in range(6)), long]
        assert found[3] == {"__key__": "s3", "jpg": b"3jpg" * 50, "cls": b"3cls" * 50}


@pytest.mark.parametrize(
    ("name", "key", "column"),
    [
        ("a.jpg", "a", "jpg"),
        ("a.seg.png", "a", "seg.png"),
        ("a.JPG", "a", "jpg"),
        ("x.y/a.jpg", "x.y/a", "jpg"),
        ("./x/a.jpg", "x/a", "jpg"),
        ("/abs/a.jpg", "/abs/a", "jpg"),
        ("../up/a.jpg", "../up/a", "jpg"),
        ("é/ü.jpg", "é/ü", "jpg"),
    ],
)
def test_keys_and_columns(tmp_path, name, key, column):
    span = put(tmp_path, archive([(name, b"x")], form=tarfile.PAX_FORMAT))
    assert rows_of(tmp_path, span) == [{"__key__": key, column: b"x"}]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar"]


def test_what_is_no_member_of_a_sample_is_passed_over(tmp_path):
    members = [
        ("folder", tarfile.DIRTYPE.decode()),
        ("s0.jpg", b"0"),
        ("s0.link", tarfile.SYMTYPE.decode()),
        ("s0.hard", tarfile.LNKTYPE.decode()),
        ("s0.fifo", tarfile.FIFOTYPE.decode()),
        (".hidden", b"x"),
        ("._s0.jpg", b"x"),
        ("README", b"x"),
        ("x/.DS_Store", b"x"),
        ("s0.cls", b"1"),
    ]
    span = put(tmp_path, archive(members))
    assert rows_of(tmp_path, span) == [{"__key__": "s0", "jpg": b"0", "cls": b"1"}]


def test_a_missing_member_is_null(tmp_path):
    members = [("a.jpg", b"1"), ("b.cls", b"2"), ("c.jpg", b""), ("c.cls", b"3"), ("c.txt", b"t")]
    span = put(tmp_path, archive(members))
    assert rows_of(tmp_path, span, ["__key__", "jpg", "cls"]) == [
        {"__key__": "a", "jpg": b"1", "cls": None},
        {"__key__": "b", "jpg": None, "cls": b"2"},
        {"__key__": "c", "jpg": b"", "cls": b"3"},
    ]
    assert rows_of(tmp_path, span, ["gone"], batch_rows=2) == [{"gone": None}] * 3


def test_a_repeated_member_starts_a_sample(tmp_path):
    members = [("a.jpg", b"1"), ("a.cls", b"1"), ("a.jpg", b"2"), ("b.jpg", b"3"), ("a.jpg", b"4")]
    span = put(tmp_path, archive(members))
    found = rows_of(tmp_path, span, ["__key__", "jpg", "cls"])
    assert [(r["__key__"], r["jpg"], r["cls"]) for r in found] == [
        ("a", b"1", b"1"),
        ("a", b"2", None),
        ("b", b"3", None),
        ("a", b"4", None),
    ]
    only = rows_of(tmp_path, span, ["cls"])
    assert [r["cls"] for r in only] == [b"1", None, None, None]


def test_the_columns_seen_are_noted_even_if_not_asked_for(tmp_path):
    members = [*SIX, ("t.jpg", b""), ("t.extra", b"")]
    span = put(tmp_path, archive(members))
    batches = list(READER.read(str(tmp_path), span, ["cls"], 3))
    notes = [json.loads(b.schema.metadata[MEMBERS]) for b in batches]
    assert [b.schema.names for b in batches] == [["cls"]] * 3
    assert notes[0] == ["cls", "jpg"]
    assert notes[-1] == ["cls", "extra", "jpg"]
    schema = with_members(pa.schema([("__key__", pa.string()), ("jpg", pa.binary())]), notes[-1])
    assert schema.names == ["__key__", "jpg", "cls", "extra"]


def test_large_samples_make_small_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset, "_BATCH_BYTES", 450)
    span = put(tmp_path, archive(SIX))
    sizes = [b.num_rows for b in READER.read(str(tmp_path), span, None, 100)]
    assert sizes == [2, 2, 2]


def test_names_that_are_not_unicode_are_escaped(tmp_path):
    raw = archive([("aXb.jpg", b"1"), ("c.jpg", b"2")], form=tarfile.GNU_FORMAT)
    header = bytearray(raw[:512])
    header[1] = 0xFF
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    span = put(tmp_path, bytes(header) + raw[512:])
    assert [row["__key__"] for row in rows_of(tmp_path, span)] == ["a\\xffb", "c"]


# Keys that come twice


def plan_of(root, **changes):
    schema = pa.schema([("__key__", pa.string()), ("cls", pa.binary()), ("uid", pa.binary())])
    label = LabelSpec("cls", classes=("0", "1"))
    values = {"features": FeatureSpec("text", ("uid",), (4,)), "label": label, "fragments": ()}
    return RowPlan(str(root), "webdataset", schema, **{**values, **changes})


def test_a_row_that_repeats_a_key_is_an_error_wherever_the_first_one_lies(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "_MOST_ROWS", 32)
    rng = np.random.default_rng(4)
    keys = [f"k{n}" for n in rng.integers(0, 300, 500)]
    members = []
    for number, key in enumerate(keys):
        members += [(f"{key}.cls", b"1"), (f"{key}.uid", b"%d" % number)]
    span = put(tmp_path, archive(members))
    put(tmp_path, archive(members[:2]), "other.tar")
    plan = plan_of(tmp_path)
    wanted = {n for n, key in enumerate(keys) if key in keys[:n]}
    batches = list(read_rows(plan, Fragment(0, (span,))))
    errors = {int(b.rows[i]): text for b in batches for i, text in b.errors.items()}
    assert len(wanted) > 100
    assert len(batches) == 16
    assert errors == {n: f"key is repeated in its archive: {keys[n]!r}" for n in wanted}
    hashes = np.concatenate([b.row_hash for b in batches])
    assert len(np.unique(hashes)) == len(keys) == len(hashes)
    (other,) = read_rows(plan, Fragment(1, (Span("other.tar"),)))
    assert not other.errors  # keys are those of one archive
    assert other.row_hash[0] not in hashes
    by_id = read_rows(replace(plan, id_column="uid"), Fragment(0, (span,)))
    assert not any(batch.errors for batch in by_id)


@given(st.lists(st.lists(st.integers(0, 60), max_size=40), max_size=30))
def test_repeats_are_those_of_a_set(batches):
    repeats, seen = Repeats(), set()
    for batch in batches:
        expected = []
        for number in batch:
            expected.append(number in seen)
            seen.add(number)
        assert repeats.mark(np.array(batch, np.uint64)).tolist() == expected
    assert sum(map(len, repeats._runs)) == len(seen)


# Damage


@pytest.mark.parametrize("compressed", [False, True])
def test_an_archive_cut_anywhere_gives_its_whole_samples_and_an_error(tmp_path, compressed):
    """No cut is taken for the end: what follows it would be lost in silence."""
    whole = archive(SIX)
    if compressed:
        content = gzip.compress(whole, 0)
        cuts = range(64, 12 * 1024, 331)
    else:
        content = whole
        cuts = [*range(1, 12 * 1024, 256), 12 * 1024]
    for cut in cuts:
        name = "a.tar.gz" if compressed else "a.tar"
        span = put(tmp_path, content[:cut], name)
        keys, reason = broken_rows(tmp_path, span)
        assert keys == [f"s{i}" for i in range(len(keys))]
        assert reason
        if not compressed:
            assert len(keys) == max((cut - 1) // 2048, 0) - ((cut - 1) % 2048 < 512 and cut > 2048)


def test_an_archive_without_its_end_mark_was_cut_short(tmp_path):
    span = put(tmp_path, archive(SIX, end=False))
    keys, reason = broken_rows(tmp_path, span)
    assert keys == [f"s{i}" for i in range(5)]
    assert "empty header at byte 12288" in reason


def test_padding_after_the_end_is_fine_and_data_is_not(tmp_path):
    span = put(tmp_path, archive(SIX) + bytes(100_000))
    assert len(rows_of(tmp_path, span)) == 6
    span = put(tmp_path, archive(SIX) + archive(SIX))
    keys, reason = broken_rows(tmp_path, span)
    assert len(keys) == 6
    assert "data after the end" in reason
    span = put(tmp_path, archive([]))
    assert rows_of(tmp_path, span) == []


@pytest.mark.parametrize("place", range(0, 12, 2))
@pytest.mark.parametrize("value", [b"\xff", b"7"])
def test_a_damaged_header_is_not_the_end(tmp_path, place, value):
    content = bytearray(archive(SIX))
    content[place * 1024 + 150 : place * 1024 + 151] = value
    span = put(tmp_path, bytes(content))
    keys, reason = broken_rows(tmp_path, span)
    assert keys == [f"s{i}" for i in range(max(place // 2 - 1, 0))]
    assert reason


def test_a_header_of_zeros_is_not_the_end(tmp_path):
    content = bytearray(archive(SIX))
    content[6 * 1024 : 6 * 1024 + 512] = bytes(512)
    keys, reason = broken_rows(tmp_path, put(tmp_path, bytes(content)))
    assert keys == ["s0", "s1", "s2"]
    assert "data after the end" in reason


def test_a_member_beyond_the_limit_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset, "MAX_MEMBER_BYTES", 100)
    members = [("a.jpg", b"1"), ("b.jpg", bytes(101)), ("c.jpg", b"3")]
    span = put(tmp_path, archive(members))
    assert broken_rows(tmp_path, span)[1] == "member 'b.jpg' has 101 bytes, the limit is 100"
    assert len(rows_of(tmp_path, span, ["__key__"])) == 3


# Discovery


def opened(root, **settings):
    return open_corpus(CorpusConfig(input=str(root), **settings))


def test_the_columns_are_those_of_the_first_samples(tmp_path):
    put(tmp_path, archive(SIX), "b.tar")
    put(tmp_path, archive([("x.txt", b"1")], compressed=True), "a.tar.gz")
    corpus = opened(tmp_path)
    assert corpus.format == "webdataset"
    assert corpus.schema.names == ["__key__", "cls", "jpg", "txt"]
    assert [f.path for f in corpus.files] == ["a.tar.gz", "b.tar"]
    assert [f.spans for f in corpus.fragments] == [(Span("a.tar.gz"),), (Span("b.tar"),)]
    assert corpus.rows is None


def test_a_first_shard_that_cannot_be_read_is_an_error(tmp_path):
    put(tmp_path, b"nothing", "a.tar")
    put(tmp_path, archive(SIX), "b.tar")
    corpus = opened(tmp_path)
    assert corpus.files[0].error.startswith("unreadable archive: ")
    assert corpus.files[1].error is None
    assert corpus.schema.names == ["__key__", "cls", "jpg"]


def test_nothing_readable_is_bad_data(tmp_path):
    put(tmp_path, b"nothing")
    with pytest.raises(BadDataError, match="no sample can be read"):
        opened(tmp_path)


def test_an_archive_cannot_be_narrowed():
    assert READER.narrow("x", Span("a.tar"), 3, 4) == Span("a.tar")
