"""Charts as inline SVG: pure functions from numbers to markup.

Every chart is drawn for a given width in pixels; the page carries a wide and a narrow drawing of
each and shows the one that fits, so that text never shrinks. Colours come from the page's style
through classes. Text passes through ``Markup.format``, which escapes it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from dataprune_ray.report import formats

WIDE, NARROW = 960, 340
MAX_BINS = 100
Draw = Callable[[int], Markup]  # a width in pixels to a drawing
_CELL = 7.8  # pixels that one character of chart text takes, at most, on average


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


def nice_ticks(low: float, high: float, target: int = 5) -> tuple[float, ...]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that cover ``low`` to ``high``.

    Args:
        low: Smaller end, finite, of float32 range.
        high: Larger end; a range too narrow to divide is widened first.
        target: About how many intervals to make; at most half as many again result, plus two.

    Returns:
        Ascending ticks; the first is at most ``low`` and the last at least ``high``.
    """
    low, high = _widened(low, high)
    rough = (high - low) / target
    exponent = math.floor(math.log10(rough))
    lead = rough / 10.0**exponent  # 1 to 10; the limits are the geometric means between steps
    factor = 1 if lead < 2**0.5 else 2 if lead < 10**0.5 else 5 if lead < 50**0.5 else 10
    step = factor * 10.0**exponent
    first, last = math.floor(low / step), math.ceil(high / step)
    while _multiple(first, factor, exponent) > low:
        first -= 1
    while _multiple(last, factor, exponent) < high:
        last += 1
    return tuple(_multiple(index, factor, exponent) for index in range(first, last + 1))


def _multiple(index: int, factor: int, exponent: int) -> float:
    return float(f"{index * factor}e{exponent}")  # the nearest float: 0.3, not 3 * 0.1


def _widened(low: float, high: float) -> tuple[float, float]:
    """The range itself, or one around it where it is too narrow to divide."""
    largest = max(abs(low), abs(high))
    if high - low > 1e-9 * largest:
        return low, high
    pad = 0.5 * largest or 0.5
    return low - pad, high + pad


def tick_labels(ticks: Sequence[float]) -> tuple[str, ...]:
    """Labels with the decimals that the step between the ticks needs, and no more."""
    largest = max(abs(tick) for tick in ticks)
    step = min((b - a for a, b in itertools.pairwise(ticks)), default=1.0)
    if largest >= 1e7 or step < 1e-5:  # noqa: PLR2004 - longer plain numbers are hard to read
        return tuple(f"{tick:.6g}" for tick in ticks)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return tuple(f"{tick + 0.0:,.{decimals}f}" for tick in ticks)


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
    width: int = WIDE,
    marker: Marker | None = None,
    unit: str = "",
) -> Markup:
    """Stacked bars over a number axis, heights proportional to counts, with an optional marker.

    ``name`` makes the ids unique in the page. Bins without width (all scores equal) are drawn as
    one bar. An empty ``bins`` gives an empty picture, not an error.
    """
    edges = bins.edges if len(bins.edges) > 1 else (0.0, 1.0)
    low, high = _widened(edges[0], edges[-1])
    if (low, high) != (edges[0], edges[-1]):
        edges = tuple(low + (high - low) * i / (len(edges) - 1) for i in range(len(edges)))
    totals = [sum(column) for column in zip(*(c for _, c in bins.layers), strict=True)]
    y_ticks = [tick for tick in nice_ticks(0, max(totals, default=0) or 1, 4) if tick == int(tick)]

    height = 340 if width > NARROW else 260
    y_labels = tick_labels(y_ticks)
    left = 12 + _CELL * max(map(len, y_labels))
    right, top, bottom = width - 18.0, 48.0 if marker else 14.0, height - 46.0

    def x(value: float) -> float:
        return left + (right - left) * (value - low) / (high - low)

    def y(value: float) -> float:
        return bottom - (bottom - top) * value / y_ticks[-1]

    body = [
        _gridline(left, right, y(tick), label)
        for tick, label in zip(y_ticks, y_labels, strict=True)
    ]
    for index in range(len(totals)):
        counts = [(style, c[index]) for style, c in bins.layers]
        body.append(_column(x(edges[index]), x(edges[index + 1]), counts, y, _span(bins, index)))
    for tick, label in _fitting_ticks(low, high, right - left, unit):
        body.append(_x_tick(x(tick), bottom, label, width))
    body.append(
        Markup('<text class="axis" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            _px((left + right) / 2), _px(height - 6), formats.shorten(axis, int(width / _CELL) - 8)
        )
    )
    if marker and math.isfinite(marker.value):
        body.append(_marker(marker, x(min(max(marker.value, low), high)), left, right, bottom))
    return _svg(body, name=name, title=title, description=description, width=width, height=height)


def _fitting_ticks(low: float, high: float, room: float, unit: str) -> list[tuple[float, str]]:
    """As many ticks within the range as have room for their labels, but no crowd."""
    for target in range(8, 0, -1):
        ticks = nice_ticks(low, high, target)
        labels = [label + unit for label in tick_labels(ticks)]
        inside = [
            (tick, label) for tick, label in zip(ticks, labels, strict=True) if low <= tick <= high
        ]
        if len(inside) * (_CELL * max(map(len, labels)) + 14) <= room:
            break
    return inside


def _span(bins: Bins, index: int) -> str:
    """What one bin holds, in words, for the tooltip."""
    between = f"{formats.score(bins.edges[index])} to {formats.score(bins.edges[index + 1])}"
    parts = ", ".join(f"{formats.count(counts[index])} {style}" for style, counts in bins.layers)
    return f"{between}: {parts}"


def _gridline(left: float, right: float, y: float, label: str) -> Markup:
    return Markup(
        '<line class="grid" x1="{}" x2="{}" y1="{y}" y2="{y}"/>'
        '<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>'
    ).format(_px(left), _px(right), _px(left - 8), _px(y + 4), label, y=_px(y))


def _x_tick(x: float, bottom: float, label: str, width: int) -> Markup:
    half = _CELL * len(label) / 2
    anchor = "end" if x + half > width else "start" if x - half < 0 else "middle"
    return Markup(
        '<line class="base" x1="{x}" x2="{x}" y1="{}" y2="{}"/>'
        '<text class="tick" x="{x}" y="{}" text-anchor="{}">{}</text>'
    ).format(_px(bottom), _px(bottom + 5), _px(bottom + 20), anchor, label, x=_px(x))


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
                _rect(style, x0 + gap / 2, x1 - x0 - gap, top=y(below + number), bottom=y(below))
            )
        below += number
    if not rects:
        return Markup("")
    return Markup("<g><title>{}</title>{}</g>").format(tooltip, Markup("").join(rects))


def _rect(style: str, x: float, width: float, *, top: float, bottom: float) -> Markup:
    return Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}"/>').format(
        style, _px(x), _px(top), _px(width), _px(bottom - top)
    )


def _marker(marker: Marker, x: float, left: float, right: float, bottom: float) -> Markup:
    """The line, its label on the side with more room, and what lies to either side."""
    after = right - x > x - left
    label = Markup('<text class="cutoff" x="{}" y="14" text-anchor="{}">{}</text>').format(
        _px(x + 6 if after else x - 6), "start" if after else "end", marker.label
    )
    sides = [
        Markup('<text class="tick" x="{}" y="33" text-anchor="{}">{}</text>').format(
            _px(at), anchor, text
        )
        for at, anchor, text, room in (
            (x - 6, "end", marker.left, x - left),
            (x + 6, "start", marker.right, right - x),
        )
        if text and room > _CELL * len(text)
    ]
    return Markup('<line class="cutoff" x1="{x}" x2="{x}" y1="3" y2="{}"/>{}{}').format(
        _px(bottom), label, Markup("").join(sides), x=_px(x)
    )


def bars(
    rows: Sequence[Bar], *, name: str, title: str, description: str, width: int = WIDE
) -> Markup:
    """Horizontal bars, one line each: name, stacked parts (lengths proportional), notes.

    The longest bar fills the room; a narrow drawing puts the name and notes above the bar.
    """
    stacked = width <= NARROW
    note_widths = [
        _CELL * max(formats.columns(row.notes[i]) for row in rows) + 16
        for i in range(max((len(row.notes) for row in rows), default=0))
    ]
    longest = max((formats.columns(row.name) for row in rows), default=0)
    room = width - sum(note_widths) if stacked else 240
    name_width = room if stacked else min(_CELL * longest + 16, room)
    x0 = 0.0 if stacked else name_width
    x1 = float(width) if stacked else width - sum(note_widths)
    line, thick, text_y, bar_y = (40, 10, 14, 21) if stacked else (28, 16, 18, 6)
    whole = max((sum(value for _, value in row.parts) for row in rows), default=0) or 1.0
    body = []
    for index, row in enumerate(rows):
        top = index * line
        label = formats.shorten(row.name, int((name_width - 12) / _CELL))
        body.append(
            Markup('<g><title>{}</title><text class="name" x="0" y="{}">{}</text>').format(
                formats.clip(row.name, 200), _px(top + text_y), label
            )
        )
        x = x0
        y0, y1 = top + bar_y, top + bar_y + thick
        body.append(_rect("track", x0, x1 - x0, top=y0, bottom=y1))
        for style, value in row.parts:
            length = (x1 - x0) * value / whole
            if length > 0:
                body.append(_rect(style, x, length, top=y0, bottom=y1))
            x += length
        at = float(width)
        for note, note_width in reversed([*zip(row.notes, note_widths, strict=False)]):
            body.append(
                Markup('<text class="note" x="{}" y="{}" text-anchor="end">{}</text>').format(
                    _px(at), _px(top + text_y), note
                )
            )
            at -= note_width
        body.append(Markup("</g>"))
    return _svg(
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
            body.append(_rect(style, x, 1000 * value / whole, top=0, bottom=10))
            x += 1000 * value / whole
    return _svg(
        body, name=name, title=title, description=description, width=1000, height=10, style="strip"
    )


def _svg(
    body: Iterable[Markup],
    *,
    name: str,
    title: str,
    description: str,
    width: int,
    height: int,
    style: str | None = None,
) -> Markup:
    """The picture with its accessible name and description."""
    style = style or ("wide" if width > NARROW else "narrow")
    return Markup(
        '<svg class="{style}" viewBox="0 0 {} {}"{} role="img" '
        'aria-labelledby="{name}-{style}-t {name}-{style}-d">'
        '<title id="{name}-{style}-t">{}</title><desc id="{name}-{style}-d">{}</desc>{}</svg>'
    ).format(
        width,
        height,
        Markup(' preserveAspectRatio="none"') if style == "strip" else "",
        title,
        description,
        Markup("").join(body),
        name=name,
        style=style,
    )


def _px(value: float) -> str:
    """A coordinate in hundredths of a pixel."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
