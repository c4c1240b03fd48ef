"""The keep rule applied: decisions and quarantine of every fragment, and what they add up to."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dataprune_ray import schema
from dataprune_ray.cutoff import REASONS, Block, KeepRule, seeded_hash
from dataprune_ray.io.corpus import Fragment
from dataprune_ray.io.filesystems import atomic_output, exists, join, open_input, remove_file, stamp
from dataprune_ray.io.judgements import EVIDENCE, evidence_of
from dataprune_ray.io.leftovers import remove_other_fragments
from dataprune_ray.io.scores import group_codes
from dataprune_ray.quality.rescue import RESCUED, Evidence, Rescue
from dataprune_ray.tasks import run_tasks

_MASK_128 = (1 << 128) - 1
_REASONS = (*REASONS, RESCUED)
#: Columns of the decisions whose values repeat: with a dictionary the others are larger and slower.
_REPEATING = [schema.FILE, schema.LABEL, schema.REASON, schema.WEIGHT, schema.GROUP]


@dataclass(frozen=True)
class WritePlan:
    """What every writing task is told; ``quality`` is read where there is a ``rescue``.

    ``group_column`` of the score table has the rule's groups; None where it has none.
    ``compression``, ``group_rows`` and ``dictionary`` are as in `dataprune_ray.io.copying.Style`.
    """

    root: str
    format: str
    schema: pa.Schema
    output: str
    scores: str
    metric: str
    rule: KeepRule
    group_column: str | None
    seed: int
    label_type: pa.DataType
    quality: str = ""
    rescue: Rescue | None = None
    compression: str = "snappy"
    group_rows: int = 65_536
    dictionary: tuple[str, ...] | bool = True

    @property
    def layout(self) -> pa.Schema:
        """Schema of the decisions."""
        grouped = self.group_column == schema.GROUP
        return schema.decision_schema(self.label_type, grouped=grouped)

    def score_file(self, fragment: Fragment) -> str:
        """The fragment's score file."""
        return join(self.scores, f"{fragment.name}.parquet")


@dataclass
class Decided:
    """Mergeable counts of decisions; ``digest`` is a 128-bit sum over the kept rows' identities."""

    rows: int = 0
    kept: int = 0
    bad: int = 0
    digest: int = 0
    kept_by_class: Counter[str] = field(default_factory=Counter)
    dropped_by_class: Counter[str] = field(default_factory=Counter)
    bad_by_class: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    reused: int = 0  # rows whose decisions an earlier attempt had committed

    def merge(self, other: Decided) -> None:
        """Add another count."""
        self.rows += other.rows
        self.kept += other.kept
        self.bad += other.bad
        self.reused += other.reused
        self.digest = (self.digest + other.digest) & _MASK_128
        for name in ("kept_by_class", "dropped_by_class", "bad_by_class", "reasons", "errors"):
            getattr(self, name).update(getattr(other, name))

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; the digest as hex."""
        content = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**content, "digest": f"{self.digest:032x}"}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Decided:
        """What `to_json` described."""
        counters = {n: Counter(v) for n, v in content.items() if isinstance(v, dict)}
        return cls(**{**content, **counters, "digest": int(content["digest"], 16)})

    @property
    def content_hash(self) -> str:
        """Hex digest of the kept set, whatever the order and the files its rows lie in."""
        content = f"{self.kept}:{self.digest:032x}"
        return hashlib.sha256(content.encode()).hexdigest()


def decide(
    plan: WritePlan, fragments: tuple[Fragment, ...], progress: Callable[[Decided], None]
) -> tuple[Decided, list[int]]:
    """Write decisions and quarantine of every fragment; all counts, and kept rows by fragment.

    What an earlier attempt decided by the same rule from the same scores is not decided again.
    """
    names = {f"{fragment.name}.parquet" for fragment in fragments}
    for folder in ("decisions", "quarantine"):
        remove_other_fragments(join(plan.output, folder), names)
    total = Decided()
    kept = [0] * len(fragments)
    for position, counts in run_tasks(partial(_decide, plan), list(enumerate(fragments))):
        kept[position] = counts.kept
        total.merge(counts)
        progress(counts)
    return total, kept


def _decide(plan: WritePlan, item: tuple[int, Fragment]) -> tuple[int, Decided]:
    position, fragment = item
    name = f"{fragment.name}.parquet"
    path, basis = join(plan.output, "decisions", name), _basis(plan, fragment)
    found = _committed(path, basis)
    if found is not None:
        return position, replace(found, reused=found.rows)
    counts = Decided()
    layout = plan.layout
    bad: list[pa.Table] = []
    with (
        open_input(plan.score_file(fragment)) as file,
        atomic_output(path) as stream,
        pq.ParquetWriter(stream, layout, use_dictionary=_REPEATING) as writer,
    ):
        quality = _quality(plan, name)
        for batch in pq.ParquetFile(file).iter_batches(65_536, use_threads=False):
            table = pa.Table.from_batches([batch])
            right = table[schema.ERROR].is_null()
            wrong = table.filter(table[schema.ERROR].is_valid())
            if wrong.num_rows:
                bad.append(wrong)
            evidence = None
            if quality is not None:
                evidence = evidence_of(quality.slice(counts.rows, len(table)).filter(right))
            writer.write_table(_decisions(plan, table.filter(right), evidence, counts))
            _count_bad(counts, wrong)
            counts.rows += table.num_rows
        note = {"basis": basis, "counts": counts.to_json()}
        writer.add_key_value_metadata({schema.NOTE.decode(): json.dumps(note)})
        # The quarantine goes first: decisions that are there say that it is complete.
        if bad:
            _quarantine(join(plan.output, "quarantine", name), bad)
        else:  # an earlier attempt may have found some
            remove_file(join(plan.output, "quarantine", name))
    return position, counts


def _basis(plan: WritePlan, fragment: Fragment) -> str:
    """Hex digest of everything that a fragment's decisions depend on."""
    scored = stamp(plan.score_file(fragment))
    judged = stamp(join(plan.quality, f"{fragment.name}.parquet")) if plan.rescue else None
    rule = json.dumps(plan.rule.to_json())
    content = (
        rule,
        plan.metric,
        plan.group_column,
        plan.seed,
        str(plan.label_type),
        repr(plan.rescue),
    )
    return hashlib.sha256(repr((*content, scored, judged)).encode()).hexdigest()


def _committed(path: str, basis: str) -> Decided | None:
    """The counts of decisions that are there and were made on the same basis."""
    if not exists(path):
        return None
    with open_input(path) as file:
        note = (pq.read_metadata(file).metadata or {}).get(schema.NOTE)
    if note is None:
        return None
    content = json.loads(note)
    return Decided.from_json(content["counts"]) if content["basis"] == basis else None


def _quality(plan: WritePlan, name: str) -> pa.Table | None:
    """What a rescue looks at, of all rows of a score file."""
    if plan.rescue is None:
        return None
    with open_input(join(plan.quality, name)) as file:
        return pq.read_table(file, columns=list(EVIDENCE), use_threads=False)


def _decisions(
    plan: WritePlan, table: pa.Table, evidence: Evidence | None, counts: Decided
) -> pa.Table:
    scores = table[plan.metric].to_numpy()
    hashes = table[schema.ROW_HASH].to_numpy()
    block = Block(
        scores=scores,
        hashes=seeded_hash(hashes, plan.seed),
        groups=_codes(plan, table) if plan.group_column is not None else None,
        others={name: table[name].to_numpy() for name in plan.rule.others},
    )
    kept = plan.rule.apply(block)
    reasons = plan.rule.reason(block)
    weights = plan.rule.weights(block)
    if plan.rescue is not None and evidence is not None:
        rescued = plan.rescue.apply(block, evidence)
        kept |= rescued
        reasons = np.where(rescued, np.int8(len(REASONS)), reasons)
        weights = np.where(rescued, np.float32(1), weights)
    counts.kept += int(kept.sum())
    counts.digest = (counts.digest + identity_sum(hashes[kept])) & _MASK_128
    labels = table[schema.LABEL].cast(pa.string()).to_numpy()
    counts.kept_by_class.update(_tally(labels[kept]))
    counts.dropped_by_class.update(_tally(labels[~kept]))
    for code, number in zip(*np.unique(reasons, return_counts=True), strict=True):
        counts.reasons[_REASONS[code]] += int(number)
    columns = [
        table[schema.FILE],
        table[schema.ROW],
        table[schema.KEY],
        table[schema.LABEL],
        pa.array(scores, pa.float32()),
        pa.array(kept),
        pa.DictionaryArray.from_arrays(
            pa.array(reasons, pa.int8()), pa.array(_REASONS, pa.string())
        ),
        pa.array(weights),
        *([table[schema.GROUP]] if schema.GROUP in plan.layout.names else []),
    ]
    return pa.table(columns, schema=plan.layout)


def identity_sum(hashes: npt.NDArray[np.uint64]) -> int:
    """Sum modulo 2**128 of 128 bits per identity: equal sets of rows have equal sums."""
    low = seeded_hash(hashes, 1)
    high = seeded_hash(hashes, 2)
    mask = np.uint64(0xFFFFFFFF)
    total = 0
    for word, shift in ((low & mask, 0), (low >> np.uint64(32), 32)):
        total += int(word.sum(dtype=np.uint64)) << shift
    for word, shift in ((high & mask, 64), (high >> np.uint64(32), 96)):
        total += int(word.sum(dtype=np.uint64)) << shift
    return total & _MASK_128


def _codes(plan: WritePlan, table: pa.Table) -> npt.NDArray[np.int32]:
    codes = {name: code for code, name in enumerate(plan.rule.groups)}
    return group_codes(table[plan.group_column].combine_chunks(), codes, plan.scores)


def _tally(values: npt.NDArray[Any]) -> Counter[str]:
    return Counter("" if value is None else str(value) for value in values.tolist())


def _count_bad(counts: Decided, wrong: pa.Table) -> None:
    counts.bad += wrong.num_rows
    for label, error in zip(
        wrong[schema.LABEL].to_pylist(), wrong[schema.ERROR].to_pylist(), strict=True
    ):
        counts.bad_by_class["" if label is None else str(label)] += 1
        counts.errors[reason_kind(error)] += 1


def reason_kind(error: str) -> str:
    """The part of an error message that many rows share."""
    head = error.partition(":")[0]
    return " ".join("…" if any(c.isdigit() for c in word) else word for word in head.split())


def _quarantine(path: str, bad: list[pa.Table]) -> None:
    table = pa.concat_tables(bad).select(schema.QUARANTINE_SCHEMA.names)
    with atomic_output(path) as stream:
        pq.write_table(table.cast(schema.QUARANTINE_SCHEMA), stream)
