"""EL2N of MNIST-sized rows: the scoring stage against what a user would write over the same files.

`threads` and `processes` are plain loops: they scan the Parquet files with pyarrow, run the model
with torch and write the scores to Parquet, in one process with a thread per core, or in one
single-threaded process per core. `loader` feeds the model from a torch DataLoader with a worker
per core. `ray_data` is `ray.data.read_parquet` into a pool of one actor per core. Start-up
(imports, Ray, workers) is shown apart: each side also scores a quarter of the rows, and what the
other three quarters add is what rows alone cost. Ratios are reference / ours: larger is better.

    python tests/benchmarks/scoring.py [--rows 2400000] [--repeats 5] [--sides threads processes]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from common import interleaved, machine, report, run_alone

from dataprune_ray import starting

HIDDEN = (512, 256, 128)
FILES = 8
PLAIN_BATCH = 1024
REFERENCES = ("threads", "processes", "loader", "ray_data")


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
            inputs = torch.from_numpy(pixels.reshape(-1, 784))
            labels = torch.from_numpy(batch.column(1).to_numpy())
            with torch.inference_mode():
                scores.append(el2n(network, inputs, labels))
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


def loader_loop(corpus: str, output: str) -> None:
    """What a user of torch's DataLoader would write: workers read, this process runs the model."""
    from torch.utils.data import DataLoader, IterableDataset, get_worker_info  # noqa: PLC0415

    class Rows(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            info = get_worker_info()
            share = slice(info.id, None, info.num_workers) if info else slice(None)
            for path in sorted(Path(corpus).glob("*.parquet"))[share]:
                for batch in pq.ParquetFile(path).iter_batches(PLAIN_BATCH):
                    pixels = np.frombuffer(b"".join(batch["img"].to_pylist()), np.uint8)
                    labels = batch["label"].to_numpy().copy()
                    yield torch.from_numpy(pixels.reshape(-1, 784).copy()), torch.from_numpy(labels)

    network = model()
    scores = []
    loader = DataLoader(Rows(), batch_size=None, num_workers=torch.get_num_threads())
    with torch.inference_mode():
        for pixels, labels in loader:
            scores.append(el2n(network, pixels, labels))
    pq.write_table(pa.table({"el2n": np.concatenate(scores)}), output)


def el2n(network: torch.nn.Module, pixels: torch.Tensor, labels: torch.Tensor) -> Any:
    """Distance of the probabilities (B, 10) from the one-hot label: float32 (B,)."""
    error = torch.softmax(network(pixels.float() / 255), 1)
    error[torch.arange(len(labels)), labels] -= 1
    return error.norm(dim=1).numpy()


class RayDataScorer:
    """The actor that a user of Ray Data would write."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.network = model()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Scores of a batch."""
        pixels = np.frombuffer(b"".join(batch["img"].to_pylist()), np.uint8).reshape(-1, 784)
        labels = torch.from_numpy(batch["label"].to_numpy().copy())
        with torch.inference_mode():
            return pa.table({"el2n": el2n(self.network, torch.from_numpy(pixels.copy()), labels)})


def ray_data_job(corpus: str, output: str) -> None:
    """Ray Data's own way from Parquet to Parquet."""
    import ray.data  # noqa: PLC0415 - this process only

    cores = torch.get_num_threads()
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    ray.data.read_parquet(corpus, columns=["img", "label"]).map_batches(
        RayDataScorer,
        batch_size=PLAIN_BATCH,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=cores),
        num_cpus=0.5,
    ).write_parquet(output)
    ray.shutdown()


def score_here(corpus: str, checkpoint: str, folder: str, network: str = "mlp") -> None:
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
            "model": network,
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
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sides", nargs="+", choices=REFERENCES, default=list(REFERENCES))
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

        alone = partial(run_alone, __file__)
        sides: dict[str, Any] = {}
        for size, corpus in (("full", full), ("quarter", quarter)):
            references = {
                "threads": lambda c=corpus: run_plain(c, fresh(), 1),
                "processes": lambda c=corpus: run_plain(c, fresh(), cores),
                "loader": lambda c=corpus: run_alone(
                    __file__, "--loader", c, f"{fresh()}/0.parquet"
                ),
                "ray_data": lambda c=corpus: alone("--ray-data", c, fresh()),
            }
            sides[f"ours_{size}"] = lambda c=corpus: run_alone(
                __file__, "--ours", c, checkpoint, fresh()
            )
            sides |= {f"{name}_{size}": references[name] for name in options.sides}
        started = time.perf_counter()
        seconds, _ = interleaved(sides, dict.fromkeys(sides, options.repeats))
        names = ("ours", *options.sides)
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
            best_reference=plain,
            rows_per_second={name: round(1 / value) for name, value in per_row.items()},
            ratio_without_startup=per_row[plain] / per_row["ours"],
            ratio_with_startup=with_startup["full"],
            ratio_with_startup_quarter=with_startup["quarter"],
            startup_seconds={name: round(value, 2) for name, value in fixed.items()},
            seconds={name: round(value, 2) for name, value in seconds.items()},
            benchmark_seconds=time.perf_counter() - started,
            **machine(),
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--plain"]:
        plain_loop(sys.argv[4:], sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1:2] == ["--loader"]:
        loader_loop(*sys.argv[2:4])
    elif sys.argv[1:2] == ["--ray-data"]:
        ray_data_job(*sys.argv[2:4])
    elif sys.argv[1:2] == ["--ours"]:
        starting.beside_imports("dataprune_ray.scoring", None)
        score_here(*sys.argv[2:5])
    else:
        main()
