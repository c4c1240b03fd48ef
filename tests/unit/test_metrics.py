"""Every metric against formulas written out by hand, and properties that hold of all of them."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from dataprune_ray.errors import ConfigError, UnknownNameError
from dataprune_ray.features import FeatureSpec, LabelSpec
from dataprune_ray.metrics import (
    METRICS,
    Extent,
    MetricOptions,
    ModelOutputs,
    check_metrics,
    get_metric,
)
from dataprune_ray.models import FeatureTap, ModelSpec, build_model, core_of

SCORED = [name for name, metric in METRICS.items() if metric.score is not None]
CHEAP = [name for name in SCORED if "gradients" not in METRICS[name].needs]


@st.composite
def batches(draw, *, regression=False, min_classes=1):
    """Model outputs of random sizes, scales and ties, and their labels."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    models, rows = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    classes = 1 if regression else draw(st.integers(min_classes, 6))
    scale = draw(st.sampled_from([0.0, 1e-3, 1.0, 30.0, 1e4]))
    logits = rng.normal(size=(models, rows, classes)) * scale
    if draw(st.booleans()):
        logits = np.clip(np.round(logits), -1e4, 1e4)
    if draw(st.booleans()):
        logits[:, 0] = 1e4 * np.sign(rng.normal(size=classes))
    width = draw(st.integers(1, 5))
    features = rng.normal(size=(models, rows, width)) * draw(st.sampled_from([0.0, 1.0, 100.0]))
    labels = rng.normal(size=rows) * 3 if regression else rng.integers(0, classes, rows)
    return ModelOutputs(
        logits=torch.tensor(logits, dtype=torch.float32),
        labels=torch.tensor(labels, dtype=torch.float32 if regression else torch.int64),
        features=tuple(torch.tensor(f, dtype=torch.float32) for f in features),
        has_bias=draw(st.booleans()),
        regression=regression,
    )


def score(name: str, outputs: ModelOutputs) -> np.ndarray:
    return METRICS[name].score(outputs).numpy()


# References, one row of one model at a time, in plain double precision


def softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    powers = [math.exp(z - top) for z in logits]
    return [power / sum(powers) for power in powers]


def log_softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    total = math.log(sum(math.exp(z - top) for z in logits))
    return [z - top - total for z in logits]


def residual(logits, label, *, regression) -> float:
    if regression:
        return 2 * abs(logits[0] - label)
    p = softmax(logits)
    others = [q for c, q in enumerate(p) if c != label]
    return math.sqrt(sum(others) ** 2 + sum(q**2 for q in others))


def error(logits, label, *, regression) -> float:
    return (logits[0] - label) ** 2 if regression else -log_softmax(logits)[label]


def gradient(logits, label, features, bias, *, regression) -> float:
    length = math.sqrt(sum(h * h for h in features) + (1 if bias else 0))
    return residual(logits, label, regression=regression) * length


def margin(logits, label) -> float:
    p = softmax(logits)
    return p[label] - max([q for c, q in enumerate(p) if c != label], default=0.0)


REFERENCES = {
    "el2n": lambda z, y, r, *_: residual(z, y, regression=r),
    "loss": lambda z, y, r, *_: error(z, y, regression=r),
    "margin": lambda z, y, *_: margin(z, y),
    "entropy": lambda z, *_: -sum(math.exp(q) * q for q in log_softmax(z)),
    "confidence": lambda z, *_: max(softmax(z)),
    "output_magnitude": lambda z, *_: sum(map(abs, z)) / len(z),
    "grad_norm": lambda z, y, r, h, b: gradient(z, y, h, b, regression=r),
    "loss_grad": lambda z, y, r, h, b: (
        0.5 * gradient(z, y, h, b, regression=r) + 0.5 * error(z, y, regression=r)
    ),
}


def expected(name: str, outputs: ModelOutputs) -> list[float]:
    reference = REFERENCES[name]
    models, rows, _ = outputs.logits.shape
    return [
        sum(
            reference(
                outputs.logits[k, b].tolist(),
                outputs.labels[b].item(),
                outputs.regression,
                outputs.features[k][b].tolist(),
                outputs.has_bias,
            )
            for k in range(models)
        )
        / models
        for b in range(rows)
    ]


def test_every_cheap_metric_has_a_reference():
    assert set(REFERENCES) == set(CHEAP)


def test_rows_that_are_all_but_certain_keep_their_order():
    logits = torch.tensor([[[20.0, 0.0], [22.0, 0.0], [24.0, 0.0]]])
    found = score("el2n", ModelOutputs(logits, torch.zeros(3, dtype=torch.int64)))
    expected = [math.sqrt(2.0) / (1.0 + math.exp(z)) for z in (20.0, 22.0, 24.0)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("name", CHEAP)
@given(batches())
@settings(max_examples=40, deadline=None)
def test_values_are_those_of_the_formula(name, outputs):
    assert score(name, outputs) == pytest.approx(expected(name, outputs), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", [n for n in CHEAP if METRICS[n].regression])
@given(batches(regression=True))
@settings(max_examples=40, deadline=None)
def test_values_are_those_of_the_formula_for_regression(name, outputs):
    assert score(name, outputs) == pytest.approx(expected(name, outputs), rel=1e-4, abs=1e-5)


@given(batches(min_classes=2))
@settings(max_examples=40, deadline=None)
def test_the_unlabelled_margin_is_between_the_two_most_likely(outputs):
    found = score("margin", replace(outputs, labels=None))
    for b, value in enumerate(found):
        tops = [sorted(softmax(z.tolist()))[::-1][:2] for z in outputs.logits[:, b]]
        assert value == pytest.approx(np.mean([p - q for p, q in tops]), abs=1e-5)


def test_hand_computed_values():
    outputs = ModelOutputs(
        logits=torch.log(torch.tensor([[[0.7, 0.2, 0.1], [0.2, 0.3, 0.5]]])),
        labels=torch.tensor([0, 0]),
        features=(torch.tensor([[2.0, 2.0], [0.0, 0.0]]),),
    )
    assert score("el2n", outputs) == pytest.approx([math.sqrt(0.14), math.sqrt(0.98)])
    assert score("loss", outputs) == pytest.approx([-math.log(0.7), -math.log(0.2)])
    assert score("margin", outputs) == pytest.approx([0.5, -0.3])
    assert score("confidence", outputs) == pytest.approx([0.7, 0.5])
    assert score("grad_norm", outputs) == pytest.approx([3 * math.sqrt(0.14), math.sqrt(0.98)])


def test_loss_grad_of_the_worked_example():
    """0.5 * 0.05 + 0.5 * 0.1 is 0.075."""
    p = math.exp(-0.1)
    other = 1 - p
    length = 0.05 / math.sqrt(2 * other**2)
    outputs = ModelOutputs(
        logits=torch.log(torch.tensor([[[p, other]]], dtype=torch.float64)).float(),
        labels=torch.tensor([0]),
        features=(torch.tensor([[length]]),),
        has_bias=False,
    )
    assert score("loss", outputs) == pytest.approx([0.1], abs=1e-6)
    assert score("grad_norm", outputs) == pytest.approx([0.05], abs=1e-6)
    assert score("loss_grad", outputs) == pytest.approx([0.075], abs=1e-6)
    weighted = replace(outputs, options=MetricOptions(gradient_weight=2.0, loss_weight=0.0))
    assert score("loss_grad", weighted) == pytest.approx([0.1], abs=1e-6)


# Gradients against automatic differentiation


SPECS = {
    "mlp:8,5": FeatureSpec("tensor", ("x",), (6,)),
    "linear": FeatureSpec("tabular", ("x",), (6,)),
    "small_cnn": FeatureSpec("image", ("x",), (3, 8, 8)),
    "mlp:7": FeatureSpec("image", ("x",), (1, 4, 4)),
}


def model_and_rows(name: str, *, regression: bool, rows: int = 5, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    features = SPECS[name]
    task = "regression" if regression else "classification"
    label = LabelSpec("y", task, classes=() if regression else ("0", "1", "2", "3"))
    model = build_model(ModelSpec(name, features, label), label.outputs)
    if features.modality == "image":
        inputs = torch.randint(0, 256, (rows, *features.shape), generator=generator)
        inputs = inputs.to(torch.uint8)
        model.train()
        for _ in range(3):  # statistics of batch normalisation that are not the initial ones
            model(inputs)
    else:
        inputs = torch.randn(rows, *features.shape, generator=generator)
    labels = (
        torch.randn(rows, generator=generator)
        if regression
        else torch.randint(0, 4, (rows,), generator=generator)
    )
    return model.eval(), inputs, labels


def loss_of(output, label, *, regression):
    if regression:
        return (output[0, 0] - label) ** 2
    return functional.cross_entropy(output, label[None])


def norms_by_hand(model, parameters, inputs, labels, *, regression) -> list[float]:
    found = []
    for row, label in zip(inputs, labels, strict=True):
        loss = loss_of(model(row[None]), label, regression=regression)
        gradients = torch.autograd.grad(loss, parameters)
        found.append(math.sqrt(sum(float(g.square().sum()) for g in gradients)))
    return found


@pytest.mark.parametrize("regression", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", SPECS)
def test_grad_norm_is_the_gradient_of_the_real_last_layer(name, bias, regression):
    model, inputs, labels = model_and_rows(name, regression=regression)
    linear = [m for m in core_of(model).modules() if isinstance(m, nn.Linear)][-1]
    if not bias:
        linear.bias = None
    tap = FeatureTap(model)
    with torch.no_grad():
        logits, features = tap(inputs)
    outputs = ModelOutputs(
        logits[None], labels, (features,), has_bias=tap.has_bias, regression=regression
    )
    by_hand = norms_by_hand(model, list(linear.parameters()), inputs, labels, regression=regression)
    assert score("grad_norm", outputs) == pytest.approx(by_hand, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("regression", [False, True])
@pytest.mark.parametrize("name", SPECS)
def test_grad_norm_full_is_a_loop_of_backward_passes(name, regression):
    models, by_hand = [], []
    for seed in (0, 1):
        model, inputs, labels = model_and_rows(name, regression=regression, seed=seed)
        models.append(model)
    for model in models:
        parameters = list(model.parameters())
        by_hand.append(norms_by_hand(model, parameters, inputs, labels, regression=regression))
    outputs = ModelOutputs(
        logits=torch.zeros(2, len(inputs), 4),
        labels=labels,
        regression=regression,
        inputs=inputs,
        models=tuple(models),
    )
    with torch.no_grad():
        found = score("grad_norm_full", outputs)
    assert found == pytest.approx(np.mean(by_hand, axis=0), rel=1e-3, abs=1e-6)
    assert all(parameter.grad is None for model in models for parameter in model.parameters())


def test_grad_norm_full_leaves_frozen_parameters_out():
    model, inputs, labels = model_and_rows("mlp:8,5", regression=False)
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    linears[0].weight.requires_grad_(requires_grad=False)
    free = [p for p in model.parameters() if p.requires_grad]
    outputs = ModelOutputs(torch.zeros(1, 5, 4), labels, inputs=inputs, models=(model,))
    by_hand = norms_by_hand(model, free, inputs, labels, regression=False)
    assert score("grad_norm_full", outputs) == pytest.approx(by_hand, rel=1e-4)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_grad_norm_full_works_for_text():
    torch.manual_seed(0)
    features = FeatureSpec("text", ("x",), (256,))
    label = LabelSpec("y", classes=("0", "1"))
    model = build_model(ModelSpec("mlp:4", features, label), 2).eval()
    tokens = torch.tensor([[1, 5, 9], [7, 0, 0], [2, 2, 0]])
    labels = torch.tensor([0, 1, 1])
    outputs = ModelOutputs(torch.zeros(1, 3, 2), labels, inputs=tokens, models=(model,))
    by_hand = norms_by_hand(model, list(model.parameters()), tokens, labels, regression=False)
    assert score("grad_norm_full", outputs) == pytest.approx(by_hand, rel=1e-4)


def test_a_short_last_batch_has_no_inflated_gradients():
    """The loss is that of a row, never the mean over its batch."""
    model, inputs, labels = model_and_rows("small_cnn", regression=False, rows=37)
    outputs = ModelOutputs(torch.zeros(1, 37, 4), labels, inputs=inputs, models=(model,))
    whole = score("grad_norm_full", outputs)
    for part in (slice(0, 36), slice(36, 37)):
        alone = replace(outputs, labels=labels[part], inputs=inputs[part])
        assert score("grad_norm_full", alone) == pytest.approx(whole[part], rel=1e-3)


# Output deviation


def fitted(name, columns, extent, cuts=()):
    """Values (n,) of a second stage over columns whose rows are reduced piece by piece."""
    fit = METRICS[name].fit
    found = {}
    rows = len(next(iter(columns.values())))
    bounds = [0, *sorted(cuts), rows]
    for step in fit.steps:
        parts = [
            step.kernel({n: c[low:high] for n, c in columns.items()}, found, extent)
            for low, high in itertools.pairwise(bounds)
        ]
        found[step.name] = np.asarray(step.value(functools.reduce(step.merge, parts[::-1])))
    return fit.values(columns, found, MetricOptions())


@given(st.integers(1, 30), st.integers(1, 5), st.integers(0, 2**32 - 1), st.data())
def test_output_deviation_is_the_distance_from_the_mean_output(rows, width, seed, data):
    rng = np.random.default_rng(seed)
    outputs = (rng.normal(size=(rows, width)) * 1e3).astype(np.float32)
    mean = outputs.mean(axis=0, dtype=np.float64)
    by_hand = np.array(
        [
            math.sqrt(sum((float(outputs[i, j]) - mean[j]) ** 2 for j in range(width)))
            for i in range(rows)
        ]
    )
    cuts = data.draw(st.lists(st.integers(0, rows), max_size=4))
    found = fitted("output_deviation", {"outputs": outputs}, Extent(width), cuts)
    assert found.dtype == np.float64
    assert found == pytest.approx(by_hand / (by_hand.max() or 1.0))
    assert (found == fitted("output_deviation", {"outputs": outputs}, Extent(width))).all()


def test_output_deviation_of_one_output_is_the_absolute_difference():
    outputs = np.array([[1.0], [-3.0], [-1.0], [-1.0]], np.float32)
    found = fitted("output_deviation", {"outputs": outputs}, Extent(1), cuts=[1])
    assert found.tolist() == [1.0, 1.0, 0.0, 0.0]
    alike = np.zeros((3, 1), np.float32)
    assert fitted("output_deviation", {"outputs": alike}, Extent(1)).tolist() == [0.0] * 3


# What holds of every metric in the registry


def outputs_for(name: str, outputs: ModelOutputs) -> ModelOutputs:
    """The batch with inputs and models where the metric differentiates."""
    if "gradients" not in METRICS[name].needs:
        return outputs
    torch.manual_seed(1)
    models, rows, classes = outputs.logits.shape
    return replace(
        outputs,
        inputs=torch.randn(rows, 3),
        models=tuple(nn.Sequential(nn.Linear(3, classes)) for _ in range(models)),
    )


def take(outputs: ModelOutputs, rows) -> ModelOutputs:
    return replace(
        outputs,
        logits=outputs.logits[:, rows],
        labels=None if outputs.labels is None else outputs.labels[rows],
        features=tuple(f[rows] for f in outputs.features),
        inputs=None if outputs.inputs is None else outputs.inputs[rows],
    )


@pytest.mark.parametrize("regression", [False, True])
@pytest.mark.parametrize("name", SCORED)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_shape_range_and_independence_of_the_batch(name, regression, data):
    metric = METRICS[name]
    if regression and not metric.regression:
        return
    outputs = outputs_for(name, data.draw(batches(regression=regression)))
    rows = outputs.logits.shape[1]
    found = metric.score(outputs)
    assert found.shape == (rows,)
    assert found.dtype == torch.float32
    values = found.numpy()
    assert np.isfinite(values).all()
    assert (values >= np.float32(metric.low)).all()
    assert (values <= np.float32(metric.high)).all()
    order = data.draw(st.permutations(range(rows)))
    part = order[: data.draw(st.integers(1, rows))]
    again = metric.score(take(outputs, part)).numpy()
    assert again == pytest.approx(values[part], rel=1e-5, abs=1e-6)
    twice = replace(
        outputs,
        logits=torch.cat([outputs.logits] * 2),
        features=outputs.features * 2,
        models=outputs.models * 2,
    )
    assert metric.score(twice).numpy() == pytest.approx(values, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", SCORED)
def test_no_rows_give_no_scores(name):
    outputs = ModelOutputs(
        torch.zeros(2, 0, 3), torch.zeros(0, dtype=torch.int64), (torch.zeros(0, 4),) * 2
    )
    if "gradients" in METRICS[name].needs:
        return
    assert METRICS[name].score(outputs).shape == (0,)


@pytest.mark.parametrize("name", SCORED)
def test_a_confidently_right_row_matters_less_than_a_wrong_one(name):
    """The declared polarity is the one of the values: no sign is turned round."""
    metric = METRICS[name]
    if "labels" not in metric.needs and name != "margin":
        right, wrong = [9.0, -9.0, -9.0], [0.1, 0.0, -0.1]  # unlabelled: sure against unsure
        if name == "output_magnitude":
            right, wrong = wrong, right
    else:
        right, wrong = [9.0, -9.0, -9.0], [-9.0, 9.0, -9.0]
    outputs = ModelOutputs(
        torch.tensor([[right, wrong]]), torch.tensor([0, 0]), (torch.ones(2, 3),)
    )
    if "gradients" in metric.needs:
        linear = nn.Linear(2, 3, bias=False)
        with torch.no_grad():
            linear.weight.copy_(torch.tensor([right, wrong]).T)
        outputs = replace(outputs, inputs=torch.eye(2), models=(linear,))
    easy, hard = metric.score(outputs).tolist()
    assert metric.polarity in ("high", "low")
    assert (hard > easy) if metric.polarity == "high" else (hard < easy)
    if metric.noise_end is not None:
        assert metric.noise_end == metric.polarity


@pytest.mark.parametrize("name", METRICS)
def test_the_entry_is_complete(name):
    metric = METRICS[name]
    assert metric.name == name
    ways = [metric.score, metric.fit, metric.track, metric.learns or None]
    assert sum(way is not None for way in ways) == (1 if metric.needs else 0)
    assert metric.low < metric.high
    assert metric.summary
    assert metric.cost
    assert metric.advice.startswith("not ")
    reads = metric.fit.columns if metric.fit else ()
    assert ("outputs" in reads) == ("outputs" in metric.needs)
    assert ("label" in reads) <= ("labels" in metric.needs)
    assert (metric.track is not None) == ("trajectory" in metric.needs)


@pytest.mark.parametrize("name", SCORED)
@pytest.mark.parametrize("lacking", ["labels", "features", "gradients"])
def test_needs_are_truthful(name, lacking):
    """A metric works without what it does not name, and says what it lacks otherwise."""
    outputs = outputs_for(
        name,
        ModelOutputs(torch.randn(1, 4, 3), torch.tensor([0, 1, 2, 0]), (torch.randn(4, 2),)),
    )
    outputs = {
        "labels": replace(outputs, labels=None),
        "features": replace(outputs, features=None),
        "gradients": replace(outputs, inputs=None, models=()),
    }[lacking]
    metric = METRICS[name]
    if lacking in metric.needs:
        with pytest.raises(ValueError, match="needs"):
            metric.score(outputs)
    else:
        assert metric.score(outputs).shape == (4,)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(
    ("labelled", "regression"), [(True, True), (True, False), (False, True), (False, False)]
)
def test_a_corpus_that_cannot_give_a_metric_is_refused(name, labelled, regression):
    metric = METRICS[name]
    lacks = "labels" in metric.needs and not labelled
    if not lacks and (metric.regression or not regression):
        check_metrics((METRICS["random"], metric), labelled=labelled, regression=regression)
        return
    with pytest.raises(ConfigError, match=f"metric='{name}'") as caught:
        check_metrics((METRICS["random"], metric), labelled=labelled, regression=regression)
    if lacks:
        assert "--label" in str(caught.value)
    else:
        usable = sorted(name for name, metric in METRICS.items() if metric.regression)
        assert f"regression; use {', '.join(usable)}" in str(caught.value)


def test_an_unknown_metric_lists_the_known_ones():
    assert get_metric("el2n") is METRICS["el2n"]
    with pytest.raises(UnknownNameError, match=r"metric='el3n': unknown; choose one of: aum, "):
        get_metric("el3n")
    with pytest.raises(UnknownNameError) as caught:
        get_metric("EL2N")
    assert all(name in str(caught.value) for name in METRICS)
    assert caught.value.exit_code == 2
