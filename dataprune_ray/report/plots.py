"""Plots of differences as inline SVG: dots with intervals, bars to both sides of zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from dataprune_ray.report import formats, svg

_DOT = 4.0  # radius in pixels
_GUIDE = 16.0  # pixels that the label of a guide takes


@dataclass(frozen=True)
class Guide:
    """A vertical line across dot rows: zero, or the limit that a gate sets."""

    value: float
    label: str
    style: str = "base"  # or "cutoff", drawn dashed


@dataclass(frozen=True)
class Dots:
    """One line of a dot plot: single values with their tooltips, their mean and its interval."""

    name: str
    style: str
    values: tuple[tuple[float, str], ...]
    mean: float
    low: float  # may be infinite: no interval is drawn then
    high: float
    note: str = ""


@dataclass(frozen=True)
class Change:
    """One bar from zero to ``value``, to either side."""

    name: str
    value: float
    note: str = ""


@dataclass(frozen=True)
class _Frame:
    """Where names, drawing and notes stand: beside each other, or stacked on narrow pages."""

    left: float
    right: float
    name_cells: int
    stacked: bool


def _frame(names: Sequence[str], notes: Sequence[str], width: int, pad: float) -> _Frame:
    note_width = svg.CELL * max(map(formats.columns, notes), default=0)
    if width <= svg.NARROW:
        return _Frame(pad, width - pad, int((width - note_width - 16) / svg.CELL), stacked=True)
    longest = svg.CELL * max(map(formats.columns, names), default=0)
    name_width = min(longest + 16, 240.0)
    right = width - note_width - 20
    return _Frame(name_width + pad, right, int((name_width - 12) / svg.CELL), stacked=False)


def _heading(name: str, note: str, frame: _Frame, y: float, width: int) -> Markup:
    """The name at the left and the note at the right of one line."""
    return Markup(
        '<title>{}</title><text class="name" x="0" y="{y}">{}</text>'
        '<text class="note" x="{}" y="{y}" text-anchor="end">{}</text>'
    ).format(
        formats.clip(name, 200),
        formats.shorten(name, frame.name_cells),
        width,
        note,
        y=svg.px(y),
    )


def dots(
    rows: Sequence[Dots],
    *,
    name: str,
    title: str,
    description: str,
    axis: str,
    width: int = svg.WIDE,
    guides: Sequence[Guide] = (),
    ceiling: float = math.inf,
) -> Markup:
    """A line per row: every value as a dot, below it the mean as a tick on its interval.

    The axis covers the dots, means and guides, and intervals up to once that span beyond it; an
    interval that goes on is cut without an end stroke. ``ceiling`` is the largest possible value.
    """
    low, high = _reach(rows, guides, ceiling)
    frame = _frame([row.name for row in rows], [row.note for row in rows], width, 8.0)
    top, line = 10.0 + _GUIDE * len(guides), 54.0 if frame.stacked else 38.0
    bottom = top + line * max(1, len(rows))

    def x(value: float) -> float:
        inside = min(max(value, low), high)
        return frame.left + (frame.right - frame.left) * (inside - low) / (high - low)

    body = []
    for tick, label in svg.fitting_ticks(low, high, frame.right - frame.left, ""):
        body.append(svg.vertical("grid", x(tick), top, bottom))
        body.append(svg.x_tick(x(tick), bottom, label, width))
    for index, guide in enumerate(guides):
        y = 12 + _GUIDE * index
        after = frame.right - x(guide.value) > x(guide.value) - frame.left
        body.append(svg.vertical(guide.style, x(guide.value), y - 9, bottom))
        body.append(
            Markup('<text class="tick" x="{}" y="{}" text-anchor="{}">{}</text>').format(
                svg.px(x(guide.value) + (6 if after else -6)),
                svg.px(y),
                "start" if after else "end",
                guide.label,
            )
        )
    for index, row in enumerate(rows):
        start = top + index * line
        text, middle = (start + 13, start + 26) if frame.stacked else (start + 23, start + 13)
        body.append(Markup('<g class="{}">').format(row.style))
        body.append(_heading(row.name, row.note, frame, text, width))
        body += _interval(row, x, middle + 14, low, high)
        body += _spots(row, x, middle)
        body.append(Markup("</g>"))
    body.append(svg.axis_title(axis, frame.left, frame.right, bottom, width))
    return svg.picture(
        body,
        name=name,
        title=title,
        description=description,
        width=width,
        height=round(bottom + 46),
    )


def _reach(rows: Sequence[Dots], guides: Sequence[Guide], ceiling: float) -> tuple[float, float]:
    """The ends of the axis of a dot plot."""
    inner = [row.mean for row in rows] + [guide.value for guide in guides]
    inner += [value for row in rows for value, _ in row.values]
    inner = [value for value in inner if math.isfinite(value)] or [0.0]
    low, high = min(inner), max(inner)
    span = max(high - low, 0.1)
    whiskers = [e for row in rows for e in (row.low, row.high) if math.isfinite(e)]
    low = max(min([low, *whiskers]), low - span)
    high = min(max([high, *whiskers]), high + span)
    pad = 0.04 * max(high - low, 0.1)
    return low - pad, max(min(high + pad, ceiling), high)


def _interval(
    row: Dots, x: Callable[[float], float], y: float, low: float, high: float
) -> list[Markup]:
    """The mean as a tick; the interval as a line with a stroke at each end that is on the page."""
    drawn = []
    if math.isfinite(row.low) and math.isfinite(row.high):
        drawn.append(
            Markup('<line class="whisker" x1="{}" x2="{}" y1="{y}" y2="{y}"/>').format(
                svg.px(x(row.low)), svg.px(x(row.high)), y=svg.px(y)
            )
        )
        drawn += [
            svg.vertical("whisker", x(end), y - 4, y + 4)
            for end in (row.low, row.high)
            if low <= end <= high
        ]
    if math.isfinite(row.mean):
        drawn.append(svg.vertical("mean", x(row.mean), y - 7, y + 7))
    return drawn


def _spots(row: Dots, x: Callable[[float], float], middle: float) -> list[Markup]:
    """The values as dots; neighbours that would cover each other step aside, up and down."""
    drawn, last, turn = [], -math.inf, 0
    for value, tooltip in sorted(row.values):
        if not math.isfinite(value):
            continue
        at = x(value)
        turn = turn + 1 if at - last < 2 * _DOT else 0
        offset = (0.0, -4.0, 4.0)[turn % 3]
        drawn.append(
            Markup('<circle class="dot" cx="{}" cy="{}" r="{}"><title>{}</title></circle>').format(
                svg.px(at), svg.px(middle + offset), _DOT, tooltip
            )
        )
        last = at
    return drawn


def diverging(
    rows: Sequence[Change], *, name: str, title: str, description: str, width: int = svg.WIDE
) -> Markup:
    """Bars from a common zero: losses to the left, gains to the right, one line each."""
    notes = [row.note for row in rows]
    frame = _frame([row.name for row in rows], notes, width, 4.0)
    line, thick, text_y, bar_y = (40, 10, 14, 21) if frame.stacked else (26, 14, 17, 6)
    values = [row.value for row in rows if math.isfinite(row.value)]
    low, high = svg.widened(min(0.0, *values, 0.0), max(0.0, *values, 0.0))

    def x(value: float) -> float:
        return frame.left + (frame.right - frame.left) * (value - low) / (high - low)

    height = line * max(1, len(rows))
    body = []
    for index, (row, note) in enumerate(zip(rows, notes, strict=True)):
        y = index * line
        value = row.value if math.isfinite(row.value) else 0.0
        start, end = sorted((x(0.0), x(value)))
        body.append(Markup("<g>"))
        body.append(_heading(row.name, note, frame, y + text_y, width))
        if end > start:
            style = "worse" if value < 0 else "better"
            body.append(
                svg.rect(style, start, end - start, top=y + bar_y, bottom=y + bar_y + thick)
            )
        body.append(svg.vertical("base", x(0.0), y + bar_y - 3, y + bar_y + thick + 3))
        body.append(Markup("</g>"))
    return svg.picture(
        body, name=name, title=title, description=description, width=width, height=height
    )
