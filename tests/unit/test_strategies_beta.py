"""Strategies that cut a share of the kept end as noise, against references by sorting."""

from __future__ import annotations

import json
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dataprune_ray.config import SelectConfig
from dataprune_ray.cutoff import REASONS, Block, KeepRule, MemoryPopulation, seeded_hash
from dataprune_ray.errors import ConfigError
from dataprune_ray.strategies import STRATEGIES, ScoreInfo
from dataprune_ray.strategies.stratified import bin_budgets, equal_width_bins

ENDS = ["high", "low"]
BETA = [name for name, strategy in STRATEGIES.items() if strategy.uses_beta]
NAMES = ("cat", "dog", "newt")
INFO = ScoreInfo("el2n", "high", 0.0, 1.0)
NOISE = "dropped: cut as noise"
#: Share cut as noise and share kept.
SHARES = [(0.0, 0.5), (0.1, 0.01), (0.1, 0.1), (0.3, 0.5), (0.5, 0.5), (0.01, 0.99), (0.29, 0.3)]
RNG = np.random.default_rng(0)
CORPORA = {
    "empty": np.zeros(0, np.float32),
    "single": np.array([0.25], np.float32),
    "tiny": np.array([0.5, 0.25, 0.75], np.float32),
    "constant": np.full(101, 0.5, np.float32),
    "two values": np.repeat(np.array([-0.0, 0.0, 1.0], np.float32), [30, 30, 41]),
    "tied": RNG.integers(0, 5, 1000).astype(np.float32) / np.float32(4),
    "skewed": RNG.random(1001, dtype=np.float32) ** 12,
    "spread": RNG.normal(size=503).astype(np.float32),
    "huge": np.array([-3.4e38, -1, 0, 1e-45, 2, 3.4e38], np.float32),
    "neighbours": np.nextafter(np.ones(9, np.float32), np.float32(2))
    - np.float32([0] * 5 + [1] * 4),
}
FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)
SCORES = hnp.arrays(
    np.float32,
    st.integers(0, 60),
    elements=st.one_of(FINITE, st.floats(0, 1, width=32), st.sampled_from([-1.5, 0.0, 0.25, 2.0])),
)

corpora = pytest.mark.parametrize("corpus", CORPORA)
ends = pytest.mark.parametrize("end", ENDS)
shares = pytest.mark.parametrize(("beta", "keep"), SHARES)
beta_names = pytest.mark.parametrize("name", BETA)


def rows_of(scores, seed=0):
    rows = np.arange(len(scores), dtype=np.uint64)
    codes = np.where(rows % 10 == 0, 0, np.where(rows % 10 < 4, 2, 1)).astype(np.int32)
    return Block(scores, seeded_hash(rows, seed), codes)


def compiled(name, block, **settings):
    config = SelectConfig(**settings, strategy=name)
    return STRATEGIES[name].compile(MemoryPopulation([block], NAMES), config, INFO)


def decided(name, block, **settings):
    """Positions of the kept rows and of those cut as noise."""
    rule = compiled(name, block, **settings)
    reasons = np.array([REASONS[code] for code in rule.reason(block)], object)
    return set(np.flatnonzero(rule.apply(block))), set(np.flatnonzero(reasons == NOISE))


def rounded(share, rows):
    return math.floor(Fraction(str(share)) * rows + Fraction(1, 2))


def ranked(block, positions, end):
    """Positions from the kept end, ties by ascending hash."""
    sign = -1 if end == "high" else 1
    scores = block.scores.astype(np.float64)
    return sorted(positions, key=lambda i: (sign * scores[i], block.hashes[i]))


def sizes_of(rows, beta, keep):
    """Rows skipped and rows kept."""
    quota = rounded(keep, rows)
    return min(rounded(beta, rows), rows - quota), quota


def window_by_sorting(block, positions, beta, keep, end):
    order = ranked(block, positions, end)
    skipped, quota = sizes_of(len(order), beta, keep)
    return set(order[skipped : skipped + quota]), set(order[:skipped])


def bins_by_fractions(scores, bins, end):
    """The bin of each score, counted towards the kept end, in exact arithmetic."""
    exact = [Fraction(s) if end == "high" else -Fraction(s) for s in scores.tolist()]
    low, high = min(exact), max(exact)
    if low == high:
        return [0] * len(exact)
    return [min(bins - 1, math.floor((s - low) * bins / (high - low))) for s in exact]


def stratified_by_sorting(block, beta, keep, bins, end):
    """CCS on one machine: visit the bins smallest first, within a bin take the lowest hashes."""
    order = ranked(block, range(block.rows), end)
    skipped, left = sizes_of(len(order), beta, keep)
    noise, rest = set(order[:skipped]), order[skipped:]
    members = {}
    for position, code in zip(
        rest, bins_by_fractions(block.scores[rest], bins, end) if rest else [], strict=True
    ):
        members.setdefault(code, []).append(position)
    queue = [sorted(members[code], key=lambda i: block.hashes[i]) for code in sorted(members)]
    queue.sort(key=len)  # stable: of equal sizes the lower bin comes first
    kept = set()
    while queue:
        rows, share = queue[0], left // len(queue)
        kept.update(rows[:share])
        left -= min(len(rows), share)
        queue.pop(0)
    return kept, noise


class TestWindow:
    @corpora
    @shares
    @ends
    def test_equals_sorting(self, corpus, beta, keep, end):
        block = rows_of(CORPORA[corpus])
        expected = window_by_sorting(block, range(block.rows), beta, keep, end)
        assert decided("window", block, beta=beta, keep=keep, keep_end=end) == expected

    @given(SCORES, st.floats(0, 0.99), st.floats(0, 1), st.sampled_from(ENDS))
    def test_any_scores_and_shares(self, scores, beta, keep, end):
        assume(Fraction(str(beta)) + Fraction(str(keep)) <= 1)
        block = rows_of(scores)
        expected = window_by_sorting(block, range(block.rows), beta, keep, end)
        assert decided("window", block, beta=beta, keep=keep, keep_end=end) == expected

    @corpora
    @pytest.mark.parametrize("keep", [0.0, 0.3, 1.0])
    @ends
    def test_without_noise_it_is_ratio(self, corpus, keep, end):
        block = rows_of(CORPORA[corpus])
        window, ratio = (
            compiled(name, block, keep=keep, keep_end=end) for name in ("window", "ratio")
        )
        assert window == ratio

    def test_the_explanation_counts_the_ties_that_are_kept(self):
        block = rows_of(CORPORA["constant"])
        rule = compiled("window", block, beta=0.1, keep=0.5)
        assert rule.explanation == (
            "Keep exactly 51 of 101 rows: those with the highest el2n after the 10 highest, which "
            "are cut as noise, at least 0.5; of 101 rows tied there, 51 are chosen by hash."
        )
        counts = Counter(REASONS[code] for code in rule.reason(block))
        assert counts == {
            NOISE: 10,
            "kept: tie at the cutoff, chosen by hash": 51,
            "dropped: tie at the cutoff, not chosen by hash": 40,
        }

    def test_it_skips_the_hardest_not_the_easiest(self):
        # Seen elsewhere: one branch sorted the other way round.
        block = rows_of(np.arange(10, dtype=np.float32))
        assert decided("window", block, beta=0.2, keep=0.3) == ({5, 6, 7}, {8, 9})
        assert decided("window", block, beta=0.2, keep=0.3, keep_end="low") == ({2, 3, 4}, {0, 1})

    def test_two_halves_of_an_odd_number_still_keep_the_asked_count(self):
        block = rows_of(np.array([1, 2, 3], np.float32))
        assert decided("window", block, beta=0.5, keep=0.5) == ({0, 1}, {2})


class TestStratified:
    @corpora
    @shares
    @ends
    @pytest.mark.parametrize("bins", [1, 3, 50])
    def test_equals_sorting(self, corpus, beta, keep, end, bins):
        block = rows_of(CORPORA[corpus])
        expected = stratified_by_sorting(block, beta, keep, bins, end)
        got = decided("stratified", block, beta=beta, keep=keep, keep_end=end, bins=bins)
        assert got == expected

    @given(SCORES, st.floats(0, 0.99), st.floats(0, 1), st.integers(1, 60), st.sampled_from(ENDS))
    def test_any_scores_and_shares(self, scores, beta, keep, bins, end):
        assume(Fraction(str(beta)) + Fraction(str(keep)) <= 1)
        block = rows_of(scores)
        got = decided("stratified", block, beta=beta, keep=keep, keep_end=end, bins=bins)
        assert got == stratified_by_sorting(block, beta, keep, bins, end)
        assert len(got[0]) == rounded(keep, len(scores))

    def test_ties_do_not_change_the_count(self):
        # Seen elsewhere: bins at quantiles, duplicates dropped, kept 10,000 of 50,000 at 0.5.
        scores = np.repeat(np.arange(5, dtype=np.float32), 10_000)
        kept, noise = decided("stratified", rows_of(scores), keep=0.5)
        assert len(kept) == 25_000
        assert not noise
        assert Counter(scores[sorted(kept)].tolist()) == dict.fromkeys(range(5), 5_000)

    def test_rare_scores_are_kept_whole_and_common_ones_thinned(self):
        scores = np.repeat(np.array([0, 0.5, 1], np.float32), [900, 90, 10])
        kept, _ = decided("stratified", rows_of(scores), keep=0.2, bins=3)
        assert Counter(scores[sorted(kept)].tolist()) == {0.0: 100, 0.5: 90, 1.0: 10}

    def test_one_bin_is_chosen_by_hash_alone(self):
        block = rows_of(CORPORA["skewed"])
        kept, _ = decided("stratified", block, keep=0.3, bins=1)
        lowest = np.argsort(block.hashes)[: len(kept)]
        assert kept == set(lowest.tolist())

    def test_the_range_is_that_of_the_rows_left_after_the_noise(self):
        scores = np.concatenate([np.linspace(0, 1, 90), np.full(10, 1e6)]).astype(np.float32)
        kept, noise = decided("stratified", rows_of(scores), beta=0.1, keep=0.45, bins=9)
        assert noise == set(range(90, 100))
        places = np.minimum(scores[sorted(kept)] * 9, 8).astype(int)
        assert np.bincount(places).tolist() == [5] * 9

    def test_a_bin_without_budget_is_said_to_be_left_out_by_chance(self):
        scores = np.arange(10, dtype=np.float32)
        block = rows_of(scores)
        rule = compiled("stratified", block, keep=0.1, bins=10)
        counts = Counter(REASONS[code] for code in rule.reason(block))
        assert counts == {
            "kept: within the kept scores": 1,
            "dropped: not chosen by hash": 9,
        }

    def test_it_explains_itself(self):
        rule = compiled("stratified", rows_of(CORPORA["tied"]), beta=0.1, keep=0.3)
        assert rule.explanation == (
            "Keep exactly 300 of 1,000 rows, spread evenly over 5 equal-width bins of el2n and "
            "chosen by hash in each, after the 100 highest, which are cut as noise."
        )
        assert rule.cutoffs == {"": None}


class TestBins:
    @given(FINITE, FINITE, st.integers(1, 200), st.sampled_from(ENDS), st.data())
    def test_a_float32_lies_in_exactly_one_bin(self, first, second, bins, end, data):
        low, high = min(first, second), max(first, second)
        found = equal_width_bins(low, high, bins, end)
        assert 1 <= len(found) <= bins
        bounds = np.array([bound for pair in found for bound in pair], np.float32)
        assert bounds.tolist() == [bound for pair in found for bound in pair]
        with np.errstate(over="ignore"):
            near = [np.nextafter(bounds, np.float32(side)) for side in (-np.inf, np.inf)]
        drawn = np.array(data.draw(st.lists(st.floats(low, high, width=32))), np.float32)
        values = np.concatenate([bounds, *near, drawn])
        values = values[(values >= np.float32(low)) & (values <= np.float32(high))]
        inside = [sum(a <= value <= b for a, b in found) for value in values.tolist()]
        assert inside == [1] * len(values)

    @given(FINITE, FINITE, st.integers(1, 60), st.sampled_from(ENDS))
    def test_bins_are_where_exact_arithmetic_puts_them(self, first, second, bins, end):
        low, high = min(first, second), max(first, second)
        bounds = {bound for pair in equal_width_bins(low, high, bins, end) for bound in pair}
        values = np.array(sorted({low, high} | bounds), np.float32)
        codes = bins_by_fractions(values, bins, end)
        own = equal_width_bins(low, high, bins, end)
        bin_of = [next(n for n, (a, b) in enumerate(own) if a <= v <= b) for v in values.tolist()]
        # Bins that no float32 lies in are left out, so numbers differ but not what is together.
        assert [a == b for a in codes for b in codes] == [a == b for a in bin_of for b in bin_of]

    def test_equal_bounds_give_one_bin(self):
        assert equal_width_bins(0.5, 0.5, 50, "high") == [(0.5, 0.5)]
        assert equal_width_bins(0.0, -0.0, 50, "low") == [(0.0, 0.0)]

    def test_an_edge_belongs_to_the_bin_towards_the_kept_end(self):
        below = float(np.nextafter(np.float32(0.5), np.float32(0)))
        above = float(np.nextafter(np.float32(0.5), np.float32(1)))
        assert equal_width_bins(0.0, 1.0, 2, "high") == [(0.0, below), (0.5, 1.0)]
        assert equal_width_bins(0.0, 1.0, 2, "low") == [(above, 1.0), (0.0, 0.5)]


class TestBudgets:
    @given(st.lists(st.integers(0, 50), max_size=20), st.data())
    def test_the_budget_is_spent_as_evenly_as_the_sizes_allow(self, sizes, data):
        quota = data.draw(st.integers(0, sum(sizes)))
        budgets = bin_budgets(sizes, quota)
        assert sum(budgets) == quota
        assert all(0 <= budget <= size for budget, size in zip(budgets, sizes, strict=True))
        # A bin that is not kept whole has no less than any other, up to the one row of rounding.
        for budget, size in zip(budgets, sizes, strict=True):
            if budget < size:
                assert max(budgets) <= budget + 1

    def test_each_bin_has_a_budget_of_its_own(self):
        # Seen elsewhere: the size of the last group as the quota of every group.
        assert bin_budgets([100, 3, 0, 50, 7], 60) == [25, 3, 0, 25, 7]
        assert bin_budgets([5, 5, 5], 8) == [2, 3, 3]
        assert bin_budgets([4, 4, 4], 2) == [0, 1, 1]
        assert bin_budgets([], 0) == []


class TestClassBalanced:
    @corpora
    @shares
    @ends
    def test_each_class_has_a_window_of_its_own(self, corpus, beta, keep, end):
        block = rows_of(CORPORA[corpus])
        kept, noise = set(), set()
        for code in range(len(NAMES)):
            mine = np.flatnonzero(block.groups == code).tolist()
            chosen, cut = window_by_sorting(block, mine, beta, keep, end)
            kept |= chosen
            noise |= cut
        got = decided("class_balanced", block, beta=beta, keep=keep, keep_end=end)
        assert got == (kept, noise)

    def test_the_floor_comes_before_the_noise(self):
        block = rows_of(CORPORA["spread"])
        kept, noise = decided("class_balanced", block, beta=0.3, keep=0.1, class_floor=40)
        sizes, floors = np.bincount(block.groups).tolist(), [40, 40, 40]
        assert sizes == [51, 300, 152]
        counts = np.bincount(block.groups[sorted(kept)]).tolist()
        assert counts == [40, 40, 40]
        cut = np.bincount(block.groups[sorted(noise)]).tolist()
        assert cut == [
            min(rounded(0.3, size), size - floor) for size, floor in zip(sizes, floors, strict=True)
        ]
        assert cut == [11, 90, 46]

    def test_it_says_what_is_cut(self):
        rule = compiled("class_balanced", rows_of(CORPORA["tied"]), beta=0.1, keep=0.3)
        assert rule.explanation == (
            "Keep 0.3 of each of 3 classes: exactly 300 of 1,000 rows, those with the highest "
            "el2n after 0.1 of the class, 100 rows, is cut as noise."
        )
        plain = compiled("class_balanced", rows_of(CORPORA["tied"]), keep=0.3)
        assert "noise" not in plain.explanation
        assert plain.noise == ()


class TestEveryStrategyWithNoise:
    def test_these_are_all(self):
        assert sorted(BETA) == ["class_balanced", "stratified", "weighted", "window"]

    @beta_names
    @corpora
    @ends
    def test_blocks_and_order_do_not_matter(self, name, corpus, end):
        block = rows_of(CORPORA[corpus])
        settings = {"beta": 0.2, "keep": 0.3, "keep_end": end}
        whole = compiled(name, block, **settings)
        order = np.random.default_rng(1).permutation(block.rows)
        pieces = [
            Block(block.scores[part], block.hashes[part], block.groups[part])
            for part in np.array_split(order, 7)
        ]
        config = SelectConfig(strategy=name, **settings)
        assert STRATEGIES[name].compile(MemoryPopulation(pieces, NAMES), config, INFO) == whole

    @pytest.mark.parametrize("name", sorted(set(BETA) - {"weighted"}))
    @corpora
    @shares
    def test_low_end_mirrors_high_end(self, name, corpus, beta, keep):
        block = rows_of(CORPORA[corpus])
        mirrored = Block(-block.scores, block.hashes, block.groups)
        high = decided(name, block, beta=beta, keep=keep, keep_end="high")
        assert decided(name, mirrored, beta=beta, keep=keep, keep_end="low") == high

    @beta_names
    @ends
    def test_the_rule_survives_json(self, name, end):
        rule = compiled(name, rows_of(CORPORA["tied"]), beta=0.1, keep=0.3, keep_end=end)
        assert rule.noise
        assert KeepRule.from_json(json.loads(json.dumps(rule.to_json(), allow_nan=False))) == rule

    @beta_names
    def test_the_seed_decides_among_equal_scores(self, name):
        first, second = (
            decided(name, rows_of(CORPORA["constant"], seed), beta=0.2, keep=0.5) for seed in (0, 1)
        )
        assert first[0] != second[0]
        assert first[1] != second[1]

    @beta_names
    @pytest.mark.parametrize(("beta", "keep"), [(0.2, 0.9), (0.7, 0.3000001), (1e-9, 1.0)])
    def test_more_than_is_left_is_refused(self, name, beta, keep):
        for corpus in ("empty", "spread"):
            with pytest.raises(ConfigError, match=r"beta=.*keep=.*--beta .* or --keep "):
                compiled(name, rows_of(CORPORA[corpus]), beta=beta, keep=keep)

    @beta_names
    def test_shares_are_decimals(self, name):
        # 0.7 + 0.3 and 0.9 + 0.1 are 1, and 0.1 + 0.2 + ... in floats is not.
        for beta, keep in ((0.7, 0.3), (0.9, 0.1), (0.1, 0.9), (0.42, 0.58)):
            kept, noise = decided(name, rows_of(CORPORA["spread"]), beta=beta, keep=keep)
            assert len(kept) + len(noise) == len(CORPORA["spread"])

    @pytest.mark.parametrize("name", sorted(STRATEGIES.keys() - set(BETA)))
    def test_the_others_cut_no_noise(self, name):
        block = rows_of(CORPORA["tiny"])
        settings = {"keep": 0.5, "threshold": 0.5}
        assert compiled(name, block, **settings, beta=0.4) == compiled(name, block, **settings)
