"""Single runs to means, intervals and a verdict. Pure numbers.

Runs of two arms are compared in pairs of the same seed and fold, so that what seed and fold do to
both cancels. Over folds the variance is corrected for the training rows that folds share (Nadeau
and Bengio 2003, "Inference for the generalization error").
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from dataprune_ray.verdict import (
    FULL,
    PRUNED,
    RANDOM,
    ArmSummary,
    Costs,
    Interval,
    TrialRun,
)


def interval(differences: Sequence[float], confidence: float, overlap: float = 0.0) -> Interval:
    """Mean of paired differences and its two-sided Student interval at ``confidence``.

    Args:
        differences: one per independent pair, in points.
        confidence: such as 0.95.
        overlap: test rows over training rows where pairs are folds of one corpus, else 0; the
            variance of the mean is ``s² (1/n + overlap)``.
    """
    from scipy import stats  # noqa: PLC0415 - a second, for those who fit only

    values = np.asarray(differences, np.float64)
    mean, pairs = float(values.mean()), len(values)
    if pairs == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    error = float(values.std(ddof=1)) * math.sqrt(1 / pairs + overlap)
    reach = float(stats.t.ppf((1 + confidence) / 2, pairs - 1)) * error
    return Interval(mean, mean - reach, mean + reach, pairs)


def lower_bound(differences: Sequence[float], confidence: float, overlap: float = 0.0) -> float:
    """One-sided lower bound of the mean difference: ``-inf`` for a single pair."""
    return interval(differences, 2 * confidence - 1, overlap).low


def differences(runs: Sequence[TrialRun], arm: str, other: str, budget: str) -> list[float]:
    """``arm`` minus ``other`` in points: one per seed, or per fold, where seeds are averaged."""

    def by_pair(name: str) -> dict[tuple[int | None, int], float]:
        chosen = [run for run in runs if run.arm == name and run.budget == budget]
        return {(run.fold, run.seed): run.score for run in chosen}

    ours, theirs = by_pair(arm), by_pair(other)
    pairs = sorted(ours.keys() & theirs.keys(), key=lambda pair: (pair[0] or 0, pair[1]))
    if any(fold is not None for fold, _ in pairs) and len({fold for fold, _ in pairs}) > 1:
        folds: dict[int, list[float]] = {}
        for fold, seed in pairs:
            folds.setdefault(fold or 0, []).append(ours[fold, seed] - theirs[fold, seed])
        return [float(np.mean(values)) for values in folds.values()]
    return [ours[pair] - theirs[pair] for pair in pairs]


def overlap_of(runs: Sequence[TrialRun], arm: str = FULL) -> float:
    """Test rows over training rows where several folds were run; 0 for one test set.

    Without a run of the full arm, a fold's training rows are the test rows of all other folds.
    """
    tested = {run.fold: run.test_rows for run in runs}
    if len(tested) < 2:  # noqa: PLR2004 - one fold is one test set
        return 0.0
    chosen = [run for run in runs if run.arm == arm]
    if not chosen:
        return 1 / (len(tested) - 1)
    return sum(run.test_rows for run in chosen) / max(sum(run.rows for run in chosen), 1)


def summarise(
    runs: Sequence[TrialRun],
    classes: Sequence[str],
    confidence: float,
    full_rows: Mapping[int | None, int] | None = None,
) -> tuple[ArmSummary, ...]:
    """Every arm under every budget, in the order in which they first occur.

    ``full_rows`` are those of the full arm by fold, for where it was not run.
    """
    overlap = overlap_of(runs)
    full_rows = {**(full_rows or {}), **{r.fold: r.rows for r in runs if r.arm == FULL}}
    found = []
    for arm, budget in dict.fromkeys((run.arm, run.budget) for run in runs):
        mine = [run for run in runs if (run.arm, run.budget) == (arm, budget)]
        scores = np.array([run.score for run in mine])
        between = {}
        for field, other in (("to_full", FULL), ("to_random", _random_of(arm, runs))):
            pairs = differences(runs, arm, other, budget) if arm != other else []
            between[field] = interval(pairs, confidence, overlap) if pairs else None
        rows = sum(run.rows for run in mine)
        whole = sum(full_rows.get(run.fold, run.rows) for run in mine)
        found.append(
            ArmSummary(
                arm=arm,
                budget=budget,
                rows=round(rows / len(mine)),
                keep=rows / whole,
                mean=float(scores.mean()),
                std=float(scores.std(ddof=1)) if len(mine) > 1 else 0.0,
                runs=len(mine),
                updates=float(np.mean([run.updates for run in mine])),
                seconds=float(np.mean([run.seconds for run in mine])),
                gpu_seconds=float(np.mean([run.gpu_seconds for run in mine])),
                worst_class=_worst_class(runs, arm, budget, classes),
                **between,
            )
        )
    return tuple(found)


def _random_of(arm: str, runs: Sequence[TrialRun]) -> str:
    """The random arm of an arm's own size: ``random:NAME`` beside ``pruned:NAME``."""
    own = f"{RANDOM}:{arm.partition(':')[2]}"
    return own if any(run.arm == own for run in runs) else RANDOM


def class_means(
    runs: Sequence[TrialRun], arm: str, budget: str, classes: Sequence[str]
) -> list[float | None]:
    """Mean accuracy of an arm by class, None where no test row has the class."""
    mine = [run.class_scores for run in runs if (run.arm, run.budget) == (arm, budget)]
    means: list[float | None] = []
    for position in range(len(classes)):
        known = [s[position] for s in mine if len(s) > position and s[position] is not None]
        means.append(
            float(np.mean([value for value in known if value is not None])) if known else None
        )
    return means


def _worst_class(
    runs: Sequence[TrialRun], arm: str, budget: str, classes: Sequence[str]
) -> tuple[str, float] | None:
    if arm == FULL:
        return None
    ours = class_means(runs, arm, budget, classes)
    theirs = class_means(runs, FULL, budget, classes)
    changes = [
        (mine - other, name)
        for mine, other, name in zip(ours, theirs, classes, strict=True)
        if mine is not None and other is not None
    ]
    if not changes:
        return None
    change, name = min(changes)
    return name, change


def judge(
    runs: Sequence[TrialRun],
    *,
    arm: str = PRUNED,
    budget: str,
    max_drop: float,
    confidence: float,
    beat_random: bool,
    drawn: bool = False,
) -> tuple[bool, tuple[str, ...]]:
    """Whether an arm passes the gate, and why, in sentences.

    Non-inferiority: the one-sided lower bound of (arm - full) must lie above ``-max_drop``. With
    ``beat_random`` that of (arm - random) must lie above 0, too. One pair alone cannot pass, and
    neither can an arm that is ``drawn`` at random itself be better than random: what two draws
    differ by is luck.
    """
    overlap = overlap_of(runs)
    passed, reasons = True, []
    asked = [(FULL, -max_drop)] + ([(RANDOM, 0.0)] if beat_random else [])
    for other, limit in asked:
        if other == RANDOM and (drawn or arm == RANDOM):
            passed = False
            reasons.append(
                f"{arm} is itself drawn at random, so it cannot be better than random; leave "
                "--beat-random out, or prune with another --strategy."
            )
            continue
        pairs = differences(runs, arm, other, budget)
        if not pairs:
            passed = False
            reasons.append(f"There is no run of {other} to hold {arm} against.")
            continue
        bound, mean = lower_bound(pairs, confidence, overlap), float(np.mean(pairs))
        clear = bound > limit
        passed = passed and clear
        if len(pairs) == 1:
            reasons.append(
                f"{arm} minus {other}: {mean:+.2f} points in a single pair, which cannot show "
                "anything; run more --seeds or --folds."
            )
            continue
        where = "above" if clear else "not above"
        reasons.append(
            f"{arm} minus {other}: {mean:+.2f} points over {len(pairs)} pairs; with "
            f"{100 * confidence:g} % confidence at least {bound:+.2f}, {where} the {limit:+.2f} "
            "that the gate asks for."
        )
    return passed, tuple(reasons)


def costs(
    arms: Sequence[ArmSummary],
    prune_seconds: Sequence[tuple[str, float]],
    saved_bytes: int,
    arm: str = PRUNED,
) -> Costs | None:
    """What an arm saves for each training at equal epochs, against what the prune cost once."""
    by_budget = {(a.arm, a.budget): a for a in arms}
    measured = (FULL, "epochs") in by_budget and (arm, "epochs") in by_budget
    budget = "epochs" if measured else "updates"
    full, ours = by_budget.get((FULL, budget)), by_budget.get((arm, budget))
    if full is None or ours is None:
        return None
    if measured:
        seconds, updates = full.seconds - ours.seconds, full.updates - ours.updates
        gpu = full.gpu_seconds - ours.gpu_seconds
    else:
        share = 1 - ours.keep
        seconds, updates, gpu = full.seconds * share, full.updates * share, full.gpu_seconds * share
    spent = sum(value for _, value in prune_seconds)
    return Costs(
        prune_seconds=tuple(prune_seconds),
        saved_seconds=seconds,
        saved_updates=updates,
        saved_gpu_seconds=gpu,
        saved_bytes=saved_bytes,
        measured=measured,
        break_even=spent / seconds if seconds > 0 else None,
    )
