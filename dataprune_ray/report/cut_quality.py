"""What the page says of a cut's quality: labels, outliers, coverage, leakage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from dataprune_ray.quality import Leakage, Quality
from dataprune_ray.report import charts, formats, svg
from dataprune_ray.report.charts import Bar

MAX_CLUSTERS = 24
_EXAMPLES = 60_000


@dataclass(frozen=True)
class Judged:
    """The section on the quality of the cut."""

    rows: int
    facts: tuple[tuple[str, str, str], ...]  # what, number, what it means
    lost: str | None  # said where classes or clusters are gone
    chart: Markup | None
    undrawn: str | None
    leakage: str | None
    leaks: bool
    examples: tuple[tuple[str, str], ...]
    examples_left_out: int


def judged(quality: Quality | None) -> Judged | None:
    """The quality of the cut in words and pictures; None where it was not asked for."""
    if quality is None:
        return None
    drawn, rest = quality.clusters[:MAX_CLUSTERS], quality.clusters[MAX_CLUSTERS:]
    leakage = quality.leakage
    examples, left_out = formats.fit(
        [
            (formats.clip(train, 300), formats.clip(test, 300))
            for train, test in (leakage.examples if leakage else ())
        ],
        _EXAMPLES,
        lambda pair: formats.weight(*pair) + 5 * sum(text.count("/") for text in pair),
    )
    return Judged(
        rows=quality.rows,
        facts=tuple(_facts(quality)),
        lost=_lost(quality),
        chart=_clusters(drawn) if drawn else None,
        undrawn=_undrawn(rest) if rest else None,
        leakage=_leakage(leakage) if leakage else None,
        leaks=leakage is not None and bool(leakage.exact or leakage.near),
        examples=examples,
        examples_left_out=left_out,
    )


def _facts(quality: Quality) -> list[tuple[str, str, str]]:
    kept = formats.percent(formats.ratio(quality.suspected_kept, quality.suspected))
    share = formats.percent(formats.ratio(quality.suspected, quality.rows))
    facts = [
        (
            "Estimated wrong labels",
            formats.percent(quality.noise_share),
            "share of rows whose label the models' confident predictions contradict",
        ),
        (
            "Neighbours that disagree",
            formats.percent(quality.neighbour_disagreement),
            "mean share of a row's nearest neighbours with another label",
        ),
        ("Suspected rows", formats.count(quality.suspected), f"{share} of the rows judged"),
        (
            "Suspected and kept",
            formats.count(quality.suspected_kept),
            f"{kept} of the suspected rows are in the cut" if quality.suspected else "none to keep",
        ),
        (
            "Dropped score outliers",
            formats.count(quality.dropped_score_outliers),
            "dropped rows beyond 1.5 interquartile ranges of all scores",
        ),
        (
            "Dropped density outliers",
            formats.count(quality.dropped_density_outliers),
            "dropped rows unusually far from their neighbours",
        ),
        (
            "Rescued",
            formats.count(quality.rescued),
            "rare rows that were put back within the budget",
        ),
    ]
    return [fact for fact in facts if fact[1] != formats.NONE]


def _lost(quality: Quality) -> str | None:
    gone = [
        formats.plural(number, one, many)
        for number, one, many in (
            (quality.classes_lost, "class", "classes"),
            (quality.empty_clusters, "cluster of features", "clusters of features"),
        )
        if number
    ]
    return f"The cut keeps nothing of {' and of '.join(gone)}." if gone else None


def _clusters(drawn: Sequence[tuple[int, int]]) -> Markup:
    rows = [
        Bar(
            f"cluster {index + 1}",
            (("kept", kept), ("dropped", rows - kept)),
            (
                f"{formats.count(kept)} of {formats.count(rows)}",
                formats.percent(formats.ratio(kept, rows)),
            ),
        )
        for index, (rows, kept) in enumerate(drawn)
    ]
    described = "; ".join(f"{bar.name}: {bar.notes[0]} rows kept" for bar in rows)
    return svg.both(
        lambda width: charts.bars(
            rows,
            name="clusters",
            title="Kept and dropped rows of each cluster of the features",
            description=described,
            width=width,
        )
    )


def _undrawn(rest: Sequence[tuple[int, int]]) -> str:
    shares = [kept / rows for rows, kept in rest if rows]
    text = f"{formats.plural(len(rest), 'smaller cluster')} not drawn"
    if not shares:
        return f"{text}."
    return f"{text}; they keep {formats.percent(min(shares))} to {formats.percent(max(shares))}."


def _leakage(leakage: Leakage) -> str:
    tested = formats.plural(leakage.test_rows, "test row")
    if not (leakage.exact or leakage.near):
        return (
            f"None of {tested} is in the corpus, neither the same nor nearly (cosine similarity "
            f"from {leakage.similarity:g})."
        )
    verb = "is" if leakage.exact == 1 else "are"
    return (
        f"Of {tested}, {formats.count(leakage.exact)} {verb} in the corpus as they are and "
        f"{formats.count(leakage.near)} nearly (cosine similarity from {leakage.similarity:g}). "
        "Scores on such rows flatter every arm."
    )
