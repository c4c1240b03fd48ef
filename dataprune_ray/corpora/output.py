"""The corpus directory: what may be written into it, and what it says about itself.

``corpus.json``, written last, describes a whole corpus and lists its files. While a corpus is being
made, ``corpus.unfinished.jsonl`` names its settings and each file before it is begun, so a run that
was killed can be done again, and nothing that the job did not write is ever removed.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from dataprune_ray.errors import ConfigError
from dataprune_ray.io.shards import atomic

DESCRIPTION = "corpus.json"
JOURNAL = "corpus.unfinished.jsonl"


@dataclass
class CorpusFolder:
    """An output directory claimed by one run of the job."""

    root: Path
    settings: Mapping[str, Any]
    files: list[dict[str, Any]] = field(default_factory=list)

    def begin(self, name: str) -> Path:
        """Note a file, relative to the root, that is about to be written; return its path."""
        path = self.root / name
        path.parent.mkdir(exist_ok=True)
        with (self.root / JOURNAL).open("a", encoding="utf-8") as journal:
            journal.write(json.dumps({"file": name}) + "\n")
            journal.flush()
            os.fsync(journal.fileno())
        return path

    def end(self, name: str, rows: int) -> None:
        """Note that a file is complete."""
        size = (self.root / name).stat().st_size
        self.files.append({"path": name, "rows": rows, "bytes": size})

    def abandon(self) -> None:
        """Remove what was written, so that other settings can be tried in the same folder."""
        for name in [line["file"] for line in _read_journal(self.root)[1:]]:
            path = _remove(self.root, name)
            with contextlib.suppress(OSError):
                path.parent.rmdir()
        (self.root / JOURNAL).unlink()

    def finish(self, description: Mapping[str, Any]) -> dict[str, Any]:
        """Write ``corpus.json`` and return what it holds."""
        about = {**description, "settings": dict(self.settings), "files": self.files}
        with atomic(self.root / DESCRIPTION) as file:
            file.write((json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode())
        (self.root / JOURNAL).unlink()
        return about


def find_finished(root: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Description of the whole corpus that lies in ``root``, if it has these very settings."""
    about = _read_description(root)
    if about is None or about["settings"] != settings or (root / JOURNAL).exists():
        return None
    for file in about["files"]:
        path = root / file["path"]
        if not path.is_file() or path.stat().st_size != file["bytes"]:
            return None
    return about


def claim(root: Path, settings: Mapping[str, Any], *, overwrite: bool) -> CorpusFolder:
    """Make ``root`` ready for a corpus with these settings, removing an earlier one's files.

    Raises:
        ConfigError: the directory holds something else, or a corpus that may not be replaced.
    """
    if root.exists() and not root.is_dir():
        raise ConfigError("output", str(root), "is a file; name a directory")
    about, journal = _read_description(root), _read_journal(root)
    found = (about or {}).get("settings") or (journal[0] if journal else None)
    ours = {f".{DESCRIPTION}.tmp", f".{JOURNAL}.tmp"}
    if found is None and root.is_dir() and any(p.name not in ours for p in root.iterdir()):
        raise ConfigError("output", str(root), "is not empty and no corpus; name another directory")
    if found is not None and found != settings and not overwrite:
        names = sorted(k for k in {*found, *settings} if found.get(k) != settings.get(k))
        was = ", ".join(f"{name}={found.get(name)!r}" for name in names)
        advice = f"holds a corpus made with {was}; pass --overwrite or name another directory"
        raise ConfigError("output", str(root), advice)
    root.mkdir(parents=True, exist_ok=True)
    listed = [file["path"] for file in (about or {}).get("files", [])]
    listed += [line["file"] for line in journal[1:]]
    lines = [dict(settings), *({"file": name} for name in dict.fromkeys(listed))]
    with atomic(root / JOURNAL) as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
    (root / DESCRIPTION).unlink(missing_ok=True)
    for name in listed:
        _remove(root, name)
    return CorpusFolder(root, settings)


def _remove(root: Path, name: str) -> Path:
    """Remove a shard under its final and its temporary name; return its path."""
    parts = PurePosixPath(name).parts
    if len(parts) != 2 or ".." in parts or (root / parts[0]).is_symlink():  # noqa: PLR2004
        raise ConfigError("output", str(root), f"its {DESCRIPTION} lists {name!r}: not a shard")
    path = root.joinpath(*parts)
    path.unlink(missing_ok=True)
    path.with_name(f".{path.name}.tmp").unlink(missing_ok=True)
    return path


def _read_description(root: Path) -> dict[str, Any] | None:
    path = root / DESCRIPTION
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        usable = isinstance(about["settings"], dict) and all(
            isinstance(file["path"], str) and isinstance(file["bytes"], int)
            for file in about["files"]
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError):
        usable = False
    if not usable:
        raise ConfigError("output", str(root), f"its {DESCRIPTION} was not written by this job")
    return dict(about)


def _read_journal(root: Path) -> list[dict[str, Any]]:
    """The lines of a journal: the settings, then one file each; a torn last line is ignored."""
    try:
        text = (root / JOURNAL).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return []
    try:
        return [dict(json.loads(line)) for line in text.split("\n")[:-1]]
    except ValueError:
        raise ConfigError(
            "output", str(root), f"its {JOURNAL} was not written by this job"
        ) from None
