"""Copies and near duplicates against literal loops, and the shuffle against one pass in memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import LedoitWolf

from dataprune_ray.features import FeatureSpec, TabularColumn, encode
from dataprune_ray.features.digest import digests
from dataprune_ray.metrics import METRICS, MetricOptions
from dataprune_ray.space import Space, SpaceOptions, Survey
from dataprune_ray.space.clusters import spherical_k_means
from dataprune_ray.space.duplicates import MOST_ROWS, later_copies
from dataprune_ray.space.whitening import whitening
from dataprune_ray.space.within import nearest_direction, normalised


def redundancy(vectors, cluster, similarity, row_hash, copies, epsilon, most=MOST_ROWS):
    """The metric's second stage over all rows of some clusters."""
    columns = {
        "vector": vectors, "sphere": cluster, "sphere_similarity": similarity, "row_hash": row_hash,
    }  # fmt: skip
    fit = replace(METRICS["redundancy"].fit, most=most)
    return fit.over(columns, copies, MetricOptions(duplicate_epsilon=epsilon))


def literal(vectors, cluster, similarity, row_hash, copies, epsilon):
    """SemDeDup as it is described, one row and one pair at a time."""
    values = np.ones(len(vectors))
    for code in set(cluster.tolist()):
        members = [i for i in range(len(vectors)) if cluster[i] == code and not copies[i]]
        kept = []
        for i in sorted(members, key=lambda i: (similarity[i], row_hash[i])):
            cosines = [float(vectors[i].astype(np.float64) @ vectors[j]) for j in kept]
            values[i] = max(0.0, *cosines) if cosines else 0.0
            if values[i] <= 1 - epsilon:
                kept.append(i)
    return values


@st.composite
def clouds(draw, most_rows=300):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows, width = draw(st.integers(1, most_rows)), draw(st.integers(1, 5))
    features = rng.normal(size=(rows, width)).astype(np.float32)
    near = rng.integers(0, rows, rows // 2)
    features[: rows // 2] = features[near] + rng.normal(size=(rows // 2, width)) * 1e-2
    vectors = normalised(features)
    centres = spherical_k_means(vectors.astype(np.float64), draw(st.integers(1, 4)), 0)
    cluster, similarity = nearest_direction(vectors, centres)
    row_hash = rng.permutation(rows).astype(np.uint64)
    copies = rng.random(rows) < draw(st.sampled_from([0.0, 0.2]))
    return vectors, cluster, similarity, row_hash, copies


@given(clouds(), st.floats(0.0101, 0.5), st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_redundancy_is_that_of_the_literal_loop_in_any_order(cloud, epsilon, seed):
    found = redundancy(*cloud, epsilon)
    expected = literal(*cloud, epsilon)
    near = np.abs(expected - (1 - epsilon)) < 1e-5  # rounding decides there
    if not near.any():
        assert found.values == pytest.approx(expected, abs=1e-5)
    assert found.split == 0
    assert ((found.values >= 0) & (found.values <= 1)).all()
    order = np.random.default_rng(seed).permutation(len(cloud[0]))
    again = redundancy(*(part[order] for part in cloud), epsilon)
    assert (again.values == found.values[order]).all()


def test_what_was_dropped_drops_nothing():
    """Three rows on an arc: the middle one is near both ends, which are far from each other."""
    angles = np.array([0.0, 0.3, 0.6])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    similarity = np.array([0.1, 0.2, 0.3], np.float32)
    none, code = np.zeros(3, np.bool_), np.zeros(3, np.int32)
    found = redundancy(vectors, code, similarity, np.arange(3, dtype=np.uint64), none, 0.06)
    assert found.values == pytest.approx([0.0, np.cos(0.3), np.cos(0.6)], abs=1e-6)
    assert np.cos(0.6) < 0.94 < np.cos(0.3)


def test_a_large_cluster_is_split_and_still_finds_what_lies_together():
    rng = np.random.default_rng(0)
    base = normalised(rng.normal(size=(1500, 8)).astype(np.float32))
    twins = normalised(base + rng.normal(size=base.shape).astype(np.float32) * 1e-3)
    vectors = np.concatenate([base, twins])
    row_hash = rng.permutation(3000).astype(np.uint64)
    code, none = np.zeros(3000, np.int32), np.zeros(3000, np.bool_)
    similarity = vectors[:, 0]
    found = redundancy(vectors, code, similarity, row_hash, none, 0.001, most=700)
    whole = redundancy(vectors, code, similarity, row_hash, none, 0.001, most=3000)
    assert (found.split, whole.split) == (1, 0)
    assert (whole.values > 0.999).sum() == 1500
    assert 1450 <= (found.values > 0.999).sum() <= 1500
    order = rng.permutation(3000)
    again = redundancy(
        vectors[order], code, similarity[order], row_hash[order], none, 0.001, most=700
    )
    assert (again.values == found.values[order]).all()
    alike = np.repeat(vectors[:1], 300, axis=0)  # cannot be split by what it is
    found = redundancy(alike, code[:300], similarity[:300], row_hash[:300], none[:300], 0.1, 100)
    assert (found.values < 0.5).sum() == 3


def test_spherical_k_means_finds_directions_whatever_the_lengths_of_sums():
    rng = np.random.default_rng(1)
    true = normalised(rng.normal(size=(3, 6)).astype(np.float32))
    sizes = (500, 50, 5)
    noisy = [t + rng.normal(size=(n, 6)) * 0.05 for t, n in zip(true, sizes, strict=True)]
    rows = np.concatenate(noisy)
    centres = spherical_k_means(normalised(rows.astype(np.float32)).astype(np.float64), 3, 0)
    assert np.linalg.norm(centres, axis=1) == pytest.approx(1)
    assert ((centres @ true.T).max(axis=0) > 0.99).all()


# Whitening


@pytest.mark.parametrize(("rows", "width"), [(400, 5), (30, 20), (50, 700)])
def test_whitened_features_have_the_unit_as_their_shrunk_covariance(rows, width):
    rng = np.random.default_rng(0)
    plain = rng.normal(size=(rows, width)) @ rng.normal(size=(width, width))
    centred = plain - plain.mean(axis=0)
    axes = whitening(centred)
    assert axes.shape == (width, min(width, 512))
    reference = LedoitWolf(assume_centered=True).fit(centred).covariance_
    assert axes.T @ reference @ axes == pytest.approx(np.eye(min(width, 512)), abs=1e-6)


def test_features_without_spread_can_be_whitened():
    assert np.isfinite(whitening(np.zeros((1, 3)))).all()
    constant = np.stack([np.arange(-5.0, 6.0), np.zeros(11)], axis=1)
    assert np.isfinite(whitening(constant)).all()


def test_whitening_tells_rows_of_one_class_apart():
    """Two directions with a large spread, many with a small one: as a classifier's features."""
    rng = np.random.default_rng(0)
    spread = np.array([50.0, 50.0] + [1.0] * 14)
    rows = rng.normal(size=(500, 16)) * spread + 100
    near = rows[:100] + rng.normal(size=(100, 16)) * spread * 0.1
    features = np.concatenate([rows, near]).astype(np.float32)
    survey = Survey(features, np.zeros(600, np.int64), np.arange(600, dtype=np.uint64))
    best = {}
    for whiten in (True, False):
        options = SpaceOptions(whiten=whiten)
        space = Space.fit(survey, frozenset({"sphere", "vector"}), options, seed=0)
        vectors = space.place(features, None, survey.row_hash)["vector"]
        cosines = vectors @ vectors.T
        np.fill_diagonal(cosines, -1)
        twins = cosines[range(100), range(500, 600)]
        others = np.delete(cosines[:100], range(500, 600), axis=1).max(axis=1)
        best[whiten] = (twins > others).mean()
    assert best[True] > 0.99
    assert best[False] < 0.9


# Copies


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(0, 2**32 - 1))
def test_all_but_the_first_by_hash_are_later_copies(contents, seed):
    row_hash = np.random.default_rng(seed).permutation(len(contents)).astype(np.uint64)
    keys = np.array([[c % 2, c] for c in contents], np.uint64)
    found = later_copies(keys, row_hash)
    for i, content in enumerate(contents):
        earlier = [j for j, c in enumerate(contents) if c == content and row_hash[j] < row_hash[i]]
        assert found[i] == bool(earlier)
    assert later_copies(keys[:0], row_hash[:0]).tolist() == []


def equal_digests(spec, columns):
    batch = pa.RecordBatch.from_pydict(columns)
    encoded = encode(spec, batch)
    found = digests(spec, batch, encoded.values, encoded.good)
    assert found.shape == (encoded.good.sum(), 2)
    return [[bool((a == b).all()) for b in found] for a in found]


def test_texts_and_tables_are_compared_as_stored():
    text = FeatureSpec("text", ("a",), (256,))
    same = equal_digests(text, {"a": ["Good film!", "good film", "good film", None, "film good"]})
    assert np.array(same).tolist() == [
        [True, False, False, False], [False, True, True, False],
        [False, True, True, False], [False, False, False, True],
    ]  # fmt: skip
    two = FeatureSpec("text", ("a", "b"), (256,))
    same = equal_digests(two, {"a": ["ab", "a", "ab"], "b": ["c", "bc", "c"]})
    assert same == [[True, False, True], [False, True, False], [True, False, True]]
    table = FeatureSpec(
        "tabular", (), (65,), tabular=(TabularColumn("x", False), TabularColumn("k", True))
    )
    names = [f"n{i}" for i in range(200)]  # more than there are buckets
    same = np.array(equal_digests(table, {"x": [1.0] * 200, "k": names}))
    assert (same == np.eye(200, dtype=bool)).all()


def test_arrays_are_compared_as_the_model_takes_them():
    spec = FeatureSpec("tensor", ("x",), (2,))
    rows = pa.array([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0]], pa.list_(pa.float64()))
    same = equal_digests(spec, {"x": rows})
    assert same == [[True, False, True], [False, True, False], [True, False, True]]
