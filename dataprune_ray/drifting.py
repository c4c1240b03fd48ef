"""What a run says of the baseline that it reuses: rows taken over, unknown labels, drift."""

from __future__ import annotations

from dataclasses import replace

from dataprune_ray.config import PruneConfig
from dataprune_ray.cutoff.population import UNGROUPED
from dataprune_ray.deciding import Decided
from dataprune_ray.drift import LARGE, Drift, measure
from dataprune_ray.incremental import Reuse, reused_fragments
from dataprune_ray.io.corpus import Corpus
from dataprune_ray.journal import Journal
from dataprune_ray.plans import FragmentCount
from dataprune_ray.selecting import ScoreTable
from dataprune_ray.understanding import Understanding


def rows_of_baseline(corpus: Corpus, counts: list[FragmentCount], reuse: Reuse | None) -> int:
    """Rows whose scores are a baseline's."""
    if reuse is None:
        return 0
    indices = reused_fragments(corpus, reuse)
    return sum(count.rows for count in counts if count.index in indices)


def drift_since(
    config: PruneConfig,
    table: ScoreTable,
    understanding: Understanding,
    decided: Decided,
    reuse: Reuse | None,
    journal: Journal,
) -> Drift | None:
    """How the scores and classes moved since the baseline, with a warning where that is much."""
    if reuse is None:
        return None
    label = understanding.label
    classes = label.classes if label.column and label.task == "classification" else ()
    unknown = sorted(set(decided.bad_by_class) - set(classes) - {""}) if classes else []
    if unknown:
        rows = sum(decided.bad_by_class[name] for name in unknown)
        journal.warn(
            f"{rows:,} rows have labels that the baseline's model does not know and are "
            f"quarantined ({', '.join(unknown[:5])}); run without --baseline to train anew"
        )
    now = replace(
        table, group_column="label" if classes else None, groups=tuple(classes) or UNGROUPED
    )
    before = replace(now, paths=reuse.baseline.score_files)
    drift = measure(table.metric, before, now, config.run.max_drift)
    if drift is not None and not drift.exceeded and drift.worst > LARGE:
        journal.warn(f"the corpus drifted from its baseline: PSI {drift.worst:.3g}")
    if drift is not None and drift.exceeded:
        journal.warn(f"drift: PSI {drift.worst:.3g} is beyond --max-drift {drift.limit:g}")
    return drift
