"""Metrics from the model's error on the label: loss, EL2N, margin.

Use them with a model that has not memorised the corpus: an early or a differently trained one.
On noisy labels the hard end holds the mislabelled rows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from dataprune_ray.metrics.base import Metric, ModelOutputs


def per_model_loss(outputs: ModelOutputs) -> Tensor:
    """Cross-entropy ``-log p_y``, or the squared error for regression: (K, B)."""
    labels = outputs.known_labels()
    if outputs.regression:
        return (outputs.logits[..., 0] - labels).square()
    models, rows, classes = outputs.logits.shape
    flat = outputs.logits.reshape(models * rows, classes)
    repeated = labels.repeat(models)
    return functional.cross_entropy(flat, repeated, reduction="none").view(models, rows)


def residuals(outputs: ModelOutputs) -> Tensor:
    """``p - onehot(y)``: (K, B, C); for regression the loss's derivative ``2 (f - y)``."""
    labels = outputs.known_labels()
    if outputs.regression:
        return 2.0 * (outputs.logits - labels[None, :, None])
    probabilities = outputs.probabilities()
    index = labels[None, :, None].expand(probabilities.shape[0], -1, 1)
    others = probabilities.scatter(-1, index, 0.0)
    return others.scatter(-1, index, -others.sum(dim=-1, keepdim=True))  # 1 - p_y loses digits


def length(vectors: Tensor) -> Tensor:
    """Euclidean norm over the last dimension."""
    norms: Tensor = torch.linalg.vector_norm(vectors, dim=-1)
    return norms


def _loss(outputs: ModelOutputs) -> Tensor:
    return per_model_loss(outputs).mean(dim=0)


def _el2n(outputs: ModelOutputs) -> Tensor:
    return length(residuals(outputs)).mean(dim=0)


def _margin(outputs: ModelOutputs) -> Tensor:
    probabilities = outputs.probabilities()  # (K, B, C)
    if outputs.labels is None:
        top = probabilities.topk(min(2, probabilities.shape[-1]), dim=-1).values
        return (top[..., 0] - top[..., -1]).mean(dim=0)
    index = outputs.labels[None, :, None].expand(probabilities.shape[0], -1, 1)
    own = probabilities.gather(-1, index)[..., 0]
    others = probabilities.scatter(-1, index, -1.0)
    best_other = others.amax(dim=-1).clamp_min(0.0)
    return (own - best_other).mean(dim=0)


LOSS = Metric(
    name="loss",
    summary="cross-entropy -log p_y, squared error for regression; mean over the models",
    advice="not on noisy labels without cutting the noisiest rows first",
    needs=frozenset({"logits", "labels"}),
    polarity="high",
    low=0.0,
    high=math.inf,
    noise_end="high",
    regression=True,
    cost="forward pass",
    score=_loss,
)

EL2N = Metric(
    name="el2n",
    summary="||p - onehot(y)||_2, mean over the models (Paul et al. 2021)",
    advice="not at a keep fraction under about 0.2, nor on noisy labels: the hard end collapses",
    needs=frozenset({"logits", "labels"}),
    polarity="high",
    low=0.0,
    high=math.sqrt(2.0),
    noise_end="high",
    regression=False,
    cost="forward pass",
    score=_el2n,
)

MARGIN = Metric(
    name="margin",
    summary="p_y minus the largest other probability; unlabelled: p_1 - p_2; mean over the models",
    advice="not on noisy labels without cutting the noisiest rows first",
    needs=frozenset({"logits"}),
    polarity="low",
    low=-1.0,
    high=1.0,
    noise_end="low",
    regression=False,
    cost="forward pass",
    score=_margin,
)
