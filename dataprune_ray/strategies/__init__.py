"""Selection strategies: which rows of a score table are kept.

Each compiles a population of scores to a keep rule, by exact global statistics. To add one, write
a file with a ``Strategy`` and add its line here; the property tests run over this registry.
"""

from __future__ import annotations

from dataprune_ray.errors import UnknownNameError
from dataprune_ray.strategies.balanced import CLASS_BALANCED, RANDOM_BALANCED
from dataprune_ray.strategies.base import ScoreInfo, Strategy, kept_end
from dataprune_ray.strategies.mean_ratio import MEAN_RATIO
from dataprune_ray.strategies.ratio import QUANTILE, RATIO
from dataprune_ray.strategies.screening import check_shares, compile_rule, extra_metrics
from dataprune_ray.strategies.stratified import STRATIFIED
from dataprune_ray.strategies.threshold import MAX_FRACTION, MEAN, THRESHOLD
from dataprune_ray.strategies.uniform import RANDOM
from dataprune_ray.strategies.weighted import WEIGHTED
from dataprune_ray.strategies.window import WINDOW

__all__ = [
    "STRATEGIES",
    "ScoreInfo",
    "Strategy",
    "check_shares",
    "compile_rule",
    "extra_metrics",
    "get_strategy",
    "kept_end",
]

STRATEGIES: dict[str, Strategy] = {
    "ratio": RATIO,
    "quantile": QUANTILE,
    "class_balanced": CLASS_BALANCED,
    "window": WINDOW,
    "stratified": STRATIFIED,
    "weighted": WEIGHTED,
    "threshold": THRESHOLD,
    "mean": MEAN,
    "max_fraction": MAX_FRACTION,
    "mean_ratio": MEAN_RATIO,
    "random": RANDOM,
    "random_balanced": RANDOM_BALANCED,
}


def get_strategy(name: str) -> Strategy:
    """The strategy of that name.

    Raises:
        UnknownNameError: no strategy has it.
    """
    try:
        return STRATEGIES[name]
    except KeyError:
        raise UnknownNameError("strategy", name, STRATEGIES) from None
