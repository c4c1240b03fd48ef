"""What a run would do, from a sample: expected counts, the cutoff's uncertainty, time and bytes.

One Ray task reads row groups spread over the corpus, trains the proxy on the sample if there is no
checkpoint, scores the sample with the run's own code and returns a small table. Nothing is
written to the output.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dataprune_ray import schema
from dataprune_ray.cluster import Cluster
from dataprune_ray.config import PruneConfig
from dataprune_ray.costs import Estimate
from dataprune_ray.cutoff import Block, Counted, KeepRule, MemoryPopulation, seeded_hash
from dataprune_ray.errors import BadDataError
from dataprune_ray.estimating import estimates, workload
from dataprune_ray.io.corpus import Corpus
from dataprune_ray.judging import is_asked
from dataprune_ray.probing import Sample, scored_sample
from dataprune_ray.strategies import compile_rule
from dataprune_ray.summary import cost_lines
from dataprune_ray.understanding import Understanding

logger = logging.getLogger("dataprune")

_SHOWN = 20
_Z95 = 1.959964


@dataclass(frozen=True)
class Share:
    """Expected rows of a class or file, from its part of the sample."""

    name: str
    sampled: int
    rows: int
    kept: int


@dataclass(frozen=True)
class Preview:
    """The expected outcome of a run; ``estimates`` are of its cluster, then of those planned."""

    sampled: int
    bad: int
    rows: int
    rows_known: bool
    kept: int
    bytes_saved: int
    explanation: str
    cutoff: float | None
    cutoff_low: float | None
    cutoff_high: float | None
    classes: tuple[Share, ...]
    files: tuple[Share, ...]
    estimates: tuple[Estimate, ...]
    unestimated: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Estimated seconds of the whole run, here."""
        return self.estimates[0].seconds

    def to_json(self) -> dict[str, Any]:
        """Everything, JSON-ready."""
        content = dict(vars(self))
        for name in ("classes", "files"):
            content[name] = [vars(share) for share in getattr(self, name)]
        here, *planned = [one.to_json() for one in self.estimates]
        del content["estimates"]
        costs = {"cost": here, "planned": planned, "seconds": self.seconds}
        return {"preview": {**content, **costs}}

    def text(self) -> str:
        """The preview that the prune job prints."""
        about = "" if self.rows_known else "about "
        lines = [
            f"Preview from {self.sampled:,} sampled rows ({self.bad:,} bad); nothing was written.",
            "",
            f"  rows         {about}{self.rows:,}",
            f"  would keep   about {self.kept:,}",
            f"  saves        about {self.bytes_saved / 1e6:,.1f} MB",
        ]
        if self.cutoff is not None:
            between = f"{self.cutoff_low:.5g} to {self.cutoff_high:.5g}"
            lines.append(f"  cutoff       {self.cutoff:.5g} (95 % interval {between})")
        lines.append(f"  time         about {self.seconds:,.0f} s")
        lines += cost_lines(self.estimates)
        lines += [f"  not in it    {name}" for name in self.unestimated]
        lines += _table("class", self.classes) + _table("file", self.files)
        return "\n".join(lines)


def _table(title: str, shares: tuple[Share, ...]) -> list[str]:
    if not shares:
        return []
    width = max(len(title), *(len(s.name) for s in shares[:_SHOWN]))
    lines = ["", f"  {title:<{width}}  {'rows':>12}  {'would keep':>12}  {'sampled':>8}"]
    lines += [
        f"  {s.name:<{width}}  {s.rows:>12,}  {s.kept:>12,}  {s.sampled:>8,}"
        for s in shares[:_SHOWN]
    ]
    if len(shares) > _SHOWN:
        lines.append(f"  … and {len(shares) - _SHOWN:,} more")
    return lines


def expect(
    config: PruneConfig,
    corpus: Corpus,
    understanding: Understanding,
    found: Cluster,
    *,
    scanned: int,
) -> Preview:
    """Score a sample on the cluster and work out what the whole run would give, and cost.

    ``scanned`` values of each row are what the run reads first, for labels and moments.

    Raises:
        BadDataError: no row of the sample can be scored.
    """
    sample = scored_sample(config, corpus, understanding)
    good = sample.table.filter(pa.compute.is_null(sample.table[schema.ERROR]))
    if not good.num_rows:
        errors = sample.table[schema.ERROR].unique().to_pylist()[:3]
        raise BadDataError(f"no row of the sample can be scored: {errors}")
    return _expected(config, corpus, understanding, found, sample, good, scanned)


def _expected(
    config: PruneConfig,
    corpus: Corpus,
    understanding: Understanding,
    cluster: Cluster,
    sample: Sample,
    good: pa.Table,
    scanned: int,
) -> Preview:
    labels = np.asarray(good[schema.LABEL].cast(pa.string()).to_pylist(), object)
    block, groups = _block(config, understanding, good, labels)
    whole = Counted(MemoryPopulation([block], groups))
    found = compile_rule(understanding.strategy, whole, config.select, understanding.info)
    passes = whole.passes
    for text in found.warnings:
        logger.warning("warning: %s", text)
    rule = found.rule
    kept = rule.apply(block)
    share = float(kept.mean())
    rows = corpus.rows if corpus.rows is not None else _rows_by_bytes(corpus, sample.table)
    files = np.asarray(good[schema.FILE].cast(pa.string()).to_pylist(), object)
    known = {f.path: f.rows for f in corpus.files if f.rows is not None}
    ranked = block.take(~rule.screened(block))
    beyond = float(replace(rule, noise=()).apply(ranked).mean()) if ranked.rows else 0.0
    low, high = _cutoff_interval(rule, ranked.need_scores(), beyond)
    classes: tuple[Share, ...] = ()
    if understanding.label.task == "classification" and understanding.label.column is not None:
        classes = _named(
            understanding, _shares(labels, kept, rows, {}, understanding.label.classes)
        )
    expected = round(share * rows)
    work = workload(
        config,
        corpus,
        understanding,
        sample,
        rows=rows,
        kept=expected,
        passes=passes,
        scanned=scanned,
    )
    return Preview(
        sampled=sample.table.num_rows,
        bad=sample.table.num_rows - good.num_rows,
        rows=rows,
        rows_known=corpus.rows is not None,
        kept=expected,
        bytes_saved=round((1.0 - share) * corpus.size),
        explanation=rule.explanation,
        cutoff=rule.cutoffs.get(""),
        cutoff_low=low,
        cutoff_high=high,
        classes=classes,
        files=_shares(files, kept, rows, known, tuple(dict.fromkeys(files.tolist()))),
        estimates=estimates(config, work, sample, cluster),
        unestimated=("the quality pass",) if is_asked(config) else (),
    )


def _block(
    config: PruneConfig, understanding: Understanding, good: pa.Table, labels: npt.NDArray[Any]
) -> tuple[Block, tuple[str, ...]]:
    scores = good[understanding.metrics[0].name].to_numpy()
    hashes = seeded_hash(good[schema.ROW_HASH].to_numpy(), config.select.seed)
    others = {metric.name: good[metric.name].to_numpy() for metric in understanding.metrics}
    if understanding.group_column is None:
        return Block(scores, hashes, others=others), ("",)
    groups = understanding.label.classes
    if understanding.group_column == schema.GROUP:
        labels = np.asarray(good[schema.GROUP].to_pylist(), object)
        groups = tuple(sorted(set(labels)))
    code = {name: position for position, name in enumerate(groups)}
    codes = np.array([code[x] for x in labels], np.int32)
    return Block(scores, hashes, codes, others=others), groups


def _cutoff_interval(
    rule: KeepRule, scores: npt.NDArray[np.float32], share: float
) -> tuple[float | None, float | None]:
    """95 % interval of the cutoff that a share of the rows lies beyond, kept or cut as noise.

    It is a quantile's: order statistics at binomial distance.
    """
    if rule.cutoffs.get("") is None or rule.end is None or not len(scores):
        return None, None
    ordered = np.sort(scores)
    below = 1.0 - share if rule.end == "high" else share
    spread = _Z95 * math.sqrt(len(ordered) * below * (1.0 - below))
    ranks = np.array([below * len(ordered) - spread, below * len(ordered) + spread])
    low, high = np.clip(np.round(ranks).astype(int), 0, len(ordered) - 1)
    return float(ordered[low]), float(ordered[high])


def _shares(
    names: npt.NDArray[Any],
    kept: npt.NDArray[np.bool_],
    rows: int,
    known: dict[str, int],
    order: tuple[str, ...],
) -> tuple[Share, ...]:
    """Expected rows by name, in the given order: exact totals where known, else by the sample."""
    total, chosen = Counter(names.tolist()), Counter(names[kept].tolist())
    shares = []
    for name in order:
        if total[name]:
            size = known.get(name, round(rows * total[name] / len(names)))
            shares.append(Share(name, total[name], size, round(size * chosen[name] / total[name])))
    return tuple(shares)


def _named(understanding: Understanding, shares: tuple[Share, ...]) -> tuple[Share, ...]:
    label = understanding.label
    names = dict(zip(label.classes, label.names or label.classes, strict=False))
    return tuple(replace(share, name=names.get(share.name, share.name)) for share in shares)


def _rows_by_bytes(corpus: Corpus, sampled: pa.Table) -> int:
    """Rows of archives, from the rows found in the sampled ones and their share of the bytes."""
    seen = Counter(sampled[schema.FILE].cast(pa.string()).to_pylist())
    size = sum(file.size for file in corpus.files if file.path in seen)
    return round(sum(seen.values()) * corpus.size / max(size, 1))
