"""The keep rule: a few numbers that any worker applies to a row alone.

A row is kept if it lies in a band of its group: its score between the band's bounds (inclusive)
and its seeded hash at most the band's ``hash_max``. Rows that are cut as noise lie in bands of
their own, which take precedence, and before all of them come the screens, which look at other score
columns. Cuts, ties, random baselines and budgets per stratum are all
bands, so nothing is shuffled or joined to write the kept rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dataprune_ray.cutoff.bands import (
    Band,
    Layer,
    band_from_json,
    band_to_json,
    bounded,
    by_group,
    covered,
    layers_of,
    number,
    of_group,
)
from dataprune_ray.cutoff.draw import WeightedDraw
from dataprune_ray.cutoff.keys import HASH_MAX, End
from dataprune_ray.cutoff.population import Block, Column
from dataprune_ray.cutoff.reasons import (
    ABOVE,
    BELOW,
    BETWEEN,
    DRAWN,
    NOISE,
    NOT_CHOSEN,
    NOT_DRAWN,
    NOTHING,
)
from dataprune_ray.cutoff.screen import Screen, screened_by


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
        screens: drop rows by other score columns before anything else, the first that does says
            why.
    """

    bands: tuple[Band, ...]
    groups: tuple[str, ...]
    metric: str
    end: End | None
    explanation: str
    cutoffs: Mapping[str, float | None]
    noise: tuple[Band, ...] = ()
    draw: WeightedDraw | None = None
    screens: tuple[Screen, ...] = ()

    @cached_property
    def columns(self) -> frozenset[Column]:
        """The columns of a block that ``apply`` and ``reason`` need."""
        needed: set[Column] = set()
        bands = self.bands + self.noise
        if any(band.group is not None for band in bands) and len(self.groups) > 1:
            needed.add("groups")
        if any(bounded(band) for band in bands):
            needed.add("scores")
        if any(band.hash_max < HASH_MAX for band in bands):
            needed.add("hashes")
        if self.draw is not None:
            needed |= {"scores", "hashes"}
        return frozenset(needed).union(*(screen.reads for screen in self.screens))

    @property
    def others(self) -> tuple[str, ...]:
        """Score columns besides ``metric`` that the screens look at."""
        return tuple(dict.fromkeys(screen.column for screen in self.screens))

    def screened(self, block: Block) -> NDArray[np.bool_]:
        """Which rows (n,) a screen drops."""
        return screened_by(self.screens, block) > 0

    def apply(self, block: Block) -> NDArray[np.bool_]:
        """Which rows are kept, bool (n,); the cost does not grow with the number of groups.

        Raises:
            ValueError: the block lacks one of ``columns``, or a group code is out of range.
        """
        codes = self._codes(block)
        view = block if self.draw is None else self.draw(block)
        kept = covered(self._layers, view, codes)
        if self.noise:
            kept &= ~covered(self._noise_layers, block, codes)
        return kept & ~self.screened(block) if self.screens else kept

    def reason(self, block: Block) -> NDArray[np.int8]:
        """Why each row is kept or dropped: int8 (n,), positions in ``REASONS``."""
        reasons = self._unscreened_reason(block)
        if not self.screens:
            return reasons
        first = screened_by(self.screens, block)
        table = np.array([0, *(screen.reason for screen in self.screens)], np.int8)
        return np.where(first > 0, table[first], reasons)

    def _unscreened_reason(self, block: Block) -> NDArray[np.int8]:
        codes = self._codes(block)
        noise = covered(self._noise_layers, block, codes)
        if self.draw is not None:
            drawn = np.where(self.apply(block), np.int8(DRAWN), np.int8(NOT_DRAWN))
            return np.where(noise, np.int8(NOISE), drawn)
        reasons = self._outside(block, codes)
        admitted = [(layer, *layer.admits(block, codes)) for layer in self._layers]
        for layer, by_score, _ in admitted:
            reasons = np.where(by_score, of_group(layer.missed, codes), reasons)
        for layer, by_score, by_hash in admitted:
            reasons = np.where(by_score & by_hash, of_group(layer.kept, codes), reasons)
        return np.where(noise, np.int8(NOISE), reasons)

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
            "bands": [band_to_json(band) for band in self.bands],
            "groups": list(self.groups),
            "metric": self.metric,
            "end": self.end,
            "explanation": self.explanation,
            "cutoffs": {name: number(value) for name, value in self.cutoffs.items()},
            "noise": [band_to_json(band) for band in self.noise],
            "draw": None if self.draw is None else self.draw.to_json(),
            "screens": [screen.to_json() for screen in self.screens],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The rule that ``to_json`` described; of an earlier version, without what came later, too.

        Raises:
            ValueError: a bound is not a float32 or a hash not 64 bits.
        """
        draw = value.get("draw")
        return cls(
            bands=tuple(map(band_from_json, value["bands"])),
            groups=tuple(value["groups"]),
            metric=value["metric"],
            end=value["end"],
            explanation=value["explanation"],
            cutoffs={
                name: None if cutoff is None else float(cutoff)
                for name, cutoff in value["cutoffs"].items()
            },
            noise=tuple(map(band_from_json, value.get("noise", ()))),
            draw=None if draw is None else WeightedDraw.from_json(draw),
            screens=tuple(map(Screen.from_json, value.get("screens", ()))),
        )

    @property
    def _width(self) -> int:
        """Groups that the bands tell apart; 1 where they treat all alike."""
        return len(self.groups) if "groups" in self.columns else 1

    def _codes(self, block: Block) -> NDArray[np.int32] | None:
        return block.codes(self._width)

    @cached_property
    def _by_group(self) -> list[list[Band]]:
        return by_group(self.bands, self._width)

    @cached_property
    def _layers(self) -> list[Layer]:
        return layers_of(self._by_group)

    @cached_property
    def _noise_layers(self) -> list[Layer]:
        return layers_of(by_group(self.noise, self._width))

    def _outside(self, block: Block, codes: NDArray[np.int32] | None) -> NDArray[np.int8]:
        """Reasons of rows whose score is in no band of their group."""
        lowest = [min((b.score_low for b in bands), default=-math.inf) for bands in self._by_group]
        highest = [max((b.score_high for b in bands), default=math.inf) for bands in self._by_group]
        names = self.groups if self._width > 1 else ("",)
        by_hash = [self.cutoffs.get(name, math.nan) is None for name in names]
        inner = [
            NOTHING if not bands else NOT_CHOSEN if chance else BETWEEN
            for bands, chance in zip(self._by_group, by_hash, strict=True)
        ]
        reasons = np.full(block.rows, of_group(np.array(inner, np.int8), codes), np.int8)
        if "scores" not in self.columns:
            return reasons
        scores = block.need_scores()
        by_score = ~of_group(np.array(by_hash), codes)
        below = by_score & (scores < of_group(np.array(lowest, np.float32), codes))
        above = by_score & (scores > of_group(np.array(highest, np.float32), codes))
        return np.where(below, np.int8(BELOW), np.where(above, np.int8(ABOVE), reasons))
