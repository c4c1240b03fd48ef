"""One frozen, validated configuration per stage; no knob is declared anywhere else.

Command line flags, YAML keys, the saved manifest and the error messages all derive from these
fields. Names of registry entries (metrics, strategies, models) are checked where the registries
live; here only what a value alone can tell is checked.
"""

from __future__ import annotations

from dataprune_ray.config.base import (
    OPERATIONAL,
    Job,
    Stage,
    build,
    flatten,
    parse_limit,
    read_yaml,
    stages,
)
from dataprune_ray.config.compare import CompareConfig
from dataprune_ray.config.prune import (
    AUTO,
    CorpusConfig,
    ModelConfig,
    PruneConfig,
    RunConfig,
    ScoreConfig,
    SelectConfig,
    WriteConfig,
)
from dataprune_ray.config.trials import (
    ArmsConfig,
    CompareRunConfig,
    GateConfig,
    QualityConfig,
    TrainConfig,
    TuneConfig,
)

__all__ = [
    "AUTO",
    "OPERATIONAL",
    "ArmsConfig",
    "CompareConfig",
    "CompareRunConfig",
    "CorpusConfig",
    "GateConfig",
    "Job",
    "ModelConfig",
    "PruneConfig",
    "QualityConfig",
    "RunConfig",
    "ScoreConfig",
    "SelectConfig",
    "Stage",
    "TrainConfig",
    "TuneConfig",
    "WriteConfig",
    "build",
    "flatten",
    "parse_limit",
    "read_yaml",
    "stages",
]
