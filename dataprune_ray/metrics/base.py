"""What a metric is, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dataprune_ray import schema
from dataprune_ray.space import ClusterValues, Members, within_clusters

Polarity = Literal["high", "low", "none"]
Need = Literal["logits", "labels", "features", "gradients", "outputs", "trajectory", "space"]


@dataclass(frozen=True)
class MetricOptions:
    """Settings that some metrics read."""

    gradient_weight: float = 0.5
    loss_weight: float = 0.5
    surprisal_weight: float = 0.6
    mutual_information_weight: float = 0.4
    duplicate_epsilon: float = 0.05
    window: int = 10  # checkpoints that a windowed metric looks at together


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
class Epoch:
    """One batch as one checkpoint of a training run sees it: logits (B, C), labels (B,) int64."""

    logits: Tensor
    labels: Tensor | None = None

    @cached_property
    def log_probabilities(self) -> Tensor:
        """Logarithms of the probabilities: float64 (B, C)."""
        return torch.log_softmax(self.logits.double(), dim=-1)

    @cached_property
    def probabilities(self) -> Tensor:
        """Softmax of the logits: float64 (B, C)."""
        return self.log_probabilities.exp()

    def known_labels(self) -> Tensor:
        """The labels of a metric that needs them: (B,)."""
        if self.labels is None:
            raise ValueError("this metric needs labels")
        return self.labels

    def own_probability(self) -> Tensor:
        """The probability of the label: float64 (B,)."""
        return self.probabilities.gather(-1, self.known_labels()[:, None])[:, 0]


class Tracker(Protocol):
    """What a training-dynamics metric keeps of one batch while checkpoints see it in turn."""

    def add(self, epoch: Epoch) -> None:
        """Take in the next checkpoint, in the order of time."""
        ...

    def value(self) -> Tensor:
        """The metric after all checkpoints: float32 (B,)."""
        ...


#: Columns of score files by name, rows without error only: numbers (n,) or (n, C), labels as codes.
Columns = Mapping[str, npt.NDArray[Any]]
#: What the steps of second stages have found of the whole corpus, by the steps' names.
Found = Mapping[str, npt.NDArray[Any]]
#: Which rows have the content of one with a smaller identity (n,); see `space.later_copies`.
Copies = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Extent:
    """Sizes that columns alone do not tell: model outputs, classes and clusters."""

    outputs: int = 1
    classes: int = 0
    clusters: int = 0


@dataclass(frozen=True)
class Step:
    """One reduction over the whole corpus, equal for any order and any cut of the rows.

    Attributes:
        name: of what it finds; steps of one name are one step.
        kernel: columns of some rows, also of none, what earlier steps found, and the sizes, to a
            partial result.
        merge: two partial results to one, exactly: integers, maxima, `ExactSum`. It may change the
            first.
        value: the last partial result to float64 or int64 of any shape.
    """

    name: str
    kernel: Callable[[Columns, Found, Extent], Any]
    merge: Callable[[Any, Any], Any]
    value: Callable[[Any], npt.NDArray[Any]] = np.asarray


@dataclass(frozen=True)
class CorpusFit:
    """Second stage of a metric that needs the whole corpus, over columns of the score files.

    Attributes:
        columns: what it reads: ``label``, metrics that are scored too, or temporary columns
            (`schema.TEMPORARY`), which scoring stores and this stage removes.
        values: pure function of columns, findings and options to float64 (n,).
        steps: reductions, each over all rows, that ``values`` needs; in order.
    """

    columns: tuple[str, ...]
    values: Callable[[Columns, Found, MetricOptions], npt.NDArray[np.float64]]
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True)
class ClusterFit:
    """Second stage of a metric that compares rows of all files, within clusters of directions.

    The rows of a cluster are brought together for it, once for all such metrics.

    Attributes:
        values: pure function of the rows of one cluster and options to float32 (m,); see
            `space.within_clusters` for the order of the rows.
        most: rows of a cluster above which it is split.
        copies: value of exact copies of earlier rows, which no cluster holds then; None: they are
            rows like the others.
    """

    values: Callable[[Members, MetricOptions], npt.NDArray[np.float32]]
    most: int
    copies: float | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """What it reads (`schema.PLACED`)."""
        digest = () if self.copies is None else (schema.DIGEST,)
        place = (schema.VECTOR, schema.SPHERE, schema.SPHERE_SIMILARITY)
        return (schema.ROW_HASH, *digest, *place)

    def over(self, columns: Columns, copies: Copies, options: MetricOptions) -> ClusterValues:
        """Values of all rows of some clusters, by their columns (n, …) and which are copies."""
        found = within_clusters(
            lambda members: self.values(members, options),
            Members(
                columns[schema.VECTOR], columns[schema.SPHERE_SIMILARITY], columns[schema.ROW_HASH]
            ),
            columns[schema.SPHERE],
            np.zeros_like(copies) if self.copies is None else copies,
            self.most,
        )
        if self.copies is None:
            return found
        values = np.where(copies, np.float32(self.copies), found.values)
        return ClusterValues(values, found.split)


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
        score: pure function to float32 (B,), or None where ``track``, ``fit``, a prediction or the
            row hash gives it.
        fit: second stage over the whole corpus, if any.
        learns: whether its values are predicted for most rows.
        combines: metrics that it is a formula of; none where it is one of its own.
        joined: whether its values are those of another run's score table, named ``TABLE.METRIC``.
        track: makes the tracker of one batch, where it looks at a run's checkpoints in turn.
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
    fit: CorpusFit | ClusterFit | None = None
    track: Callable[[MetricOptions], Tracker] | None = None
    learns: bool = False
    combines: tuple[str, ...] = ()
    joined: bool = False

    @property
    def averaged(self) -> bool:
        """Whether it is the mean over models; one run, or one model's features, serve others."""
        return self.track is None and bool(self.needs - {"labels", "space"})
