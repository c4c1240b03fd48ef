"""The settings of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from dataprune_ray.config.base import Stage, build, flatten
from dataprune_ray.config.prune import CorpusConfig
from dataprune_ray.config.trials import ArmsConfig, CompareRunConfig, GateConfig, TrainConfig


class CompareConfig(Stage):
    """Everything one comparison depends on; what is not given is as in the pruned output."""

    arms: ArmsConfig = ArmsConfig()
    train: TrainConfig = TrainConfig()
    gate: GateConfig = GateConfig()
    corpus: CorpusConfig = CorpusConfig()
    run: CompareRunConfig = CompareRunConfig()

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> Self:
        """Build the nested configuration from flat flag or YAML names.

        Raises:
            ConfigError: an unknown name or a value out of range, naming the field.
        """
        return build(cls, values)

    def flat(self) -> dict[str, Any]:
        """All fields by their flat names, JSON-ready."""
        return flatten(self)
