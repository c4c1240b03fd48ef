"""The catalogue says of every entry what its registry declares, without Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from dataprune_ray import catalogue
from dataprune_ray.metrics import METRICS
from dataprune_ray.strategies import STRATEGIES

ROOT = Path(__file__).parents[2]


def test_every_entry_is_listed_with_what_it_declares():
    found = catalogue.catalogue()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert {entry["name"] for entry in found["metrics"]} == set(METRICS)
    assert {entry["name"] for entry in found["strategies"]} == set(STRATEGIES)
    el2n = next(entry for entry in found["metrics"] if entry["name"] == "el2n")
    assert el2n["needs"] == ["labels", "logits"]
    assert (el2n["polarity"], el2n["noise_end"], el2n["cost"]) == ("high", "high", "forward pass")
    assert el2n["range"] == [0.0, 2**0.5]
    loss = next(entry for entry in found["metrics"] if entry["name"] == "loss")
    assert loss["range"] == [0.0, None]


def test_the_text_has_a_row_a_summary_and_an_advice_for_each():
    for registry, part in zip(
        (METRICS, STRATEGIES), catalogue.text().split("\nStrategies"), strict=True
    ):
        lines = part.splitlines()
        for entry in registry.values():
            row = next(i for i, text in enumerate(lines) if text.startswith(f"  {entry.name} "))
            assert lines[row + 1].strip() == entry.summary
            assert lines[row + 2].strip() == entry.advice
    assert "0 to inf" in catalogue.text()
    assert all(entry.advice.startswith("not ") for entry in STRATEGIES.values())


def test_the_job_lists_without_ray():
    code = (
        "import sys; sys.argv = ['prune.py', '--list', '--json']; sys.path.insert(0, 'jobs');"
        "import prune; code = prune.main();"
        "assert not any(name == 'ray' or name.startswith('ray.') for name in sys.modules);"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ, capture_output=True, check=True
    )
    *shown, last = done.stdout.decode().splitlines()
    assert json.loads(last) == {"exit_code": 0, **catalogue.catalogue()}
    assert "\n".join(shown) == catalogue.text()
