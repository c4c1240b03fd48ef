"""What a scoring worker does: load the models, turn row batches into score columns, commit files.

Rows are decoded ahead in a thread and every model runs once per batch for all metrics together.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from dataclasses import astuple
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from dataprune_ray import schema
from dataprune_ray.clock import Clock
from dataprune_ray.cutoff import seeded_hash
from dataprune_ray.errors import ConfigError
from dataprune_ray.features import encode_example
from dataprune_ray.io.checksums import mark
from dataprune_ray.io.corpus import Fragment
from dataprune_ray.io.filesystems import atomic_output, read_bytes
from dataprune_ray.io.rows import STORAGE_FAILED, RowBatch, ahead, read_rows
from dataprune_ray.metrics import METRICS, Epoch, ModelOutputs
from dataprune_ray.models import (
    FeatureTap,
    ModelSpec,
    build_model,
    image_transform,
    load_state,
    read_state,
)
from dataprune_ray.placing import FEATURES, binary_column, load_space, place
from dataprune_ray.plans import FragmentCount, ScorePlan
from dataprune_ray.recipes import autocast
from dataprune_ray.space import INPUTS

#: Rows below which matrix kernels may round differently: shorter batches are padded up to this.
_STEADY_ROWS = 32
_ROWS_PER_GROUP = 65_536
_BYTES_PER_GROUP = 64 << 20


def load_model(spec: ModelSpec, path: str) -> nn.Module:
    """A model with a checkpoint's weights, on the CPU.

    Raises:
        ConfigError: the checkpoint cannot be loaded safely or does not fit the model.
    """
    model = build_model(spec, spec.label.outputs)
    load_state(model, read_state(path, read_bytes(path)), path)
    return model


def check_models(plan: ScorePlan) -> None:
    """Load every checkpoint and run it on one empty input: what fails here would fail everywhere.

    Raises:
        ConfigError: a checkpoint does not fit, or the model does not take these features or does
            not give one output per class.
    """
    plan = plan.exact
    spec = plan.model
    example = encode_example(spec.features, image_transform(spec))
    for path in plan.used.paths:
        tap = FeatureTap(load_model(spec, path).eval())
        try:
            with torch.no_grad():
                outputs, features = tap(torch.from_numpy(example))
        except (RuntimeError, TypeError, ValueError) as error:
            shape = " x ".join(map(str, example.shape[1:]))
            reason = f"does not take {shape} inputs: {error}"
            raise ConfigError("model", spec.name, reason) from None
        if outputs.ndim != 2 or outputs.shape[1] != spec.label.outputs:  # noqa: PLR2004
            raise ConfigError(
                "model",
                spec.name,
                f"gives outputs of shape {tuple(outputs.shape)} for {len(example)} rows, "
                f"not ({len(example)}, {spec.label.outputs})",
            )
        if features is None and "features" in plan.needs:
            asking = {"features", "space"}
            names = ", ".join(n for n in plan.metrics if asking & METRICS[n].needs)
            raise ConfigError(
                "metric",
                names,
                f"needs penultimate features; {spec.name} has no linear layer or forward_features",
            )


class _Seen(NamedTuple):
    """Logits float32 (B, C) and features float32 (B, D), where the model shows any."""

    logits: Tensor
    features: Tensor | None


class Engine:
    """The models on their device, and how a row batch becomes score columns."""

    def __init__(self, plan: ScorePlan, clock: Clock | None = None) -> None:
        self.plan = plan
        self.clock = clock or Clock()
        self.device = torch.device("cuda" if plan.use_gpu else "cpu")
        encodes = plan.needs or (plan.placed and plan.space.source == INPUTS)
        self.transform = image_transform(plan.model) if encodes else None
        self.space = load_space(plan.space_path) if plan.placed else None
        self.judges = plan.used
        self.taps = {path: self._load(path) for path in self.judges.paths}
        self.autocast = autocast(plan.precision, self.device)

    def _load(self, path: str) -> FeatureTap:
        return FeatureTap(load_model(self.plan.model, path).to(self.device).eval())

    def commit(self, fragment: Fragment) -> FragmentCount:
        """Score a fragment and commit its score file."""
        self.clock.take()
        layout = self.plan.layout
        rows = bad = unread = 0
        members: set[str] = set()
        with (
            atomic_output(self.plan.path(fragment)) as stream,
            pq.ParquetWriter(stream, layout, use_dictionary=[schema.FILE, schema.ERROR]) as writer,
        ):
            for table in _grouped(self.tables(fragment, layout, members)):
                rows += table.num_rows
                errors = table[schema.ERROR]
                bad += table.num_rows - errors.null_count
                unread += pc.sum(pc.starts_with(errors, STORAGE_FAILED)).as_py() or 0
                with self.clock.at("write"):
                    writer.write_table(table)
            note = {"rows": rows, "bad": bad, "unread": unread, "members": sorted(members)}
            note |= {schema.FILES: self._marks(fragment)} if self.plan.checksums else {}
            writer.add_key_value_metadata({schema.NOTE.decode(): json.dumps(note)})
        return FragmentCount(
            fragment.index,
            rows,
            bad,
            tuple(sorted(members)),
            spent=self.clock.take(),
            worker=f"{platform.node()}:{os.getpid()}",
            batch_rows=self.plan.batch_size if self.judges.paths else 0,
        )

    def _marks(self, fragment: Fragment) -> dict[str, tuple[int, str, str]]:
        root = self.plan.rows.root
        found = {s.file: mark(root, s.file) for s in fragment.spans if s.start == 0}
        return {path: astuple(entry) for path, entry in found.items() if entry is not None}

    def tables(
        self, fragment: Fragment, layout: pa.Schema, members: set[str]
    ) -> Iterator[pa.Table]:
        """Score table pieces of a fragment, in row order; ``members`` collects columns seen."""
        for batch in self._batches(fragment):
            members.update(batch.members)
            yield self.table(batch, layout)

    def _batches(self, fragment: Fragment) -> Iterator[RowBatch]:
        rows = read_rows(self.plan.rows, fragment, self.transform, self.clock)
        return self.clock.each("wait", ahead(rows))

    def table(self, batch: RowBatch, layout: pa.Schema) -> pa.Table:
        """The score table piece of a batch, with temporary columns, in row order."""
        good = np.flatnonzero(batch.good)
        columns = self._score(batch, batch.row_hash[good])
        errors: list[str | None] = [None] * len(batch)
        for position, reason in batch.errors.items():
            errors[position] = reason
        for name, values in columns.items():
            finite = np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
            for position in good[~finite]:
                errors[position] = errors[position] or f"{name} is not finite"
        bad = np.array([reason is not None for reason in errors])
        arrays: dict[str, Any] = {
            schema.FILE: pa.DictionaryArray.from_arrays(
                pa.array(np.zeros(len(batch), np.int32)), pa.array([batch.file], pa.string())
            ),
            schema.ROW: pa.array(batch.rows, mask=batch.rows < 0),
            schema.KEY: batch.keys,
            schema.ROW_HASH: batch.row_hash,
            schema.LABEL: batch.stored,
            schema.ERROR: pa.array(errors, pa.string()),
        }
        if batch.group is not None:
            arrays[schema.GROUP] = batch.group
        for name in columns.keys() & set(layout.names):
            kind, values = layout.field(name).type, columns[name]
            if pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind):
                arrays[name] = binary_column(values, good, bad, kind)
            else:
                arrays[name] = score_column(values, good, bad, len(batch))
        return pa.Table.from_arrays([_as_array(arrays[n]) for n in layout.names], schema=layout)

    def _score(
        self, batch: RowBatch, row_hash: npt.NDArray[np.uint64]
    ) -> dict[str, npt.NDArray[Any]]:
        """Columns of the good rows: metrics float32 (m,), temporary ones, features (m, D)."""
        empty = np.zeros(0, np.float32)
        columns: dict[str, npt.NDArray[Any]] = dict.fromkeys(self.plan.direct, empty)
        if schema.OUTPUTS in self.plan.temporary:
            columns[schema.OUTPUTS] = np.zeros((0, self.plan.model.label.outputs), np.float32)
        if self.plan.shows_features:
            columns[FEATURES] = np.zeros((0, 1), np.float32)
        if self.judges.paths:
            columns |= self.run(batch.values, batch.targets)
        if "random" in columns:
            columns["random"] = uniform(row_hash, self.plan.rows.seed)
        if self.plan.placed:
            columns |= place(self.space, self.plan.model.label, batch, columns.get(FEATURES))
        return columns

    def survey(self, fragment: Fragment) -> Iterator[tuple[RowBatch, npt.NDArray[np.float32]]]:
        """Batches of a fragment, and the features (m, D) of their good rows."""
        for batch in self._batches(fragment):
            yield batch, self._score(batch, batch.row_hash[batch.good])[FEATURES]

    def run(
        self, values: npt.NDArray[Any], targets: npt.NDArray[Any]
    ) -> dict[str, npt.NDArray[np.float32]]:
        """What the models say of encoded rows (m, …) with targets (m,): columns, m values each."""
        size = self.plan.batch_size
        parts = [
            self._forward(values[first : first + size], targets[first : first + size])
            for first in range(0, len(values), size)
        ]
        names = parts[0] if parts else ()
        return {name: np.concatenate([part[name] for part in parts]) for name in names}

    def _forward(
        self, values: npt.NDArray[Any], targets: npt.NDArray[Any]
    ) -> dict[str, npt.NDArray[np.float32]]:
        rows = len(values)
        with self.clock.at("copy"):
            inputs, labels = self._prepared(values, targets)
        with torch.no_grad(), self.clock.at("model"):
            seen = {path: self._run(path, inputs) for path in self.judges.models}
            found = self._dynamics(inputs, labels, seen)
            if seen:
                found |= self._statics(self._outputs(inputs, labels, seen))
            if self.plan.shows_features:
                features = next(iter(seen.values())).features
                assert features is not None  # noqa: S101 - see `check_models`
                found[FEATURES] = features
        with self.clock.at("back"):
            return {name: value[:rows].float().cpu().numpy() for name, value in found.items()}

    def _prepared(
        self, values: npt.NDArray[Any], targets: npt.NDArray[Any]
    ) -> tuple[Tensor, Tensor | None]:
        """Inputs and known labels on the device, short batches padded with their last row."""
        padding = min(_STEADY_ROWS, self.plan.batch_size) - len(values)
        if padding > 0:
            values = np.concatenate([values, np.repeat(values[-1:], padding, axis=0)])
            targets = np.concatenate([targets, np.repeat(targets[-1:], padding, axis=0)])
        known = self.plan.model.label.column is not None
        labels = _tensor(targets, self.device) if known else None
        return _tensor(values, self.device), labels

    def _run(self, path: str, inputs: Tensor) -> _Seen:
        with self.autocast:
            output, features = self.taps[path](inputs)
        return _Seen(output.float(), None if features is None else features.float())

    def _dynamics(
        self, inputs: Tensor, labels: Tensor | None, seen: dict[str, _Seen]
    ) -> dict[str, Tensor]:
        """Every checkpoint of the trajectory in turn, none of them twice."""
        tracks = {name: METRICS[name].track for name in self.plan.dynamic}
        trackers = {n: track(self.plan.options) for n, track in tracks.items() if track is not None}
        for path in self.judges.trajectory:
            judged = seen.get(path) or self._run(path, inputs)
            epoch = Epoch(judged.logits, labels)
            for tracker in trackers.values():
                tracker.add(epoch)
        return {name: tracker.value() for name, tracker in trackers.items()}

    def _statics(self, outputs: ModelOutputs) -> dict[str, Tensor]:
        found = {
            name: score(outputs)
            for name in self.plan.direct
            if (score := METRICS[name].score) is not None
        }
        if schema.OUTPUTS in self.plan.temporary:
            found[schema.OUTPUTS] = outputs.logits.mean(dim=0)
        return found

    def _outputs(
        self, inputs: Tensor, labels: Tensor | None, seen: dict[str, _Seen]
    ) -> ModelOutputs:
        features = [one.features for one in seen.values() if one.features is not None]
        taps = [self.taps[path] for path in seen]
        return ModelOutputs(
            logits=torch.stack([one.logits for one in seen.values()]),
            labels=labels,
            features=tuple(features) if len(features) == len(seen) else None,
            has_bias=taps[0].has_bias,
            regression=self.plan.model.label.task == "regression",
            inputs=inputs if "gradients" in self.plan.needs else None,
            models=tuple(tap.model for tap in taps),
            options=self.plan.options,
        )


def uniform(row_hash: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.float32]:
    """A number in [0, 1) per row from its identity and the seed: float32 (n,), 24 random bits."""
    return ((seeded_hash(row_hash, seed) >> np.uint64(40)) / 2.0**24).astype(np.float32)


def _tensor(values: npt.NDArray[Any], device: torch.device) -> Tensor:
    if not values.flags.writeable:  # shares the reader's buffer; nothing below writes to it
        values = values.view()
    with np.errstate(all="ignore"):
        return torch.from_numpy(np.ascontiguousarray(values)).to(device, non_blocking=True)


def score_column(
    values: npt.NDArray[Any],
    good: npt.NDArray[np.int64],
    bad: npt.NDArray[np.bool_],
    rows: int,
) -> pa.Array:
    """Values of the good rows (m,) or (m, C) as a column of all rows, null where ``bad``."""
    full = np.zeros((rows, *values.shape[1:]), values.dtype)
    full[good] = values
    if full.ndim == 1:
        return pa.array(full, mask=bad)
    flat = pa.array(full.reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, full.shape[1], mask=pa.array(bad))


def _as_array(values: Any) -> pa.Array:
    return values if isinstance(values, pa.Array) else pa.array(values)


def _grouped(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Join pieces to row groups of about `_ROWS_PER_GROUP` rows, or `_BYTES_PER_GROUP`."""
    waiting: list[pa.Table] = []
    held = size = 0
    for table in tables:
        waiting.append(table)
        held, size = held + table.num_rows, size + table.nbytes
        if held >= _ROWS_PER_GROUP or size >= _BYTES_PER_GROUP:
            yield pa.concat_tables(waiting).unify_dictionaries()
            waiting, held, size = [], 0, 0
    if waiting:
        yield pa.concat_tables(waiting).unify_dictionaries()
