"""The output directory: whose it is, whether it is finished, and what may be removed from it.

``run.json`` is written first and says which settings and which corpus the directory belongs to;
``manifest.json`` is written last, and its presence means that the run is complete. Files in
between are committed one by one under deterministic names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pyarrow.fs as pafs

from dataprune_ray.errors import ConfigError
from dataprune_ray.io.filesystems import (
    TEMPORARY_PREFIX,
    exists,
    join,
    read_bytes,
    redact,
    remove_empty_folders,
    remove_file,
    resolve,
    without_password,
    write_bytes,
)
from dataprune_ray.io.lock import LOCK

RUN_FILE = "run.json"
MANIFEST = "manifest.json"
REPORT = "report.html"
REPORT_DATA = "report.json"  # what the report shows, for a comparison to be added
PLAN = "_plan.json"  # beside score files, and hidden from Parquet readers by its name
BASELINE = "_baseline.json"
FOLDERS = ("data", "scores", "decisions", "quarantine", "proxy", "quality", "tune", "comparison")
_OURS = re.compile(
    r"(data/part-\d{5,}\.parquet"
    r"|(scores|decisions|quarantine|quality)/\d{6,}-[0-9a-f]{12}\.parquet"
    r"|scores/_(fit|fitted|plan|baseline)\.json|scores/_space\.safetensors"
    r"|scores/_(learner|judge-\d+)\.safetensors(\.json)?"
    r"|scores/_(near|exact|copies|found)-\d{5,}\.arrow"
    r"|decisions/_part-\d{5,}\.json"
    r"|proxy/seed-\d+\.safetensors(\.json|\.epoch-\d{3,}\.safetensors)?"
    r"|quality/(fold|reference)-\d+\.safetensors(\.json)?"
    r"|(tune|comparison)/trial-[0-9a-f]{16}\.json"
    r"|comparison/fold-[0-9a-f]{12}/(scores|proxy)/[^/]+"
    r"|run\.json|manifest\.json|report\.html|report\.json|comparison\.json"
    r"|tune\.json|best\.yaml)"
)


_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Output:
    """An output directory that belongs to this run; ``finished`` is its manifest, if complete."""

    root: str
    finished: dict[str, Any] | None = None
    resumed: bool = False

    def path(self, *names: str) -> str:
        """Path of a file in it."""
        return join(self.root, *names)


def _public(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without the passwords that URIs may carry."""

    def clean(value: Any) -> Any:
        if isinstance(value, list):
            return [clean(item) for item in value]
        return without_password(value) if isinstance(value, str) else value

    return {name: clean(value) for name, value in settings.items()}


def _run(settings: dict[str, Any], inputs: str, joined: Mapping[str, str]) -> dict[str, Any]:
    """What ``run.json`` holds."""
    run = {"settings": _public(settings), "inputs": inputs}
    return {**run, "joined": dict(joined)} if joined else run


def finished(
    root: str, settings: dict[str, Any], inputs: str, joined: Mapping[str, str] = _NOTHING
) -> dict[str, Any] | None:
    """The manifest of a finished run of the same settings, corpus and joined score tables.

    Nothing is written. ``joined`` holds digests of the tables by their names.

    Raises:
        ConfigError: the directory is a file.
    """
    run = _run(settings, inputs, joined)
    if MANIFEST not in entries_of(root) or read_run(root) != run:
        return None
    return read_manifest(root)


def claim(
    root: str,
    settings: dict[str, Any],
    inputs: str,
    *,
    overwrite: bool,
    resume: bool,
    keep_scores: bool = False,
    joined: Mapping[str, str] = _NOTHING,
) -> Output:
    """Make an output directory this run's own, or recognise it as that of the same run.

    Args:
        root: the directory.
        settings: the settings that decide the result, by flat name.
        inputs: fingerprint of the corpus's files.
        overwrite: remove an earlier run's files first.
        resume: continue an unfinished run of the same settings.
        keep_scores: leave an earlier run's score table where ``overwrite`` removes the rest.
        joined: digests of the score tables of other runs that decide, too, by their names.

    Raises:
        ConfigError: the directory holds something else, or a run of other settings.
    """
    run = _run(settings, inputs, joined)
    content = (json.dumps(run, indent=2, sort_keys=True) + "\n").encode()
    if overwrite and entries_of(root):
        remove_run(root, keep_scores=keep_scores, keep_run=True)
        write_bytes(join(root, RUN_FILE), content)
        return Output(root)
    earlier = read_run(root)
    if earlier is not None:
        _refuse_difference(root, earlier, run)
        if exists(join(root, MANIFEST)):
            return Output(root, read_manifest(root))
        if not resume:
            raise ConfigError("resume", False, f"{redact(root)} holds an unfinished run")
        return Output(root, resumed=True)
    ours = {"scores", "proxy"} if keep_scores else set()
    strangers = {n for n in entries_of(root) - ours if not n.startswith(TEMPORARY_PREFIX)}
    if strangers:
        raise ConfigError(
            "output", redact(root), f"is not empty and not a run's output: {sorted(strangers)[:3]}"
        )
    write_bytes(join(root, RUN_FILE), content)
    return Output(root)


def read_manifest(root: str) -> dict[str, Any]:
    """The manifest of a finished run."""
    content: dict[str, Any] = json.loads(read_bytes(join(root, MANIFEST)))
    return content


def read_run(root: str) -> dict[str, Any] | None:
    """What ``run.json`` says, where it is one of ours."""
    if not exists(join(root, RUN_FILE)):
        return None
    try:
        earlier = json.loads(read_bytes(join(root, RUN_FILE)))
    except ValueError:
        return None
    if not isinstance(earlier, dict) or not isinstance(earlier.get("settings"), dict):
        return None
    return earlier if isinstance(earlier.get("inputs"), str) else None


def _refuse_difference(root: str, earlier: dict[str, Any], run: dict[str, Any]) -> None:
    before, now = earlier["settings"], run["settings"]
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise ConfigError(
                name,
                now.get(name),
                f"{redact(root)} was made with {before.get(name)!r}; "
                "choose another --output or pass --overwrite",
            )
    if earlier["inputs"] != run["inputs"]:
        raise ConfigError(
            "input",
            now.get("input"),
            f"its files changed since {redact(root)} was made; "
            "choose another --output or pass --overwrite",
        )

    before, now = earlier.get("joined", {}), run.get("joined", {})
    for name in sorted(now):
        if before.get(name) != now[name]:
            raise ConfigError(
                "with_scores",
                name,
                f"this score table changed since {redact(root)} was made; "
                "choose another --output or pass --overwrite",
            )


def remove_run(root: str, *, keep_scores: bool = False, keep_run: bool = False) -> None:
    """Delete the files that a run writes, and nothing else; the manifest goes first.

    ``keep_run`` leaves ``run.json``: while it is there, the directory is known as a run's.

    Raises:
        ConfigError: the directory is not a run's output.
    """
    if entries_of(root) and read_run(root) is None:
        raise ConfigError(
            "output", redact(root), "is not a run's output (no run.json), so nothing is removed"
        )
    remove_file(join(root, MANIFEST))
    kept = (("scores/", "proxy/") if keep_scores else ()) + ((RUN_FILE,) if keep_run else ())
    files = [name for name in _files(root) if _OURS.fullmatch(name) and not name.startswith(kept)]
    for name in sorted(files, key=lambda name: name == RUN_FILE):
        remove_file(join(root, name))
    for name in _files(root):
        if name.rpartition("/")[2].startswith(TEMPORARY_PREFIX):
            remove_file(join(root, name))
    remove_empty_folders(root, [name for name in FOLDERS if f"{name}/" not in kept])


def remove_leftovers(root: str, folders: tuple[str, ...]) -> None:
    """Delete unfinished files of a killed run below the named sub-folders."""
    for name in _files(root):
        folder, _, base = name.rpartition("/")
        if folder in folders and base.startswith(TEMPORARY_PREFIX):
            remove_file(join(root, name))


def entries_of(root: str) -> set[str]:
    """Names directly in an output directory, save the lock.

    Raises:
        ConfigError: it is a file.
    """
    filesystem, inner = resolve(root)
    if filesystem.get_file_info(inner).type == pafs.FileType.File:
        raise ConfigError("output", redact(root), "is a file, not a directory")
    found = filesystem.get_file_info(pafs.FileSelector(inner, allow_not_found=True))
    return {entry.base_name for entry in found} - {LOCK}


def _files(root: str) -> list[str]:
    filesystem, inner = resolve(root)
    selector = pafs.FileSelector(inner, allow_not_found=True, recursive=True)
    prefix = inner.rstrip("/") + "/"
    found = filesystem.get_file_info(selector)
    return [e.path.removeprefix(prefix) for e in found if e.type == pafs.FileType.File]
