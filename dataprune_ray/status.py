"""What is done of a run and what is left, from its output directory alone; Ray is not started.

Nothing is written and nothing is locked: it can be asked at any time, also while the run goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow.parquet as pq

from dataprune_ray import schema
from dataprune_ray.config import CorpusConfig
from dataprune_ray.errors import ConfigError, DataPruneError
from dataprune_ray.io import READ_ERRORS, open_corpus
from dataprune_ray.io.corpus import Corpus, Fragment
from dataprune_ray.io.filesystems import (
    FileInfo,
    exists,
    join,
    list_files,
    open_input,
    read_bytes,
    redact,
)
from dataprune_ray.io.output import MANIFEST, PLAN, read_manifest, read_run
from dataprune_ray.metrics import METRICS, is_expression, model_needs
from dataprune_ray.metrics.expression import Expression
from dataprune_ray.space import MODEL
from dataprune_ray.unchanged import settled

_SHOWN_SETTINGS = ("format", "features", "label", "model", "metric", "strategy", "keep", "seed")
_THREADS = 16


@dataclass(frozen=True)
class Progress:
    """Of one kind of work: how much is done, and of how much, where that is known."""

    done: int
    total: int | None


@dataclass(frozen=True)
class Status:
    """A run as its output directory shows it.

    ``corpus`` is ``unchanged``, ``changed`` or ``unreadable`` since the run began; ``next`` says
    what the run's own command would do now. ``rows_scored`` counts bad rows too.
    """

    output: str
    finished: bool
    corpus: str
    input: str
    settings: dict[str, Any]
    proxies: Progress
    fragments: Progress
    rows_scored: int
    rows: int | None
    rows_bad: int
    decisions: Progress
    parts: Progress
    quarantined: int
    kept: int | None
    seconds_since_last_file: float
    next: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything, JSON-ready."""
        return {"status": asdict(self)}

    def text(self) -> str:
        """What the prune job prints."""
        state = "finished" if self.finished else "not finished"
        settings = ", ".join(f"{name} {_shown(v)}" for name, v in self.settings.items())
        kept = "" if self.kept is None else f", {self.kept:,} kept"
        rows = _of(Progress(self.rows_scored, self.rows))
        lines = [
            f"{self.output}: {state}, last file {_ago(self.seconds_since_last_file)}",
            "",
            f"  corpus       {self.input} ({self.corpus})",
            f"  settings     {settings}",
            f"  proxies      {_of(self.proxies)} trained",
            f"  fragments    {_of(self.fragments)} scored",
            f"  rows         {rows} scored, {self.rows_bad:,} of them bad{kept}",
            f"  decisions    {_of(self.decisions)} fragments",
            f"  parts        {_of(self.parts)} written",
            f"  quarantine   {self.quarantined:,} rows",
            "",
            "The run's command would now:",
            *(f"  - {step}" for step in self.next),
        ]
        return "\n".join(lines)


def status(root: str) -> Status:
    """What is done and left of the run that the directory belongs to.

    Raises:
        ConfigError: the directory is not there, empty, or not a run's output.
    """
    if not exists(root):
        raise ConfigError("status", redact(root), "no such directory")
    files = _by_folder(list_files(root))
    run = read_run(root)
    if run is None:
        what = "is not a run's output (no run.json)" if any(files.values()) else "is empty"
        raise ConfigError("status", redact(root), what)
    settings = run["settings"]
    manifest = _manifest(root, files)
    corpus, state = _corpus(root, settings, run["inputs"])
    names = _fragment_names(root, settings, corpus)
    notes = _notes(root, settings, names, files)
    fragments = Progress(len(notes), None if names is None else len(names))
    proxies = _proxies(settings, files)
    decisions = Progress(len(files["decisions"]), fragments.total)
    return Status(
        output=redact(root),
        finished=manifest is not None,
        corpus=state,
        input=redact(str(settings.get("input"))),
        settings={n: settings[n] for n in _SHOWN_SETTINGS if settings.get(n) not in (None, [])},
        proxies=proxies,
        fragments=fragments,
        rows_scored=sum(int(note["rows"]) for note in notes),
        rows=None if corpus is None else corpus.rows,
        rows_bad=sum(int(note["bad"]) for note in notes),
        decisions=decisions,
        parts=Progress(len(files["data"]), None if manifest is None else len(manifest["outputs"])),
        quarantined=_quarantined(root, files["quarantine"]),
        kept=None if manifest is None else int(manifest["rows"]["kept"]),
        seconds_since_last_file=_age(file for group in files.values() for file in group),
        next=tuple(_next(manifest is not None, state, settings, proxies, fragments)),
    )


def _by_folder(files: list[FileInfo]) -> dict[str, list[FileInfo]]:
    """A run's files by sub-folder, those at the top under ''."""
    found: dict[str, list[FileInfo]] = {
        name: [] for name in ("", "data", "scores", "decisions", "quarantine", "proxy")
    }
    for file in files:
        folder, _, _ = file.path.rpartition("/")
        if folder in found and (not folder or file.path.endswith((".parquet", ".json"))):
            found[folder].append(file)
    return found


def _manifest(root: str, files: Mapping[str, list[FileInfo]]) -> dict[str, Any] | None:
    if all(file.path != MANIFEST for file in files[""]):
        return None
    return read_manifest(root)


def _corpus(root: str, settings: Mapping[str, Any], fingerprint: str) -> tuple[Corpus | None, str]:
    """The run's corpus planned again, None where it cannot be, and how it compares."""
    known = {n: v for n, v in settings.items() if n in CorpusConfig.model_fields}
    try:
        corpus = open_corpus(CorpusConfig(**known))
        corpus = settled(corpus, _scores_of(root, settings), fingerprint)
    except (DataPruneError, *READ_ERRORS) as error:
        return None, f"unreadable: {error}"
    return corpus, "unchanged" if corpus.fingerprint() == fingerprint else "changed"


def _scores_of(root: str, settings: Mapping[str, Any]) -> str:
    return str(settings.get("scores") or join(root, "scores"))


def _fragment_names(
    root: str, settings: Mapping[str, Any], corpus: Corpus | None
) -> set[str] | None:
    """The run's fragments; None where only another run tells, or the corpus cannot be read."""
    saved = join(_scores_of(root, settings), PLAN)
    if exists(saved):
        listed = json.loads(read_bytes(saved)).get("fragments", ())
        return {Fragment.from_json(text).name for text in listed}
    if corpus is None or settings.get("baseline") or settings.get("with_scores"):
        return None
    return {fragment.name for fragment in corpus.fragments}


def _notes(
    root: str,
    settings: Mapping[str, Any],
    names: set[str] | None,
    files: Mapping[str, list[FileInfo]],
) -> list[dict[str, Any]]:
    """The counts that score files hold of themselves, of those that the plan knows."""
    folder = _scores_of(root, settings)
    if settings.get("scores"):
        found = {file.path for file in list_files(folder)} if exists(folder) else set()
    else:
        found = {file.path.rpartition("/")[2] for file in files["scores"]}
    if names is not None:
        found &= {f"{name}.parquet" for name in names}
    paths = [join(folder, name) for name in sorted(found) if name.endswith(".parquet")]
    with ThreadPoolExecutor(_THREADS) as pool:
        return [note for note in pool.map(_note, paths) if note is not None]


def _note(path: str) -> dict[str, Any] | None:
    try:
        with open_input(path) as file:
            note = json.loads(pq.read_metadata(file).metadata[schema.NOTE])
    except (*READ_ERRORS, KeyError, TypeError):  # gone since, or not a score file
        return None
    return note if isinstance(note, dict) else None


def _proxies(settings: Mapping[str, Any], files: Mapping[str, list[FileInfo]]) -> Progress:
    """Proxies whose record is written, and how many the run trains."""
    trained = sum(file.path.endswith(".json") for file in files["proxy"])
    asked = settings.get("metric") or ()
    parts = (Expression(name).metrics if is_expression(name) else (name,) for name in asked)
    names = [name for part in parts for name in part if "." not in name]  # others have their run
    known = [METRICS[name] for name in names if name in METRICS]
    strange = len(known) < len(names)
    judged = strange or model_needs(known, str(settings.get("space") or MODEL))
    given = settings.get("checkpoint") or settings.get("trajectory") or settings.get("scores")
    if given or not judged:
        return Progress(trained, 0)
    one_run = not strange and not any(metric.averaged for metric in known)
    return Progress(trained, 1 if one_run else int(settings.get("proxy_seeds") or 1))


def _quarantined(root: str, files: list[FileInfo]) -> int:
    def rows(file: FileInfo) -> int:
        try:
            with open_input(join(root, *file.path.split("/"))) as opened:
                return int(pq.read_metadata(opened).num_rows)
        except READ_ERRORS:
            return 0

    with ThreadPoolExecutor(_THREADS) as pool:
        return sum(pool.map(rows, files))


def _age(files: Iterable[FileInfo]) -> float:
    newest = max((int(file.version) for file in files), default=0) / 1e9
    return max(0.0, round(time.time() - newest, 1))


def _next(
    finished: bool, corpus: str, settings: Mapping[str, Any], proxies: Progress, fragments: Progress
) -> list[str]:
    """Steps of the run's command, were it started again as it was."""
    if corpus.startswith("unreadable"):
        return ["fail: the corpus cannot be read"]
    if corpus == "changed":
        return ["refuse: the corpus changed; give another --output or pass --overwrite"]
    if finished:
        return ["do nothing: the run is finished"]
    steps = []
    left = (proxies.total or 0) - proxies.done
    if left > 0:
        steps.append(f"train {left} of {proxies.total} proxies")
    missing = (fragments.total or 0) - fragments.done
    if missing > 0 and not settings.get("scores"):
        steps.append(f"score {missing:,} of {fragments.total:,} fragments")
    elif missing > 0:
        return [f"refuse: the score table lacks {missing:,} of {fragments.total:,} fragments"]
    return [*steps, "select, decide and write the parts, the report and the manifest"]


def _of(progress: Progress) -> str:
    if progress.total is None:
        return f"{progress.done:,}"
    return f"{progress.done:,} of {progress.total:,}"


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _ago(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
