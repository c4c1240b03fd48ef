"""The keep fraction at which a row's decision turns, found by compiling the strategy anew.

Where a strategy keeps a share of a ranking, the row's exact rank gives the fraction, and compiling
at both sides of it proves it. Any other strategy, and a cut with a rescue, is searched by
bisection: what is rescued is then found anew at each fraction.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cached_property

from dataprune_ray.errors import ConfigError
from dataprune_ray.explaining.locating import Located
from dataprune_ray.explaining.ranks import Counts
from dataprune_ray.explaining.records import Decision, Flip
from dataprune_ray.explaining.rescues import RescuedCut, cut_at, evidence_at, fence_of
from dataprune_ray.explaining.runs import FinishedRun
from dataprune_ray.quality.rescue import Evidence

#: Fractions that are tried in tenths where neither end of the range turns the decision.
_TENTHS = range(1, 10)


class Recompiler:
    """The run's strategy at other keep fractions; each is compiled once for all rows.

    Fractions are whole numbers of ``1 / steps``, a power of ten so fine that a step moves no more
    than one row, so that what is printed is what was tried.
    """

    def __init__(self, run: FinishedRun) -> None:
        self.run = run
        scored = int(run.manifest["rows"]["in"]) - int(run.manifest["rows"]["quarantined"])
        self.steps = 10 ** len(str(2 * max(scored, 1)))
        self._cuts: dict[float, RescuedCut | None] = {}
        self._evidence: dict[Located, Evidence] = {}

    @cached_property
    def fence(self) -> float | None:
        """See `fence_of`."""
        return fence_of(self.run)

    def cut(self, keep: float) -> RescuedCut | None:
        """The cut at a fraction; None where the strategy refuses it."""
        fence = self.fence
        if keep not in self._cuts:
            try:
                self._cuts[keep] = cut_at(self.run, keep, fence)
            except ConfigError:
                self._cuts[keep] = None
        return self._cuts[keep]

    def keeps(self, cut: RescuedCut, row: Located) -> bool:
        """Whether a cut keeps a row."""
        if cut.rescue is not None and row not in self._evidence:
            self._evidence[row] = evidence_at(self.run, row)
        return cut.keeps(row.one(), self._evidence.get(row))

    def keep(self, step: int) -> float:
        """The fraction of a step."""
        return float(Fraction(step, self.steps))

    def kept(self, step: int, row: Located) -> bool | None:
        """Whether the row is kept at a step; None where the strategy refuses the fraction."""
        cut = self.cut(self.keep(step))
        return None if cut is None else self.keeps(cut, row)


def flip_of(
    run: FinishedRun, row: Located, decision: Decision, counts: Counts, recompiler: Recompiler
) -> Flip:
    """The fraction nearest to the run's that decides the row the other way."""
    if decision.screened:
        return Flip(None, None, f"none: {decision.reason}, before keep is looked at")
    if not run.strategy.uses_keep:
        advice = f"{run.strategy.name} does not look at it"
        return Flip(None, None, f"none: {decision.reason}, whatever keep is: {advice}")
    return _turning(run, row, decision, counts, recompiler)


def _turning(
    run: FinishedRun, row: Located, decision: Decision, counts: Counts, recompiler: Recompiler
) -> Flip:
    """The same where the fraction matters."""
    try:
        now = recompiler.cut(run.select.keep)
    except ConfigError:
        return Flip(None, None, "not known: the quality files that a rescue looks at are gone")
    if now is None or not now.decides_like(RescuedCut(run.rule, run.rescue)):
        advice = "not known: the strategy, compiled again, gives another rule than the run's"
        return Flip(None, None, advice)
    if recompiler.keeps(now, row) != decision.kept:
        return Flip(None, None, f"not known: the rule alone did not decide ({decision.reason})")
    found = _by_rank(run, row, decision.kept, counts, recompiler)
    if found is None:
        found = _by_search(run, row, decision.kept, recompiler)
    if found is None:
        return Flip(None, None, f"none: {decision.reason}, whatever keep is tried")
    turned, beside = (recompiler.keep(step) for step in found)
    way = "on" if turned > beside else "down"
    now_is, then_is = ("kept", "dropped") if decision.kept else ("dropped", "kept")
    text = f"{then_is} from --keep {turned!r} {way}, still {now_is} at {beside!r}"
    return Flip(turned, beside, text)


def _by_rank(
    run: FinishedRun, row: Located, kept: bool, counts: Counts, recompiler: Recompiler
) -> tuple[int, int] | None:
    """The step that turns the decision and the one beside it, from the row's exact rank.

    A quota of ``floor(keep * n + 1/2)`` reaches rank r at ``keep = (r - 1/2) / n``.
    """
    in_class, end = run.strategy.needs_labels, run.rule.end
    ranks = [counts.hash_rank(in_class=in_class)]
    if end is not None:
        ranks = [counts.score_rank(end, in_class=in_class, ties=ties) for ties in (True, False)]
    for rank in dict.fromkeys(ranks):
        share = Fraction(2 * rank - 1, 2 * counts.rows(in_class=in_class))
        if run.rule.screens:  # keep counts all rows, the strategy ranks those that are left
            share = Fraction(2 * math.ceil(share * counts.left) - 1, 2 * counts.scored)
        step = math.ceil(share * recompiler.steps)
        if recompiler.kept(step, row) is True and recompiler.kept(step - 1, row) is False:
            return (step - 1, step) if kept else (step, step - 1)
    return None


def _by_search(
    run: FinishedRun, row: Located, kept: bool, recompiler: Recompiler
) -> tuple[int, int] | None:
    """The same by bisection: between the run's fraction and the end where it should turn first."""
    place = decimal_step(run.select.keep, recompiler.steps)
    here = math.ceil(place) if kept else math.floor(place)
    ends = [0, recompiler.steps] if kept else [recompiler.steps, 0]
    tenths = sorted((recompiler.steps * n // 10 for n in _TENTHS), key=lambda s: abs(s - here))
    for end in [*ends, *tenths]:
        found = _between(here, end, row, kept, recompiler)
        if found is not None:
            return found
    return None


def _between(
    here: int, end: int, row: Located, kept: bool, recompiler: Recompiler
) -> tuple[int, int] | None:
    """Neighbouring steps from ``here``, decided as in the run, towards ``end``: (turned, not).

    Fractions that the strategy refuses bound the search. None where nothing turns.
    """
    if recompiler.kept(here, row) is not kept or recompiler.kept(end, row) is kept:
        return None
    same, other = here, end
    while abs(other - same) > 1:
        middle = (same + other) // 2
        if recompiler.kept(middle, row) is kept:
            same = middle
        else:
            other = middle
    return (other, same) if recompiler.kept(other, row) is (not kept) else None


def decimal_step(keep: float, steps: int) -> Fraction:
    """A fraction, as the decimal that a person wrote, in steps of ``1 / steps``."""
    return Fraction(repr(float(keep))) * steps
