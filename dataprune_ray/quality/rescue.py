"""Rare but consistent rows that a cut drops, put back within its budget.

A row is eligible where the plain cut drops it, it lies farther from its neighbours than the box
plot's fence, and both its neighbours and a model that has not seen it agree with its label: rare,
yet hardly mislabelled. The farthest of these are rescued. Like a keep rule, a rescue is applied to
a row alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dataprune_ray.cutoff import Block, KeepRule

#: Reason in the decisions for a rescued row.
RESCUED = "kept: rescued, rare but consistent"
#: Share of the neighbours that must have the row's label.
AGREEMENT = 0.5


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the quality pass found of rows (n,).

    ``distance`` float32, NaN where a row was not judged; ``consistent`` bool: its neighbours and
    the model agree with its label.
    """

    distance: NDArray[np.float32]
    consistent: NDArray[np.bool_]


@dataclass(frozen=True)
class Eligible:
    """Which rows could be rescued: dropped by ``plain``, beyond ``fence``, and consistent.

    What is cut as noise before any strategy, and duplicates, are not.
    """

    plain: KeepRule
    fence: float

    def apply(self, block: Block, evidence: Evidence) -> NDArray[np.bool_]:
        """Which rows of a block with the deciding scores are eligible: bool (n,)."""
        far = evidence.consistent & (evidence.distance > self.fence)
        return np.asarray(far & ~self.plain.apply(block) & ~self.plain.screened(block))


@dataclass(frozen=True)
class Rescue:
    """The eligible rows within the bands of ``far``, which bound the neighbour distance."""

    eligible: Eligible
    far: KeepRule
    rows: int

    def apply(self, block: Block, evidence: Evidence) -> NDArray[np.bool_]:
        """Which rows of a block with the deciding scores are rescued: bool (n,)."""
        eligible = self.eligible.apply(block, evidence)
        distance = np.nan_to_num(evidence.distance, nan=0.0)
        by_distance = Block(distance, block.hashes, block.groups, block.rows)
        return np.asarray(eligible & self.far.apply(by_distance))

    def to_json(self) -> dict[str, Any]:
        """A mapping for strict JSON: the plain rule, the fence, and the bands of the distance."""
        return {
            "rows": self.rows,
            "fence": self.eligible.fence,
            "plain_rule": self.eligible.plain.to_json(),
            "rule": self.far.to_json(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The rescue that ``to_json`` described."""
        eligible = Eligible(KeepRule.from_json(value["plain_rule"]), value["fence"])
        return cls(eligible, KeepRule.from_json(value["rule"]), value["rows"])


def rescue_quotas(share: Fraction, kept: Sequence[int], eligible: Sequence[int]) -> list[int]:
    """Rows to rescue by group: ``floor(share * kept)``, or all that are eligible if fewer."""
    return [
        min(share.numerator * budget // share.denominator, rows)
        for budget, rows in zip(kept, eligible, strict=True)
    ]
