from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataprune_ray import cutoff, schema, selecting
from dataprune_ray.config import SelectConfig
from dataprune_ray.cutoff import Block, MemoryPopulation, seeded_hash
from dataprune_ray.errors import BadDataError, ConfigError
from dataprune_ray.io.scores import group_codes
from dataprune_ray.selecting import ScoreTable, select
from dataprune_ray.strategies import STRATEGIES, ScoreInfo

pytestmark = pytest.mark.usefixtures("local_ray")

ROWS = 6_000
NAMES = ("0", "1", "2")
INFO = ScoreInfo("el2n", "high", 0.0, 1.0)
RNG = np.random.default_rng(0)
SCORES = RNG.integers(0, 50, ROWS).astype(np.float32) / np.float32(50)
LABELS = RNG.choice(3, ROWS, p=[0.7, 0.25, 0.05])
BROKEN = RNG.random(ROWS) < 0.03
HASHES = RNG.permutation(ROWS).astype(np.uint64)


def table_of(part, label_type, scores=SCORES, errors=BROKEN):
    """Rows ``part`` of the corpus in the layout of a score file."""
    rows = len(part)
    bad = errors[part]
    labels = [str(v) if pa.types.is_string(label_type) else int(v) for v in LABELS[part]]
    columns = {
        schema.FILE: pa.array(["a.parquet"] * rows).dictionary_encode(),
        schema.ROW: part,
        schema.KEY: pa.nulls(rows, pa.string()),
        schema.ROW_HASH: HASHES[part],
        schema.LABEL: pa.array(labels, label_type, mask=bad),
        "el2n": pa.array(scores[part], pa.float32(), mask=bad),
        schema.ERROR: pa.array(["corrupt image" if b else None for b in bad], pa.string()),
    }
    return pa.table(columns, schema=schema.score_schema(label_type, ["el2n"]))


def write(folder, files, label_type=None, **columns):
    paths = []
    for number, part in enumerate(np.array_split(np.arange(ROWS), files)):
        paths.append(str(folder / f"scores-{number:05d}.parquet"))
        pq.write_table(table_of(part, label_type or pa.int64(), **columns), paths[-1])
    return paths


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write(tmp_path_factory.mktemp("scores"), 13)


@pytest.fixture(scope="module")
def reference():
    """The same rows in memory."""
    good = ~BROKEN
    hashes = seeded_hash(HASHES[good], 7)
    return MemoryPopulation([Block(SCORES[good], hashes, LABELS[good].astype(np.int32))], NAMES)


def grouped(paths, **changes):
    return ScoreTable(
        **(
            {"paths": paths, "metric": "el2n", "group_column": "label"}
            | {"groups": NAMES, "seed": 7}
            | changes
        )
    )


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("end", ["high", "low"])
def test_rule_equals_the_one_in_memory(name, end, paths, reference):
    config = SelectConfig(strategy=name, keep=0.3, beta=0.1, keep_end=end, threshold=0.5, seed=7)
    rule = select(grouped(paths), config, INFO)
    assert rule == STRATEGIES[name].compile(reference, config, INFO)


@pytest.mark.parametrize("files", [1, 150])
def test_files_and_batches_do_not_matter(files, paths, tmp_path, monkeypatch):
    config = SelectConfig(strategy="class_balanced", keep=0.37)
    expected = select(grouped(paths), config, INFO)
    monkeypatch.setattr(selecting, "_MOST_FILES", 5)
    assert select(grouped(write(tmp_path, files)), config, INFO) == expected


def test_only_some_files_hold_errors(tmp_path):
    errors = np.arange(ROWS) < 10
    table = ScoreTable(write(tmp_path, 3, errors=errors), "el2n")
    assert cutoff.group_counts(table).tolist() == [ROWS - 10]
    edges = [0, 1]
    assert cutoff.histogram(table, edges).sum() == ROWS - 10


def test_string_labels(paths, tmp_path):
    config = SelectConfig(strategy="random_balanced", keep=0.5)
    strings = write(tmp_path, 2, pa.string())
    assert select(grouped(strings), config, INFO) == select(grouped(paths), config, INFO)


def test_statistics(paths, reference):
    table = grouped(paths)
    assert cutoff.extremes(table) == cutoff.extremes(reference)
    assert cutoff.mean_score(table) == cutoff.mean_score(reference)
    assert cutoff.group_counts(table).tolist() == cutoff.group_counts(reference).tolist()
    edges = np.linspace(0, 1, 11)
    np.testing.assert_array_equal(
        cutoff.histogram(table, edges), cutoff.histogram(reference, edges)
    )


def test_without_groups(paths):
    table = ScoreTable(paths, "el2n", seed=7)
    config = SelectConfig(keep=0.5, seed=7)
    rule = select(table, config, INFO)
    assert cutoff.kept_counts(table, rule).sum() == (np.count_nonzero(~BROKEN) + 1) // 2
    pooled = select(grouped(paths), config, INFO)
    assert rule.bands == pooled.bands


def test_empty_tables(tmp_path):
    config = SelectConfig(keep=0.5)
    all_bad = np.ones(ROWS, bool)
    for paths in ([], write(tmp_path, 2, errors=all_bad)):
        table = ScoreTable(paths, "el2n")
        assert cutoff.group_counts(table).tolist() == [0]
        assert select(table, config, INFO).bands == ()


def test_random_does_not_need_the_metric(paths):
    config = SelectConfig(strategy="random", keep=0.5)
    select(ScoreTable(paths, "not_there"), config, INFO)
    with pytest.raises(ConfigError, match="no column 'not_there'; has: file, row"):
        select(ScoreTable(paths, "not_there"), SelectConfig(), INFO)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_score_that_is_no_number_is_refused(bad, tmp_path):
    scores = SCORES.copy()
    scores[np.flatnonzero(~BROKEN)[100]] = bad
    with pytest.raises(BadDataError, match=r"scores-00001\.parquet|scores-00000\.parquet"):
        select(ScoreTable(write(tmp_path, 2, scores=scores), "el2n"), SelectConfig(), INFO)


def test_a_label_without_group_is_refused(paths):
    config = SelectConfig(strategy="class_balanced")
    with pytest.raises(BadDataError, match="labels without a group: 2"):
        select(grouped(paths, groups=("0", "1")), config, INFO)


def test_a_null_label_is_refused():
    with pytest.raises(BadDataError, match="1 rows without error have no label"):
        group_codes(pa.array([1, None]), {"1": 0}, "scores.parquet")


def test_a_missing_file_is_an_error(paths, tmp_path):
    with pytest.raises(FileNotFoundError):
        select(ScoreTable([*paths, str(tmp_path / "gone.parquet")], "el2n"), SelectConfig(), INFO)
