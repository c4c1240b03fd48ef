"""Three arms, three seeds on digits: the compare job against a plain PyTorch script.

Both train and test the same nine networks on the same rows for the same updates. ``whole`` times
each as a process of its own, start-up included; ``inside`` the trainings alone, ours in a Ray that
runs already. Ratios are ours / plain: smaller is better.

    python tests/benchmarks/comparing.py [--epochs 10 100] [--repeats 3]
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import interleaved, machine, report
from PIL import Image
from sklearn.datasets import load_digits

SEEDS, BATCH, KEEP = 3, 128, 0.3
JOBS = Path(__file__).parents[2] / "jobs"


def write(folder: Path) -> None:
    """Digits as PNGs in Parquet: 1,437 rows to train on, 360 to test on."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    for name, rows in {"train": order[:1437], "test": order[1437:]}.items():
        images = []
        for row in rows:
            stream = io.BytesIO()
            Image.fromarray((digits.images[row] * 15).astype(np.uint8)).save(stream, "PNG")
            images.append(stream.getvalue())
        (folder / name).mkdir(parents=True)
        table = pa.table({"image": images, "label": digits.target[rows]})
        pq.write_table(table, folder / name / "0.parquet")


def plain(folder: str, epochs: int) -> dict[str, list[float]]:
    """The script that a user would write: percent correct by arm."""
    import torch  # noqa: PLC0415 - timed with the whole process
    from torch import nn  # noqa: PLC0415

    def read(path: str) -> tuple[torch.Tensor, torch.Tensor]:
        table = pq.read_table(path)
        pixels = [np.asarray(Image.open(io.BytesIO(png))) for png in table["image"].to_pylist()]
        x = torch.from_numpy(np.stack(pixels)).float().flatten(1) / 255
        return x, torch.from_numpy(table["label"].to_numpy().copy())

    full, pruned, test = (read(f"{folder}/{p}") for p in ("train", "pruned/data", "test"))
    updates = epochs * math.ceil(len(full[1]) / BATCH)
    found: dict[str, list[float]] = {}
    for arm in ("full", "pruned", "random"):
        for seed in range(SEEDS):
            torch.manual_seed(seed)
            x, y = pruned if arm == "pruned" else full
            if arm == "random":
                chosen = torch.randperm(len(y))[: len(pruned[1])]
                x, y = x[chosen], y[chosen]
            sizes = (64, 512, 256, 128)
            layers: list[nn.Module] = []
            for a, b in itertools.pairwise(sizes):
                layers += [nn.Linear(a, b), nn.ReLU()]
            model = nn.Sequential(*layers, nn.Linear(128, 10))
            optimiser = torch.optim.Adam(model.parameters(), 1e-3)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
            done = 0
            while done < updates:
                for index in torch.randperm(len(y)).split(BATCH)[: updates - done]:
                    optimiser.zero_grad()
                    nn.functional.cross_entropy(model(x[index]), y[index]).backward()
                    optimiser.step()
                    schedule.step()
                    done += 1
            with torch.no_grad():
                right = (model(test[0]).argmax(1) == test[1]).float().mean()
            found.setdefault(arm, []).append(100 * float(right))
    return found


def arguments(folder: str, epochs: int) -> list[str]:
    """Flags of the compare job that make the same trainings."""
    return [
        *("--pruned", f"{folder}/pruned", "--test", f"{folder}/test", "--epochs", str(epochs)),
        *("--arms", "full,pruned,random", "--seeds", str(SEEDS), "--curve-points", "1"),
        *("--max-drop", "100", "--overwrite"),
    ]


def ours(folder: str, epochs: int) -> dict[str, list[float]]:
    """The same by the pipeline, in the Ray that runs."""
    from dataprune_ray import cli  # noqa: PLC0415
    from dataprune_ray.config import CompareConfig  # noqa: PLC0415
    from dataprune_ray.pipeline import compare  # noqa: PLC0415

    config, _ = cli.parse(CompareConfig, arguments(folder, epochs), "", {})
    found: dict[str, list[float]] = {}
    for run in compare(config)["runs"]:
        found.setdefault(run["arm"], []).append(run["score"])
    return found


def process(command: list[str]) -> float:
    """Seconds that a command takes; it must succeed."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    return time.perf_counter() - began


def measure(folder: str, epochs: int, repeats: int) -> dict[str, Any]:
    """Both sides, whole and inside, at one number of epochs."""
    import logging  # noqa: PLC0415

    import ray  # noqa: PLC0415

    whole, _ = interleaved(
        {
            "plain": lambda: process([__file__, "--plain", folder, "--epochs", str(epochs)]),
            "ours": lambda: process([str(JOBS / "compare.py"), *arguments(folder, epochs)]),
        },
        {"plain": repeats, "ours": repeats},
    )
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level=logging.ERROR)
    try:
        ours(folder, 1)  # workers have imported torch
        inside, found = interleaved(
            {"plain": lambda: plain(folder, epochs), "ours": lambda: ours(folder, epochs)},
            {"plain": repeats, "ours": repeats},
        )
    finally:
        ray.shutdown()
    return {
        "epochs": epochs,
        "whole_ratio": whole["ours"] / whole["plain"],
        "inside_ratio": inside["ours"] / inside["plain"],
        "seconds": {
            "whole": {name: round(value, 2) for name, value in whole.items()},
            "inside": {name: round(value, 2) for name, value in inside.items()},
        },
        "accuracy": {
            side: {arm: round(float(np.mean(runs)), 2) for arm, runs in arms.items()}
            for side, arms in found.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plain", metavar="FOLDER", help="run the plain script alone")
    options = parser.parse_args()
    if options.plain:
        print(json.dumps(plain(options.plain, options.epochs[0])))
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        prune = ["--input", f"{folder}/train", "--output", f"{folder}/pruned"]
        process([str(JOBS / "prune.py"), *prune, "--keep", str(KEEP)])
        for epochs in options.epochs:
            report("comparing", **measure(folder, epochs, options.repeats), **machine())


if __name__ == "__main__":
    main()
