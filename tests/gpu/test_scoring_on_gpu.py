"""The scoring engine on a CUDA device gives the CPU's scores."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dataprune_ray.config import PruneConfig
from dataprune_ray.engine import Engine
from dataprune_ray.io import open_corpus
from dataprune_ray.models import build_model, core_of
from dataprune_ray.planning import judges, score_plan
from dataprune_ray.understanding import understand

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
METRICS = ["el2n", "loss", "grad_norm", "grad_norm_full", "margin", "entropy", "output_magnitude"]


@pytest.fixture
def corpus(tmp_path):
    rng = np.random.default_rng(0)
    note = {b"dataprune": b'{"dtype": "uint8", "shape": [16, 16, 3]}'}
    layout = pa.schema([pa.field("img", pa.binary(), metadata=note), ("label", pa.int64())])
    images = [rng.integers(0, 256, 768, np.uint8).tobytes() for _ in range(333)]
    table = pa.table([images, rng.integers(0, 5, 333)], schema=layout)
    (tmp_path / "corpus").mkdir()
    pq.write_table(table, tmp_path / "corpus" / "a.parquet", row_group_size=100)
    return tmp_path


def scores(corpus, **changes):
    values = {
        "input": f"{corpus}/corpus",
        "output": f"{corpus}/out",
        "num_classes": 5,
        "model": "small_cnn",
        "checkpoint": [f"{corpus}/cnn.pt"],
        "metric": METRICS,
    }
    config = PruneConfig.from_flat({**values, **changes})
    opened = open_corpus(config.corpus)
    understanding = understand(config.replace(checkpoint=[]), opened)
    if not (corpus / "cnn.pt").exists():
        torch.manual_seed(0)
        torch.save(core_of(build_model(understanding.model, 5)).state_dict(), corpus / "cnn.pt")
    plan = score_plan(config, understanding, judges(config, ()), f"{corpus}/scores")
    engine = Engine(plan)
    (fragment,) = plan.rows.fragments
    return pa.concat_tables(engine.tables(fragment, plan.layout, set()))


def test_float32_on_the_gpu_equals_the_cpu(corpus):
    on_cpu = scores(corpus, precision="float32")
    on_gpu = scores(corpus, precision="float32", num_gpus=1)
    for name in METRICS:
        expected = on_cpu[name].to_numpy()
        assert on_gpu[name].to_numpy() == pytest.approx(expected, rel=2e-3, abs=2e-3)


def test_bfloat16_is_the_default_and_ranks_alike(corpus):
    on_cpu = scores(corpus)["el2n"].to_numpy()
    on_gpu = scores(corpus, num_gpus=1)["el2n"].to_numpy()
    ranks = [np.argsort(np.argsort(values)) for values in (on_cpu, on_gpu)]
    assert np.corrcoef(*ranks)[0, 1] > 0.98
    assert on_gpu.dtype == np.float32
