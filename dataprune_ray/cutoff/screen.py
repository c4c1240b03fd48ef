"""Screens: rows that are dropped by another score column before a strategy looks at the rest.

A screen is a few numbers that any worker applies to a row alone, like the keep rule it is part of.
Its bands bound the screen's own column; where several are asked for, the first that drops a row
says why.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
    covered,
    layers_of,
)
from dataprune_ray.cutoff.keys import HASH_MAX, End
from dataprune_ray.cutoff.population import Block, Column, Population, filtered
from dataprune_ray.cutoff.reasons import CODE, REASONS


@dataclass(frozen=True)
class Screen:
    """Rows that are dropped by the score in another column.

    Attributes:
        column: the score column.
        bands: of every group; a row that lies in one is dropped.
        reason: code of why, a position in ``REASONS``.
        explanation: one sentence for the report.
    """

    column: str
    bands: tuple[Band, ...]
    reason: int
    explanation: str

    @property
    def reads(self) -> frozenset[Column]:
        """The columns of a block that ``drops`` needs."""
        by_hash = any(band.hash_max < HASH_MAX for band in self.bands)
        return frozenset({self.column, "hashes"} if by_hash else {self.column})

    @property
    def end(self) -> End:
        """The end of its column that it drops."""
        return "high" if any(math.isinf(band.score_high) for band in self.bands) else "low"

    def drops(self, block: Block) -> NDArray[np.bool_]:
        """Which rows (n,) are dropped.

        Raises:
            ValueError: the block lacks one of ``reads``.
        """
        view = Block(block.need_other(self.column), block.hashes, rows=block.rows)
        return covered(self._layers, view, None)

    def to_json(self) -> dict[str, Any]:
        """A mapping for strict JSON that ``from_json`` restores without loss."""
        return {
            "column": self.column,
            "bands": [band_to_json(band) for band in self.bands],
            "reason": REASONS[self.reason],
            "explanation": self.explanation,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The screen that ``to_json`` described."""
        bands = tuple(map(band_from_json, value["bands"]))
        return cls(value["column"], bands, CODE[value["reason"]], value["explanation"])

    @cached_property
    def _layers(self) -> list[Layer]:
        return layers_of([list(self.bands)])


def screened_by(screens: Sequence[Screen], block: Block) -> NDArray[np.int64]:
    """The first screen that drops each row (n,), counted from 1; 0 where none does."""
    first = np.zeros(block.rows, np.int64)
    for position, screen in enumerate(screens, start=1):
        first = np.where((first == 0) & screen.drops(block), position, first)
    return first


def unscreened(population: Population, screens: tuple[Screen, ...]) -> Population:
    """The rows, in the same groups, that no screen drops."""
    if not screens:
        return population
    reads: frozenset[Column] = frozenset().union(*(screen.reads for screen in screens))
    return filtered(population, _Passes(screens), reads)


@dataclass(frozen=True)
class _Passes:
    """Which rows of a block no screen drops."""

    screens: tuple[Screen, ...]

    def __call__(self, block: Block) -> NDArray[np.bool_]:
        return np.asarray(screened_by(self.screens, block) == 0)
