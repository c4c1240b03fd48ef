"""Models that judge rows: a name or a user's factory to a module, its checkpoints, its features.

A factory is ``package.module:factory``, called with ``num_classes=N``, that returns an
``nn.Module`` from a batch of inputs to outputs (B, C). If the module has a ``transform``
(uint8 image tensor (C, H, W) to float), it is applied to each image. Penultimate features are the
input of the last linear layer, or what the module's ``forward_features`` returns.
"""

from __future__ import annotations

import importlib
import io
import math
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from dataprune_ray.config import CorpusConfig, ModelConfig
from dataprune_ray.errors import ConfigError
from dataprune_ray.features.spec import TEXT_BUCKETS, FeatureSpec, LabelSpec

_TEXT_DIMENSIONS = 32
_ARTICLE_HIDDEN = (512, 256, 128)
_WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")
_SMALL_IMAGE = 1024  # pixels up to which a grey image goes to the mlp by default


@dataclass(frozen=True)
class ModelSpec:
    """Everything a worker needs to build the model; plain values only."""

    name: str
    features: FeatureSpec
    label: LabelSpec
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    image_size: int | None = None
    folder: str = ""  # where the job was started: a user's factory is looked for there too


class InputScaling(nn.Module):
    """uint8 pixels (B, C, H, W) to floats: [0, 1], then per-channel mean and deviation."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", _channels(mean), persistent=False)
        self.register_buffer("std", _channels(std), persistent=False)
        self.identity = not mean and not std

    def forward(self, pixels: Tensor) -> Tensor:
        """float32 pixels of the same shape."""
        scaled = pixels.float() / 255.0 if pixels.dtype == torch.uint8 else pixels
        if self.identity:
            return scaled
        return (scaled - self.mean) / self.std  # type: ignore[operator]


def _channels(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values or (0.0,)).view(1, -1, 1, 1)


def resolve_spec(
    model: ModelConfig, corpus: CorpusConfig, features: FeatureSpec, label: LabelSpec
) -> ModelSpec:
    """Choose the model where the configuration leaves it open, and check that its name exists.

    Raises:
        ConfigError: unknown model, or one that does not fit the features.
    """
    name = model.model if model.model != "auto" else _default_model(features)
    if name.startswith("torchvision:") and features.modality == "image":
        features = replace(features, shape=(3, *features.shape[1:]))
    channels = features.shape[0]
    for field, value in (("mean", corpus.mean), ("std", corpus.std)):
        if value and features.modality != "image":
            raise ConfigError(field, value, "applies to images only")
        if value and len(value) not in (1, channels):
            counts = "1 value" if channels == 1 else f"1 or {channels} values, one per channel"
            raise ConfigError(field, value, f"give {counts}")
    mean, std = corpus.mean, corpus.std
    if mean or std:
        mean, std = mean or (0.0,), std or (1.0,)
    spec = ModelSpec(name, features, label, mean, std, corpus.image_size, os.getcwd())  # noqa: PTH109
    if image_transform(spec) is not None:
        spec = replace(spec, features=replace(features, any_size=True))
    return spec


def _default_model(features: FeatureSpec) -> str:
    if features.modality == "image" and (
        features.shape[0] > 1 or math.prod(features.shape) > _SMALL_IMAGE
    ):
        return "small_cnn"
    return "mlp"


def build_model(spec: ModelSpec, outputs: int) -> nn.Module:
    """A freshly initialised model with ``outputs`` outputs, scaling its uint8 inputs itself.

    Initialisation draws from torch's global generator: seed it first.
    """
    core = _builder(spec)(outputs)
    transform = getattr(core, "transform", None)
    if spec.features.modality == "image" and transform is None:
        model: nn.Module = nn.Sequential()
        model.add_module("scaling", InputScaling(spec.mean, spec.std))
        model.add_module("core", core)
    else:
        model = nn.Sequential()
        model.add_module("core", core)
    return model


def core_of(model: nn.Module) -> nn.Module:
    """The network inside what `build_model` returns."""
    return model.get_submodule("core")


def image_transform(spec: ModelSpec) -> Callable[[Any], Any] | None:
    """The model's own per-image transform, taking and returning numpy arrays, or None."""
    if spec.features.modality != "image":
        return None
    transform = getattr(_builder(spec)(spec.label.outputs), "transform", None)
    if transform is None:
        return None

    def apply(pixels: Any) -> Any:
        return transform(torch.from_numpy(pixels)).numpy()

    return apply


# Builders ----------------------------------------------------------------------------------------


def _builder(spec: ModelSpec) -> Callable[[int], nn.Module]:
    name = spec.name
    if name == "linear":
        return lambda outputs: _mlp(spec, (), outputs)
    if name == "mlp" or name.startswith("mlp:"):
        hidden = _hidden(name)
        return lambda outputs: _mlp(spec, hidden, outputs)
    if name == "small_cnn":
        if spec.features.modality != "image":
            raise ConfigError("model", name, f"needs images, not {spec.features.modality} features")
        return lambda outputs: _small_cnn(spec.features.shape[0], outputs)
    if name.startswith("torchvision:"):
        return _torchvision(name, spec)
    if ":" in name:
        return _factory(name, spec.folder)
    choices = "mlp[:H1,H2,…], linear, small_cnn, torchvision:NAME, package.module:factory"
    raise ConfigError("model", name, f"unknown; choose one of: {choices}")


def _hidden(name: str) -> tuple[int, ...]:
    text = name.partition(":")[2]
    if not text:
        return _ARTICLE_HIDDEN
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = (0,)
    if min(sizes) < 1:
        raise ConfigError("model", name, "hidden sizes are positive integers, like mlp:512,256,128")
    return sizes


def _mlp(spec: ModelSpec, hidden: tuple[int, ...], outputs: int) -> nn.Module:
    layers: list[nn.Module] = []
    if spec.features.modality == "text":
        width = _TEXT_DIMENSIONS
        layers.append(nn.EmbeddingBag(TEXT_BUCKETS, width, mode="mean", padding_idx=0))
    else:
        width = math.prod(spec.features.shape)
        layers.append(nn.Flatten())
    for size in hidden:
        layers += [nn.Linear(width, size), nn.ReLU()]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def _small_cnn(channels: int, outputs: int) -> nn.Module:
    """Three 3 x 3 convolutions with batch normalisation, average pooling, one linear layer."""
    layers: list[nn.Module] = []
    for width in (32, 64, 128):
        layers += [
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2, ceil_mode=True),
        ]
        channels = width
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, outputs)
    )


def _torchvision(name: str, spec: ModelSpec) -> Callable[[int], nn.Module]:
    import torchvision  # noqa: PLC0415 - two seconds that most workers need not spend

    short = name.partition(":")[2]
    choices = torchvision.models.list_models(module=torchvision.models)
    if short not in choices:
        raise ConfigError("model", name, f"unknown; torchvision has: {', '.join(choices)}")
    if spec.features.modality != "image":
        raise ConfigError("model", name, f"needs images, not {spec.features.modality} features")

    def build(outputs: int) -> nn.Module:
        model: nn.Module = torchvision.models.get_model(short, weights=None, num_classes=outputs)
        if not spec.mean and spec.image_size is None:
            weights = torchvision.models.get_model_weights(short)
            default = getattr(weights, "DEFAULT", None)
            if default is not None:
                model.transform = default.transforms()
        return model

    return build


def _factory(name: str, folder: str) -> Callable[[int], nn.Module]:
    module_name, _, attribute = name.partition(":")
    for place in (folder, os.getcwd()):  # noqa: PTH109 - the import system takes strings
        if place and place not in sys.path:
            sys.path.insert(0, place)
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError("model", name, f"cannot be imported: {error}") from None
    except Exception as error:
        raise ConfigError("model", name, f"cannot be imported: {_said(error)}") from error

    def build(outputs: int) -> nn.Module:
        try:
            model = factory(num_classes=outputs)
        except Exception as error:
            raise ConfigError("model", name, f"num_classes={outputs}: {_said(error)}") from error
        if not isinstance(model, nn.Module):
            raise ConfigError("model", name, f"returned a {type(model).__name__}, not an nn.Module")
        return model

    return build


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


# Checkpoints -------------------------------------------------------------------------------------


def read_state(path: str, content: bytes) -> dict[str, Tensor]:
    """State dict of a checkpoint's content; what wraps it (DDP, compile) is taken off.

    Raises:
        ConfigError: not a state dict, or one that needs unpickling of code.
    """
    try:
        if path.partition("?")[0].endswith(".safetensors"):
            loaded: Any = safetensors.torch.load(content)
        else:
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - every loader has its own exceptions for a broken file
        reason = f"cannot be loaded safely: {type(error).__name__}: {error}"
        raise ConfigError("checkpoint", path, reason) from None
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
            break
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise ConfigError("checkpoint", path, "does not hold a state dict of tensors")
    return {_WRAPPERS.sub("", str(name)): tensor for name, tensor in loaded.items()}


def load_state(model: nn.Module, state: dict[str, Tensor], path: str) -> None:
    """Load a checkpoint into the core of a model.

    Raises:
        ConfigError: names or shapes differ, listing the first few.
    """
    core = core_of(model)
    own = core.state_dict()
    missing = [n for n in own if n not in state and not n.endswith("num_batches_tracked")]
    extra = [n for n in state if n not in own]
    shapes = [
        f"{n}: {tuple(state[n].shape)} in the file, {tuple(own[n].shape)} in the model"
        for n in own
        if n in state and state[n].shape != own[n].shape
    ]
    if missing or extra or shapes:
        raise ConfigError(
            "checkpoint",
            path,
            f"does not fit the model; missing {missing[:3]}, unexpected {extra[:3]}, "
            f"shapes {shapes[:3]}",
        )
    core.load_state_dict(state, strict=False)


def last_linear(model: nn.Module) -> nn.Linear | None:
    """The last linear layer of a model, whose input are the penultimate features."""
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return linears[-1] if linears else None


class FeatureTap:
    """Runs a model and returns its outputs (B, C) and penultimate features (B, D).

    A module without a linear layer is asked by ``forward_features``.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.core = core_of(model)
        self._seen: list[Tensor] = []
        linear = last_linear(self.core)
        self.has_bias = linear is None or linear.bias is not None
        if linear is not None:
            linear.register_forward_pre_hook(lambda _, inputs: self._seen.append(inputs[0]))

    def __call__(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Outputs, and features or None where the model shows none."""
        self._seen.clear()
        outputs = self.model(inputs)
        if self._seen:
            return outputs, self._seen[-1].flatten(1)
        own = getattr(self.core, "forward_features", None)
        if own is None:
            return outputs, None
        scaling = getattr(self.model, "scaling", None)
        return outputs, own(inputs if scaling is None else scaling(inputs)).flatten(1)
