"""Neighbours against a brute-force search, and fences against numpy's quantiles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataprune_ray.cutoff import Block, MemoryPopulation, seeded_hash
from dataprune_ray.quality.neighbours import Reference, normalised
from dataprune_ray.quality.outliers import Fences, fences


def sample(count, seed=0, dimensions=6):
    rng = np.random.default_rng(seed)
    features = normalised(rng.normal(size=(count, dimensions)).astype(np.float32))
    return features, rng.integers(0, 3, count), seeded_hash(np.arange(count, dtype=np.uint64), 5)


def brute(reference, features, labels, hashes, neighbours):
    agreement, distance = [], []
    for row, label, identity in zip(features, labels, hashes, strict=True):
        gaps = [
            (np.linalg.norm(row.astype(np.float64) - other), own)
            for other, own, it in zip(*reference, strict=True)
            if it != identity
        ]
        nearest = sorted(gaps)[:neighbours]
        agreement.append(np.mean([own == label for _, own in nearest]) if nearest else np.nan)
        distance.append(np.mean([gap for gap, _ in nearest]) if nearest else np.nan)
    return np.array(agreement), np.array(distance)


@pytest.mark.parametrize(("held", "neighbours"), [(60, 5), (60, 1), (4, 10), (60, 60), (1, 3)])
def test_neighbours_are_those_of_a_brute_force_search(held, neighbours):
    features, labels, hashes = sample(100)
    inside = (features[:held], labels[:held], hashes[:held])
    reference = Reference.fit(*inside, neighbours, seed=0)
    seen = reference.judge(features, labels, hashes, neighbours)
    agreement, distance = brute(inside, features, labels, hashes, neighbours)
    np.testing.assert_allclose(seen.agreement, agreement, atol=1e-6)
    own = distance[:held][~np.isnan(distance[:held])]
    unit = np.median(own) if len(own) else 1.0
    assert reference.unit == pytest.approx(unit, rel=1e-5)
    np.testing.assert_allclose(seen.distance, distance / unit, rtol=1e-4)
    gaps = ((features[:, None].astype(np.float64) - reference.centres) ** 2).sum(axis=2)
    assert (seen.cluster == gaps.argmin(axis=1)).all()


def test_a_row_is_judged_alone():
    features, labels, hashes = sample(300)
    reference = Reference.fit(features[:200], labels[:200], hashes[:200], 10, seed=0)
    whole = reference.judge(features, labels, hashes, 10)
    order = np.random.default_rng(1).permutation(300)
    shuffled = reference.judge(features[order], labels[order], hashes[order], 10)
    assert (whole.agreement[order] == shuffled.agreement).all()
    np.testing.assert_allclose(whole.distance[order], shuffled.distance, rtol=1e-6)


def test_duplicates_of_a_row_are_neighbours_and_itself_is_not():
    features = np.repeat(normalised(np.eye(2, dtype=np.float32)), 4, axis=0)
    labels = np.array([0, 0, 0, 1, 2, 2, 2, 2])
    hashes = np.arange(8, dtype=np.uint64)
    reference = Reference.fit(features, labels, hashes, 3, seed=0)
    seen = reference.judge(features, labels, hashes, 3)
    expected = [2 / 3, 2 / 3, 2 / 3, 0, 1, 1, 1, 1]
    np.testing.assert_allclose(seen.agreement, expected, atol=1e-6)
    assert not seen.distance.any()
    assert reference.unit == 1.0


def test_zero_features_stay_finite():
    assert not normalised(np.zeros((3, 4), np.float32)).any()


@settings(max_examples=60)
@given(
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60),
    parts=st.integers(1, 4),
)
def test_fences_are_those_of_numpys_quartiles(values, parts):
    scores = np.array(values, np.float32)
    hashes = seeded_hash(np.arange(len(scores), dtype=np.uint64), 0)
    pieces = np.array_split(np.arange(len(scores)), parts)
    found = fences(MemoryPopulation([Block(scores[p], hashes[p]) for p in pieces]))
    q1, q3 = np.quantile(scores, [0.25, 0.75], method="inverted_cdf")
    assert (found.q1, found.q3) == (q1, q3)
    spread = float(q3) - float(q1)
    expected = (scores < q1 - 1.5 * spread) | (scores > q3 + 1.5 * spread)
    assert (found.outside(scores) == expected).all()


def test_no_rows_have_no_fences_and_unknown_values_are_no_outliers():
    assert fences(MemoryPopulation([])) is None
    beyond = Fences(1.0, 2.0).outside(np.array([np.nan, -0.6, -0.5, 3.5, 3.6], np.float32))
    assert beyond.tolist() == [False, True, False, False, True]
