"""What a finished run says of itself: a manifest for machines, a report's numbers for people."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from dataprune_ray import __version__, schema
from dataprune_ray.clock import Scoring
from dataprune_ray.config import PruneConfig
from dataprune_ray.cutoff import KeepRule, Population, extremes, histogram
from dataprune_ray.deciding import Decided
from dataprune_ray.drift import Drift
from dataprune_ray.errors import GateError
from dataprune_ray.incremental import Reuse
from dataprune_ray.io.corpus import Corpus
from dataprune_ray.io.filesystems import join, list_names, open_input, redact
from dataprune_ray.quality import Quality
from dataprune_ray.quality.rescue import Rescue
from dataprune_ray.report import BadRow, ClassCount, Gallery, ReportData, ScoreHistogram
from dataprune_ray.training import TrainResult
from dataprune_ray.understanding import Understanding
from dataprune_ray.verdict import Tuned
from dataprune_ray.writing import Written

_LIBRARIES = ("ray", "torch", "torchvision", "pyarrow", "numpy", "pandas", "pillow", "scikit-learn")
_BINS = 60
_SHOWN_EXAMPLES = 3


@dataclass(frozen=True)
class Outcome:
    """Everything that a finished run knows."""

    config: PruneConfig
    command: str
    corpus: Corpus
    understanding: Understanding
    rule: KeepRule
    decided: Decided
    written: tuple[Written, ...]
    proxies: tuple[TrainResult, ...]
    reused: int
    seconds: dict[str, float]
    warnings: tuple[str, ...]
    output: str
    scores: str
    reuse: Reuse | None = None
    rows_of_baseline: int = 0
    drift: Drift | None = None
    tuned: Tuned | None = None
    quality: Quality | None = None
    rescue: Rescue | None = None
    estimated: Mapping[str, float] = field(default_factory=dict)  # settings that were "auto"
    learned: dict[str, Any] | None = None
    scoring: Scoring | None = None  # where rows were scored by this run

    @property
    def scorable(self) -> int:
        """Rows that could be scored."""
        return self.decided.rows - self.decided.bad

    @property
    def achieved(self) -> float:
        """Fraction kept of the scorable rows; 0 where there are none."""
        return self.decided.kept / self.scorable if self.scorable else 0.0

    @property
    def overridden(self) -> bool:
        """Whether the user turned the metric's own polarity around."""
        polarity = self.understanding.metrics[0].polarity
        return self.rule.end is not None and polarity not in ("none", self.rule.end)


def manifest(outcome: Outcome) -> dict[str, Any]:
    """The manifest, JSON-ready: counts, rule, inputs, outputs, settings, versions, seconds."""
    decided, understanding = outcome.decided, outcome.understanding
    columns = understanding.joined_columns
    return {
        "format_version": 1,
        "rows": {
            "in": decided.rows,
            "kept": decided.kept,
            "dropped": outcome.scorable - decided.kept,
            "quarantined": decided.bad,
            "scores_reused": outcome.reused,
        },
        "reused": {
            "scores": outcome.reused,
            "decisions": decided.reused,
            "parts": sum(part.reused for part in outcome.written),
        },
        "keep": {
            "requested": requested_keep(outcome),
            "achieved": outcome.achieved,
        },
        "classes": [
            {"name": c.name, "kept": c.kept, "dropped": c.dropped, "quarantined": c.quarantined}
            for c in class_counts(outcome)
        ],
        "metric": understanding.metrics[0].name,
        "metrics": [metric.name for metric in understanding.metrics],
        "strategy": understanding.strategy.name,
        "keep_end": outcome.rule.end,
        "keep_end_overridden": outcome.overridden,
        "rule": outcome.rule.to_json(),
        "baseline": _baseline(outcome),
        "drift": None if outcome.drift is None else outcome.drift.to_json(),
        "quality": None if outcome.quality is None else outcome.quality.to_json(),
        "rescue": None if outcome.rescue is None else outcome.rescue.to_json(),
        "learned": outcome.learned,
        "joined": {table.name: table.to_json(columns) for table in understanding.joined},
        "tuned": None if outcome.tuned is None else outcome.tuned.to_json(),
        "estimated": dict(outcome.estimated),
        "reasons": dict(sorted(decided.reasons.items())),
        "bad_rows": dict(decided.errors.most_common()),
        "content_hash": decided.content_hash,
        "recognised": list(understanding.notes),
        "model": {
            "name": understanding.model.name,
            "checkpoints": [redact(path) for path in outcome.config.model.checkpoint],
            "trajectory": [redact(path) for path in outcome.config.model.trajectory],
            "proxies": [
                {**asdict(proxy), "checkpoint": redact(proxy.checkpoint)}
                for proxy in outcome.proxies
            ],
        },
        "inputs": [
            {"path": f.path, "size": f.size, "rows": f.rows, "version": f.version, "error": f.error}
            for f in outcome.corpus.files
        ],
        "outputs": [part.to_json() for part in outcome.written],
        "scores": redact(outcome.scores),
        "settings": without_secrets(outcome.config.flat()),
        "warnings": list(outcome.warnings),
        "versions": versions(),
        "seconds": {name: round(value, 3) for name, value in outcome.seconds.items()},
        "scoring": None if outcome.scoring is None else outcome.scoring.to_json(),
        "command": outcome.command,
        "output": redact(outcome.output),
    }


def _baseline(outcome: Outcome) -> dict[str, Any] | None:
    if outcome.reuse is None:
        return None
    reused = outcome.rows_of_baseline
    rows = {"reused": reused, "scored": outcome.decided.rows - reused}
    return {**outcome.reuse.to_json(), "rows": rows, "proxies_reused": bool(outcome.proxies)}


def _learned(found: dict[str, Any]) -> str:
    low, high = found["spearman_low"], found["spearman_high"]
    return (
        f"learned is {found['target']}, exact for {100 * found['fraction']:.6g} % of the rows and "
        f"predicted ({found['chosen'].replace('_', ' ')}) for the others: Spearman "
        f"{found['spearman']:.2f} [{low:.2f}, {high:.2f}] on {found['held_out_rows']:,} rows held "
        "out."
    )


def check_drift(content: dict[str, Any]) -> None:
    """Hold a finished run's drift against the limit that was set for it.

    Raises:
        GateError: it lies beyond.
    """
    drift = content.get("drift")
    if drift and drift["exceeded"]:
        raise GateError(
            f"drift since the baseline: PSI {drift['worst_psi']:.3g} is beyond --max-drift "
            f"{drift['max_drift']:g}; the output in {content['output']} is complete"
        )


def to_bytes(content: dict[str, Any]) -> bytes:
    """The manifest as it is stored: readable, strict JSON."""
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def versions() -> dict[str, str]:
    """Versions of this package, Python and the libraries that a result can depend on."""
    found = {"dataprune-ray": __version__, "python": platform.python_version()}
    return found | {name: importlib.metadata.version(name) for name in _LIBRARIES}


def requested_keep(outcome: Outcome) -> float | None:
    """The fraction that was asked for; None where the strategy does not take one."""
    if outcome.tuned is not None:
        return outcome.tuned.keep
    return outcome.config.select.keep if outcome.understanding.strategy.uses_keep else None


def class_counts(outcome: Outcome) -> tuple[ClassCount, ...]:
    """Rows of each class in class order; empty for regression and unlabelled corpora."""
    label, decided = outcome.understanding.label, outcome.decided
    if label.column is None or label.task == "regression":
        return ()
    names = dict(zip(label.classes, label.names or label.classes, strict=False))
    bad_only = [name for name in sorted(decided.bad_by_class) if name and name not in names]
    counts = []
    for value in [*label.classes, *bad_only]:
        parts = (decided.kept_by_class, decided.dropped_by_class, decided.bad_by_class)
        kept, dropped, bad = (part[value] for part in parts)
        if kept or dropped or bad:
            counts.append(ClassCount(names.get(value, value), kept, dropped, bad))
    return tuple(counts)


def score_histogram(
    outcome: Outcome, table: Population, parts: tuple[Population, Population] | None = None
) -> ScoreHistogram:
    """The deciding metric's distribution over all scored rows.

    ``parts`` are the rows that the rule decides and those that are kept besides, where there are.
    """
    rule, metric = outcome.rule, outcome.understanding.metrics[0].name
    found = extremes(table)
    if found is None:
        return ScoreHistogram(metric, (0.0, 1.0), (0,), (0,), None, rule.end or "random")
    low, high = found
    spread = high - low
    if not spread or not math.isfinite(spread):
        spread = abs(low) or 1.0
        low, high = low - spread / 2, low + spread / 2
    edges = np.linspace(low, high, _BINS + 1)
    kept, dropped = histogram(table if parts is None else parts[0], edges.tolist(), rule)
    if parts is not None:
        kept += histogram(parts[1], edges.tolist())[0]
    cutoff = rule.cutoffs.get("") if len(rule.cutoffs) <= 1 else None
    return ScoreHistogram(
        metric=metric,
        edges=tuple(edges.tolist()),
        kept=tuple(kept.tolist()),
        dropped=tuple(dropped.tolist()),
        cutoff=cutoff,
        kept_end=rule.end or "random",
        spread=not outcome.understanding.strategy.by_rank,
        overridden=outcome.overridden,
    )


def report_data(
    outcome: Outcome,
    scores: ScoreHistogram,
    galleries: tuple[Gallery, ...],
    bad_rows: tuple[BadRow, ...],
) -> ReportData:
    """The report's content."""
    decided, config = outcome.decided, outcome.config
    return ReportData(
        title=f"Pruned {redact(config.corpus.input)}",
        rows_in=decided.rows,
        rows_kept=decided.kept,
        rows_dropped=outcome.scorable - decided.kept,
        rows_quarantined=decided.bad,
        requested_keep=requested_keep(outcome),
        bytes_in=outcome.corpus.size,
        bytes_out=sum(part.bytes for part in outcome.written),
        sentence=_sentence(outcome),
        histogram=scores,
        classes=class_counts(outcome),
        galleries=galleries,
        bad_reasons=tuple(decided.errors.most_common()),
        bad_examples=bad_rows,
        stages=tuple(outcome.seconds.items()),
        scoring=outcome.scoring,
        settings=tuple((k, _shown(v)) for k, v in without_secrets(config.flat()).items()),
        outputs=tuple((redact(join(outcome.output, p)), what) for p, what in _OUTPUTS),
        drift=outcome.drift,
        tuned=outcome.tuned,
        quality=outcome.quality,
        warnings=outcome.warnings,
        command=outcome.command,
        versions=tuple(versions().items()),
    )


_OUTPUTS = (
    ("data", "the kept rows, as Parquet"),
    ("decisions", "every scored row: kept or dropped, and why"),
    ("scores", "the score table, for any other cut"),
    ("quarantine", "bad rows and their errors"),
    ("proxy", "the proxy models' weights, where some were trained"),
    ("quality", "every row judged by a model that has not seen it, where that was asked for"),
    ("manifest.json", "all of this for machines"),
)


def _sentence(outcome: Outcome) -> str:
    understanding = outcome.understanding
    parts = [outcome.rule.explanation]
    if outcome.proxies:
        count = len(outcome.proxies)
        models = "model" if count == 1 else "models"
        origin = "trained here" if outcome.reuse is None else "of the baseline, not trained again"
        parts.append(
            f"Scores come from {count} proxy {models} ({understanding.model.name}) {origin}."
        )
    elif outcome.config.model.given:
        parts.append(f"Scores come from {understanding.model.name} with the given checkpoint.")
    for table in understanding.joined:
        named = ", ".join(table.own(understanding.joined_columns))
        parts.append(f"{named} comes from the scores in {redact(table.folder)}.")
    if outcome.learned is not None:
        parts.append(_learned(outcome.learned))
    if outcome.reuse is not None:
        text = outcome.reuse.text
        parts.append(f"{text[0].upper()}{text[1:]}.")
    if outcome.reused:
        parts.append(f"{outcome.reused:,} rows had scores from an earlier run.")
    if outcome.decided.reused:
        copied = sum(part.reused for part in outcome.written)
        share = f"{copied:,} of {len(outcome.written):,}"
        parts.append(
            f"An attempt that was cut off had decided {outcome.decided.reused:,} rows and written "
            f"{share} parts."
        )
    if outcome.overridden:
        parts.append(f"The kept end was set to {outcome.rule.end} by --keep-end.")
    return " ".join(parts)


def bad_examples_of_scores(folder: str) -> list[str]:
    """The first few bad rows of a score table, as text."""
    found: list[str] = []
    for name in list_names(folder, ".parquet"):
        with open_input(join(folder, name)) as file:
            columns = [schema.FILE, schema.ROW, schema.ERROR]
            for batch in pq.ParquetFile(file).iter_batches(columns=columns):
                for position in np.flatnonzero(batch.column(schema.ERROR).is_valid()):
                    row = batch.slice(int(position), 1).to_pylist()[0]
                    place = row["file"] if row["row"] is None else f"{row['file']}:{row['row']}"
                    found.append(f"{place}: {row['error']}")
                    if len(found) == _SHOWN_EXAMPLES:
                        return found
    return found


def without_secrets(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without the secrets that URIs may carry."""
    return {name: _clean(value) for name, value in settings.items()}


def _clean(value: Any) -> Any:
    if isinstance(value, list):
        return [_clean(item) for item in value]
    return redact(value) if isinstance(value, str) else value


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
