"""What a judging worker does: out-of-fold outputs and neighbours of rows, and the files of both.

A row is judged by the model of its fold, which has not seen it, and compared with a sample of the
same fold, in that model's features.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
import torch

from dataprune_ray import schema
from dataprune_ray.batching import BatchSize
from dataprune_ray.devices import lane_of
from dataprune_ray.errors import BadDataError, ConfigError, StorageError
from dataprune_ray.forward import load_model
from dataprune_ray.io.corpus import Fragment
from dataprune_ray.io.filesystems import (
    atomic_output,
    join,
    open_input,
    read_bytes,
    redact,
)
from dataprune_ray.io.rows import STORAGE_FAILED, RowBatch, RowPlan, ahead, read_rows
from dataprune_ray.io.splits import Split
from dataprune_ray.models import FeatureTap, ModelSpec, image_transform
from dataprune_ray.quality.neighbours import Neighbourhood, Reference, normalised
from dataprune_ray.quality.noise import TOP, most_probable

#: Rows below which matrix kernels may round differently: shorter batches are padded up to this.
_STEADY_ROWS = 32
_NOT_FINITE = "the out-of-fold model's outputs are not finite"
_ALONE = "no other row of its fold was there to compare with"


@dataclass(frozen=True)
class Fold:
    """Rows, the model that has not seen them, and where their sample is kept."""

    split: Split
    checkpoint: str
    reference: str


@dataclass(frozen=True)
class JudgePlan:
    """What every judging task is told.

    ``census`` names the scored rows that it is about; ``metric`` and the score columns ``others``
    are noted beside what is found of them.
    """

    rows: RowPlan
    model: ModelSpec
    folds: tuple[Fold, ...]
    scores: str
    metric: str
    folder: str
    neighbours: int
    batch_size: int
    use_gpu: bool = False
    census: str = ""
    others: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes, of which there are none without class labels."""
        label = self.rows.label
        classified = label.column is not None and label.task == "classification"
        return label.classes if classified else ()

    @property
    def layout(self) -> pa.Schema:
        """Schema of a quality file."""
        top = min(TOP, max(1, len(self.classes)))
        grouped = self.rows.group is not None
        return schema.quality_schema(self.rows.label.type, top, self.others, grouped=grouped)

    def path(self, fragment: Fragment) -> str:
        """The fragment's quality file."""
        return join(self.folder, f"{fragment.name}.parquet")


class Models:
    """The folds' models on their device."""

    def __init__(self, plan: JudgePlan) -> None:
        torch.set_num_threads(1)
        self.lane = lane_of(gpu=plan.use_gpu)
        self.sizes = BatchSize(plan.batch_size, plan.model.name, self.lane.release)
        self.taps = [
            FeatureTap(load_model(plan.model, fold.checkpoint).to(self.lane.device).eval())
            for fold in plan.folds
        ]
        self.name = plan.model.name

    def run(
        self, fold: int, values: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Probabilities (n, C) and normalised features (n, D) of encoded rows (n, …), n >= 1.

        Raises:
            ConfigError: the model shows no penultimate features, or memory does not suffice for a
                single row.
        """

        def look(part: slice) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
            return self._look(fold, values[part])

        parts = [found for _, found in self.sizes.parts(len(values), values.shape[1:], look)]
        outputs, features = zip(*parts, strict=True)
        return np.concatenate(outputs), normalised(np.concatenate(features))

    @torch.no_grad()
    def _look(
        self, fold: int, part: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        rows = len(part)
        padding = min(_STEADY_ROWS, self.sizes.rows) - rows
        if padding > 0:
            part = np.concatenate([part, np.repeat(part[-1:], padding, axis=0)])
        output, seen = self.taps[fold](self.lane.send(np.array(part)))
        if seen is None:
            raise ConfigError(
                "quality",
                True,
                f"needs penultimate features; {self.name} has no linear layer or forward_features",
            )
        chances = torch.softmax(output.double(), dim=1)[:rows].float()
        return chances.cpu().numpy(), seen[:rows].float().cpu().numpy()


def read_reference(path: str) -> Reference:
    """A fold's sample, as `samples` left it."""
    held = safetensors.numpy.load(read_bytes(path))
    return Reference(
        held["features"],
        held["labels"],
        held["row_hash"],
        held["centres"],
        float(held["unit"][0]),
    )


def by_fold(plan: JudgePlan, batch: RowBatch) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Positions of the good rows of each fold, among the good rows."""
    hashes = batch.row_hash[batch.good]
    for fold, settings in enumerate(plan.folds):
        chosen = np.flatnonzero(settings.split.admits(hashes))
        if len(chosen):
            yield fold, chosen


def codes_of(plan: JudgePlan, batch: RowBatch) -> npt.NDArray[np.int64]:
    """Class codes of the good rows (m,); zeros without classes."""
    if plan.classes:
        return batch.targets.astype(np.int64)
    return np.zeros(int(batch.good.sum()), np.int64)


@dataclass(eq=False)
class _Columns:
    """The columns of a quality file in memory, (n,) or (n, M); valid where ``judged``."""

    judged: npt.NDArray[np.bool_]
    fold: npt.NDArray[np.int32]
    confidence: npt.NDArray[np.float32]
    top_class: npt.NDArray[np.int32]
    top_probability: npt.NDArray[np.float32]
    agreement: npt.NDArray[np.float32]
    distance: npt.NDArray[np.float32]
    cluster: npt.NDArray[np.int32]
    unjudged: list[str | None]

    @classmethod
    def empty(cls, rows: int, top: int) -> _Columns:
        whole, real = np.zeros(rows, np.int32), np.zeros(rows, np.float32)
        return cls(
            np.zeros(rows, np.bool_),
            whole.copy(),
            real.copy(),
            np.zeros((rows, top), np.int32),
            np.zeros((rows, top), np.float32),
            real.copy(),
            real.copy(),
            whole.copy(),
            [None] * rows,
        )


def judge_fragment(plan: JudgePlan, fragment: Fragment) -> int:
    """Judge the rows of a fragment and commit its quality file; how many were judged.

    Raises:
        BadDataError: the rows are not those of the score file.
        StorageError: rows that were scored cannot be read now.
    """
    scored = _scored(plan, fragment)
    row_hash = scored[schema.ROW_HASH].to_numpy()
    has_score = np.asarray(scored[schema.ERROR].combine_chunks().is_null())
    models = Models(plan)
    references = [read_reference(fold.reference) for fold in plan.folds]
    found = _Columns.empty(len(row_hash), min(TOP, max(1, len(plan.classes))))
    done = 0
    for batch in ahead(read_rows(plan.rows, fragment, image_transform(plan.model))):
        part = slice(done, done + len(batch))
        if not np.array_equal(row_hash[part], batch.row_hash):
            break
        _note_errors(found, batch, done, has_score)
        _judge_batch(plan, models, references, batch, done, found)
        done += len(batch)
    if done != len(row_hash):
        raise BadDataError(
            f"{redact(plan.scores)}: fragment {fragment.name} holds other rows than were scored; "
            "score the corpus again"
        )
    found.judged &= has_score
    _write(plan, fragment, scored, has_score, found)
    return int(found.judged.sum())


def _scored(plan: JudgePlan, fragment: Fragment) -> pa.Table:
    wanted = [schema.ROW_HASH, schema.LABEL, plan.metric, schema.ERROR, *plan.others]
    wanted += [] if plan.rows.group is None else [schema.GROUP]
    columns = list(dict.fromkeys(wanted))
    with open_input(join(plan.scores, f"{fragment.name}.parquet")) as file:
        return pq.read_table(file, columns=columns, use_threads=False)


def _note_errors(
    found: _Columns, batch: RowBatch, start: int, has_score: npt.NDArray[np.bool_]
) -> None:
    """Why scored rows cannot be judged.

    Raises:
        StorageError: because storage keeps them back, which may pass.
    """
    for position, reason in batch.errors.items():
        if has_score[start + position]:
            if reason.startswith(STORAGE_FAILED):
                raise StorageError(f"{redact(batch.file)}: {reason}")
            found.unjudged[start + position] = reason


def _judge_batch(
    plan: JudgePlan,
    models: Models,
    references: list[Reference],
    batch: RowBatch,
    start: int,
    found: _Columns,
) -> None:
    good = np.flatnonzero(batch.good) + start
    codes = codes_of(plan, batch)
    for fold, chosen in by_fold(plan, batch):
        probabilities, features = models.run(fold, batch.values[chosen])
        finite = np.isfinite(features).all(axis=1) & np.isfinite(probabilities).all(axis=1)
        for row in good[chosen[~finite]]:
            found.unjudged[row] = _NOT_FINITE
        kept, probabilities = chosen[finite], probabilities[finite]
        rows, own = good[kept], codes[kept]
        seen = references[fold].judge(
            features[finite], own, batch.row_hash[batch.good][kept], plan.neighbours
        )
        lonely = np.isnan(seen.distance)
        for row in rows[lonely]:
            found.unjudged[row] = _ALONE
        found.judged[rows] = ~lonely
        found.fold[rows] = fold
        _note_neighbours(found, rows, seen, sum(len(r.centres) for r in references[:fold]))
        if plan.classes:
            found.confidence[rows] = probabilities[np.arange(len(own)), own]
            found.top_class[rows], found.top_probability[rows] = most_probable(probabilities)


def _note_neighbours(
    found: _Columns, rows: npt.NDArray[np.int64], seen: Neighbourhood, clusters_before: int
) -> None:
    found.agreement[rows] = seen.agreement
    found.distance[rows] = seen.distance
    found.cluster[rows] = seen.cluster + clusters_before


def _write(
    plan: JudgePlan,
    fragment: Fragment,
    scored: pa.Table,
    has_score: npt.NDArray[np.bool_],
    found: _Columns,
) -> None:
    missing = ~found.judged
    classless = missing if plan.classes else np.ones(len(missing), np.bool_)
    others = [*plan.others, *([] if plan.rows.group is None else [schema.GROUP])]
    names = pa.array(plan.classes, pa.string()).cast(plan.rows.label.type)
    best = found.top_class[:, 0] if plan.classes else np.zeros(len(missing), np.int32)
    arrays = {
        schema.ROW_HASH: scored[schema.ROW_HASH],
        schema.LABEL: scored[schema.LABEL],
        schema.SCORE: scored[plan.metric],
        schema.ERROR: scored[schema.ERROR],
        schema.UNJUDGED: pa.array(found.unjudged, pa.string(), mask=found.judged | ~has_score),
        schema.FOLD: pa.array(found.fold, mask=missing),
        schema.SELF_CONFIDENCE: pa.array(found.confidence, mask=classless),
        schema.PREDICTED: names.take(pa.array(best, mask=classless)),
        schema.TOP_CLASS: _lists(found.top_class, classless),
        schema.TOP_PROBABILITY: _lists(found.top_probability, classless),
        schema.AGREEMENT: pa.array(found.agreement, mask=classless),
        schema.DISTANCE: pa.array(found.distance, mask=missing),
        schema.CLUSTER: pa.array(found.cluster, mask=missing),
        **{name: scored[name] for name in others},
    }
    table = pa.table([arrays[name] for name in plan.layout.names], schema=plan.layout)
    note = {"census": plan.census, "rows": len(missing), "judged": int(found.judged.sum())}
    with (
        atomic_output(plan.path(fragment)) as stream,
        pq.ParquetWriter(stream, plan.layout, use_dictionary=[schema.ERROR]) as writer,
    ):
        writer.write_table(table, row_group_size=65_536)
        writer.add_key_value_metadata({schema.NOTE.decode(): json.dumps(note)})


def _lists(values: npt.NDArray[Any], missing: npt.NDArray[np.bool_]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(
        pa.array(values.reshape(-1)), values.shape[1], mask=pa.array(missing)
    )
