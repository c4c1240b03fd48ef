"""Rows to look at: both ends of the score, both sides of the cutoff, and the bad rows.

Each task returns its few best candidates of each kind; the driver keeps the best of all, then
fetches just these rows from the corpus.
"""

from __future__ import annotations

import heapq
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from dataprune_ray import schema
from dataprune_ray.cutoff import DUPLICATE, NOISE, REASONS, KeepRule
from dataprune_ray.features import FeatureSpec, column, encode
from dataprune_ray.findings import Marks
from dataprune_ray.io import READ_ERRORS, get_reader
from dataprune_ray.io.corpus import Span
from dataprune_ray.io.filesystems import join, list_names, open_input
from dataprune_ray.io.judgements import distances
from dataprune_ray.io.rows import RowPlan, noted
from dataprune_ray.quality.rescue import RESCUED
from dataprune_ray.report import BadRow, Gallery, GalleryItem
from dataprune_ray.tasks import run_tasks

ITEMS = 10
BAD_EXAMPLES = 20
_THUMBNAIL = 96
_TEXT_CHARACTERS = 400
_FIELDS = 8
_FIELD_CHARACTERS = 60


@dataclass(frozen=True, order=True)
class Candidate:
    """A row and its rank: the smallest ranks of a gallery are shown."""

    rank: float
    file: str
    row: int
    key: str | None
    label: str | None
    score: float
    kept: bool


_TITLES = {
    "just kept": ("Just kept", "Kept rows nearest to the cutoff."),
    "just dropped": (
        "Just dropped",
        "Dropped rows nearest to the cutoff: what a little more would keep.",
    ),
    "highest": ("Highest scores", "The top end of {metric}."),
    "lowest": ("Lowest scores", "The bottom end of {metric}."),
    "rescued": (
        "Rescued",
        "Dropped by {metric} alone: rare rows whose neighbours and model agree with the label.",
    ),
    "suspected": (
        "Suspected mislabelled",
        "A model that has not seen the row gives its label the least probability.",
    ),
    "dropped outliers": (
        "Dropped outliers",
        "Dropped rows that lie farthest from their neighbours, beyond the box plot's fence.",
    ),
}


def collect(
    rows: RowPlan,
    output: str,
    fragments: Iterable[str],
    rule: KeepRule,
    metric: str,
    marks: Marks | None = None,
) -> tuple[Gallery, ...]:
    """The galleries of a finished cut; ``fragments`` are the names of its decision files.

    ``marks`` are those of its quality table, where there is one.
    """
    best: dict[str, list[Candidate]] = {kind: [] for kind in _TITLES}
    look = partial(_candidates, dict(rule.cutoffs), join(output, "decisions"), marks)
    for found in run_tasks(look, fragments):
        for kind, candidates in found.items():
            best[kind] = heapq.nsmallest(ITEMS, best[kind] + candidates)
    wanted = {(c.file, c.row): c for candidates in best.values() for c in candidates}
    shown = dict(_fetched(rows, list(wanted.values())))
    galleries = []
    for kind, candidates in best.items():
        title, caption = _TITLES[kind]
        items = tuple(shown[c.file, c.row] for c in candidates if (c.file, c.row) in shown)
        if items:
            galleries.append(Gallery(title, caption.format(metric=metric), items))
    return tuple(galleries)


def bad_examples(output: str) -> tuple[BadRow, ...]:
    """The first few quarantined rows."""
    found: list[BadRow] = []
    for name in list_names(join(output, "quarantine"), ".parquet"):
        with open_input(join(output, "quarantine", name)) as file:
            for batch in pq.ParquetFile(file).iter_batches(BAD_EXAMPLES):
                for row in batch.to_pylist():
                    if len(found) == BAD_EXAMPLES:
                        return tuple(found)
                    found.append(BadRow(row["file"], row["row"], row["key"], row["error"]))
    return tuple(found)


def _candidates(
    cutoffs: dict[str, float | None], decisions: str, marks: Marks | None, name: str
) -> dict[str, list[Candidate]]:
    best: dict[str, list[Candidate]] = {kind: [] for kind in _TITLES}
    judged = None if marks is None else marks.scored_rows(name)
    done = 0
    with open_input(join(decisions, f"{name}.parquet")) as file:
        for batch in pq.ParquetFile(file).iter_batches(65_536, use_threads=False):
            score = batch.column(schema.SCORE).to_numpy(zero_copy_only=False).astype(np.float64)
            kept = batch.column(schema.KEPT).to_numpy(zero_copy_only=False)
            distance = np.abs(score - _cutoff_of_rows(cutoffs, batch))
            ranks = {
                "just kept": np.where(kept, distance, np.nan),
                "just dropped": np.where(kept | _screened(batch), np.nan, distance),
                "highest": -score,
                "lowest": score,
            }
            if marks is not None and judged is not None:
                ranks |= _quality_ranks(marks, judged.slice(done, len(batch)), batch)
            done += len(batch)
            for kind, rank in ranks.items():
                best[kind] = heapq.nsmallest(ITEMS, best[kind] + _smallest(batch, rank))
    return best


def _quality_ranks(
    marks: Marks, judged: pa.Table, batch: pa.RecordBatch
) -> dict[str, npt.NDArray[np.float64]]:
    """Ranks (n,) of the kinds that the quality table tells, NaN for rows of none."""
    far = -distances(judged).astype(np.float64)
    confidence = judged[schema.SELF_CONFIDENCE].fill_null(np.nan).to_numpy().astype(np.float64)
    kept = batch.column(schema.KEPT).to_numpy(zero_copy_only=False)
    rescued = pc.equal(batch.column(schema.REASON).cast(pa.string()), RESCUED)
    return {
        "rescued": np.where(rescued.to_numpy(zero_copy_only=False), far, np.nan),
        "suspected": np.where(marks.suspected(judged), confidence, np.nan),
        "dropped outliers": np.where(marks.far(judged) & ~kept, far, np.nan),
    }


def _screened(batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
    """Which rows (n,) are dropped whatever the cutoff is: as noise, or as duplicates."""
    reasons = pa.array([REASONS[NOISE], REASONS[DUPLICATE]])
    found = pc.is_in(batch.column(schema.REASON).cast(pa.string()), value_set=reasons)
    return np.asarray(found.to_numpy(zero_copy_only=False))


def _cutoff_of_rows(cutoffs: dict[str, float | None], batch: pa.RecordBatch) -> Any:
    """The cutoff that decided each row (n,), NaN where none did."""
    if set(cutoffs) <= {""}:
        value = cutoffs.get("")
        return np.nan if value is None else value
    column = schema.GROUP if schema.GROUP in batch.schema.names else schema.LABEL
    names = batch.column(column).cast(pa.string()).to_pylist()
    values = [cutoffs.get(name) for name in names]
    return np.array([np.nan if value is None else value for value in values])


def _smallest(batch: pa.RecordBatch, rank: npt.NDArray[np.float64]) -> list[Candidate]:
    known = np.flatnonzero(~np.isnan(rank))
    if len(known) > ITEMS:
        known = known[np.argpartition(rank[known], ITEMS - 1)[:ITEMS]]
    rows = batch.take(pa.array(known)).to_pylist()
    return [
        Candidate(
            float(rank[position]),
            row["file"],
            row["row"],
            row["key"],
            None if row["label"] is None else str(row["label"]),
            row["score"],
            row["kept"],
        )
        for position, row in zip(known, rows, strict=True)
    ]


def _fetched(
    rows: RowPlan, candidates: list[Candidate]
) -> Iterator[tuple[tuple[str, int], GalleryItem]]:
    by_span: dict[tuple[int, int], list[Candidate]] = {}
    place = _Places(rows)
    for candidate in candidates:
        by_span.setdefault(place.find(candidate.file, candidate.row), []).append(candidate)
    work = [(rows.fragments[f].spans[s], found) for (f, s), found in by_span.items()]
    for items in run_tasks(partial(_render, rows), work):
        for item in items:
            yield (item.file, item.row), item


class _Places:
    """Which span of which fragment holds a row."""

    def __init__(self, rows: RowPlan) -> None:
        self._spans: dict[str, list[tuple[int, int, int]]] = {}
        for f, fragment in enumerate(rows.fragments):
            for s, span in enumerate(fragment.spans):
                self._spans.setdefault(span.file, []).append((span.start, f, s))

    def find(self, file: str, row: int) -> tuple[int, int]:
        """Positions of the fragment and of the span in it."""
        _, fragment, span = max(entry for entry in self._spans[file] if entry[0] <= row)
        return fragment, span


def _render(rows: RowPlan, work: tuple[Span, list[Candidate]]) -> list[GalleryItem]:
    span, candidates = work
    reader = get_reader(rows.format)
    items: list[GalleryItem] = []
    for candidate in sorted(candidates, key=lambda c: c.row):
        part = reader.narrow(rows.root, span, candidate.row, candidate.row)
        start = part.start
        try:
            for batch in reader.read(rows.root, part, None, 256):
                if start <= candidate.row < start + batch.num_rows:
                    items.append(_item(rows, candidate, batch.slice(candidate.row - start, 1)))
                    break
                start += batch.num_rows
        except READ_ERRORS as error:
            items.append(_described(candidate, fields=(("unreadable", str(error)[:200]),)))
    return items


def _item(rows: RowPlan, candidate: Candidate, row: pa.RecordBatch) -> GalleryItem:
    spec = rows.features
    if spec.modality == "image":
        image = _thumbnail(spec, noted(row, rows.schema))
        if image is not None:
            return _described(candidate, image=image)
    if spec.modality == "text":
        parts = [column(row, name)[0].as_py() for name in spec.columns]
        text = " · ".join(str(p) for p in parts)
        return _described(candidate, text=_shortened(text, _TEXT_CHARACTERS))
    names = [n for n in spec.columns if n in row.schema.names][:_FIELDS]
    fields = tuple((n, _shortened(str(row.column(n)[0].as_py()), _FIELD_CHARACTERS)) for n in names)
    return _described(candidate, fields=fields)


def _described(candidate: Candidate, **content: Any) -> GalleryItem:
    c = candidate
    return GalleryItem(c.file, c.row, c.key, c.label, c.score, c.kept, **content)


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _thumbnail(spec: FeatureSpec, row: pa.RecordBatch) -> bytes | None:
    """PNG of the row's image as the model sees it, at most `_THUMBNAIL` pixels wide and high."""
    encoded = encode(spec, row)
    if not len(encoded.values):
        return None
    pixels = encoded.values[0]
    array = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    image = Image.fromarray(np.ascontiguousarray(array))
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
