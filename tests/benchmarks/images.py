"""EL2N of JPEG images by a ResNet-20: the scoring stage against plain loops over the same files.

CIFAR-10 and its checkpoint from the folder that DATAPRUNE_DATA names. The plain loops decode with
Pillow and run the model with torch, in one process with a thread per core or in one
single-threaded process per core. Start-up is shown apart, as in ``scoring.py``: each side also
scores a quarter of the rows. Ratios are plain / ours: larger is better.

    python tests/benchmarks/images.py [--files 4] [--repeats 5]
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from common import interleaved, machine, report, run_alone
from PIL import Image
from scoring import el2n, score_here

from dataprune_ray import starting

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
BATCH = 256


def network(checkpoint: str) -> torch.nn.Module:
    """The checkpoint's ResNet-20."""
    from cifar_resnet import ResNet20  # noqa: PLC0415 - found by the path above

    found = ResNet20(10)
    stored = torch.load(checkpoint, weights_only=True, map_location="cpu")["state_dict"]
    found.load_state_dict({name.removeprefix("module."): value for name, value in stored.items()})
    return found.eval()


def plain_loop(files: list[str], checkpoint: str, output: str, threads: int) -> None:
    """What a user would write: scan, decode, forward pass, EL2N, write."""
    torch.set_num_threads(threads)
    model = network(checkpoint)
    scores = []
    for path in files:
        for batch in pq.ParquetFile(path).iter_batches(BATCH, columns=["img", "label"]):
            payloads = [image["bytes"] for image in batch["img"].to_pylist()]
            images = [np.asarray(Image.open(io.BytesIO(b)).convert("RGB")) for b in payloads]
            pixels = torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2))
            labels = torch.from_numpy(batch["label"].to_numpy().copy())
            with torch.inference_mode():
                scores.append(el2n(model, pixels, labels))
    pq.write_table(pa.table({"el2n": np.concatenate(scores)}), output)


def run_plain(corpus: str, checkpoint: str, folder: str, processes: int) -> None:
    """Plain loops in fresh processes, each with its share of the files and of the cores."""
    files = sorted(map(str, Path(corpus).glob("*.parquet")))
    threads = max(1, torch.get_num_threads() // processes)
    running = []
    for index in range(processes):
        if share := files[index::processes]:
            told = [checkpoint, f"{folder}/{index}.parquet", str(threads), *share]
            running.append(subprocess.Popen([sys.executable, __file__, "--plain", *told]))
    if any(process.wait() for process in running):
        raise RuntimeError("a plain loop failed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=4, help="of 6,250 rows, at most 8")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if options.files < 2:
        parser.error("--files: a quarter of one file is no file; give 4 or 8")
    if "DATAPRUNE_DATA" not in os.environ:
        sys.exit("images.py: set DATAPRUNE_DATA to the folder that holds cifar10/ and weights/")
    data = Path(os.environ["DATAPRUNE_DATA"])
    checkpoint = str(data / "weights" / "cifar10-resnet20.th")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        corpora = {"full": options.files, "quarter": max(1, options.files // 4)}
        rows = {}
        for size, files in corpora.items():
            (root / size).mkdir()
            for path in sorted((data / "cifar10").glob("train-*.parquet"))[:files]:
                shutil.copyfile(path, root / size / path.name)
            rows[size] = pq.ParquetDataset(root / size).read(["label"]).num_rows

        def fresh() -> str:
            return tempfile.mkdtemp(dir=root)

        sides: dict[str, Callable[[], Any]] = {}
        for size in corpora:
            corpus = str(root / size)
            sides[f"ours_{size}"] = lambda c=corpus: run_alone(
                __file__, "--ours", c, checkpoint, fresh()
            )
            sides[f"threads_{size}"] = lambda c=corpus: run_plain(c, checkpoint, fresh(), 1)
            sides[f"processes_{size}"] = lambda c=corpus: run_plain(
                c, checkpoint, fresh(), torch.get_num_threads()
            )
        seconds, _ = interleaved(sides, dict.fromkeys(sides, options.repeats))
    names = ("ours", "threads", "processes")
    more = rows["full"] - rows["quarter"]
    per_row = {n: (seconds[f"{n}_full"] - seconds[f"{n}_quarter"]) / more for n in names}
    best = min(names[1:], key=per_row.__getitem__)
    plain = min(seconds[f"{n}_full"] for n in names[1:])
    report(
        "images",
        rows=rows["full"],
        repeats=options.repeats,
        best_reference=best,
        rows_per_second={n: round(1 / value) for n, value in per_row.items()},
        ratio_without_startup=per_row[best] / per_row["ours"],
        ratio_with_startup=plain / seconds["ours_full"],
        startup_seconds={
            n: round(seconds[f"{n}_full"] - per_row[n] * rows["full"], 2) for n in names
        },
        seconds={name: round(value, 2) for name, value in seconds.items()},
        **machine(),
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--plain"]:
        plain_loop(sys.argv[5:], sys.argv[2], sys.argv[3], int(sys.argv[4]))
    elif sys.argv[1:2] == ["--ours"]:
        starting.beside_imports("dataprune_ray.scoring", None)
        score_here(*sys.argv[2:5], network="cifar_resnet:resnet20")
    else:
        main()
