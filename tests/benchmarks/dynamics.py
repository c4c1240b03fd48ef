"""Training dynamics: all checkpoints of a run in one pass against a pass for each of them.

One process, one thread, MNIST-sized rows: as encoded PNG images and as raw arrays. What one pass
saves is reading and decoding; what is left is the models.

    python tests/benchmarks/dynamics.py [--rows 4000] [--checkpoints 20] [--repeats 3]
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from common import interleaved, machine, report
from PIL import Image
from scoring import make_corpus, model

from dataprune_ray.config import PruneConfig
from dataprune_ray.engine import Engine
from dataprune_ray.io import open_corpus
from dataprune_ray.planning import judges, score_plan
from dataprune_ray.plans import ScorePlan
from dataprune_ray.understanding import understand


def make_images(folder: Path, rows: int) -> str:
    """PNG images of smooth shapes, about as long as MNIST's, and labels."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.arange(28), np.arange(28))
    images = []
    for centre in rng.uniform(8, 20, (rows, 2)):
        far = np.hypot(x - centre[0], y - centre[1])
        stored = io.BytesIO()
        Image.fromarray((255 * np.clip(1.5 - far / 7, 0, 1)).astype(np.uint8)).save(stored, "PNG")
        images.append(stored.getvalue())
    folder.mkdir()
    table = pa.table({"img": images, "label": rng.integers(0, 10, rows)})
    pq.write_table(table, folder / "a.parquet", row_group_size=8192)
    return str(folder)


def plan_of(corpus: str, paths: list[str], metric: str) -> ScorePlan:
    """How the corpus is scored with the checkpoints of a run."""
    values: dict[str, Any] = {
        "input": corpus,
        "output": f"{corpus}-out",
        "num_classes": 10,
        "model": "mlp",
        "metric": [metric],
        "trajectory": paths,
    }
    config = PruneConfig.from_flat(values)
    understanding = understand(config, open_corpus(config.corpus))
    return score_plan(config, understanding, judges(config, ()), f"{corpus}-out")


def score(engine: Engine) -> None:
    """Score every row; nothing is written."""
    plan = engine.plan
    for fragment in plan.rows.fragments:
        for _ in engine.tables(fragment, plan.layout, set()):
            pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--checkpoints", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        paths = []
        for index in range(options.checkpoints):
            paths.append(str(root / f"epoch-{index}.pt"))
            torch.save(model().state_dict(), paths[-1])
        corpora = {
            "png": make_images(root / "png", options.rows),
            "raw": make_corpus(root / "raw", options.rows, 1),
        }
        for kind, corpus in corpora.items():
            together = Engine(plan_of(corpus, paths, "mean_el2n"))
            alone = plan_of(corpus, paths, "el2n")
            single = [
                Engine(replace(alone, judges=replace(alone.judges, models=(path,))))
                for path in paths
            ]
            functions: dict[str, Callable[[], None]] = {
                "one_pass": partial(score, together),
                "passes": lambda engines=single: [score(engine) for engine in engines] and None,
            }
            seconds, _ = interleaved(functions, dict.fromkeys(functions, options.repeats))
            report(
                f"dynamics_{kind}",
                rows=options.rows,
                checkpoints=options.checkpoints,
                seconds_one_pass=seconds["one_pass"],
                seconds_passes=seconds["passes"],
                ratio=seconds["one_pass"] / seconds["passes"],
                **machine(),
            )


if __name__ == "__main__":
    main()
