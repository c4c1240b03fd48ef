"""Fragments to encoded rows: every row of the corpus once, good or with its reason."""

from __future__ import annotations

import io
import json
import tarfile
import threading
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dataprune_ray.config import CorpusConfig
from dataprune_ray.cutoff import seeded_hash
from dataprune_ray.features import FeatureSpec, LabelSpec, TabularColumn
from dataprune_ray.io import open_corpus, rows
from dataprune_ray.io.identity import file_seed, key_hashes, position_hashes
from dataprune_ray.io.rows import RowPlan, ahead, columns_to_read, read_rows

TABLE = FeatureSpec("tabular", ("x",), (1,), tabular=(TabularColumn("x", False),))
LABEL = LabelSpec("y", classes=("0", "1", "2"))


def frame(start: int, count: int) -> pa.Table:
    ids = np.arange(start, start + count)
    return pa.table({"id": ids, "x": ids / 2, "y": ids % 3, "unused": ids})


def write(root, name: str, content: pa.Table, **options) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content, root / name, **options)


def plan_of(root, features=TABLE, label=LABEL, id_column=None, seed=0, **corpus) -> RowPlan:
    found = open_corpus(CorpusConfig(input=str(root), **corpus))
    return RowPlan.of(found, features, label, id_column, seed)


def check(batch) -> None:
    size = len(batch)
    assert batch.rows.dtype == np.int64
    assert batch.row_hash.dtype == np.uint64
    assert len(batch.keys) == len(batch.row_hash) == len(batch.stored) == len(batch.good) == size
    assert batch.keys.type == pa.string()
    assert set(batch.errors) == set(np.flatnonzero(~batch.good).tolist())
    assert len(batch.values) == len(batch.targets) == batch.good.sum()


def read_all(plan: RowPlan, transform=None) -> dict:
    """Everything that is read, joined; errors by file and row."""
    joined = {name: [] for name in ("place", "key", "hash", "stored", "value", "target")}
    errors = {}
    for fragment in plan.fragments:
        for batch in read_rows(plan, fragment, transform):
            check(batch)
            joined["place"] += [(batch.file, int(row)) for row in batch.rows]
            joined["key"] += batch.keys.to_pylist()
            joined["hash"] += batch.row_hash.tolist()
            joined["stored"] += batch.stored.to_pylist()
            joined["value"] += list(batch.values)
            joined["target"] += batch.targets.tolist()
            for position, reason in batch.errors.items():
                errors[batch.file, int(batch.rows[position])] = reason
    return {**joined, "errors": errors}


def test_rows_come_once_in_order_with_their_identity(tmp_path):
    write(tmp_path, "a.parquet", frame(0, 10), row_group_size=4)
    write(tmp_path, "b/c.parquet", frame(10, 5))
    for target in (1, 4, 9, 100):
        found = read_all(plan_of(tmp_path, fragment_rows=target))
        places = [("a.parquet", i) for i in range(10)] + [("b/c.parquet", i) for i in range(5)]
        assert found["place"] == places
        assert found["key"] == [None] * 15
        assert [float(v[0]) for v in found["value"]] == [i / 2 for i in range(15)]
        assert found["target"] == found["stored"] == [i % 3 for i in range(15)]
        hashes = [*position_hashes("a.parquet", 0, 10), *position_hashes("b/c.parquet", 0, 5)]
        assert found["hash"] == hashes
        assert not found["errors"]


def test_only_the_columns_that_are_needed_are_read(tmp_path):
    write(tmp_path, "a.parquet", frame(0, 5))
    assert columns_to_read(plan_of(tmp_path, id_column="id")) == ["x", "y", "id"]
    assert columns_to_read(plan_of(tmp_path, label=LabelSpec(None))) == ["x"]
    nested = replace(TABLE, columns=("x", "unused"))
    assert columns_to_read(plan_of(tmp_path, nested, LabelSpec("x"))) == ["x", "unused"]


def test_with_an_id_column_nothing_depends_on_the_files(tmp_path):
    whole, parts, text = tmp_path / "whole", tmp_path / "parts", tmp_path / "text"
    write(whole, "a.parquet", frame(0, 300))
    order = np.random.default_rng(0).permutation(300)
    for i in range(7):
        write(parts, f"{i}.parquet", frame(0, 300).take(order[i::7]), row_group_size=11)
    named = frame(0, 300)
    write(text, "a.parquet", named.set_column(0, "id", named["id"].cast(pa.string())))
    seen = []
    for root in (whole, parts, text):
        plan = plan_of(root, id_column="id", seed=5, fragment_rows=20)
        found = read_all(plan)
        by_key = dict(zip(found["key"], found["hash"], strict=True))
        assert len(by_key) == 300
        sampled = read_all(plan.sampled(0.3))
        assert 50 < len(sampled["key"]) < 130
        seen.append((by_key, sorted(sampled["key"])))
        values = {k: float(v[0]) for k, v in zip(sampled["key"], sampled["value"], strict=True)}
        assert values == {k: int(k) / 2 for k in values}
        assert [t == int(k) % 3 for k, t in zip(sampled["key"], sampled["target"], strict=True)]
    assert seen[0] == seen[1] == seen[2]
    assert seen[0][0]["7"] == key_hashes(pa.array(["7"]))[0]


def test_a_sample_is_the_rows_of_low_hash(tmp_path):
    write(tmp_path, "a.parquet", frame(0, 500), row_group_size=60)
    plan = plan_of(tmp_path, seed=3)
    whole = read_all(plan)
    for fraction in (0.0, 0.25, 1.0):
        part = read_all(plan.sampled(fraction))
        mixed = seeded_hash(np.array(whole["hash"], np.uint64), 3)
        chosen = np.flatnonzero(mixed <= np.uint64(min(int(fraction * 2**64), 2**64 - 1)))
        assert part["place"] == [whole["place"][i] for i in chosen]
        assert part["target"] == [whole["target"][i] for i in chosen]
        assert [float(v[0]) for v in part["value"]] == [float(whole["value"][i][0]) for i in chosen]
    other = read_all(replace(plan, seed=4).sampled(0.25))
    assert other["place"] != read_all(plan.sampled(0.25))["place"]
    assert plan.sampled(1.0) == plan


def test_bad_ids_are_bad_rows(tmp_path):
    content = pa.table({"id": ["a", None, "c"], "x": [1.0, 2.0, 3.0], "y": [0, 1, 2]})
    write(tmp_path, "a.parquet", content)
    found = read_all(plan_of(tmp_path, id_column="id"))
    assert found["errors"] == {("a.parquet", 1): "id column 'id' is null"}
    assert found["target"] == [0, 2]
    assert found["hash"][1] == position_hashes("a.parquet", 1, 1)[0]
    found = read_all(plan_of(tmp_path, id_column="x"))
    assert len(found["errors"]) == 3
    assert "must hold strings or integers" in found["errors"]["a.parquet", 0]


def test_every_kind_of_bad_row_is_named_and_no_other_touched(tmp_path):
    content = pa.table(
        {
            "id": ["a", None, "c", "d", "e", "f"],
            "x": [1.0, 2.0, float("nan"), 4.0, 5.0, float("inf")],
            "y": [0, 1, 2, None, 7, 9],
        }
    )
    write(tmp_path, "a.parquet", content)
    for plan in (plan_of(tmp_path, id_column="id"), plan_of(tmp_path)):
        found = read_all(plan)
        bad = {1} if plan.id_column else set()
        assert {row for _, row in found["errors"]} == bad | {2, 3, 4, 5}
        assert [float(v[0]) for v in found["value"]] == [1.0] + ([] if bad else [2.0])
        assert found["stored"] == [0, 1, 2, None, 7, 9]
        for fraction in (0.1, 0.5, 0.9):
            part = read_all(plan.sampled(fraction))
            assert part["errors"] == {
                p: found["errors"][p] for p in part["place"] if p in found["errors"]
            }


def test_a_file_that_breaks_off_keeps_its_count(tmp_path):
    write(tmp_path, "a.parquet", frame(0, 400), row_group_size=100, compression="none")
    write(tmp_path, "b.parquet", frame(400, 10))
    plan = plan_of(tmp_path)
    metadata = pq.ParquetFile(tmp_path / "a.parquet").metadata
    start = metadata.row_group(2).column(1).data_page_offset
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[start : start + 60] = b"\xff" * 60
    (tmp_path / "a.parquet").write_bytes(content)
    found = read_all(plan)
    assert len(found["place"]) == len(set(found["place"])) == 410
    bad = [row for name, row in found["errors"] if name == "a.parquet"]
    assert bad == list(range(200, 400))
    assert all("file breaks off" in reason for reason in found["errors"].values())
    assert found["place"][-10:] == [("b.parquet", i) for i in range(10)]


def test_files_that_cannot_be_read_are_rows_too(tmp_path):
    write(tmp_path, "a.parquet", frame(0, 3))
    write(tmp_path, "b.parquet", frame(0, 9000).drop_columns(["y"]))
    (tmp_path / "c.parquet").write_bytes(b"nothing")
    found = read_all(plan_of(tmp_path))
    errors = found["errors"]
    assert [errors.get(("b.parquet", i), "")[:15] for i in (0, 8999)] == ["columns differ "] * 2
    assert errors["c.parquet", -1].startswith("unreadable file")
    assert len(found["place"]) == 3 + 9000 + 1
    assert len(found["target"]) == 3


def test_a_file_that_vanished_is_rows_too(tmp_path):
    write(tmp_path, "a.parquet", frame(0, 7))
    plan = plan_of(tmp_path)
    (tmp_path / "a.parquet").unlink()
    found = read_all(plan)
    assert sorted(found["errors"]) == [("a.parquet", i) for i in range(7)]


def test_a_row_whose_encoding_fails_unforeseen_is_alone(tmp_path, monkeypatch):
    write(tmp_path, "a.parquet", frame(0, 40))
    whole = rows.encode

    def fragile(spec, batch, transform=None, threads=1):
        if any(value in (3.5, 15.0) for value in batch["x"].to_pylist()):
            raise ZeroDivisionError("boom")
        return whole(spec, batch, transform, threads)

    monkeypatch.setattr(rows, "encode", fragile)
    for id_column in (None, "id"):
        found = read_all(plan_of(tmp_path, id_column=id_column))
        reason = "row cannot be encoded: ZeroDivisionError: boom"
        assert found["errors"] == {("a.parquet", 7): reason, ("a.parquet", 30): reason}
        assert found["place"] == [("a.parquet", i) for i in range(40)]
        assert len(found["target"]) == 38


@given(st.data())
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_the_count_is_always_that_of_the_corpus(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("corpus")
    numbers = st.none() | st.floats(allow_nan=True, width=32)
    labels = st.none() | st.integers(-2, 4)
    total = {}
    for i in range(data.draw(st.integers(1, 3))):
        size = data.draw(st.integers(1, 15))
        xs = data.draw(st.lists(numbers, min_size=size, max_size=size))
        ys = data.draw(st.lists(labels, min_size=size, max_size=size))
        content = pa.table({"x": pa.array(xs, pa.float64()), "y": pa.array(ys, pa.int64())})
        write(root, f"{i}.parquet", content, row_group_size=data.draw(st.integers(1, 6)))
        for row, (x, y) in enumerate(zip(xs, ys, strict=True)):
            finite = x is None or np.isfinite(x)
            total[f"{i}.parquet", row] = finite and y is not None and 0 <= y <= 2
    plan = plan_of(root, fragment_rows=data.draw(st.integers(1, 20)))
    found = read_all(plan)
    assert found["place"] == list(total)
    assert set(found["errors"]) == {place for place, good in total.items() if not good}


# Images and archives


def picture(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (3, 2), value).save(stream, "PNG")
    return stream.getvalue()


def shard(path, samples, cut=None) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for key, members in samples:
            for extension, content in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    path.write_bytes(stream.getvalue()[:cut])


IMAGES = FeatureSpec("image", ("png",), (1, 2, 3))
SAMPLES = [
    ("a", {"png": picture(1), "cls": b"0"}),
    ("b", {"png": b"broken", "cls": b"1"}),
    ("c", {"cls": b"2"}),
    ("d", {"png": picture(4), "cls": b"x"}),
    ("e", {"png": picture(5), "cls": b"1", "json": json.dumps({"id": 77}).encode()}),
]


def test_samples_of_an_archive(tmp_path):
    shard(tmp_path / "s.tar", SAMPLES)
    label = LabelSpec("cls", classes=("0", "1", "2"))
    plan = plan_of(tmp_path, IMAGES, label)
    found = read_all(plan)
    assert found["place"] == [("s.tar", i) for i in range(5)]
    assert found["key"] == list("abcde")
    assert found["target"] == [0, 1]
    assert [int(v.max()) for v in found["value"]] == [1, 5]
    assert set(found["errors"]) == {("s.tar", i) for i in (1, 2, 3)}
    assert found["errors"]["s.tar", 2] == "image is null"
    by_key = seeded_hash(key_hashes(pa.array(list("abcde"))), file_seed("s.tar"))
    assert found["hash"] == by_key.tolist()
    members = [b.members for b in read_rows(plan, plan.fragments[0])]
    assert members[-1] == ("cls", "json", "png")


def test_a_key_names_a_row_within_its_archive_alone(tmp_path):
    for name in ("s.tar", "t.tar"):
        shard(tmp_path / name, SAMPLES[:1])
    hashes = read_all(plan_of(tmp_path, IMAGES, LabelSpec(None)))["hash"]
    assert len(set(hashes)) == 2
    found = read_all(plan_of(tmp_path, IMAGES, LabelSpec(None), id_column="__key__"))
    assert len(set(found["hash"])) == 1


def test_an_archive_that_breaks_off_has_one_row_for_the_rest(tmp_path):
    samples = [(f"k{i}", {"png": picture(i), "cls": b"1"}) for i in range(9)]
    shard(tmp_path / "s.tar", samples, cut=2048 * 4 + 700)
    label = LabelSpec("cls", classes=("0", "1"))
    found = read_all(plan_of(tmp_path, IMAGES, label))
    assert found["place"] == [("s.tar", i) for i in range(5)]
    assert found["key"] == ["k0", "k1", "k2", "k3", None]
    assert list(found["errors"]) == [("s.tar", 4)]
    assert "file breaks off" in found["errors"]["s.tar", 4]
    assert len(set(found["hash"])) == 5


def test_an_archive_of_which_nothing_can_be_read_is_one_row(tmp_path):
    shard(tmp_path / "a.tar", SAMPLES)
    (tmp_path / "b.tar").write_bytes(b"x" * 600)
    found = read_all(plan_of(tmp_path, IMAGES, LabelSpec(None)))
    assert found["place"][-1] == ("b.tar", -1)
    assert "file breaks off" in found["errors"]["b.tar", -1]


def test_pixels_as_raw_bytes_are_read_by_the_note_of_the_corpus(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 2, 3), dtype=np.uint8)
    note = {b"dataprune": json.dumps({"dtype": "uint8", "shape": [2, 3]}).encode()}
    kind = pa.schema([pa.field("png", pa.binary(), metadata=note)])
    content = pa.table({"png": [a.tobytes() for a in pixels]}, schema=kind)
    write(tmp_path, "a.parquet", content, row_group_size=7)
    plan = plan_of(tmp_path, IMAGES, LabelSpec(None))
    assert np.array_equal(np.stack(read_all(plan)["value"]), pixels[:, None])
    part = read_all(plan.sampled(0.4))
    expected = [pixels[row][None] for _, row in part["place"]]
    assert np.array_equal(np.stack(part["value"]), np.stack(expected))


@pytest.mark.parametrize("kind", ["tensor", "struct", "list"])
def test_a_sample_of_every_storage_form_can_be_taken(tmp_path, kind):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 2, 3), dtype=np.uint8)
    values = {
        "tensor": lambda: pa.FixedShapeTensorArray.from_numpy_ndarray(pixels),
        "struct": lambda: pa.array(
            [{"bytes": picture(int(p[0, 0])), "path": None} for p in pixels]
        ),
        "list": lambda: pa.array(pixels.tolist(), pa.list_(pa.list_(pa.uint8(), 3), 2)),
    }[kind]()
    write(tmp_path, "a.parquet", pa.table({"png": values}), row_group_size=9)
    part = read_all(plan_of(tmp_path, IMAGES, LabelSpec(None)).sampled(0.4))
    assert 5 < len(part["place"]) < 30
    for (_, row), value in zip(part["place"], part["value"], strict=True):
        assert value[0, 0, 0] == pixels[row, 0, 0]
        assert kind == "struct" or np.array_equal(value[0], pixels[row])


# Decoding ahead


def test_ahead_gives_the_same_items_and_errors():
    assert list(ahead(iter(range(100)))) == list(range(100))
    assert list(ahead(iter([]))) == []

    def failing():
        yield 1
        raise KeyError("x")

    seen = []

    def consume():
        seen.extend(ahead(failing()))

    with pytest.raises(KeyError):
        consume()
    assert list(ahead(iter([None, 1]), depth=1)) == [None, 1]


def test_ahead_stays_ahead_by_its_depth_and_ends_with_its_consumer():
    produced = []

    def items():
        for i in range(1000):
            produced.append(i)
            yield i

    stream = ahead(items(), depth=2)
    assert next(stream) == 0
    time.sleep(0.05)
    assert len(produced) <= 5
    stream.close()
    for _ in range(100):
        if not any(t.name == "decode-ahead" for t in threading.enumerate()):
            break
        time.sleep(0.02)
    else:
        pytest.fail("the thread outlives its consumer")
    assert len(produced) <= 8
