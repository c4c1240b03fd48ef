"""Which rows of a corpus an arm of a comparison is trained on, and with which weights.

An arm is a cut: the decisions of a finished run, or a keep rule over a score table. Its rows are
told by their identity hashes, so one copy of the corpus in memory serves all arms.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from dataprune_ray import schema
from dataprune_ray.cutoff import Block, KeepRule, Population, exact_cut, group_counts, seeded_hash
from dataprune_ray.cutoff.population import pooled
from dataprune_ray.errors import BadDataError
from dataprune_ray.io.corpus import Fragment
from dataprune_ray.io.filesystems import join, open_input, redact
from dataprune_ray.io.judgements import EVIDENCE, evidence_of
from dataprune_ray.io.scores import group_codes
from dataprune_ray.quality.rescue import Rescue
from dataprune_ray.strategies.base import bands_of_cut
from dataprune_ray.tasks import run_tasks


@dataclass(frozen=True)
class Arm:
    """A named subset of a corpus.

    Attributes:
        name: as in the comparison's table.
        scores: folder of the score table that knows the rows.
        fragments: names of its score files.
        rule: which rows are kept; None where ``decisions`` say it, or for all scored rows.
        decisions: folder of a finished run's decisions, which then say it.
        group_column: column of the score table with the rule's groups; None: it has none.
        seed: of the rule's hashes.
        rescue: rows that are kept beside those of the rule; ``quality`` is the folder of the
            judgements that it looks at.
        weighted: its rows are trained on with the weights of the decisions or of the rule.
    """

    name: str
    scores: str
    fragments: tuple[str, ...]
    rule: KeepRule | None = None
    decisions: str | None = None
    group_column: str | None = None
    seed: int = 0
    weighted: bool = False
    rescue: Rescue | None = None
    quality: str = ""

    @property
    def metric(self) -> str:
        """The score that its rules look at; '' where they look at none."""
        plain = None if self.rescue is None else self.rescue.eligible.plain
        rules = [rule for rule in (self.rule, plain) if rule is not None]
        return next((rule.metric for rule in rules if "scores" in rule.columns), "")

    def digest(self) -> str:
        """Hex digest of what makes up the arm, save the contents of its files."""
        rule = None if self.rule is None else self.rule.to_json()
        content = [self.name, self.scores, self.decisions, self.seed, rule]
        content += ["weighted"] if self.weighted else []
        content += [] if self.rescue is None else [self.rescue.to_json()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def size(self) -> ArmSize:
        """How many rows it has and what their weights add up to, whatever the order."""
        found = list(run_tasks(partial(_size, self), self.fragments))
        return ArmSize(sum(part.rows for part in found), math.fsum(part.weight for part in found))


@dataclass(frozen=True)
class ArmSize:
    """Rows of an arm, and the sum of their weights (of ones where it has none)."""

    rows: int
    weight: float

    @property
    def scale(self) -> float:
        """What weights are multiplied with so that their mean over the arm is 1."""
        return self.rows / self.weight if self.weight else 1.0


@dataclass(frozen=True, eq=False)
class KeptRows:
    """Rows of an arm in one fragment: identity hashes uint64 (n,), in the corpus's order.

    ``weights`` are float32 (n,), 1 or more and not normalised; None where the arm has none.
    """

    hashes: npt.NDArray[np.uint64]
    weights: npt.NDArray[np.float32] | None = None


def _size(arm: Arm, fragment: str) -> ArmSize:
    kept = kept_rows(arm, fragment)
    rows = len(kept.hashes)
    return ArmSize(rows, rows if kept.weights is None else float(kept.weights.sum(dtype=float)))


def kept_hashes(arm: Arm, fragment: str) -> npt.NDArray[np.uint64]:
    """Identity hashes (n,) of the rows of one fragment that belong to the arm."""
    return kept_rows(arm, fragment).hashes


def kept_rows(arm: Arm, fragment: str) -> KeptRows:
    """The rows of one fragment that belong to the arm.

    Raises:
        BadDataError: the decisions are not those of the score file.
    """
    path = join(arm.scores, f"{fragment}.parquet")
    wanted = [schema.ROW_HASH, schema.ERROR]
    if arm.metric:
        wanted.append(arm.metric)
    wanted += () if arm.rule is None else arm.rule.others
    if arm.group_column is not None:
        wanted.append(arm.group_column)
    with open_input(path) as file:
        table = pq.read_table(file, columns=list(dict.fromkeys(wanted)), use_threads=False)
    good = table[schema.ERROR].is_null()
    table = table.filter(good)
    hashes: npt.NDArray[np.uint64] = table[schema.ROW_HASH].to_numpy()
    if arm.decisions is not None:
        return _decided(arm, fragment, hashes)
    if arm.rule is None:
        return KeptRows(hashes)
    scores = groups = None
    if arm.metric:
        scores = table[arm.metric].to_numpy()
    if arm.group_column is not None:
        codes = {name: code for code, name in enumerate(arm.rule.groups)}
        groups = group_codes(table[arm.group_column].combine_chunks(), codes, path)
    others = {name: table[name].to_numpy() for name in arm.rule.others}
    block = Block(scores, seeded_hash(hashes, arm.seed), groups, others=others)
    kept, weights = arm.rule.apply(block), arm.rule.weights(block)
    if arm.rescue is not None:
        with open_input(join(arm.quality, f"{fragment}.parquet")) as file:
            judged = pq.read_table(file, columns=list(EVIDENCE), use_threads=False)
        rescued = arm.rescue.apply(block, evidence_of(judged.filter(good)))
        kept |= rescued
        weights = np.where(rescued, np.float32(1), weights)
    return KeptRows(hashes[kept], weights[kept] if arm.weighted else None)


def _decided(arm: Arm, fragment: str, hashes: npt.NDArray[np.uint64]) -> KeptRows:
    path = join(arm.decisions or "", f"{fragment}.parquet")
    columns = [schema.KEPT, *([schema.WEIGHT] if arm.weighted else [])]
    with open_input(path) as file:
        table = pq.read_table(file, columns=columns, use_threads=False)
    kept: npt.NDArray[np.bool_] = table[schema.KEPT].to_numpy()
    if len(kept) != len(hashes):
        raise BadDataError(
            f"{redact(path)}: {len(kept)} decisions for {len(hashes)} scored rows; the output was "
            "changed after its run, prune again"
        )
    return KeptRows(hashes[kept], table[schema.WEIGHT].to_numpy()[kept] if arm.weighted else None)


def random_rule(table: Population, rows: int) -> KeepRule:
    """The rule that keeps exactly ``rows`` rows by hash."""
    (cut,) = exact_cut(pooled(table), [rows], end="high", by_score=False)
    bands = tuple(bands_of_cut(cut, "high", None))
    return KeepRule(bands, table.groups, "", None, f"{rows:,} rows, chosen by hash.", {"": None})


def balanced_rule(table: Population, rows: int) -> KeepRule:
    """The rule that keeps exactly ``rows`` rows by hash, in the classes' own proportions."""
    sizes = group_counts(table)
    quotas = proportional(sizes.tolist(), rows)
    cuts = exact_cut(table, quotas, end="high", by_score=False, sizes=sizes.tolist())
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


def names_of(fragments: Iterable[Fragment]) -> tuple[str, ...]:
    """Names of the fragments' score files, without ending."""
    return tuple(fragment.name for fragment in fragments)
