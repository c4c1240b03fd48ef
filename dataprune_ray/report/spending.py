"""What pruning cost once, against what each training on the pruned rows saves."""

from __future__ import annotations

import math
from dataclasses import dataclass

from markupsafe import Markup

from dataprune_ray.report import charts, formats, svg
from dataprune_ray.report.charts import Bar
from dataprune_ray.verdict import Costs

MAX_STAGES = 20


@dataclass(frozen=True)
class Spent:
    """Costs and savings: sentences, and bars on one scale of seconds."""

    sentences: tuple[str, ...]
    chart: Markup
    left_out: int


def spent(costs: Costs | None) -> Spent | None:
    """Costs in words and bars; None where they are not known."""
    if costs is None:
        return None
    total = sum(seconds for _, seconds in costs.prune_seconds)
    shown = costs.prune_seconds[:MAX_STAGES]
    rows = [
        Bar(name, (("time", max(0.0, seconds)),), (formats.duration(seconds),))
        for name, seconds in shown
    ]
    rows.append(
        Bar("pruning, once", (("dropped", max(0.0, total)),), (formats.duration(total),)),
    )
    saved = costs.saved_seconds
    sign = "-" if saved < 0 else ""
    note = f"{sign}{formats.duration(abs(saved))}"
    rows.append(Bar("saved by each training", (("kept", max(0.0, saved)),), (note,)))
    described = "; ".join(f"{formats.shorten(bar.name, 40)}: {bar.notes[0]}" for bar in rows)
    chart = svg.both(
        lambda width: charts.bars(
            rows,
            name="costs",
            title="Seconds that pruning took, and that each training saves",
            description=described,
            width=width,
        )
    )
    sentences = (_pays(costs, total), _saves(costs))
    return Spent(sentences, chart, len(costs.prune_seconds) - len(shown))


def _pays(costs: Costs, total: float) -> str:
    took = f"Pruning took {formats.duration(total)} once."
    if costs.break_even is None or not math.isfinite(costs.break_even):
        return f"{took} It never pays back in time: a training on the pruned rows is no shorter."
    number = max(1, math.ceil(costs.break_even))
    return f"{took} It has paid back after {formats.plural(number, 'training')}."


def _saves(costs: Costs) -> str:
    how = (
        "measured at equal epochs"
        if costs.measured
        else "reckoned for equal epochs from the full arm's time per update"
    )
    verb, seconds = ("saves", costs.saved_seconds)
    if seconds < 0:
        verb, seconds = "takes longer by", -seconds
    text = f"Each training on the pruned rows {verb} {formats.duration(seconds)}"
    if costs.saved_gpu_seconds > 0:
        text += f" and {formats.duration(costs.saved_gpu_seconds)} of GPU time"
    text += f", {how}; that is {costs.saved_updates:,.0f} fewer updates."
    if costs.saved_bytes > 0:
        text += f" The pruned rows are {formats.size(costs.saved_bytes)} smaller."
    return text
