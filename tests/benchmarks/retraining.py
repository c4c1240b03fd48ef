"""Does the pruned set train as good a model? Full, pruned and random of the same size, on MNIST.

The article's network (784-512-256-128-10, Adam 1e-3), every arm trained for the same number of
updates (10 epochs of the full set) from the same seeds, tested on MNIST's test set.

    python tests/benchmarks/retraining.py --root DATA [--keep 0.5 0.3] [--seeds 3] [--epochs 10]
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from typing import Any

import torch
from common import machine, report

from dataprune_ray.cluster import cluster
from dataprune_ray.config import PruneConfig
from dataprune_ray.corpora import make_corpus
from dataprune_ray.corpora.config import MakeCorpusConfig
from dataprune_ray.engine import load_model
from dataprune_ray.io import open_corpus
from dataprune_ray.io.rows import RowPlan, read_rows
from dataprune_ray.pipeline import prune
from dataprune_ray.training import TrainPlan, TrainResult, train
from dataprune_ray.understanding import Understanding, complete, understand

BATCH = 128


def understood(source: str) -> tuple[Understanding, int]:
    """What a corpus of MNIST images is, and its rows."""
    config = PruneConfig.from_flat({"input": source, "output": "-", "model": "mlp"})
    corpus = open_corpus(config.corpus)
    return complete(understand(config, corpus)), corpus.rows or 0


def accuracy(result: TrainResult, understanding: Understanding, rows: RowPlan) -> float:
    """Percent of the test rows that a trained model gets right."""
    model = load_model(understanding.model, result.checkpoint).eval()
    right = total = 0
    with torch.inference_mode():
        for fragment in rows.fragments:
            for batch in read_rows(rows, fragment):
                guess = model(torch.from_numpy(batch.values)).argmax(1)
                right += int((guess == torch.from_numpy(batch.targets)).sum())
                total += len(batch.targets)
    return 100 * right / total


def retrain(name: str, source: str, test: RowPlan, options: Any, folder: str) -> list[float]:
    """Test accuracies of one arm, a model per seed."""
    understanding, _ = understood(source)
    plans = [
        TrainPlan(
            rows=understanding.rows,
            model=understanding.model,
            checkpoint=f"{folder}/{name}-{seed}.safetensors",
            seed=1000 + seed,
            updates=options.updates,
            batch_size=BATCH,
        )
        for seed in range(options.seeds)
    ]
    results = train(plans, lambda _: None)
    return [accuracy(result, understanding, test) for result in results]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True, help="folder in which MNIST lies")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5, 0.3])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, cluster(None):
        values = {"source": "torchvision:MNIST", "root": options.root, "layout": "raw"}
        make_corpus(MakeCorpusConfig.from_flat({**values, "output": f"{folder}/mnist"}))
        source = f"{folder}/mnist/train"
        test = understood(f"{folder}/mnist/test")[0].rows
        options.updates = options.epochs * math.ceil(understood(source)[1] / BATCH)
        common = {"input": source, "model": "mlp", "metric": ["el2n", "random"]}
        scored = {**common, "output": f"{folder}/scored"}
        prune(PruneConfig.from_flat(scored))
        arms = {"full": source}
        for keep in options.keep:
            for strategy in ("ratio", "random"):
                name = f"{'el2n' if strategy == 'ratio' else 'random'}_{keep:g}"
                cut = {"output": f"{folder}/{name}", "keep": keep, "strategy": strategy}
                prune(PruneConfig.from_flat({**common, **cut, "scores": f"{folder}/scored/scores"}))
                arms[name] = f"{folder}/{name}/data"
        found = {n: retrain(n, s, test, options, folder) for n, s in arms.items()}
        report(
            "retraining",
            updates=options.updates,
            seeds=options.seeds,
            mean={name: round(statistics.mean(runs), 2) for name, runs in found.items()},
            std={name: round(statistics.stdev(runs), 2) for name, runs in found.items()},
            runs={name: [round(run, 2) for run in runs] for name, runs in found.items()},
            **machine(),
        )


if __name__ == "__main__":
    main()
