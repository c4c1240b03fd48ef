"""What is said of a row: frozen records, their text and their JSON."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class ScoreRank:
    """A row's score of one metric, and its place among the others.

    A percentile is the share, 0 to 100, of scored rows with a lower score, those with an equal
    one (the row itself among them) counted half. ``class_percentile`` is that within the row's
    class; None for regression and unlabelled corpora.
    """

    metric: str
    score: float
    percentile: float
    class_percentile: float | None


@dataclass(frozen=True)
class Decision:
    """What the run decided about a row, and by which numbers.

    Attributes:
        kept: whether the row is in ``data/``.
        reason: as in ``decisions/``.
        weight: as in ``decisions/``.
        strategy: name of the strategy.
        rule: the run's keep rule in words.
        metric: score that the rule looks at; '' where it looks at none.
        cutoff: bound of the kept scores that is nearest to the row's; None where hashes decide.
        distance: the row's score minus ``cutoff``.
        rank: place from the kept end, 1 first: by score, ties by hash; by hash alone; or by the
            keys of a weighted draw.
        rows: rows that are ranked.
        ranked: what is ranked by what, in words.
        hash_share: the row's seeded hash as a share of all hashes, 0 to 1.
        hash_limit: share of hashes that is kept around the row's score; None where all are.
        screened: the row was dropped before the strategy looked at the rest, by ``metric``.
        rescue: what the rescue did with the row, in words; '' where it changed nothing for it.
    """

    kept: bool
    reason: str
    weight: float
    strategy: str
    rule: str
    metric: str
    cutoff: float | None
    distance: float | None
    rank: int
    rows: int
    ranked: str
    hash_share: float
    hash_limit: float | None
    screened: bool = False
    rescue: str = ""


@dataclass(frozen=True)
class Flip:
    """The keep fraction nearest to the run's at which the decision turns.

    Both fractions were tried by compiling the strategy: at ``keep`` the row is decided the other
    way, at ``beside``, one step of the last digit nearer to the run's fraction, as in the run.
    Both are None where no fraction turns it; ``text`` says why.
    """

    keep: float | None
    beside: float | None
    text: str


@dataclass(frozen=True)
class Neighbour:
    """A kept row and its cosine distance, 0 to 2, to the explained one."""

    distance: float
    file: str
    row: int
    key: str | None
    label: str | None
    score: float


@dataclass(frozen=True)
class Nearest:
    """The nearest kept rows, nearest first, by penultimate features of ``model``.

    ``searched`` of the ``kept`` rows were looked at, chosen by hash where these differ. ``note``
    says why there are none, '' where there are.
    """

    rows: tuple[Neighbour, ...]
    searched: int
    kept: int
    model: str
    note: str = ""


@dataclass(frozen=True)
class Explanation:
    """Everything that a run knows of one row.

    A row with an ``error`` was quarantined: it has no scores, decision, flip or neighbours.
    ``row`` is None where the whole file could not be read. ``quality`` holds the row's values of
    the run's quality table.
    """

    asked: str
    file: str
    row: int | None
    key: str | None
    label: str | None
    class_name: str | None
    error: str | None
    scores: tuple[ScoreRank, ...]
    decision: Decision | None
    flip: Flip | None
    quality: dict[str, Any]
    nearest: Nearest | None

    def to_json(self) -> dict[str, Any]:
        """Everything, JSON-ready; numbers that JSON lacks are null."""
        content: dict[str, Any] = _strict(asdict(self))
        return content

    def text(self) -> str:
        """What the prune job prints."""
        place = self.file if self.row is None else f"{self.file}:{self.row}"
        names = [place] if self.key is None else [place, f"key {self.key}"]
        names.append(_labelled(self.label, self.class_name))
        lines = ["  ".join(names)]
        if self.error is not None:
            lines.append(_line("quarantined", self.error))
        if self.decision is not None:
            lines += _decided(self.decision)
        if self.flip is not None:
            lines.append(_line("flips", self.flip.text))
        lines += _scored(self.scores, self.label)
        if self.quality:
            known = {name: value for name, value in self.quality.items() if value is not None}
            shown = (f"{name} {_shown(value)}" for name, value in known.items())
            lines.append(_line("quality", ", ".join(shown)))
        if self.nearest is not None:
            lines += _near(self.nearest, self.decision)
        return "\n".join(lines)


def _decided(decision: Decision) -> list[str]:
    weight = "" if decision.weight == 1 else f"; weight {decision.weight:.6g}"
    lines = [
        _line("decision", decision.reason + weight),
        _line("rule", f"{decision.strategy}: {decision.rule}"),
    ]
    if decision.rescue:
        lines.append(_line("rescue", decision.rescue))
    if decision.cutoff is not None and decision.distance is not None:
        score = f"{decision.metric} {decision.cutoff + decision.distance:.6g}"
        where = "above" if decision.distance > 0 else "below"
        beyond = f"{abs(decision.distance):.6g} {where}" if decision.distance else "exactly at"
        lines.append(_line("cutoff", f"{score} is {beyond} {decision.cutoff:.6g}"))
    if decision.hash_limit is not None:
        lines.append(
            _line(
                "hash",
                f"the lowest {100 * decision.hash_limit:.4g} % of hashes are kept at its score; "
                f"its own lies at {100 * decision.hash_share:.4g} %",
            )
        )
    lines.append(_line("rank", f"{decision.rank:,} of {decision.rows:,} {decision.ranked}"))
    return lines


def _scored(scores: tuple[ScoreRank, ...], label: str | None) -> list[str]:
    lines = []
    width = max((len(score.metric) for score in scores), default=0)
    for position, score in enumerate(scores):
        text = f"{score.metric:<{width}}  {score.score:<12.6g} percentile {score.percentile:.4g}"
        if score.class_percentile is not None:
            text += f", in class {label} {score.class_percentile:.4g}"
        lines.append(_line("scores" if not position else "", text))
    return lines


def _near(nearest: Nearest, decision: Decision | None) -> list[str]:
    if nearest.note:
        return [_line("nearest", f"not known: {nearest.note}")]
    among = f"the {nearest.kept:,} kept rows"
    if nearest.searched < nearest.kept:
        among = f"{nearest.searched:,} of {among}, sampled by hash"
    lines = [_line("nearest", f"among {among}, by cosine distance of features of {nearest.model}")]
    metric = f"{decision.metric or 'score'} " if decision is not None else ""
    for row in nearest.rows:
        key = "" if row.key is None else f"  key {row.key}"
        label = _labelled(row.label, None)
        place = f"{row.file}:{row.row}{key}"
        lines.append(_line("", f"{row.distance:.4f}  {place}  {label}  {metric}{row.score:.6g}"))
    return lines


def _labelled(label: str | None, name: str | None) -> str:
    if label is None:
        return "no label"
    return f"label {label}" if name in (None, label) else f"label {label} ({name})"


def _line(title: str, text: str) -> str:
    return f"  {title:<12}{text}"


def _shown(value: object) -> str:
    if isinstance(value, list):
        return "[" + " ".join(map(_shown, value)) + "]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _strict(value: Any) -> Any:
    """The value with numbers that strict JSON lacks as None."""
    if isinstance(value, dict):
        return {str(name): _strict(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
