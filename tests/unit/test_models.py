"""Models by name or factory, their checkpoints and their penultimate features."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from dataprune_ray.config import CorpusConfig, ModelConfig
from dataprune_ray.errors import ConfigError
from dataprune_ray.features import FeatureSpec, LabelSpec
from dataprune_ray.models import (
    FeatureTap,
    ModelSpec,
    build_model,
    core_of,
    image_transform,
    last_linear,
    load_state,
    read_state,
    resolve_spec,
)

TEN = LabelSpec("y", classes=tuple(map(str, range(10))))
DIGITS = FeatureSpec("image", ("x",), (1, 8, 8))
MNIST = FeatureSpec("image", ("x",), (1, 28, 28))
COLOUR = FeatureSpec("image", ("x",), (3, 32, 32))
TENSOR = FeatureSpec("tensor", ("x",), (2, 3))
TABLE = FeatureSpec("tabular", ("x",), (7,))
TEXT = FeatureSpec("text", ("x",), (256,))


def resolve(name: str, features: FeatureSpec, **corpus) -> ModelSpec:
    return resolve_spec(ModelConfig(model=name), CorpusConfig(**corpus), features, TEN)


def build(name: str, features: FeatureSpec, **corpus) -> nn.Module:
    torch.manual_seed(0)
    spec = resolve(name, features, **corpus)
    return build_model(spec, spec.label.outputs).eval()


def shapes(model: nn.Module) -> list[tuple[int, int]]:
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    return [(layer.in_features, layer.out_features) for layer in linears]


def inputs_for(features: FeatureSpec, rows: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    if features.modality == "image":
        return torch.randint(
            0, 256, (rows, *features.shape), dtype=torch.uint8, generator=generator
        )
    if features.modality == "text":
        return torch.randint(1, 1000, (rows, 5), generator=generator)
    return torch.randn(rows, *features.shape, generator=generator)


# Shapes


def test_the_default_mlp_is_784_512_256_128_10():
    assert shapes(build("mlp", MNIST)) == [(784, 512), (512, 256), (256, 128), (128, 10)]
    activations = [m for m in build("mlp", MNIST).modules() if isinstance(m, nn.ReLU)]
    assert len(activations) == 3


@pytest.mark.parametrize(
    ("name", "features", "expected"),
    [
        ("mlp:64", DIGITS, [(64, 64), (64, 10)]),
        ("mlp:5,4", TENSOR, [(6, 5), (5, 4), (4, 10)]),
        ("linear", TABLE, [(7, 10)]),
        ("linear", COLOUR, [(3072, 10)]),
        ("small_cnn", DIGITS, [(128, 10)]),
        ("small_cnn", COLOUR, [(128, 10)]),
        ("small_cnn", FeatureSpec("image", ("x",), (3, 1, 5)), [(128, 10)]),
    ],
)
def test_layers_and_outputs(name, features, expected):
    model = build(name, features)
    assert shapes(model) == expected
    assert model(inputs_for(features)).shape == (3, 10)


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (DIGITS, "mlp"),
        (MNIST, "mlp"),
        (COLOUR, "small_cnn"),
        (FeatureSpec("image", ("x",), (1, 64, 64)), "small_cnn"),
        (TENSOR, "mlp"),
        (TABLE, "mlp"),
        (TEXT, "mlp"),
    ],
)
def test_auto_chooses_what_fits(features, expected):
    spec = resolve("auto", features)
    assert spec.name == expected
    assert build_model(spec, 10)(inputs_for(features)).shape == (3, 10)


def test_the_seed_decides_the_weights():
    first, second = build("small_cnn", DIGITS), build("small_cnn", DIGITS)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])


@pytest.mark.parametrize("name", ["torchvision:resnet18", "torchvision:mobilenet_v3_small"])
def test_torchvision_models_bring_their_transform(name):
    spec = resolve(name, MNIST)
    assert spec.features.any_size
    assert spec.features.shape[0] == 3
    transform = image_transform(spec)
    pixels = np.full((3, 40, 50), 255, np.uint8)
    prepared = transform(pixels)
    assert prepared.dtype == np.float32
    assert prepared.shape == (3, 224, 224)
    white = (1 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    assert prepared[:, 100, 100] == pytest.approx(white, abs=1e-4)
    model = build_model(spec, 10).eval()
    tap = FeatureTap(model)
    with torch.no_grad():
        outputs, features = tap(torch.from_numpy(prepared)[None])
    assert outputs.shape == (1, 10)
    assert features.shape == (1, last_linear(core_of(model)).in_features)


def test_mean_or_size_of_ones_own_replaces_a_torchvision_transform():
    for settings in ({"mean": (0.5,), "std": (0.5,)}, {"std": (0.5,)}, {"image_size": 32}):
        spec = resolve("torchvision:resnet18", COLOUR, **settings)
        assert image_transform(spec) is None
        assert not spec.features.any_size
        with torch.no_grad():
            assert build_model(spec, 10).eval()(inputs_for(COLOUR)).shape == (3, 10)


def test_grey_images_for_torchvision_may_have_three_means():
    spec = resolve("torchvision:resnet18", MNIST, mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))
    assert spec.features.shape == (3, 28, 28)
    assert spec.mean == (0.1, 0.2, 0.3)


# Pixel scaling


def probe(features: FeatureSpec, **corpus) -> torch.Tensor:
    """What reaches the network for white and black pixels."""
    model = build("linear", features, **corpus)
    pixels = torch.zeros((2, *features.shape), dtype=torch.uint8)
    pixels[0] = 255
    return model.get_submodule("scaling")(pixels)


def test_pixels_are_scaled_to_one_then_by_mean_and_deviation():
    assert probe(DIGITS).flatten(1).unique(dim=1).tolist() == [[1.0], [0.0]]
    found = probe(COLOUR, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))
    assert found[0, :, 0, 0].tolist() == [1.0, 3.0, 0.5]
    assert found[1, :, 5, 5].tolist() == [-1.0, -1.0, 0.0]
    assert probe(COLOUR, mean=(0.5,))[0].unique().tolist() == [0.5]
    assert probe(COLOUR, std=(0.5,))[0].unique().tolist() == [2.0]


@pytest.mark.parametrize(
    ("features", "settings", "said"),
    [
        (COLOUR, {"mean": (0.1, 0.2)}, r"mean=\(0.1, 0.2\): give 1 or 3 values"),
        (DIGITS, {"std": (0.1, 0.2)}, r"std=\(0.1, 0.2\): give 1 value"),
        (TABLE, {"mean": (0.1,)}, "mean=.*images only"),
        (TEXT, {"std": (0.1,)}, "std=.*images only"),
    ],
)
def test_means_that_do_not_fit_are_refused(features, settings, said):
    with pytest.raises(ConfigError, match=said):
        resolve("linear", features, **settings)


# Names


@pytest.mark.parametrize(
    ("name", "features", "said"),
    [
        ("resnet", COLOUR, "torchvision:NAME, package.module:factory"),
        ("", COLOUR, "small_cnn"),
        ("mlp:", None, None),
        ("mlp:a", DIGITS, "hidden sizes are positive integers"),
        ("mlp:0", DIGITS, "hidden sizes are positive integers"),
        ("mlp:64,,2", DIGITS, "hidden sizes are positive integers"),
        ("torchvision:resnet19", COLOUR, "resnet18"),
        ("torchvision:resnet18", TABLE, "needs images, not tabular"),
        ("small_cnn", TEXT, "needs images, not text"),
        ("no_such_package.x:make", COLOUR, "cannot be imported.*no_such_package"),
        ("json:no_such_name", COLOUR, "cannot be imported.*no_such_name"),
        (":make", COLOUR, "cannot be imported"),
    ],
)
def test_unknown_names_are_refused_with_the_choices(name, features, said):
    if said is None:
        assert shapes(build(name, MNIST)) == shapes(build("mlp", MNIST))
        return
    spec = ModelSpec(name, features, TEN)
    with pytest.raises(ConfigError, match=said) as caught:
        build_model(spec, 10)
    assert (caught.value.field, caught.value.value) == ("model", name)


FACTORY = """
import torch
from torch import nn

def plain(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.ReLU(), nn.Linear(6, num_classes))

def with_transform(num_classes):
    model = plain(num_classes)
    model.transform = lambda pixels: pixels[:, :8, :8].float() / 51
    return model

class Bare(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_classes, 3))
    def forward_features(self, pixels):
        return pixels.mean(dim=(2, 3))
    def forward(self, pixels):
        return self.forward_features(pixels) @ self.weight.T

def nothing(num_classes):
    return "model"

def broken(num_classes):
    raise RuntimeError("inside")

def no_arguments():
    return plain(3)

not_callable = 3
"""
SMALL = FeatureSpec("image", ("x",), (3, 8, 8))


@pytest.fixture
def factory(tmp_path, monkeypatch):
    """A module in the folder that the job is run in."""
    (tmp_path / "my_models.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "my_models"
    sys.modules.pop("my_models", None)


def test_a_factory_of_ones_own(factory):
    model = build(f"{factory}:plain", SMALL)
    assert shapes(model) == [(192, 6), (6, 10)]
    assert model(inputs_for(SMALL)).shape == (3, 10)
    assert image_transform(resolve(f"{factory}:plain", SMALL)) is None


def test_a_factory_whose_module_has_a_transform(factory):
    spec = resolve(f"{factory}:with_transform", COLOUR)
    assert spec.features.any_size
    transform = image_transform(spec)
    assert (transform(np.full((3, 20, 30), 51, np.uint8)) == np.ones((3, 8, 8))).all()
    model = build_model(spec, 10)
    assert not hasattr(model, "scaling")
    assert model(torch.ones(2, 3, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("name", ["nothing", "broken", "no_arguments", "not_callable", "gone"])
def test_a_factory_that_gives_no_module_is_refused(factory, name):
    with pytest.raises(ConfigError, match=f"model='{factory}:{name}'"):
        build(f"{factory}:{name}", SMALL)


# Features


@pytest.mark.parametrize(
    ("name", "features"),
    [("mlp", DIGITS), ("linear", TABLE), ("small_cnn", COLOUR), ("mlp:4", TEXT), ("mlp", TENSOR)],
)
@pytest.mark.parametrize("bias", [True, False])
def test_features_times_the_last_weight_give_the_outputs(name, features, bias):
    model = build(name, features)
    linear = last_linear(core_of(model))
    if not bias:
        linear.bias = None
    tap = FeatureTap(model)
    assert tap.has_bias == bias
    for rows in (3, 1, 5):
        with torch.no_grad():
            outputs, seen = tap(inputs_for(features, rows))
        by_hand = seen @ linear.weight.T + (linear.bias if bias else 0)
        assert seen.shape == (rows, linear.in_features)
        assert torch.allclose(outputs, by_hand, atol=1e-5)


def test_a_module_without_a_linear_layer_shows_its_own_features(factory):
    model = build(f"{factory}:Bare", SMALL, mean=(0.5,), std=(0.5,))
    tap = FeatureTap(model)
    with torch.no_grad():
        outputs, seen = tap(inputs_for(SMALL))
    assert torch.allclose(outputs, seen @ core_of(model).weight.T, atol=1e-5)


def test_a_module_that_shows_no_features():
    model = nn.Sequential()
    model.add_module("core", nn.Conv2d(1, 2, 8))
    assert FeatureTap(model)(torch.zeros(2, 1, 8, 8))[1] is None


def test_text_models_ignore_padding():
    model = build("mlp:8", TEXT)
    short = torch.tensor([[5, 9, 11]])
    padded = torch.tensor([[5, 9, 11, 0, 0, 0]])
    empty = torch.tensor([[0, 0, 0]])
    with torch.no_grad():
        assert torch.allclose(model(short), model(padded), atol=1e-6)
        assert not torch.allclose(model(short), model(empty))
        assert torch.isfinite(model(empty)).all()


# Checkpoints


def saved(state, path="x.pt") -> bytes:
    if path.endswith("safetensors"):
        return safetensors.torch.save(state)
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getvalue()


FORMS = {
    "plain.pt": lambda state: state,
    "wrapped.pth": lambda state: {"state_dict": state, "epoch": 3},
    "model_state.pt": lambda state: {"model_state_dict": state, "optimizer": {"lr": 1}},
    "model.pt": lambda state: {"model": state},
    "parallel.th": lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
    "compiled.pt": lambda state: {f"_orig_mod.{k}": v for k, v in state.items()},
    "x.safetensors": lambda state: state,
}


@pytest.mark.parametrize("path", FORMS)
def test_checkpoints_of_every_form(path):
    torch.manual_seed(5)
    source = build_model(resolve("small_cnn", DIGITS), 10).eval()
    state = core_of(source).state_dict()
    model = build("small_cnn", DIGITS)
    inputs = inputs_for(DIGITS)
    assert not torch.equal(model(inputs), source(inputs))
    load_state(model, read_state(path, saved(FORMS[path](state), path)), path)
    assert torch.equal(model(inputs), source(inputs))


def test_old_checkpoints_without_batch_counts_fit():
    model = build("small_cnn", DIGITS)
    state = {
        k: v for k, v in core_of(model).state_dict().items() if not k.endswith("batches_tracked")
    }
    load_state(model, state, "x.pt")


def test_a_checkpoint_that_does_not_fit_says_where():
    model = build("mlp:4", DIGITS)
    with pytest.raises(ConfigError, match=r"checkpoint='x\.pt': does not fit") as caught:
        load_state(model, core_of(build("mlp:5", DIGITS)).state_dict(), "x.pt")
    assert "1.weight: (5, 64) in the file, (4, 64) in the model" in str(caught.value)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ConfigError, match=r"missing \['3.weight', '3.bias'\]"):
        load_state(model, core_of(build("linear", DIGITS)).state_dict(), "x.pt")
    with pytest.raises(ConfigError, match=r"unexpected \['extra'\]"):
        load_state(model, {**core_of(model).state_dict(), "extra": torch.ones(1)}, "x.pt")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class Payload:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("x.pt", saved({"a": Payload()})),
        ("x.pt", saved(nn.Linear(1, 1))),
        ("x.pt", b""),
        ("x.pt", b"not a checkpoint"),
        ("x.pt", saved({"a": torch.ones(3)})[:-40]),
        ("x.pt", saved([torch.ones(1)])),
        ("x.pt", saved({"a": 1})),
        ("x.safetensors", b"garbage"),
        ("x.safetensors", saved({"a": torch.ones(3)})),
    ],
)
def test_what_is_no_safe_checkpoint_is_refused(path, content, capsys):
    with pytest.raises(ConfigError, match=f"checkpoint='{path}'"):
        read_state(path, content)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.data
def test_a_public_checkpoint_is_read(data_dir):
    path = data_dir / "weights" / "cifar10-resnet20.th"
    state = read_state(str(path), path.read_bytes())
    assert state["conv1.weight"].shape == (16, 3, 3, 3)
    assert state["linear.weight"].shape == (10, 64)
