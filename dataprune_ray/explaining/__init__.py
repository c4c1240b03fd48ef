"""Why rows of a finished run were kept or dropped, from its output directory; without Ray.

Use it to understand single rows. To look at all of them, read ``decisions/`` and ``scores/``:
both are plain Parquet. Score files are streamed, so memory does not grow with the corpus; ranks
and percentiles are exact.

========== ====================================================================
module     what it holds
========== ====================================================================
records    what is said of a row, as text and as JSON
runs       a finished run, opened
locating   rows by ``FILE:ROW``, ``FILE:KEY`` or key
ranks      percentiles and ranks, by one pass over the score files
deciding   the decision in numbers: cutoff, distance, rank
flips      the keep fraction at which the decision turns
rescues    the cut with its rescue, and what that did with a row
neighbours the kept rows whose penultimate features are nearest
========== ====================================================================
"""

from __future__ import annotations

from collections.abc import Sequence

from dataprune_ray import schema
from dataprune_ray.explaining.deciding import decision_of
from dataprune_ray.explaining.flips import Recompiler, flip_of
from dataprune_ray.explaining.locating import Located, locate, row_at
from dataprune_ray.explaining.neighbours import nearest_kept
from dataprune_ray.explaining.ranks import Counts, count
from dataprune_ray.explaining.records import (
    Decision,
    Explanation,
    Flip,
    Nearest,
    Neighbour,
    ScoreRank,
)
from dataprune_ray.explaining.runs import FinishedRun, open_run
from dataprune_ray.io.filesystems import exists

__all__ = [
    "Decision",
    "Explanation",
    "Flip",
    "Nearest",
    "Neighbour",
    "ScoreRank",
    "explain",
]

#: Columns of a quality table that are not its own.
_SHARED = (schema.RESERVED - schema.TEMPORARY.keys()) | {schema.SCORE}


def explain(
    output: str, rows: Sequence[str], *, scores: str | None = None, neighbours: int = 5
) -> list[Explanation]:
    """Why each of ``rows`` was kept or dropped, in the order given.

    Args:
        output: directory or URI of a finished run.
        rows: ``FILE:ROW`` (position from 0), ``FILE:KEY``, or the key alone where it is unique.
        scores: the run's score table, where it lies elsewhere now.
        neighbours: nearest kept rows that are named.

    Raises:
        ConfigError: the run is not finished, its score table is gone, or a row is not in it.
        BadDataError: score table and decisions do not belong together.
    """
    run = open_run(output, scores)
    found = locate(run, rows)
    scored = [row for row in found if row.error is None]
    counts = dict(zip(scored, count(run, scored), strict=True))
    nearest = dict(zip(scored, nearest_kept(run, scored, neighbours), strict=True))
    recompiler = Recompiler(run)
    return [_explanation(run, row, counts.get(row), nearest.get(row), recompiler) for row in found]


def _explanation(
    run: FinishedRun,
    row: Located,
    counts: Counts | None,
    nearest: Nearest | None,
    recompiler: Recompiler,
) -> Explanation:
    ranks: tuple[ScoreRank, ...] = ()
    decision = flip = None
    if counts is not None:
        ranks = tuple(counts.of(name, row.scores[name]) for name in run.metrics)
        decision = decision_of(run, row, counts)
        flip = flip_of(run, row, decision, counts, recompiler)
    return Explanation(
        asked=row.asked,
        file=row.file,
        row=row.row,
        key=row.key,
        label=row.label,
        class_name=run.class_name(row.label),
        error=row.error,
        scores=ranks,
        decision=decision,
        flip=flip,
        quality=_quality(run, row),
        nearest=nearest,
    )


def _quality(run: FinishedRun, row: Located) -> dict[str, object]:
    """What the quality table says of the row, where the run has one."""
    path = run.quality_file(row.fragment)
    if not exists(path):
        return {}
    values = row_at(path, row.position)
    known = _SHARED | set(run.metrics)
    return {name: value for name, value in values.items() if name not in known}
