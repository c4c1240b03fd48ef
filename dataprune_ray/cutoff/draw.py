"""Weighted sampling without replacement as a key that any worker computes from a row alone.

A row of weight ``w`` gets the key ``log w - log e``, where ``e`` is exponentially distributed and
made from the row's hash; the rows with the ``k`` highest keys are a sample without replacement
with probabilities in proportion to ``w`` at every draw (Gumbel top-k: Efraimidis and Spirakis,
"Weighted random sampling with a reservoir", 2006). So the k-th highest key cuts the sample exactly.

The keys decide what is kept, hence they must have the same bits on any machine. The logarithm here
uses only operations that IEEE 754 rounds correctly; that of a maths library differs between CPUs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dataprune_ray.cutoff.keys import End
from dataprune_ray.cutoff.population import Block

#: Least distance of two float32 values: that of a row at the origin, so that no weight is zero.
_LEAST = 2.0**-149
_LOG_2 = 0.6931471805599453
_ROOT_HALF = 0.7071067811865476
#: ``atanh(s) = s * (1 + s**2 / 3 + s**4 / 5 + ...)``; ``s**2`` is under 0.03, the rest under 1e-18.
_TERMS = tuple(1.0 / (2 * n + 1) for n in range(12))
_HASH_SHIFT = np.uint64(11)


@dataclass(frozen=True)
class WeightedDraw:
    """Weights of the rows, and which are drawn.

    A row's weight is its score's distance from ``origin``, to the power ``power``.

    Attributes:
        origin: score of the least weight; scores on its other side have the least weight too.
        end: the end of the score with the greatest weights.
        power: 0 or more; at 0 all weights are equal and the draw is that of the lowest hashes.
        threshold: key of the first row that is not drawn; None where none is left.
    """

    origin: float
    end: End
    power: float
    threshold: float | None = None

    def __call__(self, block: Block) -> Block:
        """The rows with their keys as scores: a view for ``population.derived``."""
        return Block(self.keys(block), block.hashes, block.groups)

    def keys(self, block: Block) -> NDArray[np.float32]:
        """Keys (n,), the highest of which are drawn.

        Raises:
            ValueError: the block lacks scores or hashes.
        """
        # 53 bits, the middle of each step: 0 < share < 1. The lowest hashes come first.
        steps = (block.need_hashes() >> _HASH_SHIFT).astype(np.float64)
        share = np.minimum((steps + 0.5) * 2.0**-53, 1.0 - 2.0**-53)
        exponential = -_log(1.0 - share, -share)
        return (self._log_weight(block) - _log(exponential)).astype(np.float32)

    def weights(self, block: Block) -> NDArray[np.float32]:
        """Inverse probabilities (n,) with which rows of these weights are drawn, 1 or more.

        Summed over the drawn rows they estimate totals over all rows without bias, where the
        threshold is the first key that was not drawn (Kool, van Hoof and Welling, "Stochastic
        beams and where to find them", ICML 2019).
        """
        if self.threshold is None:
            return np.ones(block.rows, np.float32)
        with np.errstate(over="ignore"):
            rate = np.exp(self._log_weight(block) - self.threshold)
        chance = np.maximum(-np.expm1(-rate), 1.0 / float(np.finfo(np.float32).max))
        return (1.0 / chance).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """A mapping for strict JSON that ``from_json`` restores without loss."""
        return {
            "origin": self.origin,
            "end": self.end,
            "power": self.power,
            "threshold": self.threshold,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The draw that ``to_json`` described."""
        return cls(value["origin"], value["end"], value["power"], value["threshold"])

    def _log_weight(self, block: Block) -> NDArray[np.float64]:
        scores = block.need_scores().astype(np.float64)
        distance = scores - self.origin if self.end == "high" else self.origin - scores
        return self.power * _log(np.maximum(distance, _LEAST))


def _log(
    values: NDArray[np.float64], less_one: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Natural logarithm (n,) of positive values, to within a few units in the last place.

    Args:
        values: float64 (n,), normal and positive.
        less_one: ``values - 1`` where that is known more precisely.
    """
    mantissa, exponent = np.frexp(values)
    low = mantissa < _ROOT_HALF
    mantissa = np.where(low, 2.0 * mantissa, mantissa)  # from sqrt(1/2) to sqrt(2)
    exponent = exponent - low
    over = mantissa - 1.0
    if less_one is not None:
        over = np.where(exponent == 0, less_one, over)
    s = over / (2.0 + over)
    square = s * s
    series = np.full_like(s, _TERMS[-1])
    for term in reversed(_TERMS[:-1]):
        series = series * square + term
    return 2.0 * s * series + exponent * _LOG_2
