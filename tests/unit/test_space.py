"""Places in a feature space against scikit-learn, scipy and loops; each row by itself alone."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.metrics import mutual_info_score
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors

from dataprune_ray import schema
from dataprune_ray.metrics import METRICS, Extent, MetricOptions
from dataprune_ray.metrics.distribution import SMOOTHING
from dataprune_ray.space import Space, SpaceOptions, Survey
from dataprune_ray.space.density import ball, fit_density, log_density
from dataprune_ray.space.neighbours import Sample
from dataprune_ray.space.steady import nearest_centre

ALL = frozenset(schema.PLACED) - {schema.DIGEST}  # a digest is of the content, not of a place


def hashes(rows):
    return np.random.default_rng(7).permutation(rows * 3)[:rows].astype(np.uint64)


@pytest.fixture(scope="module")
def digits():
    found = load_digits()
    features, labels = found.data.astype(np.float32), found.target.astype(np.int64)
    return Survey(features, labels, hashes(len(labels)), 10)


@st.composite
def surveys(draw):
    """Samples of a few rows: with copies, constant columns, one row, any scale."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows, width = draw(st.integers(1, 40)), draw(st.integers(1, 6))
    features = rng.normal(size=(rows, width)) * draw(st.sampled_from([0.0, 1e-3, 1.0, 1e4]))
    if draw(st.booleans()):
        features = np.round(features)
    if draw(st.booleans()):
        features[:, 0] = 3.0
    labels = rng.integers(0, 3, rows)
    return Survey(features.astype(np.float32), labels, hashes(rows), 3)


@pytest.mark.parametrize("density", ["gmm", "kmeans", "knn"])
@given(surveys(), st.integers(0, 2**32 - 1))
@settings(max_examples=15)
def test_any_sample_gives_finite_places_that_do_not_depend_on_the_batch(density, survey, seed):
    space = Space.fit(survey, ALL, SpaceOptions(density=density, neighbours=3), seed=1)
    rng = np.random.default_rng(seed)
    others = survey.features[rng.integers(0, len(survey.features), 20)]
    others += rng.normal(size=others.shape).astype(np.float32)
    features = np.concatenate([survey.features, others])
    labels = np.concatenate([survey.labels, rng.integers(0, 3, 20)])
    row_hash = np.concatenate([survey.row_hash, np.arange(10_000, 10_020, dtype=np.uint64)])
    whole = space.place(features, labels, row_hash)
    assert set(whole) == set(ALL)
    chosen = rng.permutation(len(features))[: rng.integers(1, len(features) + 1)]
    part = space.place(features[chosen], labels[chosen], row_hash[chosen])
    for name, values in whole.items():
        assert np.isfinite(values).all()
        assert (part[name] == values[chosen]).all()
    again, notes = Space.from_bytes(space.to_bytes(rows="9"))
    assert notes == {"rows": "9"}
    for name, values in again.place(features, labels, row_hash).items():
        assert (values == whole[name]).all()
    assert {len(v) for v in space.place(features[:0], labels[:0], row_hash[:0]).values()} == {0}


def test_only_what_is_asked_for_is_fitted_and_found(digits):
    space = Space.fit(digits, frozenset({schema.CLUSTER}), SpaceOptions(clusters=4), seed=0)
    assert set(space.tensors) == {"mean", "centres"}
    assert set(space.place(digits.features, digits.labels, digits.row_hash)) == {schema.CLUSTER}
    assert space.clusters == 4
    unlabelled = Space.fit(digits, ALL, SpaceOptions(), 0).place(
        digits.features, None, digits.row_hash
    )
    assert set(unlabelled) == ALL - {schema.CLASS_DISTANCE, schema.AGREEMENT}


# Clusters and classes


def test_prototype_distances_are_those_to_scikit_learns_centres(digits):
    space = Space.fit(digits, ALL, SpaceOptions(), seed=3)
    found = space.place(digits.features, digits.labels, digits.row_hash)
    centred = digits.features.astype(np.float64) - digits.features.mean(axis=0, dtype=np.float64)
    reference = KMeans(10, n_init=4, random_state=3).fit(centred)
    gaps = reference.transform(centred)
    assert found[schema.CENTRE_DISTANCE] == pytest.approx(gaps.min(axis=1), rel=1e-5)
    assert (found[schema.CLUSTER] == gaps.argmin(axis=1)).all()
    score = METRICS["prototype"].fit.values(found, {}, MetricOptions())
    assert score == pytest.approx(gaps.min(axis=1), rel=1e-5)


def test_class_distances_are_those_to_the_class_means(digits):
    space = Space.fit(digits, frozenset({schema.CLASS_DISTANCE}), SpaceOptions(), seed=0)
    found = space.place(digits.features, digits.labels, digits.row_hash)[schema.CLASS_DISTANCE]
    for row in range(0, 1797, 50):
        own = digits.features[digits.labels == digits.labels[row]].astype(np.float64)
        expected = np.linalg.norm(digits.features[row] - own.mean(axis=0))
        assert found[row] == pytest.approx(expected, rel=1e-5)


def test_equally_near_centres_give_the_first():
    index, distance = nearest_centre(np.zeros((3, 2)), np.array([[2.0, 0], [0, 1], [1, 0]]))
    assert (index.tolist(), distance.tolist()) == ([1, 1, 1], [1.0, 1.0, 1.0])


# Neighbours


@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=40)
def test_neighbours_are_those_of_a_full_search(rows, count, seed, tied):
    rng = np.random.default_rng(seed)
    sample = rng.normal(size=(rows, 3))
    if tied:
        sample = np.round(sample)
    known = hashes(rows)
    asked = np.concatenate([sample[:5], rng.integers(-1, 2, (4, 3)) * 1.0])
    row_hash = np.concatenate([known[:5], np.arange(500, 504, dtype=np.uint64)])
    found = Sample(sample, known).nearest(asked, row_hash, count)
    for row in range(len(asked)):
        gaps = [
            (math.dist(asked[row], sample[i]), i) for i in range(rows) if known[i] != row_hash[row]
        ]
        expected = sorted(gaps)[:count]
        there = found.there[row]
        assert there.sum() == len(expected)
        assert found.distance[row][there] == pytest.approx([d for d, _ in expected], abs=1e-12)
        if tied:  # distances are exact then, and ties fall by the sample's order
            assert found.index[row][there].tolist() == [i for _, i in expected]


def test_many_copies_are_taken_in_the_samples_order():
    sample = Sample(np.repeat([[0.0, 0.0], [1.0, 1.0]], 300, axis=0), hashes(600))
    found = sample.nearest(np.array([[1.0, 1.0]]), sample.row_hash[305:306], 8)
    assert found.index.tolist() == [[300, 301, 302, 303, 304, 306, 307, 308]]
    far = sample.nearest(np.array([[1.0, 1.0]]), np.array([9999], np.uint64), 3)
    assert far.index.tolist() == [[300, 301, 302]]


def test_agreement_is_that_of_scikit_learns_neighbours(digits):
    space = Space.fit(digits, frozenset({schema.AGREEMENT}), SpaceOptions(neighbours=10), seed=0)
    found = space.place(digits.features, digits.labels, digits.row_hash)[schema.AGREEMENT]
    features = digits.features.astype(np.float64)
    gaps, index = NearestNeighbors(n_neighbors=30, algorithm="brute").fit(features).kneighbors()
    clear = gaps[:, 9] < gaps[:, 10] - 1e-9  # the tenth neighbour is not tied with the next
    assert clear.mean() > 0.95
    expected = (digits.labels[index[:, :10]] == digits.labels[:, None]).mean(axis=1)
    assert found[clear] == pytest.approx(expected[clear], abs=1e-6)
    sampled = Survey(digits.features[:900], digits.labels[:900], digits.row_hash[:900], 10)
    half = Space.fit(sampled, frozenset({schema.AGREEMENT}), SpaceOptions(neighbours=10), seed=0)
    seen = half.place(digits.features, digits.labels, digits.row_hash)[schema.AGREEMENT]
    rest = NearestNeighbors(n_neighbors=10, algorithm="brute").fit(features[:900])
    index = rest.kneighbors(features[1700:1720])[1]
    expected = (digits.labels[index] == digits.labels[1700:1720, None]).mean(axis=1)
    assert np.abs(seen[1700:1720] - expected).max() <= 0.1 + 1e-6  # one tie at most
    assert np.median(np.abs(seen[1700:1720] - expected)) == 0


# Densities


def reduced(tensors, rows):
    return (rows - tensors["density_centre"]) @ tensors["density_axes"]


def test_the_mixture_is_that_of_scikit_learn_and_of_scipy(digits):
    rows = digits.features.astype(np.float64)
    tensors = fit_density("gmm", rows, digits.row_hash, 10, 10, seed=0)
    found = log_density("gmm", tensors, rows, digits.row_hash, 10)
    small = reduced(tensors, rows)
    assert small.shape == (1797, 16)
    assert small.var(axis=0, ddof=1).mean() == pytest.approx(1.0)
    mixture = GaussianMixture(10, reg_covar=1e-4, random_state=0).fit(small)
    assert found == pytest.approx(mixture.score_samples(small), rel=1e-5)
    parts = [
        w * multivariate_normal(m, c).pdf(small[:50])
        for w, m, c in zip(mixture.weights_, mixture.means_, mixture.covariances_, strict=True)
    ]
    assert found[:50] == pytest.approx(np.log(sum(parts)), rel=1e-5)


def test_the_density_of_clusters_is_their_share_over_their_volume():
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.uniform(-1, 1, (3000, 1)), rng.uniform(9, 13, (1000, 1))])
    tensors = fit_density("kmeans", rows, hashes(4000), 2, 10, seed=0)
    unit = 1 / abs(tensors["density_axes"][0, 0])
    found = np.exp(log_density("kmeans", tensors, rows, hashes(4000), 10)) / unit
    assert found[:3000] == pytest.approx(0.75 / 2, rel=0.05)  # uniform: share over length
    assert found[3000:] == pytest.approx(0.25 / 4, rel=0.05)
    assert [math.exp(ball(d)) for d in (1, 2, 3)] == pytest.approx([2, math.pi, 4 / 3 * math.pi])


@pytest.mark.parametrize("kind", ["knn", "gmm"])
def test_a_normal_sample_has_about_the_normal_density(kind):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(8000, 2))
    tensors = fit_density(kind, rows, hashes(8000), 1, 50, seed=0)
    found = log_density(kind, tensors, rows[:500], hashes(8000)[:500], 50)
    volume = -math.log(abs(np.linalg.det(tensors["density_axes"])))  # of the change of unit
    expected = multivariate_normal(np.zeros(2)).logpdf(rows[:500])
    assert np.median(np.abs(found - volume - expected)) < 0.12


def test_the_neighbours_density_is_the_formula_and_leaves_the_row_out():
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(200, 3))
    row_hash = hashes(200)
    tensors = fit_density("knn", rows, row_hash, 1, 5, seed=0)
    outside = np.array([[0.2, 0.1, -0.3]])
    found = log_density("knn", tensors, np.concatenate([rows[:20], outside]), np.concatenate(
        [row_hash[:20], [np.uint64(10**6)]]), 5)  # fmt: skip
    small, last = reduced(tensors, rows), reduced(tensors, outside)
    for row, others, place in [
        *((i, np.delete(small, i, axis=0), small[i]) for i in range(20)),
        (20, small, last[0]),
    ]:
        radius = np.sort(np.linalg.norm(others - place, axis=1))[4]
        density = 5 / (len(others) * 4 / 3 * math.pi * radius**3)
        assert found[row] == pytest.approx(math.log(density), rel=1e-5)


@pytest.mark.parametrize("kind", ["gmm", "knn", "kmeans"])
def test_an_outlier_is_less_likely_than_any_other_row(kind):
    rng = np.random.default_rng(2)
    rows = np.concatenate([rng.normal(size=(300, 4)), [[40.0, -40, 0, 0]]])
    features = rows.astype(np.float32)
    survey = Survey(features, np.zeros(301, np.int64), hashes(301))
    options = SpaceOptions(density=kind, clusters=6)
    space = Space.fit(survey, frozenset({schema.LOG_DENSITY}), options, seed=0)
    placed = space.place(features, None, survey.row_hash)
    for name in ("surprisal", "inverse_density"):
        values = METRICS[name].fit.values(placed, {}, MetricOptions())
        assert values[-1] == values.max() > values[:-1].max()
    capped = METRICS["inverse_density"].fit.values(
        {schema.LOG_DENSITY: np.array([-1e4, -1.0], np.float32)}, {}, MetricOptions()
    )
    assert capped[0] == pytest.approx(np.finfo(np.float32).max, rel=1e-4)
    assert np.isfinite(capped.astype(np.float32)).all()
    assert capped[1] == pytest.approx(math.e)


# Mutual information


def counted(cluster, label, extent, cuts=()):
    fit = METRICS["mutual_information"].fit
    (step,) = fit.steps
    total = step.kernel({"cluster": cluster[:0], "label": label[:0]}, {}, extent)
    for low, high in itertools.pairwise([0, *sorted(cuts), len(cluster)]):
        part = {"cluster": cluster[low:high], "label": label[low:high]}
        total = step.merge(total, step.kernel(part, {}, extent))
    return {step.name: step.value(total)}


@given(st.data(), st.integers(1, 60), st.integers(1, 5), st.integers(1, 4))
def test_mutual_information_is_pointwise_of_smoothed_counts(data, rows, clusters, classes):
    cluster = np.array(
        data.draw(st.lists(st.integers(0, clusters - 1), min_size=rows, max_size=rows)), np.int32
    )
    label = np.array(
        data.draw(st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows)), np.int32
    )
    cuts = data.draw(st.lists(st.integers(0, rows), max_size=3))
    found = counted(cluster, label, Extent(1, classes, clusters), cuts)
    columns = {"cluster": cluster, "label": label, "log_density": np.full(rows, -2, np.float32)}
    values = METRICS["mutual_information"].fit.values(columns, found, MetricOptions())
    cells = {(k, y): SMOOTHING for k in range(clusters) for y in range(classes)}
    for pair in zip(cluster.tolist(), label.tolist(), strict=True):
        cells[pair] += 1
    total = sum(cells.values())
    for row in range(rows):
        k, y = int(cluster[row]), int(label[row])
        pk = sum(v for (a, _), v in cells.items() if a == k) / total
        py = sum(v for (_, b), v in cells.items() if b == y) / total
        assert values[row] == pytest.approx(math.log(cells[k, y] / total / pk / py), abs=1e-9)
    options = MetricOptions(surprisal_weight=0.25, mutual_information_weight=2.0)
    both = METRICS["information"].fit.values(columns, found, options)
    assert both == pytest.approx(0.25 * 2 + 2 * values)


def test_the_mean_is_the_mutual_information_of_scikit_learn(digits, monkeypatch):
    monkeypatch.setattr("dataprune_ray.metrics.distribution.SMOOTHING", 0.0)
    space = Space.fit(digits, frozenset({schema.CLUSTER}), SpaceOptions(), seed=0)
    cluster = space.place(digits.features, None, digits.row_hash)[schema.CLUSTER]
    found = counted(cluster, digits.labels, Extent(1, 10, 10))
    columns = {"cluster": cluster, "label": digits.labels}
    with np.errstate(divide="ignore"):
        values = METRICS["mutual_information"].fit.values(columns, found, MetricOptions())
    assert values.mean() == pytest.approx(mutual_info_score(digits.labels, cluster), rel=1e-9)


# Moderate


@given(st.integers(1, 80), st.integers(1, 4), st.integers(0, 2**32 - 1), st.data())
@settings(max_examples=40)
def test_moderate_is_the_gap_to_the_classs_median(rows, classes, seed, data):
    rng = np.random.default_rng(seed)
    distance = np.abs(rng.normal(size=rows)) * data.draw(st.sampled_from([0.0, 1e-30, 1.0, 1e20]))
    if data.draw(st.booleans()):
        distance = np.round(distance)
    label = rng.integers(0, classes, rows).astype(np.int32)
    columns = {"class_distance": distance.astype(np.float32), "label": label}
    cuts = data.draw(st.lists(st.integers(0, rows), max_size=3))
    fit, found = METRICS["moderate"].fit, {}
    for step in fit.steps:
        empty = {name: values[:0] for name, values in columns.items()}
        total = step.kernel(empty, found, Extent(1, classes))
        for low, high in itertools.pairwise([0, *sorted(cuts), rows]):
            part = {name: values[low:high] for name, values in columns.items()}
            total = step.merge(total, step.kernel(part, found, Extent(1, classes)))
        found[step.name] = step.value(total)
    values = fit.values(columns, found, MetricOptions())
    for row in range(rows):
        own = columns["class_distance"][label == label[row]].astype(np.float64)
        expected = abs(float(columns["class_distance"][row]) - np.median(own))
        assert values[row] == pytest.approx(expected, rel=1e-6)
