"""Every storage form gives the right arrays; a bad row gets a reason and disturbs no other."""

from __future__ import annotations

import decimal
import io
import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from dataprune_ray.features import (
    FeatureSpec,
    LabelSpec,
    TabularColumn,
    column,
    encode,
    encode_labels,
    top_level,
)
from dataprune_ray.features.spec import CATEGORY_BUCKETS, TEXT_BUCKETS, TEXT_TOKENS

ROWS = 6
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (ROWS, 4, 5), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (ROWS, 4, 5, 3), dtype=np.uint8)
FLOATS = RNG.normal(size=(ROWS, 2, 3)).astype(np.float32)


def picture(array: np.ndarray, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind, **options)
    return stream.getvalue()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def batch_of(values: pa.Array, metadata: dict | None = None, name: str = "x") -> pa.RecordBatch:
    field = pa.field(name, values.type, metadata=metadata)
    return pa.RecordBatch.from_arrays([values], schema=pa.schema([field]))


def tensors(arrays: np.ndarray) -> pa.Array:
    return pa.FixedShapeTensorArray.from_numpy_ndarray(arrays)


def lists(arrays: np.ndarray, kind: pa.DataType) -> pa.Array:
    return pa.array(arrays.tolist(), kind)


def note(dtype: str, shape: tuple[int, ...]) -> dict:
    return {b"dataprune": json.dumps({"dtype": dtype, "shape": list(shape)}).encode()}


def check(encoded, rows: int) -> None:
    """What holds of everything that is encoded."""
    assert encoded.good.dtype == bool
    assert len(encoded.good) == rows
    assert len(encoded.values) == encoded.good.sum()
    assert set(encoded.errors) == set(np.flatnonzero(~encoded.good).tolist())
    assert all(isinstance(reason, str) and reason for reason in encoded.errors.values())
    if encoded.values.dtype.kind == "f":
        assert np.isfinite(encoded.values).all()


def all_slices(batch: pa.RecordBatch):
    for start, length in ((0, ROWS), (2, 3), (1, ROWS - 1), (ROWS - 1, 1), (3, 0)):
        yield start, length, batch.slice(start, length)


def with_nulls(values: pa.Array, keep: np.ndarray) -> pa.Array:
    storage = values.storage if isinstance(values, pa.ExtensionArray) else values
    rows = [v if k else None for v, k in zip(storage.to_pylist(), keep, strict=True)]
    holed = pa.array(rows, storage.type)
    if isinstance(values, pa.ExtensionArray):
        return pa.ExtensionArray.from_storage(values.type, holed)
    return holed


COLOUR_SPEC = FeatureSpec("image", ("x",), (3, 4, 5))
GREY_SPEC = FeatureSpec("image", ("x",), (1, 4, 5))
PLANES = COLOUR.transpose(0, 3, 1, 2)
INT8 = pa.uint8()

IMAGES = {
    "png in a struct": (
        pa.array([{"bytes": picture(a), "path": None} for a in COLOUR]),
        None,
        COLOUR_SPEC,
        PLANES,
    ),
    "png": (pa.array([picture(a) for a in COLOUR]), None, COLOUR_SPEC, PLANES),
    "large binary": (
        pa.array([picture(a) for a in COLOUR], pa.large_binary()),
        None,
        COLOUR_SPEC,
        PLANES,
    ),
    "lossless webp": (
        pa.array([picture(a, "WEBP", lossless=True) for a in COLOUR]),
        None,
        COLOUR_SPEC,
        PLANES,
    ),
    "grey png": (pa.array([picture(a) for a in GREY]), None, GREY_SPEC, GREY[:, None]),
    "grey png as colour": (
        pa.array([picture(a) for a in GREY]),
        None,
        COLOUR_SPEC,
        GREY[:, None].repeat(3, axis=1),
    ),
    "dictionary": (
        pa.array([picture(a) for a in COLOUR]).dictionary_encode(),
        None,
        COLOUR_SPEC,
        PLANES,
    ),
    "npy hwc": (pa.array([npy(a) for a in COLOUR]), None, COLOUR_SPEC, PLANES),
    "npy chw": (pa.array([npy(a) for a in PLANES]), None, COLOUR_SPEC, PLANES),
    "npy fortran order": (
        pa.array([npy(np.asfortranarray(a)) for a in COLOUR]),
        None,
        COLOUR_SPEC,
        PLANES,
    ),
    "npy grey": (pa.array([npy(a) for a in GREY]), None, GREY_SPEC, GREY[:, None]),
    "npy grey as colour": (
        pa.array([npy(a) for a in GREY]),
        None,
        COLOUR_SPEC,
        GREY[:, None].repeat(3, axis=1),
    ),
    "tensor hwc": (tensors(COLOUR), None, COLOUR_SPEC, PLANES),
    "tensor chw": (tensors(np.ascontiguousarray(PLANES)), None, COLOUR_SPEC, PLANES),
    "tensor hw": (tensors(GREY), None, GREY_SPEC, GREY[:, None]),
    "tensor hw1": (tensors(GREY[..., None]), None, GREY_SPEC, GREY[:, None]),
    "tensor hw as colour": (
        tensors(GREY),
        None,
        COLOUR_SPEC,
        GREY[:, None].repeat(3, axis=1),
    ),
    "nested fixed lists": (
        lists(GREY, pa.list_(pa.list_(INT8, 5), 4)),
        None,
        GREY_SPEC,
        GREY[:, None],
    ),
    "raw bytes hw": (
        pa.array([a.tobytes() for a in GREY]),
        note("uint8", (4, 5)),
        GREY_SPEC,
        GREY[:, None],
    ),
    "raw bytes hwc": (
        pa.array([a.tobytes() for a in COLOUR], pa.large_binary()),
        note("uint8", (4, 5, 3)),
        COLOUR_SPEC,
        PLANES,
    ),
}


@pytest.mark.parametrize("form", IMAGES)
def test_images_of_every_form(form):
    values, metadata, spec, expected = IMAGES[form]
    for start, length, part in all_slices(batch_of(values, metadata)):
        found = encode(spec, part)
        check(found, length)
        assert found.values.dtype == np.uint8
        assert not found.errors
        assert np.array_equal(found.values, expected[start : start + length])
        assert found.values.shape[1:] == spec.shape


@pytest.mark.parametrize("form", IMAGES)
def test_threads_decode_the_same_images_and_find_the_same_errors(form):
    values, metadata, spec, _ = IMAGES[form]
    holed = with_nulls(values, np.array([True, False, True, True, False, True]))
    batch = batch_of(holed, metadata)
    alone, shared = encode(spec, batch), encode(spec, batch, threads=4)
    assert np.array_equal(alone.values, shared.values)
    assert np.array_equal(alone.good, shared.good)
    assert alone.errors == shared.errors


@pytest.mark.parametrize("form", IMAGES)
def test_null_images_leave_the_others_alone(form):
    values, metadata, spec, expected = IMAGES[form]
    mask = np.array([True, False, True, True, False, True])
    holed = with_nulls(values, mask)
    for start, length, part in all_slices(batch_of(holed, metadata)):
        found = encode(spec, part)
        check(found, length)
        keep = mask[start : start + length]
        assert np.array_equal(found.good, keep)
        assert np.array_equal(found.values, expected[start : start + length][keep])


def test_a_jpeg_is_decoded_as_pillow_does():
    smooth = np.add.outer(np.arange(16) * 8, np.arange(16) * 4).astype(np.uint8)
    payload = picture(np.stack([smooth, smooth.T, smooth], axis=-1), "JPEG", quality=95)
    spec = FeatureSpec("image", ("x",), (3, 16, 16))
    expected = np.asarray(Image.open(io.BytesIO(payload))).transpose(2, 0, 1)
    assert np.array_equal(encode(spec, batch_of(pa.array([payload]))).values[0], expected)


def test_palette_alpha_and_sixteen_bit_images_become_plain_pixels():
    spec = FeatureSpec("image", ("x",), (1, 2, 2))
    deep = np.array([[0, 255], [256, 65535]], np.uint16)
    found = encode(spec, batch_of(pa.array([picture(deep)])))
    assert found.values[0, 0].tolist() == [[0, 0], [1, 255]]
    rgba = np.dstack([COLOUR[0], np.full((4, 5), 7, np.uint8)])
    found = encode(COLOUR_SPEC, batch_of(pa.array([picture(rgba)])))
    assert np.array_equal(found.values[0], PLANES[0])
    palette = io.BytesIO()
    Image.fromarray(GREY[0]).convert("P").save(palette, "PNG")
    found = encode(COLOUR_SPEC, batch_of(pa.array([palette.getvalue()])))
    assert np.array_equal(found.values[0], GREY[0][None].repeat(3, axis=0))


def test_image_size_scales_and_crops():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    for payload in (picture(wide), npy(wide)):
        spec = FeatureSpec("image", ("x",), (3, 10, 10), image_size=10)
        assert (encode(spec, batch_of(pa.array([payload]))).values == 200).all()
        spec = FeatureSpec("image", ("x",), (3, 5, 5), image_size=5)
        assert encode(spec, batch_of(pa.array([payload]))).values.shape == (1, 3, 5, 5)


def broken_images() -> dict[str, bytes | None]:
    good = picture(COLOUR[0])
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    huge = npy(np.zeros((4, 5, 3), np.uint8)).replace(b"(4, 5, 3)", b"(400000, 500000, 3)"[:9])
    return {
        "null": None,
        "empty": b"",
        "text": b"hello",
        "truncated": picture(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))[:200],
        "cut header": good[:20],
        "wrong shape": picture(COLOUR[0][:2]),
        "bomb": bomb.getvalue(),
        "pickled npy": npy(np.array([{"a": 1}], object)),
        "float npy": npy(COLOUR[0].astype(np.float32)),
        "cut npy": npy(COLOUR[0])[:-1],
        "four channels": npy(np.zeros((4, 5, 4), np.uint8)),
        "huge npy": huge,
        "cut tiff": picture(COLOUR[0], "TIFF")[:30],
        "cut gif": picture(GREY[0], "GIF")[:15],
    }


BROKEN = broken_images()


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_broken_image_has_a_reason_and_no_influence(name):
    payload = BROKEN[name]
    column_ = pa.array([picture(COLOUR[0]), payload, picture(COLOUR[1])], pa.binary())
    found = encode(COLOUR_SPEC, batch_of(column_))
    check(found, 3)
    assert set(found.errors) == {1}
    assert found.errors[1].startswith("image ")
    assert np.array_equal(found.values, PLANES[:2])


def test_too_many_pixels_are_never_decoded(monkeypatch):
    spec = FeatureSpec("image", ("x",), (3, 4, 5), max_pixels=19)
    batch = batch_of(pa.array([picture(COLOUR[0])]))
    for module in (PngImagePlugin.PngImageFile, Image.Image):
        monkeypatch.setattr(module, "load", lambda _: pytest.fail("decoded"))
    found = encode(spec, batch)
    assert "5 x 4 pixels exceed 19" in found.errors[0]


@given(st.binary(max_size=80), st.integers(0, 200), st.integers(0, 255))
@settings(max_examples=60, deadline=None)
@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_no_bytes_make_decoding_raise(noise, place, value):
    damaged = [noise]
    for kind, array in (("PNG", COLOUR[0]), ("JPEG", COLOUR[0]), ("WEBP", COLOUR[0])):
        payload = bytearray(picture(array, kind))
        payload[place % len(payload)] = value
        damaged += [bytes(payload), bytes(payload[:place])]
    payload = bytearray(npy(COLOUR[0]))
    payload[place % 128] = value
    damaged.append(bytes(payload))
    for spec in (COLOUR_SPEC, FeatureSpec("tensor", ("x",), (4, 5, 3))):
        column_ = pa.array([*damaged, npy(COLOUR[1])])
        found = encode(spec, batch_of(column_))
        check(found, len(column_))
        assert found.good[-1]
        assert found.values[-1].sum() == COLOUR[1].sum(dtype=np.int64)


def test_a_transform_takes_pixels_of_any_size():
    def halve(pixels):
        assert pixels.dtype == np.uint8
        return pixels[:, :2, :2].astype(np.float32) / 2

    spec = FeatureSpec("image", ("x",), (3, 4, 5), any_size=True)
    column_ = pa.array([picture(COLOUR[0]), b"broken", picture(COLOUR[1][:3, :3])])
    found = encode(spec, batch_of(column_), halve)
    check(found, 3)
    expected = np.stack([PLANES[0][:, :2, :2], PLANES[1][:, :2, :2]]).astype(np.float32) / 2
    assert np.array_equal(found.values, expected)
    found = encode(spec, batch_of(tensors(COLOUR)), halve)
    assert np.array_equal(found.values, PLANES[:, :, :2, :2].astype(np.float32) / 2)


def test_a_transform_that_fails_or_gives_another_shape_concerns_its_row_alone():
    def odd(pixels):
        if pixels.shape[1] == 2:
            raise RuntimeError("too small")
        return pixels.astype(np.float32) * (np.nan if pixels.shape[2] == 3 else 1)

    spec = FeatureSpec("image", ("x",), (3, 4, 5), any_size=True)
    sizes = [(4, 5), (2, 5), (3, 4), (4, 5), (4, 3)]
    column_ = pa.array([picture(COLOUR[0][:h, :w]) for h, w in sizes])
    found = encode(spec, batch_of(column_), odd)
    check(found, 5)
    assert found.good.tolist() == [True, False, False, True, False]
    assert "too small" in found.errors[1]
    assert np.array_equal(found.values, np.stack([PLANES[0], PLANES[0]]))


def test_images_of_any_size_that_no_transform_needs_get_one_shape():
    spec = FeatureSpec("image", ("x",), (3, 4, 5), any_size=True)
    column_ = pa.array([picture(COLOUR[0]), picture(COLOUR[1][:3, :2])])
    found = encode(spec, batch_of(column_))
    check(found, 2)
    assert not found.errors
    assert found.values.shape == (2, 3, 4, 5)
    assert np.array_equal(found.values[0], PLANES[0])


# Tensors

SPEC = FeatureSpec("tensor", ("x",), (2, 3))
FLAT = FeatureSpec("tensor", ("x",), (6,))
F32, F64 = pa.float32(), pa.float64()
HALF = FLOATS.astype(np.float16)
TENSORS = {
    "tensor": (tensors(FLOATS), None, SPEC, FLOATS),
    "tensor of integers": (
        tensors((FLOATS * 100).astype(np.int64)),
        None,
        SPEC,
        (FLOATS * 100).astype(np.int64),
    ),
    "fixed list": (lists(FLOATS.reshape(ROWS, 6), pa.list_(F32, 6)), None, FLAT, FLOATS),
    "nested fixed": (lists(FLOATS, pa.list_(pa.list_(F32, 3), 2)), None, SPEC, FLOATS),
    "list": (lists(FLOATS.reshape(ROWS, 6), pa.list_(F64)), None, FLAT, FLOATS),
    "large list": (lists(FLOATS.reshape(ROWS, 6), pa.large_list(F32)), None, FLAT, FLOATS),
    "nested lists": (lists(FLOATS, pa.list_(pa.list_(F32))), None, SPEC, FLOATS),
    "lists of fixed": (lists(FLOATS, pa.list_(pa.list_(F32, 3))), None, SPEC, FLOATS),
    "raw": (pa.array([a.tobytes() for a in FLOATS]), note("float32", (2, 3)), SPEC, FLOATS),
    "raw half": (pa.array([a.tobytes() for a in HALF]), note("float16", (2, 3)), SPEC, HALF),
    "raw swapped": (
        pa.array([a.astype(">f8").tobytes() for a in FLOATS], pa.large_binary()),
        note(">f8", (2, 3)),
        SPEC,
        FLOATS,
    ),
    "npy": (pa.array([npy(a) for a in FLOATS]), None, SPEC, FLOATS),
    "npy bool": (pa.array([npy(a > 0) for a in FLOATS]), None, SPEC, FLOATS > 0),
    "list of bool": (
        lists(FLOATS.reshape(ROWS, 6) > 0, pa.list_(pa.bool_())),
        None,
        FLAT,
        FLOATS > 0,
    ),
}


@pytest.mark.parametrize("form", TENSORS)
def test_tensors_of_every_form(form):
    values, metadata, spec, expected = TENSORS[form]
    expected = expected.reshape(ROWS, *spec.shape).astype(np.float32)
    for start, length, part in all_slices(batch_of(values, metadata)):
        found = encode(spec, part)
        check(found, length)
        assert found.values.dtype == np.float32
        assert found.values.shape == (length, *spec.shape)
        assert np.array_equal(found.values, expected[start : start + length])


@pytest.mark.parametrize("form", TENSORS)
def test_null_tensors_leave_the_others_alone(form):
    values, metadata, spec, expected = TENSORS[form]
    expected = expected.reshape(ROWS, *spec.shape).astype(np.float32)
    keep = np.array([True, False, True, True, False, True])
    holed = with_nulls(values, keep)
    for start, length, part in all_slices(batch_of(holed, metadata)):
        found = encode(spec, part)
        check(found, length)
        part_keep = keep[start : start + length]
        assert np.array_equal(found.good, part_keep)
        assert np.array_equal(found.values, expected[start : start + length][part_keep])


def test_wrong_lengths_nulls_and_infinities_are_named_row_by_row():
    rows = [
        [1, 2],
        [1],
        None,
        [],
        [1, None],
        [float("nan"), 0],
        [0, float("inf")],
        [1e300, 0],
        [3, 4],
    ]
    found = encode(FeatureSpec("tensor", ("x",), (2,)), batch_of(pa.array(rows, pa.list_(F64))))
    check(found, len(rows))
    assert found.values.tolist() == [[1, 2], [3, 4]]
    assert found.errors == {
        1: "tensor has 1, not 2 values",
        2: "tensor is null",
        3: "tensor has 0, not 2 values",
        **dict.fromkeys((4, 5, 6, 7), "feature is not finite"),
    }


def test_ragged_nested_lists_are_never_reshaped():
    rows = [[[1, 2], [3, 4]], [[1, 2, 3], [4]], [[1, 2]], [[1, 2], None], [[1], [2], [3], [4]]]
    spec = FeatureSpec("tensor", ("x",), (2, 2))
    found = encode(spec, batch_of(pa.array(rows, pa.list_(pa.list_(F64)))))
    check(found, len(rows))
    assert found.values.tolist() == [[[1, 2], [3, 4]]]
    assert found.errors[1] == "tensor has rows of several lengths, not 4 values"
    assert found.errors[2] == "tensor has 2, not 4 values"


def test_pixels_with_a_hole_are_a_bad_row():
    rows = [[[1, 2], [3, 4]], [[1, None], [3, 4]], None, [[5, 6], [7, 8]]]
    spec = FeatureSpec("image", ("x",), (1, 2, 2))
    found = encode(spec, batch_of(pa.array(rows, pa.list_(pa.list_(INT8, 2), 2))))
    check(found, 4)
    assert found.values.tolist() == [[[[1, 2], [3, 4]]], [[[5, 6], [7, 8]]]]
    assert found.errors == {1: "tensor holds a null", 2: "tensor is null"}


def test_raw_bytes_of_a_wrong_length_and_transposed_npy_are_bad_rows():
    raw = [FLOATS[0].tobytes(), b"", FLOATS[1].tobytes()[:-1], None, FLOATS[1].tobytes()]
    found = encode(SPEC, batch_of(pa.array(raw), note("float32", (2, 3))))
    check(found, 5)
    assert np.array_equal(found.values, FLOATS[:2])
    found = encode(SPEC, batch_of(pa.array([npy(FLOATS[0]), npy(FLOATS[0].T)])))
    assert set(found.errors) == {1}
    found = encode(SPEC, batch_of(pa.array([FLOATS[0].tobytes()])))
    assert "neither .npy bytes" in found.errors[0]


@pytest.mark.parametrize(
    "array", [np.array([{"a": 1}], object), np.array(["a"]), np.array([1j]), np.array(1, "M8[s]")]
)
def test_npy_of_anything_but_numbers_is_refused(array):
    found = encode(FeatureSpec("tensor", ("x",), array.shape), batch_of(pa.array([npy(array)])))
    assert "cannot be decoded" in found.errors[0]


def test_a_member_of_a_struct_is_a_tensor():
    values = pa.array([{"a": {"b": [1.0, 2.0]}}, {"a": None}, None, {"a": {"b": [3.0, 4.0]}}])
    found = encode(FeatureSpec("tensor", ("x.a.b",), (2,)), batch_of(values))
    assert found.values.tolist() == [[1, 2], [3, 4]]
    assert set(found.errors) == {1, 2}


# Tables


def table(**columns) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(columns)


def tabular(*columns: TabularColumn) -> FeatureSpec:
    width = sum(c.width for c in columns)
    return FeatureSpec("tabular", tuple(c.name for c in columns), (width,), tabular=columns)


@pytest.mark.parametrize(
    "values",
    [
        pa.array([1, 3, None], pa.int8()),
        pa.array([1, 3, None], pa.uint64()),
        pa.array([1.0, 3.0, None]),
        pa.array([1.0, 3.0, None], pa.float16()),
        pa.array([decimal.Decimal("1.00"), decimal.Decimal("3.00"), None]),
        pa.array([1, 3, None]).dictionary_encode(),
        pa.array(["1", "3", None]),
        pa.array([9, 1, 3, None]).slice(1),
    ],
    ids=lambda v: str(v.type),
)
def test_numbers_are_standardised_and_a_null_is_the_mean(values):
    spec = tabular(TabularColumn("x", False, mean=2.0, std=0.5))
    found = encode(spec, batch_of(values))
    check(found, 3)
    assert found.values.dtype == np.float32
    assert found.values.tolist() == [[-2.0], [2.0], [0.0]]


def test_booleans_are_numbers():
    spec = tabular(TabularColumn("x", False))
    assert encode(spec, table(x=[True, False, None])).values.tolist() == [[1], [0], [0]]


def test_numbers_that_are_not_finite_are_bad_rows():
    spec = tabular(TabularColumn("x", False), TabularColumn("y", False, std=1e-10))
    found = encode(
        spec, table(x=[1.0, float("nan"), float("inf"), 1e300, 2.0], y=[0.0, 0.0, 0.0, 0.0, 1e30])
    )
    check(found, 5)
    assert found.values.tolist() == [[1.0, 0.0]]
    assert found.errors[1] == "column 'x' is not finite"
    assert found.errors[4] == "column 'y' is not finite"


def test_text_in_a_column_of_numbers_is_a_bad_row():
    spec = tabular(TabularColumn("j.a", False), TabularColumn("y", False))
    batch = table(j=['{"a": 1}', '{"a": "x"}', "{", None, '{"a": 2}'], y=[1, 2, 3, 4, 5])
    found = encode(spec, batch)
    check(found, 5)
    assert found.errors == {1: "column 'j.a' has 'x', not a number"}
    assert found.values.tolist() == [[1, 1], [0, 3], [0, 4], [2, 5]]


def test_a_category_is_one_place_for_one_value_whatever_the_batch_and_type():
    spec = tabular(TabularColumn("x", True))
    names = ["a", "b", None, "", "é", "a"]
    forms = (
        pa.array(names),
        pa.array(names, pa.large_string()),
        pa.array(names).dictionary_encode(),
        pa.array([n if n is None else n.encode() for n in names]),
    )
    expected = encode(spec, batch_of(forms[0])).values
    assert expected.shape == (6, CATEGORY_BUCKETS)
    assert (expected.sum(axis=1) == 1).all()
    assert expected[2].argmax() == 0
    assert (expected[[0, 1, 3, 4, 5]].argmax(axis=1) > 0).all()
    for form in forms:
        assert np.array_equal(encode(spec, batch_of(form)).values, expected)
        for row in range(6):
            alone = encode(spec, batch_of(form.slice(row, 1))).values
            assert np.array_equal(alone[0], expected[row])
    nothing = encode(spec, batch_of(pa.nulls(2, pa.string()))).values
    assert nothing[:, 0].tolist() == [1, 1]


def test_categories_that_are_not_unicode_are_categories():
    raw = pa.array([b"a", b"\xff", b"b"])
    broken = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    found = encode(tabular(TabularColumn("x", True)), batch_of(broken))
    check(found, 3)
    assert not found.errors


def test_columns_stand_in_their_order():
    spec = tabular(
        TabularColumn("a", False), TabularColumn("c", True), TabularColumn("b", False, 1.0, 2.0)
    )
    found = encode(spec, table(b=[5.0], a=[7.0], c=["x"])).values[0]
    assert found[0] == 7.0
    assert found[-1] == 2.0
    assert found[1:-1].sum() == 1.0


# Text

TEXT = FeatureSpec("text", ("x",), (TEXT_TOKENS,))


def tokens_of(found, row: int) -> list[int]:
    return [int(token) for token in found.values[row] if token]


def test_texts_become_sorted_tokens_padded_with_zero():
    found = encode(TEXT, table(x=["one two three", "ONE", "", "!!!", "two two two"]))
    check(found, 5)
    assert found.values.dtype == np.int64
    assert found.values.shape == (5, 5)  # three words and two pairs
    assert found.values.max() < TEXT_BUCKETS
    words = [tokens_of(encode(TEXT, table(x=[w])), 0) for w in ("one", "two", "three")]
    assert tokens_of(found, 0) == sorted(tokens_of(found, 0))
    assert {t for word in words for t in word} < set(tokens_of(found, 0))
    assert tokens_of(found, 1) == words[0]
    assert tokens_of(found, 2) == tokens_of(found, 3) == []
    assert set(words[1]) < set(tokens_of(found, 4))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary()])
def test_a_text_has_its_tokens_whatever_its_type_and_batch(kind):
    texts = ["a cat sat", "été 2024", None, "x"]
    values = pa.array(["pad", *texts]).cast(kind).slice(1)
    found = encode(TEXT, batch_of(values))
    check(found, 4)
    assert found.errors == {2: "text is null"}
    for place, row in enumerate((0, 1, 3)):
        alone = encode(TEXT, table(x=[texts[row]]))
        assert tokens_of(found, place) == tokens_of(alone, 0)


def test_long_texts_keep_their_first_tokens():
    found = encode(TEXT, table(x=[" ".join(f"word{i}" for i in range(1000)), "short"]))
    assert found.values.shape == (2, TEXT_TOKENS)
    assert (found.values[0] > 0).all()


@pytest.mark.parametrize("kind", [pa.binary(), pa.string()])
def test_text_that_is_not_unicode_is_a_bad_row(kind):
    raw = pa.array([b"good one", b"bad \xff\xfe", b"good two"])
    values = pa.Array.from_buffers(kind, 3, raw.buffers())
    found = encode(TEXT, batch_of(values))
    check(found, 3)
    assert found.errors == {1: "text is not UTF-8: invalid start byte at byte 4"}
    clean = encode(TEXT, table(x=["good one", "good two"]))
    assert np.array_equal(found.values, clean.values)


def test_several_text_columns_are_joined():
    spec = FeatureSpec("text", ("a", "b"), (TEXT_TOKENS,))
    found = encode(spec, table(a=["one", "x", None], b=["two", None, "y"]))
    check(found, 3)
    assert set(found.errors) == {1, 2}
    assert np.array_equal(found.values, encode(TEXT, table(x=["one two"])).values)


def test_no_good_text_at_all():
    found = encode(TEXT, table(x=pa.nulls(2, pa.string())))
    check(found, 2)
    assert found.values.shape[0] == 0


# Labels

CLASSES = LabelSpec("y", classes=("0", "1", "2"))


@pytest.mark.parametrize(
    "values",
    [
        pa.array([2, 0, 1], pa.int32()),
        pa.array([2, 0, 1], pa.uint64()),
        pa.array([2.0, 0.0, 1.0]),
        pa.array([2, 0, 1]).dictionary_encode(),
        pa.array([b"2", b" 0\n", b"1\r\n"]),
        pa.array([b"2", b"00", b"01"], pa.large_binary()),
        pa.array(["2", "0", "1"]),
        pa.array([decimal.Decimal("2.0"), decimal.Decimal("0.0"), decimal.Decimal("1.0")]),
        pa.array([1, 2, 0, 1]).slice(1),
    ],
    ids=lambda v: str(v.type),
)
def test_labels_of_every_form(values):
    found, stored = encode_labels(CLASSES, batch_of(values, name="y"))
    check(found, 3)
    assert found.values.dtype == np.int64
    assert found.values.tolist() == [2, 0, 1]
    assert stored.type == pa.int64()
    assert stored.to_pylist() == [2, 0, 1]


def test_boolean_labels_are_zero_and_one():
    found, stored = encode_labels(LabelSpec("y", classes=("0", "1")), table(y=[True, False, None]))
    assert found.values.tolist() == [1, 0]
    assert stored.to_pylist() == [1, 0, None]
    assert found.errors == {2: "label is null"}


def test_classes_have_their_own_order():
    spec = LabelSpec("y", classes=("-5", "10", "3"))
    found, _ = encode_labels(spec, table(y=[3, -5, 10]))
    assert found.values.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["b", "a", None, "z"]),
        pa.array(["b", "a", None, "z"], pa.large_string()),
        pa.array(["b", "a", None, "z"]).dictionary_encode(),
        pa.array([b"b\n", b" a", None, b"z"]),
    ],
    ids=lambda v: str(v.type),
)
def test_labels_as_text(values):
    spec = LabelSpec("y", stored="string", classes=("a", "b"))
    found, stored = encode_labels(spec, batch_of(values, name="y"))
    check(found, 4)
    assert found.values.tolist() == [1, 0]
    assert stored.to_pylist() == ["b", "a", None, "z"]
    assert found.errors == {2: "label is null", 3: "label 'z' is outside the 2 classes"}


def test_text_labels_do_not_depend_on_their_batch():
    spec = LabelSpec("y", stored="string", classes=("03", "3", "cat"))
    for values in ([b"03"], [b"03", b"cat"], [b"03", b"3"]):
        found, stored = encode_labels(spec, table(y=values))
        assert found.values[0] == 0
        assert stored[0].as_py() == "03"


def test_bad_labels_are_named_and_leave_the_others_alone():
    values = [b"1", b"cat", b"\xff", None, b"", b"7", b"-1", b"1.5", b"2"]
    found, stored = encode_labels(CLASSES, table(y=values))
    check(found, len(values))
    assert found.values.tolist() == [1, 2]
    assert found.errors[1] == "label 'cat' is not an integer"
    assert found.errors[3] == "label is null"
    assert found.errors[5] == "label 7 is outside the 3 classes"
    assert stored.to_pylist() == [1, None, None, None, None, 7, -1, None, 2]


@pytest.mark.parametrize(
    "values",
    [
        pa.array([0, 2**64 - 1, 1], pa.uint64()),
        pa.array([0.0, float("nan"), 1.0]),
        pa.array([0.0, float("inf"), 1.0]),
        pa.array([0.0, 0.5, 1.0]),
        pa.array(["0", "99999999999999999999", "1"]),
        pa.Array.from_buffers(pa.string(), 3, pa.array([b"0", b"\xff", b"1"]).buffers()),
    ],
    ids=str,
)
def test_labels_that_are_no_class_index(values):
    found, stored = encode_labels(CLASSES, batch_of(values, name="y"))
    check(found, 3)
    assert found.good.tolist() == [True, False, True]
    assert found.values.tolist() == [0, 1]
    assert stored.to_pylist()[::2] == [0, 1]


def test_regression_targets():
    spec = LabelSpec("y", "regression", "float64")
    values = [1.5, None, float("nan"), float("inf"), 1e300, -2.0]
    found, stored = encode_labels(spec, table(y=values))
    check(found, 6)
    assert found.values.dtype == np.float32
    assert found.values.tolist() == [1.5, -2.0]
    assert found.errors[1] == "label is null"
    assert found.errors[2] == "label is not finite"
    assert stored.type == pa.float64()
    for form in (pa.array([3, 4]), pa.array(["3", "4"]), pa.array([b"3", b"4\n"])):
        found, _ = encode_labels(spec, batch_of(form, name="y"))
        assert found.values.tolist() == [3.0, 4.0]
    found, _ = encode_labels(spec, table(y=["3", "x", "4.5"]))
    assert found.errors == {1: "label 'x' is not a number"}
    assert found.values.tolist() == [3.0, 4.5]


def test_no_label():
    found, stored = encode_labels(LabelSpec(None), table(x=[1, 2]))
    check(found, 2)
    assert found.good.all()
    assert stored.null_count == 2


# Paths


def test_paths():
    batch = table(
        json=['{"label": 3, "a": {"b": 1}}', '{"label": null}', "[1]", "nonsense", None, "{}"],
        **{"seg.npy": list(range(6))},
        s=[{"x": 1}, {"x": 2}, None, {"x": None}, {"x": 5}, {"x": 6}],
    )
    assert column(batch, "json.label").to_pylist() == [3, None, None, None, None, None]
    assert column(batch, "seg.npy").to_pylist() == list(range(6))
    assert column(batch, "s.x").to_pylist() == [1, 2, None, None, 5, 6]
    assert column(batch.slice(3, 2), "s.x").to_pylist() == [None, 5]
    assert column(batch, "s.gone").null_count == 6
    assert column(batch, "s.x.deeper").null_count == 6
    assert top_level("json.a.b", batch.schema) == "json"
    with pytest.raises(KeyError):
        top_level("gone.a", batch.schema)


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        (['{"a": 1}', '{"a": "x"}'], ["1", "x"]),
        (['{"a": 1}', '{"a": 2.5}'], [1.0, 2.5]),
        (['{"a": 1}', '{"a": 100000000000000000000000}'], ["1", "100000000000000000000000"]),
        (["[" * 100_000, '{"a": 1}'], [None, 1]),
        ([b"\xff", b'{"a": "\xc3\xa9"}'], [None, "é"]),
        (['{"a": [1]}', '{"a": 2}'], ["[1]", "2"]),
    ],
)
def test_json_of_mixed_kinds(documents, expected):
    assert column(table(j=documents), "j.a").to_pylist() == expected


def test_a_dictionary_within_a_struct_is_resolved():
    inner = pa.array(["a", "b"]).dictionary_encode()
    batch = batch_of(pa.StructArray.from_arrays([inner], ["y"]))
    assert column(batch, "x.y").to_pylist() == ["a", "b"]
    assert column(batch, "x.y").type == pa.string()


@given(
    st.lists(
        st.one_of(
            st.none(),
            st.integers(-5, 5),
            st.floats(),
            st.text(max_size=4),
            st.lists(st.integers(0, 3), max_size=2),
            st.booleans(),
        ),
        min_size=1,
        max_size=12,
    )
)
@settings(max_examples=60, deadline=None)
def test_whatever_a_json_column_holds_every_row_is_good_or_has_a_reason(members):
    documents = [json.dumps({"v": member}) for member in members]
    batch = table(j=documents)
    specs = (
        tabular(TabularColumn("j.v", False)),
        tabular(TabularColumn("j.v", True)),
        FeatureSpec("text", ("j.v",), (TEXT_TOKENS,)),
    )
    labels = (
        LabelSpec("j.v", classes=("0", "1")),
        LabelSpec("j.v", stored="string", classes=("0", "a")),
        LabelSpec("j.v", "regression", "float64"),
    )
    for label in labels:
        found, stored = encode_labels(label, batch)
        check(found, len(members))
        assert len(stored) == len(members)
        assert stored.type == label.type
    for spec in specs:
        check(encode(spec, batch), len(members))
