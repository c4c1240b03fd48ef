"""Metrics from the model's outputs alone: no label is needed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dataprune_ray.metrics.base import Metric, ModelOutputs


def _entropy(outputs: ModelOutputs) -> Tensor:
    log_p = torch.log_softmax(outputs.logits, dim=-1)  # (K, B, C)
    return -(log_p.exp() * log_p).sum(dim=-1).mean(dim=0)


def _confidence(outputs: ModelOutputs) -> Tensor:
    return outputs.probabilities().amax(dim=-1).mean(dim=0)


def _magnitude(outputs: ModelOutputs) -> Tensor:
    return outputs.logits.abs().mean(dim=-1).mean(dim=0)


ENTROPY = Metric(
    name="entropy",
    summary="-sum p log p in nats, mean over the models",
    advice="not where labels are at hand: el2n and margin know more",
    needs=frozenset({"logits"}),
    polarity="high",
    low=0.0,
    high=math.inf,
    noise_end=None,
    regression=False,
    cost="forward pass",
    score=_entropy,
)

CONFIDENCE = Metric(
    name="confidence",
    summary="max p, mean over the models",
    advice="not with an overfitted model: every row saturates at 1",
    needs=frozenset({"logits"}),
    polarity="low",
    low=0.0,
    high=1.0,
    noise_end=None,
    regression=False,
    cost="forward pass",
    score=_confidence,
)

OUTPUT_MAGNITUDE = Metric(
    name="output_magnitude",
    summary="mean of |f(x)| over the raw outputs and the models",
    advice="not across differently scaled models: raw outputs have no common unit",
    needs=frozenset({"logits"}),
    polarity="high",
    low=0.0,
    high=math.inf,
    noise_end=None,
    regression=True,
    cost="forward pass",
    score=_magnitude,
)
