"""Keep as large a fraction as the mean score, from the kept end.

Only for scores in [0, 1], such as ``output_deviation``: anywhere else the mean is no fraction, and
that is refused. Not where a fraction is wanted: the data choose it.
"""

from __future__ import annotations

from dataprune_ray.config import SelectConfig
from dataprune_ray.cutoff import KeepRule, Population, exact_cut, extremes, pooled, score_sum
from dataprune_ray.errors import ConfigError
from dataprune_ray.strategies.base import ScoreInfo, Strategy, kept_end, rule_of_cut, share_of


def mean_ratio(population: Population, config: SelectConfig, info: ScoreInfo) -> KeepRule:
    """Keep exactly ``floor(mean * N + 0.5)`` rows.

    Raises:
        ConfigError: the metric's range or an observed score leaves [0, 1].
    """
    end = kept_end(config, info)
    low, high = extremes(population) or (0.0, 0.0)
    for what, bounds in (("range", (info.low, info.high)), ("scores", (low, high))):
        if bounds[0] < 0 or bounds[1] > 1:
            raise ConfigError(
                "strategy",
                "mean_ratio",
                f"the mean score is used as a fraction, but the {what} of metric "
                f"{info.metric!r} span {bounds[0]:.6g} to {bounds[1]:.6g}, not 0 to 1; "
                "use 'mean' or 'ratio'",
            )
    whole = pooled(population)
    total = score_sum(whole)
    mean = total.totals()[0] / max(1, total.count)
    (cut,) = exact_cut(whole, [share_of(mean, total.count)], end=end, by_score=True)
    why = f"; the fraction is their mean, {float(mean):.6g}"
    return rule_of_cut(population, info, end, cut=cut, rows=total.count, why=why)


MEAN_RATIO = Strategy(
    name="mean_ratio",
    summary="the mean score as the kept fraction, from the kept end",
    advice="not for scores outside [0, 1], and not where a given fraction is wanted",
    needs_labels=False,
    uses_score=True,
    uses_keep=False,
    compile=mean_ratio,
)
