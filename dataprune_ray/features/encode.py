"""Batches to arrays; a row that cannot be encoded gets a reason instead."""

from __future__ import annotations

import zlib
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dataprune_ray.features.columns import as_bytes, column, is_text
from dataprune_ray.features.encoded import Array, Encoded, Transform, positions
from dataprune_ray.features.images import encode_images
from dataprune_ray.features.labels import cast_labels
from dataprune_ray.features.spec import (
    CATEGORY_BUCKETS,
    TEXT_BUCKETS,
    TEXT_TOKENS,
    FeatureSpec,
    LabelSpec,
)
from dataprune_ray.features.tensors import encode_tensors


def encode(
    spec: FeatureSpec,
    batch: pa.RecordBatch,
    transform: Transform | None = None,
    threads: int = 1,
) -> Encoded:
    """Encode a batch's feature columns as `FeatureSpec` says.

    ``transform`` replaces an image's uint8 pixels by whatever it returns, image by image; so many
    ``threads`` decode images.
    """
    if spec.modality == "image":
        return encode_images(spec, batch, transform, threads)
    if spec.modality == "tensor":
        return encode_tensors(spec, batch, spec.shape, np.dtype(np.float32))
    if spec.modality == "text":
        return encode_texts([column(batch, name) for name in spec.columns])
    return encode_table(spec, batch)


def encode_example(spec: FeatureSpec, transform: Transform | None = None) -> Array:
    """Two model inputs of zeros, as a batch: to see whether a model takes them."""
    dtype = {"image": np.uint8, "text": np.int64}.get(spec.modality, np.float32)
    rows = np.zeros((2, *spec.shape), dtype)
    if transform is None:
        return rows
    return np.stack([np.asarray(transform(row)) for row in rows])


@cache
def _vectorizer() -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer  # noqa: PLC0415 - texts only

    return HashingVectorizer(
        n_features=TEXT_BUCKETS - 1,
        ngram_range=(1, 2),
        norm=None,
        alternate_sign=False,
        token_pattern=r"(?u)\b\w+\b",  # noqa: S106 - a pattern of words
    )


def encode_texts(columns: list[pa.Array]) -> Encoded:
    """Hashed words and word pairs, as sorted token ids from 1; several columns are joined."""
    errors: dict[int, str] = {}
    texts: list[str] = []
    for position, parts in enumerate(zip(*map(as_bytes, columns), strict=True)):
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            errors[position] = "text is null"
            continue
        try:
            texts.append(b" ".join(known).decode("utf-8"))
        except UnicodeDecodeError as error:
            errors[position] = f"text is not UTF-8: {error.reason} at byte {error.start}"
    counts = _vectorizer().transform(texts) if texts else None
    lengths = np.diff(counts.indptr) if counts is not None else np.zeros(0, np.int64)
    width = int(min(max(lengths.max(initial=1), 1), TEXT_TOKENS))
    tokens = np.zeros((len(texts), width), np.int64)
    for row in range(len(texts)):
        assert counts is not None  # noqa: S101 - there are texts, so there are counts
        found = counts.indices[counts.indptr[row] : counts.indptr[row + 1]][:width]
        tokens[row, : len(found)] = found + 1
    good = np.ones(len(columns[0]), bool)
    good[list(errors)] = False
    return Encoded(tokens, good, errors)


def encode_table(spec: FeatureSpec, batch: pa.RecordBatch) -> Encoded:
    """Standardised numbers and one-hot categories side by side: float32 (m, D)."""
    parts: list[Array] = []
    errors: dict[int, str] = {}
    for entry in spec.tabular:
        values = column(batch, entry.name)
        if entry.categorical:
            parts.append(_one_hot(values))
            continue
        numbers, bad = _numbers(values)
        for position, value in bad.items():
            errors.setdefault(position, f"column {entry.name!r} has {value!r}, not a number")
        known = ~np.asarray(values.is_null())
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = (np.where(known, numbers, entry.mean) - entry.mean) / entry.std
            parts.append(scaled.astype(np.float32)[:, None])
        for position in positions(~np.isfinite(parts[-1][:, 0])):
            errors.setdefault(position, f"column {entry.name!r} is not finite")
    rows = np.concatenate(parts, axis=1) if parts else np.zeros((batch.num_rows, 0), np.float32)
    good = np.ones(batch.num_rows, bool)
    good[list(errors)] = False
    return Encoded(rows[good] if errors else rows, good, errors)


def _numbers(values: pa.Array) -> tuple[npt.NDArray[np.float64], dict[int, object]]:
    """Numbers float64 (n,), and the values that are none: JSON members have no fixed type."""
    values = _flat(values)
    if not is_text(values.type):
        return numeric(values), {}
    cast, bad = cast_labels(values, LabelSpec(None, "regression", "float64"))
    return numeric(cast), bad


def _flat(values: pa.Array) -> pa.Array:
    """Lists and objects that JSON members may hold as their text."""
    if not pa.types.is_nested(values.type):
        return values
    return pa.array([None if v is None else str(v) for v in values.to_pylist()], pa.string())


def numeric(values: pa.Array) -> npt.NDArray[np.float64]:
    """A numeric or boolean column as float64 (n,), null as NaN."""
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.int8())
    if pa.types.is_decimal(values.type) or pa.types.is_temporal(values.type):
        values = values.cast(pa.int64() if pa.types.is_temporal(values.type) else pa.float64())
    return np.asarray(values.to_numpy(zero_copy_only=False), np.float64)


def _one_hot(values: pa.Array) -> npt.NDArray[np.float32]:
    """Hash of the category's text to one of `CATEGORY_BUCKETS`; null is a category of its own."""
    values = _flat(values)
    encoded = values.dictionary_encode()
    names = [name or b"" for name in as_bytes(encoded.dictionary)]
    buckets = np.array([*(1 + zlib.crc32(n) % (CATEGORY_BUCKETS - 1) for n in names), 0])
    codes = encoded.indices.fill_null(len(names)).to_numpy(zero_copy_only=False)
    hot = np.zeros((len(values), CATEGORY_BUCKETS), np.float32)
    hot[np.arange(len(values)), buckets[codes]] = 1.0
    return hot
