"""What a search for a strategy leaves: every trial, the choice, and settings that carry it out."""

from __future__ import annotations

import json
from typing import Any

import yaml

from dataprune_ray.config import PruneConfig
from dataprune_ray.io.filesystems import redact, write_bytes
from dataprune_ray.io.output import Output
from dataprune_ray.journal import Journal
from dataprune_ray.manifest import versions, without_secrets
from dataprune_ray.verdict import Tuned

RESULT = "tune.json"
SETTINGS = "best.yaml"


def write(
    config: PruneConfig,
    scores: str,
    tuned: Tuned,
    output: Output,
    journal: Journal,
    command: str,
) -> dict[str, Any]:
    """Commit ``best.yaml`` for ``jobs/prune.py --config``, then ``tune.json``."""
    best = settings(config, scores, tuned)
    text = f"# {tuned.reason}\n{yaml.safe_dump(best, sort_keys=False)}"
    write_bytes(output.path(SETTINGS), text.encode())
    content = {
        "format_version": 1,
        **tuned.to_json(),
        "settings": without_secrets(config.flat()),
        "versions": versions(),
        "seconds": {name: round(value, 3) for name, value in journal.seconds.items()},
        "scoring": None if journal.scoring is None else journal.scoring.to_json(),
        "command": command,
        "output": redact(output.root),
    }
    write_bytes(
        output.path(RESULT), (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()
    )
    return content


def settings(config: PruneConfig, scores: str, tuned: Tuned) -> dict[str, Any]:
    """What differs from the defaults, with the chosen cut: it is made of these scores."""
    defaults = PruneConfig().flat()
    unused = {"with_scores", "output", "overwrite", "keeps", "candidates", "json", "dry_run"}
    changed = {
        name: value
        for name, value in config.flat().items()
        if value != defaults[name] and name not in unused
    }
    chosen = {"strategy": tuned.strategy, "beta": tuned.beta, "keep": tuned.keep}
    return {**changed, **chosen, "scores": scores}
