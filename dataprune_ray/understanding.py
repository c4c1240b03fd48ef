"""From settings and a corpus to what every later stage is told: features, label, model, metrics."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import pyarrow as pa
from pydantic import TypeAdapter

from dataprune_ray import schema
from dataprune_ray.config import PruneConfig
from dataprune_ray.errors import BadDataError, ConfigError
from dataprune_ray.features import FeatureSpec, LabelSpec, check_group_column, recognise
from dataprune_ray.io import READ_ERRORS, get_reader
from dataprune_ray.io.corpus import Corpus
from dataprune_ray.io.filesystems import join, redact, write_bytes
from dataprune_ray.io.joined import JoinedTable, open_joined
from dataprune_ray.io.output import PLAN
from dataprune_ray.io.rows import RowPlan
from dataprune_ray.io.scores import saved_plan
from dataprune_ray.metrics import (
    Metric,
    check_metrics,
    model_needs,
)
from dataprune_ray.models import ModelSpec, resolve_spec
from dataprune_ray.naming import check_names, noise_metric
from dataprune_ray.plans import ScorePlan
from dataprune_ray.scanning import needs_scan, scan
from dataprune_ray.space import INPUTS, MODEL
from dataprune_ray.strategies import (
    ScoreInfo,
    Strategy,
)

_SAMPLE_ROWS = 256


@dataclass(frozen=True)
class Understanding:
    """What a run knows of its corpus; ``notes`` say what was recognised.

    The first of ``metrics`` decides; ``noise`` is the one that noise is cut by before that.
    ``groups`` are the values of the group column, once the score table is there. ``joined`` are
    the score tables of other runs that some metrics come from.
    """

    rows: RowPlan
    model: ModelSpec
    metrics: tuple[Metric, ...]
    strategy: Strategy
    notes: tuple[str, ...]
    space: str = MODEL
    space_column: FeatureSpec | None = None
    noise: Metric | None = None
    groups: tuple[str, ...] = ()
    joined: tuple[JoinedTable, ...] = ()

    @property
    def joined_columns(self) -> tuple[str, ...]:
        """Metrics of other runs' score tables, as ``TABLE.METRIC``."""
        return tuple(metric.name for metric in self.metrics if metric.joined)

    @property
    def label(self) -> LabelSpec:
        """The label."""
        return self.model.label

    @property
    def group_column(self) -> str | None:
        """Column of the score table whose values have quotas; None where the strategy has none."""
        if not self.strategy.needs_labels:
            return None
        return schema.LABEL if self.rows.group is None else schema.GROUP

    @property
    def info(self) -> ScoreInfo:
        """What strategies may know about the metrics."""
        first, noise = self.metrics[0], self.noise
        told_by = None
        if noise is not None and noise.noise_end is not None:
            told_by = (noise.name, noise.noise_end)
        what: Literal["class", "group"] = "class" if self.rows.group is None else "group"
        return ScoreInfo(first.name, first.polarity, first.low, first.high, told_by, what)

    @property
    def needs_model(self) -> bool:
        """Whether any metric looks at a model's outputs."""
        return bool(model_needs(self.metrics, self.space))

    @property
    def needs_trajectory(self) -> bool:
        """Whether any metric looks at the checkpoints of a training run in turn."""
        return any(metric.track is not None for metric in self.metrics)

    @property
    def one_run(self) -> bool:
        """Whether one proxy run serves all metrics."""
        return not any(metric.averaged for metric in self.metrics)


def understand(config: PruneConfig, corpus: Corpus) -> Understanding:
    """Recognise features, label and model from the schema and first rows; Ray is not needed.

    Raises:
        ConfigError: the settings do not fit the corpus.
    """
    metrics, strategy = check_names(config)
    found = recognise(config.corpus, corpus.schema, first_rows(corpus))
    label = found.label
    check_metrics(metrics, labelled=label.column is not None, regression=label.task == "regression")
    group = config.corpus.group_column
    if group is not None:
        check_group_column(group, corpus.schema, first_rows(corpus))
    classed = label.column is not None and label.task == "classification"
    if strategy.needs_labels and not classed and group is None:
        raise ConfigError(
            "strategy",
            strategy.name,
            "needs a class label, or another column to balance by; name one with --label or "
            "--group-column",
        )
    judged = model_needs(metrics, config.score.space)
    if judged and label.column is None and not config.model.given and not config.run.scores:
        raise ConfigError(
            "checkpoint", (), "an unlabelled corpus cannot train a proxy; give a checkpoint"
        )
    model = resolve_spec(config.model, config.corpus, found.features, label)
    seed = config.select.seed
    rows = RowPlan.of(corpus, model.features, label, config.corpus.id_column, seed)
    rows = replace(rows, group=group)
    notes = (*found.notes, f"model {model.name}")
    column = None
    if any("space" in metric.needs for metric in metrics):
        column = _space_column(config, corpus, found.features)
    noise = noise_metric(config, metrics)
    return Understanding(
        rows,
        model,
        metrics,
        strategy,
        notes,
        config.score.space,
        column,
        noise=noise,
        joined=open_joined(config.run.with_scores),
    )


def _space_column(config: PruneConfig, corpus: Corpus, features: FeatureSpec) -> FeatureSpec | None:
    """The stored column that the feature space comes from, where it does.

    Raises:
        ConfigError: there is no such column, it does not hold arrays, or inputs are no vectors.
    """
    name = config.score.space
    if name == INPUTS and features.modality == "text":
        advice = "texts are no vectors; use model, or name a column of embeddings"
        raise ConfigError("space", name, advice)
    if name in (MODEL, INPUTS):
        return None
    changes = {"features": (name,), "label": "none", "modality": "tensor", "num_classes": 1}
    asked = config.corpus.model_copy(update=changes)
    try:
        return recognise(asked, corpus.schema, first_rows(corpus)).features
    except ConfigError as error:
        reason = f"is neither {MODEL} nor {INPUTS}, and no column of floats: {error}"
        raise ConfigError("space", name, reason) from None


def first_rows(corpus: Corpus) -> pa.RecordBatch:
    """A few rows of the first file that can be read; an empty batch where there are none.

    Raises:
        BadDataError: no file can be read.
    """
    problem: Exception | None = None
    for fragment in corpus.fragments:
        for span in fragment.spans:
            if span.error is not None:
                continue
            try:
                reader = get_reader(corpus.format)
                for batch in reader.read(corpus.root, span, None, _SAMPLE_ROWS):
                    return batch
            except READ_ERRORS as error:
                problem = error
    if problem is not None:
        raise BadDataError(f"input={redact(corpus.root)!r}: no file can be read: {problem}")
    return pa.RecordBatch.from_pylist([], schema=corpus.schema)


def complete(understanding: Understanding) -> Understanding:
    """Fill in what only the whole corpus tells (classes, moments), by a pass of Ray tasks."""
    rows = understanding.rows
    if not needs_scan(rows.features, rows.label):
        return understanding
    features, label = scan(rows)
    return replace(
        understanding,
        rows=replace(rows, features=features, label=label),
        model=replace(understanding.model, features=features, label=label),
    )


def save(
    understanding: Understanding, corpus: Corpus, plan: ScorePlan, weights: tuple[str, ...]
) -> None:
    """Leave beside a score table what it takes to cut it again, or to extend it."""
    content = {
        "corpus": corpus.fingerprint(),
        "id_column": understanding.rows.id_column,
        "group_column": understanding.rows.group,
        "features": asdict(understanding.rows.features),
        "label": asdict(understanding.rows.label),
        "metrics": [metric.name for metric in understanding.metrics],
        "model": understanding.model.name,
        "weights": list(weights),
        "on_gpu": plan.use_gpu,
        "fragments": [fragment.to_json() for fragment in corpus.fragments],
        "scored_with": _scored_with(plan),
    }
    if plan.learning is not None:
        content["learned_metric"] = plan.learning.target
    if understanding.joined:
        content["joined"] = {
            table.name: table.to_json(understanding.joined_columns)
            for table in understanding.joined
        }
    write_bytes(join(plan.folder, PLAN), (json.dumps(content, indent=2) + "\n").encode())


def _scored_with(plan: ScorePlan) -> dict[str, Any]:
    """Settings that the scores depend on, so that equal plans mean equal scores."""
    return {
        "seed": plan.rows.seed,
        "precision": plan.precision,
        "options": asdict(plan.options),
        "space": asdict(plan.space),
        "learning": None if plan.learning is None else asdict(plan.learning),
    }


def restore(understanding: Understanding, corpus: Corpus, folder: str) -> Understanding:
    """What was saved beside an earlier run's score table.

    Raises:
        ConfigError: the table is not there, belongs to another corpus or lacks a metric.
    """
    saved = saved_plan(folder)
    if saved["corpus"] != corpus.fingerprint():
        raise ConfigError("scores", folder, "belongs to another corpus or its files changed since")
    if saved["id_column"] != understanding.rows.id_column:
        raise ConfigError("id_column", understanding.rows.id_column, f"was {saved['id_column']!r}")
    group = understanding.rows.group
    if group is not None and saved.get("group_column") != group:
        held = saved.get("group_column")
        advice = f"the score table was made with {held!r}; use that, or score the corpus again"
        raise ConfigError("group_column", group, advice)
    for metric in understanding.metrics:
        if metric.name not in saved["metrics"]:
            raise ConfigError(
                "metric", metric.name, f"{folder} holds {', '.join(saved['metrics'])}"
            )
    return as_saved(understanding, saved)


def as_saved(understanding: Understanding, saved: dict[str, Any]) -> Understanding:
    """With the features and the label that an earlier run had, its classes and moments."""
    features = TypeAdapter(FeatureSpec).validate_python(saved["features"])
    label = TypeAdapter(LabelSpec).validate_python(saved["label"])
    return replace(
        understanding,
        rows=replace(understanding.rows, features=features, label=label),
        model=replace(understanding.model, features=features, label=label),
    )
