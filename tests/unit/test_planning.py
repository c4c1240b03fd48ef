"""How many rows go through a model at once where nobody says."""

import pytest

from dataprune_ray.features import FeatureSpec, LabelSpec
from dataprune_ray.models import ModelSpec
from dataprune_ray.planning import rows_per_pass


@pytest.mark.parametrize(
    ("name", "modality", "shape", "rows"),
    [
        ("mlp", "image", (1, 28, 28), 1024),
        ("mlp:64", "tabular", (12,), 1024),
        ("small_cnn", "image", (1, 28, 28), 1024),
        ("resnet18", "image", (3, 32, 32), 256),
        ("mlp", "image", (3, 32, 32), 256),
        ("resnet50", "image", (3, 224, 224), 32),
        ("mlp", "tensor", (1_000_000,), 32),
    ],
)
def test_rows_per_pass_fit_caches(name, modality, shape, rows):
    spec = ModelSpec(name, FeatureSpec(modality, ("x",), shape), LabelSpec("label"))
    assert rows_per_pass(spec) == rows
