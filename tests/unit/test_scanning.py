import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataprune_ray import scanning
from dataprune_ray.config import CorpusConfig
from dataprune_ray.errors import BadDataError, ConfigError
from dataprune_ray.features import recognise
from dataprune_ray.io import open_corpus
from dataprune_ray.io.rows import RowPlan


@pytest.fixture(autouse=True)
def in_process(monkeypatch):
    monkeypatch.setattr(scanning, "run_tasks", map)


def scanned(tmp_path, columns, files=3, **changes):
    table = pa.table(columns)
    for i in range(files):
        low, high = len(table) * i // files, len(table) * (i + 1) // files
        pq.write_table(table.slice(low, high - low), tmp_path / f"{i}.parquet", row_group_size=7)
    config = CorpusConfig(input=str(tmp_path), fragment_rows=10, **changes)
    corpus = open_corpus(config)
    found = recognise(config, corpus.schema, table.to_batches()[0])
    return scanning.scan(RowPlan.of(corpus, found.features, found.label, None, 0))


def test_classes_of_every_kind(tmp_path):
    x = np.arange(40.0)
    cases = [
        ([i % 3 for i in range(40)], ("0", "1", "2")),
        ([i % 3 * 1000 for i in range(40)], ("0", "1000", "2000")),
        ([i % 2 * 2 for i in range(40)], ("0", "1", "2")),
        ([("b", "a", None, "c")[i % 4] for i in range(40)], ("a", "b", "c")),
        ([i % 2 == 0 for i in range(40)], ("0", "1")),
    ]
    for number, (labels, classes) in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        _, label = scanned(folder, {"x": x, "label": labels})
        assert label.classes == classes


def test_moments_do_not_depend_on_the_files(tmp_path):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=101) * 1e3).astype(np.float32).astype(object)
    x[13] = None
    known = np.array([v for v in x if v is not None])
    results = []
    for files in (1, 2, 5):
        folder = tmp_path / str(files)
        folder.mkdir()
        columns = {"x": x.tolist(), "price": rng.normal(size=101).tolist()}
        features, _ = scanned(folder, columns, files, label="price")
        results.append((features.tabular[0].mean, features.tabular[0].std))
    assert len(set(results)) == 1
    assert results[0][0] == pytest.approx(known.mean(), rel=1e-9)
    assert results[0][1] == pytest.approx(known.std(), rel=1e-6)


def test_a_small_spread_far_from_zero(tmp_path):
    stamps = 1_700_000_000.0 + np.arange(50.0)
    features, label = scanned(tmp_path, {"when": stamps, "label": [3.5] * 50})
    assert features.tabular[0].mean == pytest.approx(stamps.mean(), rel=1e-12)
    assert features.tabular[0].std == pytest.approx(stamps.std(), rel=1e-6)
    assert (label.mean, label.std) == (3.5, 1.0)


def test_a_label_that_is_no_class_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(scanning, "MOST_CLASSES", 20)
    with pytest.raises(ConfigError, match=r"label='label': more than 20 distinct values"):
        scanned(tmp_path, {"x": np.arange(40.0), "label": list(range(40))})


def test_all_labels_null(tmp_path):
    columns = {"x": np.arange(4.0), "label": pa.nulls(4, pa.int64())}
    with pytest.raises(BadDataError, match="no row has a label"):
        scanned(tmp_path, columns, 1, label="label")
