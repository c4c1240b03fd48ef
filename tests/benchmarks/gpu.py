"""Scoring on a GPU against the bare forward rate on data that lies on it already.

ResNet-50 and ViT-B/16 at 224 pixels, from JPEG and from stored pixels; an MLP over rows of 64
floats; ten checkpoints in one pass against ten passes. One worker in one process, one JSON line
per case: ``share_of_bare`` is what reading, decoding and moving rows leave of the bare rate,
``gpu_busy`` the share of the time in which the GPU had work in hand.

    python tests/benchmarks/gpu.py
    python tests/benchmarks/gpu.py --device cpu --tiny   # the same code, small
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from common import machine, report
from PIL import Image

from dataprune_ray.clock import Scoring
from dataprune_ray.config import PruneConfig
from dataprune_ray.engine import Engine
from dataprune_ray.io import open_corpus
from dataprune_ray.models import build_model, core_of
from dataprune_ray.planning import judges, score_plan
from dataprune_ray.plans import Judges, ScorePlan, scoring_of
from dataprune_ray.understanding import understand

CLASSES = 10
WIDTH = 64
PIXELS = 224


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    images: int
    pixels: int
    rows: int
    checkpoints: int
    models: tuple[str, ...]
    bare_seconds: float


FULL = Sizes(20_000, PIXELS, 10_000_000, 10, ("torchvision:resnet50", "torchvision:vit_b_16"), 5.0)
TINY = Sizes(48, 32, 3_000, 3, ("small_cnn",), 0.05)


def write(folder: Path, schema: pa.Schema, rows: int, column: Any, group: int) -> str:
    """A corpus of one file; ``column`` makes the feature column of so many rows."""
    folder.mkdir()
    labels = np.random.default_rng(1)
    with pq.ParquetWriter(folder / "a.parquet", schema) as writer:
        for first in range(0, rows, group):
            size = min(group, rows - first)
            table = pa.table([column(size), labels.integers(0, CLASSES, size)], schema=schema)
            writer.write_table(table)
    return str(folder)


def make_images(folder: Path, sizes: Sizes, *, jpeg: bool) -> str:
    """Smooth random images, encoded or as raw pixels; a few hundred that repeat."""
    rng = np.random.default_rng(0)
    side = sizes.pixels
    small = rng.integers(0, 256, (256, 8, 8, 3), np.uint8)
    pool = [np.asarray(Image.fromarray(s).resize((side, side))) for s in small]
    payloads = [encoded(pixels) if jpeg else pixels.tobytes() for pixels in pool]
    note = {b"dataprune": f'{{"dtype": "uint8", "shape": [{side}, {side}, 3]}}'.encode()}
    field = pa.field("img", pa.binary(), metadata=None if jpeg else note)
    schema = pa.schema([field, pa.field("label", pa.int64())])

    def column(size: int) -> pa.Array:
        return pa.array([payloads[i] for i in rng.integers(0, len(payloads), size)], pa.binary())

    return write(folder, schema, sizes.images, column, 512)


def encoded(pixels: npt.NDArray[np.uint8]) -> bytes:
    """One image as JPEG."""
    stored = io.BytesIO()
    Image.fromarray(pixels).save(stored, "JPEG", quality=90)
    return stored.getvalue()


def make_rows(folder: Path, sizes: Sizes) -> str:
    """Rows of floats."""
    rng = np.random.default_rng(0)
    kind = pa.list_(pa.float32(), WIDTH)
    schema = pa.schema([pa.field("x", kind), pa.field("label", pa.int64())])

    def column(size: int) -> pa.Array:
        values = pa.array(rng.standard_normal(size * WIDTH, np.float32))
        return pa.FixedSizeListArray.from_arrays(values, WIDTH)

    return write(folder, schema, sizes.rows, column, 65_536)


def plan_of(corpus: str, model: str, device: str, folder: Path, checkpoints: int) -> ScorePlan:
    """How a corpus is scored with fresh weights."""
    values: dict[str, Any] = {
        "input": corpus,
        "output": f"{folder}/out",
        "model": model,
        "num_classes": CLASSES,
        "mean": [] if model.startswith("mlp") else [0.5],
        "std": [] if model.startswith("mlp") else [0.25],
        "num_gpus": float(device == "cuda"),
    }
    config = PruneConfig.from_flat(values)
    understanding = understand(config, open_corpus(config.corpus))
    paths = []
    for seed in range(checkpoints):
        torch.manual_seed(seed)
        path = f"{folder}/{model.replace(':', '-')}-{seed}.pt"
        if not Path(path).exists():
            torch.save(core_of(build_model(understanding.model, CLASSES)).state_dict(), path)
        paths.append(path)
    config = config.replace(checkpoint=paths)
    return score_plan(config, understanding, judges(config, ()), tempfile.mkdtemp(dir=folder))


def timed(engine: Engine) -> Scoring:
    """Score every fragment and commit it."""
    counts = [engine.commit(fragment) for fragment in engine.plan.rows.fragments]
    scoring = scoring_of(counts)
    if scoring is None or any(count.bad for count in counts):
        raise RuntimeError("the benchmark's corpus could not be scored")
    return scoring


def bare_rate(engine: Engine, seconds: float) -> float:
    """Rows per second of the models alone, on a batch that is on the device already."""
    forward, plan = engine.forward, engine.plan
    rows = forward.sizes.rows
    pixels = plan.rows.features.modality == "image"
    shape = (rows, *plan.rows.features.shape)
    values = np.zeros(shape, np.uint8 if pixels else np.float32)
    inputs, _ = forward.prepared(values, np.zeros(rows, np.int64), rows)
    path = forward.judges.models[0]

    def wait() -> None:
        if forward.lane.device.type == "cuda":
            torch.cuda.synchronize()

    with torch.no_grad():
        for _ in range(3):
            forward.see(path, inputs)
        wait()
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            for _ in range(4):
                forward.see(path, inputs)
            wait()
            done += 4 * rows
    return done / (time.perf_counter() - began)


def shown(name: str, scoring: Scoring, bare: float, **more: Any) -> None:
    """One case's line; rates are rows times checkpoints."""
    report(
        name,
        rows=scoring.rows,
        rows_per_second=scoring.rate,
        bare_rows_per_second=bare,
        share_of_bare=scoring.rate / bare,
        gpu_busy=scoring.busy,
        batch_rows=list(scoring.batch_rows),
        bottleneck=scoring.bottleneck,
        **more,
        **machine(),
    )


def one(name: str, plan: ScorePlan, sizes: Sizes, device: str) -> None:
    """A model over a corpus."""
    engine = Engine(plan)
    bare = bare_rate(engine, sizes.bare_seconds)
    shown(name, timed(engine), bare, device=device, model=plan.model.name)


def many(plan: ScorePlan, sizes: Sizes, device: str, folder: Path) -> None:
    """Several checkpoints in one pass, and a pass for each of them."""
    engine = Engine(plan)
    bare = bare_rate(engine, sizes.bare_seconds)
    together = timed(engine)
    passes = 0.0
    for path in plan.judges.models:
        other = replace(plan, judges=Judges((path,)), folder=tempfile.mkdtemp(dir=folder))
        passes += timed(Engine(other)).spent.total
    shown(
        "gpu checkpoints",
        together,
        bare / len(plan.judges.models),
        device=device,
        model=plan.model.name,
        checkpoints=len(plan.judges.models),
        seconds_one_pass=together.spent.total,
        seconds_one_pass_each=passes,
        times_faster=passes / together.spent.total,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a few rows and small models")
    options = parser.parse_args()
    if options.device == "cpu" and not options.tiny:
        sys.stderr.write("--device cpu is for trying the code: add --tiny\n")
        return 2
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.stderr.write(
            "no CUDA device on this machine: run it where there is one, or try the code with "
            "--device cpu --tiny\n"
        )
        return 2
    sizes = TINY if options.tiny else FULL
    torch.set_num_threads(1)  # as in a scoring worker
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpora = {
            "jpeg": make_images(folder / "jpeg", sizes, jpeg=True),
            "pixels": make_images(folder / "pixels", sizes, jpeg=False),
        }
        for model in sizes.models:
            for kind, corpus in corpora.items():
                plan = plan_of(corpus, model, options.device, folder, 1)
                one(f"gpu {kind}", plan, sizes, options.device)
        rows = make_rows(folder / "rows", sizes)
        one("gpu rows", plan_of(rows, "mlp", options.device, folder, 1), sizes, options.device)
        plan = plan_of(rows, "mlp", options.device, folder, sizes.checkpoints)
        many(plan, sizes, options.device, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
