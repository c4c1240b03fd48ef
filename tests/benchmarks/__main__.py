"""All benchmarks, one line of JSON each: ``python tests/benchmarks``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

NAMES = (
    "cut.py",
    "scoring.py",
    "images.py",
    "job.py",
    "space.py",
    "dynamics.py",
    "writing.py",
    "comparing.py",
    "memory.py",
    "scale.py",
    "costs.py",
)


def main() -> int:
    here = Path(__file__).parent
    codes = [
        subprocess.run([sys.executable, str(here / name)], check=False).returncode for name in NAMES
    ]
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
