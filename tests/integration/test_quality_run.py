"""Quality checks of a cut through the whole job, on digits of which a fifth is mislabelled."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from corpora import digit_rows, image_table, linear_checkpoint, write_parquet

from dataprune_ray import comparing
from dataprune_ray.arms import kept_hashes
from dataprune_ray.config import CompareConfig, PruneConfig
from dataprune_ray.errors import ConfigError
from dataprune_ray.io import open_corpus
from dataprune_ray.io.output import remove_run
from dataprune_ray.leaking import leakage
from dataprune_ray.pipeline import prune
from dataprune_ray.report import from_json
from dataprune_ray.understanding import complete, understand

pytestmark = pytest.mark.usefixtures("local_ray")

BAD = 40


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """Noisy digits with ids as row keys, one broken image, and a checkpoint that scores them."""
    folder = tmp_path_factory.mktemp("noisy")
    images, clean = digit_rows()
    rng = np.random.default_rng(3)
    wrong = rng.random(len(clean)) < 0.2
    labels = np.where(wrong, (clean + rng.integers(1, 10, len(clean))) % 10, clean)
    table = image_table(images, labels)
    payloads = table["img"].to_pylist()
    payloads[BAD]["bytes"] = b"no image"
    table = table.set_column(0, "img", pa.array(payloads, table.schema.field("img").type))
    return {
        "table": table,
        "wrong": wrong,
        "input": write_parquet(folder / "corpus", table, files=3),
        "checkpoint": linear_checkpoint(folder / "linear.pt", images, labels),
        "folder": folder,
    }


def settings(noisy, output, **changes):
    base = {
        "input": noisy["input"],
        "output": str(output),
        "model": "mlp:256,128",
        "proxy_seeds": 1,
        "id_column": "id",
        "keep": 0.4,
        "actors": 1,
        "quality": True,
        "rescue": 0.1,
    }
    return PruneConfig.from_flat({**base, **changes})


@pytest.fixture(scope="module")
def run(noisy):
    output = noisy["folder"] / "out"
    return prune(settings(noisy, output)), output


def tables(output, name):
    files = sorted((Path(output) / name).glob("*.parquet"))
    return pa.concat_tables([pq.read_table(file) for file in files])


def joined(output):
    """Scores and judgements of the scored rows, and the decisions about them."""
    scores, quality = tables(output, "scores"), tables(output, "quality")
    right = scores["error"].is_null()
    return scores.filter(right), quality.filter(right), tables(output, "decisions")


def test_quality_files_are_row_aligned_with_the_scores(noisy, run):
    _, output = run
    scores, quality = tables(output, "scores"), tables(output, "quality")
    assert scores.num_rows == quality.num_rows == len(noisy["wrong"])
    assert scores["row_hash"].equals(quality["row_hash"])
    assert scores["el2n"].equals(quality["score"])
    assert scores["error"].equals(quality["error"])
    assert np.flatnonzero(scores["error"].is_valid()).tolist() == [BAD]
    for name in ("self_confidence", "predicted", "neighbour_distance", "cluster", "top_class"):
        assert np.flatnonzero(quality[name].is_null()).tolist() == [BAD]
    assert quality["unjudged"].null_count == quality.num_rows
    folds = np.bincount(quality["fold"].drop_null().to_numpy())
    assert len(folds) == 3
    assert folds.min() > 500


def test_the_count_is_exact_and_the_decisions_say_what_was_rescued(noisy, run):
    manifest, output = run
    scored = len(noisy["wrong"]) - 1
    kept = int(0.4 * scored + 0.5)
    assert manifest["rows"]["kept"] == kept == tables(output, "data").num_rows
    rescued = manifest["quality"]["rescued"]
    assert 0 < rescued == manifest["rescue"]["rows"] <= kept // 10
    reason = "kept: rescued, rare but consistent"
    assert manifest["reasons"][reason] == rescued
    scores, quality, decisions = joined(output)
    chosen = np.asarray(pc.equal(decisions["reason"].cast(pa.string()), reason))
    order = np.argsort(-scores["el2n"].to_numpy(), kind="stable")
    assert not chosen[order[:kept]].any()  # what the plain cut keeps needs no rescue
    assert decisions["kept"].to_numpy()[order[: kept - rescued]].all()
    assert decisions["kept"].to_numpy()[chosen].all()
    far = quality["neighbour_distance"].to_numpy()
    q1, q3 = np.quantile(far, [0.25, 0.75], method="inverted_cdf")
    assert (far[chosen] > q3 + 1.5 * (q3 - q1)).all()
    assert (quality["neighbour_agreement"].to_numpy()[chosen] >= 0.5).all()
    assert (quality["predicted"].to_numpy()[chosen] == quality["label"].to_numpy()[chosen]).all()


def test_a_comparison_rescues_anew_without_the_rows_it_tests(run, tmp_path):
    """Judged, rescued and cut among the rows that are left; as many are kept as without rescue."""
    _, output = run
    asked = {"pruned": str(output), "test_fraction": 0.3, "arms": ["pruned"]}
    config = CompareConfig.from_flat(asked)
    (subject,) = comparing.open_subjects(config)
    harder = replace(subject, config=subject.config.replace(keep=0.2))  # drops more to rescue
    (bout,) = comparing.rounds(config, [harder], str(tmp_path))
    (arm,) = [entry.arm for entry in bout.entries]
    fold = Path(arm.scores).parent
    assert Path(arm.quality) == fold / "quality"
    scores, judged = tables(fold, "scores"), tables(fold, "quality")
    assert scores["row_hash"].equals(judged["row_hash"])
    right = scores["error"].is_null()
    scores, judged = scores.filter(right), judged.filter(right)
    hashes = scores["row_hash"].to_numpy()
    assert not bout.held_out.admits(hashes).any()
    records = [json.loads(p.read_text()) for p in (fold / "quality").glob("fold-*.json")]
    assert sum(record["rows_available"] for record in records) == 2 * len(hashes)
    assert np.bincount(judged["fold"].to_numpy()).min() > 0.25 * len(hashes)

    found = np.concatenate([kept_hashes(arm, name) for name in arm.fragments])
    kept = int(0.2 * len(hashes) + 0.5)
    assert len(found) == len(np.unique(found)) == kept
    order = np.argsort(-scores["el2n"].to_numpy(), kind="stable")
    rescued = np.isin(hashes, found)
    assert rescued[order[: kept - arm.rescue.rows]].all()
    rescued[order[:kept]] = False
    assert rescued.sum() == arm.rescue.rows > 0
    far = judged["neighbour_distance"].to_numpy()
    q1, q3 = np.quantile(far, [0.25, 0.75], method="inverted_cdf")
    assert (far[rescued] > q3 + 1.5 * (q3 - q1)).all()
    assert (judged["neighbour_agreement"].to_numpy()[rescued] >= 0.5).all()
    assert (judged["predicted"].to_numpy()[rescued] == judged["label"].to_numpy()[rescued]).all()


def test_the_noise_is_measured_and_its_rows_are_found(noisy, run):
    manifest, output = run
    quality = manifest["quality"]
    assert abs(quality["noise_share"] - noisy["wrong"].mean()) < 0.04
    _, judged, _ = joined(output)
    wrong = np.delete(noisy["wrong"], BAD)
    confidence = judged["self_confidence"].to_numpy()
    lowest = np.argsort(confidence)[: quality["suspected"]]
    assert wrong[lowest].mean() > 0.85
    assert wrong[lowest].sum() > 0.7 * wrong.sum()
    agreement = judged["neighbour_agreement"].to_numpy()
    assert agreement[~wrong].mean() > agreement[wrong].mean() + 0.4
    disagreement = 1 - agreement.astype(np.float64).mean()
    assert quality["neighbour_disagreement"] == pytest.approx(disagreement, abs=1e-6)


def test_coverage_adds_up_and_the_report_shows_it(noisy, run):
    manifest, output = run
    quality = manifest["quality"]
    rows, kept = np.array(quality["clusters"]).sum(axis=0)
    assert rows == quality["rows"] == len(noisy["wrong"]) - 1
    assert kept == manifest["rows"]["kept"]
    page = (output / "report.html").read_text()
    assert "Suspected mislabelled" in page
    assert "Rescued" in page
    shown = from_json((output / "report.json").read_bytes())
    assert sum(shown.histogram.kept) == manifest["rows"]["kept"]
    titles = {gallery.title for gallery in shown.galleries}
    assert {"Rescued", "Suspected mislabelled"} <= titles
    _, judged, decisions = joined(output)
    far = judged["neighbour_distance"].to_numpy()
    q1, q3 = np.quantile(far, [0.25, 0.75], method="inverted_cdf")
    outliers = (far > q3 + 1.5 * (q3 - q1)) & ~decisions["kept"].to_numpy()
    assert quality["dropped_density_outliers"] == outliers.sum()
    assert ("Dropped outliers" in titles) == outliers.any()


def test_a_resumed_run_reuses_what_was_judged(noisy, run):
    manifest, output = run
    before = {file: file.stat().st_mtime_ns for file in (output / "quality").iterdir()}
    lost = sorted((output / "quality").glob("*.parquet"))[1]
    content = lost.read_bytes()
    (output / "manifest.json").unlink()
    lost.unlink()
    again = prune(settings(noisy, output))
    assert again["content_hash"] == manifest["content_hash"]
    assert again["quality"] == manifest["quality"]
    assert lost.read_bytes() == content
    after = {file: file.stat().st_mtime_ns for file in (output / "quality").iterdir()}
    assert {file for file in before if before[file] != after[file]} == {lost}


def test_another_layout_gives_the_same_judgements(noisy, run, tmp_path):
    manifest, output = run
    order = np.random.default_rng(0).permutation(len(noisy["wrong"]))
    other = write_parquet(tmp_path / "corpus", noisy["table"].take(order), files=2, group_rows=333)
    again = prune(settings(noisy, tmp_path / "out", input=other))
    assert again["content_hash"] == manifest["content_hash"]
    assert again["quality"] == manifest["quality"]
    first, second = (tables(place, "quality") for place in (output, tmp_path / "out"))
    columns = ["row_hash", "fold", "predicted", "cluster", "neighbour_agreement"]
    assert (
        first.select(columns).sort_by("row_hash").equals(second.select(columns).sort_by("row_hash"))
    )
    files = list((tmp_path / "out" / "quality").iterdir())
    assert len(files) == 2 + 3 * 3
    remove_run(str(tmp_path / "out"))
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*.*"))


def test_an_unlabelled_corpus_is_judged_by_the_given_model(noisy, tmp_path):
    images, _ = digit_rows()
    one = np.zeros(len(images), np.int64)
    checkpoint = linear_checkpoint(tmp_path / "one.pt", images, one, classes=1)
    quality = prune(
        settings(
            noisy,
            tmp_path / "out",
            label="none",
            metric=["output_magnitude"],
            model="linear",
            checkpoint=[checkpoint],
            rescue=0.0,
        )
    )["quality"]
    assert quality["noise_share"] is None
    assert quality["neighbour_disagreement"] is None
    assert quality["suspected"] == quality["rescued"] == 0
    assert sum(rows for rows, _ in quality["clusters"]) == quality["rows"]


def test_planted_leaks_are_found(tmp_path):
    images, labels = digit_rows()
    rng = np.random.default_rng(0)
    noise = np.rint(rng.normal(0, 4, (15, 8, 8))).astype(int)
    nearly = np.clip(images[300:315].astype(int) + noise, 0, 255).astype(np.uint8)
    held = np.concatenate([images[1200:], images[40:60], nearly])
    write_parquet(tmp_path / "train", image_table(images[:1200], labels[:1200]), files=2)
    write_parquet(tmp_path / "test", image_table(held, labels[: len(held)]), files=2)
    rows, test = (understanding_of(tmp_path / name) for name in ("train", "test"))
    found = leakage(rows.rows, test.rows, rows.model)
    assert found.exact == 20
    assert 15 <= found.near <= 17  # a digit or two are alike without being planted
    assert found.test_rows == found.test_rows_in_all == len(held)
    assert len(found.examples) == 10
    for one, other in found.examples:
        file, row = other.split(":")
        place = int(row) + (file == "001.parquet") * (len(held) // 2)
        train = int(one.split(":")[1]) + (one[:3] == "001") * 600
        assert np.abs(images[train].astype(int) - held[place]).mean() < 12
    sampled = leakage(rows.rows, test.rows, rows.model, limit=100)
    assert (sampled.test_rows, sampled.test_rows_in_all) == (100, len(held))
    assert sampled.exact + sampled.near < found.exact + found.near


def understanding_of(folder):
    config = PruneConfig.from_flat({"input": str(folder), "output": "unused", "model": "mlp"})
    return complete(understand(config, open_corpus(config.corpus)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "none", "metric": ["random"]}, "pass --checkpoint"),
        ({"strategy": "mean"}, "no budget"),
    ],
)
def test_what_cannot_be_judged_is_refused_before_ray_starts(noisy, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        prune(settings(noisy, tmp_path / "out", **changes))
    assert not (tmp_path / "out" / "run.json").exists()
