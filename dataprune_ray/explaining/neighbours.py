"""The kept rows whose penultimate features are nearest to a row's, by cosine distance.

At most 5,000 kept rows are looked at, those with the lowest hashes of their own, and only what
these and the explained rows need is read from the corpus; features are dropped batch by batch.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import TypeAdapter

from dataprune_ray import schema
from dataprune_ray.config import PruneConfig
from dataprune_ray.cutoff import seeded_hash
from dataprune_ray.errors import BadDataError, ConfigError, DataPruneError
from dataprune_ray.explaining.locating import Located
from dataprune_ray.explaining.records import Nearest, Neighbour
from dataprune_ray.explaining.runs import FinishedRun, in_shares
from dataprune_ray.features import FeatureSpec, encode
from dataprune_ray.forward import load_model
from dataprune_ray.io import READ_ERRORS, get_reader, open_corpus
from dataprune_ray.io.corpus import Span
from dataprune_ray.io.filesystems import exists, join, open_input, read_bytes, redact
from dataprune_ray.io.output import MANIFEST, read_manifest
from dataprune_ray.io.rows import RowPlan, columns_to_read, noted
from dataprune_ray.models import FeatureTap, image_transform, resolve_spec
from dataprune_ray.unchanged import settled

#: Kept rows that are looked at, at most.
SEARCHED = 5_000
#: Mixed into the hash that samples them, so that it has nothing to do with random choices.
_SALT = 0xE4B1
_MOST_ROWS = 1024
_BATCH_BYTES = 16 << 20

Features = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Place:
    """A row of the corpus."""

    file: str
    row: int


@dataclass(frozen=True)
class _Judge:
    """The run's first model, and how its corpus is read."""

    plan: RowPlan
    tap: FeatureTap
    transform: Any
    name: str

    def features(
        self, spans: Sequence[Span], places: Sequence[_Place]
    ) -> Iterator[tuple[list[_Place], Features]]:
        """Unit features (n, D) of the rows at some places, a few rows at a time."""
        for span in spans:
            end = None if span.rows is None else span.start + span.rows
            inside = {
                place.row
                for place in places
                if place.file == span.file
                and place.row >= span.start
                and (end is None or place.row < end)
            }
            for rows, batch in _rows_of(self.plan, span, sorted(inside)):
                encoded = encode(self.plan.features, batch, self.transform)
                good = [row for row, is_good in zip(rows, encoded.good, strict=True) if is_good]
                if good:
                    yield [_Place(span.file, row) for row in good], self._embed(encoded.values)

    def _embed(self, values: npt.NDArray[Any]) -> Features:
        """Penultimate features of encoded rows, of length 1: float32 (n, D)."""
        with torch.no_grad():
            _, seen = self.tap(torch.from_numpy(np.array(values)))
        if seen is None:
            raise ConfigError("model", self.name, "has no penultimate features")
        found = seen.double().numpy()
        length = np.linalg.norm(found, axis=1, keepdims=True)
        unit = np.divide(found, length, out=np.zeros_like(found), where=length > 0)
        return np.asarray(unit, np.float32)


def nearest_kept(run: FinishedRun, rows: Sequence[Located], count: int) -> list[Nearest]:
    """The ``count`` nearest kept rows of each row, none of them with an error.

    Where there is no model or the corpus is not what it was, each result says so in ``note``.

    Raises:
        BadDataError: the decisions do not belong to the score table.
    """
    if not rows:
        return []
    kept = int(run.manifest["rows"]["kept"])
    try:
        judge = _judge(run)
        spans = {fragment.name: fragment.spans for fragment in run.fragments}
        own = [_own_features(judge, spans[row.fragment], row) for row in rows]
        best, searched = _search(run, judge, rows, own, count)
    except (DataPruneError, *READ_ERRORS) as error:
        if isinstance(error, BadDataError):
            raise
        return [Nearest((), 0, kept, "", str(error))] * len(rows)
    return [
        Nearest((), searched, kept, judge.name, "the row can no longer be read")
        if features is None
        else Nearest(found, searched, kept, judge.name)
        for features, found in zip(own, best, strict=True)
    ]


def _own_features(judge: _Judge, spans: Sequence[Span], row: Located) -> Features | None:
    """Unit features (D,) of an explained row; None where it can no longer be read."""
    place = _Place(row.file, row.row if row.row is not None else -1)
    for _, features in judge.features(spans, [place]):
        own: Features = features[0]
        return own
    return None


def _search(
    run: FinishedRun,
    judge: _Judge,
    rows: Sequence[Located],
    own: Sequence[Features | None],
    count: int,
) -> tuple[list[tuple[Neighbour, ...]], int]:
    """The nearest kept rows of each row, and how many were looked at."""
    best: list[list[tuple[float, str, int, Neighbour]]] = [[] for _ in rows]
    searched = 0
    for name, positions in _sampled(run).items():
        known = _decided(run, name, positions)
        spans = next(fragment.spans for fragment in run.fragments if fragment.name == name)
        for places, features in judge.features(spans, list(known)):
            searched += len(places)
            for index, (row, target) in enumerate(zip(rows, own, strict=True)):
                if target is None:
                    continue
                distances = np.clip(
                    1 - features.astype(np.float64) @ target.astype(np.float64), 0, 2
                )
                near = np.argsort(distances, kind="stable")[: count + 1]
                found = [
                    (distance, place.file, place.row, replace(known[place], distance=distance))
                    for place, distance in ((places[i], float(distances[i])) for i in near)
                    if (place.file, place.row) != (row.file, row.row)
                ]
                best[index] = heapq.nsmallest(count, best[index] + found)
    return [tuple(entry[-1] for entry in entries) for entries in best], searched


def _sampled(run: FinishedRun) -> dict[str, list[int]]:
    """Kept rows with the lowest salted hashes, as positions in decisions, by fragment."""
    names = [fragment.name for fragment in run.fragments]
    parts = in_shares(partial(_sample_files, run), list(enumerate(names)))
    chosen = _lowest(np.concatenate(parts)) if parts else _none()
    found: dict[str, list[int]] = {}
    for _, fragment, position in np.sort(chosen, order=["fragment", "position"]).tolist():
        found.setdefault(names[fragment], []).append(position)
    return found


_ENTRY = np.dtype([("hash", np.uint64), ("fragment", np.int64), ("position", np.int64)])


def _none() -> npt.NDArray[Any]:
    return np.zeros(0, _ENTRY)


def _lowest(entries: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if len(entries) <= SEARCHED:
        return entries
    return entries[np.argpartition(entries["hash"], SEARCHED - 1)[:SEARCHED]]


def _sample_files(run: FinishedRun, fragments: Sequence[tuple[int, str]]) -> npt.NDArray[Any]:
    """The lowest salted hashes of the kept rows of some fragments: `_ENTRY` (n,)."""
    lowest = _none()
    for index, name in fragments:
        columns = [schema.ROW_HASH, schema.ERROR]
        table = _table(run.score_file(name), columns)
        hashes = table.filter(table[schema.ERROR].is_null())[schema.ROW_HASH].to_numpy()
        kept = _table(run.decision_file(name), [schema.KEPT])[schema.KEPT].to_numpy()
        if len(kept) != len(hashes):
            raise BadDataError(
                f"{redact(run.decision_file(name))} decides {len(kept)} rows, the score table has "
                f"{len(hashes)} without error; run the job again with --overwrite"
            )
        positions = np.flatnonzero(kept)
        found = np.zeros(len(positions), _ENTRY)
        found["hash"] = seeded_hash(hashes[positions], _SALT)
        found["fragment"], found["position"] = index, positions
        lowest = _lowest(np.concatenate([lowest, _lowest(found)]))
    return lowest


def _table(path: str, columns: list[str]) -> pa.Table:
    """A few columns of one fragment's file."""
    with open_input(path) as source, pq.ParquetFile(source) as file:
        return file.read(columns, use_threads=False)


def _decided(run: FinishedRun, name: str, positions: list[int]) -> dict[_Place, Neighbour]:
    """Decisions of one fragment at some positions, their distance still 0."""
    columns = [schema.FILE, schema.ROW, schema.KEY, schema.LABEL, schema.SCORE]
    rows = _table(run.decision_file(name), columns).take(positions).to_pylist()
    found = {}
    for row in rows:
        label = None if row[schema.LABEL] is None else str(row[schema.LABEL])
        file, at = row[schema.FILE], row[schema.ROW]
        found[_Place(file, at)] = Neighbour(
            0.0, file, at, row[schema.KEY], label, row[schema.SCORE]
        )
    return found


def _rows_of(
    plan: RowPlan, span: Span, rows: Sequence[int]
) -> Iterator[tuple[list[int], pa.RecordBatch]]:
    """The rows at some positions of a span, in order; only the row groups they lie in are read."""
    reader = get_reader(plan.format)
    columns = columns_to_read(plan)
    size = max(32, min(_MOST_ROWS, _BATCH_BYTES // max(plan.features.row_bytes, 1)))
    left = list(rows)
    while left:
        part = reader.narrow(plan.root, span, left[0], left[0])
        start = part.start
        for batch in reader.read(plan.root, part, columns, size):
            inside = [row for row in left if start <= row < start + batch.num_rows]
            if inside:
                taken = batch.take(pa.array([row - start for row in inside]))
                yield inside, noted(taken, plan.schema)
            start += batch.num_rows
            if not left or left[-1] < start:
                break
        left = [row for row in left if row >= start > part.start]


def _judge(run: FinishedRun) -> _Judge:
    """The model that judged the run's rows first, and a plan to read them again.

    Raises:
        ConfigError: no model judged them, it or the corpus is not what it was, or not there.
    """
    config = run.config
    path, index = _checkpoint(run)
    digests = run.plan.get("weights") or [None]
    if digests[index] not in (None, hashlib.sha256(read_bytes(path)).hexdigest()):
        raise ConfigError("checkpoint", redact(path), "is not what the scores came from")
    corpus = settled(open_corpus(config.corpus), run.scores, run.plan["corpus"])
    if corpus.fingerprint() != run.plan["corpus"]:
        raise ConfigError("input", redact(corpus.root), "its files changed since the run")
    features = TypeAdapter(FeatureSpec).validate_python(run.plan["features"])
    named: PruneConfig = config.replace(model=run.plan["model"])
    spec = replace(
        resolve_spec(named.model, named.corpus, features, run.label),
        features=features,
        label=run.label,
    )
    tap = FeatureTap(load_model(spec, path).eval())
    plan = RowPlan.of(corpus, features, run.label, run.plan["id_column"], config.select.seed)
    return _Judge(plan, tap, image_transform(spec), redact(path))


def _checkpoint(run: FinishedRun) -> tuple[str, int]:
    """The first checkpoint of the run that made the scores, and its place among them."""
    given: Sequence[str] = run.config.model.given
    source = run.scores.rstrip("/").rpartition("/")[0]
    if not given and exists(join(source, MANIFEST)):
        settings = read_manifest(source)["settings"]
        given = settings.get("checkpoint") or (settings.get("trajectory") or ())[-1:]
    path = given[0] if given else join(source, "proxy", "seed-0.safetensors")
    if not exists(path):
        advice = "is not there" if given or run.plan.get("weights") else "no model judged the rows"
        raise ConfigError("checkpoint", redact(path), advice)
    return path, 0
