"""Predicted importance in a whole run: exact on the sample, and close enough elsewhere."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest
from scipy import stats

sys.path.insert(0, str(Path(__file__).parent))

from corpora import digit_rows, image_table, linear_checkpoint, write_parquet

from dataprune_ray.config import PruneConfig
from dataprune_ray.errors import ConfigError
from dataprune_ray.io.output import remove_run
from dataprune_ray.io.splits import Split
from dataprune_ray.pipeline import preview, prune
from dataprune_ray.predicting import _SAMPLE_SALT

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs over one corpus, cut, batched and spread differently."""
    folder = tmp_path_factory.mktemp("learned")
    images, labels = digit_rows()
    checkpoint = linear_checkpoint(folder / "linear.pt", images, labels)
    settings = {
        "input": write_parquet(folder / "corpus", image_table(images, labels), files=3),
        "id_column": "id",
        "model": "linear",
        "checkpoint": [checkpoint],
        "metric": ["learned", "loss"],
        "learned_metric": "loss",
        "learned_fraction": 0.3,
        "proxy_epochs": 5,
    }
    first = prune(PruneConfig.from_flat({**settings, "output": str(folder / "a")}))
    again = {"output": str(folder / "b"), "batch_size": 7, "actors": 2, "fragment_rows": 100}
    second = prune(PruneConfig.from_flat({**settings, **again}))
    return {"folder": folder, "settings": settings, "manifests": (first, second)}


def scores(runs, name):
    table = ds.dataset(f"{runs['folder']}/{name}/scores", format="parquet").to_table()
    return {c: table[c].to_numpy() for c in ("key", "row_hash", "learned", "loss")}


def test_the_sample_is_exact_and_the_rest_is_ranked_alike(runs):
    found = scores(runs, "a")
    known = Split.share(0.3, _SAMPLE_SALT).admits(found["row_hash"])
    assert known.mean() == pytest.approx(0.3, abs=0.05)
    np.testing.assert_array_equal(found["learned"][known], found["loss"][known])
    assert (found["learned"][~known] != found["loss"][~known]).mean() > 0.9
    away = stats.spearmanr(found["learned"][~known], found["loss"][~known]).statistic
    (about, _) = (content["learned"] for content in runs["manifests"])
    assert about["target"] == "loss"
    assert about["spearman_low"] - 0.1 < away < about["spearman_high"] + 0.1
    assert about["tried"][about["chosen"]] == max(about["tried"].values())
    assert runs["manifests"][0]["keep_end"] == "high"
    page = (runs["folder"] / "a" / "report.html").read_text()
    assert "learned is loss, exact for 30 % of the rows" in page


def test_predictions_do_not_depend_on_the_cut_the_batches_or_the_actors(runs):
    one, two = scores(runs, "a"), scores(runs, "b")
    np.testing.assert_array_equal(one["key"], two["key"])
    np.testing.assert_array_equal(one["learned"], two["learned"])
    first, second = runs["manifests"]
    assert first["content_hash"] == second["content_hash"]
    assert first["learned"] == second["learned"]


def test_all_that_it_wrote_is_known_as_its_own(runs, tmp_path):
    copy = shutil.copytree(runs["folder"] / "a", tmp_path / "copy")
    remove_run(str(copy))
    assert not [path for path in copy.rglob("*") if path.is_file()]


def test_a_sample_previews_it(runs):
    changes = {"dry_run": True, "sample_rows": 600, "output": ""}
    assert preview(PruneConfig.from_flat({**runs["settings"], **changes})).sampled > 400


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learned_metric": "random"}, "learned_metric='random'"),
        ({"learned_fraction": 0.006}, "learned_fraction=0.006: gives a sample of"),
        ({"baseline": "a"}, "metric='learned': looks at the whole corpus"),
    ],
)
def test_what_cannot_be_learned_is_refused(runs, changes, message, tmp_path):
    if "baseline" in changes:
        changes = {"baseline": str(runs["folder"] / "a")}
    settings = {**runs["settings"], **changes, "output": str(tmp_path / "out")}
    with pytest.raises(ConfigError, match=message):
        prune(PruneConfig.from_flat(settings))
