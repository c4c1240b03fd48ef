"""Rows in memory without Ray: pieces joined, weights of an arm's rows, leaks refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataprune_ray import holding
from dataprune_ray.errors import ConfigError, DataPruneError
from dataprune_ray.holding import Limit, Size, normalised


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


sizes = st.lists(st.builds(Size, st.integers(0, 50), st.integers(0, 50)), max_size=5)


@given(sizes)
def test_sizes_add_up_to_rows_of_the_greatest_width(parts):
    """As texts are padded to the longest: against the bytes of the padded array."""
    total = Size()
    for part in parts:
        total = total.plus(part)
    widest = max((part.row_bytes for part in parts), default=0)
    assert total.bytes == np.zeros((sum(part.rows for part in parts), widest), np.uint8).nbytes


def test_more_than_the_limit_is_refused_with_what_to_do():
    limit = Limit(3, "stream them")
    limit.check(Size(3, 1 << 20))
    with pytest.raises(ConfigError, match=r"train_memory_mb=3: 4 rows so far.* 4 MB; raise it, or"):
        limit.check(Size(4, 1 << 20), " so far")


def test_a_row_without_a_weight_is_an_error():
    hashes = np.array([3, 9], np.uint64)
    with pytest.raises(KeyError, match="no weight"):
        normalised(np.ones(2), hashes, np.array([4], np.uint64))
    with pytest.raises(KeyError, match="no weight"):
        normalised(np.ones(2), hashes, np.array([10], np.uint64))
