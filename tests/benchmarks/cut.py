"""The exact cut against numpy.partition, DuckDB's quantile_disc and Ray Data's quantile.

Run: ``python tests/benchmarks/cut.py [--rows 10_000_000]``. All four answer the same question on
the same score files: the score at rank k from the high end, half of the rows kept. Ours also cuts
the tie there to the exact row. Prints one JSON line; fails if an exact method disagrees.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from common import interleaved, machine, peak_growth_mb, report

from dataprune_ray import schema
from dataprune_ray.cutoff import Cut, exact_cut, group_counts
from dataprune_ray.selecting import ScoreTable

METRIC = "el2n"
TIED_SHARE = 0.02


def write_scores(folder: Path, rows: int, files: int) -> list[str]:
    """A synthetic score table: 2 % of the scores are the median, the rest lie around it."""
    rng = np.random.default_rng(0)
    paths = []
    for number, part in enumerate(np.array_split(np.arange(rows), files)):
        scores = rng.random(len(part), dtype=np.float32)
        scores[rng.random(len(part)) < TIED_SHARE] = 0.5
        columns = {
            schema.FILE: pa.array([f"part-{number}.parquet"] * len(part)).dictionary_encode(),
            schema.ROW: np.arange(len(part)),
            schema.KEY: pa.nulls(len(part), pa.string()),
            schema.ROW_HASH: rng.permutation(part).astype(np.uint64),
            schema.LABEL: rng.integers(0, 10, len(part)),
            METRIC: scores,
            schema.ERROR: pa.nulls(len(part), pa.string()),
        }
        paths.append(str(folder / f"scores-{number:05d}.parquet"))
        table = pa.table(columns, schema=schema.score_schema(pa.int64(), [METRIC]))
        pq.write_table(table, paths[-1], compression="zstd")
    return paths


def ours(paths: list[str], quota: int) -> Cut:
    """Exactly ``quota`` rows, ties cut by hash."""
    (cut,) = exact_cut(ScoreTable(paths, METRIC), [quota], end="high", by_score=True)
    return cut


def by_numpy(paths: list[str], quota: int) -> float:
    """Read everything, then partition."""
    scores = np.concatenate([pq.read_table(p, columns=[METRIC])[METRIC].to_numpy() for p in paths])
    return float(np.partition(scores, len(scores) - quota)[len(scores) - quota])


def by_duckdb(folder: Path, rows: int, quota: int) -> float:
    """DuckDB on two threads over the Parquet files."""
    connection = duckdb.connect(config={"threads": 2})
    fraction = (rows - quota + 0.5) / rows  # the middle of the rank: no rounding to a neighbour
    query = f"select quantile_disc({METRIC}, {fraction!r}) from '{folder}/*.parquet'"
    answer: Any = connection.execute(query).fetchone()
    return float(answer[0])


def by_ray_data(folder: Path, rows: int, quota: int) -> float:
    """Ray Data's own aggregate; it interpolates between the neighbours."""
    dataset = ray.data.read_parquet(str(folder)).select_columns([METRIC])
    result = dataset.aggregate(ray.data.aggregate.Quantile(METRIC, (rows - quota) / (rows - 1)))
    return float(next(iter(result.values())))


def main() -> None:
    """Write the table, time the four, compare the answers, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--files", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ray-data-repeats", type=int, default=1, help="0: skip it")
    options = parser.parse_args()
    os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=200_000_000,
        log_to_driver=False,
    )
    quota = options.rows // 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_scores(folder, options.rows, options.files)
        counted = int(group_counts(ScoreTable(paths, METRIC))[0])  # also starts the workers
        assert counted == options.rows
        methods: dict[str, Callable[[], Any]] = {
            "ours": lambda: ours(paths, quota),
            "numpy": lambda: by_numpy(paths, quota),
            "duckdb": lambda: by_duckdb(folder, options.rows, quota),
        }
        repeats = dict.fromkeys(methods, options.repeats)
        grown = {f"{name}_driver_mb": peak_growth_mb(run) for name, run in methods.items()}
        if options.ray_data_repeats:
            methods["ray_data"] = lambda: by_ray_data(folder, options.rows, quota)
            repeats["ray_data"] = options.ray_data_repeats
        seconds, results = interleaved(methods, repeats)
    ray.shutdown()
    cut: Cut = results["ours"]
    assert cut.score == results["numpy"] == results["duckdb"], results
    report(
        "cut",
        rows=options.rows,
        files=options.files,
        **{f"{name}_s": value for name, value in seconds.items()},
        **{f"{n}_over_ours": v / seconds["ours"] for n, v in seconds.items() if n != "ours"},
        **grown,
        tied=cut.tied,
        tied_kept=cut.tied_kept,
        **machine(),
    )


if __name__ == "__main__":
    main()
