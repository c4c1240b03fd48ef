"""Cut the hardest share as noise, then keep evenly over the range of the scores.

Coverage-centric selection (CCS: Zheng, Liu, Lai and Prakash, "Coverage-centric coreset selection
for high pruning rates", ICLR 2023). Use it at small fractions or on ambiguous data, where the
hardest rows alone mislead. Not for unbounded scores such as the loss or raw outputs: a few
extreme rows stretch the bins until one bin holds nearly all of the others. A margin is bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from dataprune_ray.config import SelectConfig
from dataprune_ray.cutoff import (
    HASH_MAX,
    Band,
    Block,
    End,
    KeepRule,
    Population,
    derived,
    exact_cut,
    extremes,
    group_counts,
)
from dataprune_ray.strategies.base import (
    NoiseFirst,
    ScoreInfo,
    Strategy,
    float32_bound,
)


def stratified(population: Population, config: SelectConfig, info: ScoreInfo) -> KeepRule:
    """Keep exactly ``floor(keep * N + 0.5)`` rows, spread evenly over equal-width score bins.

    First ``floor(beta * N + 0.5)`` rows of the kept end are cut as noise, ties by ascending hash
    (one fewer where both shares round up past N). The range of the others is cut into ``bins`` of
    equal width; :func:`bin_budgets` says how many rows each keeps, and the hash which ones.

    Raises:
        ConfigError: ``beta + keep`` exceeds 1.
    """
    noise = NoiseFirst.of(population, config, info)
    bands, filled = _cut_bins(noise.rest(), config.bins, noise.quota, noise.end)
    sentence = f"Keep exactly {noise.quota:,} of {noise.rows:,} rows, spread evenly over "
    sentence += f"{filled:,} equal-width bins of {info.metric} and chosen by hash in each"
    return KeepRule(
        bands=bands,
        groups=population.groups,
        metric=info.metric,
        end=noise.end,
        explanation=f"{sentence},{noise.clause}." if noise.clause else f"{sentence}.",
        cutoffs={"": None},
        noise=noise.bands,
    )


def equal_width_bins(low: float, high: float, bins: int, end: End) -> list[tuple[float, float]]:
    """Cut an interval into bins of equal width that a float32 lies in exactly one of.

    The edges are exact fractions; a bin holds its edge away from the kept end, and the last bin
    both of its edges, so that mirrored scores with the other end give mirrored bins.

    Args:
        low: float32 value of the least score.
        high: float32 value of the greatest score.
        bins: how many, 1 or more.
        end: the kept end.

    Returns:
        The least and the greatest float32 of each bin, from the other end to the kept one. Bins
        too narrow to hold a float32 are left out; equal bounds give one bin.
    """
    if end == "low":
        return [(-b, -a) for a, b in equal_width_bins(-high, -low, bins, "high")]
    start, width = Fraction(low), (Fraction(high) - Fraction(low)) / bins
    first = [float32_bound(start + width * position, "high") for position in range(bins)]
    first = list(dict.fromkeys(first))
    down = np.float32(-np.inf)
    last = [float(np.nextafter(np.float32(value), down)) for value in first[1:]]
    return list(zip(first, [*last, high], strict=True))


def bin_budgets(sizes: Sequence[int], quota: int) -> list[int]:
    """How many rows each bin keeps.

    From the smallest bin that is not empty to the largest, each gets
    ``min(size, floor(rows still to keep / bins left))``: a small bin is kept whole, and the larger
    ones share what is left. The sum is ``quota`` wherever there are as many rows.
    """
    budgets = [0] * len(sizes)
    order = sorted((size, position) for position, size in enumerate(sizes) if size)
    for visited, (size, position) in enumerate(order):
        budgets[position] = min(size, quota // (len(order) - visited))
        quota -= budgets[position]
    return budgets


def _cut_bins(
    population: Population, bins: int, quota: int, end: End
) -> tuple[tuple[Band, ...], int]:
    """Bands that keep ``quota`` rows evenly over the bins, and how many bins hold a row."""
    found = extremes(population)
    if found is None:
        return (), 0
    strata = equal_width_bins(*found, bins, end)
    starts = [low if end == "high" else -high for low, high in strata]
    view = _IntoBins(np.array(starts, np.float32), end)
    names = tuple(f"{low:.6g} to {high:.6g}" for low, high in strata)
    binned = derived(population, names, view, frozenset({"scores"}))
    sizes = [int(size) for size in group_counts(binned)]
    cuts = exact_cut(binned, bin_budgets(sizes, quota), end=end, by_score=False, sizes=sizes)
    bands = (
        Band(None, low, high, HASH_MAX if cut.quota == size else cut.hash_max)
        for (low, high), size, cut in zip(strata, sizes, cuts, strict=True)
        if cut.quota
    )
    return tuple(bands), sum(size > 0 for size in sizes)


@dataclass(frozen=True)
class _IntoBins:
    """Blocks whose groups are the bins that the scores lie in."""

    starts: NDArray[np.float32]  # (B,) ascending; of mirrored scores where the low end is kept
    end: End

    def __call__(self, block: Block) -> Block:
        scores = block.need_scores()
        toward_kept = scores if self.end == "high" else -scores
        return Block(block.scores, block.hashes, places_of(toward_kept, self.starts))


def places_of(scores: NDArray[np.float32], starts: NDArray[np.float32]) -> NDArray[np.int32]:
    """The last of the ascending starts (B,) that is not above each score (n,): int32 (n,).

    Starts of equal distance are found by division, what that misses by bisection.
    """
    last = len(starts) - 1
    if not last or not len(scores):
        return np.searchsorted(starts, scores, side="right").astype(np.int32) - np.int32(1)
    width = (np.float64(starts[-1]) - np.float64(starts[0])) / last
    guess = ((scores - np.float64(starts[0])) / width).clip(0, last).astype(np.int32)
    after = np.append(starts[1:], np.float32(np.inf))
    missed = np.flatnonzero((scores < starts[guess]) | (scores >= after[guess]))
    guess[missed] = np.searchsorted(starts, scores[missed], side="right") - 1
    return guess


STRATIFIED = Strategy(
    name="stratified",
    summary="exactly the keep fraction, evenly over --bins score bins, after the --beta share of "
    "the kept end",
    advice="not for unbounded scores: a few extreme rows leave one bin to nearly all of the others",
    needs_labels=False,
    uses_score=True,
    uses_keep=True,
    compile=stratified,
    uses_beta=True,
    by_rank=False,
)
