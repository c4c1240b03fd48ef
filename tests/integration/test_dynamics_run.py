"""Training dynamics of a whole run against literal loops over the checkpoints that it left."""

from __future__ import annotations

import itertools
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest
import safetensors.numpy

sys.path.insert(0, str(Path(__file__).parent))

from corpora import digit_rows, image_table, linear_checkpoint, write_parquet

from dataprune_ray.config import PruneConfig
from dataprune_ray.errors import ConfigError
from dataprune_ray.io.output import remove_run
from dataprune_ray.pipeline import preview, prune

pytestmark = pytest.mark.usefixtures("local_ray")

METRICS = ["aum", "el2n", "forgetting", "dual", "tdds", "cartography_variability"]
EPOCHS, WINDOW = 5, 3


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A corpus of three files, a run over it with proxies, and another with its trajectory."""
    folder = tmp_path_factory.mktemp("dynamics")
    images, labels = digit_rows()
    source = write_parquet(folder / "corpus", image_table(images, labels), files=3)
    settings = {
        "input": source,
        "output": str(folder / "trained"),
        "model": "linear",
        "metric": METRICS,
        "proxy_epochs": EPOCHS,
        "proxy_seeds": 2,
        "dynamics_window": WINDOW,
    }
    prune(PruneConfig.from_flat(settings))
    proxy = folder / "trained" / "proxy"
    trajectory = [
        *sorted(map(str, proxy.glob("seed-0.safetensors.epoch-*.safetensors"))),
        str(proxy / "seed-0.safetensors"),
    ]
    given = {**settings, "output": str(folder / "given"), "trajectory": trajectory}
    prune(PruneConfig.from_flat({**given, "batch_size": 7, "actors": 2, "fragment_rows": 100}))
    return {"folder": folder, "images": images, "labels": labels, "given": given}


def scores(digits, name):
    table = ds.dataset(f"{digits['folder']}/{name}/scores", format="parquet").to_table()
    assert table["error"].null_count == table.num_rows
    return {column: table[column].to_numpy() for column in ("file", "row", *METRICS)}


def probabilities(digits, path):
    weights = safetensors.numpy.load_file(path)
    pixels = digits["images"].reshape(len(digits["images"]), -1) / 255.0
    logits = pixels @ weights["1.weight"].astype(float).T + weights["1.bias"].astype(float)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)  # (n, C)


def test_scores_are_those_of_a_literal_loop(digits):
    assert len(digits["given"]["trajectory"]) == EPOCHS
    steps = [probabilities(digits, path) for path in digits["given"]["trajectory"]]
    labels = digits["labels"]
    rows = np.arange(len(labels))
    own = np.stack([p[rows, labels] for p in steps])  # (T, n)
    others = np.stack([np.where(np.eye(10)[labels] > 0, -1, p).max(axis=1) for p in steps])
    right = np.stack([p.argmax(axis=1) == labels for p in steps])
    events = (right[:-1] & ~right[1:]).sum(axis=0)
    windows = np.lib.stride_tricks.sliding_window_view(own, WINDOW, axis=0)  # (T - J + 1, n, J)
    changes = np.stack(
        [
            (after * np.abs(np.log(after / before))).sum(axis=1)
            for before, after in itertools.pairwise(steps)
        ]
    )
    depth = np.zeros(len(labels))
    for k in range(EPOCHS - WINDOW + 1):
        window = changes[k : k + WINDOW - 1]
        spread = np.sqrt(((window - window.mean(axis=0)) ** 2).sum(axis=0))
        depth = 0.1 * depth + 0.9 * spread
    expected = {
        "aum": (own - others).mean(axis=0),
        "forgetting": np.where(right.any(axis=0), events, EPOCHS + 1),
        "dual": (windows.std(axis=2, ddof=1) * (1 - windows.mean(axis=2))).mean(axis=0),
        "tdds": depth,
        "cartography_variability": own.std(axis=0),
    }
    found = scores(digits, "trained")
    np.testing.assert_array_equal(found["forgetting"], expected.pop("forgetting"))
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_given_run_scores_alike_in_other_batches_fragments_and_actors(digits):
    trained, given = scores(digits, "trained"), scores(digits, "given")
    for name in METRICS:
        if name != "el2n":  # of two proxies there, of the last checkpoint here
            np.testing.assert_array_equal(trained[name], given[name], err_msg=name)
    last = probabilities(digits, digits["given"]["trajectory"][-1])
    error = np.linalg.norm(last - np.eye(10)[digits["labels"]], axis=1)
    np.testing.assert_allclose(given["el2n"], error, rtol=1e-5, atol=1e-6)


def test_a_baseline_passes_its_trajectory_on(digits, tmp_path):
    first = {**digits["given"], "trajectory": [], "output": str(tmp_path / "next")}
    baseline = {**first, "baseline": str(digits["folder"] / "trained")}
    content = prune(PruneConfig.from_flat(baseline))
    assert content["baseline"]["rows"]["scored"] == 0
    ours = sorted(path.name for path in (tmp_path / "next" / "proxy").iterdir())
    theirs = sorted(path.name for path in (digits["folder"] / "trained" / "proxy").iterdir())
    assert ours == theirs
    found = scores({**digits, "folder": tmp_path}, "next")
    for name, values in scores(digits, "trained").items():
        np.testing.assert_array_equal(values, found[name], err_msg=name)


def test_all_that_it_wrote_is_known_as_its_own(digits, tmp_path):
    copy = shutil.copytree(digits["folder"] / "trained", tmp_path / "copy")
    remove_run(str(copy))
    assert not [path for path in copy.rglob("*") if path.is_file()]


def test_a_sample_previews_them(digits):
    settings = {**digits["given"], "output": "", "dry_run": True, "sample_rows": 300}
    found = preview(PruneConfig.from_flat(settings))
    assert found.sampled
    assert found.rows == len(digits["labels"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trajectory": [], "checkpoint": "linear"}, "--trajectory"),
        ({"trajectory": [], "proxy_epochs": 2}, "3 checkpoints of a run at least, there are 2"),
        ({"dynamics_window": 6}, "6 checkpoints of a run at least, there are 5; name more"),
        ({"trajectory": ["missing.pt"]}, "trajectory='missing.pt': no such file"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(digits, changes, message, tmp_path):
    if "checkpoint" in changes:
        path = linear_checkpoint(tmp_path / "linear.pt", digits["images"], digits["labels"])
        changes = {**changes, "checkpoint": [path]}
    settings = {**digits["given"], "output": str(tmp_path / "out"), "metric": ["dual", "aum"]}
    with pytest.raises(ConfigError, match=message):
        prune(PruneConfig.from_flat({**settings, **changes}))
    assert not (tmp_path / "out").exists()
