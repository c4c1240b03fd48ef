"""Importance metrics: name to `Metric`. One file per family; a new metric is one line here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from dataprune_ray.errors import ConfigError, UnknownNameError
from dataprune_ray.metrics.base import (
    ClusterFit,
    CorpusFit,
    Epoch,
    Extent,
    Metric,
    MetricOptions,
    ModelOutputs,
    Need,
    Step,
)
from dataprune_ray.metrics.chance import RANDOM
from dataprune_ray.metrics.coverage import FACILITY_LOCATION, K_CENTER
from dataprune_ray.metrics.deviation import OUTPUT_DEVIATION
from dataprune_ray.metrics.distribution import (
    INFORMATION,
    INVERSE_DENSITY,
    KNN_LABEL_AGREEMENT,
    MUTUAL_INFORMATION,
    PROTOTYPE,
    SURPRISAL,
)
from dataprune_ray.metrics.dynamics import (
    AUM,
    AUM_LOGITS,
    CARTOGRAPHY_CONFIDENCE,
    CARTOGRAPHY_VARIABILITY,
    DUAL,
    DYN_UNC,
    FORGETTING,
    MEAN_EL2N,
    MEAN_LOSS,
    TDDS,
    WINDOWED,
)
from dataprune_ray.metrics.error import EL2N, LOSS, MARGIN
from dataprune_ray.metrics.expression import is_expression, parse
from dataprune_ray.metrics.gradient import GRAD_NORM, GRAD_NORM_FULL, LOSS_GRAD
from dataprune_ray.metrics.joined import joined_metric
from dataprune_ray.metrics.learned import LEARNED, learned_from
from dataprune_ray.metrics.moderate import MODERATE
from dataprune_ray.metrics.redundancy import REDUNDANCY
from dataprune_ray.metrics.uncertainty import CONFIDENCE, ENTROPY, OUTPUT_MAGNITUDE
from dataprune_ray.space import MODEL

__all__ = [
    "METRICS",
    "WINDOWED",
    "ClusterFit",
    "CorpusFit",
    "Epoch",
    "Extent",
    "Metric",
    "MetricOptions",
    "ModelOutputs",
    "Step",
    "check_metrics",
    "get_metric",
    "is_expression",
    "joined_metrics",
    "model_needs",
    "resolve_metric",
]

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        AUM,
        AUM_LOGITS,
        CARTOGRAPHY_CONFIDENCE,
        CARTOGRAPHY_VARIABILITY,
        CONFIDENCE,
        DUAL,
        DYN_UNC,
        EL2N,
        ENTROPY,
        FACILITY_LOCATION,
        FORGETTING,
        GRAD_NORM,
        GRAD_NORM_FULL,
        INFORMATION,
        INVERSE_DENSITY,
        KNN_LABEL_AGREEMENT,
        K_CENTER,
        LEARNED,
        LOSS,
        LOSS_GRAD,
        MARGIN,
        MEAN_EL2N,
        MEAN_LOSS,
        MODERATE,
        MUTUAL_INFORMATION,
        OUTPUT_DEVIATION,
        OUTPUT_MAGNITUDE,
        PROTOTYPE,
        RANDOM,
        REDUNDANCY,
        SURPRISAL,
        TDDS,
    )
}


def get_metric(name: str) -> Metric:
    """The metric of that name.

    Raises:
        UnknownNameError: there is none.
    """
    if name not in METRICS:
        raise UnknownNameError("metric", name, METRICS)
    return METRICS[name]


def model_needs(metrics: Iterable[Metric], space: str) -> frozenset[Need]:
    """What the metrics need of a model; nothing where they need none.

    ``space`` says where the features of the data distribution come from: the model's penultimate
    ones are asked for only where it is `MODEL`.
    """
    needs: frozenset[Need] = frozenset().union(*(metric.needs for metric in metrics))
    features: frozenset[Need] = frozenset({"features"})
    own = features if "space" in needs and space == MODEL else frozenset()
    return (needs - {"labels", "space"}) | own


_NO_METRICS: Mapping[str, Metric] = MappingProxyType({})


def resolve_metric(
    name: str, learned_metric: str, joined: Mapping[str, Metric] = _NO_METRICS
) -> Metric:
    """The metric of that name; ``learned`` with the traits of the metric that it predicts.

    A formula is an entry of its own, beside the metrics that it is made of.

    Args:
        name: of a metric, or a formula.
        learned_metric: what ``learned`` predicts.
        joined: metrics of other runs' score tables, by ``TABLE.METRIC``.

    Raises:
        UnknownNameError: there is none.
        ConfigError: ``learned_metric`` cannot be predicted, or it is no formula.
    """
    if name in joined:
        return joined[name]
    if is_expression(name):
        formula = parse(name, {**METRICS, **joined})
        parts = {part: resolve_metric(part, learned_metric, joined) for part in formula.metrics}
        return formula.as_metric(parts)
    metric = get_metric(name)
    if not metric.learns:
        return metric
    if learned_metric not in METRICS:
        raise UnknownNameError("learned_metric", learned_metric, METRICS)
    return learned_from(METRICS[learned_metric])


def joined_metrics(tables: Mapping[str, Mapping[str, str]]) -> dict[str, Metric]:
    """The metrics of other runs' score tables, by ``TABLE.METRIC``.

    ``tables`` holds, by the tables' names, the metrics that each has, and what each of them
    measures: itself, or the metric that ``learned`` predicted there.
    """
    found = [
        joined_metric(table, resolve_metric(name, measured))
        for table, offered in tables.items()
        for name, measured in offered.items()
    ]
    return {metric.name: metric for metric in found}


def check_metrics(metrics: tuple[Metric, ...], *, labelled: bool, regression: bool) -> None:
    """Refuse metrics that the corpus cannot give.

    Raises:
        ConfigError: a metric needs labels that are not there, or is not defined for regression.
    """
    for metric in metrics:
        if "labels" in metric.needs and not labelled:
            raise ConfigError("metric", metric.name, "needs labels; name a column with --label")
        if regression and not metric.regression:
            usable = ", ".join(sorted(n for n, m in METRICS.items() if m.regression))
            raise ConfigError("metric", metric.name, f"is not defined for regression; use {usable}")
