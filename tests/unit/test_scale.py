"""The simulation of large corpora is exact: its small sizes are counted by numpy as well."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from dataprune_ray.cutoff import group_counts, kept_counts

FOLDER = Path(__file__).parents[1] / "benchmarks"
COLUMNS = frozenset({"scores", "hashes", "groups"})


@pytest.fixture(scope="module")
def scale():
    sys.path.insert(0, str(FOLDER))  # for `common`, which benchmarks share
    try:
        spec = importlib.util.spec_from_file_location("scale", FOLDER / "scale.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["scale"] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


def rows_of(table):
    """All rows of a virtual table: scores, hashes and groups."""
    blocks = [table.block(fragment, COLUMNS) for fragment in range(table.fragments)]
    return tuple(
        np.concatenate([getattr(b, name) for b in blocks])
        for name in ("scores", "hashes", "groups")
    )


@pytest.mark.parametrize(("fragments", "cpus"), [(1, 1), (37, 1), (300, 1), (300, 64)])
def test_the_virtual_rows_all_differ_and_are_counted(scale, fragments, cpus):
    table = scale.VirtualTable(fragments, 50, 7, cpus=cpus)
    scores, hashes, groups = rows_of(table)
    assert len(np.unique(hashes)) == len(hashes)
    assert len(np.unique(scores)) < len(scores) or fragments == 1
    counts = group_counts(table)
    assert counts.tolist() == np.bincount(groups, minlength=7).tolist()
    assert (
        len(scores) == counts.sum() == sum(50 - f % table.templates % 2 for f in range(fragments))
    )


@pytest.mark.parametrize("strategy", ["ratio", "class_balanced", "random_balanced", "random"])
@pytest.mark.parametrize(("fragments", "cpus"), [(37, 1), (300, 1), (300, 64)])
def test_its_cuts_are_those_of_sorted_rows(scale, strategy, fragments, cpus):
    table = scale.VirtualTable(fragments, 50, 7, cpus=cpus)
    scores, hashes, groups = rows_of(table)
    rule = scale.compiled(table, strategy, 0.3)
    by_score = np.zeros(len(scores)) if "random" in strategy else -scores
    if "balanced" not in strategy:
        groups = np.zeros_like(groups)
    order = np.lexsort((hashes, by_score, groups))
    sizes = np.bincount(groups)
    quotas = np.floor(0.3 * sizes + 0.5).astype(int)
    ranks = np.arange(len(scores)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    kept = np.zeros(len(scores), bool)
    kept[order] = ranks < np.repeat(quotas, sizes)
    found = np.concatenate(
        [rule.apply(table.block(fragment, COLUMNS)) for fragment in range(fragments)]
    )
    assert (found == kept).all()
    assert kept_counts(table, rule).sum() == quotas.sum()


def test_every_step_at_a_small_size_adds_up(scale):
    rows, classes = 300_123, 11
    steps = {step["step"]: step for step in scale.steps(rows, classes)}
    corpus = steps["plan fragments"]["result"]
    assert corpus.rows == rows
    assert len(corpus.files) == 4
    assert len(steps["hand out"]["result"]) == len(corpus.fragments) == steps["hand out"]["units"]
    decided, kept, _ = steps["merge decided"]["result"]
    by_class = [
        decided.kept_by_class[str(c)] + decided.dropped_by_class[str(c)] for c in range(classes)
    ]
    assert decided.rows == rows == sum(by_class)
    assert decided.kept == sum(kept) == sum(decided.kept_by_class.values())
    parts = steps["plan parts"]["result"]
    assert sum(part.rows for part in parts) == decided.kept
    content = json.loads(steps["manifest"]["result"])
    assert content["rows"]["in"] == rows
    assert len(content["inputs"]) == 4
    assert len(content["outputs"]) == len(parts)
    assert len(content["classes"]) == classes
    for name in scale.STRATEGIES:
        assert steps[f"select {name}"]["units"] >= 2
    assert all(step["seconds"] >= 0 for step in steps.values())
