"""The exact cut against numpy.partition, DuckDB's quantile_disc and Ray Data's quantile.

Run: ``python tests/benchmarks/cut.py [--rows 10_000_000]``. All four answer the same question on
the same score files: the score at rank k from the high end, half of the rows kept. Ours also cuts
the tie there to the exact row. Strategies then cut as many rows as one class, as ``--classes``
classes, and as strata. Memory is the growth of this process and of the workers during a call, and
the workers' peak with all libraries. Prints one JSON line; fails if an exact method disagrees.
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
from common import Workers, interleaved, machine, peak_growth_mb, report

from dataprune_ray import schema
from dataprune_ray.config import SelectConfig
from dataprune_ray.cutoff import Cut, KeepRule, exact_cut, group_counts, seeded_hash
from dataprune_ray.selecting import ScoreTable
from dataprune_ray.strategies import ScoreInfo, get_strategy

METRIC = "el2n"
TIED_SHARE = 0.02


def write_scores(folder: Path, rows: int, files: int, classes: int) -> list[str]:
    """A synthetic score table as a run writes it: 2 % of the scores are the median."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(files):
        part = np.arange(rows * number // files, rows * (number + 1) // files)
        scores = rng.random(len(part), dtype=np.float32)
        scores[rng.random(len(part)) < TIED_SHARE] = 0.5
        columns = {
            schema.FILE: pa.array([f"part-{number}.parquet"] * len(part)).dictionary_encode(),
            schema.ROW: np.arange(len(part)),
            schema.KEY: pa.nulls(len(part), pa.string()),
            schema.ROW_HASH: seeded_hash(part.astype(np.uint64), 1),
            schema.LABEL: rng.integers(0, classes, len(part)),
            METRIC: scores,
            schema.ERROR: pa.nulls(len(part), pa.string()),
        }
        paths.append(str(folder / f"scores-{number:05d}.parquet"))
        table = pa.table(columns, schema=schema.score_schema(pa.int64(), [METRIC]))
        pq.write_table(table, paths[-1], use_dictionary=list(schema.REPEATED))
    return paths


def ours(paths: list[str], quota: int) -> Cut:
    """Exactly ``quota`` rows, ties cut by hash."""
    (cut,) = exact_cut(ScoreTable(paths, METRIC), [quota], end="high", by_score=True)
    return cut


def by_strategy(paths: list[str], name: str, classes: int, bins: int = 50) -> KeepRule:
    """Half of the rows by a strategy, with so many classes."""
    table = ScoreTable(paths, METRIC)
    if classes > 1:
        table = ScoreTable(paths, METRIC, schema.LABEL, tuple(map(str, range(classes))))
    config = SelectConfig(strategy=name, keep=0.5, bins=bins)
    return get_strategy(name).compile(table, config, ScoreInfo(METRIC, "high"))


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
    parser.add_argument("--classes", type=int, default=1_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ray-data-repeats", type=int, default=1, help="0: skip it")
    options = parser.parse_args()
    os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
    # The others run in this process, at its own priority. The name is as Ray spells it.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=200_000_000,
        log_to_driver=False,
    )
    quota = options.rows // 2
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        paths = write_scores(folder, options.rows, options.files, options.classes)
        counted = int(group_counts(ScoreTable(paths, METRIC))[0])
        ours(paths, quota)  # starts the workers, which import what they need once
        assert counted == options.rows
        methods: dict[str, Callable[[], Any]] = {
            "ours": lambda: ours(paths, quota),
            "numpy": lambda: by_numpy(paths, quota),
            "duckdb": lambda: by_duckdb(folder, options.rows, quota),
        }
        repeats = dict.fromkeys(methods, options.repeats)
        grown: dict[str, float] = {}
        for name, run in methods.items():
            workers = Workers()
            grown[f"{name}_driver_mb"] = peak_growth_mb(run)
            grown[f"{name}_workers_mb"] = workers.growth_mb()
            if name == "ours":
                grown["workers_peak_mb"] = workers.peak_mb()
        methods |= {
            "ratio_strategy": lambda: by_strategy(paths, "ratio", 1),
            "balanced_classes": lambda: by_strategy(paths, "class_balanced", options.classes),
            "stratified_1": lambda: by_strategy(paths, "stratified", 1, 1),
            "stratified_bins": lambda: by_strategy(paths, "stratified", 1, options.classes),
        }
        repeats |= {name: options.repeats for name in methods if name not in repeats}
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
        classes=options.classes,
        **{f"{name}_s": value for name, value in seconds.items()},
        **{f"{n}_over_ours": v / seconds["ours"] for n, v in seconds.items() if n != "ours"},
        **grown,
        tied=cut.tied,
        tied_kept=cut.tied_kept,
        **machine(),
    )


if __name__ == "__main__":
    main()
