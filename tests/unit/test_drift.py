"""Drift against brute force over the rows and against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dataprune_ray.cutoff import Block, MemoryPopulation
from dataprune_ray.drift import coarsened, ks, measure, psi, reading


def population(scores, codes=None, blocks=3):
    parts = np.array_split(np.arange(len(scores)), blocks)
    groups = ("",) if codes is None else ("a", "b")
    return MemoryPopulation(
        [
            Block(
                scores[p].astype(np.float32),
                groups=np.zeros(len(p), np.int32) if codes is None else codes[p],
            )
            for p in parts
        ],
        groups,
    )


def test_psi_by_hand():
    before, now = np.array([10, 30]), np.array([30, 10])
    p, q = 10.5 / 41, 30.5 / 41
    assert psi(before, now) == pytest.approx(2 * (q - p) * math.log(q / p))
    assert psi(before, now) == pytest.approx(psi(now, before))
    assert psi(before, 7 * before) == pytest.approx(0, abs=1e-3)
    assert psi(before, before) == 0
    assert math.isfinite(psi(np.array([5, 0]), np.array([0, 5])))


def test_ks_by_hand():
    assert ks(np.array([1, 1, 2]), np.array([2, 2, 0])) == 0.5
    assert ks(np.array([3, 0]), np.array([0, 9])) == 1
    assert ks(np.array([0, 0]), np.array([0, 9])) == 0


def test_coarsening_is_even_and_keeps_the_rows():
    rng = np.random.default_rng(0)
    before, now = rng.integers(0, 50, (2, 4000))
    a, b = coarsened(before, now)
    assert len(a) == len(b) == 10
    assert (a.sum(), b.sum()) == (before.sum(), now.sum())
    assert np.abs(a - before.sum() / 10).max() <= 50
    a, b = coarsened(np.array([0, 9, 0, 1]), np.array([1, 0, 0, 3]))
    assert (a.sum(), b.sum()) == (10, 4)
    assert [len(part) for part in coarsened(np.zeros(5, int), now[:5])] == [1, 1]


def test_measure_agrees_with_brute_force_over_the_rows():
    rng = np.random.default_rng(1)
    first, second = rng.normal(0, 1, 3000), rng.normal(0.4, 1.2, 2000)
    codes = [rng.integers(0, 2, 3000).astype(np.int32), (rng.random(2000) < 0.8).astype(np.int32)]
    found = measure("el2n", population(first, codes[0]), population(second, codes[1]))
    every = np.concatenate([first, second])
    exact = max(abs((first <= t).mean() - (second <= t).mean()) for t in every)
    assert found.ks == pytest.approx(exact, abs=0.01)
    edges = np.quantile(first, np.linspace(0, 1, 11))[1:-1]
    shares = [np.bincount(np.searchsorted(edges, x), minlength=10) for x in (first, second)]
    assert found.psi == pytest.approx(psi(*shares), abs=0.03)
    assert found.class_psi == psi(np.bincount(codes[0]), np.bincount(codes[1]))
    assert found.worst == max(found.psi, found.class_psi)
    assert [c.rows_now for c in found.classes] == np.bincount(codes[1]).tolist()
    inside = [x[c == 0] for x, c in zip((first, second), codes, strict=True)]
    exact = max(abs((inside[0] <= t).mean() - (inside[1] <= t).mean()) for t in every)
    assert found.classes[0].ks == pytest.approx(exact, abs=0.03)
    order = rng.permutation(3000)
    shuffled = population(first[order], codes[0][order], blocks=7)
    assert measure("el2n", shuffled, population(second, codes[1])) == found


def test_equal_and_empty_and_constant_populations():
    scores = np.random.default_rng(2).random(500)
    same = measure("el2n", population(scores), population(scores))
    assert (same.psi, same.ks, same.class_psi, same.classes) == (0, 0, None, ())
    assert measure("el2n", population(scores), population(scores[:0])) is None
    flat = measure("el2n", population(np.ones(9)), population(np.ones(4)), 0.1)
    assert (flat.ks, flat.exceeded) == (0, False)


def test_readings():
    assert [reading(v) for v in (0.05, 0.1, 0.25, 0.3)] == [
        "small", "moderate", "moderate", "large",
    ]  # fmt: skip
