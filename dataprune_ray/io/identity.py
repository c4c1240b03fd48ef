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
_TEXTS = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_binary,
    pa.types.is_large_binary,
)


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
    r"""A column as text keys: integers in decimal, strings as they are.

    Bytes that are not UTF-8 are written as ``\xff``.

    Raises:
        pa.ArrowInvalid: the type has no exact text form (floating point, nested).
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    if pa.types.is_fixed_size_binary(kind):
        column = column.cast(pa.binary())
    if any(is_text(column.type) for is_text in _TEXTS):
        return _text(column)
    if pa.types.is_floating(kind) or pa.types.is_nested(kind):
        raise pa.ArrowInvalid(f"an id column must hold strings or integers, not {kind}")
    return column.cast(pa.string())


def _text(column: pa.Array) -> pa.Array:
    try:
        text = column.cast(pa.string())
        text.validate(full=True)
    except pa.ArrowInvalid:
        raw = column.cast(pa.large_binary()).to_pylist()
        return pa.array([_decoded(v) for v in raw], pa.string())
    return text


def _decoded(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "backslashreplace")
