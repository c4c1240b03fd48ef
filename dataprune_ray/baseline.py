"""A finished run whose scores another one uses again: opened, and checked to fit.

Settings that decide a score must be equal; what selects and writes may differ. Metrics whose
values depend on the whole corpus cannot be extended and are refused.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

from dataprune_ray.config import OPERATIONAL, CorpusConfig, ModelConfig, PruneConfig, ScoreConfig
from dataprune_ray.errors import ConfigError
from dataprune_ray.io.corpus import Fragment
from dataprune_ray.io.filesystems import (
    beside,
    exists,
    join,
    read_bytes,
    redact,
    resolve,
)
from dataprune_ray.io.output import MANIFEST, PLAN, read_manifest, read_run
from dataprune_ray.io.scores import saved_fragments
from dataprune_ray.metrics import METRICS, is_expression, model_needs
from dataprune_ray.plans import Judges
from dataprune_ray.strategies import extra_metrics
from dataprune_ray.training import read_result

#: Settings of the corpus, the model and the scores that no score depends on.
_FREE = OPERATIONAL | {"fragment_rows"}


@dataclass(frozen=True)
class Baseline:
    """A finished run whose scores are used again.

    ``files`` maps a path to its size, version, rows and error; ``digest`` identifies the run.
    """

    root: str
    settings: dict[str, Any]
    manifest: dict[str, Any]
    plan: dict[str, Any]
    digest: str

    @property
    def scores(self) -> str:
        """Folder of its score table."""
        return join(self.root, "scores")

    @property
    def fragments(self) -> tuple[Fragment, ...]:
        """The fragments of its score files."""
        return saved_fragments(self.plan)

    @property
    def score_files(self) -> list[str]:
        """Paths of its score files."""
        return [join(self.scores, f"{fragment.name}.parquet") for fragment in self.fragments]

    @property
    def proxies(self) -> tuple[str, ...]:
        """Checkpoints of the models that it trained, in the order of their seeds."""
        count = len(self.manifest["model"]["proxies"])
        return tuple(join(self.root, "proxy", f"seed-{i}.safetensors") for i in range(count))

    @property
    def trajectory(self) -> tuple[str, ...]:
        """Checkpoints of the first of them that training dynamics looked at, if any did."""
        if not self.proxies:
            return ()
        first = read_result(beside(self.proxies[0], ".json"))
        return replace(first, checkpoint=self.proxies[0]).trajectory


def open_baseline(config: PruneConfig) -> Baseline | None:
    """The run that ``--baseline`` names, checked to have made its scores as this one would.

    Raises:
        ConfigError: it is not a finished run, a setting differs, or a metric cannot be extended.
    """
    root = config.run.baseline
    if root is None:
        return None
    if config.run.scores is not None:
        raise ConfigError("scores", config.run.scores, "cannot be combined with a baseline")
    if config.write.output and resolve(root)[1].rstrip("/") == _place(config.write.output):
        raise ConfigError("baseline", redact(root), "is the output itself; choose another --output")
    run = read_run(root)
    if run is None or not exists(join(root, MANIFEST)):
        raise ConfigError("baseline", redact(root), "is not the output of a finished run")
    if run["settings"].get("scores"):
        advice = "was cut from another run's scores; name the run that made them"
        raise ConfigError("baseline", redact(root), advice)
    plan = json.loads(read_bytes(join(root, "scores", PLAN)))
    if "fragments" not in plan or "weights" not in plan:
        raise ConfigError("baseline", redact(root), "was made by a version without baselines")
    digest = hashlib.sha256(read_bytes(join(root, MANIFEST))).hexdigest()
    baseline = Baseline(root, run["settings"], read_manifest(root), plan, digest)
    check_settings(config, baseline)
    _check_weights(config, baseline)
    return baseline


def check_settings(config: PruneConfig, baseline: Baseline) -> None:
    """Refuse a setting that makes other scores than the baseline's.

    Raises:
        ConfigError: one differs, or a metric cannot be extended.
    """
    now, before = config.flat(), baseline.settings
    metrics = tuple(dict.fromkeys([*config.score.metric, *extra_metrics(config.select)]))
    for name in metrics:
        if is_expression(name) or METRICS[name].fit is not None or METRICS[name].learns:
            raise ConfigError(
                "metric",
                name,
                "looks at the whole corpus, so the baseline's values cannot be extended; "
                "leave out --baseline",
            )
    stages = (CorpusConfig, ModelConfig, ScoreConfig)
    names = [name for stage in stages for name in stage.model_fields if name not in _FREE]
    needs = model_needs([METRICS[name] for name in metrics], config.score.space)
    if (not config.model.given and needs) or "random" in metrics:
        names.append("seed")
    for name in names:
        if name == "input" and _place(str(before.get(name))) == _place(str(now[name])):
            continue
        if before.get(name) != now[name]:
            _refuse(name, now[name], before.get(name))
    on_gpu = bool(baseline.plan["on_gpu"])
    if config.score.precision == "auto" and on_gpu != bool(config.score.num_gpus):
        kind = "bfloat16, on GPUs" if on_gpu else "float32, on CPUs"
        _refuse("precision", "auto", kind)


def _refuse(name: str, now: object, before: object) -> None:
    raise ConfigError(
        name,
        _shown(now),
        f"the baseline's scores were made with {_shown(before)!r}; "
        "use that, or leave out --baseline",
    )


def _shown(value: object) -> object:
    if isinstance(value, list):
        return [_shown(item) for item in value]
    return redact(value) if isinstance(value, str) else value


def _place(path: str) -> str:
    return resolve(path)[1].rstrip("/")


def _check_weights(config: PruneConfig, baseline: Baseline) -> None:
    """Refuse weights that are not those which made the baseline's scores."""
    given = Judges(config.model.given, config.model.trajectory)
    paths = given.paths or Judges(baseline.proxies, baseline.trajectory).paths
    for path, digest in zip(paths, baseline.plan["weights"], strict=False):
        if not exists(path) or weights_digest(path) != digest:
            field = "checkpoint" if given.paths else "baseline"
            raise ConfigError(field, redact(path), "is not what the baseline's scores came from")


def weights_digest(path: str) -> str:
    """SHA-256 of a checkpoint, as hex digits."""
    return hashlib.sha256(read_bytes(path)).hexdigest()
