"""Identities of rows: fixed for ever, independent of storage type and of neighbours."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataprune_ray.io.identity import as_keys, file_seed, key_hashes, position_hashes


def test_identities_never_change():
    assert file_seed("a/b.parquet") == 1982136973553194554
    assert position_hashes("a/b.parquet", 3, 2).tolist() == [
        18258103022321462519,
        908676496216116263,
    ]
    assert key_hashes(pa.array(["", "7", "é", "a" * 100])).tolist() == [
        10664028614592684473,
        13962122728259188291,
        14060933722543920743,
        5559981826905125546,
    ]


@given(st.text(max_size=20), st.integers(0, 2**40), st.integers(0, 50), st.integers(0, 50))
def test_a_position_has_one_identity_however_it_is_reached(file, start, before, rows):
    whole = position_hashes(file, start, before + rows)
    assert whole.dtype == np.uint64
    assert np.array_equal(whole[before:], position_hashes(file, start + before, rows))


def test_positions_and_files_are_told_apart():
    rows = np.concatenate([position_hashes(f"{i}.parquet", 0, 2000) for i in range(5)])
    assert len(np.unique(rows)) == 10_000
    bits = np.unpackbits(rows.view(np.uint8)).reshape(len(rows), 64).mean(axis=0)
    assert np.abs(bits - 0.5).max() < 0.03


def test_a_file_name_that_is_not_unicode_has_a_seed():
    assert file_seed(b"\xff.tar".decode("utf-8", "surrogateescape")) >= 0


NUMBERS = [7, 0, -3, 12345678901, None]
TEXTS = ["7", "0", "-3", "12345678901", None]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(NUMBERS, pa.int64()),
        pa.array(TEXTS, pa.string()),
        pa.array(TEXTS, pa.large_string()),
        pa.array([t and t.encode() for t in TEXTS], pa.binary()),
        pa.array([t and t.encode() for t in TEXTS], pa.large_binary()),
        pa.array(TEXTS).dictionary_encode(),
        pa.array(["x", *TEXTS]).slice(1),
        pa.array([b"x", *(t and t.encode() for t in TEXTS)]).slice(1),
    ],
    ids=lambda column: str(column.type),
)
def test_a_key_is_its_text_whatever_its_type(column):
    keys = as_keys(column)
    assert keys.type == pa.string()
    assert keys.to_pylist() == TEXTS
    hashes = key_hashes(keys.fill_null(""))
    assert np.array_equal(hashes, key_hashes(pa.array(TEXTS).fill_null("")))


def test_the_largest_unsigned_key_is_exact():
    assert as_keys(pa.array([2**64 - 1], pa.uint64())).to_pylist() == [str(2**64 - 1)]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.string(), pa.binary(2)])
def test_bytes_that_are_no_text_leave_their_neighbours_alone(kind):
    raw = pa.array([b"ab", b"\xff\x00", None, b"cd"], kind if kind == pa.binary(2) else pa.binary())
    column = raw if kind == pa.binary(2) else raw.cast(pa.large_binary()).cast(pa.binary())
    if pa.types.is_string(kind):
        column = pa.Array.from_buffers(kind, 4, column.buffers())
    elif kind == pa.large_binary():
        column = column.cast(kind)
    keys = as_keys(column)
    assert keys.to_pylist() == ["ab", "\\xff\x00", None, "cd"]
    clean = key_hashes(pa.array(["ab", "cd"]))
    assert key_hashes(keys.fill_null(""))[[0, 3]].tolist() == clean.tolist()


@pytest.mark.parametrize("values", [[1.5], [[1]], [{"a": 1}]])
def test_a_key_without_an_exact_text_is_refused(values):
    with pytest.raises(pa.ArrowInvalid, match="strings or integers"):
        as_keys(pa.array(values))


@given(st.lists(st.text(max_size=30), max_size=30))
def test_a_key_hash_depends_on_the_key_alone(keys):
    together = key_hashes(pa.array(keys, pa.string()))
    assert together.dtype == np.uint64
    alone = [int(key_hashes(pa.array([key]))[0]) for key in keys]
    assert together.tolist() == alone
    assert len(set(alone)) == len(set(keys))
