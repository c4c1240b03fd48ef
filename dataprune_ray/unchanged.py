"""Files that were touched, uploaded or synchronised again, known by their content.

Every score file notes the checksums of the corpus files that begin in it, where they are cheap
(`dataprune_ray.io.checksums`). A file of the same size and another modification time is unchanged
where its checksum is the noted one. Without a note it counts as changed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pyarrow.parquet as pq

from dataprune_ray import schema
from dataprune_ray.io.checksums import Mark, same_files
from dataprune_ray.io.corpus import Corpus
from dataprune_ray.io.filesystems import join, list_names, open_input
from dataprune_ray.io.retries import retried

logger = logging.getLogger("dataprune")

_THREADS = 16


def marks_in(note: Mapping[str, Any]) -> dict[str, Mark]:
    """Checksums that a score file's note holds, by path."""
    return {path: Mark(*values) for path, values in note.get(schema.FILES, {}).items()}


def marks_of(paths: Sequence[str]) -> dict[str, Mark]:
    """Checksums that some score files hold, by path; none of a file that is not there."""
    found: dict[str, Mark] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        for marks in pool.map(lambda path: marks_in(retried(_note, path)), paths):
            found |= marks
    return found


def _note(path: str) -> dict[str, Any]:
    try:
        with open_input(path) as file:
            found = (pq.read_metadata(file).metadata or {}).get(schema.NOTE)
    except FileNotFoundError:
        return {}
    note: dict[str, Any] = json.loads(found or b"{}")
    return note


def settled(corpus: Corpus, scores: str, expected: str) -> Corpus:
    """The corpus as an earlier run listed it, where its files are the same but for their times.

    Args:
        corpus: as it is listed now.
        scores: folder of the run's score files, finished or not.
        expected: fingerprint of the corpus that the run began with.

    Returns:
        The corpus with the modification times of then, so that its fingerprint is the expected one;
        as it was given where some file changed, or where no checksum tells.
    """
    if corpus.fingerprint() == expected:
        return corpus
    known = marks_of([join(scores, name) for name in list_names(scores, ".parquet")])
    doubtful = [
        (file, known[file.path])
        for file in corpus.files
        if file.path in known and known[file.path].version != file.version
    ]
    then = {file.path: mark.version for file, mark in doubtful}
    files = tuple(replace(f, version=then.get(f.path, f.version)) for f in corpus.files)
    before = replace(corpus, files=files)
    if before.fingerprint() != expected or not all(same_files(corpus.root, doubtful)):
        return corpus
    logger.info("%s files have other modification times and the same contents", len(doubtful))
    return before
