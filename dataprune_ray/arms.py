"""Which rows of a corpus an arm of a comparison is trained on, and those rows in memory.

An arm is a cut: the decisions of a finished run, or a keep rule over a score table. Its rows are
told by their identity hashes, so one copy of the corpus in memory serves all arms.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from dataprune_ray import schema
from dataprune_ray.cutoff import Block, KeepRule, Population, exact_cut, group_counts, seeded_hash
from dataprune_ray.cutoff.population import pooled
from dataprune_ray.errors import BadDataError, ConfigError, DataPruneError
from dataprune_ray.io.corpus import Fragment
from dataprune_ray.io.filesystems import join, open_input, redact
from dataprune_ray.io.rows import RowPlan, ahead, read_rows
from dataprune_ray.io.scores import group_codes
from dataprune_ray.io.splits import Split
from dataprune_ray.models import ModelSpec, image_transform
from dataprune_ray.strategies.base import bands_of_cut
from dataprune_ray.tasks import TASK_CPUS, own_errors, run_tasks


@dataclass(frozen=True)
class Arm:
    """A named subset of a corpus.

    Attributes:
        name: as in the comparison's table.
        scores: folder of the score table that knows the rows.
        fragments: names of its score files.
        rule: which rows are kept; None where ``decisions`` say it, or for all scored rows.
        decisions: folder of a finished run's decisions, which then say it.
        grouped: the rule tells classes apart.
        seed: of the rule's hashes.
    """

    name: str
    scores: str
    fragments: tuple[str, ...]
    rule: KeepRule | None = None
    decisions: str | None = None
    grouped: bool = False
    seed: int = 0

    def digest(self) -> str:
        """Hex digest of what makes up the arm, save the contents of its files."""
        rule = None if self.rule is None else self.rule.to_json()
        content = [self.name, self.scores, self.decisions, self.seed, rule]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def count(self) -> int:
        """How many rows it has."""
        return sum(run_tasks(partial(_count, self), self.fragments))


def _count(arm: Arm, fragment: str) -> int:
    return len(kept_hashes(arm, fragment))


def kept_hashes(arm: Arm, fragment: str) -> npt.NDArray[np.uint64]:
    """Identity hashes (n,) of the rows of one fragment that belong to the arm."""
    path = join(arm.scores, f"{fragment}.parquet")
    wanted = [schema.ROW_HASH, schema.ERROR]
    if arm.rule is not None and "scores" in arm.rule.columns:
        wanted.append(arm.rule.metric)
    if arm.grouped:
        wanted.append(schema.LABEL)
    with open_input(path) as file:
        table = pq.read_table(file, columns=wanted, use_threads=False)
    table = table.filter(table[schema.ERROR].is_null())
    hashes: npt.NDArray[np.uint64] = table[schema.ROW_HASH].to_numpy()
    if arm.decisions is not None:
        return hashes[_decided(arm.decisions, fragment, len(hashes))]
    if arm.rule is None:
        return hashes
    scores = groups = None
    if arm.rule.metric in table.column_names:
        scores = table[arm.rule.metric].to_numpy()
    if arm.grouped:
        codes = {name: code for code, name in enumerate(arm.rule.groups)}
        groups = group_codes(table[schema.LABEL].combine_chunks(), codes, path)
    return hashes[arm.rule.apply(Block(scores, seeded_hash(hashes, arm.seed), groups))]


def _decided(folder: str, fragment: str, rows: int) -> npt.NDArray[np.bool_]:
    path = join(folder, f"{fragment}.parquet")
    with open_input(path) as file:
        kept: npt.NDArray[np.bool_] = pq.read_table(file, columns=[schema.KEPT])[0].to_numpy()
    if len(kept) != rows:
        raise BadDataError(
            f"{redact(path)}: {len(kept)} decisions for {rows} scored rows; the output was changed "
            "after its run, prune again"
        )
    return kept


def random_rule(table: Population, rows: int) -> KeepRule:
    """The rule that keeps exactly ``rows`` rows by hash."""
    (cut,) = exact_cut(pooled(table), [rows], end="high", by_score=False)
    bands = tuple(bands_of_cut(cut, "high", None))
    return KeepRule(bands, table.groups, "", None, f"{rows:,} rows, chosen by hash.", {"": None})


def balanced_rule(table: Population, rows: int) -> KeepRule:
    """The rule that keeps exactly ``rows`` rows by hash, in the classes' own proportions."""
    sizes = group_counts(table)
    quotas = proportional(sizes.tolist(), rows)
    cuts = exact_cut(table, quotas, end="high", by_score=False)
    bands = [band for code, cut in enumerate(cuts) for band in bands_of_cut(cut, "high", code)]
    cutoffs = dict.fromkeys(table.groups)
    return KeepRule(tuple(bands), table.groups, "", None, f"{rows:,} rows by class.", cutoffs)


def proportional(sizes: Sequence[int], total: int) -> list[int]:
    """Whole quotas that add up to ``total`` in proportion to ``sizes`` (largest remainders)."""
    whole = max(sum(sizes), 1)
    quotas = [size * total // whole for size in sizes]
    remainders = [(-(size * total % whole), code) for code, size in enumerate(sizes)]
    for _, code in sorted(remainders)[: total - sum(quotas)]:
        quotas[code] += 1
    return quotas


# Rows in memory ----------------------------------------------------------------------------------


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


def hold(rows: RowPlan, model: ModelSpec, limit: int, setting: str) -> Held:
    """Read all good rows of a plan into Ray's object store.

    Args:
        rows: what is read.
        model: whose inputs they become.
        limit: bytes that may be held.
        setting: the setting that the limit comes from, for the error.

    Raises:
        ConfigError: the rows take more than ``limit`` bytes.
        BadDataError: there is no good row.
    """
    known = sum(fragment.rows or 0 for fragment in rows.fragments)
    needed = known * rows.features.row_bytes * (1 if rows.features.modality != "text" else 0)
    if needed > limit:
        raise ConfigError(
            setting,
            limit >> 20,
            f"{known:,} rows take about {needed >> 20:,} MB; raise it, or stream the rows through "
            "Ray Train with --workers",
        )
    load = ray.remote(_load).options(num_cpus=TASK_CPUS, scheduling_strategy="SPREAD")
    shared = ray.put((rows, model))
    parts = [load.remote(shared, fragment) for fragment in rows.fragments]
    gather = ray.remote(_gather).options(num_cpus=TASK_CPUS, num_returns=2)
    ref, count = gather.remote(parts)
    with own_errors():
        found = int(ray.get(count))
    if not found:
        raise BadDataError(
            f"no good row of {redact(rows.root)!r} to train or test on: see the errors of its rows"
        )
    return Held(ref, found)


def _load(shared: tuple[RowPlan, ModelSpec], fragment: Fragment) -> HeldRows:
    pa.set_cpu_count(1)
    rows, model = shared
    transform = image_transform(model)
    hashes, values, targets = [], [], []
    for batch in ahead(read_rows(rows, fragment, transform)):
        hashes.append(batch.row_hash[batch.good])
        values.append(batch.values)
        targets.append(batch.targets)
    return _joined(hashes, values, targets)


def _gather(parts: list[Any]) -> tuple[HeldRows, int]:
    found = [ray.get(part) for part in parts]
    held = _joined(
        [part.hashes for part in found],
        [part.values for part in found],
        [part.targets for part in found],
    )
    order = np.argsort(held.hashes, kind="stable")
    held = HeldRows(held.hashes[order], held.values[order], held.targets[order])
    return held, len(order)


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


def in_split(split: Split, held: Held) -> Held:
    """Positions int64 (m,) of a split's rows among the held ones, in the object store."""
    return positions(partial(_admitted, split), held)


def _admitted(split: Split, held: HeldRows) -> npt.NDArray[np.bool_]:
    return split.admits(held.hashes)


def positions(mask: Callable[[HeldRows], npt.NDArray[np.bool_]], held: Held) -> Held:
    """Positions int64 (m,) of the held rows that ``mask`` (n,) is true of, in the object store."""
    remote = ray.remote(_positions).options(num_cpus=TASK_CPUS, num_returns=2)
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


def names_of(fragments: Iterable[Fragment]) -> tuple[str, ...]:
    """Names of the fragments' score files, without ending."""
    return tuple(fragment.name for fragment in fragments)
