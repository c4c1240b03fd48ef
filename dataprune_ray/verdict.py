"""What retraining showed, as records: runs, arms, costs, a verdict, a search for a strategy.

How runs become means, intervals and a verdict is in ``inference``.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

FULL = "full"
PRUNED = "pruned"
RANDOM = "random"
RANDOM_BALANCED = "random_balanced"


@dataclass(frozen=True)
class TrialRun:
    """One training of one arm and its test.

    ``score`` is in points: accuracy in percent, or 100 R² for regression. ``class_scores`` are
    accuracies in percent by class, None where no test row has it; ``curve`` pairs (updates,
    score). ``epochs`` is updates over updates per pass. ``fold`` is None with a given test set.
    """

    arm: str
    seed: int
    fold: int | None
    budget: str
    rows: int
    updates: int
    epochs: float
    seconds: float
    gpu_seconds: float
    score: float
    loss: float
    test_rows: int
    class_scores: tuple[float | None, ...] = ()
    curve: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Interval:
    """A mean difference in points with its two-sided interval; ``pairs`` differences went in.

    ``low`` and ``high`` are infinite where one pair alone says nothing about the spread.
    """

    mean: float
    low: float
    high: float
    pairs: int


@dataclass(frozen=True)
class ArmSummary:
    """An arm under one budget: ``std`` is over runs; differences are this arm minus the other."""

    arm: str
    budget: str
    rows: int
    keep: float  # share of the full arm's rows
    mean: float
    std: float
    runs: int
    updates: float
    seconds: float
    gpu_seconds: float
    to_full: Interval | None = None
    to_random: Interval | None = None
    worst_class: tuple[str, float] | None = None  # the class that lost most to full, in points


@dataclass(frozen=True)
class Costs:
    """What pruning cost once and what it saves with each training.

    ``saved_seconds`` is for equal epochs: measured where that budget was run, otherwise the full
    arm's time per update times the updates saved (``measured`` says which). ``break_even`` is the
    number of trainings after which pruning has paid; None where it never does.
    """

    prune_seconds: tuple[tuple[str, float], ...]
    saved_seconds: float
    saved_updates: float
    saved_gpu_seconds: float
    saved_bytes: int
    measured: bool
    break_even: float | None


@dataclass(frozen=True)
class Comparison:
    """A finished comparison. ``passed`` is the gate; ``reasons`` say in sentences why."""

    measure: str  # "accuracy" or "R²"
    classes: tuple[str, ...]
    test: str  # what it was tested on, in words
    runs: tuple[TrialRun, ...]
    arms: tuple[ArmSummary, ...]
    costs: Costs | None
    max_drop: float
    confidence: float
    beat_random: bool
    passed: bool
    reasons: tuple[str, ...]
    notes: tuple[str, ...] = ()
    weighted: tuple[str, ...] = ()  # arms that were trained with the weights of their rows

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, with every single run; infinite bounds become None."""
        content: dict[str, Any] = _finite(asdict(self))
        return content


@dataclass(frozen=True)
class TuneStep:
    """One candidate in one round of the search; ``budget`` in updates per training."""

    round: int
    candidate: str  # NAME or NAME:BETA
    keep: float
    updates: int
    seeds: int
    mean: float
    std: float
    survived: bool


@dataclass(frozen=True)
class Tuned:
    """How a strategy was found: ``chosen`` is the candidate, ``reason`` a sentence on why.

    ``passed`` is the gate against the full data, None where it was not asked.
    """

    chosen: str
    strategy: str
    beta: float
    keep: float
    noise_share: float | None
    reason: str
    steps: tuple[TuneStep, ...]
    validation_rows: int
    confirmed: tuple[tuple[str, Interval], ...] = ()  # candidate, its difference to random
    passed: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; infinite bounds become None."""
        content: dict[str, Any] = _finite(asdict(self))
        return content


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
