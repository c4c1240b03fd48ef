"""What a scoring worker does: read row batches, turn them into score columns, commit files.

Rows are decoded ahead in a thread; on a GPU a batch is on its way before the results of the one
before are collected.
"""

from __future__ import annotations

import json
import os
import platform
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import astuple, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from dataprune_ray import schema
from dataprune_ray.clock import Clock
from dataprune_ray.cutoff import seeded_hash
from dataprune_ray.errors import ConfigError
from dataprune_ray.features import encode_example
from dataprune_ray.forward import Forward, load_model
from dataprune_ray.io.checksums import mark
from dataprune_ray.io.corpus import Fragment
from dataprune_ray.io.filesystems import atomic_output
from dataprune_ray.io.rows import STORAGE_FAILED, RowBatch, ahead, read_rows
from dataprune_ray.metrics import METRICS
from dataprune_ray.models import FeatureTap, image_transform
from dataprune_ray.placing import FEATURES, binary_column, load_space, place
from dataprune_ray.plans import FragmentCount, ScorePlan
from dataprune_ray.space import INPUTS

_ROWS_PER_GROUP = 65_536
_BYTES_PER_GROUP = 64 << 20


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


class Engine:
    """The models on their device, and how a row batch becomes score columns."""

    def __init__(self, plan: ScorePlan) -> None:
        self.plan = plan
        self.clock = Clock()
        encodes = plan.needs or (plan.placed and plan.space.source == INPUTS)
        self.transform = image_transform(plan.model) if encodes else None
        self.space = load_space(plan.space_path) if plan.placed else None
        self.forward = Forward(plan, self.clock)

    @property
    def passes(self) -> tuple[Forward, ...]:
        """All models that rows go through."""
        return (self.forward,)

    @property
    def pass_rows(self) -> int:
        """Rows of a forward pass; 0 where no model is asked."""
        return self.forward.sizes.rows if self.forward.taps else 0

    def commit(self, fragment: Fragment) -> FragmentCount:
        """Score a fragment and commit its score file."""
        self.clock.take()
        self.forward.lane.busy()  # of a fragment that failed
        layout = self.plan.layout
        rows = bad = unread = 0
        members: set[str] = set()
        with (
            atomic_output(self.plan.path(fragment)) as stream,
            pq.ParquetWriter(stream, layout, use_dictionary=list(schema.REPEATED)) as writer,
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
            spent=replace(self.clock.take(), busy=self.forward.lane.busy()),
            worker=f"{platform.node()}:{os.getpid()}",
            batch_rows=self.pass_rows,
            halved=any(each.sizes.rows < each.sizes.asked for each in self.passes),
        )

    def _marks(self, fragment: Fragment) -> dict[str, tuple[int, str, str]]:
        root = self.plan.rows.root
        found = {s.file: mark(root, s.file) for s in fragment.spans if s.start == 0}
        return {path: astuple(entry) for path, entry in found.items() if entry is not None}

    def tables(
        self, fragment: Fragment, layout: pa.Schema, members: set[str]
    ) -> Iterator[pa.Table]:
        """Score table pieces of a fragment, in row order; ``members`` collects columns seen."""
        for batch, columns in self._judged(fragment):
            members.update(batch.members)
            yield self._table(batch, columns, layout)

    def survey(self, fragment: Fragment) -> Iterator[tuple[RowBatch, npt.NDArray[np.float32]]]:
        """Batches of a fragment, and the features (m, D) of their good rows."""
        for batch, columns in self._judged(fragment):
            yield batch, columns[FEATURES]

    def _judged(self, fragment: Fragment) -> Iterator[tuple[RowBatch, dict[str, Any]]]:
        """Batches of a fragment with the columns of their good rows, models ahead of results."""
        rows = read_rows(self.plan.rows, fragment, self.transform, self.clock, self.pass_rows)
        waiting: deque[tuple[RowBatch, Callable[[], dict[str, Any]]]] = deque()
        for batch in self.clock.each("wait", ahead(rows)):
            launched = self.forward.launch(batch.values, batch.targets)
            waiting.append((batch, launched))
            while len(waiting) > self.forward.lane.depth:
                yield self._finished(*waiting.popleft())
        while waiting:
            yield self._finished(*waiting.popleft())

    def _finished(
        self, batch: RowBatch, launched: Callable[[], dict[str, Any]]
    ) -> tuple[RowBatch, dict[str, Any]]:
        return batch, self._score(batch, batch.row_hash[batch.good], launched())

    def table(self, batch: RowBatch, layout: pa.Schema) -> pa.Table:
        """The score table piece of a batch, with temporary columns, in row order."""
        launched = self.forward.launch(batch.values, batch.targets)
        return self._table(*self._finished(batch, launched), layout)

    def _table(self, batch: RowBatch, columns: dict[str, Any], layout: pa.Schema) -> pa.Table:
        good = np.flatnonzero(batch.good)
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
        self,
        batch: RowBatch,
        row_hash: npt.NDArray[np.uint64],
        judged: dict[str, npt.NDArray[Any]],
    ) -> dict[str, npt.NDArray[Any]]:
        """Columns of the good rows: metrics float32 (m,), temporary ones, features (m, D)."""
        empty = np.zeros(0, np.float32)
        columns: dict[str, npt.NDArray[Any]] = dict.fromkeys(self.plan.direct, empty)
        if schema.OUTPUTS in self.plan.temporary:
            columns[schema.OUTPUTS] = np.zeros((0, self.plan.model.label.outputs), np.float32)
        if self.plan.shows_features:
            columns[FEATURES] = np.zeros((0, 1), np.float32)
        columns |= judged
        if "random" in columns:
            columns["random"] = uniform(row_hash, self.plan.rows.seed)
        if self.plan.placed:
            columns |= place(self.space, self.plan.model.label, batch, columns.get(FEATURES))
        return columns


def uniform(row_hash: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.float32]:
    """A number in [0, 1) per row from its identity and the seed: float32 (n,), 24 random bits."""
    return ((seeded_hash(row_hash, seed) >> np.uint64(40)) / 2.0**24).astype(np.float32)


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
