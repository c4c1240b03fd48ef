"""A report's data as JSON and back, so that a later job can add to a finished run's report.

Nothing is lost: image bytes are base64, infinities and NaN are the strings that pydantic reads
back, and text that is no valid Unicode (undecodable file names) is escaped. Data beyond
``STORE_LIMIT`` loses gallery rows, from the end of each gallery in turns, and a warning says so.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from dataprune_ray.errors import ConfigError
from dataprune_ray.report.data import Gallery, ReportData

STORE_LIMIT = 24_000_000  # bytes; a page shows 3 MB at most, of which images are the larger part
_ESCAPE = "\x1a"  # ASCII "substitute"; its four hexadecimal digits follow
_RAW = re.compile("[\x1a\ud800-\udfff]")
_ESCAPED = re.compile("\x1a([0-9a-f]{4})")
# A dataclass takes no settings from its adapter; the tuple around it hands them on.
_ADAPTER: TypeAdapter[tuple[ReportData]] = TypeAdapter(
    tuple[ReportData],
    config=ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="strings"),
)


def to_json(data: ReportData, limit: int = STORE_LIMIT) -> bytes:
    """``data`` as UTF-8 JSON of at most ``limit`` bytes; ``from_json`` gives it back.

    Raises:
        ConfigError: what remains without any gallery row is still larger than ``limit``.
    """
    content = _dumped(data)
    if len(content) <= limit:
        return content
    total = sum(len(gallery.items) for gallery in data.galleries)
    low, high = 0, max((len(gallery.items) for gallery in data.galleries), default=0)
    best = _dumped(_shortened(data, 0, total))
    while low < high:  # the longest that fits; sizes grow with the number of rows
        middle = (low + high + 1) // 2
        content = _dumped(_shortened(data, middle, total))
        if len(content) <= limit:
            low, best = middle, content
        else:
            high = middle - 1
    if len(best) > limit:
        raise ConfigError(
            "report", f"{len(best):,} bytes", f"more than the {limit:,} that are stored; list less"
        )
    return best


def from_json(content: bytes) -> ReportData:
    """The data that ``to_json`` stored.

    Raises:
        ConfigError: ``content`` is not the JSON of a report.
    """
    try:
        (data,) = _ADAPTER.validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"][1:])) or "report"
        raise ConfigError(
            place,
            f"{len(content):,} bytes of JSON",
            f"{first['msg']}; it must be a file that this version of dataprune-ray stored",
        ) from None
    restored: ReportData = _mapped(data, _restored)
    return restored


def _dumped(data: ReportData) -> bytes:
    return _ADAPTER.dump_json((_mapped(data, _escaped),))


def _shortened(data: ReportData, rows: int, total: int) -> ReportData:
    """At most ``rows`` rows of each gallery, and a warning that counts the others."""
    galleries = tuple(Gallery(g.title, g.caption, g.items[:rows]) for g in data.galleries)
    gone = total - sum(len(gallery.items) for gallery in galleries)
    warning = f"{gone:,} rows of the galleries were too large to store with the report."
    return dataclasses.replace(data, galleries=galleries, warnings=(*data.warnings, warning))


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """``value`` with ``change`` applied to every string in its tuples and dataclasses."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, tuple):
        return tuple(_mapped(item, change) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            f.name: _mapped(getattr(value, f.name), change) for f in dataclasses.fields(value)
        }
        return dataclasses.replace(value, **fields)
    return value


def _escaped(text: str) -> str:
    return _RAW.sub(lambda match: f"{_ESCAPE}{ord(match.group()):04x}", text)


def _restored(text: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match.group(1), 16)), text)
