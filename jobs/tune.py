"""Find the strategy that serves a corpus best, at --keep or at the smallest of --keeps.

Candidates are cut from one score table, trained on them, judged on rows held out, and halved.
Random is always among them and wins ties. Writes what was tried and why it chose (tune.json), and
settings for jobs/prune.py --config (best.yaml). Ends with exit code 3 where no keep passes.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from dataprune_ray import cli, summary
from dataprune_ray.config import PruneConfig
from dataprune_ray.io.filesystems import redact


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return the process's exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = shlex.join(["python", "jobs/tune.py", *map(redact, arguments)])

    def body() -> Mapping[str, Any]:
        config, _ = cli.parse(PruneConfig, arguments, str(__doc__), {"strategy": "auto"})
        from dataprune_ray import starting  # noqa: PLC0415 - Ray's imports take seconds
        from dataprune_ray.corpora import make_digits  # noqa: PLC0415

        if not config.corpus.input:
            config = config.replace(input=str(make_digits(cli.DIGITS)))
        if not config.write.output:
            config = config.replace(output=cli.default_output("tuned", config.corpus.input))
        starting.beside_imports("dataprune_ray.pipeline", config.run.address)
        from dataprune_ray.pipeline import tune  # noqa: PLC0415

        found = tune(config, command)
        print(summary.tuned_text(found))  # noqa: T201
        return {name: found[name] for name in summary.TUNED}

    return cli.run(body, as_json=lambda: "--json" in arguments)


if __name__ == "__main__":
    sys.exit(main())
