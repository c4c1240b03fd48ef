"""Draw rows without replacement, with weights that grow with the score.

Between ``random`` (``--weight-power 0``) and ``ratio`` (a large power): every row can be kept, and
the decisions hold inverse probabilities to weight the kept rows with. Not where the same rows must
be kept for another seed.
"""

from __future__ import annotations

import math
from dataclasses import replace

from dataprune_ray.config import SelectConfig
from dataprune_ray.cutoff import (
    End,
    KeepRule,
    Population,
    WeightedDraw,
    derived,
    exact_cut,
    extremes,
)
from dataprune_ray.strategies.base import (
    NoiseFirst,
    ScoreInfo,
    Strategy,
    bands_of_cut,
    decimal_fraction,
    nearest_float32,
)


def weighted(population: Population, config: SelectConfig, info: ScoreInfo) -> KeepRule:
    """Draw exactly ``floor(keep * N + 0.5)`` rows without replacement.

    First ``floor(beta * N + 0.5)`` rows of the kept end are cut as noise (one fewer where both
    shares round up past N). A row's weight is the distance of its score from the end that is not
    kept, to the power ``weight_power``. That end is the metric's own bound (a margin cannot exceed
    1), or the outermost score where the metric has none.

    Raises:
        ConfigError: ``beta + keep`` exceeds 1.
    """
    noise = NoiseFirst.of(population, config, info)
    end, quota, rest = noise.end, noise.quota, noise.rest()
    draw = WeightedDraw(_origin(rest, info, end), end, config.weight_power)
    keyed = derived(rest, ("",), draw, frozenset({"scores", "hashes"}))
    (cut,) = exact_cut(keyed, [quota], end="high", by_score=True)
    if quota < noise.rows - noise.skipped:
        (following,) = exact_cut(keyed, [quota + 1], end="high", by_score=True)
        draw = replace(draw, threshold=following.score)
    sentence = f"Keep exactly {quota:,} of {noise.rows:,} rows, drawn without replacement with the "
    sentence += f"distance of their {info.metric} from {draw.origin:.6g} as weight"
    if draw.power != 1:
        sentence += f", to the power {draw.power:.6g}"
    if noise.clause:
        sentence += f",{noise.clause}"
    return KeepRule(
        bands=tuple(bands_of_cut(cut, "high", None)),
        groups=population.groups,
        metric=info.metric,
        end=end,
        explanation=f"{sentence}.",
        cutoffs={"": None},
        noise=noise.bands,
        draw=draw,
    )


def _origin(population: Population, info: ScoreInfo, end: End) -> float:
    """The score of the least weight: a float32."""
    bound = info.low if end == "high" else info.high
    if math.isfinite(bound):
        return nearest_float32(decimal_fraction(bound))
    low, high = extremes(population) or (0.0, 0.0)
    return low if end == "high" else high


WEIGHTED = Strategy(
    name="weighted",
    summary="exactly the keep fraction drawn with weights that grow with the score, after the "
    "--beta share of the kept end; --weight-power",
    advice="not where another seed must keep the same rows: it is a random draw",
    needs_labels=False,
    uses_score=True,
    uses_keep=True,
    compile=weighted,
    uses_beta=True,
    by_rank=False,
)
