"""What a predictor of importance looks at: outputs of a model that has not seen the row."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dataprune_ray.metrics import METRICS, ModelOutputs
from dataprune_ray.metrics.error import per_model_loss

#: Cues of classification by name, each a column; the first is the out-of-fold score itself.
CUES = ("el2n", "loss", "margin", "entropy", "confidence", "own_probability")
#: Cues of regression.
REGRESSION_CUES = ("loss", "output", "target")


def cues_of(outputs: ModelOutputs) -> npt.NDArray[np.float32]:
    """Cues of a batch as one model sees it: float32 (B, d), columns as `CUES` names them.

    Infinite values, of a loss that overflows, are held at the largest float32.
    """
    if outputs.regression:
        columns = [
            per_model_loss(outputs)[0],
            outputs.logits[0, :, 0],
            outputs.known_labels(),
        ]
    else:
        labels = outputs.known_labels()
        own = outputs.probabilities()[0].gather(-1, labels[:, None])[:, 0]
        columns = [_score(name, outputs) for name in CUES[:-1]] + [own]
    found: npt.NDArray[np.float32] = torch.stack(columns, dim=1).float().cpu().numpy()
    return np.nan_to_num(found, nan=0.0)


def _score(name: str, outputs: ModelOutputs) -> Tensor:
    score = METRICS[name].score
    if score is None:
        raise ValueError(f"metric {name!r} is not a function of one batch")
    return score(outputs)
