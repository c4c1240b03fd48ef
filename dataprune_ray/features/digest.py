"""What tells exact copies: a digest of a row's content, whatever its identity and its label."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dataprune_ray.features.columns import as_bytes, column
from dataprune_ray.features.encoded import Array
from dataprune_ray.features.spec import FeatureSpec

#: Bytes of a digest.
SIZE = 16


def digests(
    spec: FeatureSpec, batch: pa.RecordBatch, values: Array, good: npt.NDArray[np.bool_]
) -> npt.NDArray[np.uint64]:
    """Digests (m, 2) of the good rows (n,) of a batch, ``values`` (m, …) being their inputs.

    Images and tensors are compared as the model takes them: two encodings of the same pixels are
    copies. Texts and tables are compared as stored, because hashing makes some of them alike.
    """
    if spec.modality in ("text", "tabular"):
        contents = _stored(spec, batch, good)
    else:
        contents = (row.tobytes() for row in values)
    found = b"".join(hashlib.blake2b(c, digest_size=SIZE).digest() for c in contents)
    return np.frombuffer(found, np.uint64).reshape(-1, 2)


def _stored(
    spec: FeatureSpec, batch: pa.RecordBatch, good: npt.NDArray[np.bool_]
) -> Iterator[bytes]:
    names = spec.columns or tuple(entry.name for entry in spec.tabular)
    columns = [as_bytes(column(batch, name)) for name in names]
    for position in np.flatnonzero(good):
        parts = [values[position] for values in columns]
        yield b"".join(b"-" if part is None else b"%d:%b" % (len(part), part) for part in parts)
