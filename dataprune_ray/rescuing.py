"""Rescue: rare but consistent rows put back, and the cut made again for what is left of the budget.

Exactly as many rows are kept as the plain cut keeps, in every class where the strategy balances
classes. Not for strategies without a budget.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dataprune_ray import schema
from dataprune_ray.config import PruneConfig, SelectConfig
from dataprune_ray.cutoff import (
    Block,
    Cut,
    End,
    KeepRule,
    Population,
    exact_cut,
    group_counts,
    kept_counts,
    seeded_hash,
    unscreened,
)
from dataprune_ray.cutoff.population import UNGROUPED
from dataprune_ray.errors import ConfigError
from dataprune_ray.findings import Marks, QualityTable
from dataprune_ray.io.judgements import EVIDENCE, evidence_of
from dataprune_ray.io.scores import group_codes
from dataprune_ray.quality.rescue import Eligible, Rescue, rescue_quotas
from dataprune_ray.selecting import ScoreTable
from dataprune_ray.strategies import ScoreInfo, Strategy, get_strategy
from dataprune_ray.strategies.base import bands_of_cut, decimal_fraction
from dataprune_ray.strategies.screening import for_rows, with_screens

P = TypeVar("P", bound=Population)


@dataclass(frozen=True)
class Sources(Generic[P]):
    """Populations in the strategy's groups.

    ``scored`` holds all rows with their deciding scores, ``candidates`` the eligible ones with
    their neighbour distances as scores, ``rest`` the rows that are not rescued, with deciding
    scores.
    """

    scored: P
    candidates: Callable[[Eligible], P]
    rest: Callable[[Rescue], P]


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


def cut_with_rescue(
    plain: KeepRule,
    fence: float,
    share: float,
    sources: Sources[P],
    strategy: Strategy,
    config: SelectConfig,
    info: ScoreInfo,
) -> tuple[KeepRule, Rescue | None]:
    """Rescue ``floor(share * kept)`` rows of each group, or all eligible ones, and cut again.

    Args:
        plain: the strategy's rule for all rows.
        fence: neighbour distance beyond which a row is rare.
        share: part of the kept rows, 0 to 1.
        sources: the rows.
        strategy: which made ``plain``.
        config: its settings.
        info: the deciding metric.

    Raises:
        ConfigError: the strategy cannot hold the count.
    """
    eligible = Eligible(plain, fence)
    candidates = sources.candidates(eligible)
    kept = [int(count) for count in kept_counts(sources.scored, plain)]
    there = [int(count) for count in group_counts(candidates)]
    quotas = rescue_quotas(decimal_fraction(share), kept, there)
    if not sum(quotas):
        return plain, None
    cuts = exact_cut(candidates, quotas, end="high", by_score=True)
    far = _rule(plain, cuts, "high", schema.DISTANCE)
    rescue = Rescue(eligible, far, sum(quotas))
    left = [count - quota for count, quota in zip(kept, quotas, strict=True)]
    if strategy.needs_labels:
        rule = _thinned(plain, unscreened(sources.scored, plain.screens), left)
    else:
        rest = unscreened(sources.rest(rescue), plain.screens)
        rule = with_screens(_recut(strategy, rest, sum(left), config, info), plain.screens)
    found = [int(count) for count in kept_counts(sources.rest(rescue), rule)]
    if sum(found) != sum(left):
        raise ConfigError(
            "rescue",
            share,
            f"--strategy {strategy.name} keeps {sum(found):,} rows where {sum(left):,} are left "
            "of the budget, because it does not split ties; choose another strategy",
        )
    sentence = (
        f"{rule.explanation} Besides, {rescue.rows:,} rows that this drops are rescued: rare, but "
        "their neighbours and a model that has not seen them agree with their label."
    )
    return replace(rule, explanation=sentence), rescue


def _rule(plain: KeepRule, cuts: Sequence[Cut], end: End, metric: str) -> KeepRule:
    """The rule of a cut in the groups of ``plain``."""
    grouped = plain.groups != UNGROUPED
    bands = [
        band
        for code, cut in enumerate(cuts)
        for band in bands_of_cut(cut, end, code if grouped else None)
    ]
    cutoffs = {name: cut.score for name, cut in zip(plain.groups, cuts, strict=True)}
    return KeepRule(tuple(bands), plain.groups, metric, end, "", cutoffs)


def _recut(
    strategy: Strategy, rest: Population, quota: int, config: SelectConfig, info: ScoreInfo
) -> KeepRule:
    """The strategy's cut of ``quota`` of the rows that are not rescued."""
    changed, _ = for_rows(strategy, config, quota, int(sum(group_counts(rest))))
    return strategy.compile(rest, changed, info)


def _thinned(plain: KeepRule, scored: Population, quotas: Sequence[int]) -> KeepRule:
    """The ``quotas`` first rows of each group after its noise, in the order of ``plain``."""
    noise = KeepRule(plain.noise, plain.groups, plain.metric, plain.end, "", {})
    ahead = kept_counts(scored, noise).tolist() if plain.noise else [0] * len(quotas)
    last = [skipped + quota if quota else 0 for skipped, quota in zip(ahead, quotas, strict=True)]
    cuts = exact_cut(scored, last, end=plain.end or "high", by_score=plain.end is not None)
    rule = _rule(plain, cuts, plain.end or "high", plain.metric)
    sentence = f"{plain.explanation} Of these, the first {sum(quotas):,} of their groups."
    return replace(plain, bands=rule.bands, cutoffs=rule.cutoffs, explanation=sentence)


# The rows of quality files -----------------------------------------------------------------------


@dataclass(frozen=True)
class Chosen:
    """Filter of a quality file: the rows that are eligible or rescued, or with ``others`` not."""

    by: Eligible | Rescue
    groups: tuple[str, ...]
    table: QualityTable
    others: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """The deciding score, the identity, the evidence, and what screens look at."""
        return (schema.SCORE, schema.ROW_HASH, self.table.group_column, *EVIDENCE, *self._others)

    @property
    def _others(self) -> tuple[str, ...]:
        eligible = self.by if isinstance(self.by, Eligible) else self.by.eligible
        return eligible.plain.others

    def __call__(self, batch: pa.RecordBatch) -> NDArray[np.bool_]:
        """Which rows of a batch: bool (n,)."""
        codes = None
        if self.groups != UNGROUPED:
            names = {name: code for code, name in enumerate(self.groups)}
            groups = batch.column(self.table.group_column)
            codes = group_codes(groups, names, "quality table")
        identity = batch.column(schema.ROW_HASH).to_numpy(zero_copy_only=False)
        block = Block(
            batch.column(schema.SCORE).to_numpy(zero_copy_only=False),
            seeded_hash(identity, self.table.seed),
            codes,
            others={
                name: batch.column(name).to_numpy(zero_copy_only=False) for name in self._others
            },
        )
        chosen = self.by.apply(block, evidence_of(batch))
        return ~chosen if self.others else chosen


def parted(table: QualityTable, rescue: Rescue) -> tuple[Population, Population]:
    """The rows that are not rescued and those that are, both with their deciding scores."""
    groups = rescue.far.groups
    sources = _sources(table, groups)
    inside = replace(sources.scored, where=Chosen(rescue, groups, table))
    return sources.rest(rescue), inside


def _sources(table: QualityTable, groups: tuple[str, ...]) -> Sources[ScoreTable]:
    column = None if groups == UNGROUPED else table.group_column
    scored = ScoreTable(table.paths, schema.SCORE, column, groups, table.seed)

    def candidates(eligible: Eligible) -> ScoreTable:
        chosen = Chosen(eligible, groups, table)
        return replace(scored, metric=schema.DISTANCE, where=chosen)

    def rest(rescue: Rescue) -> ScoreTable:
        return replace(scored, where=Chosen(rescue, groups, table, others=True))

    return Sources(scored, candidates, rest)
