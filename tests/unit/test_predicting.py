"""The metric ``learned`` in a scoring worker, in this process."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dataprune_ray.config import PruneConfig
from dataprune_ray.io import open_corpus
from dataprune_ray.learning import learn_here
from dataprune_ray.models import build_model, core_of
from dataprune_ray.planning import judges, score_plan
from dataprune_ray.predicting import engine_for, sample_of
from dataprune_ray.understanding import complete, understand

ROWS = 1500


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predicting")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, ROWS)
    values = rng.standard_normal((ROWS, 8)).astype(np.float32) + labels[:, None]
    features = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 8)
    (folder / "corpus").mkdir()
    pq.write_table(pa.table({"x": features, "label": labels}), folder / "corpus" / "a.parquet")
    given = {"input": f"{folder}/corpus", "output": f"{folder}/out", "model": "linear"}
    given |= {"metric": ["learned", "loss"], "learned_metric": "loss", "num_classes": 3}
    given |= {"learned_fraction": 0.5, "proxy_epochs": 2}
    config = PruneConfig.from_flat(given)
    understanding = complete(understand(config, open_corpus(config.corpus)))
    path = f"{folder}/linear.pt"
    torch.manual_seed(0)
    torch.save(core_of(build_model(understanding.model, 3)).state_dict(), path)
    config = config.replace(checkpoint=[path])
    found = score_plan(config, understanding, judges(config, ()), f"{folder}/scores")
    learn_here(found)
    return found


def scores_of(engine):
    (fragment,) = engine.plan.rows.fragments
    table = pa.concat_tables(engine.tables(fragment, engine.plan.layout, set()))
    assert table["error"].null_count == ROWS
    return {name: table[name].to_numpy() for name in ("row_hash", "learned", "loss")}


def test_the_sample_is_exact_and_batches_do_not_matter(plan):
    whole = scores_of(engine_for(plan))
    known = sample_of(plan).admits(whole["row_hash"])
    assert 0.4 < known.mean() < 0.6
    np.testing.assert_array_equal(whole["learned"][known], whole["loss"][known])
    assert (whole["learned"][~known] != whole["loss"][~known]).mean() > 0.9
    small = scores_of(engine_for(replace(plan, batch_size=64)))
    np.testing.assert_array_equal(small["learned"], whole["learned"])


def test_all_models_of_a_worker_shrink_their_batches(plan):
    expected = scores_of(engine_for(plan))
    engine = engine_for(plan)
    everyone = engine.passes
    assert len(everyone) == 4

    def check(_, inputs):
        if len(inputs[0]) > 50:
            raise torch.OutOfMemoryError("CUDA out of memory")

    for forward in everyone:
        for tap in forward.taps.values():
            tap.model.register_forward_pre_hook(check)
    found = scores_of(engine)
    for name in ("learned", "loss"):
        assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5)
    assert {forward.sizes.rows for forward in everyone} == {32}


def test_the_worker_counts_the_time_of_all_its_models(plan):
    engine = engine_for(plan)
    (fragment,) = plan.rows.fragments
    count = engine.commit(fragment)
    assert count.batch_rows == plan.batch_size
    assert 0 < count.spent.model < count.spent.total
    assert all(f.clock is engine.clock for f in engine.apprentice.judges)
    assert all(f.lane is engine.forward.lane for f in engine.apprentice.judges)
