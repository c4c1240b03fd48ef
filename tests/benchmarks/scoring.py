"""EL2N of MNIST-sized rows: the scoring stage against plain loops over the same files.

Both plain loops scan the Parquet files with pyarrow, run the model with torch and write the scores
to Parquet: one process with a thread per core, and one single-threaded process per core. Start-up
(imports, Ray, workers) is shown apart: each side also scores a quarter of the rows, and what the
other three quarters add is what rows alone cost.

    python tests/benchmarks/scoring.py [--rows 2400000] [--repeats 3]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from common import interleaved, machine, report

HIDDEN = (512, 256, 128)
FILES = 8
PLAIN_BATCH = 1024


def make_corpus(folder: Path, rows: int, files: int) -> str:
    """Raw uint8 images as binary with their shape in the field's metadata, and labels."""
    rng = np.random.default_rng(0)
    note = {b"dataprune": b'{"dtype": "uint8", "shape": [28, 28]}'}
    layout = pa.schema([pa.field("img", pa.binary(), metadata=note), pa.field("label", pa.int64())])
    folder.mkdir(parents=True)
    for index in range(files):
        with pq.ParquetWriter(folder / f"{index:03d}.parquet", layout) as writer:
            left = rows * (index + 1) // files - rows * index // files
            while left:
                size = min(left, 8192)
                pixels = rng.integers(0, 256, (size, 784), np.uint8)
                images = [row.tobytes() for row in pixels]
                labels = rng.integers(0, 10, size)
                writer.write_table(pa.table([images, labels], schema=layout))
                left -= size
    return str(folder)


def model() -> torch.nn.Module:
    """The 784-512-256-128-10 network."""
    torch.manual_seed(0)
    widths = (784, *HIDDEN)
    layers: list[torch.nn.Module] = [torch.nn.Flatten()]
    for before, after in zip(widths, HIDDEN, strict=False):
        layers += [torch.nn.Linear(before, after), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(HIDDEN[-1], 10)).eval()


def plain_loop(files: list[str], output: str, threads: int) -> None:
    """What a user would write: scan, forward pass, EL2N, write."""
    torch.set_num_threads(threads)
    network = model()
    scores = []
    for path in files:
        for batch in pq.ParquetFile(path).iter_batches(PLAIN_BATCH, columns=["img", "label"]):
            column = batch.column(0)
            start = int(np.frombuffer(column.buffers()[1], np.int32)[column.offset])
            pixels = np.frombuffer(column.buffers()[2], np.uint8, len(column) * 784, start)
            inputs = torch.from_numpy(pixels.reshape(-1, 784)).float() / 255
            labels = torch.from_numpy(batch.column(1).to_numpy())
            with torch.inference_mode():
                error = torch.softmax(network(inputs), 1)
                error[torch.arange(len(labels)), labels] -= 1
                scores.append(error.norm(dim=1).numpy())
    pq.write_table(pa.table({"el2n": np.concatenate(scores)}), output)


def run_plain(corpus: str, folder: str, processes: int) -> None:
    """Plain loops in fresh processes, each with its share of the files and of the cores."""
    files = sorted(map(str, Path(corpus).glob("*.parquet")))
    threads = max(1, torch.get_num_threads() // processes)
    running = []
    for index in range(processes):
        share = files[index::processes]
        if share:
            arguments = ["--plain", f"{folder}/{index}.parquet", str(threads), *share]
            running.append(subprocess.Popen([sys.executable, __file__, *arguments]))
    if any(process.wait() for process in running):
        raise RuntimeError("a plain loop failed")


def run_ours(corpus: str, checkpoint: str, folder: str) -> None:
    """The scoring stage in a fresh process, with a Ray of its own."""
    subprocess.run([sys.executable, __file__, "--ours", corpus, checkpoint, folder], check=True)


def score_here(corpus: str, checkpoint: str, folder: str) -> None:
    """Start Ray and run the scoring stage, nothing else."""
    from dataprune_ray.cluster import cluster, pool_of  # noqa: PLC0415 - this process only
    from dataprune_ray.config import PruneConfig  # noqa: PLC0415
    from dataprune_ray.io import open_corpus  # noqa: PLC0415
    from dataprune_ray.planning import judges, score_plan  # noqa: PLC0415
    from dataprune_ray.scoring import score  # noqa: PLC0415
    from dataprune_ray.understanding import understand  # noqa: PLC0415

    config = PruneConfig.from_flat(
        {
            "input": corpus,
            "output": folder,
            "num_classes": 10,
            "model": "mlp",
            "checkpoint": [checkpoint],
        }
    )
    opened = open_corpus(config.corpus)
    with cluster(None) as found:
        plan = score_plan(config, understand(config, opened), judges(config, ()), folder)
        score(plan, pool_of(config.score, found), lambda _: None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_400_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        full = make_corpus(root / "full", options.rows, FILES)
        quarter = make_corpus(root / "quarter", options.rows // 4, FILES)
        checkpoint = str(root / "mlp.pt")
        torch.save(model().state_dict(), checkpoint)
        cores = torch.get_num_threads()

        def fresh() -> str:
            return tempfile.mkdtemp(dir=root)

        sides: dict[str, Any] = {}
        for size, corpus in (("full", full), ("quarter", quarter)):
            sides[f"ours_{size}"] = lambda c=corpus: run_ours(c, checkpoint, fresh())
            sides[f"threads_{size}"] = lambda c=corpus: run_plain(c, fresh(), 1)
            sides[f"processes_{size}"] = lambda c=corpus: run_plain(c, fresh(), cores)
        started = time.perf_counter()
        seconds, _ = interleaved(sides, dict.fromkeys(sides, options.repeats))
        names = ("ours", "threads", "processes")
        per_row = {
            n: (seconds[f"{n}_full"] - seconds[f"{n}_quarter"]) / (0.75 * options.rows)
            for n in names
        }
        fixed = {n: seconds[f"{n}_full"] - per_row[n] * options.rows for n in names}
        plain = min(names[1:], key=per_row.__getitem__)
        with_startup = {
            size: min(seconds[f"{n}_{size}"] for n in names[1:]) / seconds[f"ours_{size}"]
            for size in ("full", "quarter")
        }
        report(
            "scoring",
            rows=options.rows,
            repeats=options.repeats,
            better_plain_loop=plain,
            rows_per_second_ours=1 / per_row["ours"],
            rows_per_second_plain=1 / per_row[plain],
            ratio_without_startup=per_row[plain] / per_row["ours"],
            ratio_with_startup=with_startup["full"],
            ratio_with_startup_quarter=with_startup["quarter"],
            startup_seconds_ours=fixed["ours"],
            startup_seconds_plain=fixed[plain],
            seconds={name: round(value, 2) for name, value in seconds.items()},
            benchmark_seconds=time.perf_counter() - started,
            **machine(),
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--plain"]:
        plain_loop(sys.argv[4:], sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1:2] == ["--ours"]:
        score_here(*sys.argv[2:5])
    else:
        main()
