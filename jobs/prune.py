"""Score a training corpus, keep the rows that matter, write them as Parquet with a report.

Without arguments the digits that scikit-learn ships are pruned on this machine.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from dataprune_ray import catalogue, cli, summary
from dataprune_ray.config import PruneConfig
from dataprune_ray.io.filesystems import exists, join, redact
from dataprune_ray.io.output import MANIFEST
from dataprune_ray.status import status


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return the process's exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = shlex.join(["python", "jobs/prune.py", *map(redact, arguments)])
    as_json = "--json" in arguments
    outcome: dict[str, Any] = {}

    def body() -> Mapping[str, Any]:
        config, _ = cli.parse(PruneConfig, arguments, str(__doc__), {})
        if config.run.list:
            print(catalogue.text())  # noqa: T201
            return catalogue.catalogue()
        if config.run.status is not None:
            found = status(config.run.status)
            print(found.text())  # noqa: T201
            return found.to_json()
        if config.run.explain:
            return _explain(config)
        # What asks about a run, for help or by a wrong flag does not wait for Ray's imports.
        from dataprune_ray import starting  # noqa: PLC0415
        from dataprune_ray.corpora import make_digits  # noqa: PLC0415

        if not config.corpus.input:
            config = config.replace(input=str(make_digits(cli.DIGITS)))
        if not config.write.output and not config.run.dry_run:
            config = config.replace(output=cli.default_output("pruned", config.corpus.input))
        if config.write.overwrite or not exists(join(config.write.output, MANIFEST)):
            starting.beside_imports("dataprune_ray.pipeline", config.run.address)
        from dataprune_ray.manifest import check_drift  # noqa: PLC0415
        from dataprune_ray.pipeline import preview, prune  # noqa: PLC0415

        if config.run.dry_run:
            expected = preview(config)
            print(expected.text())  # noqa: T201
            return expected.to_json()
        manifest = prune(config, command)
        print(summary.text(manifest))  # noqa: T201
        outcome.update(summary.for_scheduler(manifest))
        check_drift(manifest)
        return outcome

    return cli.run(body, as_json=lambda: as_json, outcome=outcome)


def _explain(config: PruneConfig) -> Mapping[str, Any]:
    """Print why rows of a finished run were kept or dropped; the same for a scheduler."""
    from dataprune_ray.explaining import explain  # noqa: PLC0415 - the other ways need it not

    source = config.corpus.input or cli.DIGITS
    output = config.write.output or cli.default_output("pruned", source)
    found = explain(output, config.run.explain, scores=config.run.scores)
    print("\n\n".join(row.text() for row in found))  # noqa: T201
    return {"output": redact(output), "explanations": [row.to_json() for row in found]}


if __name__ == "__main__":
    sys.exit(main())
