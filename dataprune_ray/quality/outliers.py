"""Outliers by the box plot: values beyond 1.5 interquartile ranges from the quartiles.

Tukey, "Exploratory Data Analysis" (1977). Quartiles are exact order statistics of the whole
population, found by counting. Not for scores with few distinct values, whose range may be zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dataprune_ray.cutoff import Population, exact_cut, group_counts, pooled

_REACH = 1.5


@dataclass(frozen=True)
class Fences:
    """Quartiles of a population and the bounds beyond which a value is an outlier."""

    q1: float
    q3: float

    @property
    def low(self) -> float:
        """``Q1 - 1.5 (Q3 - Q1)``."""
        return self.q1 - _REACH * (self.q3 - self.q1)

    @property
    def high(self) -> float:
        """``Q3 + 1.5 (Q3 - Q1)``."""
        return self.q3 + _REACH * (self.q3 - self.q1)

    def outside(self, values: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Which values (n,) lie beyond a fence, bool (n,); NaN does not."""
        return np.asarray((values < self.low) | (values > self.high))


def fences(population: Population) -> Fences | None:
    """Fences of a population's scores; None where it has no rows.

    The quartiles are the values of rank ``ceil(n / 4)`` and ``ceil(3 n / 4)``: values that occur
    (numpy's ``inverted_cdf``).
    """
    whole = pooled(population)
    rows = int(group_counts(whole)[0])
    if not rows:
        return None
    quartiles = []
    for rank in (-(-rows // 4), -(-3 * rows // 4)):
        (cut,) = exact_cut(whole, [rank], end="low", by_score=True)
        if cut.score is None:
            raise ValueError(f"a cut of {rank} rows has no score")
        quartiles.append(cut.score)
    return Fences(*quartiles)
