"""Kill and rerun the prune job at many random moments: python tests/faults/kill_loop.py.

Every output that comes out is compared with that of an undisturbed run; the first difference ends
the loop with an error and leaves its folder.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path

from harness import Job, assert_same, killed_rounds, make_corpus

MIX = ("start", "scores", "scores", "scores", "decisions", "data", "data", "manifest")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200, help="kills in all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    folder = Path(tempfile.mkdtemp(prefix="dpk", dir="/tmp"))
    environment = {"RAY_TMPDIR": str(folder)}
    corpus = make_corpus(folder)
    reference, log = folder / "reference", folder / "loop.log"
    assert Job(corpus.command(reference), log, environment).wait() == 0, log.read_text()
    done = number = 0
    stages_hit: Counter[str] = Counter()
    while done < options.rounds:
        size = min(rng.randint(3, 8), options.rounds - done)
        stages = sorted(rng.choices(MIX, k=size), key=MIX.index)
        output = folder / f"run-{number}"
        kills, _ = killed_rounds(corpus, output, log, stages, rng.randrange(2**32), environment)
        stages_hit.update(stage for stage, _ in kills)
        assert_same(corpus, output, reference)
        shutil.rmtree(output)
        done, number = done + len(kills), number + 1
        print(f"{done} kills {dict(stages_hit)}, {number} runs: all equal", flush=True)  # noqa: T201
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
