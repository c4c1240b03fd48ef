"""Values to the words that a reader sees: numbers, sizes, durations, clipped and cleaned text."""

from __future__ import annotations

import dataclasses
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from markupsafe import escape

T = TypeVar("T")

NONE = "–"  # noqa: RUF001 - a dash for a number that there is none of
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def clean(text: str) -> str:
    r"""``text`` as valid UTF-8 without control characters.

    Controls become their Unicode pictures, bytes of undecodable file names their escapes
    (``\udce9``), so that nothing vanishes from view.
    """
    return _UNPRINTABLE.sub(_visible, text.replace("\r\n", "\n").replace("\r", "\n"))


def _visible(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:  # noqa: PLR2004 - the C0 controls have pictures, in order
        return chr(0x2400 + code)
    return f"\\u{code:04x}"


def cleaned(value: Any) -> Any:
    """``value`` with every string in its tuples and dataclasses passed through ``clean``."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, tuple):
        return tuple(cleaned(item) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = (field.name for field in dataclasses.fields(value))
        return dataclasses.replace(value, **{name: cleaned(getattr(value, name)) for name in names})
    return value


def clip(text: str, limit: int) -> str:
    """The first ``limit`` characters, and how many are missing."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}… ({count(len(text) - limit)} more characters)"


def weight(*texts: str | None) -> int:
    """Bytes that ``texts`` take on the page, once escaped."""
    return sum(len(str(escape(text)).encode()) for text in texts if text)


def fit(
    items: Sequence[T], budget: int, size: Callable[[T], int], overhead: int = 160
) -> tuple[tuple[T, ...], int]:
    """The leading items that fit into ``budget`` bytes, and the number left out."""
    for index, item in enumerate(items):
        budget -= size(item) + overhead
        if budget < 0:
            return tuple(items[:index]), len(items) - index
    return tuple(items), 0


def columns(text: str) -> int:
    """Width of ``text`` in character cells: East Asian wide characters take two."""
    return sum(
        0
        if unicodedata.combining(character)
        else 2
        if unicodedata.east_asian_width(character) in "WF"
        else 1
        for character in text
    )


def shorten(text: str, cells: int) -> str:
    """``text`` on one line in at most ``cells`` character cells, its middle cut out if need be."""
    text = " ".join(text.split())
    if columns(text) <= cells:
        return text
    tail_cells = max(0, (cells - 1) // 3)
    head, tail = "", ""
    for character in text:
        if columns(head + character) > cells - 1 - tail_cells:
            break
        head += character
    for character in reversed(text):
        if columns(character + tail) > tail_cells:
            break
        tail = character + tail
    return f"{head}…{tail}"


def count(number: int) -> str:
    """An integer with thousands separators."""
    return f"{number:,}"


def plural(number: int, one: str, many: str | None = None) -> str:
    """A count and its noun: ``1 row``, ``2,000 rows``, ``3 classes``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def ratio(part: float, whole: float) -> float | None:
    """``part / whole``, or None where there is no whole."""
    return part / whole if whole else None


def percent(fraction: float | None, decimals: int = 1) -> str:
    """A share in percent; only an exact 0 or 1 reads as 0% or 100%."""
    if fraction is None or not math.isfinite(fraction):
        return NONE
    smallest = 10.0**-decimals
    value = 100 * fraction
    if 0 < value < smallest / 2:
        return f"<{smallest:.{decimals}f}%"
    if 100 - smallest / 2 <= value < 100:  # noqa: PLR2004 - percent
        return f">{100 - smallest:.{decimals}f}%"
    return f"{value:.{decimals}f}%"


def asked(fraction: float) -> str:
    """A requested share as it was typed: ``30%``, ``12.5%``."""
    return f"{100 * fraction:.6g}%"


def size(number: int) -> str:
    """Bytes in decimal units."""
    value, units = float(number), ("kB", "MB", "GB", "TB", "PB")
    if value < 1000:  # noqa: PLR2004 - decimal units
        return plural(number, "byte")
    for unit in units:
        value /= 1000
        if value < 999.5 or unit == units[-1]:  # noqa: PLR2004 - decimal units
            break
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0  # noqa: PLR2004 - three digits
    return f"{value:,.{decimals}f} {unit}"


def duration(seconds: float) -> str:
    """Seconds in the largest units that a reader needs."""
    if not math.isfinite(seconds):
        return NONE
    minute, hour = 60, 3600
    if seconds < 99.95:  # noqa: PLR2004 - three digits
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"  # noqa: PLR2004
    whole = round(seconds)
    if whole < hour:
        return f"{whole // minute} min {whole % minute:02d} s"
    return f"{whole // hour:,} h {whole % hour // minute:02d} min"


def score(value: float) -> str:
    """A score in four significant digits."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if -5 < exponent < 7:  # noqa: PLR2004 - readable without an exponent
        return f"{value:,.{max(0, 3 - exponent)}f}"
    return f"{value:.3e}"


def exact(value: float) -> str:
    """A score in the digits that give back the same float32."""
    return f"{value:.9g}" if math.isfinite(value) else score(value)


def signed(value: float) -> str:
    """A difference in points: ``+0.12``, ``-3.40``; an exact 0 has no sign."""
    if not math.isfinite(value):
        return score(value)
    return "0.00" if value == 0 else f"{value:+.2f}"


def spread(mean: float, std: float, number: int) -> str:
    """A mean with its standard deviation; without it where one run alone says nothing of it."""
    if not math.isfinite(mean):
        return NONE
    return f"{mean:.2f} ± {std:.2f}" if number > 1 else f"{mean:.2f}"
