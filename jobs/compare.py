"""Retrain on the full, the pruned and equally large random sets: did pruning cost anything?

Name the output of jobs/prune.py with --pruned, and a test corpus with --test; without one a share
of the corpus is held out, or with --folds each part in turn, and pruned anew without it. Ends
with exit code 3 where the gate (--max-drop, --beat-random) fails.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from dataprune_ray import cli, summary
from dataprune_ray.config import CompareConfig
from dataprune_ray.io.filesystems import redact

DEFAULT = "pruned/digits"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return the process's exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = shlex.join(["python", "jobs/compare.py", *map(redact, arguments)])
    outcome: dict[str, Any] = {}

    def body() -> Mapping[str, Any]:
        config, _ = cli.parse(CompareConfig, arguments, str(__doc__), {"pruned": DEFAULT})
        from dataprune_ray import starting  # noqa: PLC0415 - Ray's imports take seconds

        starting.beside_imports("dataprune_ray.pipeline", config.run.address)
        from dataprune_ray.concluding import check_gate  # noqa: PLC0415
        from dataprune_ray.pipeline import compare  # noqa: PLC0415

        found = compare(config, command)
        outcome.update(summary.comparison_for_scheduler(found))
        print(summary.comparison_text(found))  # noqa: T201
        check_gate(found)
        return outcome

    return cli.run(body, as_json=lambda: "--json" in arguments, outcome=outcome)


if __name__ == "__main__":
    sys.exit(main())
