"""Rescue: the count stays exact, and only rare, consistent, dropped rows come back."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataprune_ray.config import SelectConfig
from dataprune_ray.cutoff import Block, KeepRule, MemoryPopulation, seeded_hash
from dataprune_ray.errors import ConfigError
from dataprune_ray.quality.rescue import Eligible, Evidence, Rescue, rescue_quotas
from dataprune_ray.recutting import Sources, cut_with_rescue
from dataprune_ray.strategies import STRATEGIES, ScoreInfo, get_strategy

INFO = ScoreInfo("el2n", "high", 0.0, 1.5)
NAMES = ("cat", "dog", "newt")
EXACT = [name for name, s in STRATEGIES.items() if s.uses_keep and name != "quantile"]


def corpus(rows, seed, ties, grouped):
    """Rows with scores (tied where asked), and evidence for about a third of them."""
    rng = np.random.default_rng(seed)
    scores = rng.random(rows).astype(np.float32)
    distance = rng.random(rows).astype(np.float32)
    if ties:
        scores, distance = np.round(scores * 4) / 4, np.round(distance * 4) / 4
    distance[rng.random(rows) < 0.1] = np.nan
    codes = rng.choice(3, rows, p=[0.1, 0.3, 0.6]).astype(np.int32) if grouped else None
    block = Block(scores, seeded_hash(np.arange(rows, dtype=np.uint64), seed), codes)
    return block, Evidence(distance, rng.random(rows) < 0.5)


def cut(name, block, evidence, keep, share, fence=0.5, parts=3, **changes):
    """The plain rule, the rule after the rescue, and what is rescued."""
    groups = ("",) if block.groups is None else NAMES
    config = SelectConfig(**({"strategy": name, "keep": keep} | changes))
    pieces = np.array_split(np.arange(block.rows), parts)

    def population(scores, chosen):
        blocks = [
            Block(
                scores[p][chosen[p]],
                block.hashes[p][chosen[p]],
                None if block.groups is None else block.groups[p][chosen[p]],
            )
            for p in pieces
        ]
        return MemoryPopulation(blocks, groups)

    everything = np.ones(block.rows, bool)
    sources = Sources(
        population(block.scores, everything),
        lambda eligible: population(evidence.distance, eligible.apply(block, evidence)),
        lambda rescue: population(block.scores, ~rescue.apply(block, evidence)),
    )
    strategy = get_strategy(name)
    plain = strategy.compile(sources.scored, config, INFO)
    return plain, *cut_with_rescue(plain, fence, share, sources, strategy, config, INFO)


def ranked(block, evidence, rows):
    """Rows as they rank for a rescue: the farthest first, ties by ascending hash."""
    return zip((-evidence.distance[rows]).tolist(), block.hashes[rows].tolist(), strict=True)


def applied(block, evidence, rule, rescue):
    rescued = np.zeros(block.rows, bool) if rescue is None else rescue.apply(block, evidence)
    return rescued, rescued | rule.apply(block)


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(EXACT),
    rows=st.integers(0, 300),
    seed=st.integers(0, 10_000),
    keep=st.sampled_from([0.0, 0.05, 0.1, 0.3, 0.37, 0.5, 0.9, 1.0]),
    share=st.sampled_from([0.01, 0.1, 0.25, 0.5]),
    ties=st.booleans(),
)
def test_exactly_as_many_rows_are_kept(name, rows, seed, keep, share, ties):
    block, evidence = corpus(rows, seed, ties, get_strategy(name).needs_labels)
    plain, rule, rescue = cut(name, block, evidence, keep, share)
    before = plain.apply(block)
    rescued, kept = applied(block, evidence, rule, rescue)
    assert kept.sum() == before.sum()
    eligible = ~before & evidence.consistent & (evidence.distance > 0.5)
    assert not (rescued & ~eligible).any()
    groups = np.zeros(rows, int) if block.groups is None else block.groups
    for group in range(3):
        mine = groups == group
        budget = int(Fraction(repr(share)) * int(before[mine].sum()))
        assert rescued[mine].sum() == min(budget, eligible[mine].sum())
        assert kept[mine].sum() == before[mine].sum() or block.groups is None
        chosen, left = rescued & mine, eligible & ~rescued & mine
        if chosen.any() and left.any():  # farthest first, ties by hash
            last = max(ranked(block, evidence, chosen))
            first = min(ranked(block, evidence, left))
            assert last < first


@pytest.mark.parametrize("name", ["ratio", "class_balanced"])
def test_what_is_left_of_the_budget_goes_to_the_strategys_first_rows(name):
    block, evidence = corpus(400, 1, ties=False, grouped=name == "class_balanced")
    plain, rule, rescue = cut(name, block, evidence, 0.3, 0.2)
    before = plain.apply(block)
    rescued, kept = applied(block, evidence, rule, rescue)
    given_up = before & ~kept
    assert given_up.sum() == rescued.sum() > 0
    groups = np.zeros(400, int) if block.groups is None else block.groups
    for group in range(3):
        mine = groups == group
        if given_up[mine].any():
            assert block.scores[given_up & mine].max() < block.scores[before & kept & mine].min()


@pytest.mark.parametrize("name", ["window", "class_balanced", "stratified"])
def test_rows_cut_as_noise_stay_out_unless_they_are_rescued(name):
    block, evidence = corpus(500, 2, ties=False, grouped=name == "class_balanced")
    plain, rule, rescue = cut(name, block, evidence, 0.4, 0.1, beta=0.2)
    rescued, kept = applied(block, evidence, rule, rescue)
    assert rescued.any()
    assert kept.sum() == plain.apply(block).sum()


def test_a_strategy_that_keeps_all_ties_is_refused_where_it_cannot_hold_the_count():
    block, evidence = corpus(300, 3, ties=True, grouped=False)
    with pytest.raises(ConfigError, match="does not split ties"):
        cut("quantile", block, evidence, 0.3, 0.2)


def test_nothing_eligible_leaves_the_plain_cut():
    block, evidence = corpus(200, 4, ties=False, grouped=False)
    plain, rule, rescue = cut("ratio", block, evidence, 0.5, 0.2, fence=2.0)
    assert rescue is None
    assert rule == plain


def test_a_rescue_is_described_in_strict_json():
    block, evidence = corpus(300, 5, ties=True, grouped=False)
    _, rule, rescue = cut("ratio", block, evidence, 0.3, 0.2)
    described = json.loads(json.dumps(rescue.to_json(), allow_nan=False))
    assert described["rows"] == rescue.rows == int(0.2 * 90)
    again = Rescue(
        Eligible(KeepRule.from_json(described["plain_rule"]), described["fence"]),
        KeepRule.from_json(described["rule"]),
        described["rows"],
    )
    assert (again.apply(block, evidence) == rescue.apply(block, evidence)).all()
    assert f"{rescue.rows:,} rows that this drops are rescued" in rule.explanation


def test_quotas_are_whole_rows_and_no_more_than_there_are():
    assert rescue_quotas(Fraction(3, 10), [10, 9, 100], [5, 5, 7]) == [3, 2, 7]
