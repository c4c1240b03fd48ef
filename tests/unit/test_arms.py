"""Arms: whole quotas, exact random cuts, kept rows from files, rows joined, leaks refused."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataprune_ray import arms, schema
from dataprune_ray.arms import Arm, balanced_rule, kept_hashes, proportional, random_rule
from dataprune_ray.cutoff import Band, Block, KeepRule, MemoryPopulation, kept_counts, seeded_hash
from dataprune_ray.errors import BadDataError, DataPruneError


@settings(deadline=None)
@given(st.lists(st.integers(0, 500), min_size=1, max_size=12), st.floats(0, 1))
def test_quotas_add_up_and_are_within_one_of_the_ideal(sizes, share):
    total = round(share * sum(sizes))
    quotas = proportional(sizes, total)
    assert sum(quotas) == total
    for quota, size in zip(quotas, sizes, strict=True):
        ideal = size * total / max(sum(sizes), 1)
        assert abs(quota - ideal) < 1
        assert 0 <= quota <= size


def population(groups, seed=0):
    hashes = seeded_hash(np.arange(len(groups), dtype=np.uint64), seed)
    codes = np.asarray(groups, np.int32)
    half = len(groups) // 2
    blocks = [Block(hashes=hashes[p], groups=codes[p]) for p in (slice(half), slice(half, None))]
    return MemoryPopulation(blocks, ("a", "b", "c"))


@settings(deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=80), st.floats(0, 1), st.integers(0, 9))
def test_random_arms_have_exactly_the_size_of_the_cut(groups, share, seed):
    rows = round(share * len(groups))
    table = population(groups, seed)
    assert kept_counts(table, random_rule(table, rows)).sum() == rows
    by_class = kept_counts(table, balanced_rule(table, rows))
    assert by_class.tolist() == proportional(np.bincount(groups, minlength=3).tolist(), rows)


def write_scores(folder, name="f", bad=(2,)):
    rows = 6
    hashes = np.arange(10, 10 + rows, dtype=np.uint64)
    errors = [("broken" if i in bad else None) for i in range(rows)]
    scores = [None if i in bad else float(i) for i in range(rows)]
    table = pa.table(
        {
            schema.ROW_HASH: hashes,
            schema.LABEL: pa.array([0, 1, 0, 1, 0, 1]),
            "loss": pa.array(scores, pa.float32()),
            schema.ERROR: pa.array(errors, pa.string()),
        }
    )
    (folder / "scores").mkdir(exist_ok=True)
    pq.write_table(table, folder / "scores" / f"{name}.parquet")
    return str(folder / "scores")


def test_all_scored_rows_are_the_full_arm(tmp_path):
    arm = Arm("full", write_scores(tmp_path), ("f",))
    assert kept_hashes(arm, "f").tolist() == [10, 11, 13, 14, 15]


def test_decisions_say_which_rows_a_finished_run_keeps(tmp_path):
    scores = write_scores(tmp_path)
    (tmp_path / "decisions").mkdir()
    kept = pa.table({schema.KEPT: [True, False, False, True, True]})
    pq.write_table(kept, tmp_path / "decisions" / "f.parquet")
    arm = Arm("pruned", scores, ("f",), decisions=str(tmp_path / "decisions"))
    assert kept_hashes(arm, "f").tolist() == [10, 14, 15]
    pq.write_table(kept.slice(1), tmp_path / "decisions" / "f.parquet")
    with pytest.raises(BadDataError, match="4 decisions for 5 scored rows"):
        kept_hashes(arm, "f")


def test_a_rule_is_applied_with_its_groups(tmp_path):
    rule = KeepRule((Band(1, 3.0, np.inf),), ("0", "1"), "loss", "high", "", {"0": None, "1": 3.0})
    arm = Arm("pruned", write_scores(tmp_path), ("f",), rule=rule, grouped=True)
    assert kept_hashes(arm, "f").tolist() == [13, 15]


def test_pieces_are_joined_and_texts_padded():
    hashes = [np.array([5, 1], np.uint64), np.zeros(0, np.uint64), np.array([3], np.uint64)]
    values = [np.array([[1, 2], [3, 4]]), np.zeros((0, 9), np.int64), np.array([[5, 6, 7]])]
    targets = [np.array([0, 1]), np.zeros(0, np.int64), np.array([2])]
    held = arms._joined(hashes, values, targets)
    assert held.hashes.tolist() == [5, 1, 3]
    assert held.values.tolist() == [[1, 2, 0], [3, 4, 0], [5, 6, 7]]
    assert held.targets.tolist() == [0, 1, 2]
    assert len(arms._joined([], [], []).hashes) == 0


def test_rows_of_the_test_set_are_refused():
    train, test = np.array([1, 2, 3], np.uint64), np.array([3, 9], np.uint64)
    arms.check_apart(train[:2], test, "pruned")
    with pytest.raises(DataPruneError, match="1 of the 3 rows that arm pruned"):
        arms.check_apart(train, test, "pruned")


def test_a_digest_tells_arms_apart():
    base = Arm("a", "s", ("f",))
    others = [Arm("b", "s", ("f",)), Arm("a", "t", ("f",)), Arm("a", "s", ("f",), seed=1)]
    assert len({base.digest(), *(other.digest() for other in others)}) == 4
    assert base.digest() == Arm("a", "s", ("f",)).digest()
