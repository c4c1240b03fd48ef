"""Two views of each row, each scored by a model of its own, and their scores combined."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import rankdata

sys.path.insert(0, str(Path(__file__).parent))

from corpora import digit_rows, image_table, linear_checkpoint, write_parquet

from dataprune_ray.config import PruneConfig
from dataprune_ray.errors import ConfigError
from dataprune_ray.explaining import explain
from dataprune_ray.pipeline import prune
from dataprune_ray.status import status

pytestmark = pytest.mark.usefixtures("local_ray")

ROWS, BROKEN = 400, (7, 250)
FORMULA = "0.25*rank(el2n)+0.75*rank(image.el2n)"
ONLY_JOINED = "0.25*rank(both.el2n)+0.75*rank(image.el2n)"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Left halves as images, two of them broken; right halves as vectors; then both together."""
    folder = tmp_path_factory.mktemp("views")
    images, labels = digit_rows(ROWS)
    left, right = images[:, :, :4], np.ascontiguousarray(images[:, :, 4:])
    table = image_table(left, labels)
    payloads = table["img"].to_pylist()
    for row in BROKEN:
        payloads[row]["bytes"] = b"no image"
    flat = (right.reshape(ROWS, 32) / 255).astype(np.float32)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), 32)
    table = table.set_column(0, "img", pa.array(payloads, table["img"].type))
    settings = {
        "input": write_parquet(folder / "corpus", table.append_column("right", vectors), files=3),
        "label": "label",
        "model": "linear",
        "keep": 0.3,
        "actors": 1,
    }
    views = {
        "image": {"features": ["img"], "fragment_rows": 90},
        "right": {"features": ["right"]},
    }
    for name, view in views.items():
        view["checkpoint"] = [
            linear_checkpoint(folder / f"{name}.pt", left if name == "image" else right, labels, 32)
        ]
    done = {"folder": folder, "labels": labels, "right": flat}
    done["checkpoint"] = views["right"]["checkpoint"][0]

    def run(output, view, **changes):
        asked = {**settings, **views[view], **changes, "output": str(folder / output)}
        return prune(PruneConfig.from_flat(asked))

    done["run"] = run
    done["image"] = run("image", "image")
    both = {"metric": [FORMULA], "with_scores": [f"image={folder / 'image'}"]}
    done["both"] = run("both", "right", **both)
    return done


def el2n_of_right_halves(runs):
    """By hand, in float64."""
    state = torch.load(runs["checkpoint"], weights_only=True)
    logits = runs["right"].astype(np.float64) @ state["1.weight"].double().numpy().T
    logits += state["1.bias"].double().numpy()
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(ROWS), runs["labels"]] -= 1
    return np.linalg.norm(p, axis=1)


def table(runs, name, folder="scores"):
    return pq.read_table(runs["folder"] / name / folder).to_pandas()


def test_the_formula_is_that_of_a_join_in_numpy(runs):
    image, right = table(runs, "image")["el2n"], el2n_of_right_halves(runs)
    good = image.notna().to_numpy()
    assert np.flatnonzero(~good).tolist() == list(BROKEN)
    parts = [(rankdata(values[good]) - 1) / (good.sum() - 1) for values in (right, image)]
    expected = 0.25 * parts[0] + 0.75 * parts[1]
    both = table(runs, "both")
    found = both["0.25 * rank(el2n) + 0.75 * rank(image.el2n)"].to_numpy()
    np.testing.assert_allclose(found[good], expected, atol=2e-3)  # near ties may swap
    np.testing.assert_array_equal(both["image.el2n"], image)
    np.testing.assert_allclose(both["el2n"][good], right[good], atol=1e-5)
    assert both["el2n"][~good].isna().all()
    manifest = runs["both"]
    assert manifest["rows"]["kept"] == int(0.3 * good.sum() + 0.5)
    assert manifest["rows"]["quarantined"] == len(BROKEN)
    kept = table(runs, "both", "decisions")["kept"].to_numpy()
    assert expected[kept].min() >= expected[~kept].max() - 2e-3
    reasons = table(runs, "both", "quarantine")["error"]
    assert all(reason.startswith("image: ") for reason in reasons)
    theirs = table(runs, "image", "quarantine")["error"]
    assert [reason.removeprefix("image: ") for reason in reasons] == theirs.tolist()
    assert manifest["joined"]["image"]["metrics"] == {"el2n": "el2n"}
    page = (runs["folder"] / "both" / "report.html").read_text()
    assert "image.el2n comes from the scores in" in page


def test_a_formula_of_joined_metrics_alone_trains_and_scores_nothing(runs):
    folder = runs["folder"]
    tables = [f"image={folder}/image/scores", f"both={folder}/both"]
    again = runs["run"](
        "joined", "right", metric=[ONLY_JOINED], with_scores=tables, checkpoint=[], actors=2
    )
    assert again["model"]["proxies"] == []
    assert not (folder / "joined" / "proxy").exists()
    assert again["content_hash"] == runs["both"]["content_hash"]
    names = set(table(runs, "joined").columns)
    assert {"image.el2n", "both.el2n"} <= names
    assert "el2n" not in names
    state = status(str(folder / "joined"))
    assert (state.proxies.total, state.finished) == (0, True)
    kept = table(runs, "joined", "decisions").query("kept").iloc[0]
    (said,) = explain(str(folder / "joined"), [f"{kept['file']}:{kept['row']}"])
    assert said.decision.kept
    assert {score.metric for score in said.scores} >= {"image.el2n", "both.el2n"}


def test_a_run_that_was_cut_off_goes_on_and_a_changed_table_is_refused(runs):
    out = runs["folder"] / "both"
    asked = {"metric": [FORMULA], "with_scores": [f"image={runs['folder'] / 'image'}"]}
    first = json.loads((out / "manifest.json").read_text())
    assert runs["run"]("both", "right", **asked) == first
    (out / "manifest.json").unlink()
    files = sorted((out / "scores").glob("*.parquet"))
    assert len(files) > 3  # the image run's fragments
    files[1].unlink()
    again = runs["run"]("both", "right", **asked)
    assert again["content_hash"] == first["content_hash"]
    assert again["rows"]["quarantined"] == first["rows"]["quarantined"]
    plan = runs["folder"] / "image" / "scores" / "_plan.json"
    before = plan.read_bytes()
    plan.write_bytes(before.replace(b'"el2n"\n', b'"el2n", "loss"\n'))
    assert plan.read_bytes() != before
    with pytest.raises(ConfigError, match="with_scores='image': this score table changed since"):
        runs["run"]("both", "right", **asked)
    plan.write_bytes(before)
