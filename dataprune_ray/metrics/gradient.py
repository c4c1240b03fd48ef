"""Metrics from the per-sample gradient of the loss.

`grad_norm` is the gradient of the last linear layer, in closed form and as cheap as the forward
pass; `grad_norm_full` differentiates the whole network per sample and costs tens of times more.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from dataprune_ray.metrics.base import Metric, ModelOutputs
from dataprune_ray.metrics.error import length, per_model_loss, residuals

_CHUNK = 32  # samples differentiated at once, at most,
_CHUNK_BYTES = 512 << 20  # and only so many that their gradients need no more than this


def _grad_norm(outputs: ModelOutputs) -> Tensor:
    if outputs.features is None:
        raise ValueError("grad_norm needs penultimate features: the model has no linear layer")
    bias = 1.0 if outputs.has_bias else 0.0
    norms = []
    for residual, features in zip(residuals(outputs), outputs.features, strict=True):
        squared = features.square().sum(dim=-1) + bias  # (B,)
        norms.append(length(residual) * squared.sqrt())
    return torch.stack(norms).mean(dim=0)


def _grad_norm_full(outputs: ModelOutputs) -> Tensor:
    if outputs.inputs is None or not outputs.models:
        raise ValueError("grad_norm_full needs the models and their inputs")
    labels = outputs.known_labels()
    norms = [
        _sample_norms(model, outputs.inputs, labels, regression=outputs.regression)
        for model in outputs.models
    ]
    return torch.stack(norms).mean(dim=0)


def _sample_norms(model: nn.Module, inputs: Tensor, labels: Tensor, *, regression: bool) -> Tensor:
    parameters = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    fixed = {n: b.detach() for n, b in model.named_buffers()}

    def loss(weights: dict[str, Tensor], row: Tensor, label: Tensor) -> Tensor:
        output: Tensor = functional_call(model, (weights, fixed), (row[None],))  # (1, C)
        if regression:
            return (output[0, 0] - label) ** 2
        return functional.cross_entropy(output, label[None])

    def squared_norm(row: Tensor, label: Tensor) -> Tensor:
        gradients: dict[str, Tensor] = grad(loss)(parameters, row, label)
        return torch.stack([g.square().sum() for g in gradients.values()]).sum()

    size = sum(p.numel() * p.element_size() for p in parameters.values())
    chunk = max(1, min(_CHUNK, _CHUNK_BYTES // max(size, 1)))
    norms: Tensor = vmap(squared_norm, chunk_size=chunk)(inputs, labels)
    return norms.sqrt()


def _loss_grad(outputs: ModelOutputs) -> Tensor:
    options = outputs.options
    loss = per_model_loss(outputs).mean(dim=0)
    return options.gradient_weight * _grad_norm(outputs) + options.loss_weight * loss


GRAD_NORM = Metric(
    name="grad_norm",
    summary="last-layer gradient norm, ||p - y|| sqrt(||h||^2 + 1); mean over the models",
    advice="not on noisy labels without cutting the noisiest rows first",
    needs=frozenset({"logits", "labels", "features"}),
    polarity="high",
    low=0.0,
    high=math.inf,
    noise_end="high",
    regression=True,
    cost="forward pass",
    score=_grad_norm,
)

GRAD_NORM_FULL = Metric(
    name="grad_norm_full",
    summary="norm of the loss's gradient in all parameters, per sample; mean over the models",
    advice="not where grad_norm does: it costs tens of forward passes and ranks nearly the same",
    needs=frozenset({"logits", "labels", "gradients"}),
    polarity="high",
    low=0.0,
    high=math.inf,
    noise_end="high",
    regression=True,
    cost="tens of forward passes",
    score=_grad_norm_full,
)

LOSS_GRAD = Metric(
    name="loss_grad",
    summary="gradient_weight * grad_norm + loss_weight * loss",
    advice="not where the two scales differ by orders of magnitude: one term then decides alone",
    needs=frozenset({"logits", "labels", "features"}),
    polarity="high",
    low=0.0,
    high=math.inf,
    noise_end="high",
    regression=True,
    cost="forward pass",
    score=_loss_grad,
)
