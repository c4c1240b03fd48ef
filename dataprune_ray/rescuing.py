"""Rescue: rare but consistent rows put back, and the cut made again for what is left of the budget.

Exactly as many rows are kept as the plain cut keeps. Not for strategies without a budget.
"""

from __future__ import annotations

from dataclasses import replace

from dataprune_ray import schema
from dataprune_ray.config import PruneConfig
from dataprune_ray.cutoff import KeepRule, Population
from dataprune_ray.cutoff.population import UNGROUPED
from dataprune_ray.findings import Marks, QualityTable
from dataprune_ray.quality.rescue import Rescue
from dataprune_ray.recutting import Chosen, Sources, cut_with_rescue, sources_of
from dataprune_ray.selecting import ScoreTable
from dataprune_ray.strategies import ScoreInfo, get_strategy


def rescue_rows(
    marks: Marks, plain: KeepRule, config: PruneConfig, info: ScoreInfo
) -> tuple[KeepRule, Rescue | None]:
    """The rule for the rows that are not rescued, and which are; None where none is eligible.

    Raises:
        ConfigError: the strategy cannot hold the count.
    """
    fence, table = marks.distance, marks.table
    if fence is None:
        return plain, None
    strategy = get_strategy(config.select.strategy)
    share = config.quality.rescue
    return cut_with_rescue(
        plain, fence.high, share, _sources(table, plain.groups), strategy, config.select, info
    )


def parted(table: QualityTable, rescue: Rescue) -> tuple[Population, Population]:
    """The rows that are not rescued and those that are, both with their deciding scores."""
    groups = rescue.far.groups
    sources = _sources(table, groups)
    inside = replace(
        sources.scored, where=Chosen(rescue, groups, table.seed, sources.scored.group_column)
    )
    return sources.rest(rescue), inside


def _sources(table: QualityTable, groups: tuple[str, ...]) -> Sources[ScoreTable]:
    column = None if groups == UNGROUPED else table.group_column
    return sources_of(ScoreTable(table.paths, schema.SCORE, column, groups, table.seed))
