"""The driver's work for 10 million to a billion rows, without the rows.

The driver's real code runs over a corpus that exists on paper only: files with their row groups
become fragments; a virtual score table is cut by the strategies; decided counts of a thousand
classes are merged; kept rows are dealt to parts; a manifest is made. What workers would do is left
out of the seconds. A line of JSON for each step and size: the driver's seconds, and by how much the
memory of this process grew, with what one simulated worker holds at a time.

The score table is made of *templates*, blocks of real rows. Each fragment is a copy of one whose
hashes hold the fragment's number in their lowest bits, so that no two rows are alike and every
count is exact. Most kernels do not look at these bits: what they give of a template's first, last
and a few more copies is the same, and then it is taken for all of them.

    python tests/benchmarks/scale.py [--rows 10000000,100000000,1000000000] [--classes 1000]
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial, reduce
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from common import machine, peak_growth_mb, report
from numpy.typing import NDArray

from dataprune_ray.config import PruneConfig
from dataprune_ray.cutoff import Block, Column, KeepRule
from dataprune_ray.deciding import Decided
from dataprune_ray.features import FeatureSpec, LabelSpec
from dataprune_ray.io.corpus import Corpus, SourceFile, fragment_target, plan_fragments
from dataprune_ray.io.rows import RowPlan
from dataprune_ray.manifest import Outcome, manifest, to_bytes
from dataprune_ray.metrics import METRICS
from dataprune_ray.models import ModelSpec
from dataprune_ray.selecting import files_per_task
from dataprune_ray.strategies import ScoreInfo, compile_rule, get_strategy
from dataprune_ray.understanding import Understanding
from dataprune_ray.writing import Part, Written, plan_parts

S = TypeVar("S")

#: Bits of a hash that hold the fragment's number.
COPY_BITS = 16
#: Templates, at least; as many as make all tasks of large tables alike.
TEMPLATES = 16
PROBES = 5
FRAGMENT_ROWS = 1 << 16
FILE_ROWS = 100_000
GROUP_ROWS = 8_192
ROW_BYTES = 1_000
PART_BYTES = 256 << 20
CPUS = 64
INFO = ScoreInfo("el2n", "high", 0.0, 1.5)
STRATEGIES = ("ratio", "class_balanced", "random_balanced", "stratified")


@dataclass
class VirtualTable:
    """A score table of fragments of up to ``rows`` rows, as a population.

    ``working`` counts the seconds that its simulated workers took, ``passes`` the reductions.
    """

    fragments: int
    rows: int
    classes: int
    cpus: int = CPUS
    seed: int = 0
    working: float = 0.0
    passes: int = 0
    _made: dict[int, tuple[Any, Any, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.fragments <= 1 << COPY_BITS:
            raise ValueError(f"fragments={self.fragments}: give 1 to {1 << COPY_BITS:,}")

    @property
    def per_task(self) -> int:
        """Fragments of a task."""
        return files_per_task(self.fragments, self.cpus)

    @property
    def templates(self) -> int:
        """Blocks that the fragments are copies of."""
        return min(self.per_task * -(-TEMPLATES // self.per_task), self.fragments)

    @property
    def groups(self) -> tuple[str, ...]:
        """Class names by code; the classes are of very different sizes."""
        return tuple(map(str, range(self.classes)))

    def block(self, fragment: int, columns: frozenset[Column]) -> Block:
        """The rows of a fragment, as a worker reads them."""
        scores, hashes, groups = self._template(fragment % self.templates)
        return Block(
            scores=scores if "scores" in columns else None,
            hashes=hashes | np.uint64(fragment) if "hashes" in columns else None,
            groups=groups if "groups" in columns else None,
            rows=len(scores),
        )

    def _template(self, number: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        if number not in self._made:
            rng = np.random.default_rng([self.seed, number])
            rows = self.rows - number % 2  # fragments differ in size
            scores = np.minimum(rng.exponential(0.3, rows), 1.5).astype(np.float32)
            scores[rng.random(rows) < 0.02] = 0.25  # many ties, also within a fragment
            high = rng.integers(0, 1 << (64 - COPY_BITS), rows, np.uint64) << np.uint64(COPY_BITS)
            groups = (self.classes * rng.random(rows) ** 2).astype(np.int32)
            self._made[number] = scores, high, groups
        return self._made[number]

    def reduce(
        self,
        kernel: Callable[[Block], S],
        merge: Callable[[S, S], S],
        columns: frozenset[Column],
    ) -> S:
        """What the driver does with the results of tasks, and what tasks do with fragments."""
        self.passes += 1
        size = self.per_task
        starts = range(0, self.fragments, size)
        tasks = (range(start, min(start + size, self.fragments)) for start in starts)
        results = self._results(kernel, merge, columns, tasks)
        merged = next(results)
        for result in results:
            merged = merge(merged, result)
        return merged

    def _results(
        self,
        kernel: Callable[[Block], S],
        merge: Callable[[S, S], S],
        columns: frozenset[Column],
        tasks: Iterator[range],
    ) -> Iterator[S]:
        """What each task returns: the merged results of its fragments."""
        started = time.perf_counter()
        alike = all(self._alike(kernel, columns, number) for number in range(self.templates))
        known: S | None = None  # of a task of all templates, each as often
        for task in tasks:
            full = alike and len(task) % self.templates == 0
            found = known
            if not full or found is None:
                found = reduce(merge, (kernel(self.block(f, columns)) for f in task))
            if full:
                known = found
                found = copy.deepcopy(found)  # as it arrives: the driver may change it
            self.working += time.perf_counter() - started
            yield found
            started = time.perf_counter()

    def _alike(self, kernel: Callable[[Block], S], columns: frozenset[Column], number: int) -> bool:
        """Whether every copy of a template gives the same."""
        if "hashes" not in columns:
            return True
        copies = range(number, self.fragments, self.templates)
        tried = sorted({copies[i * (len(copies) - 1) // (PROBES - 1)] for i in range(PROBES)})
        first = kernel(self.block(tried[0], columns))
        return all(_equal(first, kernel(self.block(f, columns))) for f in tried[1:])


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, tuple | list):
        return len(first) == len(second) and all(map(_equal, first, second))
    if isinstance(first, np.ndarray):
        return bool(np.array_equal(first, second))
    if is_dataclass(first):
        return all(_equal(getattr(first, f.name), getattr(second, f.name)) for f in fields(first))
    return bool(first == second)


# The steps, each a function of a size ------------------------------------------------------------


def corpus_of(rows: int) -> Corpus:
    """Files of `FILE_ROWS` rows each, in fragments as the job plans them."""
    bounds = [(start, min(start + FILE_ROWS, rows)) for start in range(0, rows, FILE_ROWS)]
    files = tuple(
        SourceFile(
            path=f"shard-{number:06d}.parquet",
            size=ROW_BYTES * (end - start),
            version=f"{start:016d}",
            groups=tuple(min(GROUP_ROWS, end - first) for first in range(start, end, GROUP_ROWS)),
        )
        for number, (start, end) in enumerate(bounds)
    )
    layout = pa.schema([("img", pa.binary()), ("label", pa.int64())])
    fragments = plan_fragments(files, fragment_target(files))
    corpus = Corpus("corpus", "parquet", layout, files, fragments)
    corpus.fingerprint()
    return corpus


def handed_out(corpus: Corpus) -> list[str]:
    """What the driver makes of every fragment: its name, and the text that actors are given."""
    return [fragment.name + fragment.to_json() for fragment in corpus.fragments]


def decided_by_fragment(fragments: int, rows: int, classes: int) -> Iterator[Decided]:
    """What the tasks that decide would return: counts of every class, half of them kept."""
    each = rows // fragments
    for number in range(fragments):
        count = each + (number < rows - each * fragments)
        sizes = np.full(classes, count // classes) + (np.arange(classes) < count % classes)
        kept = sizes // 2
        yield Decided(
            rows=count,
            kept=int(kept.sum()),
            digest=number,
            kept_by_class=Counter({str(c): int(n) for c, n in enumerate(kept)}),
            dropped_by_class=Counter({str(c): int(n) for c, n in enumerate(sizes - kept)}),
            reasons=Counter({"kept: at or above the cutoff": int(kept.sum())}),
        )


def merged(found: Iterator[Decided]) -> tuple[Decided, list[int], float]:
    """All counts, kept rows by fragment, and the seconds that the driver took for them."""
    total, kept, seconds = Decided(), [], 0.0
    for counts in found:
        started = time.perf_counter()
        kept.append(counts.kept)
        total.merge(counts)
        seconds += time.perf_counter() - started
    return total, kept, seconds


def manifest_of(corpus: Corpus, rule: KeepRule, decided: Decided, parts: list[Part]) -> bytes:
    """The manifest as it is stored."""
    classes = tuple(sorted(decided.kept_by_class, key=int))
    label = LabelSpec("label", classes=classes)
    features = FeatureSpec("image", ("img",), (3, 32, 32))
    understanding = Understanding(
        rows=RowPlan.of(corpus, features, label, None, 0),
        model=ModelSpec("linear", features, label),
        metrics=(METRICS["el2n"],),
        strategy=get_strategy("class_balanced"),
        notes=(),
    )
    written = tuple(
        Written(f"data/{part.name}", part.rows, ROW_BYTES * part.rows, f"{part.index:064x}")
        for part in parts
    )
    outcome = Outcome(
        config=PruneConfig.from_flat({"input": "corpus", "output": "pruned"}),
        command="",
        corpus=corpus,
        understanding=understanding,
        rule=rule,
        decided=decided,
        written=written,
        proxies=(),
        reused=0,
        seconds={},
        warnings=(),
        output="pruned",
        scores="pruned/scores",
    )
    return to_bytes(manifest(outcome))


def compiled(table: VirtualTable, strategy: str, keep: float) -> KeepRule:
    """The rule of a strategy over a virtual table."""
    config = PruneConfig.from_flat({"strategy": strategy, "keep": keep}).select
    return compile_rule(get_strategy(strategy), table, config, INFO).rule


def measured(work: Callable[[], Any], *, apart: Callable[[], float] = float) -> dict[str, Any]:
    """Result, seconds without those ``apart``, and growth of memory in MB of a call."""
    kept: list[Any] = []
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before does not hide what grows now
    before = apart()
    started = time.perf_counter()
    grown = peak_growth_mb(lambda: kept.append(work()))
    seconds = time.perf_counter() - started - (apart() - before)
    return {"result": kept[0], "seconds": seconds, "peak_mb": grown}


def steps(rows: int, classes: int, names: tuple[str, ...] = STRATEGIES) -> Iterator[dict[str, Any]]:
    """Every step at one size, with its result under ``result``."""
    listed = measured(partial(corpus_of, rows))
    corpus: Corpus = listed["result"]
    count = len(corpus.fragments)
    yield {"step": "plan fragments", "units": count, **listed}
    yield {"step": "hand out", "units": count, **measured(partial(handed_out, corpus))}
    rules = {}
    for name in names:
        table = VirtualTable(count, -(-rows // count), classes)
        for number in range(table.templates):
            table.block(number, frozenset())  # made before anything is measured
        work = partial(compiled, table, name, 0.3)
        found = measured(work, apart=lambda table=table: table.working)
        rules[name] = found["result"]
        yield {"step": f"select {name}", "units": table.passes, **found}
    found = measured(partial(merged, decided_by_fragment(count, rows, classes)))
    decided, kept, seconds = found["result"]
    yield {"step": "merge decided", "units": count, **found, "seconds": seconds}
    found = measured(partial(plan_parts, corpus.fragments, kept, PART_BYTES // ROW_BYTES))
    parts = found["result"]
    yield {"step": "plan parts", "units": len(parts), **found}
    rule = rules.get("class_balanced", next(iter(rules.values())))
    work = partial(manifest_of, corpus, rule, decided, parts)
    yield {"step": "manifest", "units": len(corpus.files) + len(parts), **measured(work)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="10000000,100000000,1000000000", help="sizes")
    parser.add_argument("--classes", type=int, default=1_000)
    options = parser.parse_args()
    for rows in map(int, options.rows.split(",")):
        for step in steps(rows, options.classes):
            del step["result"]
            report("scale", rows=rows, classes=options.classes, **step, **machine())


if __name__ == "__main__":
    main()
