"""Orders that cover a cluster: against literal loops, against the best sets, in any order."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataprune_ray.metrics import METRICS, MetricOptions
from dataprune_ray.space import Members, facility_location, k_center
from dataprune_ray.space.within import normalised

UNIT = 2**23


def rounded_similarities(rows):
    """Similarities of all pairs in units of 2**-23, one at a time."""
    vectors = rows.vectors.astype(np.float64)
    return [
        [max(0, round((1 - ((a - b) ** 2).sum() / 4) * UNIT)) for b in vectors] for a in vectors
    ]


def literal_k_center(rows):
    """Farthest-first traversal: every row's nearest chosen one is looked for anew each time."""
    similar, rest = rounded_similarities(rows), set(range(len(rows)))
    order = [min(rest, key=lambda i: (-rows.similarity[i], rows.row_hash[i]))]
    while rest := rest - set(order):
        nearest = {i: max(similar[j][i] for j in order) for i in rest}
        order.append(min(rest, key=lambda i: (nearest[i], rows.row_hash[i])))
    return order


def literal_facility_location(rows):
    """The objective of every possible next set, from its definition."""
    similar, everything = np.array(rounded_similarities(rows)), set(range(len(rows)))
    order = []
    while rest := everything - set(order):
        total = {i: similar[[*order, i]].max(axis=0).sum() for i in rest}
        order.append(min(rest, key=lambda i: (-total[i], rows.row_hash[i])))
    return order


ORDERS = {k_center: literal_k_center, facility_location: literal_facility_location}
both = pytest.mark.parametrize("function", ORDERS, ids=lambda f: f.__name__)


@st.composite
def clusters(draw, most_rows=40):
    """Rows in general position, on a lattice of many equal distances, or mostly copies."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows, width = draw(st.integers(1, most_rows)), draw(st.integers(1, 4))
    kind = draw(st.sampled_from(["general", "lattice", "copies"]))
    features = rng.normal(size=(rows, width)).astype(np.float32)
    if kind == "lattice":
        features = np.sign(features) * rng.integers(0, 2, features.shape)
    if kind == "copies":
        features = features[rng.integers(0, max(1, rows // 3), rows)]
    vectors = normalised(features)
    similarity = (vectors @ normalised(vectors.sum(axis=0, keepdims=True)).T)[:, 0]
    return Members(vectors, similarity, rng.permutation(rows).astype(np.uint64))


def order_of(values):
    return np.argsort(-values).tolist()


@both
@given(rows=clusters())
@settings(max_examples=60)
def test_the_order_is_that_of_the_literal_loop(function, rows):
    values = function(rows)
    assert values.dtype == np.float32
    assert np.sort(values)[::-1] == pytest.approx(1 - np.arange(len(rows)) / len(rows), abs=1e-7)
    assert order_of(values) == ORDERS[function](rows)


@both
@given(rows=clusters(300), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_values_do_not_depend_on_the_order_of_rows(function, rows, seed):
    order = np.random.default_rng(seed).permutation(len(rows))
    assert (function(rows.take(order)) == function(rows)[order]).all()


@both
def test_more_rows_than_one_block_are_the_literal_loop_too(function):
    rng = np.random.default_rng(0)
    vectors = normalised(rng.normal(size=(150, 3)))
    rows = Members(vectors, vectors[:, 0], rng.permutation(150).astype(np.uint64))
    assert order_of(function(rows)) == ORDERS[function](rows)


@both
def test_rows_of_zeros_are_alike_and_copies_come_last(function):
    rng = np.random.default_rng(1)
    features = rng.normal(size=(30, 5))
    features[7] = 0
    vectors = normalised(features)[np.arange(60) % 30]
    rows = Members(vectors, vectors[:, 0], rng.permutation(60).astype(np.uint64))
    first = order_of(function(rows))[:30]
    assert len({i % 30 for i in first}) == 30


@given(clusters(9))
@settings(max_examples=60)
def test_the_radius_of_k_center_is_at_most_twice_the_smallest(rows):
    vectors = rows.vectors.astype(np.float64)
    gaps = np.linalg.norm(vectors[:, None] - vectors, axis=2)
    order = order_of(k_center(rows))
    for size in range(1, len(rows) + 1):
        sets = itertools.combinations(range(len(rows)), size)
        smallest = min(gaps[list(chosen)].min(axis=0).max() for chosen in sets)
        radius = gaps[order[:size]].min(axis=0).max()
        assert radius <= 2 * smallest + 1e-3  # squares are rounded to 2**-21


@given(clusters(9))
@settings(max_examples=60)
def test_facility_location_reaches_its_share_of_the_largest_sum(rows):
    vectors = rows.vectors.astype(np.float64)
    similar = 1 - ((vectors[:, None] - vectors) ** 2).sum(axis=2) / 4
    order = order_of(facility_location(rows))
    for size in range(1, len(rows) + 1):
        sets = itertools.combinations(range(len(rows)), size)
        largest = max(similar[list(chosen)].max(axis=0).sum() for chosen in sets)
        reached = similar[order[:size]].max(axis=0).sum()
        assert reached >= (1 - 1 / math.e) * largest - 1e-5


@pytest.mark.parametrize("name", ["k_center", "facility_location"])
def test_a_cut_keeps_the_first_share_of_every_cluster_and_smaller_cuts_are_inside(name):
    rng = np.random.default_rng(2)
    sizes = [1, 7, 40, 200, 352]
    cluster = rng.permutation(np.repeat(np.arange(5), sizes)).astype(np.int32)
    vectors = normalised(rng.normal(size=(600, 6)) + 3 * np.eye(6)[cluster])
    columns = {
        "vector": vectors, "sphere": cluster, "row_hash": rng.permutation(600).astype(np.uint64),
        "sphere_similarity": vectors[np.arange(600), cluster],
    }  # fmt: skip
    fit, none = METRICS[name].fit, np.zeros(600, np.bool_)
    found = fit.over(columns, none, MetricOptions())
    assert found.split == 0
    before = set()
    for kept in (6, 60, 300, 599):
        chosen = np.lexsort((columns["row_hash"], -found.values))[:kept]
        counts = np.bincount(cluster[chosen], minlength=5)
        cut = found.values[chosen].min()
        assert (counts >= 1).all()
        assert (counts <= np.array(sizes) * (1 - cut) + 1 + 1e-4).all()
        assert (counts >= np.array(sizes) * (1 - cut) - 1e-4).all()
        assert before < set(chosen)
        before = set(chosen)
    pieces = replace(fit, most=100).over(columns, none, MetricOptions())
    assert pieces.split == 2
    assert 6 < (pieces.values == 1).sum() < 30  # one in each piece
    assert (found.values == 1).sum() == 5
