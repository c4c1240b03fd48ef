from __future__ import annotations

import dataclasses
import json
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dataprune_ray import cutoff
from dataprune_ray.cutoff import (
    HASH_MAX,
    REASONS,
    Band,
    Block,
    ExactSum,
    KeepRule,
    MemoryPopulation,
    selection,
)
from dataprune_ray.errors import BadDataError

FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)
SCORES = hnp.arrays(np.float32, st.integers(0, 80), elements=FINITE)
#: Few values, so that nearly every score is tied.
TIED = hnp.arrays(np.float32, st.integers(0, 80), elements=st.sampled_from([-1.5, -0.0, 0.0, 2.0]))


def population(scores, hashes, groups=None, names=("",), sizes=(7, 1, 40)):
    """Blocks of uneven sizes over the given columns."""
    cuts = np.cumsum(np.resize(sizes, len(scores) + 1))
    cuts = cuts[cuts < len(scores)]
    columns = (scores, hashes, groups)
    parts = zip(
        *[[None] * (len(cuts) + 1) if c is None else np.split(c, cuts) for c in columns],
        strict=True,
    )
    return MemoryPopulation([Block(*part) for part in parts], names)


def identities(rows, seed=0):
    return cutoff.seeded_hash(np.arange(rows, dtype=np.uint64), seed)


def parity_above_one(block):
    """Rows with a score above 1, grouped by whether it is odd."""
    left = block.scores > 1
    hashes = None if block.hashes is None else block.hashes[left]
    return Block(block.scores[left], hashes, block.scores[left].astype(np.int32) % 2)


def nothing_left(block):
    return Block(block.scores[:0], None if block.hashes is None else block.hashes[:0])


def rank(scores, hashes, end):
    """Row positions from the kept end, ties by ascending hash: the definition, by sorting."""
    score = scores.astype(np.float64)
    return np.lexsort((hashes, -score if end == "high" else score))


def kept_by(cut, scores, hashes, end):
    if cut.quota == 0:
        return np.zeros(len(scores), bool)
    beyond = scores > cut.score if end == "high" else scores < cut.score
    return beyond | ((scores == np.float32(cut.score)) & (hashes <= np.uint64(cut.hash_max)))


class TestKeys:
    @given(SCORES)
    def test_key_order_is_score_order(self, scores):
        keys = cutoff.ordered_key(scores)
        assert keys.dtype == np.uint32
        np.testing.assert_array_equal(np.less.outer(keys, keys), np.less.outer(scores, scores))
        np.testing.assert_array_equal(np.equal.outer(keys, keys), np.equal.outer(scores, scores))

    @given(SCORES)
    def test_key_round_trip(self, scores):
        back = cutoff.score_of_key(cutoff.ordered_key(scores))
        assert back.dtype == np.float32
        np.testing.assert_array_equal(back, scores)

    def test_negative_zero_equals_zero(self):
        keys = cutoff.ordered_key(np.array([-0.0, 0.0], np.float32))
        assert keys[0] == keys[1]
        assert not np.signbit(cutoff.score_of_key(keys)).any()

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_not_finite_is_refused(self, bad):
        with pytest.raises(ValueError, match="finite"):
            cutoff.ordered_key(np.array([1, bad], np.float32))

    def test_other_dtype_is_refused(self):
        with pytest.raises(ValueError, match="float32"):
            cutoff.ordered_key(np.zeros(3))

    def test_seeded_hash_is_a_bijection_that_spreads(self):
        rows = np.arange(200_000, dtype=np.uint64)
        hashes = cutoff.seeded_hash(rows, 7)
        assert len(np.unique(hashes)) == len(rows)
        tops = np.bincount((hashes >> np.uint64(60)).astype(int), minlength=16)
        assert abs(tops - len(rows) / 16).max() < 6 * math.sqrt(len(rows) / 16)
        np.testing.assert_array_equal(rows, np.arange(len(rows), dtype=np.uint64))

    def test_seeds_give_unrelated_orders(self):
        rows = np.arange(20_000, dtype=np.uint64)
        for other in (1, 2**32, 2**63 - 1):
            first, second = cutoff.seeded_hash(rows, 0), cutoff.seeded_hash(rows, other)
            correlation = np.corrcoef(first.argsort().argsort(), second.argsort().argsort())
            assert abs(correlation[0, 1]) < 0.05

    def test_seeded_hash_never_changes(self):
        # The kept rows of every past run depend on these numbers.
        got = cutoff.seeded_hash(np.array([0, 1, 2**64 - 1], np.uint64), 42)
        assert [f"{h:016x}" for h in got.tolist()] == PINNED_HASHES


PINNED_HASHES = ["b29ed950786f5ae3", "aa57873bce9452a9", "c69f3558819af2c8"]


class TestExactSum:
    @given(SCORES, st.integers(0, 80))
    def test_equals_fractions_however_split(self, values, at):
        total = sum((Fraction(float(v)) for v in values), Fraction(0))
        whole = ExactSum().add(values)
        parts = ExactSum().add(values[at:]).merge(ExactSum().add(values[:at]))
        assert whole.totals() == parts.totals() == [total]
        if len(values):
            assert whole.mean() == parts.mean() == float(total / len(values))

    def test_cancellation_is_exact(self):
        values = np.array([3e38, 1e-45, -3e38, 1.0], np.float32)
        tiny = Fraction(float(np.float32(1e-45)))
        assert ExactSum().add(values).totals() == [1 + tiny]

    @given(hnp.arrays(np.float32, st.tuples(st.integers(0, 9), st.just(3)), elements=FINITE))
    def test_columns(self, values):
        total = ExactSum(3).add(values[:2]).merge(ExactSum(3).add(values[2:]))
        assert total.totals() == [ExactSum().add(values[:, c]).totals()[0] for c in range(3)]
        if len(values):
            assert total.means().shape == (3,)

    @given(SCORES)
    def test_pickle(self, values):
        before = ExactSum().add(values)
        after = pickle.loads(pickle.dumps(before))
        assert (after.totals(), after.count) == (before.totals(), before.count)
        assert after.add(values).count == 2 * len(values)

    def test_carry_before_overflow(self, monkeypatch):
        from dataprune_ray.cutoff import sums  # noqa: PLC0415

        monkeypatch.setattr(sums, "_CARRY", 5)
        values = np.arange(100, dtype=np.float32)
        total = ExactSum()
        for value in values:
            total.add(value.reshape(1))
        assert total.merge(ExactSum().add(values)).totals() == [9900]

    def test_refusals(self):
        with pytest.raises(ValueError, match="finite"):
            ExactSum().add(np.array([math.nan], np.float32))
        with pytest.raises(ValueError, match="float32"):
            ExactSum().add(np.zeros(2))
        with pytest.raises(ValueError, match="columns"):
            ExactSum(2).add(np.zeros((2, 3), np.float32))
        with pytest.raises(ValueError, match="no rows"):
            ExactSum().mean()
        with pytest.raises(ValueError, match="means"):
            ExactSum(2).add(np.zeros((2, 2), np.float32)).mean()
        with pytest.raises(ValueError, match="merge"):
            ExactSum(2).merge(ExactSum(1))


class TestExactCut:
    @given(st.one_of(SCORES, TIED), st.data(), st.sampled_from(["high", "low"]))
    def test_equals_a_full_sort(self, scores, data, end):
        hashes = identities(len(scores))
        quota = data.draw(st.integers(0, len(scores)))
        (cut,) = cutoff.exact_cut(population(scores, hashes), [quota], end=end, by_score=True)
        kept = kept_by(cut, scores, hashes, end)
        expected = np.zeros(len(scores), bool)
        expected[rank(scores, hashes, end)[:quota]] = True
        np.testing.assert_array_equal(kept, expected)
        if quota:
            assert cut.score in scores
            assert cut.tied == np.count_nonzero(scores == np.float32(cut.score))
            assert cut.tied_kept == np.count_nonzero(kept & (scores == np.float32(cut.score)))

    @given(st.one_of(SCORES, TIED), st.data(), st.sampled_from(["high", "low"]))
    def test_groups_are_cut_like_separate_populations(self, scores, data, end):
        names = ("a", "b", "never", "c")
        groups = data.draw(hnp.arrays(np.int32, len(scores), elements=st.sampled_from([0, 1, 3])))
        hashes = identities(len(scores), 5)
        sizes = np.bincount(groups, minlength=4)
        quotas = [data.draw(st.integers(0, int(size))) for size in sizes]
        for by_score in (True, False):
            together = cutoff.exact_cut(
                population(scores, hashes, groups, names), quotas, end=end, by_score=by_score
            )
            for code, cut in enumerate(together):
                mine = groups == code
                alone = population(scores[mine], hashes[mine])
                (expected,) = cutoff.exact_cut(alone, [quotas[code]], end=end, by_score=by_score)
                if by_score:
                    assert dataclasses.replace(cut, hash_max=0) == dataclasses.replace(
                        expected, hash_max=0
                    )
                    kept = kept_by(cut, scores[mine], hashes[mine], end)
                else:
                    kept = (hashes[mine] <= np.uint64(cut.hash_max)) & (cut.quota > 0)
                assert np.count_nonzero(kept) == quotas[code]

    @pytest.mark.parametrize("bins", [2, 16, 1 << 10, 1 << 20])
    @pytest.mark.parametrize("gathered", [0, 30, 1 << 18])
    def test_digits_and_gathering_do_not_matter(self, monkeypatch, bins, gathered):
        monkeypatch.setattr(selection, "_MAX_BINS", bins)
        monkeypatch.setattr(selection, "_MAX_GATHERED", gathered)
        rng = np.random.default_rng(0)
        scores = rng.integers(-20, 20, 500).astype(np.float32)
        hashes = identities(500)
        groups = rng.integers(0, 3, 500).astype(np.int32)
        quotas = np.bincount(groups) // 2
        cuts = cutoff.exact_cut(
            population(scores, hashes, groups, ("a", "b", "c")), quotas, end="high", by_score=True
        )
        for code, cut in enumerate(cuts):
            mine = groups == code
            kept = kept_by(cut, scores[mine], hashes[mine], "high")
            order = rank(scores[mine], hashes[mine], "high")
            assert set(np.flatnonzero(kept)) == set(order[: quotas[code]])

    def test_many_groups(self):
        rng = np.random.default_rng(1)
        groups = rng.integers(0, 5_000, 20_000).astype(np.int32)
        scores = rng.random(20_000, dtype=np.float32).round(2)
        names = tuple(map(str, range(5_000)))
        quotas = np.bincount(groups, minlength=5_000) // 2
        source = population(scores, identities(20_000), groups, names, sizes=(9_000,))
        cuts = cutoff.exact_cut(source, quotas, end="low", by_score=True)
        assert [c.quota for c in cuts] == quotas.tolist()
        kept = np.array([c.quota for c in cuts]).sum()
        assert kept == quotas.sum()

    def test_half_of_tied_scores_is_half(self):
        # Seen elsewhere: 25,000 of 50,000 asked for, 10,000 kept, because scores were tied.
        scores = np.repeat(np.array([0, 1, 2, 3, 4], np.float32), 10_000)
        hashes = identities(50_000)
        (cut,) = cutoff.exact_cut(
            population(scores, hashes, sizes=(50_000,)), [25_000], end="high", by_score=True
        )
        assert np.count_nonzero(kept_by(cut, scores, hashes, "high")) == 25_000
        assert (cut.score, cut.tied, cut.tied_kept) == (2.0, 10_000, 5_000)

    def test_hashes_are_read_only_for_a_tie_that_is_cut(self):
        scores = np.array([1, 2, 2, 3], np.float32)
        source = population(scores, None)
        for quota in (0, 1, 3, 4):
            cutoff.exact_cut(source, [quota], end="high", by_score=True)
        with pytest.raises(ValueError, match="no hashes"):
            cutoff.exact_cut(source, [2], end="high", by_score=True)

    def test_by_hash_reads_no_scores(self):
        hashes = identities(100)
        (cut,) = cutoff.exact_cut(population(hashes, hashes), [30], end="high", by_score=False)
        assert np.count_nonzero(hashes <= np.uint64(cut.hash_max)) == 30
        assert cut.score is None

    @pytest.mark.parametrize("by_score", [True, False])
    @pytest.mark.parametrize("gathered", [0, 100])
    def test_duplicate_identity_is_bad_data_only_where_it_matters(
        self, by_score, gathered, monkeypatch
    ):
        monkeypatch.setattr(selection, "_MAX_GATHERED", gathered)
        scores = np.ones(4, np.float32)
        hashes = np.array([5, 9, 9, HASH_MAX], np.uint64)
        source = population(scores, hashes)
        with pytest.raises(BadDataError, match="id column is not unique"):
            cutoff.exact_cut(source, [2], end="high", by_score=by_score)
        for quota in (0, 1, 3, 4):
            (cut,) = cutoff.exact_cut(source, [quota], end="high", by_score=by_score)
            kept = np.count_nonzero(hashes <= np.uint64(cut.hash_max)) if quota else 0
            assert kept == quota

    def test_extreme_hashes(self):
        hashes = np.array([0, 1, HASH_MAX - 1, HASH_MAX], np.uint64)
        for quota in range(5):
            (cut,) = cutoff.exact_cut(
                population(np.zeros(4, np.float32), hashes), [quota], end="low", by_score=True
            )
            assert np.count_nonzero(hashes <= np.uint64(cut.hash_max)) * (quota > 0) == quota

    def test_wrong_quotas(self):
        source = population(np.zeros(3, np.float32), identities(3))
        with pytest.raises(ValueError, match="exceeds"):
            cutoff.exact_cut(source, [4], end="high", by_score=True)
        with pytest.raises(ValueError, match="negative"):
            cutoff.exact_cut(source, [-1], end="high", by_score=True)
        with pytest.raises(ValueError, match="2 quotas for 1 groups"):
            cutoff.exact_cut(source, [1, 1], end="high", by_score=True)


class TestStatistics:
    @given(SCORES)
    def test_extremes_and_mean(self, scores):
        source = population(scores, None)
        if len(scores) == 0:
            assert cutoff.extremes(source) is None
            with pytest.raises(ValueError, match="no rows"):
                cutoff.mean_score(source)
            return
        assert cutoff.extremes(source) == (scores.min(), scores.max())
        exact = sum(map(Fraction, scores.tolist())) / len(scores)
        assert cutoff.mean_score(source) == float(exact)

    def test_a_block_without_rows_may_come_first(self):
        empty, filled = np.zeros(0, np.float32), np.array([3, 4], np.float32)
        for blocks in ([empty, filled], [filled, empty], [empty, filled, empty]):
            source = MemoryPopulation([Block(scores) for scores in blocks])
            assert cutoff.extremes(source) == (3, 4)

    def test_counts(self):
        groups = np.array([0, 2, 2, 0, 0], np.int32)
        source = population(np.zeros(5, np.float32), identities(5), groups, ("a", "b", "c"))
        assert cutoff.group_counts(source).tolist() == [3, 0, 2]
        assert cutoff.group_counts(cutoff.pooled(source)).tolist() == [5]
        rule = KeepRule((Band(2, -1.0, 1.0),), ("a", "b", "c"), "m", "high", "", {})
        assert cutoff.kept_counts(source, rule).tolist() == [0, 0, 2]

    def test_counts_need_no_column(self):
        source = MemoryPopulation([Block(rows=3), Block(rows=0), Block(rows=4)])
        assert cutoff.group_counts(source).tolist() == [7]

    def test_histogram_loses_no_row(self):
        scores = np.array([-5, 0, 0.5, 1, 1.5, 2, 9], np.float32)
        source = population(scores, None)
        kept = KeepRule((Band(None, 1.0, math.inf),), ("",), "m", "high", "", {"": 1.0})
        assert cutoff.histogram(source, [0, 1, 2]).tolist() == [[3, 4], [0, 0]]
        assert cutoff.histogram(source, [0, 1, 2], kept).tolist() == [[0, 4], [3, 0]]
        with pytest.raises(ValueError, match="increasing"):
            cutoff.histogram(source, [0, 0])

    def test_a_view_leaves_rows_out_and_regroups_others(self):
        scores = np.array([0, 1, 2, 3, 4, 5], np.float32)
        groups = np.array([0, 1, 0, 1, 0, 1], np.int32)
        source = population(scores, identities(6), groups, ("a", "b"), sizes=(2, 1))
        seen = cutoff.derived(source, ("even", "odd", "none"), parity_above_one, {"scores"})
        assert cutoff.group_counts(seen).tolist() == [2, 2, 0]
        assert cutoff.group_counts(cutoff.pooled(seen)).tolist() == [4]
        assert cutoff.extremes(seen) == (2, 5)
        cuts = cutoff.exact_cut(seen, [1, 2, 0], end="high", by_score=True)
        assert [cut.score for cut in cuts] == [4, 3, None]
        hashes = identities(6)
        (first, *_) = cutoff.exact_cut(seen, [1, 0, 0], end="high", by_score=False)
        assert (hashes[[2, 4]] <= np.uint64(first.hash_max)).sum() == 1
        assert cutoff.extremes(cutoff.derived(seen, ("",), nothing_left, {"scores"})) is None

    def test_unknown_group_code_is_refused(self):
        groups = np.array([0, -1], np.int32)
        source = population(np.zeros(2, np.float32), None, groups, ("a", "b"))
        with pytest.raises(ValueError, match="group codes"):
            cutoff.group_counts(source)

    def test_block_columns_have_one_length(self):
        with pytest.raises(ValueError, match="one length"):
            Block(np.zeros(2, np.float32), np.zeros(3, np.uint64))
        with pytest.raises(ValueError, match="one length"):
            Block()


BOUND = st.one_of(FINITE, st.sampled_from([math.inf, -math.inf]))
BANDS = st.builds(
    Band,
    group=st.one_of(st.none(), st.integers(0, 2)),
    score_low=BOUND,
    score_high=BOUND,
    hash_max=st.one_of(st.integers(0, HASH_MAX), st.just(HASH_MAX)),
)
RULES = st.builds(
    KeepRule,
    bands=st.lists(BANDS, max_size=6).map(tuple),
    groups=st.just(("a", "b", "c")),
    metric=st.just("el2n"),
    end=st.sampled_from(["high", "low", None]),
    explanation=st.text(max_size=5),
    cutoffs=st.dictionaries(st.sampled_from("abc"), st.one_of(st.none(), BOUND)),
    noise=st.lists(BANDS, max_size=3).map(tuple),
)


class TestKeepRule:
    @given(RULES, SCORES, st.data())
    def test_apply_is_the_definition(self, rule, scores, data):
        groups = data.draw(hnp.arrays(np.int32, len(scores), elements=st.integers(0, 2)))
        hashes = data.draw(hnp.arrays(np.uint64, len(scores), elements=st.integers(0, HASH_MAX)))
        block = Block(scores, hashes, groups)
        covered, noise = (
            [
                any(
                    band.group in {None, group}
                    and band.score_low <= score <= band.score_high
                    and value <= band.hash_max
                    for band in bands
                )
                for score, value, group in zip(
                    scores.tolist(), hashes.tolist(), groups.tolist(), strict=True
                )
            ]
            for bands in (rule.bands, rule.noise)
        )
        expected = [inside and not cut for inside, cut in zip(covered, noise, strict=True)]
        kept = rule.apply(block)
        assert kept.tolist() == expected
        reasons = [REASONS[code] for code in rule.reason(block)]
        assert [reason.startswith("kept: ") for reason in reasons] == expected
        assert [reason == "dropped: cut as noise" for reason in reasons] == noise

    @given(RULES)
    def test_json_is_strict_and_lossless(self, rule):
        text = json.dumps(rule.to_json(), allow_nan=False)
        assert KeepRule.from_json(json.loads(text)) == rule

    def test_a_rule_of_an_earlier_version_is_read(self):
        saved = {
            "bands": [
                [None, 0.5, "inf", "ffffffffffffffff"],
                [None, 0.25, 0.25, "00000000000000ff"],
            ],
            "groups": [""],
            "metric": "el2n",
            "end": "high",
            "explanation": "Keep some.",
            "cutoffs": {"": 0.25},
        }
        bands = (Band(None, 0.5, math.inf), Band(None, 0.25, 0.25, 255))
        rule = KeepRule.from_json(saved)
        assert rule == KeepRule(bands, ("",), "el2n", "high", "Keep some.", {"": 0.25})
        assert rule.to_json() == {**saved, "noise": [], "draw": None, "screens": []}

    def test_stored_codes_never_change(self):
        assert REASONS[11:] == (
            "dropped: nothing of its group is kept",
            "dropped: cut as noise",
            "kept: drawn by weight",
            "dropped: not drawn by weight",
            "dropped: duplicate of a kept row",
        )
        assert REASONS[:3] == (
            "kept: at or above the cutoff",
            "kept: at or below the cutoff",
            "kept: within the kept scores",
        )

    def test_noise_needs_its_columns(self):
        every = Band(None, -math.inf, math.inf)
        rule = KeepRule((every,), ("a", "b"), "m", "high", "", {}, (Band(1, 2.0, 2.0, 5),))
        assert rule.columns == {"groups", "scores", "hashes"}
        block = Block(
            np.full(3, 2, np.float32), np.array([5, 6, 5], np.uint64), np.array([1, 1, 0], np.int32)
        )
        assert rule.apply(block).tolist() == [False, True, True]
        assert [REASONS[code] for code in rule.reason(block)] == [
            "dropped: cut as noise",
            "kept: every row is",
            "kept: every row is",
        ]

    def test_outside_a_choice_by_hash_nothing_is_said_of_a_cutoff(self):
        scores = np.array([0, 1, 2, 3], np.float32)
        block = Block(scores, np.array([0, 0, 0, 9], np.uint64), np.zeros(4, np.int32))
        bins = (Band(0, 1.0, 1.5), Band(0, 2.5, 3.0, 5))
        for groups in (("",), ("a", "b")):
            rule = KeepRule(bins, groups, "m", "high", "", {groups[0]: None})
            assert [REASONS[code] for code in rule.reason(block)] == [
                "dropped: not chosen by hash",
                "kept: within the kept scores",
                "dropped: not chosen by hash",
                "dropped: not chosen by hash",
            ]

    @given(RULES, st.data())
    def test_the_columns_it_names_are_enough(self, rule, data):
        codes = data.draw(hnp.arrays(np.int32, 5, elements=st.integers(0, 2)))
        hashes = data.draw(hnp.arrays(np.uint64, 5, elements=st.integers(0, HASH_MAX)))
        whole = Block(np.arange(5, dtype=np.float32), hashes, codes)
        needed = {name: getattr(whole, name) for name in rule.columns}
        assert (rule.apply(Block(**needed, rows=5)) == rule.apply(whole)).all()

    def test_a_group_without_bands_needs_no_scores(self):
        rule = KeepRule((Band(0, -np.inf, np.inf, 9),), ("a", "b"), "", None, "", {})
        block = Block(hashes=np.arange(8, 12, dtype=np.uint64), groups=np.array([0, 0, 0, 1], "i4"))
        assert rule.apply(block).tolist() == [True, True, False, False]

    def test_only_needed_columns_are_read(self):
        by_hash = KeepRule((Band(None, -math.inf, math.inf, 5),), ("a", "b"), "", None, "", {})
        assert by_hash.columns == {"hashes"}
        assert by_hash.apply(Block(hashes=np.array([5, 6], np.uint64))).tolist() == [True, False]
        nothing = KeepRule((), ("",), "m", "high", "", {})
        assert nothing.columns == frozenset()
        assert nothing.apply(Block(rows=2)).tolist() == [False, False]
        assert nothing.reason(Block(rows=1)).tolist() == [
            REASONS.index("dropped: nothing of its group is kept")
        ]

    def test_reasons(self):
        scores = np.array([3, 2, 2, 1], np.float32)
        hashes = np.array([0, 0, 9, 0], np.uint64)
        high = (Band(None, 3.0, math.inf), Band(None, 2.0, 2.0, 5))
        low = (Band(None, -math.inf, 1.0), Band(None, 2.0, 2.0, 5))
        ties = ["kept: tie at the cutoff, chosen by hash"]
        ties += ["dropped: tie at the cutoff, not chosen by hash"]
        assert self.reasons(high, scores, hashes) == [
            "kept: at or above the cutoff",
            *ties,
            "dropped: below the cutoff",
        ]
        assert self.reasons(low, scores, hashes) == [
            "dropped: above the cutoff",
            *ties,
            "kept: at or below the cutoff",
        ]
        window = (Band(None, 2.0, 2.5), Band(None, 0.0, 0.5))
        assert self.reasons(window, scores, hashes) == [
            "dropped: above the cutoff",
            "kept: within the kept scores",
            "kept: within the kept scores",
            "dropped: between the kept scores",
        ]
        chance = (Band(None, -math.inf, math.inf, 5),)
        assert self.reasons(chance, scores, hashes)[1:3] == [
            "kept: chosen by hash",
            "dropped: not chosen by hash",
        ]

    def test_reason_of_a_group_without_bands(self):
        block = Block(np.zeros(2, np.float32), None, np.array([0, 1], np.int32))
        rule = KeepRule((Band(0, 0.0, math.inf),), ("a", "b"), "m", "high", "", {})
        assert [REASONS[code] for code in rule.reason(block)] == [
            "kept: at or above the cutoff",
            "dropped: nothing of its group is kept",
        ]

    def test_pickle(self):
        rule = KeepRule((Band(0, 0.0, math.inf),), ("a", "b"), "m", "high", "", {})
        rule.apply(Block(np.zeros(1, np.float32), None, np.zeros(1, np.int32)))
        assert pickle.loads(pickle.dumps(rule)) == rule

    @pytest.mark.parametrize("bound", [0.1, 1e300, math.nan])
    def test_bounds_are_float32(self, bound):
        with pytest.raises(ValueError, match="float32"):
            Band(None, bound, math.inf)

    def test_hash_bound_is_64_bit(self):
        with pytest.raises(ValueError, match="64-bit"):
            Band(None, 0.0, 1.0, HASH_MAX + 1)

    @staticmethod
    def reasons(bands, scores, hashes):
        rule = KeepRule(bands, ("",), "m", "high", "", {})
        return [REASONS[code] for code in rule.reason(Block(scores, hashes))]
