"""The README's benchmark table is drawn from lines of results."""

import importlib.util
import json
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def table(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("benchmark_table", BENCHMARKS / "table.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmark_table", module)
    spec.loader.exec_module(module)
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{module.START}\nold\n{module.END}\nafter\n")
    monkeypatch.setattr(module, "README", readme)
    monkeypatch.setattr(module, "HERE", tmp_path)
    return module


LINES = [
    {"benchmark": "cut", "rows": 10_000_000, "cpus": 2, "duckdb_over_ours": 0.9},
    {"benchmark": "writing", "rows": 600_000, "case": "images", "ours_over_duckdb": 0.5,
     "ours_over_pyarrow": 2.0, "cpus": 2},
    {"benchmark": "memory", "rows": [1, 4], "cpus": 2},
    {"benchmark": "cut", "rows": 10_000_000, "cpus": 2, "duckdb_over_ours": 1.25},
]  # fmt: skip


def test_every_ratio_is_reference_over_ours_and_the_last_line_counts(table, tmp_path):
    results = tmp_path / "results.jsonl"
    results.write_text("a warning\n" + "".join(json.dumps(line) + "\n" for line in LINES))
    table.main(str(results))
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith("before\n")
    assert readme.endswith("\nafter\n")
    assert "| exact cut of 10 million scores | DuckDB | 1.25 |" in readme
    assert "| write images | DuckDB | 2.00 |" in readme
    assert "| write images | pyarrow dataset | 0.50 |" in readme
    assert "old" not in readme
    drawn = ET.parse(tmp_path / "ratios.svg")
    bars = drawn.findall("{http://www.w3.org/2000/svg}rect")[1:]
    one = float(drawn.find("{http://www.w3.org/2000/svg}line").get("x1")) - table.LEFT
    assert [float(bar.get("width")) / one for bar in bars] == pytest.approx([1.25, 2.0, 0.5], 0.01)


def test_a_file_without_comparisons_is_refused(table, tmp_path):
    (tmp_path / "none.jsonl").write_text(json.dumps(LINES[2]) + "\n")
    with pytest.raises(SystemExit, match="no line with a comparison"):
        table.main(str(tmp_path / "none.jsonl"))
