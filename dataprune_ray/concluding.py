"""What a comparison's trainings showed, committed: the verdict, its notes, and the report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from dataprune_ray.comparing import FOLDER, Round
from dataprune_ray.config import CompareConfig
from dataprune_ray.errors import ConfigError, GateError
from dataprune_ray.inference import costs, judge, summarise
from dataprune_ray.io.filesystems import (
    exists,
    join,
    read_bytes,
    redact,
    remove_file,
    remove_tree,
    write_bytes,
)
from dataprune_ray.io.output import REPORT, REPORT_DATA, RUN_FILE, entries_of
from dataprune_ray.leaking import leakage
from dataprune_ray.manifest import versions, without_secrets
from dataprune_ray.quality import Leakage
from dataprune_ray.report import from_json, render, render_comparison
from dataprune_ray.subjects import Subject
from dataprune_ray.verdict import FULL, PRUNED, RANDOM, Comparison, TrialRun

RESULT = "comparison.json"


def shared_rows(config: CompareConfig, bouts: Sequence[Round]) -> Leakage | None:
    """Rows of a given test set that the corpus holds too; None where none is given."""
    if config.arms.test is None:
        return None
    return leakage(bouts[0].rows, bouts[0].test, bouts[0].model)


def conclude(
    config: CompareConfig,
    subjects: Sequence[Subject],
    bouts: Sequence[Round],
    runs: Sequence[TrialRun],
    shared: Leakage | None,
) -> Comparison:
    """Means, intervals, costs and the verdict."""
    subject, gate = subjects[0], config.gate
    label = subject.understanding.label
    classes = () if label.task == "regression" else label.names or label.classes
    scored = int(subject.manifest["rows"]["kept"]) + int(subject.manifest["rows"]["dropped"])
    held_out = config.arms.test is None
    full_rows = {run.fold: scored - (run.test_rows if held_out else 0) for run in runs}
    arms = summarise(runs, classes, gate.confidence, full_rows)
    budget = "updates" if config.train.budget == "both" else config.train.budget
    names = {arm.arm for arm in arms}
    passed = True
    reasons: tuple[str, ...] = ("Nothing was judged: the pruned arm was not trained.",)
    if PRUNED in names:
        passed, reasons = judge(
            runs,
            budget=budget,
            max_drop=gate.max_drop,
            confidence=gate.confidence,
            beat_random=gate.beat_random,
            drawn=subject.config.select.strategy == RANDOM,
        )
    seconds = [(k, float(v)) for k, v in subject.manifest["seconds"].items() if k != "report"]
    written = sum(int(part["bytes"]) for part in subject.manifest["outputs"])
    return Comparison(
        measure="R²" if label.task == "regression" else "accuracy",
        classes=tuple(classes),
        test=_tested_on(config, runs),
        runs=tuple(runs),
        arms=arms,
        costs=costs(arms, seconds, subject.corpus.size - written) if FULL in names else None,
        max_drop=gate.max_drop,
        confidence=gate.confidence,
        beat_random=gate.beat_random,
        passed=passed,
        reasons=reasons,
        notes=tuple(_notes(config, subjects, bouts, runs, shared)),
        weighted=_weighted(bouts),
    )


def _weighted(bouts: Sequence[Round]) -> tuple[str, ...]:
    """Names of the arms that are trained with weights."""
    arms = [entry.arm for bout in bouts for entry in bout.entries]
    return tuple(dict.fromkeys(arm.name for arm in arms if arm.weighted))


def _tested_on(config: CompareConfig, runs: Sequence[TrialRun]) -> str:
    rows = runs[0].test_rows if runs else 0
    if config.arms.test is not None:
        return f"{rows:,} rows of {redact(config.arms.test)}"
    if config.arms.folds is not None:
        return f"{config.arms.folds}-fold cross-validation, each fold pruned without its test rows"
    share = f"{100 * config.arms.test_fraction:g} %"
    return f"{rows:,} rows, {share} of the corpus, held out by hash; pruned without them"


def _notes(
    config: CompareConfig,
    subjects: Sequence[Subject],
    bouts: Sequence[Round],
    runs: Sequence[TrialRun],
    shared: Leakage | None,
) -> Iterator[str]:
    subject = subjects[0]
    if shared is not None and shared.exact + shared.near:
        yield (
            f"Of {shared.test_rows:,} test rows compared, {shared.exact:,} are in the corpus too, "
            f"and {shared.near:,} nearly so (cosine {shared.similarity:g})."
        )
    if weighted := _weighted(bouts):
        yield (
            f"The losses of {', '.join(weighted)} are weighted by the inverse probability with "
            "which each row was drawn (--use-weights), over their mean."
        )
    if any(subject.manifest["settings"].get(name) for name in ("scores", "with_scores")):
        yield "The cut was made from another run's scores; what they cost is not counted."
    if config.arms.test is None:
        if subject.config.model.given:
            yield (
                "The rows were scored with a given checkpoint, which may have been trained on rows "
                "that are held out here; a --test set of its own avoids that."
            )
        if subject.manifest.get("tuned"):
            yield (
                "The strategy was chosen once, by trials on the whole corpus, not anew without "
                "the rows that are tested here: a mild leak in favour of pruned, which a --test "
                "set avoids."
            )
        if subject.manifest.get("estimated"):
            yield (
                "The share cut as noise was estimated once, on the whole corpus: a mild leak, too."
            )
    known = sum(fragment.rows or 0 for fragment in bouts[0].test.fragments)
    if config.arms.test is not None and runs and known > runs[0].test_rows:
        yield f"{known - runs[0].test_rows:,} of {known:,} test rows cannot be used: bad rows."
    if config.train.workers > 1:
        yield (
            f"Each epoch leaves out up to {config.train.workers - 1} rows, so that workers' shards "
            "are of equal size."
        )


# Output ------------------------------------------------------------------------------------------


def place(config: CompareConfig, subjects: Sequence[Subject]) -> str:
    """Where the comparison goes.

    Raises:
        ConfigError: the directory holds something else.
    """
    root = config.arms.output or subjects[0].root
    if exists(join(root, RESULT)) or exists(join(root, RUN_FILE)):
        return root
    strangers = entries_of(root) - {FOLDER}
    if strangers:
        advice = f"is not empty and not a run's or a comparison's output: {sorted(strangers)[:3]}"
        raise ConfigError("output", redact(root), advice)
    return root


def forget(root: str) -> None:
    """Remove an earlier comparison: its result first, then its trainings and folds."""
    remove_file(join(root, RESULT))
    remove_tree(root, FOLDER)


def write(
    config: CompareConfig,
    subjects: Sequence[Subject],
    comparison: Comparison,
    shared: Leakage | None,
    root: str,
    command: str,
) -> dict[str, Any]:
    """Commit the report with the comparison in it, then ``comparison.json``."""
    content = {
        "format_version": 1,
        **comparison.to_json(),
        "leakage": None if shared is None else asdict(shared),
        "pruned": [redact(subject.root) for subject in subjects],
        "content_hash": subjects[0].manifest["content_hash"],
        "settings": without_secrets(config.flat()),
        "versions": versions(),
        "command": command,
        "output": redact(root),
    }
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_bytes(join(root, REPORT), _page(subjects, comparison, shared, root, content).encode())
    write_bytes(join(root, RESULT), text.encode())
    stored: dict[str, Any] = json.loads(text)
    return stored


def _page(
    subjects: Sequence[Subject],
    comparison: Comparison,
    shared: Leakage | None,
    root: str,
    content: dict[str, Any],
) -> str:
    """The pruned output's own report with the comparison added, or a page of the comparison."""
    stored = join(root, REPORT_DATA)
    if exists(stored):
        data = replace(from_json(read_bytes(stored)), comparison=comparison)
        if data.quality is not None:
            data = replace(data, quality=replace(data.quality, leakage=shared))
        return render(data)
    shown = tuple((name, str(value)) for name, value in content["settings"].items())
    return render_comparison(
        comparison,
        title=f"Full against pruned: {redact(subjects[0].corpus.root)}",
        command=content["command"],
        settings=shown,
        versions=tuple(content["versions"].items()),
    )


def check_gate(content: dict[str, Any]) -> None:
    """Hold a finished comparison to its gate.

    Raises:
        GateError: it failed.
    """
    if not content["passed"]:
        raise GateError(f"the gate failed: {' '.join(content['reasons'])}")
