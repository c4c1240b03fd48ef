"""Finished runs as the subjects of a comparison: their settings, corpus and score table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from dataprune_ray.config import CorpusConfig, PruneConfig
from dataprune_ray.errors import ConfigError
from dataprune_ray.io import open_corpus
from dataprune_ray.io.corpus import Corpus
from dataprune_ray.io.filesystems import exists, join, redact
from dataprune_ray.io.output import MANIFEST, read_manifest
from dataprune_ray.io.scores import saved_fragments, saved_plan
from dataprune_ray.unchanged import settled
from dataprune_ray.understanding import Understanding, as_saved, understand


@dataclass(frozen=True)
class Subject:
    """A finished run: ``config`` are its settings, with a strategy chosen by trial filled in.

    ``fragments`` are the names of its score files in the folder ``scores``.
    """

    root: str
    manifest: dict[str, Any]
    config: PruneConfig
    corpus: Corpus
    understanding: Understanding
    scores: str
    fragments: tuple[str, ...]

    @property
    def weighted(self) -> bool:
        """Whether its decisions hold weights: those of a weighted draw."""
        return bool(self.manifest["rule"].get("draw"))

    @property
    def name(self) -> str:
        """The last part of its path."""
        return PurePosixPath(self.root.partition("?")[0].rstrip("/")).name


def open_subject(root: str, given: CorpusConfig) -> Subject:
    """A finished run and its corpus; settings that were ``given`` go before its own.

    Raises:
        ConfigError: the run is not finished, or its corpus changed since.
    """
    if not exists(join(root, MANIFEST)):
        raise ConfigError("pruned", redact(root), "is not the output of a finished run")
    manifest = read_manifest(root)
    known = PruneConfig().flat().keys()
    settings = {k: v for k, v in manifest["settings"].items() if k in known}
    overrides = {name: getattr(given, name) for name in given.model_fields_set}
    chosen = manifest.get("tuned") or {}
    chosen = {name: chosen[name] for name in ("strategy", "beta", "keep") if name in chosen}
    chosen = {**(manifest.get("estimated") or {}), **chosen}
    config = PruneConfig.from_flat({**settings, **overrides, **chosen, "output": root})
    scores = str(manifest["scores"])
    if config.run.with_scores:  # its own table holds what it joined
        config = config.replace(with_scores=[], scores=scores)
    if not config.corpus.input:
        raise ConfigError("input", "", f"{redact(root)} does not say; pass --input")
    plan = saved_plan(scores)
    corpus = settled(open_corpus(config.corpus), scores, plan["corpus"])
    if plan["corpus"] != corpus.fingerprint():
        raise ConfigError(
            "pruned",
            redact(root),
            f"the files of {redact(corpus.root)} changed since it was pruned; prune it again",
        )
    fragments = saved_fragments(plan)
    corpus = Corpus(**{**corpus.__dict__, "fragments": fragments})
    understanding = as_saved(understand(config, corpus), plan)
    names = tuple(fragment.name for fragment in fragments)
    return Subject(root, manifest, config, corpus, understanding, scores, names)
