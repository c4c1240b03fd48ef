"""A finished run, opened from its output directory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter

from dataprune_ray import schema
from dataprune_ray.config import PruneConfig, SelectConfig
from dataprune_ray.cutoff import NOISE, KeepRule, Population, unscreened
from dataprune_ray.cutoff.population import UNGROUPED
from dataprune_ray.errors import ConfigError
from dataprune_ray.features import LabelSpec
from dataprune_ray.io.corpus import Fragment
from dataprune_ray.io.filesystems import exists, join, list_names, redact
from dataprune_ray.io.joined import joined_in
from dataprune_ray.io.output import MANIFEST, PLAN, read_manifest, read_run
from dataprune_ray.io.scores import FilePopulation, saved_plan
from dataprune_ray.metrics import METRICS, joined_metrics, resolve_metric
from dataprune_ray.quality.rescue import Rescue
from dataprune_ray.strategies import ScoreInfo, Strategy, get_strategy

T = TypeVar("T")
R = TypeVar("R")

_THREADS = 4


@dataclass(frozen=True)
class FinishedRun:
    """A finished run: its settings, its rule and where its files lie.

    ``scores`` is the folder of the score table it was cut from, its own or an earlier run's;
    ``plan`` is what lies beside that; ``metric`` decided, ``metrics`` are all, it first.
    """

    root: str
    config: PruneConfig
    manifest: dict[str, Any]
    rule: KeepRule
    scores: str
    plan: dict[str, Any]

    @cached_property
    def fragments(self) -> tuple[Fragment, ...]:
        """The units of work, each with one score file and one decisions file."""
        return tuple(Fragment.from_json(text) for text in self.plan["fragments"])

    @cached_property
    def label(self) -> LabelSpec:
        """The label."""
        return TypeAdapter(LabelSpec).validate_python(self.plan["label"])

    @property
    def strategy(self) -> Strategy:
        """What compiled the rule."""
        return get_strategy(self.manifest["strategy"])

    @cached_property
    def rescue(self) -> Rescue | None:
        """The rows that were put back, if any were."""
        stored = self.manifest.get("rescue")
        return None if stored is None else Rescue.from_json(stored)

    @property
    def metric(self) -> str:
        """The metric that the strategy looked at."""
        return str(self.manifest["metric"])

    @property
    def metrics(self) -> tuple[str, ...]:
        """All metrics of the score table, the deciding one first."""
        return tuple(dict.fromkeys([self.metric, *self.plan["metrics"]]))

    @property
    def group_column(self) -> str | None:
        """Column of the score table whose values have quotas; None where none have."""
        if not self.strategy.needs_labels:
            return None
        return schema.LABEL if self.config.corpus.group_column is None else schema.GROUP

    @property
    def classed(self) -> bool:
        """Whether the labels are classes."""
        return self.label.column is not None and self.label.task == "classification"

    @property
    def select(self) -> SelectConfig:
        """The settings of the cut, with the strategy and the shares that were used."""
        keep = self.manifest["keep"]["requested"]
        used = self.config.select
        tuned = self.manifest.get("tuned") or {}
        changes = {
            **(self.manifest.get("estimated") or {}),
            **({"beta": tuned["beta"]} if "beta" in tuned else {}),
            "strategy": self.manifest["strategy"],
            "keep": used.keep if keep is None else keep,
        }
        return used.model_copy(update=changes)

    @property
    def info(self) -> ScoreInfo:
        """What strategies may know about the metrics."""
        joined = joined_metrics(joined_in(self.plan))
        metric = resolve_metric(self.metric, self.config.score.learned_metric, joined)
        noise = None
        for screen in self.rule.screens:
            known = {**METRICS, **joined}
            end = known[screen.column].noise_end if screen.reason == NOISE else None
            noise = noise if end is None else (screen.column, end)
        what: Literal["class", "group"] = "group" if self.config.corpus.group_column else "class"
        return ScoreInfo(metric.name, metric.polarity, metric.low, metric.high, noise, what)

    @property
    def population(self) -> FilePopulation:
        """The scored rows, in the strategy's groups."""
        column = self.group_column
        return FilePopulation(
            paths=[self.score_file(fragment.name) for fragment in self.fragments],
            metric=self.metric,
            group_column=column,
            groups=UNGROUPED if column is None else self.rule.groups,
            seed=self.config.select.seed,
        )

    @property
    def ranked(self) -> Population:
        """The rows that the strategy looked at: those that no screen drops."""
        return unscreened(self.population, self.rule.screens)

    def score_file(self, fragment: str) -> str:
        """Path of a fragment's score file."""
        return join(self.scores, f"{fragment}.parquet")

    def decision_file(self, fragment: str) -> str:
        """Path of a fragment's decisions."""
        return join(self.root, "decisions", f"{fragment}.parquet")

    def quality_file(self, fragment: str) -> str:
        """Path of a fragment's quality table, which need not be there."""
        return join(self.root, "quality", f"{fragment}.parquet")

    def class_name(self, label: str | None) -> str | None:
        """What people call a class; None where there is no name."""
        names = dict(zip(self.label.classes, self.label.names, strict=False))
        return None if label is None else names.get(label)


def open_run(root: str, scores: str | None = None) -> FinishedRun:
    """Open a finished run; ``scores`` says where its score table lies, if it was moved.

    Raises:
        ConfigError: it is not there, not finished, or its score table is not complete.
    """
    if not exists(root):
        raise ConfigError("output", redact(root), "no such directory; name a finished run's output")
    if not exists(join(root, MANIFEST)):
        advice = "is not a run's output (no run.json); name a finished run's"
        if read_run(root) is not None:
            advice = "the run is not finished; run its command again (--status says what is left)"
        raise ConfigError("output", redact(root), advice)
    manifest = read_manifest(root)
    known = PruneConfig().flat().keys()
    settings = {name: value for name, value in manifest["settings"].items() if name in known}
    config = PruneConfig.from_flat(settings)
    folder = scores or config.run.scores or join(root, "scores")
    if not exists(join(folder, PLAN)):
        advice = "the run's score table is not there; say where it lies with --scores"
        raise ConfigError("scores", redact(folder), advice)
    plan = saved_plan(folder)
    if "fragments" not in plan:
        raise ConfigError("scores", redact(folder), "was made by a version without fragment lists")
    rule = KeepRule.from_json(manifest["rule"])
    run = FinishedRun(root, config, manifest, rule, folder, plan)
    if run.metric not in plan["metrics"]:
        advice = f"the run was cut by {run.metric!r}; the table holds {', '.join(plan['metrics'])}"
        raise ConfigError("scores", redact(folder), advice)
    names = [f"{fragment.name}.parquet" for fragment in run.fragments]
    for field, place in (("scores", folder), ("output", join(root, "decisions"))):
        missing = sorted(set(names) - set(list_names(place, ".parquet")))
        if missing:
            advice = (
                f"lacks {len(missing)} of {len(names)} files, {missing[0]} first; run the job again"
            )
            raise ConfigError(field, redact(place), advice)
    return run


def in_shares(function: Callable[[Sequence[T]], R], items: Sequence[T]) -> list[R]:
    """``function`` of a few shares of the items, each in a thread of its own.

    Shares are as many as threads, so what is held does not grow with the items.
    """
    shares = [items[i::_THREADS] for i in range(min(_THREADS, len(items)))]
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(function, shares))
