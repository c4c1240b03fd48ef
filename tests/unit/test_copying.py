"""Kept rows copied row group by row group, against a plain filter."""

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataprune_ray.errors import BadDataError
from dataprune_ray.io.copying import (
    Style,
    in_order,
    is_movable,
    open_source,
    pieces_of,
    plan_units,
    produce,
)
from dataprune_ray.io.corpus import Span
from dataprune_ray.io.rowgroups import Joiner, dictionary_columns

ROWS = 200
CODECS = ["none", "snappy", "gzip", "brotli", "zstd", "lz4"]


def source_table(rows=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    texts = [None if i % 7 == 0 else f"text {i % 5}" for i in range(rows)]
    return pa.table(
        {
            "id": np.arange(rows),
            "image": pa.array([rng.bytes(int(n)) for n in rng.integers(0, 50, rows)], pa.binary()),
            "text": texts,
            "coded": pa.array(texts).dictionary_encode(),
            "x": pa.array(rng.random(rows), mask=rng.random(rows) < 0.3),
            "tags": [None if i % 6 == 0 else [f"t{j}" for j in range(i % 4)] for i in range(rows)],
            "struct": [{"bytes": b"b" * (i % 3), "path": None} for i in range(rows)],
            "deep": ([[[1, None], []], None, []] * rows)[:rows],
            "grid": pa.array([[i, i + 1.5] for i in range(rows)], pa.list_(pa.float32(), 2)),
            "day": pa.array(np.arange(rows, dtype=np.int32), pa.date32()),
            "when": pa.array(np.arange(rows), pa.timestamp("us", "UTC")),
            "amount": pa.array(np.arange(rows)).cast(pa.decimal128(21, 2)),
            "nothing": pa.nulls(rows, pa.string()),
        }
    ).replace_schema_metadata({"huggingface": "{}"})


def bounds_of(metadata):
    return np.cumsum([0, *(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))])


def copied(paths, masks, rows, compression="snappy", threads=1, move=True):
    """The kept rows of files as the bytes of a part, and how many row groups were taken as is."""
    style = Style(pq.read_schema(paths[0]), compression, rows)
    like = style.empty()
    pieces = []
    for path, mask in zip(paths, masks, strict=True):
        source = open_source(str(path.parent), path.name)
        span = Span(path.name, 0, len(mask), (0, source.footer.metadata.num_row_groups))
        pieces += pieces_of(source, span, np.flatnonzero(mask))
    units = list(
        plan_units(pieces, lambda piece: move and is_movable(piece, like, compression), rows)
    )
    content = bytearray()
    joiner = Joiner(content.extend, like)
    for groups in in_order(lambda unit: produce(unit, style, threads), units, threads):
        for group in groups:
            joiner.append(group)
    joiner.close()
    return bytes(content), sum(unit.as_it_is for unit in units)


def statistics(metadata, group):
    found = {}
    for i in range(metadata.num_columns):
        column = metadata.row_group(group).column(i)
        stats = column.statistics
        has = stats is not None and stats.has_min_max
        found[column.path_in_schema] = (
            column.num_values,
            None if stats is None else stats.null_count,
            (stats.min, stats.max) if has else None,
        )
    return found


def plain(table):
    """Without a dictionary, whose values may stand in any order."""
    at = table.schema.get_field_index("coded")
    return table.set_column(at, "coded", table["coded"].cast(pa.string()))


def assert_sound(content, expected, path, layout):
    """Read by pyarrow, DuckDB and pandas: equal data; offsets and statistics are the rows' own."""
    path.write_bytes(content)
    read = pq.read_table(path)
    assert plain(read).equals(plain(expected))
    assert read.schema.equals(layout, check_metadata=True)
    frames = [
        frame.astype({"coded": object}) for frame in (pd.read_parquet(path), expected.to_pandas())
    ]
    pd.testing.assert_frame_equal(*frames)
    with duckdb.connect() as connection:
        rows = connection.execute(
            f"select id, text, coded, x, tags, image, struct, deep from '{path}'"
        ).fetchall()
    wanted = expected.select(["id", "text", "coded", "x", "tags", "image", "struct", "deep"])
    assert rows == [tuple(row.values()) for row in wanted.to_pylist()]
    file = pq.ParquetFile(path)
    bounds = bounds_of(file.metadata)
    assert file.metadata.num_rows == bounds[-1] == len(expected)
    for group in range(file.num_row_groups):
        rows = expected.slice(bounds[group], bounds[group + 1] - bounds[group])
        assert plain(file.read_row_group(group)).equals(plain(rows))
        again = pa.BufferOutputStream()
        pq.write_table(rows, again)
        assert statistics(file.metadata, group) == statistics(
            pq.read_metadata(pa.BufferReader(again.getvalue())), 0
        )


@settings(max_examples=25)
@given(st.data())
def test_any_kept_rows_are_those_of_a_plain_filter(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("any")
    codec = data.draw(st.sampled_from(CODECS))
    paths, masks, tables = [], [], []
    for index in range(2):
        paths.append(folder / f"{index}.parquet")
        size = data.draw(st.integers(1, 90))
        tables.append(source_table(seed=index))
        pq.write_table(
            tables[-1],
            paths[-1],
            row_group_size=size,
            compression=data.draw(st.sampled_from([codec, "snappy"])),
            use_dictionary=data.draw(st.booleans()),
            data_page_size=data.draw(st.sampled_from([200, 1 << 20])),
            data_page_version=data.draw(st.sampled_from(["1.0", "2.0"])),
            write_page_index=data.draw(st.booleans()),
        )
        runs = st.tuples(st.booleans(), st.integers(1, 100))
        mask = [kept for kept, n in data.draw(st.lists(runs, max_size=8)) for _ in range(n)]
        masks.append(np.array((mask + [False] * ROWS)[:ROWS], bool))
    rows = data.draw(st.integers(1, 100))
    threads = data.draw(st.integers(1, 3))
    content, _ = copied(paths, masks, rows, codec, threads)
    expected = pa.concat_tables(
        table.filter(pa.array(mask)) for table, mask in zip(tables, masks, strict=True)
    )
    expected = expected.unify_dictionaries().combine_chunks()
    assert_sound(content, expected, folder / "part.parquet", pq.read_schema(paths[0]))
    assert copied(paths, masks, rows, codec)[0] == content  # whatever the threads


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("options", [{}, {"write_page_index": True}, {"use_dictionary": False}])
def test_whole_row_groups_are_the_same_bytes(tmp_path, codec, options):
    path = tmp_path / "a.parquet"
    table = source_table()
    pq.write_table(table, path, row_group_size=50, compression=codec, **options)
    mask = np.ones(ROWS, bool)
    mask[50:100] = False
    content, moved = copied([path], [mask], 50, codec)
    assert moved == 3
    assert_sound(
        content, table.filter(pa.array(mask)), tmp_path / "part.parquet", pq.read_schema(path)
    )
    source = path.read_bytes()
    meta = pq.read_metadata(path)
    for group in (0, 2, 3):
        for column in range(meta.num_columns):
            chunk = meta.row_group(group).column(column)
            start = chunk.dictionary_page_offset or chunk.data_page_offset
            assert source[start : start + chunk.total_compressed_size] in content
    part = pq.ParquetFile(tmp_path / "part.parquet").metadata.row_group(0).column(0)
    assert not part.has_column_index


def with_id(kind, nullable=True):
    table = source_table()
    return table.cast(table.schema.set(0, pa.field("id", kind, nullable=nullable)))


@pytest.mark.parametrize(
    "change",
    [
        {"compression": "zstd"},
        {"table": with_id(pa.int32())},
        {"table": with_id(pa.int64(), nullable=False)},
        {"use_deprecated_int96_timestamps": True},
    ],
    ids=["codec", "type", "nullability", "timestamps"],
)
def test_a_file_that_differs_is_decoded(tmp_path, change):
    usual, other = tmp_path / "a.parquet", tmp_path / "b.parquet"
    pq.write_table(source_table(), usual, row_group_size=100, compression="snappy")
    change = {"table": source_table(), "compression": "snappy"} | change
    pq.write_table(where=other, row_group_size=100, **change)
    mask = np.ones(ROWS, bool)
    content, moved = copied([usual, other], [mask, mask], 100)
    assert moved == 2
    read = pq.read_table(pa.BufferReader(content))
    assert plain(read).equals(plain(pa.concat_tables([source_table()] * 2)))


def test_files_of_other_writers_are_decoded(tmp_path):
    path = tmp_path / "d.parquet"
    with duckdb.connect() as connection:
        connection.execute(
            f"copy (select range id, range::varchar t from range(5000)) to '{path}' "
            "(format parquet, row_group_size 2048)"
        )
    mask = np.ones(5000, bool)
    mask[10] = False
    content, moved = copied([path], [mask], 2048)
    assert moved == 0
    assert pq.read_table(pa.BufferReader(content)).equals(
        pq.read_table(path).filter(pa.array(mask))
    )


def test_no_rows_and_empty_row_groups(tmp_path):
    path = tmp_path / "a.parquet"
    table = source_table()
    with pq.ParquetWriter(path, table.schema) as writer:
        for part in (table.slice(0, 50), table.slice(0, 0), table.slice(50)):
            writer.write_table(part)
    content, moved = copied([path], [np.ones(ROWS, bool)], 100)
    assert moved == 2
    assert_sound(content, table, tmp_path / "part.parquet", pq.read_schema(path))
    content, _ = copied([path], [np.zeros(ROWS, bool)], 100)
    assert_sound(content, table.slice(0, 0), tmp_path / "part.parquet", pq.read_schema(path))


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 3)), max_size=25),
    st.integers(1, 60),
)
def test_new_row_groups_are_neither_tiny_nor_huge(groups, rows):
    """Of a corpus whose largest row group has so many rows, or more than that is kept of it."""

    class Piece:
        def __init__(self, size, kept):
            self.rows, self.kept, self.size = size, range(kept), kept
            self.whole = kept == size

    pieces = [Piece(n, (0, 1, n // 2, n)[share]) for n, share in groups]
    pieces = [piece for piece in pieces if len(piece.kept)]
    units = list(plan_units(pieces, lambda _: True, rows))
    assert [piece for unit in units for piece in unit.pieces] == pieces
    sizes = [sum(len(piece.kept) for piece in unit.pieces) for unit in units]
    for unit, size in zip(units, sizes, strict=True):
        if unit.as_it_is:
            assert unit.pieces[0].whole
            assert 2 * size >= rows
        elif len(unit.pieces) > 1:
            assert size < 2 * rows or len(unit.pieces) == 1
    for size, unit in zip(sizes[:-1], units[:-1], strict=True):
        assert unit.as_it_is or 16 * size >= rows


def test_row_groups_without_kept_rows_are_not_read(tmp_path):
    path = tmp_path / "a.parquet"
    table = source_table()
    pq.write_table(table, path, row_group_size=50)
    content = bytearray(path.read_bytes())
    group = pq.read_metadata(path).row_group(1)
    start = group.column(0).dictionary_page_offset
    content[start : start + group.total_byte_size // 2] = b"\xff" * (group.total_byte_size // 2)
    path.write_bytes(content)
    mask = np.arange(ROWS) % 2 == 0
    mask[50:100] = False
    part, _ = copied([path], [mask], 50)
    assert plain(pq.read_table(pa.BufferReader(part))).equals(plain(table.filter(pa.array(mask))))
    mask[60] = True
    with pytest.raises(BadDataError, match=r"a\.parquet: rows from 50 on cannot be copied"):
        copied([path], [mask], 50)


def test_damage_after_the_last_kept_row_of_a_row_group_is_no_harm(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"id": np.arange(8000)})
    pq.write_table(
        table,
        path,
        use_dictionary=False,
        compression="none",
        data_page_size=800,
        write_batch_size=100,
    )
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 900] = b"\xff" * 900
    path.write_bytes(content)
    mask = np.arange(8000) < 3000
    part, _ = copied([path], [mask], 8000)
    assert pq.read_table(pa.BufferReader(part)).equals(table.slice(0, 3000))


def test_a_file_that_changed_is_told(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(source_table(), path, row_group_size=50)
    source = open_source(str(tmp_path), path.name)
    for span in (Span(path.name, 0, 250, (0, 5)), Span(path.name, 0, 199, (0, 4))):
        with pytest.raises(BadDataError, match=rf"rows instead of {span.rows} in row groups"):
            list(pieces_of(source, span, np.arange(3)))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(BadDataError, match=r"a\.parquet: rows from 0 on cannot be copied"):
        open_source(str(tmp_path), path.name)


def test_columns_whose_dictionary_saves_nothing(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "a.parquet"
    table = pa.table(
        {
            "few": rng.integers(0, 9, 5000),
            "many": rng.random(5000),
            "long": [rng.bytes(500) for _ in range(5000)],
            "texts": [["a", "b"]] * 5000,
            "plain": rng.integers(0, 9, 5000),
        }
    )
    pq.write_table(table, path, use_dictionary=["few", "many", "long", "texts.list.element"])
    source = open_source(str(tmp_path), path.name)
    with pa.OSFile(str(path)) as file:
        found = dictionary_columns(source.footer, lambda at, size: file.read_at(size, at))
    assert found == ("few", "texts.list.element")


def test_results_come_in_order_and_an_error_ends_them():
    assert list(in_order(lambda x: x * x, range(20), 3)) == [x * x for x in range(20)]
    asked = []

    def items():
        for item in range(100):
            asked.append(item)
            yield item

    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda x: 1 // (3 - x), items(), 2))
    assert len(asked) < 10
