"""Drawings of a comparison's arms: each run as a dot, accuracy by keep, curves, classes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from dataprune_ray.inference import differences, interval, overlap_of
from dataprune_ray.report import formats, svg
from dataprune_ray.report.curves import Line, lines, thinned
from dataprune_ray.report.plots import Change, Dots, Guide, diverging, dots
from dataprune_ray.verdict import (
    FULL,
    PRUNED,
    RANDOM,
    RANDOM_BALANCED,
    ArmSummary,
    Comparison,
    TrialRun,
)

MAX_ARMS = 10
MAX_DOTS = 40  # runs drawn per arm
MAX_POINTS = 60  # of a learning curve
_START = 0.2  # share of the updates that counts as the start of a training
_FAR = 3.0  # times the later range from which a start is cut off
_LEAST = 3  # points that every curve still has after that
_FAMILIES = {FULL: "s0", PRUNED: "s1", RANDOM: "s2", RANDOM_BALANCED: "s3"}
_FURTHER = ("s4", "s5", "s6", "s7")
_SAME_KEEP = 0.005  # keep fractions closer than this count as one

Styles = Mapping[str, str]


def family(arm: str) -> str:
    """``full``, ``random``, ``random_balanced``, or ``pruned`` for every other arm."""
    if arm == FULL:
        return FULL
    for name in (RANDOM_BALANCED, RANDOM):  # the longer name first
        if arm == name or arm.startswith((f"{name}:", f"{name} ")):
            return name
    return PRUNED


def styles(summaries: Sequence[ArmSummary]) -> dict[str, str]:
    """A style class by arm: fixed for the four usual arms, in turns for further ones."""
    names = dict.fromkeys(arm.arm for arm in summaries)
    further = [name for name in names if name not in _FAMILIES]
    turns = {name: _FURTHER[i % len(_FURTHER)] for i, name in enumerate(further)}
    return {name: _FAMILIES.get(name) or turns[name] for name in names}


def _runs(comparison: Comparison, arm: ArmSummary) -> list[TrialRun]:
    return [run for run in comparison.runs if (run.arm, run.budget) == (arm.arm, arm.budget)]


def _place(run: TrialRun) -> str:
    return f"seed {run.seed}" if run.fold is None else f"fold {run.fold}, seed {run.seed}"


def _by_pair(runs: Sequence[TrialRun]) -> list[float]:
    """One score per independent run: by seed, or by fold, where seeds are averaged."""
    folds: dict[int | None, list[float]] = {}
    for run in runs:
        folds.setdefault(run.fold, []).append(run.score)
    if len(folds) > 1:
        return [float(np.mean(scores)) for scores in folds.values()]
    return [run.score for run in runs]


def scores(comparison: Comparison, drawn: Sequence[ArmSummary], by_arm: Styles) -> Markup:
    """Every run of every arm as a dot; below, the mean and its interval."""
    overlap = overlap_of(comparison.runs)
    rows = []
    for arm in drawn:
        runs = _runs(comparison, arm)
        spread = interval(_by_pair(runs), comparison.confidence, overlap) if runs else None
        rows.append(
            Dots(
                name=arm.arm,
                style=by_arm[arm.arm],
                values=tuple((r.score, f"{_place(r)}: {r.score:.2f}") for r in runs[:MAX_DOTS]),
                mean=arm.mean,
                low=spread.low if spread else -math.inf,
                high=spread.high if spread else math.inf,
                note=formats.spread(arm.mean, arm.std, arm.runs),
            )
        )
    measure = formats.clip(comparison.measure, 60)
    title = f"{measure.capitalize()} of every run by arm, with mean and interval"
    described = "; ".join(f"{formats.shorten(row.name, 40)}: {row.note}" for row in rows)
    ceiling = 100.0 if all(run.score <= 100 for run in comparison.runs) else math.inf  # noqa: PLR2004 - percent
    return svg.both(
        lambda width: dots(
            rows,
            name=f"scores-{_slug(comparison, drawn)}",
            title=title,
            description=described,
            axis=_axis(comparison),
            width=width,
            ceiling=ceiling,
        )
    )


def _axis(comparison: Comparison) -> str:
    measure = formats.clip(comparison.measure, 60)
    return "accuracy, %" if measure == "accuracy" else f"{measure}, points"


def _slug(comparison: Comparison, drawn: Sequence[ArmSummary]) -> str:
    """Part of the ids of one budget's drawings: its number."""
    budgets = list(dict.fromkeys(arm.budget for arm in comparison.arms))
    return str(budgets.index(drawn[0].budget) + 1)


def differences_to_full(
    comparison: Comparison, drawn: Sequence[ArmSummary], by_arm: Styles
) -> Markup | None:
    """Paired differences to full with their mean and interval, and the limit of the gate."""
    rows = []
    for arm in drawn:
        if arm.arm == FULL or arm.to_full is None:
            continue
        pairs = differences(comparison.runs, arm.arm, FULL, arm.budget)
        rows.append(
            Dots(
                name=arm.arm,
                style=by_arm[arm.arm],
                values=tuple((value, formats.signed(value)) for value in pairs[:MAX_DOTS]),
                mean=arm.to_full.mean,
                low=arm.to_full.low,
                high=arm.to_full.high,
                note=formats.signed(arm.to_full.mean),
            )
        )
    if not rows:
        return None
    guides = (
        Guide(0.0, "as good as full"),
        Guide(-comparison.max_drop, f"gate {formats.signed(-comparison.max_drop)}", "cutoff"),
    )
    described = "; ".join(f"{formats.shorten(row.name, 40)}: {row.note}" for row in rows)
    return svg.both(
        lambda width: dots(
            rows,
            name=f"differences-{_slug(comparison, drawn)}",
            title="Difference to full by arm, with interval and gate",
            description=described,
            axis="difference to full, points",
            width=width,
            guides=guides,
        )
    )


def by_keep(comparison: Comparison, drawn: Sequence[ArmSummary]) -> Markup | None:
    """Means against the keep fraction, one series per kind of arm, each up to the full data."""
    cut = [arm for arm in drawn if arm.arm != FULL]
    keeps = sorted(arm.keep for arm in cut)
    if not keeps or keeps[-1] - keeps[0] <= _SAME_KEEP:
        return None
    full = next((arm for arm in drawn if arm.arm == FULL), None)
    series = []
    for kind in (PRUNED, RANDOM, RANDOM_BALANCED):
        members = sorted((a for a in cut if family(a.arm) == kind), key=lambda a: (a.keep, a.arm))
        if not members:
            continue
        gaps = [b.keep - a.keep for a, b in itertools.pairwise(members)]
        ends = [full] if full is not None else []
        series.append(
            Line(
                name=kind,
                style=_FAMILIES[kind],
                points=tuple((100 * a.keep, a.mean) for a in [*members, *ends]),
                spread=tuple((a.mean - a.std, a.mean + a.std) for a in [*members, *ends]),
                joined=min(gaps, default=1.0) > _SAME_KEEP,
            )
        )
    if full is not None:
        series.append(Line(FULL, _FAMILIES[FULL], ((100 * full.keep, full.mean),)))
    described = "; ".join(
        f"{formats.shorten(a.arm, 40)}: {formats.percent(a.keep)} kept, {a.mean:.2f}" for a in drawn
    )
    return svg.both(
        lambda width: lines(
            series,
            name=f"keep-{_slug(comparison, drawn)}",
            title=f"{formats.clip(comparison.measure, 60).capitalize()} by share of rows kept",
            description=described,
            axis="share of rows kept",
            width=width,
            unit="%",
        )
    )


def kinds(drawn: Sequence[ArmSummary]) -> tuple[tuple[str, str], ...]:
    """Style and name of every kind of arm among ``drawn``."""
    found = {family(arm.arm) for arm in drawn}
    return tuple((style, name) for name, style in _FAMILIES.items() if name in found)


def learning_curves(
    comparison: Comparison, drawn: Sequence[ArmSummary], by_arm: Styles
) -> tuple[Markup, str | None] | None:
    """Mean score by updates, one series per arm; None where no run has a curve.

    Where the first updates would press what follows into a thin band, they are cut off; the second
    value then says below which score.
    """
    means = {arm.arm: mean_curve(_runs(comparison, arm)) for arm in drawn}
    floor = _floor([curve for curve in means.values() if curve])
    series = [
        Line(name, by_arm[name], thinned(_above(curve, floor), MAX_POINTS))
        for name, curve in means.items()
        if curve
    ]
    if not series:
        return None
    described = "; ".join(
        f"{formats.shorten(line.name, 40)}: {line.points[-1][1]:.2f} after "
        f"{formats.plural(round(line.points[-1][0]), 'update')}"
        for line in series
    )
    chart = svg.both(
        lambda width: lines(
            series,
            name=f"curves-{_slug(comparison, drawn)}",
            title=f"{formats.clip(comparison.measure, 60).capitalize()} while training",
            description=described,
            axis="updates",
            width=width,
        )
    )
    return chart, f"{floor:.2f}" if math.isfinite(floor) else None


def mean_curve(runs: Sequence[TrialRun]) -> tuple[tuple[float, float], ...]:
    """Mean of the runs' curves at every number of updates that all of them span.

    Where a run has no point of its own, its curve is read off the straight line between two.
    """
    curves = [np.array(sorted(run.curve), float) for run in runs if run.curve]  # (points, 2) each
    if not curves:
        return ()
    low, high = max(c[0, 0] for c in curves), min(c[-1, 0] for c in curves)
    steps = np.unique(np.concatenate([c[:, 0] for c in curves]))
    steps = steps[(steps >= low) & (steps <= high)]
    if not len(steps):
        return ()
    mean = np.mean([np.interp(steps, c[:, 0], c[:, 1]) for c in curves], axis=0)
    return tuple(zip(steps.tolist(), mean.tolist(), strict=True))


def _floor(curves: Sequence[Sequence[tuple[float, float]]]) -> float:
    """From where curves are drawn: the least score in the later updates, if the start is far."""
    values = [value for curve in curves for _, value in curve]
    last = max((curve[-1][0] for curve in curves), default=0.0)
    late = [v for curve in curves for at, v in curve if at >= _START * last or at == curve[-1][0]]
    if not late or max(values) - min(values) <= _FAR * (max(late) - min(late)):
        return -math.inf
    floor = min(late)
    enough = all(len(_above(curve, floor)) >= _LEAST for curve in curves)
    return floor if enough else -math.inf


def _above(curve: Sequence[tuple[float, float]], floor: float) -> list[tuple[float, float]]:
    """``curve`` from its first point that reaches ``floor``; the last point at least."""
    start = next((i for i, (_, value) in enumerate(curve) if value >= floor), len(curve) - 1)
    return list(curve[start:])


def class_bars(
    changes: Sequence[tuple[float, float, float, str]], arm: str, identifier: str
) -> Markup:
    """Change, accuracy with full and with the arm, and name of each class as a bar."""
    rows = [
        Change(label or "(empty)", change, f"{formats.signed(change)} ({before:.1f} → {after:.1f})")
        for change, before, after, label in changes
    ]
    described = "; ".join(f"{formats.shorten(row.name, 40)}: {row.note}" for row in rows)
    return svg.both(
        lambda width: diverging(
            rows,
            name=identifier,
            title=f"Change of accuracy by class, {arm} against full",
            description=described,
            width=width,
        )
    )
