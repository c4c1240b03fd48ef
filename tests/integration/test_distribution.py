"""Metrics of the data distribution through the whole job: survey, actors, second stages, cut."""

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.numpy

sys.path.insert(0, str(Path(__file__).parent))

from corpora import digit_rows, image_table, write_parquet

from dataprune_ray.config import PruneConfig
from dataprune_ray.metrics import METRICS
from dataprune_ray.pipeline import prune

pytestmark = pytest.mark.usefixtures("local_ray")


def test_all_at_once_without_a_model(tmp_path):
    images, labels = digit_rows(600)
    images[580:], labels[580:] = images[:20], labels[:20]  # exact copies
    corpus = write_parquet(tmp_path / "corpus", image_table(images, labels), files=3)
    spaced = [name for name, metric in METRICS.items() if "space" in metric.needs]
    config = {
        "input": corpus, "output": f"{tmp_path}/out", "space": "inputs", "metric": spaced,
        "survey_rows": 400, "actors": 2, "fragment_rows": 200, "id_column": "id", "keep": 0.25,
        "keep_end": "high", "dedup": 0.01,
    }  # fmt: skip
    manifest = prune(PruneConfig.from_flat(config))
    assert manifest["rows"]["kept"] == 150
    assert manifest["reasons"]["dropped: duplicate of a kept row"] >= 20
    assert not manifest["model"]["proxies"]
    scores = pq.read_table(tmp_path / "out" / "scores")
    assert set(scores.column_names) == {
        "file", "row", "key", "row_hash", "label", "error", *spaced,
    }  # fmt: skip
    assert scores.num_rows == 600
    space = safetensors.numpy.load_file(tmp_path / "out" / "scores" / "_space.safetensors")
    features = images.reshape(600, 64).astype(np.float64)
    gaps = np.linalg.norm((features - space["mean"])[:, None] - space["centres"], axis=2)
    assert scores["prototype"].to_numpy() == pytest.approx(gaps.min(axis=1), rel=1e-5)
    redundancy = scores["redundancy"].to_numpy()
    assert (np.maximum(redundancy[:20], redundancy[580:]) == 1).all()
    assert (redundancy == 1).sum() == 20
    for name in ("k_center", "facility_location"):  # the space has one cluster of directions
        assert np.sort(scores[name].to_numpy()) == pytest.approx(np.arange(1, 601) / 600)
    table = np.full((10, 10), 0.5)
    np.add.at(table, (gaps.argmin(axis=1), labels), 1)
    rows, columns = table.sum(axis=1, keepdims=True), table.sum(axis=0, keepdims=True)
    pairs = np.log(table * table.sum() / rows / columns)[gaps.argmin(axis=1), labels]
    assert scores["mutual_information"].to_numpy() == pytest.approx(pairs, rel=1e-5)
    weighted = 0.6 * scores["surprisal"].to_numpy() + 0.4 * pairs
    assert scores["information"].to_numpy() == pytest.approx(weighted, rel=1e-5, abs=1e-5)
