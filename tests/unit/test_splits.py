"""Folds and held-out shares: every row once, independent of order, ties and other seeds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataprune_ray.cutoff import seeded_hash
from dataprune_ray.io.splits import Split

HASHES = seeded_hash(np.arange(20_000, dtype=np.uint64), 7)


@given(folds=st.integers(2, 12), seed=st.integers(0, 2**63 - 1))
def test_folds_hold_every_row_once(folds, seed):
    held = np.array([Split.fold(folds, i, seed).admits(HASHES) for i in range(folds)])
    assert (held.sum(axis=0) == 1).all()
    sizes = held.sum(axis=1)
    assert abs(sizes - len(HASHES) / folds).max() < 6 * np.sqrt(len(HASHES) / folds)


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5, 0.99])
def test_a_share_and_its_others_are_the_whole(fraction):
    split = Split.share(fraction)
    inside, outside = split.admits(HASHES), split.others().admits(HASHES)
    assert (inside ^ outside).all()
    assert abs(inside.mean() - fraction) < 0.02
    assert split.admitted == pytest.approx(fraction)
    assert split.others().admitted == pytest.approx(1 - fraction)
    assert split.others().others() == split


def test_a_split_looks_at_each_row_alone():
    order = np.random.default_rng(0).permutation(len(HASHES))
    split = Split.fold(5, 2)
    assert (split.admits(HASHES)[order] == split.admits(HASHES[order])).all()


def test_folds_have_nothing_to_do_with_random_choices_of_the_same_seed():
    lowest = seeded_hash(HASHES, 0) < np.uint64(2**63)
    assert abs(lowest[Split.share(0.5, 0).admits(HASHES)].mean() - 0.5) < 0.03


def test_another_seed_splits_differently():
    first, second = Split.share(0.5, 0).admits(HASHES), Split.share(0.5, 1).admits(HASHES)
    assert abs((first & second).mean() - 0.25) < 0.02
