"""Folds and held-out shares of a corpus, cut by row identity: the same however files lie."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from dataprune_ray.cutoff import seeded_hash

_WHOLE = 1 << 64
#: Mixed in so that folds have nothing to do with ties, samples or random arms of the same seed.
_SALT = 0x51A7


@dataclass(frozen=True)
class Split:
    """The rows whose place on a circle of 2**64, by hash, lies in ``[low, high)``, or all others.

    ``seed`` turns the circle: another seed gives another split.
    """

    low: int
    high: int
    inside: bool = True
    seed: int = 0

    @classmethod
    def fold(cls, folds: int, index: int, seed: int = 0) -> Split:
        """One of ``folds`` parts that together hold every row once."""
        return cls(index * _WHOLE // folds, (index + 1) * _WHOLE // folds, seed=seed)

    @classmethod
    def share(cls, fraction: float, seed: int = 0) -> Split:
        """About ``fraction`` of the rows."""
        return cls(0, int(fraction * _WHOLE), seed=seed)

    def others(self) -> Split:
        """The rows that this split leaves out."""
        return replace(self, inside=not self.inside)

    @property
    def admitted(self) -> float:
        """The share of the rows that belongs to it, but for chance."""
        within = (self.high - self.low) / _WHOLE
        return within if self.inside else 1.0 - within

    def admits(self, row_hash: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Which rows of identity hashes (n,) belong to it: bool (n,)."""
        place = places(row_hash, self.seed)
        within = np.ones(len(place), np.bool_)
        if self.low > 0:
            within &= place >= np.uint64(self.low)
        if self.high < _WHOLE:
            within &= place < np.uint64(self.high)
        return within if self.inside else ~within


def places(row_hash: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.uint64]:
    """Where rows of identity hashes (n,) lie on the circle of that seed: uint64 (n,)."""
    return seeded_hash(seeded_hash(row_hash, seed), _SALT)
