"""What the page shows of the drift since a baseline: overlaid distributions and a table."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from dataprune_ray.drift import Drift, reading
from dataprune_ray.report import charts, formats, svg
from dataprune_ray.report.charts import Bins

_SHARES = 10_000  # heights are rows per this many, so that corpora of any size compare
_CLASS_BUDGET = 150_000


@dataclass(frozen=True)
class Changes:
    """The drift section: a sentence, measures, the picture, and a line per class."""

    verdict: str
    measures: tuple[tuple[str, str, str], ...]  # name, value, reading
    chart: Markup
    rows_before: int
    rows_now: int
    classes: tuple[tuple[str, int, int, str, str], ...]  # name, before, now, PSI, KS
    left_out: int


def changes(drift: Drift | None) -> Changes | None:
    """The drift in words and pictures; None where there is no baseline."""
    if drift is None:
        return None
    measures = [
        ("PSI of the scores", f"{drift.psi:.3f}", reading(drift.psi)),
        ("KS distance of the scores", f"{drift.ks:.3f}", "largest gap, from 0 to 1"),
    ]
    if drift.class_psi is not None:
        line = ("PSI of the class shares", f"{drift.class_psi:.3f}", reading(drift.class_psi))
        measures.insert(1, line)
    lines, left_out = formats.fit(
        [
            (formats.clip(c.name, 200), c.rows_before, c.rows_now, f"{c.psi:.3f}", f"{c.ks:.3f}")
            for c in drift.classes
        ],
        _CLASS_BUDGET,
        lambda line: formats.weight(line[0]),
    )
    return Changes(
        verdict=_verdict(drift),
        measures=tuple(measures),
        chart=_chart(drift),
        rows_before=drift.rows_before,
        rows_now=drift.rows_now,
        classes=lines,
        left_out=left_out,
    )


def _verdict(drift: Drift) -> str:
    text = f"The shift is {reading(drift.worst)}."
    if drift.limit is None:
        return text
    side = "beyond" if drift.exceeded else "within"
    return f"{text} It is {side} the limit of {drift.limit:g} that was set for the PSI."


def _chart(drift: Drift) -> Markup:
    """Both distributions over each other: what they share, and what only one of them has."""
    before = [round(_SHARES * n / drift.rows_before) for n in drift.before]
    now = [round(_SHARES * n / drift.rows_now) for n in drift.now]
    pairs = list(zip(before, now, strict=True))
    layers = (
        ("shared", tuple(min(pair) for pair in pairs)),
        ("earlier", tuple(max(a - b, 0) for a, b in pairs)),
        ("later", tuple(max(b - a, 0) for a, b in pairs)),
    )
    metric = formats.clip(drift.metric, 120)
    return svg.both(
        lambda width: charts.histogram(
            Bins(drift.edges, layers),
            name="drift-scores",
            title=f"Distribution of {metric} in the baseline and now, as shares",
            description=f"PSI {drift.psi:.3f}; KS distance {drift.ks:.3f}",
            axis=metric,
            width=width,
        )
    )
