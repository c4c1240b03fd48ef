"""Make a corpus that the other jobs read, from the data at hand."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dataprune_ray import cli
from dataprune_ray.corpora import MadeCorpus, make_corpus
from dataprune_ray.corpora.config import MakeCorpusConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return the process's exit code."""
    options: list[argparse.Namespace] = []

    def body() -> Mapping[str, Any]:
        config, parsed = cli.parse(MakeCorpusConfig, argv, str(__doc__), {})
        options.append(parsed)
        made = make_corpus(config)
        if not parsed.json:
            print(_text(made))  # noqa: T201
        return asdict(made)

    return cli.run(body, as_json=lambda: bool(options) and options[0].json)


def _text(made: MadeCorpus) -> str:
    state = "made" if made.made else "is there already, with the same settings: nothing to do"
    lines = [f"{made.output} {state} (layout {made.layout})"]
    lines += [f"  {made.output}/{split}: {rows:,} rows" for split, rows in made.splits.items()]
    lines += [f"  note: {note}" for note in made.notes]
    return "\n".join([*lines, "next:", f"  {made.next_command}"])


if __name__ == "__main__":
    sys.exit(main())
