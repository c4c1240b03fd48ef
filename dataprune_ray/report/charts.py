"""Bar charts as inline SVG: histograms, lines of bars and the strip, from numbers to markup."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from dataprune_ray.report import formats, svg

MAX_BINS = 100


@dataclass(frozen=True)
class Marker:
    """A vertical line across a histogram, with what lies on either side."""

    value: float
    label: str
    left: str = ""
    right: str = ""


@dataclass(frozen=True)
class Bins:
    """Stacked counts per bin; ``edges`` has one value more than each of the layers."""

    edges: tuple[float, ...]
    layers: tuple[tuple[str, tuple[int, ...]], ...]  # style class, counts; the first at the bottom


@dataclass(frozen=True)
class Bar:
    """One line of a bar chart: a name, stacked parts and the numbers beside them."""

    name: str
    parts: tuple[tuple[str, float], ...]  # style class, value
    notes: tuple[str, ...] = ()


def merged(bins: Bins, limit: int = MAX_BINS) -> Bins:
    """The same counts in at most ``limit`` bins: runs of neighbours are added up."""
    number = len(bins.edges) - 1
    run = -(-number // limit)
    if run <= 1:
        return bins
    edges = (*bins.edges[:-1:run], bins.edges[-1])
    layers = tuple(
        (style, tuple(sum(counts[at : at + run]) for at in range(0, number, run)))
        for style, counts in bins.layers
    )
    return Bins(edges, layers)


def histogram(
    bins: Bins,
    *,
    name: str,
    title: str,
    description: str,
    axis: str,
    width: int = svg.WIDE,
    marker: Marker | None = None,
    unit: str = "",
) -> Markup:
    """Stacked bars over a number axis, heights proportional to counts, with an optional marker.

    ``name`` makes the ids unique in the page. Bins without width (all scores equal) are drawn as
    one bar. An empty ``bins`` gives an empty picture, not an error.
    """
    edges = bins.edges if len(bins.edges) > 1 else (0.0, 1.0)
    low, high = svg.widened(edges[0], edges[-1])
    if (low, high) != (edges[0], edges[-1]):
        edges = tuple(low + (high - low) * i / (len(edges) - 1) for i in range(len(edges)))
    totals = [sum(column) for column in zip(*(c for _, c in bins.layers), strict=True)]
    y_ticks = [
        tick for tick in svg.nice_ticks(0, max(totals, default=0) or 1, 4) if tick == int(tick)
    ]

    height = 340 if width > svg.NARROW else 260
    y_labels = svg.tick_labels(y_ticks)
    left = 12 + svg.CELL * max(map(len, y_labels))
    right, top, bottom = width - 18.0, 48.0 if marker else 14.0, height - 46.0

    def x(value: float) -> float:
        return left + (right - left) * (value - low) / (high - low)

    def y(value: float) -> float:
        return bottom - (bottom - top) * value / y_ticks[-1]

    body = [
        svg.gridline(left, right, y(tick), label)
        for tick, label in zip(y_ticks, y_labels, strict=True)
    ]
    for index in range(len(totals)):
        counts = [(style, c[index]) for style, c in bins.layers]
        body.append(_column(x(edges[index]), x(edges[index + 1]), counts, y, _span(bins, index)))
    for tick, label in svg.fitting_ticks(low, high, right - left, unit):
        body.append(svg.x_tick(x(tick), bottom, label, width))
    body.append(
        Markup('<text class="axis" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            svg.px((left + right) / 2),
            svg.px(height - 6),
            formats.shorten(axis, int(width / svg.CELL) - 8),
        )
    )
    if marker and math.isfinite(marker.value):
        body.append(_marker(marker, x(min(max(marker.value, low), high)), left, right, bottom))
    return svg.picture(
        body, name=name, title=title, description=description, width=width, height=height
    )


def _span(bins: Bins, index: int) -> str:
    """What one bin holds, in words, for the tooltip."""
    between = f"{formats.score(bins.edges[index])} to {formats.score(bins.edges[index + 1])}"
    parts = ", ".join(f"{formats.count(counts[index])} {style}" for style, counts in bins.layers)
    return f"{between}: {parts}"


def _column(
    x0: float,
    x1: float,
    counts: Iterable[tuple[str, int]],
    y: Callable[[float], float],
    tooltip: str,
) -> Markup:
    """One bin: its layers stacked from the axis up."""
    gap = 1.0 if x1 - x0 > 5 else 0.25 if x1 - x0 > 1 else 0.0  # noqa: PLR2004 - pixels
    rects, below = [], 0
    for style, number in counts:
        if number:
            rects.append(
                svg.rect(style, x0 + gap / 2, x1 - x0 - gap, top=y(below + number), bottom=y(below))
            )
        below += number
    if not rects:
        return Markup("")
    return Markup("<g><title>{}</title>{}</g>").format(tooltip, Markup("").join(rects))


def _marker(marker: Marker, x: float, left: float, right: float, bottom: float) -> Markup:
    """The line, its label on the side with more room, and what lies to either side."""
    after = right - x > x - left
    label = Markup('<text class="cutoff" x="{}" y="14" text-anchor="{}">{}</text>').format(
        svg.px(x + 6 if after else x - 6), "start" if after else "end", marker.label
    )
    sides = [
        Markup('<text class="tick" x="{}" y="33" text-anchor="{}">{}</text>').format(
            svg.px(at), anchor, text
        )
        for at, anchor, text, room in (
            (x - 6, "end", marker.left, x - left),
            (x + 6, "start", marker.right, right - x),
        )
        if text and room > svg.CELL * len(text)
    ]
    return Markup('<line class="cutoff" x1="{x}" x2="{x}" y1="3" y2="{}"/>{}{}').format(
        svg.px(bottom), label, Markup("").join(sides), x=svg.px(x)
    )


def bars(
    rows: Sequence[Bar], *, name: str, title: str, description: str, width: int = svg.WIDE
) -> Markup:
    """Horizontal bars, one line each: name, stacked parts (lengths proportional), notes.

    The longest bar fills the room; a narrow drawing puts the name and notes above the bar.
    """
    stacked = width <= svg.NARROW
    note_widths = [
        svg.CELL * max(formats.columns(row.notes[i]) for row in rows) + 16
        for i in range(max((len(row.notes) for row in rows), default=0))
    ]
    longest = max((formats.columns(row.name) for row in rows), default=0)
    room = width - sum(note_widths) if stacked else 240
    name_width = room if stacked else min(svg.CELL * longest + 16, room)
    x0 = 0.0 if stacked else name_width
    x1 = float(width) if stacked else width - sum(note_widths)
    line, thick, text_y, bar_y = (40, 10, 14, 21) if stacked else (28, 16, 18, 6)
    whole = max((sum(value for _, value in row.parts) for row in rows), default=0) or 1.0
    body = []
    for index, row in enumerate(rows):
        top = index * line
        label = formats.shorten(row.name, int((name_width - 12) / svg.CELL))
        body.append(
            Markup('<g><title>{}</title><text class="name" x="0" y="{}">{}</text>').format(
                formats.clip(row.name, 200), svg.px(top + text_y), label
            )
        )
        x = x0
        y0, y1 = top + bar_y, top + bar_y + thick
        body.append(svg.rect("track", x0, x1 - x0, top=y0, bottom=y1))
        for style, value in row.parts:
            length = (x1 - x0) * value / whole
            if length > 0:
                body.append(svg.rect(style, x, length, top=y0, bottom=y1))
            x += length
        at = float(width)
        for note, note_width in reversed([*zip(row.notes, note_widths, strict=False)]):
            body.append(
                Markup('<text class="note" x="{}" y="{}" text-anchor="end">{}</text>').format(
                    svg.px(at), svg.px(top + text_y), note
                )
            )
            at -= note_width
        body.append(Markup("</g>"))
    return svg.picture(
        body,
        name=name,
        title=title,
        description=description,
        width=width,
        height=max(1, len(rows)) * line,
    )


def strip(parts: Sequence[tuple[str, float]], *, name: str, title: str, description: str) -> Markup:
    """One stacked bar as wide as the page: the shares of a whole."""
    whole, x, body = sum(value for _, value in parts) or 1.0, 0.0, []
    for style, value in parts:
        if value > 0:
            body.append(svg.rect(style, x, 1000 * value / whole, top=0, bottom=10))
            x += 1000 * value / whole
    return svg.picture(
        body, name=name, title=title, description=description, width=1000, height=10, style="strip"
    )
