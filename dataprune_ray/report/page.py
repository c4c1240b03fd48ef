"""The page: sections in a reader's order, each bounded, filled into the template.

The size limit is kept by construction. Every section but the galleries has a budget of its own;
the galleries share what the rest leaves. Whatever does not fit is counted on the page.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from dataprune_ray.report import figures, formats, galleries
from dataprune_ray.report.changes import changes
from dataprune_ray.report.comparing import compared
from dataprune_ray.report.cut_quality import judged
from dataprune_ray.report.data import BadRow, ReportData
from dataprune_ray.report.searching import searched
from dataprune_ray.report.timing import timing
from dataprune_ray.verdict import Comparison

PAGE_LIMIT = 3_000_000  # bytes of UTF-8

_BUDGETS = {  # bytes of each list that can be long
    "warnings": 60_000,
    "reasons": 60_000,
    "examples": 200_000,
    "settings": 600_000,
    "outputs": 120_000,
    "versions": 40_000,
    "command": 80_000,
}


def render(data: ReportData) -> str:
    """The report on ``data`` as one HTML page of less than ``PAGE_LIMIT`` bytes.

    The page opens offline: style, charts and images are inside, there is no script, and its
    content policy forbids every request. The same data gives the same page.
    """
    data = formats.cleaned(data)
    template = _environment().get_template("report.html")
    view = _view(data)
    empty = template.render(view, galleries=galleries.build(data.galleries, 0))
    budget = PAGE_LIMIT - len(empty.encode()) - 20_000
    while True:
        page = template.render(view, galleries=galleries.build(data.galleries, max(0, budget)))
        if len(page.encode()) < PAGE_LIMIT or budget <= 0:
            return page
        budget //= 2


def render_comparison(
    comparison: Comparison,
    title: str,
    command: str,
    settings: Sequence[tuple[str, str]] = (),
    versions: Sequence[tuple[str, str]] = (),
) -> str:
    """A page on a comparison alone, for one that is written to a place of its own.

    It keeps what ``render`` keeps: offline, no script, escaped, below ``PAGE_LIMIT`` bytes,
    and the same page for the same arguments.
    """
    given = (comparison, title, command, tuple(settings), tuple(versions))
    comparison, title, command, settings, versions = formats.cleaned(given)
    return (
        _environment()
        .get_template("comparison_page.html")
        .render(
            policy=_policy(),
            title=formats.clip(title, 300),
            untitled="Comparison",
            sentence="",
            compared=compared(comparison),
            **_how(tuple(settings), tuple(versions), command),
        )
    )


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dataprune_ray.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=formats.count,
        plural=formats.plural,
        percent=formats.percent,
        size=formats.size,
        breakable=_breakable,
        words=_words,
    )
    return environment


def _breakable(path: str) -> Markup:
    """A path that may wrap after each slash."""
    return Markup("/<wbr>").join(path.split("/"))


def _words(command: str) -> Markup:
    """A command that wraps between its words, not at their hyphens; long words may break."""
    longest = 36  # characters that fit the narrowest page
    return Markup(" ").join(
        Markup('<span class="row">{}</span>').format(word) if len(word) <= longest else word
        for word in command.split(" ")
    )


def _policy() -> str:
    """The content policy: nothing is loaded, and of styles only the page's own applies."""
    style = _environment().get_template("report.css").render()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _view(data: ReportData) -> dict[str, Any]:
    """Everything that the template shows, save the galleries."""
    scorable = data.rows_kept + data.rows_dropped
    return {
        "policy": _policy(),
        "data": data,
        "title": formats.clip(data.title, 300),
        "untitled": "Pruning report",
        "sentence": formats.clip(data.sentence, 3_000),
        "scorable": scorable,
        "achieved": formats.percent(formats.ratio(data.rows_kept, scorable), 2),
        "requested": None if data.requested_keep is None else formats.asked(data.requested_keep),
        "dropped_share": formats.percent(formats.ratio(data.rows_dropped, scorable), 2),
        "quarantined_share": formats.percent(formats.ratio(data.rows_quarantined, data.rows_in), 2),
        "bytes_share": formats.percent(formats.ratio(data.bytes_out, data.bytes_in)),
        "strip": figures.rows(data),
        "scores": figures.scores(data.histogram),
        "classes": figures.classes(data.classes),
        "stages": figures.stages(data.stages),
        "timing": timing(data.scoring),
        "drift": changes(data.drift),
        "compared": compared(data.comparison),
        "searched": searched(data.tuned),
        "judged": judged(data.quality),
        **_lists(data),
        **_how(data.settings, data.versions, data.command),
    }


def _lists(data: ReportData) -> dict[str, Any]:
    """The lists that can be long, each as ``(items, number left out)``."""
    outputs = _clipped_pairs(data.outputs)
    reasons = [(formats.clip(reason, 500), number) for reason, number in data.bad_reasons]
    return {
        "warnings": formats.fit(
            [formats.clip(text, 2_000) for text in data.warnings],
            _BUDGETS["warnings"],
            formats.weight,
        ),
        "reasons": formats.fit(reasons, _BUDGETS["reasons"], lambda pair: formats.weight(pair[0])),
        "examples": formats.fit(
            [_clipped_example(row) for row in data.bad_examples],
            _BUDGETS["examples"],
            lambda row: formats.weight(row.file, row.key, row.error),
        ),
        "outputs": formats.fit(outputs, _BUDGETS["outputs"], _pair_weight),
    }


def _how(
    settings: tuple[tuple[str, str], ...], versions: tuple[tuple[str, str], ...], command: str
) -> dict[str, Any]:
    """What repeats the run: settings, versions and the command."""
    return {
        "settings": formats.fit(_clipped_pairs(settings), _BUDGETS["settings"], _pair_weight, 80),
        "versions": formats.fit(_clipped_pairs(versions), _BUDGETS["versions"], _pair_weight),
        "command": formats.clip(command, _BUDGETS["command"] // 10),
    }


def _clipped_pairs(pairs: tuple[tuple[str, str], ...]) -> list[tuple[str, str]]:
    return [(formats.clip(name, 500), formats.clip(value, 2_000)) for name, value in pairs]


def _pair_weight(pair: tuple[str, str]) -> int:
    name, value = pair
    return formats.weight(name, value) + 5 * (name.count("/") + value.count("/"))


def _clipped_example(row: BadRow) -> BadRow:
    key = None if row.key is None else formats.clip(row.key, 200)
    return BadRow(formats.clip(row.file, 500), row.row, key, formats.clip(row.error, 1_000))
