"""How far a row's output lies from the corpus's mean output, as a share of the farthest row's.

Two reductions over stored outputs (mean, then maximum); the model runs once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dataprune_ray.cutoff import ExactSum
from dataprune_ray.metrics.base import (
    Columns,
    CorpusFit,
    Extent,
    Found,
    Metric,
    MetricOptions,
    Step,
)

_OUTPUTS = "outputs"
_MEAN = "output_mean"
_LARGEST = "output_deviation_largest"


def _sum(columns: Columns, _: Found, extent: Extent) -> ExactSum:
    return ExactSum(extent.outputs).add(columns[_OUTPUTS])


def _mean(total: ExactSum) -> npt.NDArray[np.float64]:
    return total.means() if total.count else np.zeros(total.columns)


def _distances(columns: Columns, found: Found) -> npt.NDArray[np.float64]:
    outputs: npt.NDArray[Any] = columns[_OUTPUTS]
    return np.asarray(np.linalg.norm(outputs.astype(np.float64) - found[_MEAN], axis=1))


def _largest(columns: Columns, found: Found, _: Extent) -> float:
    return float(_distances(columns, found).max(initial=0.0))


def _share(columns: Columns, found: Found, _: MetricOptions) -> npt.NDArray[np.float64]:
    return _distances(columns, found) / (float(found[_LARGEST]) or 1.0)


OUTPUT_DEVIATION = Metric(
    name="output_deviation",
    summary="||f(x) - mean f|| / max ||f(x') - mean f||, f the raw output averaged over the models",
    advice="not as a measure of difficulty: confident rows of rare classes lie far out too",
    needs=frozenset({"logits", "outputs"}),
    polarity="high",
    low=0.0,
    high=1.0,
    noise_end=None,
    regression=True,
    cost="forward pass",
    score=None,
    fit=CorpusFit(
        columns=(_OUTPUTS,),
        values=_share,
        steps=(Step(_MEAN, _sum, ExactSum.merge, _mean), Step(_LARGEST, _largest, max)),
    ),
)
