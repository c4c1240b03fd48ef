"""Corpus to score table: an actor pool runs the model over fragments, one score file each.

An actor reads its fragment in batches, decodes ahead in a thread, runs every model once per batch
and commits the fragment's score file atomically; only small numbers travel back. A metric with a
second stage (`CorpusFit`) is finished over the score files, without the model.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
import torch
from torch import Tensor, nn

from dataprune_ray import schema
from dataprune_ray.cutoff import ExactSum, seeded_hash
from dataprune_ray.errors import ConfigError
from dataprune_ray.features import encode_example
from dataprune_ray.io.corpus import Fragment
from dataprune_ray.io.filesystems import (
    atomic_output,
    exists,
    join,
    list_names,
    open_input,
    read_bytes,
    write_bytes,
)
from dataprune_ray.io.rows import RowBatch, RowPlan, ahead, read_rows
from dataprune_ray.metrics import METRICS, MetricOptions, ModelOutputs
from dataprune_ray.models import (
    FeatureTap,
    ModelSpec,
    build_model,
    image_transform,
    load_state,
    read_state,
)
from dataprune_ray.tasks import own_errors, run_tasks

logger = logging.getLogger(__name__)

#: Rows below which matrix kernels may round differently: shorter batches are padded up to this.
_STEADY_ROWS = 32
_ROWS_PER_GROUP = 65_536
_NOTE = b"dataprune"
_FIT_FILE = "_fit.json"  # hidden from Parquet readers by its name


@dataclass(frozen=True)
class ScorePlan:
    """What every scoring actor is told."""

    rows: RowPlan
    model: ModelSpec
    checkpoints: tuple[str, ...]
    metrics: tuple[str, ...]
    options: MetricOptions
    folder: str
    batch_size: int = 256
    precision: str = "auto"
    use_gpu: bool = False

    @property
    def needs(self) -> frozenset[str]:
        """Everything that some metric needs."""
        return frozenset().union(*(METRICS[name].needs for name in self.metrics))

    @property
    def direct(self) -> tuple[str, ...]:
        """Metrics that the actors finish themselves."""
        return tuple(name for name in self.metrics if METRICS[name].fit is None)

    @property
    def fitted(self) -> tuple[str, ...]:
        """Metrics with a second stage over the corpus."""
        return tuple(name for name in self.metrics if METRICS[name].fit is not None)

    @property
    def layout(self) -> pa.Schema:
        """Schema of what the actors write: with stored outputs where a second stage needs them."""
        width = self.model.label.outputs if self.fitted else None
        return schema.score_schema(self.rows.label.type, self.direct, width)

    def path(self, fragment: Fragment) -> str:
        """The fragment's score file."""
        return join(self.folder, f"{fragment.name}.parquet")


@dataclass(frozen=True)
class FragmentCount:
    """What one scored fragment reports."""

    index: int
    rows: int
    bad: int
    seconds: float
    members: tuple[str, ...] = ()
    reused: bool = False


@dataclass(frozen=True)
class Pool:
    """Size and resources of the actor pool."""

    actors: int
    num_cpus: float
    num_gpus: float


def score(
    plan: ScorePlan, pool: Pool, progress: Callable[[FragmentCount], None]
) -> list[FragmentCount]:
    """Score every fragment that has no score file yet; counts of all, in fragment order."""
    present = set(list_names(plan.folder, ".parquet"))
    committed = [f for f in plan.rows.fragments if f"{f.name}.parquet" in present]
    missing = [f for f in plan.rows.fragments if f"{f.name}.parquet" not in present]
    counts = [_committed(plan, fragment) for fragment in committed]
    for count in counts:
        progress(count)
    if missing:
        with own_errors():
            for count in _run_pool(plan, missing, pool):
                counts.append(count)
                progress(count)
    _finish(plan)
    return sorted(counts, key=lambda count: count.index)


def _run_pool(plan: ScorePlan, missing: list[Fragment], pool: Pool) -> Iterator[FragmentCount]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    size = min(pool.actors, len(missing))
    gpu: dict[str, Any] = {"num_gpus": pool.num_gpus} if pool.num_gpus else {}
    counted = ray.data.from_items(
        [{"fragment": fragment.to_json()} for fragment in missing], override_num_blocks=len(missing)
    ).map_batches(
        FragmentScorer,
        fn_constructor_args=(replace(plan, rows=replace(plan.rows, fragments=())),),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1 if gpu else size, max_size=size),
        num_cpus=pool.num_cpus,
        **gpu,
    )
    for row in counted.iter_rows():
        yield FragmentCount(
            int(row["index"]),
            int(row["rows"]),
            int(row["bad"]),
            float(row["seconds"]),
            tuple(json.loads(row["members"])),
        )


def _committed(plan: ScorePlan, fragment: Fragment) -> FragmentCount:
    with open_input(plan.path(fragment)) as file:
        note = json.loads(pq.read_metadata(file).metadata[_NOTE])
    members = tuple(note["members"])
    return FragmentCount(fragment.index, note["rows"], note["bad"], 0.0, members, reused=True)


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
    spec = plan.model
    example = encode_example(spec.features, image_transform(spec))
    for path in plan.checkpoints if plan.needs else ():
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
            names = ", ".join(n for n in plan.metrics if "features" in METRICS[n].needs)
            raise ConfigError(
                "metric",
                names,
                f"needs penultimate features; {spec.name} has no linear layer or forward_features",
            )


class FragmentScorer:
    """A Ray Data actor: loads the models once, then scores fragment after fragment."""

    def __init__(self, plan: ScorePlan) -> None:
        torch.set_num_threads(1)
        pa.set_cpu_count(1)
        self.engine = Engine(plan)

    def __call__(self, batch: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Score and commit the batch's ``fragment``s; their counts."""
        counts = [self.engine.commit(Fragment.from_json(text)) for text in batch["fragment"]]
        return {
            "index": np.array([count.index for count in counts]),
            "rows": np.array([count.rows for count in counts]),
            "bad": np.array([count.bad for count in counts]),
            "seconds": np.array([count.seconds for count in counts]),
            "members": np.array([json.dumps(count.members) for count in counts]),
        }


class Engine:
    """The models on their device, and how a row batch becomes score columns."""

    def __init__(self, plan: ScorePlan) -> None:
        self.plan = plan
        self.device = torch.device("cuda" if plan.use_gpu else "cpu")
        self.transform = image_transform(plan.model) if plan.needs else None
        self.taps = [self._load(path) for path in plan.checkpoints] if plan.needs else []
        self.autocast = _autocast(plan.precision, self.device)

    def _load(self, path: str) -> FeatureTap:
        return FeatureTap(load_model(self.plan.model, path).to(self.device).eval())

    def commit(self, fragment: Fragment) -> FragmentCount:
        """Score a fragment and commit its score file."""
        started = time.perf_counter()
        layout = self.plan.layout
        rows = bad = 0
        members: set[str] = set()
        with (
            atomic_output(self.plan.path(fragment)) as stream,
            pq.ParquetWriter(stream, layout, use_dictionary=[schema.FILE, schema.ERROR]) as writer,
        ):
            for table in _grouped(self.tables(fragment, layout, members)):
                rows += table.num_rows
                bad += table.num_rows - table[schema.ERROR].null_count
                writer.write_table(table)
            note = json.dumps({"rows": rows, "bad": bad, "members": sorted(members)})
            writer.add_key_value_metadata({_NOTE.decode(): note})
        seconds = time.perf_counter() - started
        return FragmentCount(fragment.index, rows, bad, seconds, tuple(sorted(members)))

    def tables(
        self, fragment: Fragment, layout: pa.Schema, members: set[str]
    ) -> Iterator[pa.Table]:
        """Score table pieces of a fragment, in row order; ``members`` collects columns seen."""
        for batch in ahead(read_rows(self.plan.rows, fragment, self.transform)):
            members.update(batch.members)
            yield self._table(batch, layout)

    def _table(self, batch: RowBatch, layout: pa.Schema) -> pa.Table:
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
        for name, values in columns.items():
            arrays[name] = _column(values, good, bad, len(batch))
        return pa.Table.from_arrays([_as_array(arrays[n]) for n in layout.names], schema=layout)

    def _score(
        self, batch: RowBatch, row_hash: npt.NDArray[np.uint64]
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Metric columns of the good rows: float32 (m,), outputs (m, C)."""
        columns: dict[str, list[npt.NDArray[np.float32]]] = {n: [] for n in self.plan.direct}
        if self.plan.fitted:
            columns[schema.OUTPUTS] = []
        size = self.plan.batch_size
        if self.plan.needs:
            for first in range(0, len(batch.values), size):
                part = slice(first, first + size)
                for name, values in self._forward(batch.values[part], batch.targets[part]).items():
                    columns[name].append(values)
        if "random" in columns:
            columns["random"] = [uniform(row_hash, self.plan.rows.seed)]
        empty = np.zeros(0, np.float32)
        width = self.plan.model.label.outputs
        empties = {schema.OUTPUTS: np.zeros((0, width), np.float32)}
        return {
            name: np.concatenate(parts) if parts else empties.get(name, empty)
            for name, parts in columns.items()
        }

    def _forward(
        self, values: npt.NDArray[Any], targets: npt.NDArray[Any]
    ) -> dict[str, npt.NDArray[np.float32]]:
        rows = len(values)
        padding = min(_STEADY_ROWS, self.plan.batch_size) - rows
        if padding > 0:
            values = np.concatenate([values, np.repeat(values[-1:], padding, axis=0)])
            targets = np.concatenate([targets, np.repeat(targets[-1:], padding, axis=0)])
        with torch.no_grad():
            outputs = self._outputs(_tensor(values, self.device), _tensor(targets, self.device))
            found = {
                name: metric(outputs)[:rows].float().cpu().numpy()
                for name in self.plan.direct
                if (metric := METRICS[name].score) is not None
            }
            if self.plan.fitted:
                found[schema.OUTPUTS] = outputs.logits.mean(dim=0)[:rows].cpu().numpy()
        return found

    def _outputs(self, inputs: Tensor, targets: Tensor) -> ModelOutputs:
        logits: list[Tensor] = []
        features: list[Tensor] = []
        with self.autocast:
            for tap in self.taps:
                output, seen = tap(inputs)
                logits.append(output.float())
                if seen is not None:
                    features.append(seen.float())
        label = self.plan.model.label
        return ModelOutputs(
            logits=torch.stack(logits),
            labels=targets if label.column is not None else None,
            features=tuple(features) if len(features) == len(logits) else None,
            has_bias=self.taps[0].has_bias,
            regression=label.task == "regression",
            inputs=inputs if "gradients" in self.plan.needs else None,
            models=tuple(tap.model for tap in self.taps),
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


def _autocast(precision: str, device: torch.device) -> Any:
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" else "float32"
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, precision))


def _column(
    values: npt.NDArray[np.float32],
    good: npt.NDArray[np.int64],
    bad: npt.NDArray[np.bool_],
    rows: int,
) -> pa.Array:
    full = np.zeros((rows, *values.shape[1:]), np.float32)
    full[good] = values
    if full.ndim == 1:
        return pa.array(full, mask=bad)
    flat = pa.array(full.reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, full.shape[1], mask=pa.array(bad))


def _as_array(values: Any) -> pa.Array:
    return values if isinstance(values, pa.Array) else pa.array(values)


def _grouped(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Join pieces to row groups of about `_ROWS_PER_GROUP` rows."""
    waiting: list[pa.Table] = []
    held = 0
    for table in tables:
        waiting.append(table)
        held += table.num_rows
        if held >= _ROWS_PER_GROUP:
            yield pa.concat_tables(waiting).unify_dictionaries()
            waiting, held = [], 0
    if waiting:
        yield pa.concat_tables(waiting).unify_dictionaries()


# Second stage ------------------------------------------------------------------------------------


def _finish(plan: ScorePlan) -> None:
    """Replace stored outputs by the metrics that need the whole corpus.

    The corpus's statistics are committed first, so that a run that was cut off half way through
    the files finishes the rest with the same numbers.
    """
    if not plan.fitted:
        return
    paths = [plan.path(fragment) for fragment in plan.rows.fragments]
    saved = join(plan.folder, _FIT_FILE)
    if exists(saved):
        fit = Fit.from_json(json.loads(read_bytes(saved)))
    else:
        fit = _fit(plan, paths)
        write_bytes(saved, json.dumps(fit.to_json()).encode())
    for _ in run_tasks(partial(_complete, plan.metrics, fit), paths):
        pass


@dataclass(frozen=True)
class Fit:
    """Mean output float64 (C,) of the corpus, and the largest value of each fitted metric."""

    mean: npt.NDArray[np.float64]
    largest: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Lossless, as hexadecimal floats."""
        return {
            "mean": [value.hex() for value in self.mean.tolist()],
            "largest": {name: value.hex() for name, value in self.largest.items()},
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Fit:
        """What `to_json` described."""
        mean = np.array([float.fromhex(text) for text in value["mean"]])
        return cls(mean, {name: float.fromhex(text) for name, text in value["largest"].items()})


def _fit(plan: ScorePlan, paths: list[str]) -> Fit:
    total = ExactSum(plan.model.label.outputs)
    for part in run_tasks(partial(_sum_outputs, total.columns), paths):
        total.merge(part)
    mean = total.means() if total.count else np.zeros(total.columns)
    largest = dict.fromkeys(plan.fitted, 0.0)
    for found in run_tasks(partial(_largest, plan.fitted, mean), paths):
        largest = {name: max(value, found[name]) for name, value in largest.items()}
    return Fit(mean, largest)


def fitted_in_memory(plan: ScorePlan, table: pa.Table) -> pa.Table:
    """A small score table with its stored outputs replaced by the metrics made from them."""
    if not plan.fitted:
        return table
    good, outputs = _outputs_of(table)
    mean = ExactSum(plan.model.label.outputs).add(outputs).means() if len(outputs) else None
    largest = {}
    if mean is not None:
        for name in plan.fitted:
            largest[name] = float(_fitted_values(name, outputs, mean).max())
    fit = Fit(np.zeros(outputs.shape[1]) if mean is None else mean, largest)
    return _with_fitted(table, good, outputs, fit).drop_columns([schema.OUTPUTS])


def _output_rows(file: Any) -> Iterator[tuple[pa.Table, npt.NDArray[np.bool_], Any]]:
    """Row groups of a score file: the table, which rows have outputs, and those (m, C)."""
    parquet = pq.ParquetFile(file)
    for group in range(parquet.num_row_groups):
        table = parquet.read_row_group(group)
        yield table, *_outputs_of(table)


def _outputs_of(table: pa.Table) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
    stored = table[schema.OUTPUTS].combine_chunks()
    good = np.asarray(stored.is_valid())
    values = stored.flatten().to_numpy(zero_copy_only=False)
    return good, values.reshape(good.sum(), stored.type.list_size)


def _with_fitted(
    table: pa.Table, good: npt.NDArray[np.bool_], outputs: npt.NDArray[np.float32], fit: Fit
) -> pa.Table:
    for name, largest in fit.largest.items():
        values = _fitted_values(name, outputs, fit.mean) / (largest or 1.0)
        column = _column(values.astype(np.float32), np.flatnonzero(good), ~good, len(good))
        table = table.append_column(name, column)
    return table


def _sum_outputs(columns: int, path: str) -> ExactSum:
    total = ExactSum(columns)
    with open_input(path) as file:
        for _, _, outputs in _output_rows(file):
            total.add(outputs)
    return total


def _largest(names: tuple[str, ...], mean: npt.NDArray[np.float64], path: str) -> dict[str, float]:
    largest = dict.fromkeys(names, 0.0)
    with open_input(path) as file:
        for _, _, outputs in _output_rows(file):
            for name in names:
                values = _fitted_values(name, outputs, mean)
                largest[name] = max(largest[name], float(values.max(initial=0.0)))
    return largest


def _fitted_values(
    name: str, outputs: npt.NDArray[np.float32], mean: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    fit = METRICS[name].fit
    if fit is None:
        raise ValueError(f"metric {name!r} has no second stage")
    return fit.score(outputs, mean)


def _complete(metrics: tuple[str, ...], fit: Fit, path: str) -> None:
    """Rewrite a score file with its fitted metrics instead of its outputs, once."""
    with open_input(path) as file:
        stored = pq.read_schema(file)
    if schema.OUTPUTS not in stored.names:
        return
    label = stored.field(schema.LABEL).type
    layout = schema.score_schema(label, metrics)
    with (
        open_input(path) as file,
        atomic_output(path) as stream,
        pq.ParquetWriter(stream, layout, use_dictionary=[schema.FILE, schema.ERROR]) as writer,
    ):
        note = pq.ParquetFile(file).metadata.metadata[_NOTE].decode()
        for table, good, outputs in _output_rows(file):
            whole = _with_fitted(table, good, outputs, fit)
            writer.write_table(whole.select(layout.names).cast(layout))
        writer.add_key_value_metadata({_NOTE.decode(): note})
