"""Symmetric label noise: a chosen share of rows gets one of the other labels, all equally likely.

Every choice is a hash of the seed and the row's id, so it does not depend on batches or shards.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_GOLDEN = 0x9E3779B97F4A7C15


def flip(
    codes: npt.NDArray[np.int64], ids: npt.NDArray[np.int64], classes: int, share: float, seed: int
) -> npt.NDArray[np.int64]:
    """Codes (B,) in 0..classes-1 with ``share`` of them moved; negative codes (no label) stay."""
    moved = (_uniform(ids, seed, 1) < share) & (codes >= 0)
    step = 1 + (_uniform(ids, seed, 2) * (classes - 1)).astype(np.int64)
    return np.where(moved, (codes + step) % classes, codes)


def _uniform(ids: npt.NDArray[np.int64], seed: int, stream: int) -> npt.NDArray[np.float64]:
    """One number in [0, 1) per id: SplitMix64's finaliser over id, seed and stream."""
    offset = np.uint64(((2 * seed + 1) * _GOLDEN + stream * 0xD1B54A32D192ED03) % 2**64)
    z = _mix(ids.astype(np.uint64) * np.uint64(_GOLDEN) + _mix(np.array([offset])))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
