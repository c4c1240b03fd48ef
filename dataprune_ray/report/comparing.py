"""What the page says of a comparison: the verdict in words, tables, and the drawings to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from dataprune_ray.inference import class_means
from dataprune_ray.report import arms, formats, spending
from dataprune_ray.verdict import FULL, PRUNED, ArmSummary, Comparison, Interval, TrialRun

MAX_CLASS_BARS = 20
MAX_CLASS_CHARTS = 3
_CLASS_COLUMNS = 8
_BUDGETS = {"reasons": 40_000, "notes": 40_000, "arms": 60_000, "runs": 160_000, "classes": 160_000}


@dataclass(frozen=True)
class ArmLine:
    """One line of the table of arms, in words."""

    name: str
    style: str
    rows: int
    keep: str
    score: str
    runs: int
    to_full: tuple[str, str]  # mean, interval
    to_random: tuple[str, str]
    worst_class: str
    updates: str
    seconds: str
    gpu_seconds: str


@dataclass(frozen=True)
class Budgeted:
    """What one budget showed: the arms as a table and as drawings."""

    name: str
    heading: str
    lines: tuple[ArmLine, ...]
    left_out: int
    with_gpu: bool
    scores: Markup
    differences: Markup | None
    by_keep: Markup | None
    curves: Markup | None
    curves_from: str | None  # below this score they are cut off
    drawn: tuple[tuple[str, str], ...]  # style, name: the legend of the arms
    kinds: tuple[tuple[str, str], ...]  # the legend of the drawing by keep
    runs_said: str
    single: bool  # no arm was run twice
    undrawn: int


@dataclass(frozen=True)
class ClassChanges:
    """Change of each class against full: a drawing per pruned arm, and a table of all arms."""

    charts: tuple[tuple[str, str, Markup], ...]  # arm, sentence, drawing
    arms: tuple[str, ...]
    table: tuple[tuple[str, tuple[str, ...]], ...]
    left_out: int
    arms_left_out: int


@dataclass(frozen=True)
class Compared:
    """The section on a comparison."""

    passed: bool
    headline: str
    rule: str
    reasons: tuple[tuple[str, ...], int]
    notes: tuple[tuple[str, ...], int]
    test: str
    measure: str
    confidence: str
    budgets: tuple[Budgeted, ...]
    changes: ClassChanges | None
    spent: spending.Spent | None
    runs: tuple[tuple[TrialRun, ...], int]
    folds: bool


def compared(comparison: Comparison | None) -> Compared | None:
    """The comparison in words and pictures; None where there is none."""
    if comparison is None:
        return None
    names = tuple(dict.fromkeys(arm.budget for arm in comparison.arms))
    clipped = [_clipped_run(run) for run in comparison.runs]
    return Compared(
        passed=comparison.passed,
        headline=_headline(comparison),
        rule=_rule(comparison),
        reasons=_texts(comparison.reasons, "reasons"),
        notes=_texts(comparison.notes, "notes"),
        test=formats.clip(comparison.test, 1_000),
        measure=formats.clip(comparison.measure, 60),
        confidence=_confidence(comparison),
        budgets=tuple(_budgeted(comparison, name) for name in names[:2]),
        changes=_class_changes(comparison, names[0]) if names else None,
        spent=spending.spent(comparison.costs),
        runs=formats.fit(
            clipped, _BUDGETS["runs"], lambda run: formats.weight(run.arm, run.budget), 240
        ),
        folds=any(run.fold is not None for run in comparison.runs),
    )


def _texts(texts: Sequence[str], budget: str) -> tuple[tuple[str, ...], int]:
    return formats.fit([formats.clip(t, 2_000) for t in texts], _BUDGETS[budget], formats.weight)


def _clipped_run(run: TrialRun) -> TrialRun:
    return TrialRun(
        arm=formats.clip(run.arm, 120),
        seed=run.seed,
        fold=run.fold,
        budget=formats.clip(run.budget, 40),
        rows=run.rows,
        updates=run.updates,
        epochs=run.epochs,
        seconds=run.seconds,
        gpu_seconds=run.gpu_seconds,
        score=run.score,
        loss=run.loss,
        test_rows=run.test_rows,
    )


def _headline(comparison: Comparison) -> str:
    cost = f"pruning costs at most {_limit(comparison)} of {comparison.measure}"
    better = " and beats a random cut of the same size" if comparison.beat_random else ""
    if comparison.passed:
        return formats.clip(f"Passed: {cost}{better}.", 300)
    return formats.clip(f"Failed: it is not shown that {cost}{better}.", 300)


def _limit(comparison: Comparison) -> str:
    return f"{comparison.max_drop:g} {'point' if comparison.max_drop == 1 else 'points'}"


def _rule(comparison: Comparison) -> str:
    level = f"{100 * comparison.confidence:g}%"
    text = (
        f"The gate asks that, with {level} confidence, the loss against training on all rows is "
        f"smaller than {_limit(comparison)}."
    )
    if comparison.beat_random:
        text += " It also asks for more than a random cut of the same size reaches."
    return text


def _confidence(comparison: Comparison) -> str:
    return f"{100 * comparison.confidence:g}%"


def _budgeted(comparison: Comparison, budget: str) -> Budgeted:
    mine = [arm for arm in comparison.arms if arm.budget == budget]
    styles = arms.styles(comparison.arms)
    lines, left_out = formats.fit(
        [_line(arm, styles[arm.arm]) for arm in mine],
        _BUDGETS["arms"] // 2,
        lambda line: formats.weight(line.name, line.worst_class),
        500,
    )
    drawn = mine[: arms.MAX_ARMS]
    curves, curves_from = arms.learning_curves(comparison, drawn, styles) or (None, None)
    return Budgeted(
        name=formats.clip(budget, 40),
        heading={"updates": "Equal updates", "epochs": "Equal epochs"}.get(
            budget, f"Budget: {formats.clip(budget, 40)}"
        ),
        lines=lines,
        left_out=left_out,
        with_gpu=any(arm.gpu_seconds > 0 for arm in mine),
        scores=arms.scores(comparison, drawn, styles),
        differences=arms.differences_to_full(comparison, drawn, styles),
        by_keep=arms.by_keep(comparison, drawn),
        curves=curves,
        curves_from=curves_from,
        drawn=tuple((styles[arm.arm], formats.clip(arm.arm, 120)) for arm in drawn),
        kinds=arms.kinds(drawn),
        runs_said=_runs_said(mine),
        single=all(arm.runs == 1 for arm in mine),
        undrawn=len(mine) - len(drawn),
    )


def _runs_said(summaries: Sequence[ArmSummary]) -> str:
    least, most = min(arm.runs for arm in summaries), max(arm.runs for arm in summaries)
    return formats.plural(most, "run") if least == most else f"{least:,} to {most:,} runs"


def _line(arm: ArmSummary, style: str) -> ArmLine:
    worst = "" if arm.worst_class is None else arm.worst_class[0]
    return ArmLine(
        name=formats.clip(arm.arm, 120),
        style=style,
        rows=arm.rows,
        keep=formats.percent(arm.keep),
        score=formats.spread(arm.mean, arm.std, arm.runs),
        runs=arm.runs,
        to_full=difference(arm.to_full),
        to_random=difference(arm.to_random),
        worst_class=formats.NONE
        if arm.worst_class is None
        else f"{formats.signed(arm.worst_class[1])} in {formats.shorten(worst, 24)}",
        updates=f"{arm.updates:,.0f}",
        seconds=formats.duration(arm.seconds),
        gpu_seconds=formats.duration(arm.gpu_seconds),
    )


def difference(interval: Interval | None) -> tuple[str, str]:
    """A mean difference and its interval: ``-0.12`` and ``-0.40 to +0.16``."""
    if interval is None:
        return formats.NONE, ""
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return formats.signed(interval.mean), "one pair"
    low, high = formats.signed(interval.low), formats.signed(interval.high)
    return formats.signed(interval.mean), f"{low} to {high}"


def _class_changes(comparison: Comparison, budget: str) -> ClassChanges | None:
    """Against full, under one budget; None where accuracy by class is not known."""
    classes, runs = comparison.classes, comparison.runs
    present = [arm.arm for arm in comparison.arms if arm.budget == budget]
    means = {name: class_means(runs, name, budget, classes) for name in present}
    known = [name for name in present if any(value is not None for value in means[name])]
    if FULL not in known or len(known) == 1:
        return None
    judged = [name for name in known if arms.family(name) == PRUNED]
    charts = []
    for index, name in enumerate(judged[:MAX_CLASS_CHARTS]):
        before_after = [
            (mine - whole, whole, mine, label)
            for mine, whole, label in zip(means[name], means[FULL], classes, strict=True)
            if mine is not None and whole is not None
        ]
        before_after.sort(key=lambda change: (change[0], change[3]))
        shown = before_after[:MAX_CLASS_BARS]
        drawing = arms.class_bars(shown, formats.clip(name, 120), f"class-change-{index}")
        charts.append((formats.clip(name, 120), _class_sentence(before_after), drawing))
    columns = known[:_CLASS_COLUMNS]
    table, left_out = formats.fit(
        [
            (formats.clip(label, 200), tuple(_points(means[name][i]) for name in columns))
            for i, label in enumerate(classes)
        ],
        _BUDGETS["classes"],
        lambda line: formats.weight(line[0]) + 40 * len(line[1]),
    )
    return ClassChanges(
        charts=tuple(charts),
        arms=tuple(formats.clip(name, 120) for name in columns),
        table=table,
        left_out=left_out,
        arms_left_out=max(0, len(judged) - MAX_CLASS_CHARTS),
    )


def _points(value: float | None) -> str:
    return formats.NONE if value is None else f"{value:.2f}"


def _class_sentence(changes: Sequence[tuple[float, float, float, str]]) -> str:
    lost = sum(change[0] < 0 for change in changes)
    gained = sum(change[0] > 0 for change in changes)
    text = (
        f"Of {formats.plural(len(changes), 'class', 'classes')}, {formats.count(lost)} lost and "
        f"{formats.count(gained)} gained against the full data."
    )
    rest = changes[MAX_CLASS_BARS:]
    if rest:
        verb = "is" if len(rest) == 1 else "are"
        text += (
            f" Drawn are the {MAX_CLASS_BARS} that lost most; "
            f"{formats.plural(len(rest), 'other')} {verb} in the table, from "
            f"{formats.signed(rest[0][0])} to {formats.signed(rest[-1][0])} points."
        )
    return text
