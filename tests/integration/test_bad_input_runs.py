"""Every broken file of a kind in one corpus: each row is kept, dropped or quarantined as said."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from bad_files import CLASSES, GOOD, KINDS, PWNED

from dataprune_ray.config import PruneConfig
from dataprune_ray.errors import BadDataError
from dataprune_ray.pipeline import prune

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.mark.parametrize("kind", ["archives", "images", "tables", "tensors"])
def test_every_row_is_accounted_for(kind, tmp_path):
    root = tmp_path / "corpus"
    root.mkdir()
    name, good, cases, changes = KINDS[kind]
    (root / name).write_bytes(good())
    for case in cases:
        case.put(root)
    values = {
        "input": str(root),
        "output": str(tmp_path / "out"),
        "metric": ["random"],
        "num_classes": CLASSES,
        "keep": 0.5,
        "actors": 1,
        "max_bad_rows": "100%",
    }
    manifest = prune(PruneConfig.from_flat({**values, **changes}))
    rows = manifest["rows"]
    expected = GOOD + sum(case.rows for case in cases)
    bad = sum(len(case.bad) for case in cases)
    assert rows["in"] == expected == rows["kept"] + rows["dropped"] + rows["quarantined"]
    assert rows["quarantined"] == bad
    assert rows["kept"] == int(0.5 * (expected - bad) + 0.5)
    assert pq.read_table(tmp_path / "out" / "data").num_rows == rows["kept"]
    quarantine = pq.read_table(tmp_path / "out" / "quarantine").to_pylist()
    found = {}
    for row in quarantine:
        position = -1 if row["row"] is None else row["row"]
        found[row["file"], position] = row["error"]
    assert len(found) == bad
    for case in cases:
        for position, reason in case.bad.items():
            assert re.search(reason, found[case.name, position], re.DOTALL)
    decided = pq.read_table(tmp_path / "out" / "decisions")
    assert decided.num_rows == expected - bad
    assert not PWNED.exists()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "outside.parquet") == [
        "corpus",
        "out",
    ]
    limited = {**values, **changes, "max_bad_rows": str(bad - 1), "output": str(tmp_path / "no")}
    with pytest.raises(BadDataError, match=f"{bad} of {expected} rows are bad"):
        prune(PruneConfig.from_flat(limited))
    assert not (tmp_path / "no" / "data").exists()
