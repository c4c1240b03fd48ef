"""What is recognised in corpora of many schemas, what is said about it, and what is refused."""

from __future__ import annotations

import datetime as dt
import decimal
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dataprune_ray.config import CorpusConfig
from dataprune_ray.errors import BadDataError, ConfigError
from dataprune_ray.features import encode, encode_labels, recognise

TEXTS = ["a fine and moving film", "not worth the price of a ticket", "it works"]


def picture(height=4, width=5, mode="RGB", kind="PNG") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (width, height)).save(stream, kind)
    return stream.getvalue()


def npy(array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def tensors(array) -> pa.Array:
    return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(array))


def note(dtype, shape) -> dict:
    return {b"dataprune": json.dumps({"dtype": dtype, "shape": shape}).encode()}


def batch_of(columns: dict, fields=None, metadata=None) -> pa.RecordBatch:
    arrays = {n: v if isinstance(v, pa.Array) else pa.array(v) for n, v in columns.items()}
    kinds = [pa.field(n, a.type, metadata=(fields or {}).get(n)) for n, a in arrays.items()]
    return pa.RecordBatch.from_arrays(list(arrays.values()), schema=pa.schema(kinds, metadata))


def look(batch: pa.RecordBatch, **settings):
    """Recognise, and make sure that what was recognised can be encoded."""
    found = recognise(CorpusConfig(**settings), batch.schema, batch)
    encoded = encode(found.features, batch)
    assert encoded.good.any() or not batch.num_rows
    if found.features.modality != "text":
        assert encoded.values.shape[1:] == found.features.shape
    assert any(note.startswith(f"{found.features.modality} features") for note in found.notes)
    assert all(name in found.notes[0] for name in found.features.columns)
    if not found.label.classes and found.label.column is not None:
        return found
    encode_labels(found.label, batch)
    return found


def refusal(batch: pa.RecordBatch, **settings) -> str:
    with pytest.raises(ConfigError) as caught:
        recognise(CorpusConfig(**settings), batch.schema, batch)
    return str(caught.value)


# Layouts


def test_images_as_hugging_face_stores_them():
    features = {
        "img": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": ["cat", "dog"]},
    }
    batch = batch_of(
        {"img": [{"bytes": picture(), "path": "a.png"}] * 2, "label": [0, 1]},
        metadata={b"huggingface": json.dumps({"info": {"features": features}}).encode()},
    )
    found = look(batch)
    assert (found.features.modality, found.features.columns) == ("image", ("img",))
    assert found.features.shape == (3, 4, 5)
    assert (found.label.column, found.label.task) == ("label", "classification")
    assert found.label.classes == ("0", "1")
    assert found.label.names == ("cat", "dog")
    assert found.notes == (
        "image features (recognised) from img, 3 x 4 x 5 per row",
        "label column 'label' (recognised)",
    )


@pytest.mark.parametrize(
    "metadata", [b"", b"{", b"[]", b'{"info": 3}', b'{"info": {"features": 1}}']
)
def test_metadata_that_says_nothing_is_no_obstacle(metadata):
    batch = batch_of({"img": [picture()], "label": [1]}, metadata={b"huggingface": metadata})
    assert look(batch).label.classes == ()


def test_more_classes_than_names_are_named_by_number():
    features = {"label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    batch = batch_of({"x": [1.0, 2.0], "label": [0, 1]}, metadata=metadata)
    found = look(batch, num_classes=4)
    assert found.label.classes == ("0", "1", "2", "3")
    assert found.label.names == ("cat", "dog", "2", "3")


@pytest.mark.parametrize(
    ("values", "fields", "modality", "shape"),
    [
        (tensors(np.zeros((3, 28, 28), np.uint8)), None, "image", (1, 28, 28)),
        (tensors(np.zeros((3, 28, 28, 1), np.uint8)), None, "image", (1, 28, 28)),
        (tensors(np.zeros((3, 32, 30, 3), np.uint8)), None, "image", (3, 32, 30)),
        (tensors(np.zeros((3, 3, 32, 30), np.uint8)), None, "image", (3, 32, 30)),
        (tensors(np.zeros((3, 28, 28), np.float32)), None, "tensor", (28, 28)),
        (tensors(np.zeros((3, 7), np.uint8)), None, "tensor", (7,)),
        (tensors(np.zeros((3, 7, 8, 9), np.uint8)), None, "tensor", (7, 8, 9)),
        (pa.array([[1.0] * 5] * 3, pa.list_(pa.float32(), 5)), None, "tensor", (5,)),
        (pa.array([[1.0] * 5] * 2 + [[1.0]], pa.list_(pa.float64())), None, "tensor", (5,)),
        (pa.array([None, [], [[1, 2], [3, 4], [5, 6]]]), None, "tensor", (3, 2)),
        (pa.array([[[1], [2, 3]], [[1, 2], [3, 4]], None]), None, "tensor", (2, 2)),
        (
            pa.array([bytes(12)] * 3),
            {"x": note("uint8", [4, 3])},
            "image",
            (1, 4, 3),
        ),
        (
            pa.array([bytes(36)] * 3),
            {"x": note("uint8", [4, 3, 3])},
            "image",
            (3, 4, 3),
        ),
        (pa.array([bytes(48)] * 3), {"x": note("float32", [4, 3])}, "tensor", (4, 3)),
        (pa.array([npy(np.zeros((4, 5, 3), np.uint8))] * 3), None, "image", (3, 4, 5)),
        (pa.array([npy(np.zeros((4, 5)))] * 3), None, "tensor", (4, 5)),
        (pa.array([None, b"", b"\x93NUMPYbroken"] + [npy(np.ones(3))] * 3), None, "tensor", (3,)),
        (pa.array([picture(mode="L")] * 3), None, "image", (1, 4, 5)),
        (pa.array([picture(mode="I;16")] * 3), None, "image", (1, 4, 5)),
        (pa.array([picture(mode="P")] * 3), None, "image", (3, 4, 5)),
        (pa.array([picture(mode="L"), picture(mode="RGB")]), None, "image", (3, 4, 5)),
        (pa.array([picture(mode="RGB")] + [picture(mode="L")] * 99), None, "image", (1, 4, 5)),
        (pa.array([picture(9, 9)] + [picture(4, 5)] * 99), None, "image", (3, 4, 5)),
        (pa.array([b"broken", picture(kind="JPEG"), b""]), None, "image", (3, 4, 5)),
        (pa.array([picture(kind="WEBP")] * 3), None, "image", (3, 4, 5)),
        (pa.array([picture(9, 9), picture(4, 5)]), None, "image", (3, 224, 224)),
    ],
)
@pytest.mark.parametrize("labelled", [True, False])
def test_arrays_and_images(values, fields, modality, shape, labelled):
    columns = {"id": pa.array(range(len(values))), "x": values}
    if labelled:
        columns["label"] = pa.array([0] * len(values))
    found = look(batch_of(columns, fields))
    assert found.features.columns == ("x",)
    assert found.features.modality == modality
    assert found.features.shape == shape
    assert found.label.column == ("label" if labelled else None)


def test_image_size_overrides_what_is_found():
    batch = batch_of({"img": [picture(9, 9), picture(4, 5)], "label": [0, 1]})
    found = look(batch, image_size=8)
    assert found.features.shape == (3, 8, 8)
    assert found.features.image_size == 8
    pixels = batch_of({"img": tensors(np.zeros((2, 9, 9), np.uint8)), "label": [0, 1]})
    assert "image_size=8" in refusal(pixels, image_size=8)


def test_sentences_with_a_class():
    batch = batch_of({"idx": [0, 1, 2], "sentence": TEXTS, "label": [1, 0, 1]})
    found = look(batch)
    assert (found.features.modality, found.features.columns) == ("text", ("sentence",))
    assert found.label.column == "label"


def test_two_texts_are_used_together():
    batch = batch_of({"premise": TEXTS, "hypothesis": TEXTS[::-1], "label": [1, 0, 1]})
    assert look(batch).features.columns == ("premise", "hypothesis")


def test_texts_among_numbers_are_a_table():
    batch = batch_of({"review": TEXTS, "stars": [1, 2, 3], "label": [1, 0, 1]})
    found = look(batch)
    assert found.features.modality == "tabular"
    assert [c.categorical for c in found.features.tabular] == [True, False]
    assert look(batch, modality="text").features.columns == ("review",)


def test_a_table_with_categories():
    batch = batch_of(
        {
            "age": [30, None, 50],
            "job": ["clerk", "cook", "clerk"],
            "rate": [0.1, 0.2, 0.3],
            "member": [True, False, None],
            "price": [decimal.Decimal("1.5")] * 3,
            "city": pa.array(["x", "y", "x"]).dictionary_encode(),
            "since": [dt.date(2020, 1, 1)] * 3,
            "extra": pa.nulls(3),
            "target": ["yes", "no", "no"],
        }
    )
    found = look(batch)
    assert found.features.modality == "tabular"
    assert found.features.columns == ("age", "job", "rate", "member", "price", "city")
    assert [c.categorical for c in found.features.tabular] == [False, True] + [False] * 3 + [True]
    assert found.features.shape == (4 + 2 * 64,)
    assert (found.label.column, found.label.stored) == ("target", "string")


def test_a_recommendation_table():
    batch = batch_of({"user": ["u1", "u2"], "item": ["i1", "i2"], "rating": [4.5, 2.0]})
    found = look(batch, label="rating")
    assert found.label.task == "regression"
    assert found.features.columns == ("user", "item")
    assert all(c.categorical for c in found.features.tabular)
    assert look(batch, label="rating", task="classification").label.task == "classification"


def test_webdataset_columns():
    columns = {
        "__key__": ["a", "b"],
        "cls": [b"3", b"7\n"],
        "jpg": [picture(kind="JPEG")] * 2,
        "json": [b'{"label": 3, "id": 9}'] * 2,
        "txt": [b"a text of five words", b"and one more text here"],
    }
    batch = batch_of(columns)
    found = look(batch)
    assert (found.features.modality, found.features.columns) == ("image", ("jpg",))
    assert (found.label.column, found.label.stored) == ("cls", "int64")
    assert look(batch, label="json.label").label.stored == "int64"
    del columns["cls"]
    assert look(batch_of(columns)).label.column == "json.label"
    del columns["jpg"]
    found = look(batch_of(columns))
    assert (found.features.modality, found.features.columns) == ("text", ("txt",))
    del columns["json"]
    assert look(batch_of(columns)).label.column is None


def test_a_few_broken_class_members_do_not_make_text_of_numbers():
    batch = batch_of({"jpg": [picture()] * 4, "cls": [b"3", b"x", None, b"5"]})
    assert look(batch).label.stored == "int64"
    batch = batch_of({"jpg": [picture()] * 4, "cls": [b"cat", b"x", None, b"5"]})
    assert look(batch).label.stored == "string"


# Labels


@pytest.mark.parametrize(
    ("values", "task", "stored"),
    [
        ([1, 2], "classification", "int64"),
        ([True, False], "classification", "int64"),
        (["a", "b"], "classification", "string"),
        ([b"1", b"2"], "classification", "int64"),
        ([b"a", b"2"], "classification", "string"),
        ([1.0, 2.5], "regression", "float64"),
        (pa.array([1, 2], pa.float16()), "regression", "float64"),
        ([decimal.Decimal("1.5"), decimal.Decimal("2.5")], "regression", "float64"),
        (pa.array(["a", "b"]).dictionary_encode(), "classification", "string"),
        (pa.array(["a", "b"], pa.large_string()), "classification", "string"),
        (pa.array([2**64 - 1, 1], pa.uint64()), "classification", "int64"),
    ],
    ids=str,
)
def test_the_task_follows_from_the_label(values, task, stored):
    found = look(batch_of({"x": [1.0, 2.0], "label": values}))
    assert (found.label.task, found.label.stored) == (task, stored)
    assert found.label.outputs == 1


def test_num_classes_fixes_the_classes():
    batch = batch_of({"x": [1.0, 2.0], "label": [0, 5]})
    assert look(batch, num_classes=3).label.classes == ("0", "1", "2")
    assert look(batch, num_classes=3).label.outputs == 3


def test_label_none_leaves_the_column_out_only_if_it_is_no_number():
    found = look(batch_of({"img": [picture()], "label": [1]}), label="none")
    assert found.label.column is None
    assert "no label, as asked" in found.notes


def test_the_label_may_be_written_large():
    found = look(batch_of({"Id": [1, 2], "x": [1.0, 2.0], "Label": [0, 1]}))
    assert found.label.column == "Label"
    assert found.features.columns == ("x",)


def test_a_label_of_nulls_alone_is_passed_over():
    batch = batch_of({"x": [1.0], "label": pa.nulls(1, pa.int64()), "target": [1]})
    found = recognise(CorpusConfig(), batch.schema, batch)
    assert found.label.column == "target"


def test_an_id_is_never_a_feature():
    batch = batch_of({"id": [1, 2], "uid": ["a", "b"], "key": [5, 6], "x": [0.5, 1.0]})
    assert look(batch).features.columns == ("key", "x")
    assert look(batch, id_column="key").features.columns == ("x",)
    nested = batch_of({"meta": [{"key": 1}, {"key": 2}], "x": [0.5, 1.0]})
    assert look(nested, id_column="meta.key").features.columns == ("x",)


def test_named_features_are_taken_as_named():
    batch = batch_of({"a": [1.0], "b": [2.0], "id": [3], "label": [0]})
    assert look(batch, features=("b", "id")).features.columns == ("b", "id")
    batch = batch_of({"s": [{"img": picture(), "n": 1}], "label": [0]})
    assert look(batch, features=("s.img",)).features.modality == "image"
    assert look(batch, features=("s.n",)).features.modality == "tabular"


def test_an_empty_corpus_is_recognised_by_its_schema():
    schema = pa.schema({"x": pa.float64(), "label": pa.int64()})
    batch = pa.RecordBatch.from_pylist([], schema=schema)
    found = recognise(CorpusConfig(), schema, batch)
    assert found.features.modality == "tabular"
    assert found.label.column == "label"


# Refusals


PLAIN = batch_of({"x": [1.0, 2.0], "img": [picture()] * 2, "s": [{"a": 1}] * 2, "label": [0, 1]})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"label": "gone"}, ("label='gone'", "no such column", "'img'")),
        ({"features": ("x", "gone")}, ("features='gone'", "no such column", "'img'")),
        ({"id_column": "gone"}, ("id_column='gone'", "no such column")),
        ({"label": "s.gone"}, ("label='s.gone'", "leads nowhere", "struct<a: int64>")),
        ({"label": "x.a"}, ("label='x.a'", "leads nowhere", "double")),
        ({"id_column": "s.a.b"}, ("id_column='s.a.b'", "leads nowhere")),
        ({"label": "s"}, ("label='s'", "number or a string")),
        ({"features": ("x", "label")}, ("features='label'", "is the label")),
        ({"features": ("x", "img")}, ("features='x,img'", "cannot be combined")),
        ({"features": ("s",)}, ("features='s'",)),
        ({"features": ("x",), "modality": "image"}, ("features='x'", "double", "image")),
        ({"features": ("x",), "modality": "text"}, ("features='x'", "double", "text")),
        ({"features": ("x",), "modality": "tensor"}, ("features='x'", "double", "tensor")),
        ({"features": ("s",), "modality": "tabular"}, ("features='s'", "struct", "tabular")),
        ({"modality": "text"}, ("features=''", "no text features recognised")),
        ({"features": ("x", "x2"), "modality": "tensor"}, ("features='x2'",)),
    ],
    ids=str,
)
def test_refusals_name_field_value_and_choices(settings, said):
    message = refusal(PLAIN, **settings)
    for part in said:
        assert part in message


def test_several_columns_are_no_image():
    batch = batch_of({"a": [picture()], "b": [picture()], "label": [0]})
    assert "one column" in refusal(batch, features=("a", "b"), modality="image")
    assert "cannot be combined" in refusal(batch, features=("a", "b"))


def test_floats_are_no_pixels():
    batch = batch_of({"x": tensors(np.zeros((2, 4, 4), np.float32)), "label": [0, 1]})
    assert "uint8" in refusal(batch, modality="image", features=("x",))
    batch = batch_of({"x": [bytes(64)]}, {"x": note("float32", [4, 4])})
    assert "uint8" in refusal(batch, modality="image", features=("x",))
    batch = batch_of({"x": [[1, 2, 3]]})
    assert "no image" in refusal(batch, modality="image", features=("x",))


@pytest.mark.parametrize(
    "values", [[["a"]], [[{"a": 1}]], [{"a": 1}], [dt.date(2020, 1, 1)], [b"x\x00"]], ids=str
)
def test_what_is_nothing_known_is_refused_with_its_type(values):
    batch = batch_of({"x": values, "label": [0]})
    message = refusal(batch)
    assert "features=''" in message
    assert str(batch.schema.field("x").type) in message


def test_images_none_of_which_decodes_are_bad_data():
    batch = batch_of({"jpg": [b"broken", None, b""], "label": [0, 1, 2]})
    with pytest.raises(BadDataError, match=r"'jpg'.*none of the first 3 images"):
        recognise(CorpusConfig(), batch.schema, batch)


def test_arrays_whose_shape_cannot_be_told_are_refused():
    batch = batch_of({"x": pa.array([None, []], pa.list_(pa.float32())), "label": [0, 1]})
    assert "features='x'" in refusal(batch)


@pytest.mark.data
def test_public_corpora(data_dir):
    path = data_dir / "cifar10" / "test-00000-of-00001.parquet"
    batch = next(pq.ParquetFile(path).iter_batches(64))
    found = look(batch)
    assert (found.features.columns, found.features.shape) == (("img",), (3, 32, 32))
    assert found.label.names[:2] == ("airplane", "automobile")
    labels, _ = encode_labels(found.label, batch)
    assert not labels.errors
