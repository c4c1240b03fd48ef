"""What every drawing is made of: ticks, axes, rectangles and the picture around them.

Every chart is drawn for a given width in pixels; the page carries a wide and a narrow drawing of
each and shows the one that fits, so that text never shrinks. Colours come from the page's style
through classes. Text passes through ``Markup.format``, which escapes it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence

from markupsafe import Markup

from dataprune_ray.report import formats

WIDE, NARROW = 960, 340
CELL = 7.8  # pixels that one character of chart text takes, at most, on average
Draw = Callable[[int], Markup]  # a width in pixels to a drawing


def both(draw: Draw) -> Markup:
    """A drawing for wide and one for narrow pages; the style shows one of them."""
    return draw(WIDE) + draw(NARROW)


def nice_ticks(low: float, high: float, target: int = 5) -> tuple[float, ...]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that cover ``low`` to ``high``.

    Args:
        low: Smaller end, finite, of float32 range.
        high: Larger end; a range too narrow to divide is widened first.
        target: About how many intervals to make; at most half as many again result, plus two.

    Returns:
        Ascending ticks; the first is at most ``low`` and the last at least ``high``.
    """
    low, high = widened(low, high)
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


def widened(low: float, high: float) -> tuple[float, float]:
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


def fitting_ticks(low: float, high: float, room: float, unit: str) -> list[tuple[float, str]]:
    """As many ticks within the range as have room for their labels, but no crowd."""
    for target in range(8, 0, -1):
        ticks = nice_ticks(low, high, target)
        labels = [label + unit for label in tick_labels(ticks)]
        inside = [
            (tick, label) for tick, label in zip(ticks, labels, strict=True) if low <= tick <= high
        ]
        if len(inside) * (CELL * max(map(len, labels)) + 14) <= room:
            break
    return inside


def gridline(left: float, right: float, y: float, label: str) -> Markup:
    """A horizontal line with its label to the left of it."""
    return Markup(
        '<line class="grid" x1="{}" x2="{}" y1="{y}" y2="{y}"/>'
        '<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>'
    ).format(px(left), px(right), px(left - 8), px(y + 4), label, y=px(y))


def x_tick(x: float, bottom: float, label: str, width: int) -> Markup:
    """A tick below the plot with its label, kept inside the drawing."""
    half = CELL * len(label) / 2
    anchor = "end" if x + half > width else "start" if x - half < 0 else "middle"
    return Markup(
        '<line class="base" x1="{x}" x2="{x}" y1="{}" y2="{}"/>'
        '<text class="tick" x="{x}" y="{}" text-anchor="{}">{}</text>'
    ).format(px(bottom), px(bottom + 5), px(bottom + 20), anchor, label, x=px(x))


def rect(style: str, x: float, width: float, *, top: float, bottom: float) -> Markup:
    """A rectangle of a style."""
    return Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}"/>').format(
        style, px(x), px(top), px(width), px(bottom - top)
    )


def vertical(style: str, x: float, top: float, bottom: float) -> Markup:
    """A line from ``top`` to ``bottom``."""
    return Markup('<line class="{}" x1="{x}" x2="{x}" y1="{}" y2="{}"/>').format(
        style, px(top), px(bottom), x=px(x)
    )


def axis_title(text: str, left: float, right: float, bottom: float, width: int) -> Markup:
    """The axis title below the tick labels, pushed inside where it would stick out."""
    label = formats.shorten(text, int(width / CELL) - 4)
    half = CELL * formats.columns(label) / 2
    middle = min(max((left + right) / 2, half), width - half)
    return Markup('<text class="axis" x="{}" y="{}" text-anchor="middle">{}</text>').format(
        px(middle), px(bottom + 40), label
    )


def picture(
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


def px(value: float) -> str:
    """A coordinate in hundredths of a pixel."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
