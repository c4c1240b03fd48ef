"""Filter and write: the writing stage against DuckDB and a pyarrow dataset, two threads each.

All three read the same Parquet files and write the same rows with the same compression. Ours takes
them from decision files that the deciding stage made before, in a Ray that runs; it alone keeps
the corpus's order, hashes what it writes, flushes it to disk and commits it part by part. DuckDB
and pyarrow read a copy of the corpus that has a column ``kept`` beside the others, the quickest
variant that was found for them. Rows are kept at random or in whole row groups.

    python tests/benchmarks/writing.py [--rows 600000] [--repeats 5] [--cases CASE …]

Ratios are ours / other: below 1, ours is faster. ``start_s`` is what the first call takes longer
because workers start; ``worker_mb`` is the most private memory that a worker had.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import ray
from common import interleaved, machine, report
from memory import own_mb, workers_of

from dataprune_ray import schema
from dataprune_ray.config import CorpusConfig, SelectConfig
from dataprune_ray.deciding import WritePlan, decide
from dataprune_ray.io import open_corpus
from dataprune_ray.io.corpus import Corpus
from dataprune_ray.selecting import ScoreTable
from dataprune_ray.strategies import STRATEGIES, ScoreInfo
from dataprune_ray.writing import Part, plan_parts, write_parts

FILES = 8
THREADS = 2
METRIC = "el2n"
GROUP_ROWS = {"images": 8192, "table": 65_536}
TIMES = {"images": 1, "table": 4}  # rows of the corpus, in --rows
PART_BYTES = 256 << 20
SAMPLE_SECONDS = 0.02
CASES = [
    f"{kind}-{codec}-{keep}-{layout}"
    for kind, codec in (("images", "zstd"), ("table", "snappy"))
    for keep in (0.5, 0.1)
    for layout in ("rows", "groups")
]


@dataclass(frozen=True)
class Setting:
    """A corpus, the same with ``kept``, the plan to write its kept rows, and their number."""

    corpus: Corpus
    marked: str
    plan: WritePlan
    parts: list[Part]
    rows: int
    group_rows: int


def images(rng: np.random.Generator, first: int, rows: int) -> dict[str, Any]:
    """Pictures of 784 bytes, half of them noise, with a label and a name."""
    pixels = rng.integers(0, 256, (rows, 784), np.uint8)
    pixels[:, 392:] = 0
    return {
        "image": pa.array([row.tobytes() for row in pixels], pa.binary()),
        "label": rng.integers(0, 10, rows),
        "name": [f"image-{first + i:08d}.png" for i in range(rows)],
        "id": np.arange(first, first + rows),
    }


def numbers(rng: np.random.Generator, first: int, rows: int) -> dict[str, Any]:
    """Twelve numeric columns."""
    floats = {f"x{i}": rng.standard_normal(rows).astype(np.float32) for i in range(8)}
    codes = {f"c{i}": rng.integers(0, 10 ** (i + 1), rows) for i in range(2)}
    labels = {"label": rng.integers(0, 10, rows)}
    return {**floats, **codes, **labels, "id": np.arange(first, first + rows)}


def write_corpus(root: Path, kind: str, codec: str, layout: str, rows: int) -> int:
    """The corpus, its marked copy and its score table below ``root``; bytes of the corpus."""
    rng = np.random.default_rng(0)
    for name in ("corpus", "marked", "scores"):
        (root / name).mkdir(parents=True)
    size = GROUP_ROWS[kind]
    bounds = [rows * index // FILES for index in range(FILES + 1)]
    groups = -(-rows // size) + FILES
    ranks = iter(rng.permutation(groups))
    for index, (low, end) in enumerate(itertools.pairwise(bounds)):
        columns = (images if kind == "images" else numbers)(rng, low, end - low)
        table = pa.table(columns)
        scores = rng.random(end - low).astype(np.float32)
        if layout == "groups":
            chosen = [next(ranks) for _ in range(0, end - low, size)]
            scores = (scores + np.repeat(chosen, size)[: end - low].astype(np.float32)) / groups
        pq.write_table(
            table, root / f"corpus/{index}.parquet", compression=codec, row_group_size=size
        )
        table = table.append_column("score", pa.array(scores))
        pq.write_table(
            table, root / f"marked/{index}.parquet", compression=codec, row_group_size=size
        )
    return sum(file.stat().st_size for file in (root / "corpus").iterdir())


def score_tables(root: Path, corpus: Corpus) -> list[str]:
    """A score table of the scores in the marked copy."""
    layout = schema.score_schema(pa.int64(), [METRIC])
    paths = []
    for fragment in corpus.fragments:
        tables = []
        for span in fragment.spans:
            source = pq.ParquetFile(root / "marked" / span.file)
            groups = list(range(*span.groups))
            found = source.read_row_groups(groups, columns=["id", "label", "score"])
            columns = {
                schema.FILE: pa.array([span.file] * len(found)).dictionary_encode(),
                schema.ROW: np.arange(span.start, span.start + len(found)),
                schema.KEY: pa.nulls(len(found), pa.string()),
                schema.ROW_HASH: found["id"].to_numpy().astype(np.uint64),
                schema.LABEL: found["label"],
                METRIC: found["score"],
                schema.ERROR: pa.nulls(len(found), pa.string()),
            }
            tables.append(pa.table(columns, schema=layout))
        paths.append(str(root / "scores" / f"{fragment.name}.parquet"))
        pq.write_table(pa.concat_tables(tables), paths[-1])
    return paths


def prepare(root: Path, case: str, rows: int) -> Setting:
    """Write the corpora, cut and decide."""
    kind, codec, share, layout = case.split("-")
    keep = float(share)
    size = write_corpus(root, kind, codec, layout, rows)
    corpus = open_corpus(CorpusConfig(input=str(root / "corpus")))
    paths = score_tables(root, corpus)
    info = ScoreInfo(METRIC, "high", 0.0, 1.0)
    rule = STRATEGIES["ratio"].compile(ScoreTable(paths, METRIC), SelectConfig(keep=keep), info)
    plan = WritePlan(
        root=corpus.root,
        format=corpus.format,
        schema=corpus.schema,
        output=str(root / "ours"),
        scores=str(root / "scores"),
        metric=METRIC,
        rule=rule,
        group_column=None,
        seed=0,
        label_type=pa.int64(),
    )
    decided, kept = decide(plan, corpus.fragments, lambda _: None)
    mark(root)
    parts = plan_parts(corpus.fragments, kept, PART_BYTES // max(1, size // rows))
    return Setting(corpus, str(root / "marked"), plan, parts, decided.kept, GROUP_ROWS[kind])


def mark(root: Path) -> None:
    """Replace the scores of the marked copy by the decisions."""
    decided = ds.dataset(root / "ours/decisions").to_table(columns=["file", "row", "kept"])
    names = decided["file"].cast(pa.string())
    for path in sorted((root / "marked").iterdir()):
        mine = decided.filter(pa.compute.equal(names, path.name)).sort_by("row")
        source = pq.ParquetFile(path)
        codec = source.metadata.row_group(0).column(0).compression
        size = source.metadata.row_group(0).num_rows
        table = source.read().drop_columns("score").append_column("kept", mine["kept"])
        pq.write_table(table, path, compression=codec, row_group_size=size)


def ours(setting: Setting) -> None:
    """The writing stage, whose output is moved away first: nothing is found committed."""
    output = Path(setting.plan.output)
    for record in (output / "decisions").glob("_part-*.json"):
        record.unlink()
    shutil.rmtree(output / "data", ignore_errors=True)
    write_parts(setting.plan, setting.corpus, setting.parts, lambda _: None)


def by_duckdb(setting: Setting, codec: str, target: Path) -> None:
    """A copy of a query; threads write files of their own, rows in any order."""
    shutil.rmtree(target, ignore_errors=True)
    options = {"threads": THREADS, "preserve_insertion_order": False}
    level = ", COMPRESSION_LEVEL 1" if codec == "zstd" else ""  # what pyarrow writes
    with duckdb.connect(config=options) as connection:
        connection.execute(
            f"COPY (SELECT * EXCLUDE kept FROM '{setting.marked}/*.parquet' WHERE kept) "
            f"TO '{target}' (FORMAT parquet, COMPRESSION {codec}{level}, PER_THREAD_OUTPUT, "
            f"ROW_GROUP_SIZE {setting.group_rows})"
        )


def by_pyarrow(setting: Setting, codec: str, target: Path) -> None:
    """A dataset's scan, filter and write."""
    shutil.rmtree(target, ignore_errors=True)
    source = ds.dataset(setting.marked)
    columns = [name for name in source.schema.names if name != "kept"]
    style = ds.ParquetFileFormat()
    ds.write_dataset(
        source.scanner(columns=columns, filter=ds.field("kept")),
        target,
        format=style,
        file_options=style.make_write_options(compression=codec),
        max_rows_per_group=setting.group_rows,
        min_rows_per_group=setting.group_rows,
    )


def check(setting: Setting, targets: list[Path]) -> None:
    """All sides wrote the same rows."""
    (output,) = {(setting.rows, ds.dataset(setting.corpus.root).schema)}  # what each must have
    wanted = None
    for target in targets:
        found = ds.dataset(target)
        table = found.to_table(columns=["id"])
        ids = np.sort(table["id"].to_numpy())
        wanted = ids if wanted is None else wanted
        if len(ids) != output[0] or not np.array_equal(ids, wanted):
            raise SystemExit(f"{target}: {len(ids)} rows that are not the {output[0]} kept ones")


def worker_mb(run: Callable[[], None]) -> float:
    """Most private memory of a Ray worker during a call."""
    done = threading.Event()
    peak = 0.0

    def sample() -> None:
        nonlocal peak
        while not done.wait(SAMPLE_SECONDS):
            peak = max([peak, *map(own_mb, workers_of(os.getpid()))])

    thread = threading.Thread(target=sample)
    thread.start()
    run()
    done.set()
    thread.join()
    return peak


def run_case(root: Path, case: str, rows: int, repeats: int) -> None:
    setting = prepare(root, case, rows)
    codec = case.split("-")[1]
    sides: dict[str, Callable[[], Any]] = {
        "ours": lambda: ours(setting),
        "duckdb": lambda: by_duckdb(setting, codec, root / "duckdb"),
        "pyarrow": lambda: by_pyarrow(setting, codec, root / "pyarrow"),
    }
    began = time.perf_counter()
    ours(setting)
    first = time.perf_counter() - began
    seconds, _ = interleaved(sides, dict.fromkeys(sides, repeats))
    check(setting, [root / "ours/data", root / "duckdb", root / "pyarrow"])
    report(
        "writing",
        case=case,
        rows=rows,
        kept=setting.rows,
        parts=len(setting.parts),
        **{f"{name}_s": value for name, value in seconds.items()},
        **{f"ours_over_{n}": seconds["ours"] / seconds[n] for n in ("duckdb", "pyarrow")},
        **{f"{n}_mb": _megabytes(root / n) for n in ("ours/data", "duckdb", "pyarrow")},
        start_s=max(0.0, first - seconds["ours"]),
        worker_mb=worker_mb(sides["ours"]),
        **machine(),
    )


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=600_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cases", nargs="+", default=CASES)
    options = parser.parse_args()
    pa.set_cpu_count(THREADS)
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - as the others, on a busy machine
    ray.init(
        address="local",
        num_cpus=THREADS,
        include_dashboard=False,
        object_store_memory=200_000_000,
        log_to_driver=False,
    )
    for case in options.cases:
        with tempfile.TemporaryDirectory() as name:
            run_case(Path(name), case, options.rows * TIMES[case.split("-")[0]], options.repeats)
    ray.shutdown()


if __name__ == "__main__":
    main()
