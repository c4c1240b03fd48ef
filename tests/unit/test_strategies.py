from __future__ import annotations

import json
import math
from decimal import ROUND_FLOOR, Decimal
from fractions import Fraction

import duckdb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dataprune_ray.config import SelectConfig
from dataprune_ray.cutoff import REASONS, Block, KeepRule, MemoryPopulation, seeded_hash
from dataprune_ray.errors import ConfigError, UnknownNameError
from dataprune_ray.strategies import STRATEGIES, ScoreInfo, get_strategy
from dataprune_ray.strategies.base import decimal_fraction, share_of

KEEPS = [0.0, 0.01, 0.1, 0.3, 0.5, 0.99, 1.0]
ENDS = ["high", "low"]
NAMES = ("cat", "dog", "newt")
INFO = ScoreInfo("el2n", "high", 0.0, 1.0)

RNG = np.random.default_rng(0)
CORPORA = {
    "empty": np.zeros(0, np.float32),
    "single": np.array([0.25], np.float32),
    "tiny": np.array([0.5, 0.25, 0.75], np.float32),
    "constant": np.full(101, 0.5, np.float32),
    "tied": RNG.integers(0, 5, 1000).astype(np.float32) / np.float32(4),
    "skewed": (RNG.random(1001, dtype=np.float32) ** 12),
    "distinct": RNG.permutation(np.arange(1, 513, dtype=np.float32) / np.float32(512)),
}
EXACT = [n for n, s in STRATEGIES.items() if s.uses_keep and not s.needs_labels and n != "quantile"]
BALANCED = [n for n, s in STRATEGIES.items() if s.needs_labels]
#: Strategies whose cutoff does not depend on where zero is.
SYMMETRIC = [n for n in STRATEGIES if n not in {"mean_ratio", "max_fraction", "weighted"}]
SCORED = [n for n, s in STRATEGIES.items() if s.uses_score]
#: Strategies that keep the rows beyond a cutoff, all or per class.
RANKED = [n for n in SCORED if n not in {"stratified", "weighted"}]

corpora = pytest.mark.parametrize("corpus", CORPORA)
keeps = pytest.mark.parametrize("keep", KEEPS)
ends = pytest.mark.parametrize("end", ENDS)
names = pytest.mark.parametrize("name", STRATEGIES)


def rows_of(scores, seed=0, groups=True):
    """All the rows as one block, in three classes of very different sizes."""
    rows = np.arange(len(scores), dtype=np.uint64)
    codes = np.where(rows % 10 == 0, 0, np.where(rows % 10 < 4, 2, 1)).astype(np.int32)
    return Block(scores, seeded_hash(rows, seed), codes if groups else None)


def population(block, names_=NAMES):
    return MemoryPopulation([block], names_)


def compiled(name, block, info=INFO, **settings):
    config = SelectConfig(**({"threshold": 0.5} | settings), strategy=name)
    grouped = block.groups is not None
    source = population(block, NAMES if grouped else ("",))
    return get_strategy(name).compile(source, config, info)


def kept(name, block, info=INFO, **settings):
    return compiled(name, block, info, **settings).apply(block)


def asked(keep, rows):
    """``floor(keep * rows + 0.5)`` in decimal arithmetic."""
    exact = Decimal(repr(keep)) * rows + Decimal("0.5")
    return int(exact.to_integral_value(ROUND_FLOOR))


class TestRegistry:
    @names
    def test_entry_is_described(self, name):
        entry = STRATEGIES[name]
        assert entry.name == name
        assert entry.advice.startswith("not ")
        assert "\n" not in entry.summary + entry.advice

    def test_unknown_name_shows_the_choices(self):
        with pytest.raises(UnknownNameError, match=r"'best'.*class_balanced.*ratio"):
            get_strategy("best")


class TestEveryStrategy:
    @names
    @corpora
    @ends
    def test_blocks_and_order_do_not_matter(self, name, corpus, end):
        block = rows_of(CORPORA[corpus])
        whole = compiled(name, block, keep_end=end, keep=0.3)
        order = np.random.default_rng(1).permutation(block.rows)
        pieces = [
            Block(block.scores[part], block.hashes[part], block.groups[part])
            for part in np.array_split(order, 7)
        ]
        config = SelectConfig(strategy=name, keep=0.3, keep_end=end, threshold=0.5)
        assert STRATEGIES[name].compile(MemoryPopulation(pieces, NAMES), config, INFO) == whole

    @pytest.mark.parametrize("name", SYMMETRIC)
    @corpora
    @keeps
    def test_low_end_mirrors_high_end(self, name, corpus, keep):
        block = rows_of(CORPORA[corpus])
        mirrored = Block(-block.scores, block.hashes, block.groups)
        high = kept(name, block, keep=keep, keep_end="high", threshold=0.25)
        low = kept(name, mirrored, keep=keep, keep_end="low", threshold=-0.25)
        np.testing.assert_array_equal(high, low)

    @names
    @ends
    def test_an_empty_corpus_keeps_nothing(self, name, end):
        rule = compiled(name, rows_of(CORPORA["empty"]), keep_end=end)
        assert rule.apply(rows_of(CORPORA["empty"])).shape == (0,)
        if STRATEGIES[name].uses_keep:
            assert not rule.apply(rows_of(CORPORA["distinct"])).any()

    @pytest.mark.parametrize("name", RANKED)
    @corpora
    @ends
    def test_kept_scores_lie_beyond_dropped_ones(self, name, corpus, end):
        # Seen elsewhere: one branch sorted the other way round and kept the easiest rows.
        block = rows_of(CORPORA[corpus])
        chosen = kept(name, block, keep=0.3, keep_end=end)
        scopes = [block.groups == c for c in range(3)] if name in BALANCED else [chosen | True]
        for scope in scopes:
            inside, outside = block.scores[chosen & scope], block.scores[~chosen & scope]
            if len(inside) and len(outside):
                if end == "high":
                    assert inside.min() >= outside.max()
                else:
                    assert inside.max() <= outside.min()

    @names
    @ends
    def test_rule_survives_json_and_explains_itself(self, name, end):
        block = rows_of(CORPORA["tied"])
        rule = compiled(name, block, keep=0.3, keep_end=end)
        back = KeepRule.from_json(json.loads(json.dumps(rule.to_json(), allow_nan=False)))
        assert back == rule
        assert rule.explanation.startswith("Keep ")
        assert rule.explanation.endswith(".")
        assert STRATEGIES[name].uses_score or "scores" not in rule.columns
        reasons = [REASONS[code] for code in rule.reason(block)]
        assert [r.startswith("kept") for r in reasons] == rule.apply(block).tolist()
        wrong = "kept: at or below the cutoff" if end == "high" else "kept: at or above the cutoff"
        assert wrong not in reasons

    @names
    def test_polarity_decides_unless_the_end_is_given(self, name):
        block = rows_of(CORPORA["distinct"])
        low = ScoreInfo("margin", "low", 0.0, 1.0)
        np.testing.assert_array_equal(
            kept(name, block, low, keep=0.25), kept(name, block, keep=0.25, keep_end="low")
        )
        neither = ScoreInfo("knn", "none", 0.0, 1.0)
        if STRATEGIES[name].uses_score:
            with pytest.raises(ConfigError, match="--keep-end"):
                compiled(name, block, neither)
        compiled(name, block, neither, keep_end="high")

    @names
    def test_seed_decides_among_equal_scores(self, name):
        first, second = (rows_of(CORPORA["constant"], seed) for seed in (0, 1))
        same = (kept(name, first, keep=0.5) == kept(name, second, keep=0.5)).all()
        assert same == (name in {"threshold", "mean", "max_fraction", "quantile"})


class TestExactCounts:
    @pytest.mark.parametrize("name", EXACT)
    @corpora
    @keeps
    @ends
    def test_kept_count_is_the_asked_count(self, name, corpus, keep, end):
        # Keep means kept: elsewhere a rate of 0.2 was read as the share to prune, ties of a
        # fraction of 0.5 kept too few rows, and 1.0 was an error.
        for groups in (True, False):
            block = rows_of(CORPORA[corpus], groups=groups)
            chosen = kept(name, block, keep=keep, keep_end=end)
            assert np.count_nonzero(chosen) == asked(keep, block.rows)

    @pytest.mark.parametrize("name", BALANCED)
    @corpora
    @keeps
    @pytest.mark.parametrize("floor", [0, 5, 10_000])
    def test_each_class_keeps_its_own_share(self, name, corpus, keep, floor):
        # Seen elsewhere: the size of the last class as the quota of every class.
        block = rows_of(CORPORA[corpus])
        chosen = kept(name, block, keep=keep, class_floor=floor)
        sizes = np.bincount(block.groups, minlength=3).tolist()
        counts = np.bincount(block.groups[chosen], minlength=3).tolist()
        assert counts == [max(asked(keep, size), min(size, floor)) for size in sizes]

    @given(
        hnp.arrays(np.float32, st.integers(0, 60), elements=st.floats(0, 1, width=32)),
        st.floats(0, 1),
        st.sampled_from(ENDS),
    )
    def test_any_scores_and_keep(self, scores, keep, end):
        block = rows_of(scores)
        for name in EXACT:
            chosen = kept(name, block, keep=keep, keep_end=end)
            assert np.count_nonzero(chosen) == asked(keep, len(scores))

    @pytest.mark.parametrize("name", BALANCED)
    def test_balanced_needs_labels(self, name):
        with pytest.raises(ConfigError, match="--label"):
            compiled(name, rows_of(CORPORA["tiny"], groups=False))

    def test_thirty_percent_of_ten_rows_is_three(self):
        block = rows_of(np.arange(10, dtype=np.float32))
        assert np.flatnonzero(kept("ratio", block, keep=0.3)).tolist() == [7, 8, 9]

    @pytest.mark.parametrize(
        ("keep", "rows", "count"),
        [
            (0.3, 10**10, 3 * 10**9),
            (0.1, 5, 1),  # 0.5 rounds up
            (0.7, 5, 4),  # 3.5 rounds up; 0.7 * 5 in floats is 3.5 exactly, 0.35 * 10 as well
            (0.29, 50, 15),  # 14.5 rounds up; in floats 0.29 * 50 is 14.499999999999998
            (0.1, 9_999_999_995, 1_000_000_000),
            (1 / 3, 3 * 10**10, 10**10),
            (1e-05, 50_000, 1),
        ],
    )
    def test_rounding_is_of_the_decimal(self, keep, rows, count):
        assert share_of(decimal_fraction(keep), rows) == count

    def test_share_never_exceeds_the_rows(self):
        assert share_of(Fraction(1), 7) == 7


class TestAgainstReferences:
    @corpora
    @pytest.mark.parametrize("keep", [0.01, 0.1, 0.5, 0.99])
    @ends
    def test_ratio_equals_numpy(self, corpus, keep, end):
        block = rows_of(CORPORA[corpus])
        count = asked(keep, block.rows)
        rule = compiled("ratio", block, keep=keep, keep_end=end)
        sign = -1 if end == "high" else 1
        order = np.lexsort((block.hashes, sign * block.scores))
        assert set(np.flatnonzero(rule.apply(block))) == set(order[:count])
        if count:
            kth = sign * np.partition(sign * block.scores, count - 1)[count - 1]
            assert rule.cutoffs == {"": kth}

    @pytest.mark.parametrize("corpus", ["single", "tiny", "tied", "skewed", "distinct"])
    @pytest.mark.parametrize("keep", [0.125, 0.25, 0.5, 0.75, 1.0])
    def test_quantile_equals_duckdb(self, corpus, keep):
        block = rows_of(CORPORA[corpus])
        count = asked(keep, block.rows)
        if count == 0:
            assert compiled("quantile", block, keep=keep, keep_end="low").bands == ()
            return
        connection = duckdb.connect()
        connection.execute("create table t (s float)")
        connection.executemany("insert into t values (?)", block.scores.reshape(-1, 1).tolist())
        position = Fraction(count, block.rows)
        # quantile_disc takes the value at rank ceil(q * n): aim at the middle of the rank.
        query = f"select quantile_disc(s, {float(position) - 0.5 / block.rows}) from t"
        (expected,) = connection.execute(query).fetchone()
        rule = compiled("quantile", block, keep=keep, keep_end="low")
        assert rule.cutoffs == {"": expected}
        assert rule.apply(block).tolist() == (block.scores <= np.float32(expected)).tolist()

    @corpora
    @keeps
    @ends
    def test_quantile_keeps_all_ties(self, corpus, keep, end):
        block = rows_of(CORPORA[corpus])
        chosen = kept("quantile", block, keep=keep, keep_end=end)
        count = asked(keep, block.rows)
        if count == 0:
            assert not chosen.any()
            return
        ordered = np.sort(block.scores)
        if end == "high":
            expected = block.scores >= ordered[-count]
        else:
            expected = block.scores <= ordered[count - 1]
        np.testing.assert_array_equal(chosen, expected)


class TestThresholds:
    @pytest.mark.parametrize("value", [0.1, 0.3, 0.7, -0.1, 1e-8])
    @ends
    def test_a_score_equal_to_the_threshold_is_kept(self, value, end):
        # float32(0.7) lies below 0.7, float32(0.1) above 0.1: both are what is stored for them.
        block = rows_of(np.array([value], np.float32))
        assert kept("threshold", block, threshold=value, keep_end=end).all()

    @ends
    def test_neighbours_of_the_threshold(self, end):
        near = np.float32(0.7)
        up, down = np.nextafter(near, np.float32([2, -2]))
        block = rows_of(np.array([down, near, up], np.float32))
        expected = [False, True, True] if end == "high" else [True, True, False]
        assert kept("threshold", block, threshold=0.7, keep_end=end).tolist() == expected

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e39])
    def test_not_finite_is_refused(self, value):
        with pytest.raises(ConfigError, match="threshold"):
            compiled("threshold", rows_of(CORPORA["tiny"]), threshold=value)

    def test_missing_threshold_is_refused(self):
        with pytest.raises(ConfigError, match="--threshold"):
            compiled("threshold", rows_of(CORPORA["tiny"]), threshold=None)

    @given(hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-9, 9, width=32)))
    def test_mean_is_exact(self, scores):
        exact = sum(map(Fraction, scores.tolist())) / len(scores)
        block = rows_of(scores)
        for end in ENDS:
            expected = [
                Fraction(s) >= exact if end == "high" else Fraction(s) <= exact
                for s in scores.tolist()
            ]
            assert kept("mean", block, keep_end=end).tolist() == expected

    @corpora
    @pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
    def test_max_fraction(self, corpus, share):
        block = rows_of(CORPORA[corpus])
        limit = np.float32(share * float(block.scores.max(initial=0)))
        high = kept("max_fraction", block, max_fraction=share, keep_end="high")
        low = kept("max_fraction", block, max_fraction=share, keep_end="low")
        assert high.tolist() == (block.scores >= limit).tolist()
        assert low.tolist() == (block.scores <= limit).tolist()

    def test_max_fraction_of_a_negative_maximum_is_refused(self):
        with pytest.raises(ConfigError, match=r"is -0\.5"):
            compiled("max_fraction", rows_of(np.array([-1, -0.5], np.float32)))

    @corpora
    @ends
    def test_mean_ratio_keeps_the_mean_as_a_fraction(self, corpus, end):
        block = rows_of(CORPORA[corpus])
        total = sum(map(Fraction, block.scores.tolist()), Fraction(0))
        chosen = kept("mean_ratio", block, keep_end=end)
        assert np.count_nonzero(chosen) == math.floor(total + Fraction(1, 2))

    @pytest.mark.parametrize("scores", [[-0.25, 0.5], [0.5, 1.5]])
    def test_mean_ratio_outside_the_unit_interval_is_refused(self, scores):
        with pytest.raises(ConfigError, match="not 0 to 1"):
            compiled("mean_ratio", rows_of(np.array(scores, np.float32)))

    def test_mean_ratio_of_an_unbounded_metric_is_refused(self):
        info = ScoreInfo("loss", "high", 0.0, math.inf)
        with pytest.raises(ConfigError, match="range of metric 'loss'"):
            compiled("mean_ratio", rows_of(CORPORA["tiny"]), info)


class TestRandom:
    def test_random_ignores_scores(self):
        block = rows_of(CORPORA["distinct"])
        other = Block(block.scores[::-1].copy(), block.hashes, block.groups)
        first, second = kept("random", block, keep=0.3), kept("random", other, keep=0.3)
        np.testing.assert_array_equal(first, second)
        assert "scores" not in compiled("random", block, keep=0.3).columns

    def test_smaller_fractions_are_nested(self):
        block = rows_of(CORPORA["distinct"])
        small, large = kept("random", block, keep=0.1), kept("random", block, keep=0.3)
        assert (small <= large).all()
