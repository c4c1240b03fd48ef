"""Rows of a corpus in memory, in Ray's object store, and where an arm's rows are among them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray

from dataprune_ray.arms import Arm, KeptRows, kept_hashes, kept_rows
from dataprune_ray.errors import BadDataError, ConfigError, DataPruneError
from dataprune_ray.io.corpus import Fragment
from dataprune_ray.io.filesystems import redact
from dataprune_ray.io.rows import RowPlan, ahead, read_rows
from dataprune_ray.io.splits import Split
from dataprune_ray.models import ModelSpec, image_transform
from dataprune_ray.tasks import in_flight, own_errors, run_tasks, task_cpus, unordered


@dataclass(frozen=True)
class HeldRows:
    """Good rows in identity order: hashes uint64 (n,) ascending, values (n, …), targets (n,)."""

    hashes: npt.NDArray[np.uint64]
    values: npt.NDArray[Any]
    targets: npt.NDArray[Any]


@dataclass(frozen=True)
class Held:
    """`HeldRows` in Ray's object store, where tasks share them: ``rows`` of them."""

    ref: Any
    rows: int


@dataclass(frozen=True)
class Limit:
    """Megabytes of model inputs that may be held, and what to do if that is too little."""

    megabytes: int
    advice: str
    setting: str = "train_memory_mb"

    def check(self, size: Size, so_far: str = "") -> None:
        """Hold a size against the limit; ``so_far`` says that more rows may come.

        Raises:
            ConfigError: it is larger.
        """
        if size.bytes > self.megabytes << 20:
            raise ConfigError(
                self.setting,
                self.megabytes,
                f"{size.rows:,} rows{so_far} take about {size.bytes >> 20:,} MB; raise it, or "
                f"{self.advice}",
            )


@dataclass(frozen=True)
class Size:
    """How many rows, and the bytes of the widest, to whose width the others are padded."""

    rows: int = 0
    row_bytes: int = 0

    @property
    def bytes(self) -> int:
        """What they take together."""
        return self.rows * self.row_bytes

    def plus(self, other: Size) -> Size:
        """Both together."""
        return Size(self.rows + other.rows, max(self.row_bytes, other.row_bytes))


def hold(rows: RowPlan, model: ModelSpec, limit: Limit) -> Held:
    """Read all good rows of a plan into Ray's object store.

    Args:
        rows: what is read.
        model: whose inputs they become.
        limit: what may be held; held against what is known before, then against what is read.

    Raises:
        ConfigError: the rows take more.
        BadDataError: there is no good row.
    """
    if rows.features.modality != "text":
        known = sum(fragment.rows or 0 for fragment in rows.fragments)
        share = math.prod(split.admitted for split in rows.splits)
        limit.check(Size(round(known * share), rows.features.row_bytes))
    load = ray.remote(_load).options(
        num_cpus=task_cpus(), num_returns=2, scheduling_strategy="SPREAD"
    )
    shared = ray.put((rows, model, limit))
    parts: list[Any] = []

    def submitted() -> Iterator[Any]:
        for fragment in rows.fragments:
            part, size = load.remote(shared, fragment)
            parts.append(part)
            yield size

    total = Size()
    with closing(unordered(submitted(), in_flight())) as sizes:
        for size in sizes:
            total = total.plus(size)
            limit.check(total, " read so far")
    if not total.rows:
        raise BadDataError(
            f"no good row of {redact(rows.root)!r} to train or test on: see the errors of its rows"
        )
    gather = ray.remote(_gather).options(num_cpus=task_cpus())
    return Held(gather.remote(parts), total.rows)


def _load(shared: tuple[RowPlan, ModelSpec, Limit], fragment: Fragment) -> tuple[HeldRows, Size]:
    pa.set_cpu_count(1)
    rows, model, limit = shared
    size = Size()
    hashes, values, targets = [], [], []
    for batch in ahead(read_rows(rows, fragment, image_transform(model))):
        hashes.append(batch.row_hash[batch.good])
        values.append(batch.values)
        targets.append(batch.targets)
        good = len(batch.values)
        size = size.plus(Size(good, batch.values.nbytes // good if good else 0))
        limit.check(size, f" of {fragment.name} read so far")
    return _joined(hashes, values, targets), size


def _gather(parts: list[Any]) -> HeldRows:
    found = [ray.get(part) for part in parts]
    held = _joined(
        [part.hashes for part in found],
        [part.values for part in found],
        [part.targets for part in found],
    )
    order = np.argsort(held.hashes, kind="stable")
    return HeldRows(held.hashes[order], held.values[order], held.targets[order])


def _joined(
    hashes: list[npt.NDArray[np.uint64]],
    values: list[npt.NDArray[Any]],
    targets: list[npt.NDArray[Any]],
) -> HeldRows:
    """Pieces as one; texts are padded to the longest. Pieces without rows do not count."""
    used = [i for i, part in enumerate(hashes) if len(part)]
    if not used:
        return HeldRows(np.zeros(0, np.uint64), np.zeros((0,), np.float32), np.zeros(0, np.int64))
    pieces = [values[i] for i in used]
    if len({piece.shape[1:] for piece in pieces}) > 1:
        width = max(piece.shape[1] for piece in pieces)
        pieces = [np.pad(piece, ((0, 0), (0, width - piece.shape[1]))) for piece in pieces]
    return HeldRows(
        np.concatenate([hashes[i] for i in used]),
        np.concatenate(pieces),
        np.concatenate([targets[i] for i in used]),
    )


def members(arm: Arm, held: Held) -> Held:
    """Positions int64 (m,) of an arm's rows among the held ones, in the object store.

    Raises:
        BadDataError: the arm has no row.
    """
    found = list(run_tasks(partial(kept_hashes, arm), arm.fragments))
    hashes = ray.put(np.sort(np.concatenate(found)) if found else np.zeros(0, np.uint64))
    result = positions(partial(_wanted, hashes), held)
    if not result.rows:
        raise BadDataError(f"arm {arm.name} has no row to train on")
    return result


def _wanted(hashes: Any, held: HeldRows) -> npt.NDArray[np.bool_]:
    return np.isin(held.hashes, ray.get(hashes))


def weights_of(arm: Arm, held: Held, chosen: Held) -> Held | None:
    """Weights float32 (m,) of an arm's rows at ``chosen`` positions, in the object store.

    Their mean is 1; None where the arm is trained without weights.
    """
    if not arm.weighted:
        return None
    found = list(run_tasks(partial(kept_rows, arm), arm.fragments))
    remote = ray.remote(_weights).options(num_cpus=task_cpus())
    return Held(remote.remote(ray.put(found), held.ref, chosen.ref), chosen.rows)


def _weights(
    found: list[KeptRows], held: HeldRows, chosen: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    hashes = np.concatenate([part.hashes for part in found])
    raw = np.concatenate([np.asarray(part.weights, np.float64) for part in found])
    return normalised(raw, hashes, held.hashes[chosen])


def normalised(
    weights: npt.NDArray[np.float64],
    hashes: npt.NDArray[np.uint64],
    wanted: npt.NDArray[np.uint64],
) -> npt.NDArray[np.float32]:
    """Weights of the rows ``wanted`` (m,) of those with ``hashes`` (n,), with a mean of 1.

    Raises:
        KeyError: a wanted row is not among them.
    """
    order = np.argsort(hashes, kind="stable")
    ascending = hashes[order]
    place = np.minimum(np.searchsorted(ascending, wanted), len(ascending) - 1)
    if not np.array_equal(ascending[place], wanted):
        raise KeyError("a row has no weight")
    own = weights[order][place]
    scaled: npt.NDArray[np.float32] = (own / own.mean()).astype(np.float32)
    return scaled


def in_split(split: Split, held: Held) -> Held:
    """Positions int64 (m,) of a split's rows among the held ones, in the object store."""
    return positions(partial(_admitted, split), held)


def _admitted(split: Split, held: HeldRows) -> npt.NDArray[np.bool_]:
    return split.admits(held.hashes)


def positions(mask: Callable[[HeldRows], npt.NDArray[np.bool_]], held: Held) -> Held:
    """Positions int64 (m,) of the held rows that ``mask`` (n,) is true of, in the object store."""
    remote = ray.remote(_positions).options(num_cpus=task_cpus(), num_returns=2)
    ref, count = remote.remote(mask, held.ref)
    with own_errors():
        return Held(ref, int(ray.get(count)))


def _positions(
    mask: Callable[[HeldRows], npt.NDArray[np.bool_]], held: HeldRows
) -> tuple[npt.NDArray[np.int64], int]:
    found = np.flatnonzero(mask(held)).astype(np.int64)
    return found, len(found)


def check_apart(train: npt.NDArray[np.uint64], test: npt.NDArray[np.uint64], arm: str) -> None:
    """Refuse an arm that holds rows of its own test set.

    Raises:
        DataPruneError: it does; the cut has seen what it is tested on.
    """
    shared = int(np.isin(train, test).sum())
    if shared:
        raise DataPruneError(
            f"leak: {shared:,} of the {len(train):,} rows that arm {arm} trains on are in its test "
            "set; the cut was made with rows that it must not see"
        )
