"""Metrics from training dynamics: how a row fares over the checkpoints of one training run.

Rows are decoded once and every checkpoint sees them in turn; a tracker holds what its metric needs
of the batch at hand, so nothing grows with the rows. Models are in eval mode and inputs are not
augmented. ``T`` is the number of checkpoints, ``p_t`` the probabilities at checkpoint ``t``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from dataprune_ray.metrics.base import Epoch, Metric, MetricOptions, Need, Tracker

_TDDS_DECAY = 0.9


class _Forgetting:
    """Times a row was right and then wrong; a row that was never right counts ``T + 1``."""

    def __init__(self, _: MetricOptions) -> None:
        self.steps = 0
        self.events: Tensor | None = None
        self.before: Tensor | None = None
        self.ever: Tensor | None = None

    def add(self, epoch: Epoch) -> None:
        right = epoch.logits.argmax(dim=-1) == epoch.known_labels()  # (B,)
        if self.events is None or self.before is None or self.ever is None:
            self.events, self.ever = torch.zeros_like(right, dtype=torch.int64), right
        else:
            self.events = self.events + (self.before & ~right)
            self.ever = self.ever | right
        self.before = right
        self.steps += 1

    def value(self) -> Tensor:
        if self.events is None or self.ever is None:
            raise ValueError("no checkpoint was seen")
        return torch.where(self.ever, self.events, self.steps + 1).float()


class _Moments:
    """Mean and population standard deviation over the checkpoints, by Welford's recursion."""

    def __init__(self, of: Callable[[Epoch], Tensor], moment: Literal["mean", "std"]) -> None:
        self.of = of
        self.moment = moment
        self.steps = 0
        self.mean: Any = 0.0
        self.squares: Any = 0.0

    def add(self, epoch: Epoch) -> None:
        value = self.of(epoch)  # (B,)
        self.steps += 1
        gap = value - self.mean
        self.mean = self.mean + gap / self.steps
        self.squares = self.squares + gap * (value - self.mean)

    def value(self) -> Tensor:
        spread = self.squares / self.steps
        found: Tensor = self.mean if self.moment == "mean" else spread.clamp_min(0.0).sqrt()
        return found.float()


class _Windows:
    """Mean over all windows of ``J`` checkpoints of a function of ``p_y`` within one: (J, B)."""

    def __init__(self, options: MetricOptions, of: Callable[[Tensor], Tensor]) -> None:
        self.of = of
        self.ring: deque[Tensor] = deque(maxlen=options.window)
        self.count = 0
        self.sum: Any = 0.0

    def add(self, epoch: Epoch) -> None:
        self.ring.append(epoch.own_probability())
        if len(self.ring) == self.ring.maxlen:
            self.sum = self.sum + self.of(torch.stack(tuple(self.ring)))
            self.count += 1

    def value(self) -> Tensor:
        if not self.count:
            raise ValueError(f"a window of {self.ring.maxlen} checkpoints was never full")
        mean: Tensor = self.sum / self.count
        return mean.float()


class _TemporalDualDepth:
    """TDDS: the spread of changes between checkpoints within a window, later windows weigh more.

    ``d_t = sum_c |p_{t+1,c} log(p_{t+1,c} / p_{t,c})|``; a window of ``J`` checkpoints holds
    ``J - 1`` of them and gives ``R = ||d - mean d||_2``; ``S <- 0.1 S + 0.9 R``, from 0.
    """

    def __init__(self, options: MetricOptions) -> None:
        self.changes: deque[Tensor] = deque(maxlen=options.window - 1)
        self.before: Tensor | None = None
        self.score: Any = 0.0
        self.count = 0

    def add(self, epoch: Epoch) -> None:
        now = epoch.log_probabilities
        if self.before is not None:
            self.changes.append((epoch.probabilities * (now - self.before).abs()).sum(dim=-1))
        self.before = now
        if len(self.changes) == self.changes.maxlen:
            window = torch.stack(tuple(self.changes))  # (J - 1, B)
            spread = torch.linalg.vector_norm(window - window.mean(dim=0), dim=0)
            self.score = (1.0 - _TDDS_DECAY) * self.score + _TDDS_DECAY * spread
            self.count += 1

    def value(self) -> Tensor:
        if not self.count:
            raise ValueError("a window of checkpoints was never full")
        found: Tensor = self.score
        return found.float()


def _margin(values: Tensor, epoch: Epoch) -> Tensor:
    """Own value minus the largest other, (B,), of values (B, C); 0 for the other of one class."""
    index = epoch.known_labels()[:, None]
    others = values.scatter(-1, index, -math.inf).amax(dim=-1)
    return values.gather(-1, index)[:, 0] - torch.where(others.isinf(), 0.0, others)


def _probability_margin(epoch: Epoch) -> Tensor:
    return _margin(epoch.probabilities, epoch)


def _logit_margin(epoch: Epoch) -> Tensor:
    return _margin(epoch.logits.double(), epoch)


def _loss(epoch: Epoch) -> Tensor:
    return -epoch.log_probabilities.gather(-1, epoch.known_labels()[:, None])[:, 0]


def _error(epoch: Epoch) -> Tensor:
    index = epoch.known_labels()[:, None]
    others = epoch.probabilities.scatter(-1, index, 0.0)
    return (others.square().sum(dim=-1) + others.sum(dim=-1).square()).sqrt()


def _mean_loss(_: MetricOptions) -> Tracker:
    return _Moments(_loss, "mean")


def _mean_el2n(_: MetricOptions) -> Tracker:
    return _Moments(_error, "mean")


def _aum(_: MetricOptions) -> Tracker:
    return _Moments(_probability_margin, "mean")


def _aum_logits(_: MetricOptions) -> Tracker:
    return _Moments(_logit_margin, "mean")


def _confidence(_: MetricOptions) -> Tracker:
    return _Moments(Epoch.own_probability, "mean")


def _variability(_: MetricOptions) -> Tracker:
    return _Moments(Epoch.own_probability, "std")


def _deviation(window: Tensor) -> Tensor:
    return window.std(dim=0, correction=1)


def _uncertain_and_hard(window: Tensor) -> Tensor:
    return _deviation(window) * (1.0 - window.mean(dim=0))


def _dyn_unc(options: MetricOptions) -> Tracker:
    return _Windows(options, _deviation)


def _dual(options: MetricOptions) -> Tracker:
    return _Windows(options, _uncertain_and_hard)


_NEEDS: frozenset[Need] = frozenset({"logits", "labels", "trajectory"})
#: What all of them share.
_dynamic = partial(
    Metric, needs=_NEEDS, regression=False, cost="forward pass per checkpoint", score=None
)

FORGETTING = _dynamic(
    name="forgetting",
    summary="checkpoints at which a row was right and at the next wrong; T + 1 if it never was "
    "right (Toneva et al. 2019)",
    advice="not with few checkpoints: most rows tie at 0 and the hash decides",
    polarity="high",
    low=0.0,
    high=math.inf,
    noise_end="high",
    track=_Forgetting,
)

AUM = _dynamic(
    name="aum",
    summary="mean over the checkpoints of p_y minus the largest other probability (Pleiss et al. "
    "2020, on probabilities)",
    advice="not at a keep fraction under about 0.2 without stratified: the hard end collapses",
    polarity="low",
    low=-1.0,
    high=1.0,
    noise_end="low",
    track=_aum,
)

AUM_LOGITS = _dynamic(
    name="aum_logits",
    summary="mean over the checkpoints of z_y minus the largest other logit (Pleiss et al. 2020)",
    advice="not with stratified, whose bins of equal width an unbounded score spoils; use aum",
    polarity="low",
    low=-math.inf,
    high=math.inf,
    noise_end="low",
    track=_aum_logits,
)

CARTOGRAPHY_CONFIDENCE = _dynamic(
    name="cartography_confidence",
    summary="mean over the checkpoints of p_y (Swayamdipta et al. 2020)",
    advice="not on noisy labels without cutting the noisiest rows first",
    polarity="low",
    low=0.0,
    high=1.0,
    noise_end="low",
    track=_confidence,
)

CARTOGRAPHY_VARIABILITY = _dynamic(
    name="cartography_variability",
    summary="population standard deviation over the checkpoints of p_y (Swayamdipta et al. 2020)",
    advice="not on noisy labels: rows that are learned late by heart vary most",
    polarity="high",
    low=0.0,
    high=0.5,
    noise_end=None,
    track=_variability,
)

DYN_UNC = _dynamic(
    name="dyn_unc",
    summary="mean over windows of J checkpoints of the sample standard deviation of p_y (He et "
    "al. 2024)",
    advice="not at a keep fraction under about 0.3",
    polarity="high",
    low=0.0,
    high=math.sqrt(0.5),
    noise_end=None,
    track=_dyn_unc,
)

DUAL = _dynamic(
    name="dual",
    summary="mean over windows of J checkpoints of std(p_y) (1 - mean(p_y)) (Cho et al. 2025)",
    advice="not at a keep fraction under about 0.3 without weighted",
    polarity="high",
    low=0.0,
    high=math.sqrt(0.5),
    noise_end=None,
    track=_dual,
)

MEAN_LOSS = _dynamic(
    name="mean_loss",
    summary="mean over the checkpoints of -log p_y",
    advice="not on noisy labels without cutting the noisiest rows first",
    polarity="high",
    low=0.0,
    high=math.inf,
    noise_end="high",
    track=_mean_loss,
)

MEAN_EL2N = _dynamic(
    name="mean_el2n",
    summary="mean over the checkpoints of ||p - onehot(y)||_2: el2n before rows are known by heart",
    advice="not at a keep fraction under about 0.2, nor on noisy labels: the hard end collapses",
    polarity="high",
    low=0.0,
    high=math.sqrt(2.0),
    noise_end="high",
    track=_mean_el2n,
)

TDDS = _dynamic(
    name="tdds",
    summary="spread of sum_c |p' log(p'/p)| between checkpoints within windows of J, later "
    "windows weigh more (Zhang et al. 2024)",
    advice="not at a keep fraction of about 0.1: its published results there did not reproduce",
    needs=frozenset({"logits", "trajectory"}),
    polarity="high",
    low=0.0,
    high=math.inf,
    noise_end=None,
    track=_TemporalDualDepth,
)

#: Metrics that see windows of checkpoints, of which there must be as many as a window holds.
WINDOWED = frozenset({DYN_UNC.name, DUAL.name, TDDS.name})
