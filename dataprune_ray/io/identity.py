"""64-bit identity of a row: of its file and position, or of its key.

The identity does not know the seed (`dataprune_ray.cutoff.seeded_hash` mixes it in later), so a
score table serves any seed. With a key it does not depend on how rows lie in files.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from dataprune_ray.cutoff import seeded_hash

_KEY_HASH_KEY = "dataprune-ray-id"  # 16 bytes, as pandas asks


def file_seed(file: str) -> int:
    """A number below 2**63 from a file's relative path."""
    digest = hashlib.blake2b(file.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def position_hashes(file: str, start: int, rows: int) -> npt.NDArray[np.uint64]:
    """Identities of ``rows`` rows of ``file`` from position ``start``: uint64 (rows,)."""
    positions = np.arange(start, start + rows, dtype=np.uint64)
    return seeded_hash(positions, file_seed(file))


def key_hashes(keys: pa.Array) -> npt.NDArray[np.uint64]:
    """Identities of rows by their keys, a string array without nulls: uint64 (n,).

    The hash is SipHash of the UTF-8 text, so that ``7`` and ``"7"`` name the same row.
    """
    values = np.asarray(keys.to_pylist(), dtype=object)
    if not len(values):
        return np.zeros(0, np.uint64)
    return np.asarray(
        pd.util.hash_array(values, hash_key=_KEY_HASH_KEY, categorize=False), dtype=np.uint64
    )


def as_keys(column: pa.Array) -> pa.Array:
    """A column as text keys: integers in decimal, strings as they are.

    Raises:
        pa.ArrowInvalid: the type has no exact text form (floating point, nested).
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return column.cast(pa.string())
    if pa.types.is_floating(kind) or pa.types.is_nested(kind):
        raise pa.ArrowInvalid(f"an id column must hold strings or integers, not {kind}")
    return column.cast(pa.string())
