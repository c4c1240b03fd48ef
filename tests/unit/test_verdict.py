"""Means, intervals and the gate, held against scipy's tests and formulas written out."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dataprune_ray.inference import (
    class_means,
    costs,
    differences,
    interval,
    judge,
    lower_bound,
    overlap_of,
    summarise,
)
from dataprune_ray.verdict import FULL, PRUNED, RANDOM, Comparison, TrialRun, Tuned

POINTS = st.lists(st.integers(-900, 900).map(lambda n: n / 100), min_size=2, max_size=12).filter(
    lambda values: len(set(values)) > 1
)
CONFIDENCE = st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99])


def trial(arm, seed, score, fold=None, **fields):
    known = {"budget": "updates", "rows": 900, "updates": 70, "epochs": 10.0, "seconds": 3.0}
    known |= {"gpu_seconds": 0.0, "loss": 0.5, "test_rows": 100}
    return TrialRun(arm=arm, seed=seed, fold=fold, score=score, **{**known, **fields})


def trials(arm, scores, **fields):
    return [trial(arm, seed, score, **fields) for seed, score in enumerate(scores)]


def gate(runs, **asked):
    known = {"budget": "updates", "max_drop": 0.5, "confidence": 0.95, "beat_random": False}
    return judge(runs, **{**known, **asked})


class TestInterval:
    @settings(deadline=None)
    @given(POINTS, CONFIDENCE)
    def test_is_the_interval_of_a_one_sample_t_test(self, values, confidence):
        found = interval(values, confidence)
        expected = stats.ttest_1samp(values, 0.0).confidence_interval(confidence)
        assert found.pairs == len(values)
        assert found.mean == pytest.approx(np.mean(values), abs=1e-9)
        assert found.low == pytest.approx(expected.low, abs=1e-8)
        assert found.high == pytest.approx(expected.high, abs=1e-8)

    @settings(deadline=None)
    @given(POINTS, CONFIDENCE)
    def test_the_lower_bound_is_that_of_a_one_sided_test(self, values, confidence):
        test = stats.ttest_1samp(values, 0.0, alternative="greater")
        expected = test.confidence_interval(confidence).low
        assert lower_bound(values, confidence) == pytest.approx(expected, abs=1e-8)

    @settings(deadline=None)
    @given(POINTS, st.integers(2, 20), CONFIDENCE)
    def test_over_folds_it_is_the_corrected_resampled_t_test(self, values, folds, confidence):
        train, test = 1000 * (folds - 1), 1000
        count, mean = len(values), sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / (count - 1)
        statistic = mean / math.sqrt((1 / count + test / train) * variance)
        two_sided = 2 * stats.t.sf(abs(statistic), count - 1)
        found = interval(values, confidence, overlap=test / train)
        if abs(two_sided - (1 - confidence)) > 1e-6:
            excludes_zero = found.low > 0 or found.high < 0
            assert excludes_zero == (two_sided < 1 - confidence)
        centre = (found.high - mean) / math.sqrt((1 / count + 1 / (folds - 1)) * variance)
        assert stats.t.cdf(centre, count - 1) == pytest.approx((1 + confidence) / 2)

    def test_one_pair_says_nothing_about_the_spread(self):
        found = interval([1.5], 0.95)
        assert (found.mean, found.low, found.high) == (1.5, -math.inf, math.inf)
        assert lower_bound([1.5], 0.95) == -math.inf

    def test_equal_differences_leave_no_width(self):
        found = interval([0.25, 0.25, 0.25], 0.95)
        assert (found.mean, found.low, found.high) == (0.25, 0.25, 0.25)


class TestDifferences:
    def test_pairs_are_those_of_a_related_samples_t_test(self):
        ours, theirs = [97.1, 96.4, 98.0, 97.7], [96.0, 96.9, 97.2, 97.1]
        pairs = differences(trials("a", ours) + trials("b", theirs)[::-1], "a", "b", "updates")
        np.testing.assert_allclose(pairs, np.subtract(ours, theirs))
        expected = stats.ttest_rel(ours, theirs).confidence_interval(0.9)
        found = interval(pairs, 0.9)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high))

    def test_only_pairs_that_both_ran_under_that_budget_count(self):
        runs = [trial("a", 0, 5.0), trial("a", 1, 6.0), trial("b", 1, 4.0), trial("b", 2, 9.0)]
        runs.append(trial("b", 0, 1.0, budget="epochs"))
        assert differences(runs, "a", "b", "updates") == [2.0]
        assert differences(runs, "a", "absent", "updates") == []

    def test_seeds_are_averaged_within_a_fold(self):
        scores = np.random.default_rng(0).normal(90, 2, (2, 4, 3))
        runs = [
            trial(arm, seed, scores[code, fold, seed], fold)
            for code, arm in enumerate("ab")
            for fold in range(4)
            for seed in range(3)
        ]
        expected = (scores[0] - scores[1]).mean(axis=1)
        np.testing.assert_allclose(differences(runs, "a", "b", "updates"), expected)

    def test_one_fold_is_one_test_set(self):
        runs = trials("a", [3.0, 5.0], fold=0) + trials("b", [1.0, 1.0], fold=0)
        assert differences(runs, "a", "b", "updates") == [2.0, 4.0]


class TestOverlap:
    @pytest.mark.parametrize("folds", [2, 5, 10])
    def test_of_equal_folds_is_one_over_the_others(self, folds):
        rows = 100 * (folds - 1)
        full = [trial(FULL, seed, 90.0, k, rows=rows) for k in range(folds) for seed in range(2)]
        pruned = [trial(PRUNED, 0, 90.0, k, rows=30) for k in range(folds)]
        assert overlap_of(full + pruned) == pytest.approx(1 / (folds - 1))
        assert overlap_of(pruned) == pytest.approx(1 / (folds - 1))

    def test_is_none_for_one_test_set(self):
        assert overlap_of(trials(FULL, [1.0, 2.0])) == 0
        assert overlap_of(trials(FULL, [1.0, 2.0], fold=0)) == 0


class TestSummaries:
    def test_means_deviations_and_shares(self):
        runs = trials(FULL, [97.0, 98.0, 99.0]) + trials(PRUNED, [96.0, 99.0, 97.5], rows=300)
        runs += trials(RANDOM, [94.0, 95.0, 95.5], rows=300)
        full, pruned, random = summarise(runs, (), 0.95)
        assert (full.mean, full.std, full.keep) == (98.0, 1.0, 1.0)
        assert full.to_full is None
        assert pruned.std == pytest.approx(np.std([96.0, 99.0, 97.5], ddof=1))
        assert pruned.keep == pytest.approx(1 / 3)
        assert pruned.to_full == interval([-1.0, 1.0, -1.5], 0.95)
        assert pruned.to_random == interval([2.0, 4.0, 2.0], 0.95)
        assert random.to_random is None

    def test_one_run_has_no_deviation(self):
        (only,) = summarise([trial(FULL, 0, 90.0)], (), 0.95)
        assert (only.std, only.runs) == (0.0, 1)

    def test_without_the_full_arm_its_rows_still_give_the_share(self):
        runs = trials(PRUNED, [96.0, 97.0], rows=300) + trials(RANDOM, [95.0, 95.0], rows=300)
        pruned, _ = summarise(runs, (), 0.95, {None: 1200})
        assert pruned.keep == 0.25
        assert pruned.to_full is None
        assert pruned.to_random == interval([1.0, 2.0], 0.95)

    def test_intervals_over_folds_are_corrected_without_the_full_arm_too(self):
        gains = [1.0, 2.0, 1.5, 0.5, 1.0]
        runs = [trial(PRUNED, 0, 90 + gain, fold) for fold, gain in enumerate(gains)]
        runs += [trial(RANDOM, 0, 90.0, fold) for fold in range(5)]
        pruned, _ = summarise(runs, (), 0.95)
        assert pruned.to_random == interval(gains, 0.95, 1 / 4)

    def test_a_further_cut_is_held_against_random_rows_of_its_own_size(self):
        arms = {RANDOM: 80.0, "pruned:small": 70.0, "random:small": 60.0}
        runs = [one for arm, score in arms.items() for one in trials(arm, [score, score])]
        found = {arm.arm: arm for arm in summarise(runs, (), 0.95)}
        assert found["pruned:small"].to_random.mean == 10.0

    def test_the_class_that_lost_most(self):
        full = [trial(FULL, s, 90.0, class_scores=(90.0 + s, 80.0, None)) for s in range(2)]
        ours = [trial(PRUNED, s, 90.0, class_scores=(88.0, 81.0, None)) for s in range(2)]
        names = ("cat", "dog", "eel")
        assert class_means(full, FULL, "updates", names) == [90.5, 80.0, None]
        _, pruned = summarise(full + ours, names, 0.95)
        assert pruned.worst_class == ("cat", -2.5)
        assert summarise(full + trials(PRUNED, [1.0]), names, 0.95)[1].worst_class is None


class TestGate:
    @settings(deadline=None)
    @given(POINTS, st.integers(0, 300).map(lambda n: n / 100), CONFIDENCE)
    def test_is_a_one_sided_test_of_non_inferiority(self, changes, max_drop, confidence):
        runs = trials(FULL, [90.0] * len(changes)) + trials(PRUNED, [90 + c for c in changes])
        passed, _ = gate(runs, max_drop=max_drop, confidence=confidence)
        p = stats.ttest_1samp(changes, -max_drop, alternative="greater").pvalue
        if abs(p - (1 - confidence)) > 1e-9:
            assert passed == (p < 1 - confidence)

    def test_over_folds_the_corrected_bound_decides(self):
        changes = [-0.4, 0.1, -0.1, 0.2, -0.3]
        full = [trial(FULL, 0, 90.0, fold, rows=400) for fold in range(5)]
        ours = [trial(PRUNED, 0, 90 + c, fold, rows=200) for fold, c in enumerate(changes)]
        naive, corrected = lower_bound(changes, 0.95), lower_bound(changes, 0.95, 0.25)
        assert corrected < naive
        between = -(naive + corrected) / 2
        assert not gate(full + ours, max_drop=between)[0]
        assert gate(full + ours, max_drop=-corrected + 1e-6)[0]

    def test_random_must_be_beaten_where_asked(self):
        runs = trials(FULL, [90.0, 90.1, 90.0]) + trials(PRUNED, [90.0, 90.1, 90.1])
        runs += trials(RANDOM, [90.0, 90.2, 90.0])
        assert gate(runs)[0]
        passed, reasons = gate(runs, beat_random=True)
        assert not passed
        assert len(reasons) == 2
        assert "not above the +0.00" in reasons[1]

    def test_random_cannot_be_better_than_random_whatever_luck_says(self):
        runs = trials(FULL, [90.0, 90.1, 90.0]) + trials(PRUNED, [95.0, 95.1, 95.1])
        runs += trials(RANDOM, [90.0, 90.2, 90.0])
        assert gate(runs, beat_random=True)[0]
        passed, reasons = gate(runs, beat_random=True, drawn=True)
        assert not passed
        assert "pruned is itself drawn at random" in reasons[1]
        assert gate(runs, drawn=True)[0]  # only where it is asked

    def test_the_random_arm_itself_is_told_why_it_cannot_pass(self):
        runs = trials(FULL, [90.0, 90.1, 90.0]) + trials(RANDOM, [90.2, 90.2, 90.2])
        assert gate(runs, arm=RANDOM)[0]
        passed, reasons = gate(runs, arm=RANDOM, beat_random=True)
        assert not passed
        assert "random is itself drawn at random" in reasons[1]

    def test_one_pair_cannot_pass(self):
        passed, (reason,) = gate([trial(FULL, 0, 50.0), trial(PRUNED, 0, 99.0)])
        assert not passed
        assert "--seeds" in reason

    def test_a_missing_arm_fails_and_is_named(self):
        passed, reasons = gate(trials(PRUNED, [99.0, 99.0]), beat_random=True)
        assert not passed
        assert [arm in reason for arm, reason in zip((FULL, RANDOM), reasons, strict=True)] == [
            True,
            True,
        ]

    def test_a_training_that_diverged_fails(self):
        runs = trials(FULL, [90.0, 90.0]) + trials(PRUNED, [math.nan, 99.0])
        assert not gate(runs)[0]


class TestCosts:
    SPENT = (("proxy", 6.0), ("score", 4.0))

    def test_from_measured_equal_epochs(self):
        runs = trials(FULL, [90.0, 90.0], seconds=8.0, updates=100, budget="epochs")
        runs += trials(PRUNED, [90.0, 90.0], seconds=3.0, updates=40, rows=360, budget="epochs")
        found = costs(summarise(runs, (), 0.95), self.SPENT, 1000)
        assert found.measured
        assert (found.saved_seconds, found.saved_updates, found.break_even) == (5.0, 60.0, 2.0)

    def test_from_the_time_per_update_otherwise(self):
        runs = trials(FULL, [90.0], seconds=8.0) + trials(PRUNED, [90.0], rows=225)
        found = costs(summarise(runs, (), 0.95), self.SPENT, 1000)
        assert not found.measured
        assert found.saved_seconds == pytest.approx(8.0 * 0.75)
        assert found.break_even == pytest.approx(10 / 6)

    def test_what_saves_nothing_never_pays(self):
        runs = trials(FULL, [90.0], seconds=2.0, budget="epochs")
        runs += trials(PRUNED, [90.0], seconds=2.5, budget="epochs")
        assert costs(summarise(runs, (), 0.95), self.SPENT, 0).break_even is None

    def test_need_both_arms(self):
        assert costs(summarise(trials(FULL, [90.0]), (), 0.95), self.SPENT, 0) is None


def test_json_is_strict_and_unbounded_intervals_become_null():
    runs = [trial(FULL, 0, 90.0), trial(PRUNED, 0, 91.0, loss=math.nan)]
    arms = summarise(runs, (), 0.95)
    found = Comparison(
        "accuracy", (), "rows", tuple(runs), arms, None, 0.5, 0.95, False, False, ("no",)
    ).to_json()
    read = json.loads(json.dumps(found, allow_nan=False))
    assert read["arms"][1]["to_full"] == {"mean": 1.0, "low": None, "high": None, "pairs": 1}
    assert read["runs"][1]["loss"] is None
    assert read["runs"][0]["score"] == 90.0


def test_a_search_as_json():
    pair = (("window:0.1", interval([1.0], 0.95)),)
    tuned = Tuned("random", "random", 0.0, 0.5, None, "tie", (), 10, confirmed=pair)
    read = json.loads(json.dumps(tuned.to_json(), allow_nan=False))
    assert read["confirmed"] == [
        ["window:0.1", {"mean": 1.0, "low": None, "high": None, "pairs": 1}]
    ]
