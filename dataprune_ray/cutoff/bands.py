"""Bands: score intervals with a bound on the hash, and which rows of a block lie in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataprune_ray.cutoff.keys import HASH_MAX
from dataprune_ray.cutoff.population import Block
from dataprune_ray.cutoff.reasons import CODE, NOT_CHOSEN


def _is_float32(value: float) -> bool:
    """Whether a float32 holds the value exactly (infinities do, NaN does not)."""
    with np.errstate(over="ignore"):
        return float(np.float32(value)) == value


@dataclass(frozen=True)
class Band:
    """Rows of one group: an inclusive score interval and a bound on the hash.

    Attributes:
        group: group code; None for every group.
        score_low, score_high: float32 values (``-inf`` and ``inf`` where open).
        hash_max: 0 to ``HASH_MAX``; the latter admits every row.
    """

    group: int | None
    score_low: float
    score_high: float
    hash_max: int = HASH_MAX

    def __post_init__(self) -> None:
        for bound in (self.score_low, self.score_high):
            if not _is_float32(bound):
                raise ValueError(f"band bound {bound!r} is not a float32")
        if not 0 <= self.hash_max <= HASH_MAX:
            raise ValueError(f"hash_max={self.hash_max} is not an unsigned 64-bit integer")


#: Admits no row: fills the layers of groups with fewer bands.
_EMPTY = Band(None, math.inf, -math.inf, 0)


@dataclass(frozen=True)
class Layer:
    """One band of each group (G,), as arrays; None where no band of the layer has that bound."""

    low: NDArray[np.float32] | None
    high: NDArray[np.float32] | None
    hash_max: NDArray[np.uint64] | None
    kept: NDArray[np.int8]
    missed: NDArray[np.int8]
    empty: NDArray[np.bool_] | None  # groups that have no band in this layer

    @classmethod
    def of(cls, bands: list[Band]) -> Layer:
        """One band of each group, in the order of the groups' codes."""
        empty = np.array([b is _EMPTY for b in bands])
        low = np.array([-np.inf if b is _EMPTY else b.score_low for b in bands], np.float32)
        high = np.array([np.inf if b is _EMPTY else b.score_high for b in bands], np.float32)
        hash_max = np.array([b.hash_max for b in bands], np.uint64)
        limited = any(b.hash_max < HASH_MAX for b in bands if b is not _EMPTY)
        reasons = [band_reasons(b) for b in bands]
        return cls(
            low=low if (low > -np.inf).any() else None,
            high=high if (high < np.inf).any() else None,
            hash_max=hash_max if limited else None,
            kept=np.array([kept for kept, _ in reasons], np.int8),
            missed=np.array([missed for _, missed in reasons], np.int8),
            empty=empty if empty.any() else None,
        )

    def admits(
        self, block: Block, codes: NDArray[np.int32] | None
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Whether each row (n,) lies in the score interval, and whether the hash is low enough."""
        by_score = np.ones(block.rows, np.bool_)
        by_hash = np.ones(block.rows, np.bool_)
        if self.empty is not None:
            by_score &= ~of_group(self.empty, codes)
        if self.low is not None:
            by_score &= block.need_scores() >= of_group(self.low, codes)
        if self.high is not None:
            by_score &= block.need_scores() <= of_group(self.high, codes)
        if self.hash_max is not None:
            by_hash = block.need_hashes() <= of_group(self.hash_max, codes)
        return by_score, by_hash


def by_group(bands: tuple[Band, ...], width: int) -> list[list[Band]]:
    """The bands of each group; a band of every group is in each list."""
    lists: list[list[Band]] = [[] for _ in range(width)]
    for band in bands:
        for own in lists if band.group is None else [lists[band.group]]:
            own.append(band)
    return lists


def layers_of(by_group: list[list[Band]]) -> list[Layer]:
    """The n-th band of every group, for each n: as many layers as a group has bands."""
    depth = max(map(len, by_group), default=0)
    filled = [bands + [_EMPTY] * (depth - len(bands)) for bands in by_group]
    return [Layer.of([bands[n] for bands in filled]) for n in range(depth)]


def covered(
    layers: list[Layer], block: Block, codes: NDArray[np.int32] | None
) -> NDArray[np.bool_]:
    """Which rows (n,) lie in a band."""
    covered = np.zeros(block.rows, np.bool_)
    for layer in layers:
        by_score, by_hash = layer.admits(block, codes)
        covered |= by_score & by_hash
    return covered


def band_reasons(band: Band) -> tuple[int, int]:
    """Codes for a row that the band keeps, and for one in its interval whose hash is too high."""
    if band.hash_max < HASH_MAX:
        if band.score_low == band.score_high:
            tie = CODE["dropped: tie at the cutoff, not chosen by hash"]
            return CODE["kept: tie at the cutoff, chosen by hash"], tie
        return CODE["kept: chosen by hash"], NOT_CHOSEN
    kept = {
        (False, False): "kept: every row is",
        (True, False): "kept: at or above the cutoff",
        (False, True): "kept: at or below the cutoff",
        (True, True): "kept: within the kept scores",
    }[band.score_low > -math.inf, band.score_high < math.inf]
    return CODE[kept], NOT_CHOSEN


def bounded(band: Band) -> bool:
    """Whether the band bounds the score."""
    return band.score_low > -math.inf or band.score_high < math.inf


def of_group(values: NDArray[Any], codes: NDArray[np.int32] | None) -> Any:
    """The value of each row's group: an array (n,), or a scalar where all rows are one group."""
    return values[0] if codes is None else values[codes]


def band_to_json(band: Band) -> list[Any]:
    """Group, both bounds and hash of a band, for strict JSON."""
    low, high = number(band.score_low), number(band.score_high)
    return [band.group, low, high, f"{band.hash_max:016x}"]


def band_from_json(value: Sequence[Any]) -> Band:
    """The band that `band_to_json` described.

    Raises:
        ValueError: a bound is not a float32 or the hash not 64 bits.
    """
    group, low, high, hash_max = value
    return Band(group, float(low), float(high), int(hash_max, 16))


def number(value: float | None) -> float | str | None:
    """A JSON number, or 'inf' and '-inf', which strict JSON has no numbers for."""
    return value if value is None or math.isfinite(value) else str(value)
