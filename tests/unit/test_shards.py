"""Shard writers: every layout gives back what it was given, in whole files, the same each time."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dataprune_ray.errors import BadDataError, ConfigError, UnknownNameError
from dataprune_ray.io.shards import (
    SHARD_WRITERS,
    Sample,
    SampleBatch,
    ShardSpec,
    atomic,
    decode,
    encode_png,
    get_shard_writer,
)

NAMES = ("cat", "dog", "été")


def sample_batches(shape=(5, 4, 3), dtype=np.uint8, rows=7, group=3, *, clean=False):
    rng = np.random.default_rng(0)
    arrays = rng.integers(0, 255, (rows, *shape)).astype(dtype)
    batches = []
    for start in range(0, rows, group):
        ids = np.arange(start, min(start + group, rows))
        labels = pa.array(ids % 3)
        samples = [Sample(arrays[i], int(i % 3)) for i in ids]
        batches.append(SampleBatch(samples, ids, labels, labels if clean else None))
    return arrays, batches


def read_back(layout, path):
    """Arrays, labels and ids of a shard, read with nothing of the package."""
    if layout == "webdataset":
        with tarfile.open(path) as tar:
            found = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}
        keys = sorted({name.split(".")[0] for name in found})
        arrays = [np.asarray(Image.open(io.BytesIO(found[f"{k}.png"]))) for k in keys]
        about = [json.loads(found[f"{k}.json"]) for k in keys]
        return arrays, [int(found[f"{k}.cls"]) for k in keys], [a["id"] for a in about]
    table = pq.read_table(path)
    column = table.column("img").combine_chunks()
    if layout == "image":
        arrays = [np.asarray(Image.open(io.BytesIO(v["bytes"]))) for v in column.to_pylist()]
    elif layout == "tensor":
        arrays = list(column.to_numpy_ndarray())
    else:
        about = json.loads(table.schema.field("img").metadata[b"dataprune"])
        arrays = [
            np.frombuffer(v, about["dtype"]).reshape(about["shape"]) for v in column.to_pylist()
        ]
    return arrays, table["label"].to_pylist(), table["id"].to_pylist()


@pytest.mark.parametrize("layout", sorted(set(SHARD_WRITERS) - {"table"}))
@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3), (5, 4, 4)])
def test_round_trip_is_exact(layout, shape, tmp_path):
    arrays, batches = sample_batches(shape)
    writer = SHARD_WRITERS[layout](ShardSpec(class_names=NAMES))
    path = tmp_path / f"shard{writer.suffix}"
    writer.write_shard(path, batches)
    found, labels, ids = read_back(layout, path)
    np.testing.assert_array_equal(np.stack(found), arrays)
    assert labels == [i % 3 for i in range(7)]
    assert ids == list(range(7))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("layout", ["tensor", "raw"])
@pytest.mark.parametrize("dtype", ["uint8", "float32", ">f4", "int16"])
def test_array_layouts_keep_any_number_type(layout, dtype, tmp_path):
    arrays, batches = sample_batches((2, 3, 4, 5), np.dtype(dtype))
    SHARD_WRITERS[layout](ShardSpec()).write_shard(tmp_path / "x.parquet", batches)
    found, _, _ = read_back(layout, tmp_path / "x.parquet")
    np.testing.assert_array_equal(np.stack(found), arrays)
    assert found[0].dtype == np.dtype(dtype).newbyteorder("<")


@pytest.mark.parametrize("layout", sorted(SHARD_WRITERS))
def test_writing_again_gives_the_same_bytes(layout, tmp_path):
    digests = set()
    for name in ("a", "b"):
        _, batches = sample_batches()
        if layout == "table":
            batches = [pa.record_batch({"x": [1, 2], "label": ["a", None]})]
        SHARD_WRITERS[layout](ShardSpec(class_names=NAMES)).write_shard(tmp_path / name, batches)
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1


def test_each_batch_is_a_row_group(tmp_path):
    _, batches = sample_batches()
    SHARD_WRITERS["image"](ShardSpec()).write_shard(tmp_path / "x", batches)
    about = pq.ParquetFile(tmp_path / "x").metadata
    assert [about.row_group(i).num_rows for i in range(about.num_row_groups)] == [3, 3, 1]


@pytest.mark.parametrize("layout", ["image", "raw"])
def test_hugging_face_metadata_names_every_column_and_the_classes(layout, tmp_path):
    _, batches = sample_batches(clean=True)
    SHARD_WRITERS[layout](ShardSpec(class_names=NAMES)).write_shard(tmp_path / "x", batches)
    schema = pq.read_schema(tmp_path / "x")
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == schema.names == ["img", "label", "clean_label", "id"]
    assert features["label"] == {"names": list(NAMES), "_type": "ClassLabel"}
    assert features["clean_label"] == features["label"]
    assert features["id"] == {"dtype": "int64", "_type": "Value"}
    assert features["img"]["_type"] == ("Image" if layout == "image" else "Value")


def test_encoded_images_are_copied_and_keep_their_ending(tmp_path):
    junk = b"\xff\xd8 no image at all"
    batch = SampleBatch([Sample(junk, 0, "a/b.c.JPEG")], np.array([12]), pa.array([0]))
    SHARD_WRITERS["image"](ShardSpec()).write_shard(tmp_path / "x", [batch])
    row = pq.read_table(tmp_path / "x")["img"][0].as_py()
    assert row == {"bytes": junk, "path": "a/b.c.JPEG"}
    SHARD_WRITERS["webdataset"](ShardSpec()).write_shard(tmp_path / "t", [batch])
    with tarfile.open(tmp_path / "t") as tar:
        assert tar.getnames() == ["000000012.jpg", "000000012.cls", "000000012.json"]
        assert tar.extractfile("000000012.jpg").read() == junk
        assert {(m.mtime, m.uid, m.gid, m.uname) for m in tar.getmembers()} == {(0, 0, 0, "")}


def test_arrays_that_differ_are_refused_across_shards(tmp_path):
    writer = SHARD_WRITERS["tensor"](ShardSpec())
    first = SampleBatch([Sample(np.zeros((2, 2), np.uint8), 0)], np.array([0]), pa.array([0]))
    writer.write_shard(tmp_path / "a", [first])
    other = SampleBatch(
        [Sample(np.zeros((2, 3), np.uint8), 0, "c/odd.png")], np.array([1]), pa.array([0])
    )
    with pytest.raises(BadDataError, match=r"c/odd.png.*\(2, 3\).*\(2, 2\).*--layout image"):
        writer.write_shard(tmp_path / "b", [other])
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_failed_shard_leaves_nothing_and_keeps_the_earlier_file(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def broken():
        yield pa.record_batch({"x": [1]})
        raise BadDataError("torn")

    with pytest.raises(BadDataError, match="torn"):
        SHARD_WRITERS["table"](ShardSpec()).write_shard(path, broken())
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_atomic_file_has_no_name_before_it_is_whole(tmp_path):
    with atomic(tmp_path / "x") as file:
        file.write(b"half")
        assert not (tmp_path / "x").exists()
    assert (tmp_path / "x").read_bytes() == b"half"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_pillow_mode_becomes_pixels_a_png_can_hold(mode):
    image = Image.new("L", (4, 3), 255).convert(mode) if mode != "I;16" else Image.new(mode, (4, 3))
    buffer = io.BytesIO()
    image.save(buffer, format="TIFF")
    array = decode(buffer.getvalue(), "x")
    assert array.shape[:2] == (3, 4)
    np.testing.assert_array_equal(decode(encode_png(array), "x"), array)


def test_what_no_png_can_hold_is_refused():
    with pytest.raises(ConfigError, match=r"float32 of shape \(2, 2\).*--layout raw"):
        encode_png(np.zeros((2, 2), np.float32))


def test_unknown_layout_names_the_choices():
    with pytest.raises(UnknownNameError, match=r"zip.*image, raw, table, tensor, webdataset"):
        get_shard_writer("zip")
