"""The settings of a comparison."""

from __future__ import annotations

from dataprune_ray.config.base import Job
from dataprune_ray.config.prune import CorpusConfig
from dataprune_ray.config.trials import ArmsConfig, CompareRunConfig, GateConfig, TrainConfig


class CompareConfig(Job):
    """Everything one comparison depends on; what is not given is as in the pruned output."""

    arms: ArmsConfig = ArmsConfig()
    train: TrainConfig = TrainConfig()
    gate: GateConfig = GateConfig()
    corpus: CorpusConfig = CorpusConfig()
    run: CompareRunConfig = CompareRunConfig()
