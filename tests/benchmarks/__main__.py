"""All benchmarks, one line of JSON each: ``python tests/benchmarks [--root DATA]``.

``--root`` names a folder with MNIST; without it the retraining benchmark is left out.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", help="folder in which MNIST lies")
    options = parser.parse_args()
    here = Path(__file__).parent
    commands = [["cut.py"], ["scoring.py"], ["memory.py"]]
    if options.root:
        commands.append(["retraining.py", "--root", options.root])
    codes = [
        subprocess.run([sys.executable, str(here / name), *arguments], check=False).returncode
        for name, *arguments in commands
    ]
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
