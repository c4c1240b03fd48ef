"""Results to the README's table and plot: ``python tests/benchmarks/table.py results.jsonl``.

Every ratio is the time of the reference over ours: above 1 ours is faster. The table goes between
the README's two ``benchmark table`` marks, the plot to ``ratios.svg`` beside this file. Of several
lines of one benchmark and case the last counts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

HERE = Path(__file__).parent
README = HERE.parents[1] / "README.md"
START, END = "<!-- benchmark table -->", "<!-- /benchmark table -->"
WIDTH, LEFT, STEP, MOST = 820, 430, 22, 4.0


class Row(NamedTuple):
    """One comparison: what both did, with what ours is compared, reference / ours."""

    task: str
    reference: str
    ratio: float


def _count(rows: int) -> str:
    return f"{rows / 1e6:g} million" if rows >= 1_000_000 else f"{rows:,}"


def _scoring(line: dict[str, Any], what: str) -> Iterator[Row]:
    best = line["best_reference"]
    yield Row(f"{what}, without start-up", f"`{best}` loop", line["ratio_without_startup"])
    yield Row(f"{what}, with start-up", "fastest loop", line["ratio_with_startup"])


def _over_ours(line: dict[str, Any], what: str, names: dict[str, str]) -> Iterator[Row]:
    for key, name in names.items():
        if f"{key}_over_ours" in line:
            yield Row(what, name, line[f"{key}_over_ours"])


def rows_of(line: dict[str, Any]) -> Iterator[Row]:
    """What a line of results says in ratios; nothing where it has no reference."""
    rows, name = (
        _count(line["rows"]) if isinstance(line.get("rows"), int) else "",
        line["benchmark"],
    )
    if name == "scoring":
        yield from _scoring(line, f"score {rows} rows, MLP")
    elif name == "images":
        yield from _scoring(line, f"score {rows} JPEG, ResNet-20")
    elif name == "job":
        yield from _over_ours(line, f"whole job, {rows} rows", {"plain": "plain script"})
    elif name == "cut":
        names = {"duckdb": "DuckDB", "numpy": "numpy.partition", "ray_data": "Ray Data Quantile"}
        yield from _over_ours(line, f"exact cut of {rows} scores", names)
    elif name == "writing":
        for key, reference in {"duckdb": "DuckDB", "pyarrow": "pyarrow dataset"}.items():
            yield Row(f"write {line['case']}", reference, 1 / line[f"ours_over_{key}"])
    elif name in ("neighbours", "kmeans"):
        what = {"neighbours": "nearest neighbours", "kmeans": "k-means"}[name]
        names = {"sklearn": "scikit-learn", "faiss": "faiss"}
        yield from _over_ours(line, f"{what}, {rows} rows", names)
    elif name.startswith("dynamics_"):
        what = f"{line['checkpoints']} checkpoints in one pass, {name.removeprefix('dynamics_')}"
        yield Row(what, "a pass for each", 1 / line["ratio"])


def collect(lines: list[dict[str, Any]]) -> list[Row]:
    """All comparisons, in order of first appearance."""
    found: dict[tuple[str, str], Row] = {}
    for line in lines:
        for row in rows_of(line):
            found[row.task, row.reference] = row
    return list(found.values())


def markdown(rows: list[Row], cpus: int) -> str:
    """The table of the README."""
    head = f"| what ({cpus} cores) | compared with | times as fast |\n|---|---|---|\n"
    return head + "".join(f"| {r.task} | {r.reference} | {r.ratio:.2f} |\n" for r in rows)


PLOT = jinja2.Template(
    """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {{ width }} {{ height }}"
 width="{{ width }}" height="{{ height }}" font-family="sans-serif" font-size="12" fill="#222222">
<rect width="{{ width }}" height="{{ height }}" fill="#ffffff"/>
{% for bar in bars %}<text x="{{ left - 8 }}" y="{{ bar.y + 12 }}" text-anchor="end">
{{- bar.label }}</text>
<rect x="{{ left }}" y="{{ bar.y }}" width="{{ bar.length }}" height="16" fill="{{ bar.colour }}"/>
<text x="{{ left + bar.length + 4 }}" y="{{ bar.y + 12 }}">{{ bar.ratio }}</text>
{% endfor %}<line x1="{{ one }}" y1="4" x2="{{ one }}" y2="{{ height - 30 }}" stroke="#222222"
 stroke-dasharray="3 3"/>
<text x="{{ left }}" y="{{ height - 12 }}">times as fast as the reference; bars end at {{ most }}
</text>
</svg>
""",
    autoescape=True,
)


def plot(rows: list[Row]) -> str:
    """Bars from 0 to `MOST`, a line at 1."""
    scale = (WIDTH - LEFT - 60) / MOST
    bars = [
        {
            "y": 8 + STEP * index,
            "label": f"{row.task} / {row.reference}".replace("`", ""),
            "length": round(min(row.ratio, MOST) * scale, 1),
            "colour": "#2a7a4f" if row.ratio >= 1 else "#b5651d",
            "ratio": f"{row.ratio:.2f}",
        }
        for index, row in enumerate(rows)
    ]
    height, one = STEP * len(rows) + 40, round(LEFT + scale, 1)
    return PLOT.render(bars=bars, width=WIDTH, height=height, left=LEFT, one=one, most=f"{MOST:g}")


def main(path: str) -> None:
    text = Path(path).read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    rows = collect(lines)
    if not rows:
        raise SystemExit(f"{path}: no line with a comparison; give the output of tests/benchmarks")
    readme = README.read_text(encoding="utf-8")
    before, rest = readme.split(START)
    _, after = rest.split(END)
    table = markdown(rows, lines[0]["cpus"])
    README.write_text(f"{before}{START}\n{table}{END}{after}", encoding="utf-8")
    (HERE / "ratios.svg").write_text(plot(rows), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:2])
