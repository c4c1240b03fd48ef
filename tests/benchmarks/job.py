"""The whole prune job against the script that a user would write instead, start-up included.

Both train three proxies for ten epochs (on 60,000 rows at most), score every row by mean EL2N, keep
the half of highest score and write it as Parquet. The script reads everything into memory and uses
all cores by torch's threads. Ratios are plain / ours: larger is better for ours. Where the seconds
of our job go is reported by stage; ``scored_after`` is when its first score file was there.

    python tests/benchmarks/job.py [--rows 60000 1000000] [--repeats 5]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import interleaved, machine, peak_of_tree_mb, report
from scoring import make_corpus, model

JOB = Path(__file__).parents[2] / "jobs" / "prune.py"
FILES, KEEP = 8, 0.5
SEEDS, EPOCHS, BATCH, MOST_TRAINED = 3, 10, 128, 60_000


def plain(corpus: str, output: str) -> int:
    """Read, train, score, cut, write; how many rows are kept."""
    import torch  # noqa: PLC0415 - timed with the whole process
    from torch.nn.functional import cross_entropy, softmax  # noqa: PLC0415

    table = pq.read_table(corpus)
    pixels = np.concatenate(
        [np.frombuffer(b"".join(c.to_pylist()), np.uint8) for c in table["img"].chunks]
    ).reshape(-1, 784)
    labels = torch.from_numpy(table["label"].to_numpy().copy())
    inputs = torch.from_numpy(pixels)
    scores = torch.zeros(len(labels))
    chosen = torch.randperm(len(labels))[:MOST_TRAINED]
    x, y = inputs[chosen], labels[chosen]
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        network = model().train()
        optimiser = torch.optim.Adam(network.parameters(), 1e-3)
        for _ in range(EPOCHS):
            for index in torch.randperm(len(y)).split(BATCH):
                optimiser.zero_grad()
                cross_entropy(network(x[index].float() / 255), y[index]).backward()
                optimiser.step()
        with torch.inference_mode():
            for first in range(0, len(labels), 1024):
                part = slice(first, first + 1024)
                error = softmax(network(inputs[part].float() / 255), 1)
                error[torch.arange(len(error)), labels[part]] -= 1
                scores[part] += error.norm(dim=1) / SEEDS
    quota = int(len(scores) * KEEP)
    kept = np.zeros(len(scores), bool)
    kept[np.argpartition(scores.numpy(), len(scores) - quota)[len(scores) - quota :]] = True
    pq.write_table(table.filter(pa.array(kept)), Path(output) / "kept.parquet")
    return quota


def run_plain(corpus: str, output: str) -> subprocess.Popen[bytes]:
    """The script in a process of its own."""
    return subprocess.Popen([sys.executable, __file__, "--plain", corpus, output])


def run_ours(corpus: str, output: str, rows: int) -> subprocess.Popen[bytes]:
    """The job in a process of its own."""
    flags = {
        "input": corpus,
        "output": output,
        "model": "mlp",
        "num-classes": 10,
        "keep": KEEP,
        "proxy-seeds": SEEDS,
        "proxy-epochs": EPOCHS,
        "proxy-batch-size": BATCH,
        "proxy-fraction": min(1.0, MOST_TRAINED / rows),
    }
    arguments = [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
    return subprocess.Popen([sys.executable, str(JOB), *arguments], stdout=subprocess.DEVNULL)


def finished(process: subprocess.Popen[bytes], peaks: list[float]) -> None:
    """Wait for a side, and note the memory of all its processes together."""
    peaks.append(peak_of_tree_mb(process))
    if process.returncode:
        raise RuntimeError(f"{process.args!r} failed")


def compare(root: Path, rows: int, repeats: int) -> None:
    """Both sides, in turn."""
    corpus = make_corpus(root / f"rows-{rows}", rows, FILES)
    outputs: list[str] = []
    first_scores: list[float] = []
    peaks: dict[str, list[float]] = {"ours": [], "plain": []}

    def fresh() -> str:
        outputs.append(tempfile.mkdtemp(dir=root))
        return outputs[-1]

    def ours() -> None:
        started, output = time.time(), fresh()
        finished(run_ours(corpus, output, rows), peaks["ours"])
        scored = (path.stat().st_mtime for path in Path(output, "scores").glob("*.parquet"))
        first_scores.append(min(scored) - started)

    seconds, _ = interleaved(
        {
            "ours": ours,
            "plain": lambda: finished(run_plain(corpus, fresh()), peaks["plain"]),
        },
        dict.fromkeys(peaks, repeats),
    )
    manifest = json.loads((Path(outputs[-2]) / "manifest.json").read_bytes())
    report(
        "job",
        rows=rows,
        repeats=repeats,
        kept_ours=manifest["rows"]["kept"],
        kept_plain=pq.read_metadata(Path(outputs[-1]) / "kept.parquet").num_rows,
        ours_s=seconds["ours"],
        plain_s=seconds["plain"],
        plain_over_ours=seconds["plain"] / seconds["ours"],
        ours_mb=max(peaks["ours"]),
        plain_mb=max(peaks["plain"]),
        scored_after_s=statistics.median(first_scores),
        seconds_by_stage={k: round(v, 2) for k, v in manifest["seconds"].items()},
        **machine(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[60_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for rows in options.rows:
            compare(Path(name), rows, options.repeats)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--plain"]:
        plain(*sys.argv[2:4])
    else:
        main()
