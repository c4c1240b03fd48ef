"""Batches on a CUDA device: sized by its memory, halved where it runs out, counted while busy."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dataprune_ray.clock import Scoring
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
ROWS = 2000
METRICS = ["el2n", "entropy", "grad_norm"]


@pytest.fixture
def corpus(tmp_path):
    rng = np.random.default_rng(0)
    note = {b"dataprune": b'{"dtype": "uint8", "shape": [64, 64, 3]}'}
    layout = pa.schema([pa.field("img", pa.binary(), metadata=note), ("label", pa.int64())])
    images = [rng.integers(0, 256, 64 * 64 * 3, np.uint8).tobytes() for _ in range(ROWS)]
    (tmp_path / "corpus").mkdir()
    table = pa.table([images, rng.integers(0, 5, ROWS)], schema=layout)
    pq.write_table(table, tmp_path / "corpus" / "a.parquet")
    return tmp_path


def engine_of(corpus, **changes):
    values = {"input": f"{corpus}/corpus", "output": f"{corpus}/out", "num_classes": 5}
    values |= {"model": "small_cnn", "metric": METRICS, "precision": "float32", "num_gpus": 1}
    config = PruneConfig.from_flat({**values, **changes})
    understanding = understand(config, open_corpus(config.corpus))
    path = corpus / "cnn.pt"
    if not path.exists():
        torch.manual_seed(0)
        torch.save(core_of(build_model(understanding.model, 5)).state_dict(), path)
    config = config.replace(checkpoint=[str(path)])
    return Engine(score_plan(config, understanding, judges(config, ()), f"{corpus}/scores"))


def scores_of(engine):
    (fragment,) = engine.plan.rows.fragments
    table = pa.concat_tables(engine.tables(fragment, engine.plan.layout, set()))
    assert table["row"].to_pylist() == list(range(ROWS))
    return {name: table[name].to_numpy() for name in METRICS}


def close(found, expected):
    for name in METRICS:
        assert found[name] == pytest.approx(expected[name], rel=2e-3, abs=2e-3), name


def test_batches_are_sized_to_the_device_and_change_no_score(corpus):
    fixed = scores_of(engine_of(corpus, batch_size=100))
    auto = engine_of(corpus)
    assert auto.pass_rows >= 32
    assert auto.pass_rows & (auto.pass_rows - 1) == 0
    close(scores_of(auto), fixed)
    lane = auto.forward.lane
    assert 0 < lane.budget(0.25) < lane.budget(1.0)


def test_scores_are_the_same_where_the_memory_really_runs_out(corpus):
    expected = scores_of(engine_of(corpus, batch_size=64))
    engine = engine_of(corpus, batch_size=2000)
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    held = torch.cuda.memory_reserved()
    torch.cuda.set_per_process_memory_fraction((held + (256 << 20)) / total)
    try:
        found = scores_of(engine)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert engine.pass_rows < 2000
    close(found, expected)


def test_the_busy_share_is_a_share(corpus):
    engine = engine_of(corpus)
    (fragment,) = engine.plan.rows.fragments
    engine.commit(fragment)  # start-up of kernels
    count = engine.commit(fragment)
    assert 0 < count.spent.busy <= count.spent.total
    assert 0 < Scoring(count.rows, 1, count.spent).busy <= 1


def test_convolutions_have_their_channels_last(corpus):
    engine = engine_of(corpus)
    (tap,) = engine.forward.taps.values()
    weights = [p for p in tap.model.parameters() if p.ndim == 4]
    assert weights
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)
    assert torch.backends.cudnn.benchmark is False
