"""A proxy trained by Ray Train's worker group instead of a single task."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from corpora import digit_rows, image_table, write_parquet

from dataprune_ray.config import PruneConfig
from dataprune_ray.pipeline import prune


@pytest.mark.usefixtures("local_ray")
def test_two_workers_share_the_rows_and_the_gradient(tmp_path):
    corpus = write_parquet(tmp_path / "corpus", image_table(*digit_rows()))
    config = {
        "input": corpus,
        "output": f"{tmp_path}/out",
        "proxy_workers": 2,
        "proxy_seeds": 1,
        "proxy_epochs": 4,
        "actors": 1,
    }
    manifest = prune(PruneConfig.from_flat(config))
    (proxy,) = manifest["model"]["proxies"]
    assert manifest["rows"]["kept"] == 899
    assert proxy["accuracy"] > 0.8
    assert proxy["rows_available"] == 1797
