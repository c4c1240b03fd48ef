"""How far a row's output lies from the corpus's mean output, as a share of the farthest row's.

Two reductions over stored outputs (mean, then maximum); the model runs once.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dataprune_ray.metrics.base import CorpusFit, Metric


def _distance(
    outputs: npt.NDArray[np.float32], mean: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    return np.asarray(np.linalg.norm(outputs.astype(np.float64) - mean, axis=1))


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
    fit=CorpusFit(_distance),
)
