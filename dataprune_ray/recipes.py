"""How a model is trained: optimiser, schedule, loss, augmentation and precision, as one value."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dataprune_ray.config import TrainConfig
from dataprune_ray.errors import ConfigError
from dataprune_ray.features import FeatureSpec, LabelSpec

#: One-cycle: the step size starts at this share of its peak (Smith 2018), and rises for this share.
_CYCLE_START, _CYCLE_RISE = 0.04, 0.3
_PADDING = 8  # crop pads each side by an eighth of it
_ERASE_SHARE = 0.25


@dataclass(frozen=True)
class Recipe:
    """Everything about a training but its data, its model and its length."""

    batch_size: int = 128
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "constant"
    warmup: float = 0.0
    label_smoothing: float = 0.0
    augment: tuple[str, ...] = ()
    precision: str = "float32"

    @classmethod
    def of(cls, config: TrainConfig) -> Recipe:
        """The recipe that a configuration asks for."""
        return cls(
            batch_size=config.train_batch_size,
            optimizer=config.optimizer,
            learning_rate=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            schedule=config.schedule,
            warmup=config.warmup,
            label_smoothing=config.label_smoothing,
            augment=config.augment,
            precision=config.train_precision,
        )


def check_recipe(recipe: Recipe, features: FeatureSpec) -> None:
    """Refuse what does not fit the features.

    Raises:
        ConfigError: augmentation of something that is not an image, or a warm-up before a
            schedule that has its own.
    """
    if recipe.warmup and recipe.schedule == "one_cycle":
        raise ConfigError("warmup", recipe.warmup, "one_cycle has a rise of its own; leave it out")
    if recipe.augment and features.modality != "image":
        raise ConfigError(
            "augment", recipe.augment, f"is for images; the features are {features.modality}"
        )
    if recipe.augment and features.any_size:
        raise ConfigError(
            "augment", recipe.augment, "the model's own transform gives floats; augment there"
        )


def make_optimiser(recipe: Recipe, model: nn.Module) -> Optimizer:
    """The optimiser over a model's parameters."""
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "sgd":
        momentum = recipe.momentum
        return torch.optim.SGD(
            model.parameters(),
            lr=rate,
            momentum=momentum,
            weight_decay=decay,
            nesterov=momentum > 0,
            fused=True,
        )
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(model.parameters(), lr=rate, weight_decay=decay, fused=True)


def make_schedule(recipe: Recipe, optimiser: Optimizer, updates: int) -> LambdaLR:
    """The step size as a share of ``learning_rate``, to be stepped after each update."""
    return LambdaLR(optimiser, lambda step: rate_share(recipe, step, updates))


def rate_share(recipe: Recipe, step: int, updates: int) -> float:
    """Step size of update ``step`` (from 0) of ``updates`` as a share of the largest, in [0, 1].

    Warm-up is linear over its share of the updates; cosine and linear fall to 0 over the rest.
    """
    done = step / max(updates, 1)
    if recipe.schedule == "one_cycle":
        if done < _CYCLE_RISE:
            return _between(_CYCLE_START, 1.0, done / _CYCLE_RISE)
        return _between(1.0, 0.0, (done - _CYCLE_RISE) / (1 - _CYCLE_RISE))
    if done < recipe.warmup:
        return (step + 1) / (recipe.warmup * updates + 1)
    rest = (done - recipe.warmup) / (1 - recipe.warmup)
    if recipe.schedule == "cosine":
        return _between(1.0, 0.0, rest)
    return 1.0 - rest if recipe.schedule == "linear" else 1.0


def _between(start: float, end: float, share: float) -> float:
    """On half a cosine from ``start`` to ``end``."""
    return end + (start - end) * (1 + math.cos(math.pi * min(share, 1.0))) / 2


def loss_of(
    label: LabelSpec,
    outputs: Tensor,
    targets: Tensor,
    smoothing: float = 0.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Mean loss of a batch: cross-entropy, or squared error of the standardised target.

    With ``weights`` (B,), whose mean over all rows is 1, it is the sum of weighted losses over B:
    without bias for the weighted mean over all rows, which a division by the batch's own weights
    would not be, and the same whether one worker has the batch or several share it.
    """
    if weights is not None:
        losses = _losses(label, outputs, targets, smoothing, "none")
        return (weights * losses).sum() / len(targets)
    return _losses(label, outputs, targets, smoothing, "mean")


def _losses(
    label: LabelSpec, outputs: Tensor, targets: Tensor, smoothing: float, reduction: str
) -> Tensor:
    """The loss of each row (B,), or their mean."""
    if label.task == "regression":
        aims = (targets - label.mean) / label.std
        return functional.mse_loss(outputs[:, 0], aims, reduction=reduction)
    return functional.cross_entropy(
        outputs, targets, label_smoothing=smoothing, reduction=reduction
    )


class Augmentation(nn.Module):
    """Random changes of uint8 image batches (B, C, H, W), by torchvision v2.

    torchvision draws from torch's global generator and alike for a whole batch, so rows are
    changed one by one.
    """

    def __init__(self, names: tuple[str, ...], size: tuple[int, int]) -> None:
        super().__init__()
        from torchvision.transforms import v2  # noqa: PLC0415 - two seconds, for augmentation only

        height, width = size
        padding = [max(1, width // _PADDING), max(1, height // _PADDING)]
        known = {
            "flip": v2.RandomHorizontalFlip(),
            "crop": v2.RandomCrop(list(size), padding=padding),
            "trivial": v2.TrivialAugmentWide(),
            "erase": v2.RandomErasing(_ERASE_SHARE),
        }
        self.change = v2.Compose([known[name] for name in names])

    def forward(self, images: Tensor) -> Tensor:
        """The batch changed, of the same shape and type."""
        return torch.stack([self.change(image) for image in images])


def augmentation(recipe: Recipe, features: FeatureSpec) -> nn.Module:
    """What is done to a batch before the model sees it in training."""
    if not recipe.augment:
        return nn.Identity()
    return Augmentation(recipe.augment, (features.shape[1], features.shape[2]))


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context of a forward pass; auto is bfloat16 on a GPU and float32 on a CPU."""
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" else "float32"
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, precision))
