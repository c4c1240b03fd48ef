"""Groups by the values of a column: read as text, refused where they cannot be, counted exactly."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from dataclasses import replace
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataprune_ray import schema, selecting
from dataprune_ray.config import CorpusConfig, PruneConfig
from dataprune_ray.errors import ConfigError
from dataprune_ray.features import FeatureSpec, LabelSpec, TabularColumn, check_group_column
from dataprune_ray.io import open_corpus
from dataprune_ray.io.rows import RowPlan, columns_to_read, read_rows
from dataprune_ray.understanding import understand

TABLE = FeatureSpec("tabular", ("x",), (1,), tabular=(TabularColumn("x", False),))
LABEL = LabelSpec("y", classes=("0", "1"))
VALUES = {
    "text": (pa.array(["web", None, "book"]), ["web", "(null)", "book"]),
    "dictionary": (pa.array(["a", "b", None]).dictionary_encode(), ["a", "b", "(null)"]),
    "integers": (pa.array([-3, None, 2**40]), ["-3", "(null)", "1099511627776"]),
    "booleans": (pa.array([True, False, None]), ["true", "false", "(null)"]),
    "bytes": (pa.array([b"en", b"de", None]), ["en", "de", "(null)"]),
    "nothing": (pa.nulls(3), ["(null)"] * 3),
}


def corpus(tmp_path, **columns):
    folder = tmp_path / "in"
    folder.mkdir(exist_ok=True)
    rows = len(next(iter(columns.values())))
    table = {"x": np.arange(rows) / 2, "y": np.arange(rows) % 2, **columns}
    pq.write_table(pa.table(table), folder / "a.parquet")
    return open_corpus(CorpusConfig(input=str(folder)))


def groups_of(found, name, **changes):
    plan = replace(RowPlan.of(found, TABLE, LABEL, None, 0), group=name, **changes)
    batches = [batch for fragment in plan.fragments for batch in read_rows(plan, fragment)]
    return [value for batch in batches for value in batch.group.to_pylist()], batches


@pytest.mark.parametrize("kind", VALUES)
def test_values_are_read_as_text_and_nulls_are_a_group(tmp_path, kind):
    values, expected = VALUES[kind]
    found = corpus(tmp_path, source=values)
    assert groups_of(found, "source")[0] == expected
    check_group_column("source", found.schema, pa.RecordBatch.from_pylist([], found.schema))


def test_a_bad_row_and_a_lost_file_keep_their_place(tmp_path):
    found = corpus(tmp_path, source=["a", "b", "c"], y=pa.array([0, None, 1]))
    names, (batch,) = groups_of(found, "source")
    assert names == ["a", "b", "c"]
    assert batch.good.tolist() == [True, False, True]
    (tmp_path / "in" / "a.parquet").write_bytes(b"PAR1")
    names, (batch,) = groups_of(found, "source")
    assert names == [None] * 3
    assert not batch.good.any()


def test_a_sample_has_the_groups_of_its_rows(tmp_path):
    names = [str(i) for i in range(400)]
    found = corpus(tmp_path, source=names)
    read, batches = groups_of(found, "source", sample_below=2**62)
    assert 0 < len(read) < 400
    assert read == [names[row] for batch in batches for row in batch.rows]


def test_members_of_json_are_groups(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for index, language in enumerate(["en", None, "de"]):
            document = {"x": index, "y": 1} | ({} if language is None else {"lang": language})
            content = json.dumps(document).encode()
            member = tarfile.TarInfo(f"{index}.json")
            member.size = len(content)
            tar.addfile(member, BytesIO(content))
    found = open_corpus(CorpusConfig(input=str(tmp_path), format="webdataset"))
    features = FeatureSpec(
        "tabular", ("json.x",), (1,), tabular=(TabularColumn("json.x", categorical=False),)
    )
    label = LabelSpec("json.y", classes=("0", "1"))
    plan = replace(RowPlan.of(found, features, label, None, 0), group="json.lang")
    assert columns_to_read(plan).count("json") == 1
    read = [b.group.to_pylist() for f in plan.fragments for b in read_rows(plan, f)]
    assert [name for part in read for name in part] == ["en", "(null)", "de"]


@pytest.mark.parametrize(
    ("column", "told"),
    [
        ("nowhere", "no such column; the corpus has x, y, source"),
        ("x", "of type double; a group is a text, an integer or a boolean"),
        ("source", r"of type list<.*>; a group is"),
    ],
)
def test_what_cannot_name_groups_is_refused(tmp_path, column, told):
    found = corpus(tmp_path, source=pa.array([[1], [2], None]))
    config = PruneConfig.from_flat(
        {"input": str(tmp_path / "in"), "output": str(tmp_path / "out"), "group_column": column}
        | {"features": ["x"], "label": "y", "strategy": "class_balanced"}
    )
    with pytest.raises(ConfigError, match=f"group_column='{column}': .*{told}"):
        understand(config, found)


def test_a_group_stands_in_for_a_class(tmp_path):
    found = corpus(tmp_path, source=["a", "b", "a"], z=[0.5, 1.5, 2.25])
    base = {"input": str(tmp_path / "in"), "output": "out", "features": ["x"], "label": "z"}
    base |= {"strategy": "random_balanced", "metric": "random"}
    with pytest.raises(ConfigError, match="needs a class label, or another column"):
        understand(PruneConfig.from_flat(base), found)
    known = understand(PruneConfig.from_flat({**base, "group_column": "source"}), found)
    assert (known.group_column, known.info.groups) == (schema.GROUP, "group")
    base |= {"label": "y"}
    assert understand(PruneConfig.from_flat(base), found).group_column == schema.LABEL
    ratio = PruneConfig.from_flat({**base, "group_column": "source", "strategy": "ratio"})
    assert understand(ratio, found).group_column is None


def test_values_are_collected_from_rows_without_error(tmp_path, monkeypatch):
    monkeypatch.setattr(selecting, "run_tasks", map)
    paths = []
    for number, values in enumerate([["b", "a"], ["c", None], ["a", "lost"]]):
        errors = pa.array([None if v not in (None, "lost") else "bad" for v in values], pa.string())
        table = pa.table({schema.GROUP: pa.array(values, pa.string()), schema.ERROR: errors})
        pq.write_table(table, tmp_path / f"{number}.parquet")
        paths.append(str(tmp_path / f"{number}.parquet"))
    assert selecting.distinct_groups(paths) == ("a", "b", "c")
    monkeypatch.setattr(selecting, "MOST_GROUPS", 2)
    with pytest.raises(ConfigError, match=r"group_column='3 values and more': .*2 at most"):
        selecting.distinct_groups(paths)


def test_layouts_hold_the_group_only_where_it_is_asked_for():
    for layout in (schema.score_schema, schema.quality_schema):
        second = ["el2n"] if layout is schema.score_schema else 3
        plain, grouped = (layout(pa.int64(), second, grouped=on) for on in (False, True))
        assert Counter(grouped.names) - Counter(plain.names) == Counter([schema.GROUP])
    assert schema.GROUP in schema.decision_schema(pa.int64(), grouped=True).names
    assert schema.GROUP not in schema.decision_schema(pa.int64()).names
