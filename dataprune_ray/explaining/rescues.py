"""A run's cut with its rescue, at any keep fraction, and the part that a row has in the rescue."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pyarrow.parquet as pq

from dataprune_ray import schema
from dataprune_ray.cutoff import REASONS, Block, KeepRule
from dataprune_ray.errors import ConfigError
from dataprune_ray.explaining.locating import Located
from dataprune_ray.explaining.runs import FinishedRun
from dataprune_ray.io.filesystems import join, list_names, open_input, redact
from dataprune_ray.io.judgements import EVIDENCE, Judged, evidence_of
from dataprune_ray.io.scores import FilePopulation
from dataprune_ray.quality.outliers import fences
from dataprune_ray.quality.rescue import Evidence, Rescue
from dataprune_ray.recutting import cut_with_rescue, sources_of
from dataprune_ray.strategies import compile_rule


@dataclass(frozen=True)
class RescuedCut:
    """A keep rule, and what is rescued beside the rows that it keeps."""

    rule: KeepRule
    rescue: Rescue | None = None

    def keeps(self, block: Block, evidence: Evidence | None) -> bool:
        """Whether a row is kept; ``evidence`` is needed where there is a rescue."""
        kept = bool(self.rule.apply(block)[0])
        if self.rescue is None or evidence is None:
            return kept
        return kept or bool(self.rescue.apply(block, evidence)[0])

    def decides_like(self, other: RescuedCut) -> bool:
        """Whether both are the same but for their words."""
        pairs = [(self.rule, other.rule)]
        rescues = [cut.rescue for cut in (self, other) if cut.rescue is not None]
        if len(rescues) == 1:
            return False
        if rescues:
            mine, theirs = rescues
            if (mine.eligible.fence, mine.rows) != (theirs.eligible.fence, theirs.rows):
                return False
            pairs += [(mine.eligible.plain, theirs.eligible.plain), (mine.far, theirs.far)]
        return all(replace(a, explanation="") == replace(b, explanation="") for a, b in pairs)


def fence_of(run: FinishedRun) -> float | None:
    """The neighbour distance beyond which a row is rare; None where nothing is rescued.

    Raises:
        ConfigError: the quality files are gone.
    """
    if not run.config.quality.rescue:
        return None
    names = {f"{fragment.name}.parquet" for fragment in run.fragments}
    if names - set(list_names(join(run.root, "quality"), ".parquet")):
        raise ConfigError("rescue", redact(run.root), "the run's quality files are gone")
    if run.rescue is not None:
        return run.rescue.eligible.fence
    found = fences(replace(_judged(run), metric=schema.DISTANCE, where=Judged()))
    return None if found is None else found.high


def _judged(run: FinishedRun) -> FilePopulation:
    """The rows of the quality files, as the strategy sees them."""
    paths = [run.quality_file(fragment.name) for fragment in run.fragments]
    return replace(run.population, paths=paths, metric=schema.SCORE)


def cut_at(run: FinishedRun, keep: float, fence: float | None) -> RescuedCut:
    """The run's cut at another keep fraction.

    Raises:
        ConfigError: the strategy refuses the fraction.
    """
    config = run.select.model_copy(update={"keep": keep})
    plain = compile_rule(run.strategy, run.population, config, run.info).rule
    if fence is None:
        return RescuedCut(plain)
    share = run.config.quality.rescue
    sources = sources_of(_judged(run))
    found = cut_with_rescue(plain, fence, share, sources, run.strategy, config, run.info)
    return RescuedCut(*found)


def evidence_at(run: FinishedRun, row: Located) -> Evidence:
    """What the quality pass found of a row."""
    with open_input(run.quality_file(row.fragment)) as file:
        table = pq.read_table(file, columns=list(EVIDENCE), use_threads=False)
    return evidence_of(table.slice(row.position, 1))


def part_in_rescue(run: FinishedRun, row: Located, *, kept: bool) -> str:
    """What the rescue did with a row, in words; '' where it changed nothing for it.

    Args:
        run: the run.
        row: without error.
        kept: what was decided about it.
    """
    rescue = run.rescue
    if rescue is None:
        return ""
    block, evidence = row.one(), evidence_at(run, row)
    plain = rescue.eligible.plain
    before, why = bool(plain.apply(block)[0]), REASONS[plain.reason(block)[0]]
    if rescue.apply(block, evidence)[0]:
        return (
            f"the strategy alone does not keep it ({why}); its neighbour distance "
            f"{evidence.distance[0]:.6g} lies beyond {rescue.eligible.fence:.6g}, and neighbours "
            f"and models agree with its label, so it is one of {rescue.rows:,} rows put back"
        )
    if before and not kept:
        return (
            f"displaced: the strategy alone keeps it ({why}), but {rescue.rows:,} rescued rows "
            "take places of the budget"
        )
    if kept and not before:
        return (
            f"the strategy alone does not keep it ({why}); the cut that was made again for what "
            f"{rescue.rows:,} rescued rows leave does"
        )
    if rescue.eligible.apply(block, evidence)[0]:
        return (
            f"it could be rescued, but {rescue.rows:,} rows that lie farther from their neighbours "
            "go first"
        )
    return ""
