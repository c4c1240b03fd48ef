"""Thrift's compact protocol: trees and bytes."""

import io

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataprune_ray.io.compact import (
    BINARY,
    BYTE,
    DOUBLE,
    FALSE,
    I16,
    I32,
    I64,
    LIST,
    MAP,
    SET,
    STRUCT,
    TRUE,
    Field,
    Items,
    Pairs,
    decode,
    encode,
)

PLAIN = {
    I16: st.integers(-(2**15), 2**15 - 1),
    I32: st.integers(-(2**31), 2**31 - 1),
    I64: st.integers(-(2**63), 2**63 - 1),
    BYTE: st.integers(0, 255),
    DOUBLE: st.floats(allow_nan=False),
    BINARY: st.binary(max_size=300),
}


def of_kind(kinds, make):
    return st.sampled_from(sorted(kinds)).flatmap(lambda kind: make(kind, kinds[kind]))


def fields(values):
    booleans = st.booleans().map(lambda value: Field(TRUE if value else FALSE, value))
    others = of_kind(values, lambda kind, value: value.map(lambda v: Field(kind, v)))
    return st.dictionaries(st.integers(1, 2**15 - 1), booleans | others, max_size=6)


def nested(values):
    elements = {**values, TRUE: st.booleans()}
    items = of_kind(
        elements, lambda kind, v: st.lists(v, max_size=20).map(lambda found: Items(kind, found))
    )
    keys = of_kind(
        PLAIN,
        lambda key, k: of_kind(
            elements,
            lambda kind, v: st.lists(st.tuples(k, v), min_size=1, max_size=4).map(
                lambda found: Pairs(key, kind, found)
            ),
        ),
    )
    empty = st.just(Pairs(0, 0, []))
    return {**values, LIST: items, SET: items, MAP: keys | empty, STRUCT: fields(values)}


@given(fields(nested(nested(PLAIN))))
def test_a_tree_survives(tree):
    again = decode(encode(tree))
    assert again == tree
    assert list(again) == list(tree)


def test_known_bytes():
    """From the specification: zigzag, a short and a long field header, a list, a boolean."""
    tree = {
        1: Field(I32, -1),
        16: Field(TRUE, True),
        40: Field(BINARY, b"ab"),
        41: Field(LIST, Items(I64, [0, 150])),
    }
    assert encode(tree) == bytes.fromhex("1501 f1 0850026162 19260 0ac02 00".replace(" ", ""))


def arrow_footer(**options):
    sink = io.BytesIO()
    table = pa.table(
        {
            "a": np.arange(100),
            "b": [["x", None], [], None, ["y"]] * 25,
            "c": [{"p": 1.5}, None] * 50,
        }
    )
    pq.write_table(table, sink, row_group_size=30, **options)
    return sink.getvalue()


def duckdb_footer(path):
    with duckdb.connect() as connection:
        connection.execute(
            "copy (select range a, [range::varchar] b, {'c': range} d from range(50000)) "
            f"to '{path}' (format parquet, row_group_size 2048)"
        )
    return path.read_bytes()


@pytest.mark.parametrize("options", [{}, {"write_page_index": True, "version": "1.0"}])
def test_footers_of_arrow_and_duckdb_are_written_again_to_the_byte(tmp_path, options):
    for content in (arrow_footer(**options), duckdb_footer(tmp_path / "d.parquet")):
        length = int.from_bytes(content[-8:-4], "little")
        footer = content[-8 - length : -8]
        assert encode(decode(footer)) == footer


@given(st.binary(max_size=200))
def test_any_bytes_are_a_tree_or_refused(content):
    try:
        tree = decode(content)
    except ValueError:
        return
    assert decode(encode(tree)) == tree or "nan" in repr(tree)


@given(st.data())
def test_a_footer_cut_short_is_refused(data):
    content = arrow_footer()
    length = int.from_bytes(content[-8:-4], "little")
    footer = content[-8 - length : -8]
    with pytest.raises(ValueError, match=r"left|protocol"):
        decode(footer[: data.draw(st.integers(0, len(footer) - 1))])


def test_what_is_nested_too_deep_is_refused():
    for nested in (b"\x1c", b"\x19"):  # a struct in a struct, a list in a list
        with pytest.raises(ValueError, match="deep"):
            decode(nested * 5000)
    with pytest.raises(ValueError, match="not one"):
        encode({1: Field(13, b"")})
