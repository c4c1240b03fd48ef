"""Weighted draws: against exact probabilities, sorting and the standard library's logarithm."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dataprune_ray.config import SelectConfig
from dataprune_ray.cutoff import (
    HASH_MAX,
    REASONS,
    Block,
    KeepRule,
    MemoryPopulation,
    WeightedDraw,
    draw,
    seeded_hash,
)
from dataprune_ray.strategies import STRATEGIES, ScoreInfo

INFO = ScoreInfo("el2n", "high", 0.0, 1.0)
OPEN = ScoreInfo("logit", "high", -math.inf, math.inf)
FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)
RNG = np.random.default_rng(0)
UNIT = RNG.random(1000, dtype=np.float32)


def rows_of(scores, seed=0):
    scores = np.asarray(scores, np.float32)
    return Block(scores, seeded_hash(np.arange(len(scores), dtype=np.uint64), seed))


def compiled(block, info=INFO, name="weighted", **settings):
    config = SelectConfig(**settings, strategy=name)
    return STRATEGIES[name].compile(MemoryPopulation([block]), config, info)


def kept(block, info=INFO, **settings):
    return compiled(block, info, **settings).apply(block)


def shares_of(hashes):
    """Uniform numbers in (0, 1) that the hashes stand for."""
    return [(int(value) >> 11) / 2**53 + 2.0**-54 for value in hashes]


class TestLogarithm:
    @given(hnp.arrays(np.float64, 20, elements=st.floats(2.0**-1022, 1e308)))
    def test_equals_the_library(self, values):
        expected = [math.log(value) for value in values.tolist()]
        np.testing.assert_allclose(draw._log(values), expected, rtol=1e-15, atol=1e-16)

    @given(hnp.arrays(np.float64, 20, elements=st.floats(2.0**-60, 0.5)))
    def test_near_one_it_is_as_precise(self, less):
        expected = [math.log1p(-value) for value in less.tolist()]
        np.testing.assert_allclose(draw._log(1 - less, -less), expected, rtol=1e-15)


class TestKeys:
    @given(
        hnp.arrays(np.float32, 10, elements=st.floats(0.0078125, 1, width=32)),
        hnp.arrays(np.uint64, 10, elements=st.integers(0, HASH_MAX)),
        st.floats(0, 8),
    )
    def test_are_the_definition(self, scores, hashes, power):
        keys = WeightedDraw(0.0, "high", power).keys(Block(scores, hashes))
        expected = [
            power * math.log(score) - math.log(-math.log1p(-min(share, 1 - 2.0**-53)))
            for score, share in zip(scores.tolist(), shares_of(hashes), strict=True)
        ]
        assert keys.dtype == np.float32
        np.testing.assert_allclose(keys, expected, rtol=2e-7, atol=1e-7)

    @given(
        hnp.arrays(np.float32, 10, elements=FINITE),
        hnp.arrays(np.uint64, 10, elements=st.integers(0, HASH_MAX)),
        FINITE,
        st.floats(0, 100),
        st.sampled_from(["high", "low"]),
    )
    def test_are_finite_for_any_row(self, scores, hashes, origin, power, end):
        draws = WeightedDraw(origin, end, power, threshold=0.0)
        block = Block(scores, hashes)
        assert np.isfinite(draws.keys(block)).all()
        weights = draws.weights(block)
        assert np.isfinite(weights).all()
        assert (weights >= 1).all()

    def test_extreme_hashes(self):
        hashes = np.array([0, 1, HASH_MAX - 1, HASH_MAX], np.uint64)
        keys = WeightedDraw(0.0, "high", 1.0).keys(Block(np.ones(4, np.float32), hashes))
        assert keys[0] == pytest.approx(54 * math.log(2))
        assert (np.diff(keys) <= 0).all()
        assert np.isfinite(keys).all()

    def test_never_change(self):
        # The kept rows of past runs depend on these bits, and workers must agree on them.
        block = rows_of([0.0, 0.1, 0.25, 0.9, 1.0], seed=42)
        keys = WeightedDraw(0.0, "high", 2.0).keys(block)
        assert [f"{bits:08x}" for bits in keys.view(np.uint32).tolist()] == PINNED_KEYS


PINNED_KEYS = ["c34ebcbb", "c096439f", "c0322d99", "3f7710e5", "bf360c85"]


class TestWeighted:
    @pytest.mark.parametrize("keep", [0.0, 0.01, 0.1, 0.5, 0.99, 1.0])
    @pytest.mark.parametrize(
        "scores",
        [
            np.zeros(0),
            [0.5],
            np.zeros(99),
            np.full(101, 0.5),
            np.repeat([0.0, 1.0], [90, 10]),
            UNIT,
            UNIT**20,
        ],
    )
    @pytest.mark.parametrize("info", [INFO, OPEN])
    @pytest.mark.parametrize("end", ["high", "low"])
    def test_keeps_exactly_the_rows_with_the_highest_keys(self, keep, scores, info, end):
        block = rows_of(scores)
        rule = compiled(block, info, keep=keep, keep_end=end, weight_power=2.0)
        keys = rule.draw.keys(block)
        order = np.lexsort((block.hashes, -keys))
        count = math.floor(keep * block.rows + 0.5)
        assert set(np.flatnonzero(rule.apply(block))) == set(order[:count])

    @given(
        hnp.arrays(np.float32, st.integers(0, 50), elements=FINITE),
        st.sampled_from([0.01, 0.1, 0.5, 0.99]),
        st.floats(0, 100),
        st.sampled_from(["high", "low"]),
    )
    def test_any_scores(self, scores, keep, power, end):
        block = rows_of(scores)
        chosen = kept(block, OPEN, keep=keep, weight_power=power, keep_end=end)
        assert np.count_nonzero(chosen) == math.floor(keep * len(scores) + 0.5)

    @pytest.mark.parametrize("scores", [UNIT, np.full(1000, 0.5), np.zeros(1000)])
    @pytest.mark.parametrize("keep", [0.01, 0.3, 0.9])
    def test_equal_weights_are_the_random_strategy(self, scores, keep):
        block = rows_of(scores)
        random = kept(block, name="random", keep=keep)
        np.testing.assert_array_equal(kept(block, keep=keep, weight_power=0.0), random)
        if len(set(scores)) == 1:
            np.testing.assert_array_equal(kept(block, keep=keep), random)

    def test_a_great_power_is_the_top(self):
        block = rows_of(2.0 ** np.arange(-20, 0))
        for end, info in (("high", INFO), ("low", ScoreInfo("m", "low", -1.0, 0.0))):
            mirrored = block if end == "high" else Block(-block.scores, block.hashes)
            chosen = kept(mirrored, info, keep=0.5, weight_power=100.0)
            assert chosen.tolist() == [False] * 10 + [True] * 10

    def test_mirrored_scores_of_a_mirrored_metric_give_the_same_rows(self):
        block = rows_of(UNIT)
        mirrored = Block(-block.scores, block.hashes)
        for info, other in (
            (INFO, ScoreInfo("el2n", "low", -1.0, 0.0)),
            (OPEN, ScoreInfo("logit", "low", -math.inf, math.inf)),
        ):
            high, low = kept(block, info, keep=0.3), kept(mirrored, other, keep=0.3)
            np.testing.assert_array_equal(high, low)

    def test_weights_are_distances_from_the_metrics_own_bound(self):
        block = rows_of(UNIT / 2 + np.float32(0.25))
        margin = ScoreInfo("margin", "low", -1.0, 1.0)
        assert compiled(block, margin).draw.origin == 1.0
        assert compiled(block, INFO).draw.origin == 0.0
        assert compiled(block, OPEN).draw.origin == block.scores.min()
        assert compiled(block, OPEN, keep_end="low").draw.origin == block.scores.max()

    def test_noise_is_never_drawn(self):
        block = rows_of(UNIT)
        rule = compiled(block, keep=0.5, beta=0.2)
        hardest = np.argsort(-block.scores)[:200]
        chosen = rule.apply(block)
        assert chosen.sum() == 500
        assert not chosen[hardest].any()
        counts = Counter(REASONS[code] for code in rule.reason(block))
        assert counts == {
            "dropped: cut as noise": 200,
            "kept: drawn by weight": 500,
            "dropped: not drawn by weight": 300,
        }
        assert (rule.weights(block)[~chosen] == 1).all()

    def test_rule_survives_json_and_needs_both_columns(self):
        rule = compiled(rows_of(UNIT), keep=0.3, beta=0.1, weight_power=0.7)
        back = KeepRule.from_json(json.loads(json.dumps(rule.to_json(), allow_nan=False)))
        assert back == rule
        assert rule.columns == {"scores", "hashes"}
        assert rule.explanation == (
            "Keep exactly 300 of 1,000 rows, drawn without replacement with the distance of their "
            "el2n from 0 as weight, to the power 0.7, after the 100 highest, which are cut as "
            "noise."
        )


class TestProbabilities:
    def test_inclusion_is_that_of_drawing_one_after_another(self):
        # Exact by enumeration: each draw takes a remaining row in proportion to its weight.
        weights, size, trials = np.array([1.0, 2.0, 4.0, 8.0]), 2, 40_000
        exact = np.zeros(4)
        for sequence in itertools.permutations(range(4), size):
            left, chance = weights.sum(), 1.0
            for row in sequence:
                chance *= weights[row] / left
                left -= weights[row]
            exact[list(sequence)] += chance
        scores = np.tile((weights / 8).astype(np.float32), trials)
        hashes = seeded_hash(np.arange(4 * trials, dtype=np.uint64), 1)
        keys = WeightedDraw(0.0, "high", 1.0).keys(Block(scores, hashes)).reshape(trials, 4)
        drawn = np.argsort(-keys, axis=1)[:, :size]
        observed = np.bincount(drawn.ravel(), minlength=4) / trials
        errors = np.sqrt(exact * (1 - exact) / trials)
        assert (np.abs(observed - exact) < 5 * errors).all()

    def test_inverse_probabilities_estimate_totals_without_bias(self):
        scores = (UNIT[:60] * np.float32(0.9) + np.float32(0.1)).astype(np.float32)
        values = np.cos(np.arange(60)) + 2
        estimates, plain = [], []
        for seed in range(400):
            block = rows_of(scores, seed)
            rule = compiled(block, keep=0.25, weight_power=2.0)
            chosen = rule.apply(block)
            weights = rule.weights(block).astype(np.float64)
            estimates.append([weights[chosen].sum(), (weights * values)[chosen].sum()])
            plain.append(scores[chosen].mean())
        mean, error = np.mean(estimates, axis=0), np.std(estimates, axis=0) / math.sqrt(400)
        assert (np.abs(mean - [60, values.sum()]) < 4 * error).all()
        assert (error < [2, 4]).all()
        assert np.mean(plain) > scores.mean() + 0.1  # unweighted, high scores are too many

    def test_all_rows_drawn_have_weight_one(self):
        block = rows_of(UNIT)
        rule = compiled(block, keep=1.0)
        assert rule.draw.threshold is None
        assert (rule.weights(block) == 1).all()

    def test_rows_without_a_draw_have_weight_one(self):
        block = rows_of(UNIT)
        assert (compiled(block, name="ratio", keep=0.3).weights(block) == 1).all()
