"""What a streamed training reads of a fragment, without Ray: the arm's rows and their weights."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import ray.train
import torch

from dataprune_ray.arms import KeptRows
from dataprune_ray.streams import _epoch, _Reader


def test_an_arm_has_its_own_rows_with_their_weights():
    """Against a dictionary; the weights' order is the score table's, not that of the hashes."""
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**64, 50, np.uint64)
    found = {"inputs": random.normal(size=(50, 3)), "targets": np.arange(50)}
    chosen = np.flatnonzero(random.random(50) < 0.4)
    weights = random.uniform(1, 9, len(chosen)).astype(np.float32)
    known = dict(zip(hashes[chosen].tolist(), weights.tolist(), strict=True))
    reader = _Reader(None, None, None, scale=0.25)
    part = slice(10, 40)  # a batch holds some of the fragment's rows
    batch = {name: values[part] for name, values in found.items()}
    own = reader._own(batch, hashes[part], KeptRows(hashes[chosen], weights))
    mine = [row for row in range(10, 40) if row in chosen]
    assert own["targets"].tolist() == mine
    np.testing.assert_array_equal(own["inputs"], found["inputs"][mine])
    expected = [0.25 * known[int(hashes[row])] for row in mine]
    np.testing.assert_allclose(own["weights"], expected, rtol=1e-6)
    plain = reader._own(batch, hashes[part], KeptRows(hashes[chosen]))
    assert sorted(plain) == ["inputs", "targets"]


@pytest.mark.parametrize("names", [("inputs", "targets"), ("inputs", "targets", "weights")])
def test_an_epoch_hands_on_what_the_pipeline_gives(monkeypatch, names):
    pieces = [{name: torch.rand(4) for name in names} for _ in range(3)]
    shard = SimpleNamespace(iter_torch_batches=lambda **_: iter(pieces))
    monkeypatch.setattr(ray.train, "get_dataset_shard", lambda _: shard)
    recipe = SimpleNamespace(batch_size=8)
    model = SimpleNamespace(features=SimpleNamespace(row_bytes=12))
    batches = list(_epoch(SimpleNamespace(recipe=recipe, model=model), 2, 0))
    assert [batch.first for batch in batches] == [True, False, False]
    for batch, piece in zip(batches, pieces, strict=True):
        assert batch.inputs is piece["inputs"]
        assert batch.targets is piece["targets"]
        assert batch.weights is piece.get("weights")
