"""Rows in memory without Ray: pieces joined, weights of an arm's rows, leaks refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataprune_ray import holding
from dataprune_ray.errors import DataPruneError
from dataprune_ray.holding import normalised


def test_pieces_are_joined_and_texts_padded():
    hashes = [np.array([5, 1], np.uint64), np.zeros(0, np.uint64), np.array([3], np.uint64)]
    values = [np.array([[1, 2], [3, 4]]), np.zeros((0, 9), np.int64), np.array([[5, 6, 7]])]
    targets = [np.array([0, 1]), np.zeros(0, np.int64), np.array([2])]
    held = holding._joined(hashes, values, targets)
    assert held.hashes.tolist() == [5, 1, 3]
    assert held.values.tolist() == [[1, 2, 0], [3, 4, 0], [5, 6, 7]]
    assert held.targets.tolist() == [0, 1, 2]
    assert len(holding._joined([], [], []).hashes) == 0


def test_rows_of_the_test_set_are_refused():
    train, test = np.array([1, 2, 3], np.uint64), np.array([3, 9], np.uint64)
    holding.check_apart(train[:2], test, "pruned")
    with pytest.raises(DataPruneError, match="1 of the 3 rows that arm pruned"):
        holding.check_apart(train, test, "pruned")


@given(
    st.dictionaries(st.integers(0, 2**64 - 1), st.floats(1, 1e6), min_size=1, max_size=30),
    st.randoms(use_true_random=False),
)
def test_weights_go_with_their_rows_and_have_a_mean_of_one(rows, random):
    wanted = [row for row in rows if random.random() < 0.7] or [min(rows)]
    random.shuffle(wanted)
    hashes, weights = np.array(list(rows), np.uint64), np.array(list(rows.values()))
    found = normalised(weights, hashes, np.array(wanted, np.uint64))
    expected = np.array([rows[row] for row in wanted])
    np.testing.assert_allclose(found, expected / expected.mean(), rtol=1e-6)


def test_a_row_without_a_weight_is_an_error():
    hashes = np.array([3, 9], np.uint64)
    with pytest.raises(KeyError, match="no weight"):
        normalised(np.ones(2), hashes, np.array([4], np.uint64))
    with pytest.raises(KeyError, match="no weight"):
        normalised(np.ones(2), hashes, np.array([10], np.uint64))
