"""Where the time of scoring went, as the page shows it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from markupsafe import Markup

from dataprune_ray.clock import Scoring
from dataprune_ray.report import charts, formats, svg
from dataprune_ray.report.charts import Bar


@dataclass(frozen=True)
class Timing:
    """Sentences and bars on the scoring workers' time."""

    sentence: str
    bottleneck: str
    chart: Markup


def timing(scoring: Scoring | None) -> Timing | None:
    """Shares of the workers' seconds, the readers' beside them; None where nothing was scored."""
    if scoring is None or not scoring.spent.total > 0 or not math.isfinite(scoring.spent.total):
        return None
    busy = scoring.busy
    gpu = "" if busy is None else f" A GPU had work in hand {formats.percent(busy)} of that time."
    sizes = ", ".join(map(formats.count, scoring.batch_rows))
    passes = f" Rows of a forward pass: {sizes}." if sizes else ""
    sentence = (
        f"{formats.plural(scoring.workers, 'worker')} scored {formats.plural(scoring.rows, 'row')} "
        f"in {formats.duration(scoring.spent.total)} of their time, start-up apart: "
        f"{scoring.rate:,.0f} rows per second each.{passes}{gpu}"
    )
    bottleneck = scoring.bottleneck[0].upper() + scoring.bottleneck[1:] + "."
    beside = [(f"{name} (beside it)", took, part) for name, took, part in scoring.reader_shares]
    lines = [
        Bar(
            name,
            (("time", max(0.0, seconds)),),
            (formats.duration(seconds), formats.percent(share)),
        )
        for name, seconds, share in [*scoring.shares, *beside]
    ]
    described = "; ".join(f"{bar.name}: {bar.notes[0]}, {bar.notes[1]}" for bar in lines)
    chart = svg.both(
        lambda width: charts.bars(
            lines,
            name="timing",
            title="Where the scoring workers' time went",
            description=described,
            width=width,
        )
    )
    return Timing(sentence, bottleneck, chart)
