"""What a stage's configuration is, and how flat names become a job's configuration and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TypeVar, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from dataprune_ray.errors import ConfigError

#: Fields that say how a run is carried out, not what comes out of it: they may differ on resume.
OPERATIONAL = frozenset(
    {
        "actors",
        "address",
        "batch_size",
        "config",
        "cpu_hour_price",
        "dry_run",
        "explain",
        "gpu_hour_price",
        "json",
        "list",
        "max_bad_rows",
        "max_failures",
        "num_gpus",
        "overwrite",
        "plan_cpus",
        "plan_gpus",
        "proxy_workers",
        "resume",
        "sample_rows",
        "status",
        "train_gpus",
        "train_memory_mb",
        "workers",
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


class Job(Stage):
    """Base of a job's configuration, which is made of stages."""

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
        first, *others = error.errors()
        field = str(first["loc"][1] if len(first["loc"]) > 1 else first["loc"][0])
        words = [e["ctx"]["expected"] for e in others if _names_words(e, first["loc"])]
        advice = ", or ".join([first["msg"], *words])
        raise ConfigError(field, first.get("input"), advice) from None


def _names_words(error: Mapping[str, Any], place: tuple[int | str, ...]) -> bool:
    """Whether an error says which words the field at a place takes besides numbers."""
    return bool(error["type"] == "literal_error" and error["loc"][:2] == place[:2])


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
