"""What was decided about a row, and how near the decision was."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dataprune_ray import schema
from dataprune_ray.cutoff import HASH_MAX, Band, Block, Screen, pooled
from dataprune_ray.cutoff.screen import screened_by
from dataprune_ray.errors import BadDataError
from dataprune_ray.explaining.locating import Located, row_at
from dataprune_ray.explaining.ranks import Counts
from dataprune_ray.explaining.records import Decision
from dataprune_ray.explaining.rescues import part_in_rescue
from dataprune_ray.explaining.runs import FinishedRun
from dataprune_ray.io.filesystems import redact
from dataprune_ray.strategies.base import superlative, without


def decision_of(run: FinishedRun, row: Located, counts: Counts) -> Decision:
    """The decision about a row without error.

    Raises:
        BadDataError: the decisions do not belong to the score table.
    """
    path = run.decision_file(row.fragment)
    stored = row_at(path, row.decided)
    if (stored[schema.FILE], stored[schema.ROW]) != (row.file, row.row):
        raise BadDataError(
            f"{redact(path)}: row {row.decided} is {stored[schema.FILE]}:{stored[schema.ROW]}, the "
            f"score table has {row.file}:{row.row} there; run the job again with --overwrite"
        )
    first = int(screened_by(run.rule.screens, row.one())[0])
    if first:
        return _screened(run, row, counts, run.rule.screens[first - 1], stored)
    score = float(row.one().need_scores()[0])
    place = int(row.one().need_hashes()[0])
    bands, noise = _of_row(run.rule.bands, run, row), _of_row(run.rule.noise, run, row)
    hash_max = None
    is_noise = any(_holds(band, score) and place <= band.hash_max for band in noise)
    drawn = run.rule.draw is not None and not is_noise  # then the bands bound keys, not scores
    cutoff = None
    if is_noise:
        cutoff = _nearest(score, [bound for band in noise for bound in _bounds(band)])
    elif not drawn:
        holding = [b for b in bands if _holds(b, score) and b.hash_max < HASH_MAX]
        hash_max = max((band.hash_max for band in holding), default=None)
        by_hash = any(band.score_low < band.score_high for band in holding)
        cutoff = None if by_hash else _nearest(score, _kept_bounds(run, row, bands))
    rank, rows, ranked = _draw_rank(run, row) if drawn else _rank(run, row, counts)
    return Decision(
        kept=bool(stored[schema.KEPT]),
        reason=stored[schema.REASON],
        weight=float(stored[schema.WEIGHT]),
        strategy=run.strategy.name,
        rule=run.rule.explanation,
        metric=run.rule.metric,
        cutoff=cutoff,
        distance=None if cutoff is None else score - cutoff,
        rank=rank,
        rows=rows,
        ranked=ranked,
        hash_share=place / HASH_MAX,
        hash_limit=None if hash_max is None else hash_max / HASH_MAX,
        rescue=part_in_rescue(run, row, kept=bool(stored[schema.KEPT])),
    )


def _screened(
    run: FinishedRun, row: Located, counts: Counts, screen: Screen, stored: dict[str, Any]
) -> Decision:
    """The decision about a row that a screen dropped, by the screen's own column."""
    score = row.scores[screen.column]
    cutoff = _nearest(score, [bound for band in screen.bands for bound in _bounds(band)])
    place = int(row.one().need_hashes()[0])
    ties = [b.hash_max for b in screen.bands if _holds(b, score) and b.hash_max < HASH_MAX]
    rank, rows = counts.place(screen.column, screen.end)
    return Decision(
        kept=bool(stored[schema.KEPT]),
        reason=stored[schema.REASON],
        weight=float(stored[schema.WEIGHT]),
        strategy=run.strategy.name,
        rule=run.rule.explanation,
        metric=screen.column,
        cutoff=cutoff,
        distance=None if cutoff is None else score - cutoff,
        rank=rank,
        rows=rows,
        ranked=f"by {screen.column}, {superlative(screen.end)} first",
        hash_share=place / HASH_MAX,
        hash_limit=max(ties) / HASH_MAX if ties else None,
        screened=True,
    )


def _of_row(bands: Sequence[Band], run: FinishedRun, row: Located) -> list[Band]:
    """The bands of the row's group."""
    codes = row.one().groups
    code = None if codes is None else int(codes[0])
    alone = len(run.rule.groups) == 1
    return [band for band in bands if alone or band.group in (None, code)]


def _holds(band: Band, score: float) -> bool:
    return band.score_low <= score <= band.score_high


def _bounds(band: Band) -> list[float]:
    """The finite bounds of a band."""
    return [bound for bound in (band.score_low, band.score_high) if math.isfinite(bound)]


def _kept_bounds(run: FinishedRun, row: Located, bands: list[Band]) -> list[float]:
    """The row's cutoff, and the bounds of bands that are closed at both ends."""
    cutoff = run.rule.cutoffs.get(row.group)
    closed = [_bounds(band) for band in bands if band.score_low < band.score_high]
    bounds = [bound for pair in closed if len(pair) > 1 for bound in pair]
    return bounds if cutoff is None else [cutoff, *bounds]


def _nearest(score: float, bounds: list[float]) -> float | None:
    return min(bounds, key=lambda bound: abs(score - bound), default=None)


def _rank(run: FinishedRun, row: Located, counts: Counts) -> tuple[int, int, str]:
    """Rank, rows that are ranked, and in words which and by what."""
    in_class = run.strategy.needs_labels
    kind = "class" if run.group_column == schema.LABEL else "group"
    where = f" within {kind} {row.group}" if in_class else ""
    rows, end = counts.rows(in_class=in_class), run.rule.end
    if end is None:
        return counts.hash_rank(in_class=in_class), rows, f"by ascending hash{where}"
    first = "highest" if end == "high" else "lowest"
    by = f"by {run.rule.metric}, {first} first, ties by hash{where}"
    return counts.score_rank(end, in_class=in_class), rows, by


def _draw_rank(run: FinishedRun, row: Located) -> tuple[int, int, str]:
    """The same for a weighted draw, by its keys, among the rows that are not cut as noise."""
    draw = run.rule.draw
    if draw is None:
        raise ValueError("the rule draws nothing")
    key, place = draw.keys(row.one())[0], row.one().need_hashes()[0]

    def ahead(block: Block) -> npt.NDArray[np.int64]:
        keys, hashes = draw.keys(block), block.need_hashes()
        before = (keys > key) | ((keys == key) & (hashes < place))
        return np.array([np.count_nonzero(before), block.rows], np.int64)

    rest = without(pooled(run.ranked), run.rule.noise)
    found = rest.reduce(ahead, np.add, frozenset({"scores", "hashes"}))
    return 1 + int(found[0]), int(found[1]), "by the key of the weighted draw, highest first"
