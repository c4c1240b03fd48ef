"""A cut made again for the rows that a rescue leaves, over any population: without Ray.

The rows rescued and the rows that the strategy keeps then are as many as the plain cut keeps, in
every class where the strategy balances classes. Not for strategies without a budget.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dataprune_ray import schema
from dataprune_ray.config import SelectConfig
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
from dataprune_ray.io.judgements import EVIDENCE, evidence_of
from dataprune_ray.io.scores import ScoreFiles, group_codes
from dataprune_ray.quality.rescue import Eligible, Rescue, rescue_quotas
from dataprune_ray.strategies import ScoreInfo, Strategy
from dataprune_ray.strategies.base import bands_of_cut, decimal_fraction
from dataprune_ray.strategies.screening import for_rows, with_screens

P = TypeVar("P", bound=Population)
F = TypeVar("F", bound=ScoreFiles)


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
    seed: int
    group_column: str | None = None
    others: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """The deciding score, the identity, the evidence, and what screens look at."""
        own = () if self.group_column is None else (self.group_column,)
        return (schema.SCORE, schema.ROW_HASH, *own, *EVIDENCE, *self._others)

    @property
    def _others(self) -> tuple[str, ...]:
        eligible = self.by if isinstance(self.by, Eligible) else self.by.eligible
        return eligible.plain.others

    def __call__(self, batch: pa.RecordBatch) -> NDArray[np.bool_]:
        """Which rows of a batch: bool (n,)."""
        codes = None
        if self.group_column is not None:
            names = {name: code for code, name in enumerate(self.groups)}
            codes = group_codes(batch.column(self.group_column), names, "quality table")
        identity = batch.column(schema.ROW_HASH).to_numpy(zero_copy_only=False)
        block = Block(
            batch.column(schema.SCORE).to_numpy(zero_copy_only=False),
            seeded_hash(identity, self.seed),
            codes,
            others={
                name: batch.column(name).to_numpy(zero_copy_only=False) for name in self._others
            },
        )
        chosen = self.by.apply(block, evidence_of(batch))
        return ~chosen if self.others else chosen


def sources_of(scored: F) -> Sources[F]:
    """The rows of quality files: ``scored`` are all of them, with the deciding score."""

    def candidates(eligible: Eligible) -> F:
        chosen = Chosen(eligible, scored.groups, scored.seed, scored.group_column)
        return replace(scored, metric=schema.DISTANCE, where=chosen)

    def rest(rescue: Rescue) -> F:
        rest = Chosen(rescue, scored.groups, scored.seed, scored.group_column, others=True)
        return replace(scored, where=rest)

    return Sources(scored, candidates, rest)
