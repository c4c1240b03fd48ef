"""What a metric is, and what it is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Polarity = Literal["high", "low", "none"]
Need = Literal["logits", "labels", "features", "gradients", "outputs"]


@dataclass(frozen=True)
class MetricOptions:
    """Settings that some metrics read."""

    gradient_weight: float = 0.5
    loss_weight: float = 0.5


@dataclass(frozen=True)
class ModelOutputs:
    """One batch as K models (checkpoints or seeds) see it, in float32 on one device.

    ``logits`` (K, B, C) are the models' raw outputs, (K, B, 1) for regression; ``features``
    (K, B, D) the inputs of their last linear layer; ``labels`` (B,) class indices int64, or
    targets float32. ``inputs`` and ``models`` serve metrics that differentiate.
    """

    logits: Tensor
    labels: Tensor | None = None
    features: tuple[Tensor, ...] | None = None
    has_bias: bool = True
    regression: bool = False
    inputs: Tensor | None = None
    models: tuple[nn.Module, ...] = ()
    options: MetricOptions = field(default_factory=MetricOptions)

    def probabilities(self) -> Tensor:
        """Softmax of the logits: (K, B, C)."""
        return torch.softmax(self.logits, dim=-1)  # (K, B, C)

    def known_labels(self) -> Tensor:
        """The labels of a metric that needs them: (B,)."""
        if self.labels is None:
            raise ValueError("this metric needs labels")
        return self.labels


@dataclass(frozen=True)
class CorpusFit:
    """Second stage of a metric that needs the whole corpus, over stored mean outputs.

    ``score`` maps outputs float32 (n, C) and the corpus's mean output float64 (C,) to unnormalised
    float64 (n,); the result is divided by its maximum over the corpus.
    """

    score: Callable[[npt.NDArray[np.float32], npt.NDArray[np.float64]], npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Metric:
    """A per-sample importance metric.

    Attributes:
        name: column name in the score table.
        summary: one line: what it measures, with its formula.
        advice: one line: when not to use it.
        needs: what must be there for it to be computed.
        polarity: which end of its values is worth keeping.
        low, high: its range; infinite where unbounded.
        noise_end: the end where mislabelled rows gather, if any.
        regression: whether it is defined for regression.
        cost: what computing it takes, such as 'none', 'forward pass', 'forward pass per
            checkpoint', 'sample + forward pass' or 'tens of forward passes'.
        score: pure function to float32 (B,), or None where ``fit`` or the row hash gives it.
        fit: second stage over the whole corpus, if any.
    """

    name: str
    summary: str
    advice: str
    needs: frozenset[Need]
    polarity: Polarity
    low: float
    high: float
    noise_end: Literal["high", "low"] | None
    regression: bool
    cost: str
    score: Callable[[ModelOutputs], Tensor] | None
    fit: CorpusFit | None = None
