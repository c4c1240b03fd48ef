"""What the page says of how a strategy was found: the rounds, the choice, its confirmation."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from dataprune_ray.report import formats, svg
from dataprune_ray.report.comparing import difference
from dataprune_ray.report.curves import Line, lines
from dataprune_ray.report.plots import Dots, Guide, dots
from dataprune_ray.verdict import Tuned, TuneStep

MAX_CANDIDATES = 16
_TABLE = 160_000
_CONFIRMED = 16


@dataclass(frozen=True)
class StepLine:
    """One candidate in one round, in words."""

    round: int
    candidate: str
    keep: str
    updates: int
    seeds: int
    score: str
    survived: bool


@dataclass(frozen=True)
class Searched:
    """The section on how the strategy was found."""

    chosen: str
    sentences: tuple[str, ...]
    reason: str
    lines: tuple[StepLine, ...]
    left_out: int
    chart: Markup | None
    undrawn: int
    confirmed: tuple[tuple[str, tuple[str, str]], ...]
    confirmed_left_out: int
    confirmation: Markup | None


def searched(tuned: Tuned | None) -> Searched | None:
    """The decision path in words and pictures; None where nothing was searched for."""
    if tuned is None:
        return None
    lines_, left_out = formats.fit(
        [_line(step) for step in tuned.steps],
        _TABLE,
        lambda line: formats.weight(line.candidate),
        260,
    )
    names = _candidates(tuned)
    drawn = _ranked(tuned, names)[:MAX_CANDIDATES]
    confirmed = tuned.confirmed[:_CONFIRMED]
    return Searched(
        chosen=formats.clip(tuned.chosen, 120),
        sentences=_sentences(tuned, len(names)),
        reason=formats.clip(tuned.reason, 2_000),
        lines=lines_,
        left_out=left_out,
        chart=_chart(tuned, drawn) if drawn else None,
        undrawn=len(names) - len(drawn),
        confirmed=tuple((formats.clip(n, 120), difference(between)) for n, between in confirmed),
        confirmed_left_out=len(tuned.confirmed) - len(confirmed),
        confirmation=_confirmation(tuned) if confirmed else None,
    )


def _line(step: TuneStep) -> StepLine:
    return StepLine(
        round=step.round,
        candidate=formats.clip(step.candidate, 120),
        keep=formats.percent(step.keep),
        updates=step.updates,
        seeds=step.seeds,
        score=formats.spread(step.mean, step.std, step.seeds),
        survived=step.survived,
    )


Key = tuple[str, float]  # candidate, keep


def _candidates(tuned: Tuned) -> tuple[Key, ...]:
    return tuple(dict.fromkeys((step.candidate, step.keep) for step in tuned.steps))


def _ranked(tuned: Tuned, names: tuple[Key, ...]) -> list[Key]:
    """Those that went on longest first, then the better; the choice and random lead."""
    last: dict[Key, tuple[int, float]] = {}
    for step in tuned.steps:
        last[step.candidate, step.keep] = (step.round, step.mean)
    leads = {(tuned.chosen, tuned.keep): 2}
    leads |= {name: 1 for name in names if name[0] == "random"}
    return sorted(names, key=lambda n: (-leads.get(n, 0), -last[n][0], -last[n][1], n))


def _sentences(tuned: Tuned, candidates: int) -> tuple[str, ...]:
    rounds = len({step.round for step in tuned.steps})
    searched_ = (
        f"{formats.plural(candidates, 'candidate')} in {formats.plural(rounds, 'round')}, judged "
        f"on {formats.plural(tuned.validation_rows, 'row')} held out of the search."
    )
    noise = (
        "The share of wrong labels was not estimated."
        if tuned.noise_share is None
        else f"An estimated {formats.percent(tuned.noise_share)} of the labels are wrong."
    )
    beta = f" with beta {tuned.beta:g}" if tuned.beta else ""
    taken = (
        f"Taken is {formats.clip(tuned.chosen, 120)}: strategy "
        f"{formats.clip(tuned.strategy, 120)}{beta}, keeping {formats.percent(tuned.keep)}."
    )
    return noise, searched_, taken


def _style(tuned: Tuned, key: Key) -> str:
    if key == (tuned.chosen, tuned.keep):
        return "s1"
    return "s2" if key[0] == "random" else "other"


def _chart(tuned: Tuned, drawn: list[Key]) -> Markup:
    """Means by round: the choice and random in colour, the others in grey behind them."""
    several = len({step.keep for step in tuned.steps}) > 1
    series = []
    for key in reversed(drawn):  # the choice is drawn last, on top
        candidate, keep = key
        steps = sorted(
            (s for s in tuned.steps if (s.candidate, s.keep) == key), key=lambda s: s.round
        )
        series.append(
            Line(
                name=f"{candidate} at {formats.percent(keep)}" if several else candidate,
                style=_style(tuned, key),
                points=tuple((float(step.round), step.mean) for step in steps),
            )
        )
    rounds = sorted({step.round for step in tuned.steps})[:12]
    described = "; ".join(
        f"{formats.shorten(line.name, 40)}: {', '.join(f'{p[1]:.2f}' for p in line.points)}"
        for line in series
    )
    return svg.both(
        lambda width: lines(
            series,
            name="rounds",
            title="Mean of each candidate by round",
            description=described,
            axis="round",
            width=width,
            ticks=[(float(number), str(number)) for number in rounds],
        )
    )


def _confirmation(tuned: Tuned) -> Markup:
    """Difference to random on fresh seeds, with its interval."""
    rows = [
        Dots(
            name=candidate,
            style="s1" if candidate == tuned.chosen else "other",
            values=(),
            mean=between.mean,
            low=between.low,
            high=between.high,
            note=formats.signed(between.mean),
        )
        for candidate, between in tuned.confirmed[:_CONFIRMED]
    ]
    described = "; ".join(f"{formats.shorten(row.name, 40)}: {row.note}" for row in rows)
    return svg.both(
        lambda width: dots(
            rows,
            name="confirmation",
            title="Difference to random on fresh seeds",
            description=described,
            axis="difference to random, points",
            width=width,
            guides=(Guide(0.0, "as good as random"),),
        )
    )
