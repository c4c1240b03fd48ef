"""The stages around a cut: how models are trained to try it, what is looked at, what must hold."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dataprune_ray.config.base import Stage


class TrainConfig(Stage):
    """How a model is trained on a subset, to see what the subset is worth."""

    seeds: int = Field(3, ge=1, description="trainings of each arm, each from its own seed")
    budget: Literal["updates", "epochs", "both"] = Field(
        "updates", description="what arms have in common: optimiser updates, or passes over a row"
    )
    epochs: int = Field(10, ge=1, description="epochs over the full data, which give the updates")
    updates: int | None = Field(None, ge=1, description="updates of each training, for --epochs")
    train_batch_size: int = Field(128, ge=1, description="rows per update")
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adam", description="optimiser")
    learning_rate: float = Field(1e-3, gt=0, description="largest step size")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd (Nesterov)")
    weight_decay: float = Field(0.0, ge=0, description="of the optimiser")
    schedule: Literal["cosine", "linear", "one_cycle", "constant"] = Field(
        "cosine", description="how the step size falls over a training"
    )
    warmup: float = Field(
        0.0, ge=0, lt=1, description="share of the updates in which the step size rises"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="of the cross-entropy")
    augment: tuple[Literal["flip", "crop", "trivial", "erase"], ...] = Field(
        (), description="flip, crop (pad 1/8), trivial (TrivialAugment) and erase, for images"
    )
    train_precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of a training; auto: bfloat16 on a GPU, float32 on a CPU"
    )
    workers: int = Field(
        0, ge=0, description="Ray Train workers per training, fed by streams; 0: a task, in memory"
    )
    train_gpus: float = Field(0.0, ge=0, description="GPUs per training, or per worker of it")
    train_memory_mb: int = Field(
        4096, ge=1, description="decoded rows held where there are no workers; more is refused"
    )
    max_failures: int = Field(3, ge=0, description="lost workers that a training survives")
    curve_points: int = Field(8, ge=1, description="points of a learning curve")


class GateConfig(Stage):
    """What a comparison must show."""

    max_drop: float = Field(
        0.5, ge=0, description="points of accuracy that pruning may cost against the full data"
    )
    confidence: float = Field(
        0.95, ge=0.5, lt=1, description="of the one-sided bound that must clear --max-drop"
    )
    beat_random: bool = Field(
        False, description="also ask that pruned is better than random, at the same confidence"
    )


class QualityConfig(Stage):
    """What is estimated out of fold about the rows of a cut."""

    quality: bool = Field(
        False,
        description="estimate label noise, outliers and coverage from models that have not seen "
        "the row; asked for by --rescue and --strategy auto",
    )
    quality_folds: int = Field(
        3, ge=2, description="folds: each row is judged by the others' model"
    )
    quality_sample: int = Field(
        20_000, ge=1, description="rows per fold among which neighbours are searched"
    )
    neighbours: int = Field(10, ge=1, description="nearest neighbours that are asked for labels")
    rescue: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="share of the kept rows given to rare rows, far from others, whose neighbours "
        "and models agree with the label",
    )


class TuneConfig(Stage):
    """How a strategy is searched for."""

    candidates: tuple[str, ...] = Field(
        (),
        description="strategies tried, as NAME or NAME:BETA; default: by the estimated noise share",
    )
    keeps: tuple[float, ...] = Field(
        (), description="keep fractions, of which the smallest that passes the gate is taken"
    )
    validation: str | None = Field(
        None, description="corpus on which candidates are judged; default: a held-out share"
    )
    validation_fraction: float = Field(
        0.2, gt=0, lt=1, description="share of the rows held out to judge candidates"
    )
    rounds: int = Field(3, ge=1, description="halvings: each doubles the updates of the survivors")


class ArmsConfig(Stage):
    """What is compared, on which test rows."""

    pruned: tuple[str, ...] = Field(
        (), description="outputs of jobs/prune.py; the first is judged, on its own corpus"
    )
    arms: tuple[Literal["full", "pruned", "random", "random_balanced"], ...] = Field(
        (), description="arms trained; default: all that the corpus allows"
    )
    model: str = Field("auto", description="model trained; default: the one that judged the rows")
    test: str | None = Field(None, description="test corpus; default: a share is held out")
    test_fraction: float = Field(
        0.2, gt=0, lt=1, description="share held out, pruned without it, where there is no --test"
    )
    folds: int | None = Field(
        None, ge=2, description="cross-validation: every row is tested once, each fold pruned anew"
    )
    use_weights: bool = Field(
        False,
        description="train the arms of --strategy weighted with the weights of their decisions",
    )
    output: str = Field(
        "", description="where comparison.json goes; default: into the first pruned output"
    )


class CompareRunConfig(Stage):
    """How the job is run."""

    address: str | None = Field(None, description="Ray cluster to join; default: a local Ray")
    overwrite: bool = Field(False, description="train again what an earlier comparison trained")
