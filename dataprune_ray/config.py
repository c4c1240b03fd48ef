"""One frozen, validated configuration per stage; no knob is declared anywhere else.

Command line flags, YAML keys, the saved manifest and the error messages all derive from these
fields. Names of registry entries (metrics, strategies, models) are checked where the registries
live; here only what a value alone can tell is checked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dataprune_ray.errors import ConfigError

#: Fields that say how a run is carried out, not what comes out of it: they may differ on resume.
OPERATIONAL = frozenset(
    {
        "actors",
        "address",
        "batch_size",
        "config",
        "dry_run",
        "json",
        "max_bad_rows",
        "num_gpus",
        "overwrite",
        "proxy_workers",
        "resume",
        "sample_rows",
        "status",
    }
)


C = TypeVar("C", bound="Stage")


def parse_limit(text: str) -> tuple[float, bool]:
    """A bad-row limit as ``(value, is_share)``: '1%' and '0.01' are shares, '25' is rows."""
    share = text.endswith("%")
    try:
        value = float(text.rstrip("%")) / (100.0 if share else 1.0)
    except ValueError:
        raise ValueError("give a share such as 1% or 0.01, or a number of rows") from None
    if not math.isfinite(value) or value < 0 or (share and value > 1):
        raise ValueError("must lie between 0 and 100%, or be a number of rows")
    if not share and value >= 1 and not value.is_integer():
        raise ValueError("a number of rows is whole")
    return value, share or value < 1


class Stage(BaseModel):
    """Base of the stage configurations: frozen, and strict about unknown names.

    A list may be given as one value or as text with commas, as on the command line.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {name: cls._as_list(name, value) for name, value in values.items()}

    @classmethod
    def _as_list(cls, name: str, value: Any) -> Any:
        field = cls.model_fields.get(name)
        if field is None or get_origin(field.annotation) is not tuple:
            return value
        if isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        return [value] if isinstance(value, int | float) else value


class CorpusConfig(Stage):
    """What is read and how its columns are understood."""

    input: str = Field("", description="corpus root: a file, a folder or a pyarrow.fs URI")
    format: Literal["auto", "parquet", "webdataset"] = Field(
        "auto", description="storage format; auto looks at the file names"
    )
    features: tuple[str, ...] = Field(
        (), description="feature columns (several: tabular); default: recognised"
    )
    label: str | None = Field(
        None, description="label column; 'none' for an unlabelled corpus; default: recognised"
    )
    id_column: str | None = Field(
        None, description="unique column that identifies a row; default: file and position"
    )
    modality: Literal["auto", "image", "tensor", "tabular", "text"] = Field(
        "auto", description="what the features are; auto recognises it and says so"
    )
    task: Literal["auto", "classification", "regression"] = Field(
        "auto", description="what the label is; auto: regression for a floating-point label"
    )
    num_classes: int | None = Field(
        None, ge=1, description="labels outside 0..N-1 are bad rows; default: from the corpus"
    )
    image_size: int | None = Field(
        None, ge=1, description="resize the short side and centre-crop to this many pixels"
    )
    mean: tuple[float, ...] = Field(
        (), description="per-channel mean subtracted from pixels in [0, 1]"
    )
    std: tuple[float, ...] = Field(
        (), description="per-channel standard deviation that divides them"
    )
    max_pixels: int = Field(
        64_000_000, ge=1, description="an image with more pixels is a bad row, never decoded"
    )
    fragment_rows: int | None = Field(
        None, ge=1, description="target rows of one unit of work; default: from the corpus"
    )

    @field_validator("std")
    @classmethod
    def _positive(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(v <= 0 for v in value):
            raise ValueError("every standard deviation must be positive")
        return value


class ModelConfig(Stage):
    """Which model judges the rows, and how a proxy is trained where no checkpoint is given."""

    model: str = Field(
        "auto",
        description="mlp[:H1,H2,…], linear, small_cnn, torchvision:NAME or package.module:factory",
    )
    checkpoint: tuple[str, ...] = Field(
        (), description="state dict files (.pt, .pth, .th, .safetensors); default: train a proxy"
    )
    proxy_epochs: int = Field(10, ge=1, description="epochs of the proxy run")
    proxy_seeds: int = Field(3, ge=1, description="independently seeded proxy runs")
    proxy_fraction: float = Field(
        1.0, gt=0, le=1, description="share of the rows (by hash) the proxy is trained on"
    )
    proxy_batch_size: int = Field(128, ge=1, description="rows per proxy update")
    proxy_learning_rate: float = Field(1e-3, gt=0, description="Adam's step size")
    proxy_memory_mb: int = Field(
        2048, ge=1, description="decoded rows held by one proxy run; more rows are sampled by hash"
    )
    proxy_workers: int = Field(
        0, ge=0, description="Ray Train workers per proxy run; 0: one task, no worker group"
    )


class ScoreConfig(Stage):
    """What is computed per row."""

    metric: tuple[str, ...] = Field(
        ("el2n",), min_length=1, description="importance metrics; the first decides the cut"
    )
    gradient_weight: float = Field(0.5, ge=0, description="weight of grad_norm in loss_grad")
    loss_weight: float = Field(0.5, ge=0, description="weight of loss in loss_grad")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of the forward pass; auto: bfloat16 on a GPU, float32 on a CPU"
    )
    batch_size: int | None = Field(
        None, ge=1, description="rows per forward pass; default: by the size of a row"
    )
    actors: int | None = Field(None, ge=1, description="scoring actors; default: from the cluster")
    num_gpus: float = Field(0.0, ge=0, description="GPUs per scoring actor; fractions share one")
    max_bad_rows: str = Field(
        "1%", description="bad rows allowed: a share (1%% or 0.01) or a number of rows"
    )

    @field_validator("max_bad_rows", mode="before")
    @classmethod
    def _limit(cls, value: object) -> str:
        text = str(value).replace("%%", "%")
        parse_limit(text)
        return text


class SelectConfig(Stage):
    """Which rows are kept."""

    strategy: str = Field("ratio", description="selection strategy")
    keep: float = Field(0.5, ge=0, le=1, description="fraction kept (not pruned)")
    threshold: float | None = Field(
        None,
        allow_inf_nan=True,  # the strategy says which numbers it can use
        description="score cutoff of --strategy threshold",
    )
    max_fraction: float = Field(
        0.5, ge=0, le=1, description="cutoff of --strategy max_fraction, as a share of the maximum"
    )
    keep_end: Literal["auto", "high", "low"] = Field(
        "auto", description="end of the score that is kept; auto: the metric's own"
    )
    class_floor: int = Field(0, ge=0, description="rows kept at least per class where balanced")
    seed: int = Field(0, ge=0, lt=2**63, description="of ties, random choices and the proxy")


class WriteConfig(Stage):
    """Where the result goes and in what pieces."""

    output: str = Field("", description="output directory or URI: empty, new, or an earlier run's")
    part_bytes: int = Field(
        256 * 2**20, ge=1, description="target size of an output part, in source bytes"
    )
    part_rows: int | None = Field(None, ge=1, description="target rows of a part instead of bytes")
    overwrite: bool = Field(False, description="replace an earlier run's output")
    resume: bool = Field(True, description="continue an unfinished run with the same settings")


class RunConfig(Stage):
    """How the job is run."""

    address: str | None = Field(None, description="Ray cluster to join; default: a local Ray")
    dry_run: bool = Field(False, description="score a sample and print what a run would do")
    sample_rows: int = Field(2_000, ge=1, description="rows that --dry-run scores")
    status: str | None = Field(
        None, description="an output directory: say what is done of its run and what is left"
    )
    baseline: str | None = Field(
        None, description="output of an earlier run: score only files that are new or changed"
    )
    max_drift: float | None = Field(
        None, ge=0, description="PSI since --baseline beyond which the job ends with exit code 3"
    )
    scores: str | None = Field(
        None, description="score table of an earlier run: cut again without touching a model"
    )


class PruneConfig(Stage):
    """Everything one prune run depends on."""

    corpus: CorpusConfig = CorpusConfig()
    model: ModelConfig = ModelConfig()
    score: ScoreConfig = ScoreConfig()
    select: SelectConfig = SelectConfig()
    write: WriteConfig = WriteConfig()
    run: RunConfig = RunConfig()

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> Self:
        """Build the nested configuration from flat flag or YAML names.

        Raises:
            ConfigError: an unknown name or a value out of range, naming the field.
        """
        return build(cls, values)

    def replace(self, **changes: Any) -> Self:
        """The configuration with some fields changed, by their flat names."""
        return self.from_flat({**self.flat(), **changes})

    def flat(self) -> dict[str, Any]:
        """All fields by their flat names, JSON-ready."""
        return flatten(self)

    def decisive(self) -> dict[str, Any]:
        """The fields that the result depends on, by their flat names."""
        return {k: v for k, v in self.flat().items() if k not in OPERATIONAL}


def stages(cls: type[Stage]) -> dict[str, type[Stage]]:
    """The stage configurations that a job's configuration is made of, by field name."""
    found = {}
    for name, field in cls.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Stage):
            found[name] = field.annotation
    return found


def flatten(config: Stage) -> dict[str, Any]:
    """A job configuration's fields by their flat names, JSON-ready."""
    flat: dict[str, Any] = {}
    for value in config.model_dump(mode="json").values():
        flat.update(value)
    return flat


def build(cls: type[C], values: Mapping[str, Any]) -> C:
    """Distribute flat ``values`` over the stages of ``cls`` and validate them.

    Raises:
        ConfigError: an unknown name or a value out of range, naming the field.
    """
    owners = {name: stage for stage, kind in stages(cls).items() for name in kind.model_fields}
    nested: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if name not in owners:
            raise ConfigError(
                name, value, f"unknown setting; known are: {', '.join(sorted(owners))}"
            )
        nested.setdefault(owners[name], {})[name] = value
    try:
        return cls.model_validate(nested)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][1] if len(first["loc"]) > 1 else first["loc"][0])
        raise ConfigError(field, first.get("input"), first["msg"]) from None


def read_yaml(path: str) -> dict[str, Any]:
    """Flat settings from a YAML file, keys as the long flags with ``_`` or ``-``.

    Raises:
        ConfigError: the file cannot be read or is not a mapping.
    """
    try:
        loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError("config", path, f"cannot be read: {error}") from None
    if not isinstance(loaded, dict):
        raise ConfigError("config", path, "must hold a mapping of settings, like 'keep: 0.3'")
    return {str(key).replace("-", "_"): value for key, value in loaded.items()}
