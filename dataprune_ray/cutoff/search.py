"""The state of an exact cut between its passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dataprune_ray.cutoff.kernels import Interval
from dataprune_ray.cutoff.keys import HASH_MAX, End, score_of_key

#: Positions of groups, int64 (A,).
Groups = NDArray[np.int64]


@dataclass(frozen=True)
class Cut:
    """Where one group is cut so that exactly ``quota`` of its rows are kept.

    Attributes:
        quota: rows kept.
        score: score of the last kept row, a score that occurs; None for quota 0 or by hash alone.
        hash_max: rows tied at ``score`` (or all rows, by hash alone) are kept up to this hash;
            ``HASH_MAX`` keeps them all.
        tied: rows that have exactly ``score``; 0 by hash alone.
        tied_kept: how many of them are kept.
    """

    quota: int
    score: float | None
    hash_max: int
    tied: int
    tied_kept: int


@dataclass
class Search:
    """State of all groups (G,) between passes: the quota ends at the ``need``-th row in question.

    Those are ``inside`` rows (-1: not counted yet) with keys from ``low`` to ``high``.
    """

    quota: NDArray[np.int64]
    need: NDArray[np.int64]
    inside: NDArray[np.int64]
    open: NDArray[np.bool_]  # not decided yet
    low: NDArray[np.uint64]
    high: NDArray[np.uint64]
    hash_max: NDArray[np.uint64]
    tied: NDArray[np.int64]
    tied_kept: NDArray[np.int64]
    score_key: NDArray[np.uint32] | None = None  # once the scores are resolved

    @classmethod
    def start(cls, quotas: Sequence[int]) -> Search:
        """Nothing is counted yet; groups with a quota are open."""
        quota = np.array(quotas, dtype=np.int64)
        return cls(
            quota=quota,
            need=quota.copy(),
            inside=np.full_like(quota, -1),
            open=quota > 0,
            low=np.zeros(len(quota), np.uint64),
            high=np.zeros(len(quota), np.uint64),
            hash_max=np.where(quota > 0, np.uint64(HASH_MAX), np.uint64(0)),
            tied=np.zeros_like(quota),
            tied_kept=np.zeros_like(quota),
        )

    def interval(
        self, active: Groups, field: Literal["scores", "hashes"], end: End | None
    ) -> Interval:
        """The rows in question of the active groups (A,)."""
        slots = np.full(len(self.open), -1, np.int32)
        slots[active] = np.arange(len(active))
        return Interval(field, end, slots, self.low, self.high, self.score_key)

    def narrow(
        self,
        active: Groups,
        below: NDArray[np.int64],
        inside: NDArray[np.int64],
        low: NDArray[np.uint64],
        high: NDArray[np.uint64],
    ) -> None:
        """Leave ``inside`` rows in question, from ``low`` to ``high``; ``below`` come before."""
        self.need[active] -= below
        self.inside[active] = inside
        self.low[active], self.high[active] = low, high

    def fix_scores(self) -> None:
        """Take the scores as resolved: only groups that take part of a tie stay open."""
        self.score_key = self.low.astype(np.uint32)
        self.tied = np.where(self.open, self.inside, 0)
        self.tied_kept = np.where(self.open, self.need, 0)
        self.open &= self.need < self.inside

    def cut(self, group: int, end: End) -> Cut:
        """Where a group is cut, once it is decided."""
        score = None
        if self.score_key is not None and self.quota[group] > 0:
            key = self.score_key[group : group + 1]
            score = float(score_of_key(~key if end == "high" else key)[0])
        return Cut(
            quota=int(self.quota[group]),
            score=score,
            hash_max=int(self.hash_max[group]),
            tied=int(self.tied[group]),
            tied_kept=int(self.tied_kept[group]),
        )


def check_quotas(need: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
    """Refuse quotas of groups (A,) that have fewer rows.

    Raises:
        ValueError: a quota exceeds its group.
    """
    if (rows < need).any():
        bad = int(np.flatnonzero(rows < need)[0])
        raise ValueError(f"quota {need[bad]} exceeds the {rows[bad]} rows of its group")
