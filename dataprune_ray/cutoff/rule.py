"""The keep rule: a few numbers that any worker applies to a row alone.

A row is kept if it lies in a band of its group: its score between the band's bounds (inclusive)
and its seeded hash at most the band's ``hash_max``. Rows that are cut as noise lie in bands of
their own, which take precedence. Cuts, ties, random baselines and budgets per stratum are all
bands, so nothing is shuffled or joined to write the kept rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dataprune_ray.cutoff.draw import WeightedDraw
from dataprune_ray.cutoff.keys import HASH_MAX
from dataprune_ray.cutoff.population import Block, Column
from dataprune_ray.cutoff.selection import End

#: Why a row was kept or dropped, by the code that ``KeepRule.reason`` gives. Codes are stored:
#: append at the end only.
REASONS = (
    "kept: at or above the cutoff",
    "kept: at or below the cutoff",
    "kept: within the kept scores",
    "kept: every row is",
    "kept: tie at the cutoff, chosen by hash",
    "kept: chosen by hash",
    "dropped: below the cutoff",
    "dropped: above the cutoff",
    "dropped: between the kept scores",
    "dropped: tie at the cutoff, not chosen by hash",
    "dropped: not chosen by hash",
    "dropped: nothing of its group is kept",
    "dropped: cut as noise",
    "kept: drawn by weight",
    "dropped: not drawn by weight",
)
_CODE = {reason: code for code, reason in enumerate(REASONS)}
_BELOW = _CODE["dropped: below the cutoff"]
_ABOVE = _CODE["dropped: above the cutoff"]
_BETWEEN = _CODE["dropped: between the kept scores"]
_NOTHING = _CODE["dropped: nothing of its group is kept"]
_NOT_CHOSEN = _CODE["dropped: not chosen by hash"]
_NOISE = _CODE["dropped: cut as noise"]
_DRAWN = _CODE["kept: drawn by weight"]
_NOT_DRAWN = _CODE["dropped: not drawn by weight"]


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


@dataclass(frozen=True)
class KeepRule:
    """Bands of all groups, and what a person wants to know about them.

    Attributes:
        bands: in any order; a row is kept if it lies in at least one, and in none of ``noise``.
        groups: group names by code, ``("",)`` where rows are not grouped.
        metric: score column that the bounds refer to; '' where no score is looked at.
        end: end of the score that is kept; None where no score is looked at.
        explanation: one sentence for the report.
        cutoffs: score of the cut by group name; None where a group keeps nothing or all by hash.
        noise: bands of the rows that are cut as noise.
        draw: where it is given, ``bands`` (not ``noise``) bound its keys instead of the scores.
    """

    bands: tuple[Band, ...]
    groups: tuple[str, ...]
    metric: str
    end: End | None
    explanation: str
    cutoffs: Mapping[str, float | None]
    noise: tuple[Band, ...] = ()
    draw: WeightedDraw | None = None

    @cached_property
    def columns(self) -> frozenset[Column]:
        """The columns of a block that ``apply`` and ``reason`` need."""
        needed: set[Column] = set()
        bands = self.bands + self.noise
        if any(band.group is not None for band in bands) and len(self.groups) > 1:
            needed.add("groups")
        if any(_bounded(band) for band in bands):
            needed.add("scores")
        if any(band.hash_max < HASH_MAX for band in bands):
            needed.add("hashes")
        if self.draw is not None:
            needed |= {"scores", "hashes"}
        return frozenset(needed)

    def apply(self, block: Block) -> NDArray[np.bool_]:
        """Which rows are kept, bool (n,); the cost does not grow with the number of groups.

        Raises:
            ValueError: the block lacks one of ``columns``, or a group code is out of range.
        """
        codes = self._codes(block)
        view = block if self.draw is None else self.draw(block)
        kept = _covered(self._layers, view, codes)
        return kept & ~_covered(self._noise_layers, block, codes) if self.noise else kept

    def reason(self, block: Block) -> NDArray[np.int8]:
        """Why each row is kept or dropped: int8 (n,), positions in ``REASONS``."""
        codes = self._codes(block)
        noise = _covered(self._noise_layers, block, codes)
        if self.draw is not None:
            drawn = np.where(self.apply(block), np.int8(_DRAWN), np.int8(_NOT_DRAWN))
            return np.where(noise, np.int8(_NOISE), drawn)
        reasons = self._outside(block, codes)
        admitted = [(layer, *layer.admits(block, codes)) for layer in self._layers]
        for layer, by_score, _ in admitted:
            reasons = np.where(by_score, _of_group(layer.missed, codes), reasons)
        for layer, by_score, by_hash in admitted:
            reasons = np.where(by_score & by_hash, _of_group(layer.kept, codes), reasons)
        return np.where(noise, np.int8(_NOISE), reasons)

    def weights(self, block: Block) -> NDArray[np.float32]:
        """Weights (n,) for training on the kept rows: inverse probabilities of a draw, else 1."""
        weights = np.ones(block.rows, np.float32)
        if self.draw is None:
            return weights
        return np.where(self.apply(block), self.draw.weights(block), weights)

    def to_json(self) -> dict[str, Any]:
        """A mapping for strict JSON that ``from_json`` restores without loss.

        Infinite bounds become strings, hashes 16 hex digits (JSON numbers are not 64-bit safe).
        """
        return {
            "bands": [_band_to_json(band) for band in self.bands],
            "groups": list(self.groups),
            "metric": self.metric,
            "end": self.end,
            "explanation": self.explanation,
            "cutoffs": {name: _number(value) for name, value in self.cutoffs.items()},
            "noise": [_band_to_json(band) for band in self.noise],
            "draw": None if self.draw is None else self.draw.to_json(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The rule that ``to_json`` described; of an earlier version, without noise or draw, too.

        Raises:
            ValueError: a bound is not a float32 or a hash not 64 bits.
        """
        draw = value.get("draw")
        return cls(
            bands=tuple(map(_band_from_json, value["bands"])),
            groups=tuple(value["groups"]),
            metric=value["metric"],
            end=value["end"],
            explanation=value["explanation"],
            cutoffs={
                name: None if cutoff is None else float(cutoff)
                for name, cutoff in value["cutoffs"].items()
            },
            noise=tuple(map(_band_from_json, value.get("noise", ()))),
            draw=None if draw is None else WeightedDraw.from_json(draw),
        )

    @property
    def _width(self) -> int:
        """Groups that the bands tell apart; 1 where they treat all alike."""
        return len(self.groups) if "groups" in self.columns else 1

    def _codes(self, block: Block) -> NDArray[np.int32] | None:
        return block.codes(self._width)

    @cached_property
    def _by_group(self) -> list[list[Band]]:
        return _by_group(self.bands, self._width)

    @cached_property
    def _layers(self) -> list[_Layer]:
        return _layers(self._by_group)

    @cached_property
    def _noise_layers(self) -> list[_Layer]:
        return _layers(_by_group(self.noise, self._width))

    def _outside(self, block: Block, codes: NDArray[np.int32] | None) -> NDArray[np.int8]:
        """Reasons of rows whose score is in no band of their group."""
        lowest = [min((b.score_low for b in bands), default=-math.inf) for bands in self._by_group]
        highest = [max((b.score_high for b in bands), default=math.inf) for bands in self._by_group]
        names = self.groups if self._width > 1 else ("",)
        by_hash = [self.cutoffs.get(name, math.nan) is None for name in names]
        inner = [
            _NOTHING if not bands else _NOT_CHOSEN if chance else _BETWEEN
            for bands, chance in zip(self._by_group, by_hash, strict=True)
        ]
        reasons = np.full(block.rows, _of_group(np.array(inner, np.int8), codes), np.int8)
        if "scores" not in self.columns:
            return reasons
        scores = block.need_scores()
        by_score = ~_of_group(np.array(by_hash), codes)
        below = by_score & (scores < _of_group(np.array(lowest, np.float32), codes))
        above = by_score & (scores > _of_group(np.array(highest, np.float32), codes))
        return np.where(below, np.int8(_BELOW), np.where(above, np.int8(_ABOVE), reasons))


#: Admits no row: fills the layers of groups with fewer bands.
_EMPTY = Band(None, math.inf, -math.inf, 0)


@dataclass(frozen=True)
class _Layer:
    """One band of each group (G,), as arrays; None where no band of the layer has that bound."""

    low: NDArray[np.float32] | None
    high: NDArray[np.float32] | None
    hash_max: NDArray[np.uint64] | None
    kept: NDArray[np.int8]
    missed: NDArray[np.int8]
    empty: NDArray[np.bool_] | None  # groups that have no band in this layer

    @classmethod
    def of(cls, bands: list[Band]) -> _Layer:
        empty = np.array([b is _EMPTY for b in bands])
        low = np.array([-np.inf if b is _EMPTY else b.score_low for b in bands], np.float32)
        high = np.array([np.inf if b is _EMPTY else b.score_high for b in bands], np.float32)
        hash_max = np.array([b.hash_max for b in bands], np.uint64)
        limited = any(b.hash_max < HASH_MAX for b in bands if b is not _EMPTY)
        reasons = [_band_reasons(b) for b in bands]
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
            by_score &= ~_of_group(self.empty, codes)
        if self.low is not None:
            by_score &= block.need_scores() >= _of_group(self.low, codes)
        if self.high is not None:
            by_score &= block.need_scores() <= _of_group(self.high, codes)
        if self.hash_max is not None:
            by_hash = block.need_hashes() <= _of_group(self.hash_max, codes)
        return by_score, by_hash


def _by_group(bands: tuple[Band, ...], width: int) -> list[list[Band]]:
    """The bands of each group; a band of every group is in each list."""
    lists: list[list[Band]] = [[] for _ in range(width)]
    for band in bands:
        for own in lists if band.group is None else [lists[band.group]]:
            own.append(band)
    return lists


def _layers(by_group: list[list[Band]]) -> list[_Layer]:
    """The n-th band of every group, for each n: as many layers as a group has bands."""
    depth = max(map(len, by_group), default=0)
    filled = [bands + [_EMPTY] * (depth - len(bands)) for bands in by_group]
    return [_Layer.of([bands[n] for bands in filled]) for n in range(depth)]


def _covered(
    layers: list[_Layer], block: Block, codes: NDArray[np.int32] | None
) -> NDArray[np.bool_]:
    """Which rows (n,) lie in a band."""
    covered = np.zeros(block.rows, np.bool_)
    for layer in layers:
        by_score, by_hash = layer.admits(block, codes)
        covered |= by_score & by_hash
    return covered


def _band_reasons(band: Band) -> tuple[int, int]:
    """Codes for a row that the band keeps, and for one in its interval whose hash is too high."""
    if band.hash_max < HASH_MAX:
        if band.score_low == band.score_high:
            tie = _CODE["dropped: tie at the cutoff, not chosen by hash"]
            return _CODE["kept: tie at the cutoff, chosen by hash"], tie
        return _CODE["kept: chosen by hash"], _NOT_CHOSEN
    kept = {
        (False, False): "kept: every row is",
        (True, False): "kept: at or above the cutoff",
        (False, True): "kept: at or below the cutoff",
        (True, True): "kept: within the kept scores",
    }[band.score_low > -math.inf, band.score_high < math.inf]
    return _CODE[kept], _NOT_CHOSEN


def _bounded(band: Band) -> bool:
    return band.score_low > -math.inf or band.score_high < math.inf


def _of_group(values: NDArray[Any], codes: NDArray[np.int32] | None) -> Any:
    """The value of each row's group: an array (n,), or a scalar where all rows are one group."""
    return values[0] if codes is None else values[codes]


def _band_to_json(band: Band) -> list[Any]:
    low, high = _number(band.score_low), _number(band.score_high)
    return [band.group, low, high, f"{band.hash_max:016x}"]


def _band_from_json(value: Sequence[Any]) -> Band:
    group, low, high, hash_max = value
    return Band(group, float(low), float(high), int(hash_max, 16))


def _number(value: float | None) -> float | str | None:
    """A JSON number, or 'inf' and '-inf', which strict JSON has no numbers for."""
    return value if value is None or math.isfinite(value) else str(value)
