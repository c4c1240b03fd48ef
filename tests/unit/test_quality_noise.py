"""Confident learning against a plain transcription of the paper, and on planted noise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neural_network import MLPClassifier

from dataprune_ray.quality.noise import (
    ClassSums,
    calibrated,
    confident_joint,
    counted_class,
    most_probable,
    share_of_noise,
    suspected,
)


def paper(labels, p):
    """Equations 1 to 3 of the paper, row by row: counts and the calibrated joint."""
    classes = p.shape[1]
    threshold = [np.mean([p[i, j] for i in range(len(p)) if labels[i] == j]) if j in labels
                 else np.inf for j in range(classes)]  # fmt: skip
    counts = np.zeros((classes, classes), int)
    for label, row in zip(labels, p, strict=True):
        confident = [j for j in range(classes) if row[j] >= threshold[j] - 1e-6]
        if confident:
            counts[label, max(confident, key=lambda j: row[j])] += 1
    joint = np.zeros((classes, classes))
    for i in range(classes):
        row = counts[i] if counts[i].sum() else np.eye(classes)[i]
        joint[i] = row / row.sum() * np.mean(labels == i)
    return counts, joint


def found(labels, p, parts=1):
    """What the package makes of rows in ``parts`` pieces, merged last piece first."""
    classes = p.shape[1]
    pieces = np.array_split(np.arange(len(p)), parts)[::-1]
    sums = None
    for piece in pieces:
        own = ClassSums.of(labels[piece], p[piece, labels[piece]], classes)
        sums = own if sums is None else sums.merge(own)
    counted = counted_class(*most_probable(p, classes), sums.thresholds())
    joint = sum(confident_joint(labels[piece], counted[piece], classes) for piece in pieces)
    return sums, counted, joint


def rows(seed, count, classes):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(classes, 0.5), count).astype(np.float32)
    return rng.integers(0, classes, count), p


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 60),
    classes=st.integers(2, 7),
    parts=st.integers(1, 5),
)
def test_joint_is_the_papers(seed, count, classes, parts):
    labels, p = rows(seed, count, classes)
    expected_counts, expected_joint = paper(labels, p.astype(np.float64))
    sums, counted, joint = found(labels, p, parts)
    assert (joint == expected_counts).all()
    distribution = calibrated(joint, sums.rows)
    np.testing.assert_allclose(distribution, expected_joint, atol=1e-9)
    assert distribution.sum() == pytest.approx(1.0)
    off = expected_joint.sum() - np.trace(expected_joint)
    assert share_of_noise(distribution) == pytest.approx(off, abs=1e-9)
    flagged = expected_counts.sum() - np.trace(expected_counts)
    assert suspected(labels, counted).sum() == flagged


def test_parts_merge_to_the_same_bits():
    labels, p = rows(3, 5_000, 20)
    whole, in_parts = found(labels, p, 1), found(labels, p, 17)
    assert (whole[0].total == in_parts[0].total).all()
    assert (whole[0].thresholds() == in_parts[0].thresholds()).all()
    assert (whole[2] == in_parts[2]).all()


def test_perfect_models_find_exactly_the_wrong_labels():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 4, 1_000)
    labels = np.where(rng.random(1_000) < 0.3, (true + 1) % 4, true)
    p = np.full((1_000, 4), 0.02, np.float32)
    p[np.arange(1_000), true] = 0.94
    sums, counted, joint = found(labels, p)
    assert (suspected(labels, counted) == (labels != true)).all()
    assert share_of_noise(calibrated(joint, sums.rows)) == pytest.approx(np.mean(labels != true))


def test_a_class_without_rows_is_never_counted():
    labels = np.array([0, 0, 1])
    p = np.array([[0.1, 0.1, 0.8], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1]], np.float32)
    sums, counted, joint = found(labels, p)
    assert np.isinf(sums.thresholds()[2])
    assert not joint[:, 2].any()
    assert counted.tolist() == [-1, 0, 1]


def test_only_the_top_classes_are_needed():
    labels, p = rows(11, 2_000, 30)
    thresholds = found(labels, p)[0].thresholds()
    whole = counted_class(*most_probable(p, 30), thresholds)
    top = counted_class(*most_probable(p), thresholds)
    assert ((top == whole) | (top == -1)).all()
    rank = (p > np.take_along_axis(p, np.maximum(whole, 0)[:, None], 1)).sum(axis=1)
    assert (top[(rank < 10) & (whole >= 0)] == whole[(rank < 10) & (whole >= 0)]).all()


def test_no_rows_have_no_noise():
    empty = np.zeros(0, np.int64)
    sums = ClassSums.of(empty, np.zeros(0, np.float32), 3)
    joint = confident_joint(empty, empty, 3)
    assert share_of_noise(calibrated(joint, sums.rows)) == 0.0


@pytest.mark.parametrize("planted", [0.0, 0.2])
def test_planted_symmetric_noise_is_measured(planted):
    digits = load_digits()
    true = digits.target
    rng = np.random.default_rng(1)
    wrong = rng.random(len(true)) < planted
    labels = np.where(wrong, (true + rng.integers(1, 10, len(true))) % 10, true)
    model = MLPClassifier((128,), learning_rate_init=3e-3, max_iter=15, random_state=0)
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    with pytest.warns(Warning, match="converge"):
        p = cross_val_predict(model, digits.data / 16, labels, cv=folds, method="predict_proba")
    sums, counted, joint = found(labels, p.astype(np.float32))
    share = share_of_noise(calibrated(joint, sums.rows))
    assert abs(share - wrong.mean()) < 0.03
    if planted:
        flagged = suspected(labels, counted)
        assert wrong[flagged].mean() > 0.85
        assert flagged[wrong].mean() > 0.75
