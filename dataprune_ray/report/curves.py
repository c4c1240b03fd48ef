"""Series over a number axis as inline SVG, named where they end."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from dataprune_ray.report import formats, svg

_BOLD = 9.2  # pixels that one character of a series' name takes, at most, on average
_LABEL = 16.0  # pixels from one line of text to the next
_MOST_MARKS = 40  # points of a series that are marked


@dataclass(frozen=True)
class Line:
    """A series over a number axis; ``spread`` has a (low, high) per point, or is empty."""

    name: str
    style: str
    points: tuple[tuple[float, float], ...]
    spread: tuple[tuple[float, float], ...] = ()
    joined: bool = True


def lines(
    series: Sequence[Line],
    *,
    name: str,
    title: str,
    description: str,
    axis: str,
    width: int = svg.WIDE,
    unit: str = "",
    ticks: Sequence[tuple[float, str]] = (),
) -> Markup:
    """Series over a number axis, each named at its last point where the page is wide.

    ``unit`` follows the numbers of the x axis; ``ticks`` replace them. Points that are not finite
    are left out. Empty ``series`` give an empty picture.
    """
    points = [p for line in series for p in line.points] or [(0.0, 0.0)]
    ends = [end for line in series for pair in line.spread for end in pair]
    x_low, x_high = svg.widened(min(p[0] for p in points), max(p[0] for p in points))
    heights = [value for value in [*(p[1] for p in points), *ends] if math.isfinite(value)] or [0.0]
    y_ticks = svg.nice_ticks(min(heights), max(heights), 5)
    y_labels = svg.tick_labels(y_ticks)
    wide = width > svg.NARROW
    cells = min(max((formats.columns(line.name) for line in series), default=0), 24)
    left, top = 14 + svg.CELL * max(map(len, y_labels)), 12.0
    right = width - (_BOLD * cells + 20 if wide else 22.0)
    height = 340 if wide else 270
    bottom = height - 46.0

    def x(value: float) -> float:
        return left + (right - left) * (value - x_low) / (x_high - x_low)

    def y(value: float) -> float:
        return bottom - (bottom - top) * (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])

    body = [
        svg.gridline(left, right, y(tick), label)
        for tick, label in zip(y_ticks, y_labels, strict=True)
    ]
    shown = ticks or svg.fitting_ticks(x_low, x_high, right - left, unit)
    body += [svg.x_tick(x(tick), bottom, label, width) for tick, label in shown]
    body += [_series(line, x, y) for line in series]
    if wide:
        body += _labels(series, x, y, (top, bottom), cells)
    body.append(svg.axis_title(axis, left, right, bottom, width))
    return svg.picture(
        body, name=name, title=title, description=description, width=width, height=height
    )


def _series(line: Line, x: Callable[[float], float], y: Callable[[float], float]) -> Markup:
    """One series: its line, its whiskers and its marks."""
    spreads: Sequence[tuple[float, float]] = line.spread or ((math.nan, math.nan),) * len(
        line.points
    )
    known = [
        (x(at), y(value), spread)
        for (at, value), spread in zip(line.points, spreads, strict=True)
        if math.isfinite(value)
    ]
    parts = [Markup("<title>{}</title>").format(formats.clip(line.name, 200))]
    if line.joined and len(known) > 1:
        path = " ".join(f"{svg.px(a)},{svg.px(b)}" for a, b, _ in known)
        parts.append(Markup('<polyline class="line" points="{}"/>').format(path))
    parts += [
        svg.vertical("whisker", a, y(low), y(high))
        for a, _, (low, high) in known
        if math.isfinite(low) and math.isfinite(high)
    ]
    if len(known) <= _MOST_MARKS:
        parts += [_mark(line.style, a, b) for a, b, _ in known]
    return Markup('<g class="{}">{}</g>').format(line.style, Markup("").join(parts))


def _mark(style: str, x: float, y: float) -> Markup:
    """A mark whose shape tells series apart without their colour."""
    r = 4.0
    shapes: dict[str, list[tuple[float, float]]] = {
        "s1": [(0, -r - 1), (r + 1, 0), (0, r + 1), (-r - 1, 0)],
        "s2": [(-r, -r), (r, -r), (r, r), (-r, r)],
        "s3": [(0, -r - 1), (r + 1, r), (-r - 1, r)],
        "s4": [(0, r + 1), (r + 1, -r), (-r - 1, -r)],
        "s5": [(-r, -r), (r, r), (r, -r), (-r, r)],
        "s6": [(-2, -r), (2, -r), (2, r), (-2, r)],
        "s7": [(-r, -2), (r, -2), (r, 2), (-r, 2)],
    }
    if style not in shapes:
        return Markup('<circle class="mark" cx="{}" cy="{}" r="{}"/>').format(
            svg.px(x), svg.px(y), svg.px(r)
        )
    corners = " ".join(f"{svg.px(x + a)},{svg.px(y + b)}" for a, b in shapes[style])
    return Markup('<polygon class="mark" points="{}"/>').format(corners)


def _labels(
    series: Sequence[Line],
    x: Callable[[float], float],
    y: Callable[[float], float],
    within: tuple[float, float],
    cells: int,
) -> list[Markup]:
    """The names beside the last points; names that end at one place are moved apart."""
    ends: dict[float, list[tuple[float, Line]]] = {}
    for line in series:
        known = [point for point in line.points if math.isfinite(point[1])]
        if known:
            ends.setdefault(x(known[-1][0]), []).append((y(known[-1][1]), line))
    drawn = []
    for at, group in ends.items():
        group.sort(key=lambda end: end[0])
        places = apart([place for place, _ in group], _LABEL, *within)
        for (true, line), place in zip(group, places, strict=True):
            if abs(true - place) > 1:
                drawn.append(
                    Markup('<line class="leader" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(
                        svg.px(at + 5), svg.px(true), svg.px(at + 13), svg.px(place)
                    )
                )
            drawn.append(
                Markup('<text class="label {}" x="{}" y="{}">{}</text>').format(
                    line.style,
                    svg.px(at + 15),
                    svg.px(place + 4),
                    formats.shorten(line.name, cells),
                )
            )
    return drawn


def apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Ascending ``places`` moved as little as a simple sweep needs so that they are ``gap`` apart.

    They stay between ``low`` and ``high`` where there is room for all of them.
    """
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else max(place, low))
    limit = high
    for index in range(len(moved) - 1, -1, -1):
        moved[index] = min(moved[index], limit)
        limit = moved[index] - gap
    return moved


def thinned(points: Sequence[tuple[float, float]], limit: int) -> tuple[tuple[float, float], ...]:
    """At most ``limit`` of the points, evenly spread, with the first and the last."""
    if len(points) <= limit:
        return tuple(points)
    steps = [round(i * (len(points) - 1) / (limit - 1)) for i in range(limit)]
    return tuple(points[step] for step, _ in itertools.groupby(steps))
