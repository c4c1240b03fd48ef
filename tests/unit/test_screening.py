"""Noise and duplicates cut before any strategy, against references by sorting."""

from __future__ import annotations

import json
import math
from collections import Counter
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataprune_ray import judging
from dataprune_ray.config import PruneConfig, SelectConfig
from dataprune_ray.cutoff import (
    DUPLICATE,
    NOISE,
    REASONS,
    Block,
    KeepRule,
    MemoryPopulation,
    kept_counts,
    seeded_hash,
)
from dataprune_ray.errors import BadDataError, ConfigError, UnknownNameError
from dataprune_ray.features import LabelSpec
from dataprune_ray.naming import check_names, noise_metric
from dataprune_ray.pipeline import preview
from dataprune_ray.quality.rescue import Evidence
from dataprune_ray.rescuing import Sources, cut_with_rescue
from dataprune_ray.stages import with_noise_share
from dataprune_ray.strategies import STRATEGIES, ScoreInfo, check_shares, compile_rule

NAMES = ("cat", "dog", "newt")
COUNTED = [n for n, s in STRATEGIES.items() if s.uses_keep and n != "quantile"]
POOLED = [n for n in COUNTED if not STRATEGIES[n].needs_labels]
REASON = {NOISE: REASONS[NOISE], DUPLICATE: REASONS[DUPLICATE]}


def info(end="low"):
    return ScoreInfo("el2n", "high", 0.0, 1.0, ("aum", end))


def corpus(rows, seed=0, ties=True):
    rng = np.random.default_rng(seed)
    scores, aum = rng.random((2, rows), np.float32)
    redundancy = rng.choice([-1.0, 0.5, 0.9, 0.95, 0.97, 1.0], rows).astype(np.float32)
    if ties:
        scores, aum = np.round(scores * 6) / 6, np.round(aum * 4) / 4
    codes = rng.choice(3, rows, p=[0.2, 0.3, 0.5]).astype(np.int32)
    hashes = seeded_hash(np.arange(rows, dtype=np.uint64), seed)
    others = {"aum": aum.astype(np.float32), "el2n": scores, "redundancy": redundancy}
    return Block(scores.astype(np.float32), hashes, codes, others=others)


def population(block, parts=3):
    pieces = np.array_split(np.arange(block.rows), parts)
    return MemoryPopulation([block.take(np.isin(np.arange(block.rows), p)) for p in pieces], NAMES)


def compiled(name, block, told=None, **changes):
    config = SelectConfig(**({"strategy": name, "bins": 5, "threshold": 0.5} | changes))
    return compile_rule(STRATEGIES[name], population(block), config, told or info())


def rounded(share, rows):
    return math.floor(Fraction(str(share)) * rows + Fraction(1, 2))


def screened_by_sorting(block, noise, eps, wanted, end):
    """Positions cut as noise, and of duplicates among the others."""
    sign = 1 if end == "low" else -1
    aum = block.others["aum"].astype(np.float64)
    order = sorted(range(block.rows), key=lambda i: (sign * aum[i], block.hashes[i]))
    cut = set(order[: min(rounded(noise, block.rows), block.rows - wanted)])
    again = set()
    if eps is not None:
        limit = np.float32(1 - Fraction(str(eps)))
        again = {i for i, r in enumerate(block.others["redundancy"]) if r > limit} - cut
    return cut, again


def reasons_of(rule, block):
    return np.array([REASONS[code] for code in rule.reason(block)], object)


@settings(max_examples=200)
@given(
    name=st.sampled_from(POOLED),
    rows=st.integers(0, 120),
    seed=st.integers(0, 1000),
    noise=st.sampled_from([0.0, 0.01, 0.1, 0.25, 0.5]),
    keep=st.sampled_from([0.01, 0.1, 0.3, 0.5]),
    eps=st.sampled_from([None, 0.02, 0.05, 0.1, 0.6]),
    end=st.sampled_from(["low", "high"]),
)
def test_counts_are_exact_and_the_noisiest_go_first(name, rows, seed, noise, keep, eps, end):
    block = corpus(rows, seed)
    found = compiled(name, block, info(end), noise_cut=noise, keep=keep, dedup=eps)
    wanted = rounded(keep, rows)
    cut, again = screened_by_sorting(block, noise, eps, wanted, end)
    reasons = reasons_of(found.rule, block)
    assert set(np.flatnonzero(reasons == REASON[NOISE])) == cut
    assert set(np.flatnonzero(reasons == REASON[DUPLICATE])) == again
    kept = found.rule.apply(block)
    left = rows - len(cut) - len(again)
    assert kept.sum() == min(wanted, left)
    assert [r.startswith("kept") for r in reasons] == kept.tolist()
    assert (len(found.warnings) == 1) == (left < wanted)
    for text in found.warnings:
        assert f"{left:,} rows are left of the {wanted:,}" in text


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_strategy_sees_only_the_rest(name):
    """What is kept is what the strategy keeps of a corpus without the screened rows."""
    block = corpus(90, seed=4)
    found = compiled(name, block, noise_cut=0.2, keep=0.3, dedup=0.1).rule
    cut, again = screened_by_sorting(block, 0.2, 0.1, 27, "low")
    inside = np.array([i for i in range(90) if i not in cut | again])
    rest = block.take(np.isin(np.arange(90), inside))
    config = SelectConfig(strategy=name, bins=5, threshold=0.5, keep=27 / rest.rows)
    alone = STRATEGIES[name].compile(population(rest), config, info())
    assert np.flatnonzero(found.apply(block)).tolist() == inside[alone.apply(rest)].tolist()
    assert np.allclose(found.weights(block)[inside], alone.weights(rest))
    assert (found.weights(block)[sorted(cut)] == 1).all()
    assert found.explanation.endswith(alone.explanation)
    assert "First 18 of 90 rows are cut as noise: those with the lowest aum." in found.explanation
    assert f"{len(again)} rows are dropped as duplicates" in found.explanation


@pytest.mark.parametrize("name", STRATEGIES)
def test_rules_with_screens_are_restored_and_count_alike(name):
    block = corpus(70, seed=2)
    rule = compiled(name, block, noise_cut=0.1, keep=0.4, dedup=0.03).rule
    again = KeepRule.from_json(json.loads(json.dumps(rule.to_json(), allow_nan=False)))
    assert again == rule
    assert set(rule.others) == {"aum", "redundancy"}
    counts = kept_counts(population(block), rule)
    assert counts.tolist() == np.bincount(block.groups[rule.apply(block)], minlength=3).tolist()


def test_without_screens_nothing_changes():
    block = corpus(50)
    for name, strategy in STRATEGIES.items():
        config = SelectConfig(strategy=name, threshold=0.5)
        rule = compile_rule(strategy, population(block), config, info()).rule
        assert rule == strategy.compile(population(block), config, info())
        assert rule.screens == ()


@pytest.mark.parametrize("parts", [1, 7, 50])
def test_how_the_corpus_is_split_decides_nothing(parts):
    block = corpus(50, seed=9)
    config = SelectConfig(strategy="ratio", keep=0.4, noise_cut=0.3, dedup=0.05)
    rules = [
        compile_rule(STRATEGIES["ratio"], population(block, n), config, info()).rule
        for n in (3, parts)
    ]
    assert rules[0] == rules[1]


def test_a_class_keeps_its_share_of_what_is_left():
    block = corpus(300, seed=5, ties=False)
    rule = compiled("class_balanced", block, noise_cut=0.2, keep=0.4).rule
    left = np.bincount(block.groups[~rule.screened(block)], minlength=3)
    kept = np.bincount(block.groups[rule.apply(block)], minlength=3)
    assert kept.tolist() == [math.floor(Fraction(int(n), 2) + Fraction(1, 2)) for n in left]


def test_a_row_that_lacks_a_column_is_not_decided_in_silence():
    block = corpus(20)
    rule = compiled("ratio", block, noise_cut=0.2, keep=0.4).rule
    with pytest.raises(ValueError, match="no aum"):
        rule.apply(Block(block.scores, block.hashes))


def test_duplicates_are_told_by_the_nearest_float32():
    block = corpus(6)
    similar = np.array([-1.0, 0.95, 0.9500001, 1.0, 0.94999, 0.0], np.float32)
    block = Block(block.scores, block.hashes, block.groups, others={"redundancy": similar})
    rule = compiled("ratio", block, keep=1.0, dedup=0.05).rule
    assert rule.apply(block).tolist() == [True, True, False, False, True, True]


def test_an_estimated_share_gives_way_to_keep():
    block = corpus(100, seed=1)
    found = compiled("ratio", block, noise_cut=0.4, keep=0.8)
    assert Counter(reasons_of(found.rule, block).tolist())[REASON[NOISE]] == 20
    assert found.rule.apply(block).sum() == 80
    assert "only 20 of 40 rows are cut as noise, so that 80 can be kept" in found.warnings[0]


@pytest.mark.parametrize("name", [n for n in POOLED if STRATEGIES[n].uses_beta])
def test_beta_counts_the_rest_and_gives_way(name):
    block = corpus(100, seed=1)
    rule = compiled(name, block, noise_cut=0.2, beta=0.25, keep=0.3).rule
    counts = Counter(reasons_of(rule, block).tolist())
    assert counts[REASON[NOISE]] == 20 + 20
    assert rule.apply(block).sum() == 30
    found = compiled(name, block, noise_cut=0.2, beta=0.5, keep=0.6)
    assert found.rule.apply(block).sum() == 60
    assert "--beta 0.5 is lowered to 0.25" in found.warnings[0]


@pytest.mark.parametrize(
    ("strategy", "changes", "told"),
    [
        ("ratio", {"noise_cut": 0.6, "keep": 0.5}, r"noise_cut=0\.6: .*--noise-cut 0\.5 or "),
        ("random", {"noise_cut": 0.3000001, "keep": 0.7}, "must not exceed 1"),
        ("window", {"noise_cut": 0.2, "keep": 0.5, "beta": 0.4}, r"beta=0\.4: .*--beta 0\.375"),
        ("window", {"keep": 0.7, "beta": 0.4}, r"beta=0\.4: .*keep=0\.7"),
    ],
)
def test_more_than_there_is_is_refused_before_anything_runs(strategy, changes, told):
    with pytest.raises(ConfigError, match=told):
        check_shares(STRATEGIES[strategy], SelectConfig(strategy=strategy, **changes))


@pytest.mark.parametrize(
    ("strategy", "changes"),
    [
        ("ratio", {"noise_cut": 0.3, "keep": 0.7}),
        ("ratio", {"noise_cut": "auto", "keep": 1.0}),
        ("threshold", {"noise_cut": 0.9, "keep": 0.5}),
        ("window", {"noise_cut": 0.2, "keep": 0.5, "beta": 0.375}),
        ("window", {"beta": "auto", "keep": 0.9}),
        ("ratio", {"beta": 0.9, "keep": 0.9}),
    ],
)
def test_shares_that_fit_are_taken(strategy, changes):
    check_shares(STRATEGIES[strategy], SelectConfig(strategy=strategy, **changes))


def pruning(**changes):
    return PruneConfig.from_flat({"input": "in", "output": "out", **changes})


def test_noise_is_told_by_the_first_metric_that_can_or_by_the_one_named():
    def chosen(**changes):
        config = pruning(noise_cut=0.1, **changes)
        metrics = check_names(config)[0]
        return [m.name for m in metrics], noise_metric(config, metrics).name

    assert chosen(metric="entropy,margin,el2n") == (["entropy", "margin", "el2n"], "margin")
    assert chosen(metric="el2n", noise_metric="margin") == (["el2n", "margin"], "margin")
    assert noise_metric(pruning(noise_metric="margin"), ()) is None
    with pytest.raises(ConfigError, match=r"noise_cut=0\.1: none of entropy .*--noise-metric"):
        check_names(pruning(noise_cut=0.1, metric="entropy"))
    with pytest.raises(UnknownNameError, match="noise_metric='entropy'"):
        check_names(pruning(noise_cut=0.1, noise_metric="entropy"))


def test_shares_are_numbers_or_auto():
    assert pruning(noise_cut="0.25").select.noise_cut == 0.25
    assert pruning(noise_cut="auto").select.estimates_noise
    assert pruning(beta="auto").select.estimates_noise
    assert not pruning(beta="0.1").select.estimates_noise
    for value in ("1", "-0.1", "some", "nan"):
        with pytest.raises(ConfigError, match="noise_cut="):
            pruning(noise_cut=value)
    for value in ("0", "1", "2"):
        with pytest.raises(ConfigError, match="dedup="):
            pruning(dedup=value)


@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize("keep", [0.2, 0.45])
def test_a_rescue_leaves_noise_and_duplicates_out_and_the_count_as_it_is(name, keep):
    strategy = STRATEGIES[name]
    groups = NAMES if strategy.needs_labels else ("",)
    block = corpus(400, seed=6, ties=False)
    rng = np.random.default_rng(1)
    evidence = Evidence(rng.random(400, np.float32), rng.random(400) < 0.7)

    def among(values, chosen):
        scored = Block(values, block.hashes, block.groups, others=block.others)
        return MemoryPopulation([scored.take(chosen)], groups)

    sources = Sources(
        among(block.scores, np.ones(400, bool)),
        lambda eligible: among(evidence.distance, eligible.apply(block, evidence)),
        lambda rescue: among(block.scores, ~rescue.apply(block, evidence)),
    )
    config = SelectConfig(strategy=name, keep=keep, noise_cut=0.2, dedup=0.05, bins=5)
    plain = compile_rule(strategy, sources.scored, config, info()).rule
    rule, rescue = cut_with_rescue(plain, 0.4, 0.05, sources, strategy, config, info())
    rescued = rescue.apply(block, evidence)
    kept = rescued | rule.apply(block)
    assert rescued.any()
    assert not (kept & plain.screened(block)).any()
    assert plain.screened(block).sum() > 100
    assert rule.screens == plain.screens
    assert "First 80 of 400 rows are cut as noise" in rule.explanation
    codes = block.groups if strategy.needs_labels else np.zeros(400, int)
    assert np.bincount(codes[kept]).tolist() == np.bincount(codes[plain.apply(block)]).tolist()


# Shares that are estimated -----------------------------------------------------------------------


def test_estimated_shares_replace_auto_and_are_kept_apart():
    marks = SimpleNamespace(noise=SimpleNamespace(share=0.125))
    config = pruning(noise_cut="auto", beta="auto", strategy="window")
    changed, found = with_noise_share(config, marks)
    assert found == {"beta": 0.125, "noise_cut": 0.125}
    assert (changed.select.beta, changed.select.noise_cut) == (0.125, 0.125)
    changed, found = with_noise_share(pruning(noise_cut="auto", beta=0.2), marks)
    assert (changed.select.beta, found) == (0.2, {"noise_cut": 0.125})
    assert with_noise_share(pruning(), None) == (pruning(), {})
    for nothing in (None, SimpleNamespace(noise=None)):
        with pytest.raises(BadDataError, match="give --noise-cut and --beta as numbers"):
            with_noise_share(config, nothing)


@pytest.mark.parametrize("name", ["noise_cut", "beta"])
def test_a_share_is_estimated_where_there_are_classes_only(name):
    config = pruning(**{name: "auto"}, checkpoint=["some.pt"])
    assert judging.is_asked(config)
    assert not judging.is_asked(pruning(**{name: 0.1}))
    for label in (LabelSpec(None), LabelSpec("y", task="regression")):
        with pytest.raises(ConfigError, match=f"{name}='auto': is estimated from class labels"):
            judging.check(config, SimpleNamespace(label=label))
    judging.check(config, SimpleNamespace(label=LabelSpec("y", classes=("a", "b"))))


@pytest.mark.parametrize("name", ["noise_cut", "beta"])
def test_a_preview_estimates_no_share(name):
    with pytest.raises(ConfigError, match=f"{name}='auto': .*--dry-run does not make"):
        preview(pruning(**{name: "auto"}, dry_run=True))


def test_a_share_still_to_be_estimated_is_never_cut():
    with pytest.raises(ValueError, match="noise_cut is estimated before anything is cut"):
        compiled("ratio", corpus(10), noise_cut="auto")
