"""Writers of corpus shards: rows in, one complete file out, the same bytes every time.

A shard is written under a temporary name in its own folder, flushed to disk and then renamed, so a
file under its final name is whole. Use these to make a corpus; pruning copies rows by other means.

========== ======= ===============================================================================
layout     file    one row
========== ======= ===============================================================================
image      Parquet ``img: struct<bytes: binary, path: string>``, the file bytes or a lossless PNG
tensor     Parquet ``img`` or ``x``: Arrow fixed-shape tensor, which ``datasets`` cannot read
raw        Parquet ``img`` or ``x``: binary, the array in C order; dtype and shape in its metadata
webdataset tar     ``KEY.png`` (or the file's own ending), ``KEY.cls``, ``KEY.json`` with the id
table      Parquet the source's own columns
========== ======= ===============================================================================

All but ``table`` add ``label``, and all an ``id``; images with named classes carry the Hugging
Face schema metadata with those names.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dataprune_ray.errors import BadDataError, ConfigError, UnknownNameError

LABEL = "label"
ID = "id"
CLEAN_LABEL = "clean_label"

#: Endings that WebDataset should see as one, since an ending is a column there.
_SAME_ENDING = {".jpeg": ".jpg", ".jpe": ".jpg", ".jfif": ".jpg", ".tiff": ".tif"}

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of a source: pixels (H, W), (H, W, C) or any array, or an encoded image's bytes."""

    content: Array | bytes
    label: Any
    path: str | None = None


@dataclass(frozen=True, slots=True)
class SampleBatch:
    """Numbered rows with the labels that are written, and the true ones where those differ."""

    samples: Sequence[Sample]
    ids: Array
    labels: pa.Array[Any]
    clean_labels: pa.Array[Any] | None = None


@dataclass(frozen=True)
class ShardSpec:
    """What a writer must know before the first row."""

    column: str = "img"
    class_names: tuple[str, ...] | None = None


class ShardWriter(Protocol):
    """Writes whole shards; one writer sees all shards of a corpus, so it can check shapes."""

    suffix: str
    #: Column in which a reader of the corpus finds the labels of samples.
    label: str

    def write_shard(self, path: Path, batches: Iterable[Any]) -> None:
        """Write one file from the batches of one shard; the file appears only when whole."""


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name only when it is whole and on disk.

    The temporary name is a fixed one, so what a killed run leaves behind can be found and removed.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def decode(content: Array | bytes, where: str) -> Array:
    """Pixels (H, W) or (H, W, C) of an encoded image; an array is returned as it is.

    Raises:
        BadDataError: the bytes are no image.
    """
    if not isinstance(content, bytes):
        return content
    try:
        with Image.open(io.BytesIO(content)) as image:
            return pixels(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadDataError(
            f"{where}: cannot be decoded ({error}); --layout image copies files as they are"
        ) from None


def pixels(image: Image.Image) -> Array:
    """Pixels of a Pillow image; palette and other uncommon modes become RGB, bilevel grey."""
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "RGB", "RGBA", "I;16"):
        image = image.convert("RGB")
    return np.array(image)


def encode_png(array: Array) -> bytes:
    """Lossless PNG of uint8 pixels (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or uint16 (H, W).

    Raises:
        ConfigError: no PNG can hold such an array exactly.
    """
    flat = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array  # noqa: PLR2004
    colour = flat.ndim == 3 and flat.shape[2] in (3, 4)  # noqa: PLR2004
    grey = flat.ndim == 2  # noqa: PLR2004
    if not ((flat.dtype == np.uint8 and (grey or colour)) or (flat.dtype == np.uint16 and grey)):
        shape = f"{array.dtype} of shape {array.shape}"
        raise ConfigError("layout", "image", f"cannot hold {shape}; use --layout raw or tensor")
    buffer = io.BytesIO()
    Image.fromarray(flat).save(buffer, format="PNG")
    return buffer.getvalue()


class ParquetWriter(ABC):
    """Parquet shards; a subclass turns its batches into record batches, one per row group."""

    suffix = ".parquet"
    label = LABEL
    compression: Any = "zstd"
    #: Columns whose values rarely repeat: no dictionary, no statistics.
    bulky: tuple[str, ...] = ()

    def __init__(self, spec: ShardSpec) -> None:
        self.spec = spec

    @abstractmethod
    def record_batch(self, batch: Any) -> pa.RecordBatch:
        """One row group; all of a corpus's have the same schema."""

    def write_shard(self, path: Path, batches: Iterable[Any]) -> None:
        """Write one Parquet file, a row group per batch."""
        with atomic(path) as file, contextlib.ExitStack() as closing:
            writer = None
            for batch in batches:
                rows = self.record_batch(batch)
                if writer is None:
                    small = [name for name in rows.schema.names if name not in self.bulky]
                    options: Any = {"use_dictionary": small, "write_statistics": small}
                    options["compression"] = self.compression
                    writer = pq.ParquetWriter(file, rows.schema, **options)
                    closing.callback(writer.close)
                writer.write_table(pa.Table.from_batches([rows]), row_group_size=max(1, len(rows)))


class TableWriter(ParquetWriter):
    """Record batches as they come."""

    def record_batch(self, batch: Any) -> pa.RecordBatch:
        """The batch itself."""
        rows: pa.RecordBatch = batch
        return rows


class SampleWriter(ParquetWriter):
    """Content column, ``label``, ``clean_label`` where there is noise, and ``id``."""

    def __init__(self, spec: ShardSpec) -> None:
        super().__init__(spec)
        self.bulky = (spec.column,)

    def record_batch(self, batch: Any) -> pa.RecordBatch:
        """Arrow form of a ``SampleBatch``."""
        field, content = self.content(batch)
        columns = {LABEL: batch.labels}
        if batch.clean_labels is not None:
            columns[CLEAN_LABEL] = batch.clean_labels
        columns[ID] = pa.array(batch.ids, pa.int64())
        fields = [field, *[pa.field(name, column.type) for name, column in columns.items()]]
        schema = pa.schema(fields, metadata=self.metadata(fields))
        return pa.RecordBatch.from_arrays([content, *columns.values()], schema=schema)

    @abstractmethod
    def content(self, batch: SampleBatch) -> tuple[pa.Field[Any], pa.Array[Any]]:
        """Field and values of the content column."""

    @abstractmethod
    def feature(self) -> dict[str, Any] | None:
        """Hugging Face's name for the content column; None where it has none that fits."""

    def metadata(self, fields: Sequence[pa.Field[Any]]) -> dict[bytes | str, bytes | str] | None:
        """Schema metadata from which ``datasets`` restores the features."""
        content = self.feature()
        if content is None:
            return None
        features: dict[str, Any] = {self.spec.column: content}
        for field in fields[1:]:
            features[field.name] = {"dtype": str(field.type), "_type": "Value"}
            if field.name in (LABEL, CLEAN_LABEL) and self.spec.class_names is not None:
                names = list(self.spec.class_names)
                features[field.name] = {"names": names, "_type": "ClassLabel"}
        return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


class ImageWriter(SampleWriter):
    """Encoded images: source bytes untouched, arrays as PNG."""

    compression = "none"

    def content(self, batch: SampleBatch) -> tuple[pa.Field[Any], pa.Array[Any]]:
        """Struct of bytes and path."""
        found = [s.content for s in batch.samples]
        encoded = [c if isinstance(c, bytes) else encode_png(c) for c in found]
        paths = [s.path for s in batch.samples]
        arrays: Any = [pa.array(encoded, pa.binary()), pa.array(paths, pa.string())]
        values = pa.StructArray.from_arrays(arrays, names=["bytes", "path"])
        return pa.field(self.spec.column, values.type), values

    def feature(self) -> dict[str, Any] | None:
        """An image."""
        return {"_type": "Image"}


class ArrayWriter(SampleWriter):
    """Base of the layouts that hold decoded arrays of one shape and dtype."""

    shape: tuple[int, ...] | None = None
    dtype: Any = None

    def stack(self, batch: SampleBatch) -> Array:
        """All arrays of a batch (B, …), C-contiguous and little-endian."""
        arrays = []
        for sample, identity in zip(batch.samples, batch.ids, strict=True):
            where = sample.path or f"row {identity}"
            array = decode(sample.content, where)
            if self.shape is None:
                self.shape, self.dtype = array.shape, array.dtype.newbyteorder("<")
            elif (array.shape, array.dtype.newbyteorder("<")) != (self.shape, self.dtype):
                found = f"{array.dtype} of shape {array.shape}"
                raise BadDataError(
                    f"{where}: {found}, but the first row is {self.dtype} of shape {self.shape}; "
                    "use --layout image for images that differ"
                )
            arrays.append(array)
        return np.stack(arrays).astype(self.dtype, order="C", copy=False)


class TensorWriter(ArrayWriter):
    """Arrow's canonical fixed-shape tensor extension type."""

    def content(self, batch: SampleBatch) -> tuple[pa.Field[Any], pa.Array[Any]]:
        """Tensors over one flat buffer."""
        stacked = self.stack(batch)
        kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(stacked.dtype), stacked.shape[1:])
        width = int(np.prod(stacked.shape[1:]))
        storage = pa.FixedSizeListArray.from_arrays(pa.array(stacked.reshape(-1)), width)
        values = pa.ExtensionArray.from_storage(kind, storage)
        return pa.field(self.spec.column, kind), values

    def feature(self) -> dict[str, Any] | None:
        """Hugging Face knows no fixed-shape tensor."""
        return None


class RawWriter(ArrayWriter):
    """The arrays' bytes, which Parquet reads back several times faster than lists."""

    def content(self, batch: SampleBatch) -> tuple[pa.Field[Any], pa.Array[Any]]:
        """Binary values, one slice of the stacked array each."""
        stacked = self.stack(batch)
        width = stacked[0].nbytes
        if stacked.nbytes > np.iinfo(np.int32).max:
            raise ConfigError("row_group_rows", len(stacked), f"of {width} bytes: too many, lower")
        offsets = (np.arange(len(stacked) + 1) * width).astype(np.int32)
        buffers = [None, pa.py_buffer(offsets.data), pa.py_buffer(stacked.data)]
        values = pa.Array.from_buffers(pa.binary(), len(stacked), buffers)
        about = {"dtype": str(stacked.dtype), "shape": list(stacked.shape[1:])}
        metadata = {b"dataprune": json.dumps(about, separators=(",", ":")).encode()}
        return pa.field(self.spec.column, pa.binary(), metadata=metadata), values

    def feature(self) -> dict[str, Any] | None:
        """Plain bytes."""
        return {"dtype": "binary", "_type": "Value"}


class TarWriter:
    """WebDataset tars; keys are row ids, so no source's file name reaches a member's name."""

    suffix = ".tar"
    label = "cls"

    def __init__(self, spec: ShardSpec) -> None:
        self.spec = spec

    def write_shard(self, path: Path, batches: Iterable[Any]) -> None:
        """Write one tar with fixed times and owners."""
        with atomic(path) as file, tarfile.open(fileobj=file, mode="w") as tar:
            for batch in batches:
                labels = batch.labels.to_pylist()
                clean = batch.clean_labels.to_pylist() if batch.clean_labels is not None else labels
                rows = zip(batch.samples, batch.ids.tolist(), labels, clean, strict=True)
                for sample, identity, label, true_label in rows:
                    about = {ID: identity}
                    if batch.clean_labels is not None:
                        about[CLEAN_LABEL] = true_label
                    suffix, content = _member(sample)
                    key = f"{identity:09d}"
                    _add(tar, f"{key}{suffix}", content)
                    _add(tar, f"{key}.{self.label}", str(label).encode())
                    _add(tar, f"{key}.json", json.dumps(about).encode())


def _member(sample: Sample) -> tuple[str, bytes]:
    if not isinstance(sample.content, bytes):
        return ".png", encode_png(sample.content)
    suffix = PurePosixPath(sample.path or "").suffix.lower()
    return _SAME_ENDING.get(suffix, suffix) or ".png", sample.content


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


SHARD_WRITERS: dict[str, Callable[[ShardSpec], ShardWriter]] = {
    "image": ImageWriter,
    "raw": RawWriter,
    "table": TableWriter,
    "tensor": TensorWriter,
    "webdataset": TarWriter,
}


def get_shard_writer(layout: str) -> Callable[[ShardSpec], ShardWriter]:
    """The writer of a layout.

    Raises:
        UnknownNameError: no layout has that name.
    """
    if layout not in SHARD_WRITERS:
        raise UnknownNameError("layout", layout, SHARD_WRITERS)
    return SHARD_WRITERS[layout]
