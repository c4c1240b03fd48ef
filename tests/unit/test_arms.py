"""Arms: whole quotas, exact random cuts, kept rows and their weights from files."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataprune_ray import schema
from dataprune_ray.arms import (
    Arm,
    ArmSize,
    balanced_rule,
    kept_hashes,
    kept_rows,
    proportional,
    random_rule,
)
from dataprune_ray.config import SelectConfig
from dataprune_ray.cutoff import (
    NOISE,
    Band,
    Block,
    KeepRule,
    MemoryPopulation,
    Screen,
    kept_counts,
    seeded_hash,
)
from dataprune_ray.errors import BadDataError
from dataprune_ray.strategies.base import ScoreInfo
from dataprune_ray.strategies.weighted import weighted


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
    arm = Arm("pruned", write_scores(tmp_path), ("f",), rule=rule, group_column=schema.LABEL)
    assert kept_hashes(arm, "f").tolist() == [13, 15]


def test_a_rule_that_screens_reads_its_other_columns(tmp_path):
    scores = write_scores(tmp_path)
    path = tmp_path / "scores" / "f.parquet"
    table = pq.read_table(path)
    table = table.append_column("aum", pa.array([5.0, 0.5, None, 1.0, 3.0, 0.25], pa.float32()))
    pq.write_table(table, path)
    screen = Screen("aum", (Band(None, -np.inf, 0.5),), NOISE, "")
    rule = KeepRule((Band(None, 1.0, np.inf),), ("",), "loss", "high", "", {}, screens=(screen,))
    assert kept_hashes(Arm("pruned", scores, ("f",), rule=rule), "f").tolist() == [13, 14]
    by_hash = KeepRule((Band(None, -np.inf, np.inf),), ("",), "", None, "", {}, screens=(screen,))
    assert kept_hashes(Arm("random", scores, ("f",), rule=by_hash), "f").tolist() == [10, 13, 14]


def write_decisions(folder, kept, weights):
    (folder / "decisions").mkdir(exist_ok=True)
    table = pa.table({schema.KEPT: kept, schema.WEIGHT: pa.array(weights, pa.float32())})
    pq.write_table(table, folder / "decisions" / "f.parquet")
    return str(folder / "decisions")


def test_weights_are_those_of_the_decisions(tmp_path):
    """Only of the kept rows, in the order of the rows, and only where they are asked for."""
    kept, weights = [True, False, False, True, True], [2.0, 1.0, 1.0, 8.0, 1.5]
    decisions = write_decisions(tmp_path, kept, weights)
    plain = Arm("pruned", write_scores(tmp_path), ("f",), decisions=decisions)
    assert kept_rows(plain, "f").weights is None
    found = kept_rows(replace(plain, weighted=True), "f")
    assert found.hashes.tolist() == [10, 14, 15]
    assert found.weights.tolist() == [2.0, 8.0, 1.5]


def test_weights_are_those_of_the_draw(tmp_path):
    """A rule that is not decided yet gives the weights that its decisions would hold."""
    hashes = seeded_hash(np.array([10, 11, 13, 14, 15], np.uint64), 4)
    scores = np.array([0, 1, 3, 4, 5], np.float32)
    population = MemoryPopulation([Block(scores, hashes)], ("",))
    config = SelectConfig(strategy="weighted", keep=0.6)
    rule = weighted(population, config, ScoreInfo("loss", "high", 0.0, np.inf))
    arm = Arm("p", write_scores(tmp_path), ("f",), rule=rule, seed=4, weighted=True)
    found = kept_rows(arm, "f")
    kept = rule.apply(Block(scores, hashes))
    assert found.hashes.tolist() == np.array([10, 11, 13, 14, 15])[kept].tolist()
    distance = scores[kept].astype(float)  # the score's distance from 0, the bound of a loss
    chance = 1 - np.exp(-distance / np.exp(rule.draw.threshold))
    np.testing.assert_allclose(found.weights, 1 / chance, rtol=1e-5)
    assert found.weights.max() > 1


@given(st.lists(st.lists(st.floats(1, 2.0**60, width=32), max_size=5), min_size=1, max_size=5))
def test_scaled_weights_have_a_mean_of_one(fragments):
    sums = [float(np.sum(part, dtype=float)) for part in fragments]
    size = ArmSize(sum(map(len, fragments)), math.fsum(sums))
    weights = np.concatenate([np.asarray(part, float) for part in fragments])
    if len(weights):
        assert (weights * size.scale).mean() == pytest.approx(1)
    else:
        assert size.scale == 1


def test_a_digest_tells_arms_apart():
    base = Arm("a", "s", ("f",))
    others = [Arm("b", "s", ("f",)), Arm("a", "t", ("f",)), Arm("a", "s", ("f",), seed=1)]
    others.append(replace(base, weighted=True))
    assert len({base.digest(), *(other.digest() for other in others)}) == 5
    assert base.digest() == Arm("a", "s", ("f",)).digest()
