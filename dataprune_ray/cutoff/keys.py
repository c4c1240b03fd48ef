"""Integer keys: float32 scores as ordered uint32, identity hashes mixed with a seed."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

#: The end of the score that is kept.
End = Literal["high", "low"]

#: Largest 64-bit hash: as a bound it admits every row.
HASH_MAX = 2**64 - 1

_SIGN = np.uint32(0x80000000)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def ordered_key(scores: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Integers in the order of the scores; equal scores, -0.0 and +0.0 among them, share one.

    Args:
        scores: float32 (N,), finite.

    Returns:
        uint32 (N,); ``a < b`` exactly where the score of a is below the score of b.

    Raises:
        ValueError: a score is NaN or infinite, or the array is not float32.
    """
    if scores.dtype != np.float32:
        raise ValueError(f"scores must be float32, found {scores.dtype}")
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite: NaN and infinity have no place in an order")
    bits = scores.view(np.uint32)
    bits = np.where(bits == _SIGN, np.uint32(0), bits)  # -0.0 becomes +0.0
    # A set sign bit turns all the bits around; otherwise only the sign bit is set.
    flip = (bits.view(np.int32) >> 31).view(np.uint32) | _SIGN
    return np.asarray(bits ^ flip, dtype=np.uint32)


def score_of_key(keys: NDArray[np.uint32]) -> NDArray[np.float32]:
    """The scores that :func:`ordered_key` maps to ``keys`` (N,); zero comes back as +0.0."""
    keys = np.asarray(keys, dtype=np.uint32)
    negative = (keys & _SIGN) == 0
    return np.where(negative, ~keys, keys & ~_SIGN).astype(np.uint32).view(np.float32)


def seeded_hash(row_hash: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Mix identity hashes with a seed: a bijection for each seed, so unique stays unique.

    The seed is mixed first and added, then the finaliser of SplitMix64 (Steele, Lea and Flood,
    "Fast splittable pseudorandom number generators", 2014) spreads every bit. The result breaks
    every tie and drives every random choice.

    Args:
        row_hash: uint64 (N,), one per row.
        seed: 0 to 2**64 - 1.

    Returns:
        uint64 (N,), uniform over the 64-bit integers for distinct inputs.
    """
    start = _mix(np.array([seed], dtype=np.uint64) + _GOLDEN)
    return _mix(np.asarray(row_hash, dtype=np.uint64) + start)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64, in place on an array that the caller owns."""
    values ^= values >> np.uint64(30)
    values *= _MIX_1
    values ^= values >> np.uint64(27)
    values *= _MIX_2
    values ^= values >> np.uint64(31)
    return values
