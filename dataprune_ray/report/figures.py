"""What each chart of the page shows and says: the report's numbers to captioned drawings."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from dataprune_ray.report import charts, formats, svg
from dataprune_ray.report.charts import Bar, Bins, Marker
from dataprune_ray.report.data import ClassCount, ReportData, ScoreHistogram

MAX_CLASS_BARS = 40
EXTREMES = 12
MAX_STAGES = 40
_CLASS_TABLE_BUDGET = 150_000


@dataclass(frozen=True)
class Scores:
    """The score histogram and the sentences around it."""

    metric: str
    decides: bool
    direction: str
    overridden: str | None
    cutoff: str
    chart: Markup | None
    kept: int
    dropped: int
    table: tuple[tuple[str, str, int, int], ...]
    merged: str | None  # said where neighbouring bins were added up


@dataclass(frozen=True)
class Classes:
    """Kept rows per class: every class as a bar, or the extremes and a summary."""

    summary: str
    parts: tuple[tuple[str, Markup], ...]  # heading, chart
    table: tuple[tuple[ClassCount, str], ...]
    left_out: int


@dataclass(frozen=True)
class Stages:
    """Seconds per stage."""

    total: str
    chart: Markup
    left_out: int


def rows(data: ReportData) -> Markup:
    """The corpus as one strip: kept, dropped, quarantined."""
    parts = (
        ("kept", data.rows_kept),
        ("dropped", data.rows_dropped),
        ("quarantined", data.rows_quarantined),
    )
    said = ", ".join(f"{formats.count(number)} {name}" for name, number in parts)
    return charts.strip(
        parts, name="rows", title="Rows kept, dropped and quarantined", description=said
    )


def scores(histogram: ScoreHistogram) -> Scores:
    """The distribution of the deciding metric with its direction and cutoff in words."""
    kept, dropped = sum(histogram.kept), sum(histogram.dropped)
    metric = formats.clip(histogram.metric, 120)
    bins = Bins(histogram.edges, (("kept", histogram.kept), ("dropped", histogram.dropped)))
    drawn = charts.merged(bins)
    before, after = len(bins.edges) - 1, len(drawn.edges) - 1
    chart = None
    if kept + dropped:
        title = f"Distribution of {metric}, kept and dropped rows stacked"
        described = (
            f"{formats.plural(after, 'bin')} from {formats.score(drawn.edges[0])} to "
            f"{formats.score(drawn.edges[-1])}. {formats.count(kept)} kept, "
            f"{formats.count(dropped)} dropped. {_cutoff(histogram)}"
        )
        chart = svg.both(
            lambda width: charts.histogram(
                drawn,
                name="scores",
                title=title,
                description=described,
                axis=metric,
                width=width,
                marker=_marker(histogram),
            )
        )
    return Scores(
        metric=metric,
        decides=histogram.kept_end != "random",
        direction=_direction(histogram),
        overridden=_overridden(histogram),
        cutoff=_cutoff(histogram),
        chart=chart,
        kept=kept,
        dropped=dropped,
        table=tuple(
            (formats.score(low), formats.score(high), k, d)
            for (low, high), k, d in zip(
                itertools.pairwise(drawn.edges), *(c for _, c in drawn.layers), strict=True
            )
        )
        if chart
        else (),
        merged=f"{before:,} bins are drawn as {after}; neighbours are added up."
        if chart and before > after
        else None,
    )


def _direction(histogram: ScoreHistogram) -> str:
    if histogram.spread:
        return "Rows are taken from all scores, not from one end first."
    match histogram.kept_end:
        case "high":
            return "Higher is worth keeping: rows with the highest scores are kept first."
        case "low":
            return "Lower is worth keeping: rows with the lowest scores are kept first."
        case "random":
            return "Rows are kept at random, whatever their score."
        case other:
            return f"Rows are kept by this end of the score: {formats.clip(other, 120)}."


def _overridden(histogram: ScoreHistogram) -> str | None:
    if not histogram.overridden:
        return None
    opposite = {"high": "low", "low": "high"}.get(histogram.kept_end, "other")
    return (
        f"The direction was set by the user, against the metric's own: left to itself, "
        f"{formats.clip(histogram.metric, 120)} keeps the {opposite} end."
    )


def _cutoff(histogram: ScoreHistogram) -> str:
    cutoff = histogram.cutoff
    if cutoff is None:
        return "No single cutoff separates kept from dropped rows."
    text = f"The cutoff is {formats.exact(cutoff)}"
    if len(histogram.edges) > 1 and not histogram.edges[0] <= cutoff <= histogram.edges[-1]:
        text += ", outside the range of the scores"
    return text + "."


def _marker(histogram: ScoreHistogram) -> Marker | None:
    if histogram.cutoff is None or not math.isfinite(histogram.cutoff):
        return None
    left, right = {"high": ("← dropped", "kept →"), "low": ("← kept", "dropped →")}.get(
        histogram.kept_end, ("", "")
    )
    return Marker(histogram.cutoff, f"cutoff {formats.score(histogram.cutoff)}", left, right)


def classes(counts: Sequence[ClassCount]) -> Classes | None:
    """Bars for up to ``MAX_CLASS_BARS`` classes; beyond, the extremes and how shares spread."""
    if not counts:
        return None
    shared = [
        (formats.ratio(item.kept, item.kept + item.dropped), index)
        for index, item in enumerate(counts)
    ]
    ranked = [counts[i] for s, i in sorted((s, i) for s, i in shared if s is not None)]
    summary = _class_summary(counts, ranked)
    if len(counts) <= MAX_CLASS_BARS:
        parts = [("", _class_bars(counts, "classes", "Kept and dropped rows of every class"))]
    else:
        summary += (
            f" {formats.count(len(counts))} classes are too many for a bar each: below are the "
            f"spread of the kept share and up to {EXTREMES} classes at either end of it."
        )
        lowest, highest = ranked[:EXTREMES], ranked[EXTREMES:][-EXTREMES:][::-1]
        parts = [("Classes by kept share", _spread(ranked))] if ranked else []
        parts += [
            (heading, _class_bars(few, name, heading))
            for heading, few, name in (
                ("Lowest kept share", lowest, "lowest"),
                ("Highest kept share", highest, "highest"),
            )
            if few
        ]
    table, left_out = formats.fit(
        [(_clipped(item), formats.percent(_share(item))) for item in counts],
        _CLASS_TABLE_BUDGET,
        lambda line: formats.weight(line[0].name),
    )
    return Classes(summary, tuple(parts), table, left_out)


def _clipped(item: ClassCount) -> ClassCount:
    return ClassCount(formats.clip(item.name, 200), item.kept, item.dropped, item.quarantined)


def _share(item: ClassCount) -> float | None:
    return formats.ratio(item.kept, item.kept + item.dropped)


def _class_summary(counts: Sequence[ClassCount], ranked: Sequence[ClassCount]) -> str:
    said = formats.plural(len(counts), "class", "classes")
    if not ranked:
        return f"{said}; none has a row that could be scored."
    if len(counts) == 1:
        return f"{said}, which keeps {formats.percent(_share(ranked[0]))} of its rows."
    middle = statistics.median(_share(item) or 0.0 for item in ranked)
    low, high = ranked[0], ranked[-1]
    text = (
        f"{said}. The kept share runs from {formats.percent(_share(low))} "
        f"({formats.shorten(low.name, 40)}) to {formats.percent(_share(high))} "
        f"({formats.shorten(high.name, 40)}), with a median of {formats.percent(middle)}."
    )
    gone = sum(item.kept == 0 for item in ranked)
    if gone:
        text += f" {formats.plural(gone, 'class keeps', 'classes keep')} no row at all."
    return text


def _class_bars(counts: Sequence[ClassCount], name: str, title: str) -> Markup:
    lines = [
        Bar(
            name=item.name or "(empty)",
            parts=(
                ("kept", item.kept),
                ("dropped", item.dropped),
                ("quarantined", item.quarantined),
            ),
            notes=(
                f"{formats.count(item.kept)} of {formats.count(item.kept + item.dropped)}",
                formats.percent(_share(item)),
            ),
        )
        for item in counts
    ]
    described = "; ".join(
        f"{formats.shorten(bar.name, 40)}: {bar.notes[0]} rows kept" for bar in lines
    )
    return svg.both(
        lambda width: charts.bars(lines, name=name, title=title, description=described, width=width)
    )


def _spread(ranked: Sequence[ClassCount]) -> Markup:
    """How many classes keep which share, in steps of five percent."""
    step, counts = 5, [0] * 20
    for item in ranked:
        counts[min(19, 100 * item.kept // (step * (item.kept + item.dropped)))] += 1
    edges = tuple(float(step * index) for index in range(21))
    described = "; ".join(
        f"{step * i}% to {step * (i + 1)}%: {formats.count(n)}" for i, n in enumerate(counts) if n
    )
    return svg.both(
        lambda width: charts.histogram(
            Bins(edges, (("classes", tuple(counts)),)),
            name="spread",
            title="Classes by the share of their rows that is kept",
            description=described,
            axis="share of rows kept",
            width=width,
            unit="%",
        )
    )


def stages(pairs: Sequence[tuple[str, float]]) -> Stages | None:
    """Seconds per stage, with each stage's share of their sum."""
    if not pairs:
        return None
    total = sum(seconds for _, seconds in pairs)
    lines = [
        Bar(
            name,
            (("time", max(0.0, seconds)),),
            (formats.duration(seconds), formats.percent(formats.ratio(seconds, total))),
        )
        for name, seconds in pairs[:MAX_STAGES]
    ]
    described = "; ".join(f"{formats.shorten(bar.name, 40)}: {bar.notes[0]}" for bar in lines)
    chart = svg.both(
        lambda width: charts.bars(
            lines, name="stages", title="Seconds per stage", description=described, width=width
        )
    )
    return Stages(formats.duration(total), chart, max(0, len(pairs) - MAX_STAGES))
