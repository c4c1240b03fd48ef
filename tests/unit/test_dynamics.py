"""Training-dynamics metrics against literal loops over the checkpoints, row by row."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dataprune_ray.metrics import METRICS, WINDOWED, Epoch, MetricOptions

DYNAMIC = sorted(name for name, metric in METRICS.items() if metric.track is not None)


def run(name, logits, labels, window=3):
    """The metric of float32 logits (T, B, C), all rows in one batch."""
    tracker = METRICS[name].track(MetricOptions(window=window))
    for step in logits:
        tracker.add(Epoch(torch.tensor(step, dtype=torch.float32), torch.tensor(labels)))
    found = tracker.value()
    assert found.dtype == torch.float32
    return found.numpy()


# References: one row over all checkpoints, plain Python in double precision


def softmax(z):
    top = max(z)
    powers = [math.exp(v - top) for v in z]
    return [v / sum(powers) for v in powers]


def log_softmax(z):
    top = max(z)
    total = math.log(math.fsum(math.exp(v - top) for v in z))
    return [v - top - total for v in z]


def own(rows, y):
    return [softmax(z)[y] for z in rows]


def forgetting(rows, y, _):
    right = [int(np.argmax(z)) == y for z in rows]
    if not any(right):
        return len(rows) + 1
    return sum(now and not after for now, after in itertools.pairwise(right))


def area(rows, y, of):
    margins = []
    for z in rows:
        values = of(z)
        others = [v for c, v in enumerate(values) if c != y]
        margins.append(values[y] - (max(others) if others else 0.0))
    return statistics.fmean(margins)


def windows(values, size):
    return [values[i : i + size] for i in range(len(values) - size + 1)]


def tdds(rows, _, size):
    logs = [log_softmax(z) for z in rows]
    changes = [
        math.fsum(math.exp(q) * abs(q - p) for p, q in zip(before, after, strict=True))
        for before, after in itertools.pairwise(logs)
    ]
    spreads = []
    for window in windows(changes, size - 1):
        mean = statistics.fmean(window)
        spreads.append(math.sqrt(sum((d - mean) ** 2 for d in window)))
    last = len(spreads) - 1
    return sum(0.9 * 0.1 ** (last - k) * spread for k, spread in enumerate(spreads))


REFERENCES = {
    "forgetting": forgetting,
    "aum": lambda rows, y, _: area(rows, y, softmax),
    "aum_logits": lambda rows, y, _: area(rows, y, list),
    "cartography_confidence": lambda rows, y, _: statistics.fmean(own(rows, y)),
    "cartography_variability": lambda rows, y, _: statistics.pstdev(own(rows, y)),
    "dyn_unc": lambda rows, y, j: statistics.fmean(
        statistics.stdev(w) for w in windows(own(rows, y), j)
    ),
    "dual": lambda rows, y, j: statistics.fmean(
        statistics.stdev(w) * (1 - statistics.fmean(w)) for w in windows(own(rows, y), j)
    ),
    "mean_loss": lambda rows, y, _: statistics.fmean(-log_softmax(z)[y] for z in rows),
    "mean_el2n": lambda rows, y, _: statistics.fmean(
        math.sqrt(sum((q - (c == y)) ** 2 for c, q in enumerate(softmax(z)))) for z in rows
    ),
    "tdds": tdds,
}


@st.composite
def trajectories(draw):
    """Logits float32 (T, B, C) of random sizes, scales and ties, labels (B,), and a window."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    steps, rows, classes = draw(st.integers(2, 9)), draw(st.integers(1, 7)), draw(st.integers(1, 5))
    logits = rng.normal(size=(steps, rows, classes)) * draw(st.sampled_from([0.0, 0.1, 2.0, 50.0]))
    if draw(st.booleans()):
        logits = np.round(logits)
    labels = rng.integers(0, classes, rows)
    return logits.astype(np.float32), labels, draw(st.integers(2, steps))


def test_every_dynamic_metric_has_a_reference():
    assert sorted(REFERENCES) == DYNAMIC


@pytest.mark.parametrize("name", DYNAMIC)
@given(case=trajectories())
@settings(max_examples=25, deadline=None)
def test_equals_the_literal_loop(name, case):
    logits, labels, window = case
    found = run(name, logits, labels, window)
    expected = [
        REFERENCES[name](logits[:, row].astype(float).tolist(), int(y), window)
        for row, y in enumerate(labels)
    ]
    if name == "forgetting":
        assert found.tolist() == expected
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    metric = METRICS[name]
    assert (found >= metric.low - 1e-6).all()
    assert (found <= metric.high + 1e-6).all()


@pytest.mark.parametrize("name", DYNAMIC)
@given(case=trajectories(), cut=st.integers(1, 6))
@settings(max_examples=10, deadline=None)
def test_a_row_does_not_depend_on_its_batch(name, case, cut):
    logits, labels, window = case
    whole = run(name, logits, labels, window)
    parts = [
        run(name, logits[:, i : i + cut], labels[i : i + cut], window)
        for i in range(0, len(labels), cut)
    ]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_a_row_never_learned_is_the_hardest_not_the_easiest():
    right, wrong = [3.0, 0.0], [0.0, 3.0]
    rows = {"never": [wrong] * 4, "always": [right] * 4, "twice": [right, wrong, right, wrong]}
    logits = np.array(list(rows.values()), np.float32).swapaxes(0, 1)
    found = dict(zip(rows, run("forgetting", logits, [0, 0, 0]).tolist(), strict=True))
    assert found == {"never": 5, "always": 0, "twice": 2}
    assert METRICS["forgetting"].polarity == "high"


def test_the_whole_run_counts_and_not_its_last_checkpoint_alone():
    logits = np.array([[[0.0, 4.0]], [[0.0, 4.0]], [[4.0, 0.0]]], np.float32)
    gap = softmax([4.0, 0.0])[0] - softmax([4.0, 0.0])[1]
    assert run("aum", logits, [0])[0] == pytest.approx(-gap / 3)


def test_every_window_of_tdds_moves_on():
    still, moving = np.zeros((4, 1, 2)), np.cumsum([[[1.0, 0.0]], [[3.0, 0.0]]], axis=0)
    early = np.concatenate([moving, moving[-1:].repeat(4, axis=0)]).astype(np.float32)
    late = np.concatenate([still, moving]).astype(np.float32)
    assert run("tdds", late, [0])[0] > 5 * run("tdds", early, [0])[0]


@pytest.mark.parametrize("name", sorted(WINDOWED))
def test_fewer_checkpoints_than_a_window_are_refused(name):
    with pytest.raises(ValueError, match="never full"):
        run(name, np.zeros((2, 1, 2), np.float32), [0], window=3)
