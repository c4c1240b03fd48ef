"""The survey and places in the space: equal for any cut of the corpus, batch size and order."""

from __future__ import annotations

import io
import itertools
import tarfile
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.datasets import load_digits

from dataprune_ray import fitting
from dataprune_ray.baseline import Baseline, check_settings
from dataprune_ray.config import PruneConfig
from dataprune_ray.engine import Engine, check_models
from dataprune_ray.errors import BadDataError, ConfigError
from dataprune_ray.fitting import finish, fitted_in_memory, forget
from dataprune_ray.io import open_corpus
from dataprune_ray.io.splits import Split
from dataprune_ray.metrics import METRICS
from dataprune_ray.placing import load_space
from dataprune_ray.planning import score_plan
from dataprune_ray.plans import Judges
from dataprune_ray.probing import Probe, probed
from dataprune_ray.scoring import score_in_tasks
from dataprune_ray.surveying import _count, survey_here
from dataprune_ray.understanding import understand

SPACED = tuple(name for name, metric in METRICS.items() if "space" in metric.needs)
CLASSES = tuple(map(str, range(10)))


@pytest.fixture(scope="module")
def table():
    digits = load_digits()
    pixels, labels = digits.data[:600].astype(np.float32), digits.target[:600]
    emb = pixels[:, :20] * 2 + labels[:, None]
    return pa.table(
        {
            "x": pa.FixedSizeListArray.from_arrays(pa.array(pixels.ravel()), 64),
            "emb": pa.array([row.tolist() for row in emb], pa.list_(pa.float32())),
            "label": pa.array(labels, pa.int64()),
            "id": pa.array(range(600), pa.int64()),
        }
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "mlp.pt"
    first, last = torch.nn.Linear(64, 12), torch.nn.Linear(12, 10)
    state = {"1.weight": first.weight, "1.bias": first.bias}
    torch.save(state | {"3.weight": last.weight, "3.bias": last.bias}, path)
    return str(path)


def write(folder, table, files=1, group=100):
    folder.mkdir()
    bounds = np.linspace(0, len(table), files + 1).astype(int)
    for n, (low, high) in enumerate(itertools.pairwise(bounds)):
        pq.write_table(table.slice(low, high - low), folder / f"{n}.parquet", row_group_size=group)
    return str(folder)


def planned(corpus, scores, checkpoint=None, **changes):
    """The scoring plan of a corpus, surveyed, as a run makes it; class names are known."""
    flat = {
        "input": corpus, "output": "out", "features": ["x"], "label": "label", "id_column": "id",
        "metric": SPACED, "model": "mlp:12", "checkpoint": [checkpoint] if checkpoint else [],
        "num_classes": 10, "fragment_rows": 150, "keep_end": "high", **changes,
    }  # fmt: skip
    config = PruneConfig.from_flat(flat)
    understanding = understand(config, open_corpus(config.corpus))
    label = replace(understanding.label, classes=CLASSES)
    understanding = replace(
        understanding,
        rows=replace(understanding.rows, label=label),
        model=replace(understanding.model, label=label),
    )
    plan = score_plan(config, understanding, Judges(config.model.checkpoint), str(scores))
    check_models(plan)
    survey_here(plan)
    return plan


def scored(plan):
    engine = Engine(plan)
    parts = [t for f in plan.rows.fragments for t in engine.tables(f, plan.layout, set())]
    return fitted_in_memory(plan, pa.concat_tables(parts))


@pytest.mark.parametrize("density", ["gmm", "knn", "kmeans"])
def test_values_do_not_depend_on_files_batches_or_order(tmp_path, table, checkpoint, density):
    options = {"checkpoint": checkpoint, "density": density, "survey_rows": 300}
    whole = planned(write(tmp_path / "a", table), tmp_path / "s", **options)
    shuffled = table.take(np.random.default_rng(0).permutation(600))
    other = planned(
        write(tmp_path / "b", shuffled, files=5, group=37), tmp_path / "t", batch_size=50, **options
    )
    assert len(other.rows.fragments) > 3
    first, second = (load_space(plan.space_path).tensors for plan in (whole, other))
    assert first.keys() == second.keys()
    assert all((second[name] == values).all() for name, values in first.items())
    tables = [scored(plan).sort_by("row_hash") for plan in (whole, other)]
    for name in SPACED:
        a, b = (t[name].to_numpy() for t in tables)
        assert np.isfinite(a).all()
        assert len(np.unique(a)) > 1
        assert (a == b).all(), name


def test_the_sample_is_chosen_by_hash_and_limited(tmp_path, table):
    corpus = write(tmp_path / "a", table)
    metric = ["knn_label_agreement"] if "knn_label_agreement" in METRICS else ["surprisal"]
    plan = planned(corpus, tmp_path / "s", space="inputs", metric=metric, density="knn",
                   survey_rows=40)  # fmt: skip
    space = load_space(plan.space_path)
    hashes = next(v for n, v in space.tensors.items() if n.endswith("row_hash"))
    assert len(hashes) == len(set(hashes.tolist())) == 40
    other = planned(corpus, tmp_path / "t", space="inputs", metric=metric, density="knn",
                    survey_rows=20)  # fmt: skip
    fewer = next(v for n, v in load_space(other.space_path).tensors.items() if "row_hash" in n)
    assert set(fewer.tolist()) < set(hashes.tolist())
    seeded = planned(corpus, tmp_path / "u", space="inputs", metric=metric, density="knn",
                     survey_rows=40, seed=1)  # fmt: skip
    others = next(v for n, v in load_space(seeded.space_path).tensors.items() if "row_hash" in n)
    assert set(others.tolist()) != set(hashes.tolist())


@pytest.mark.parametrize("space", ["inputs", "emb"])
def test_spaces_without_a_model_need_none(tmp_path, table, space):
    plan = planned(write(tmp_path / "a", table), tmp_path / "s", space=space)
    assert not plan.needs
    assert not plan.used.paths
    width = {"inputs": 64, "emb": 20}[space]
    assert load_space(plan.space_path).width == width
    found = scored(plan)
    features = np.array(table["x" if space == "inputs" else "emb"].to_pylist(), np.float32)
    centres = load_space(plan.space_path).tensors["centres"]
    mean = load_space(plan.space_path).tensors["mean"]
    gaps = np.linalg.norm((features - mean)[:, None] - centres[None], axis=2).min(axis=1)
    assert found["prototype"].to_numpy() == pytest.approx(gaps, rel=1e-5)
    trained = planned(f"{tmp_path}/a", tmp_path / "t", space=space, metric=["prototype"])
    assert not trained.needs


def test_the_features_are_the_first_models_penultimate_ones(tmp_path, table, checkpoint):
    corpus = write(tmp_path / "a", table)
    plan = planned(corpus, tmp_path / "s", checkpoint=checkpoint, metric=["prototype"])
    state = torch.load(checkpoint, weights_only=True)
    x = torch.tensor(np.array(table["x"].to_pylist(), np.float32))
    features = torch.relu(x @ state["1.weight"].T + state["1.bias"]).detach().numpy()
    mean = load_space(plan.space_path).tensors["mean"]
    assert mean == pytest.approx(features.mean(axis=0), rel=1e-5, abs=1e-6)
    two = replace(plan, judges=Judges((checkpoint, "gone.pt")))
    assert two.used.models == (checkpoint,)
    assert replace(two, metrics=("prototype", "el2n")).used.models == (checkpoint, "gone.pt")


def test_rows_without_a_place_are_bad_rows(tmp_path, table):
    emb = table["emb"].to_pylist()
    emb[3], emb[5], emb[7] = None, [1.0, 2.0], [float("nan")] * 20
    broken = table.set_column(1, "emb", pa.array(emb, pa.list_(pa.float32())))
    plan = planned(write(tmp_path / "a", broken), tmp_path / "s", space="emb")
    found = scored(plan)
    errors = {i: e for i, e in enumerate(found["error"].to_pylist()) if e}
    assert errors == {
        3: "emb: tensor is null", 5: "emb: tensor has 2, not 20 values",
        7: "emb: feature is not finite",
    }  # fmt: skip
    for name in SPACED:
        assert found[name].null_count == 3
    none = table.set_column(2, "label", pa.nulls(600, pa.int64()))
    with pytest.raises(BadDataError, match=r"no good row .* to survey"):
        planned(write(tmp_path / "b", none), tmp_path / "t", space="emb")


def test_a_space_that_the_corpus_cannot_give_is_refused(tmp_path, table):
    corpus = write(tmp_path / "a", table)
    with pytest.raises(ConfigError, match="space='gone': is neither model nor inputs"):
        planned(corpus, tmp_path / "s", space="gone")
    with pytest.raises(ConfigError, match="space='id': is neither model nor inputs"):
        planned(corpus, tmp_path / "s", space="id")
    with pytest.raises(ConfigError, match="'mutual_information': needs labels"):
        planned(corpus, tmp_path / "s", label="none", metric=["mutual_information"])
    texts = pa.table({"x": ["one fine day", "two bad days"] * 20, "label": [0, 1] * 20,
                      "id": range(40)})  # fmt: skip
    with pytest.raises(ConfigError, match="space='inputs': texts are no vectors"):
        planned(write(tmp_path / "b", texts), tmp_path / "s", space="inputs", num_classes=2)


# Second stages over files, and the shuffle


@pytest.fixture
def in_process(monkeypatch):
    """Tasks run one after the other in this process."""
    for module in ("fitting", "scoring", "shuffling", "surveying"):
        monkeypatch.setattr(
            f"dataprune_ray.{module}.run_tasks", lambda f, items, **_: map(f, items)
        )


def committed(plan):
    engine = Engine(plan)
    for fragment in plan.rows.fragments:
        engine.commit(fragment)
    finish(plan)
    return pq.read_table(plan.folder)


@pytest.fixture(scope="module")
def copied(table):
    """The table with 40 rows again under new ids, and rows that nearly repeat others."""
    again = table.slice(100, 40).set_column(3, "id", pa.array(range(1000, 1040), pa.int64()))
    pixels = np.array(table["x"].slice(200, 40).to_pylist(), np.float32)
    pixels = pixels + np.random.default_rng(0).normal(size=pixels.shape) * 0.05
    near = again.set_column(3, "id", pa.array(range(2000, 2040), pa.int64()))
    near = near.set_column(0, "x", pa.FixedSizeListArray.from_arrays(
        pa.array(pixels.astype(np.float32).ravel()), 64))  # fmt: skip
    return pa.concat_tables([table, again, near]).combine_chunks()


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("bucket_bytes", [1 << 27, 60_000])
def test_the_shuffle_finds_what_one_pass_in_memory_does(
    tmp_path, copied, monkeypatch, bucket_bytes
):
    monkeypatch.setattr("dataprune_ray.shuffling._BUCKET_BYTES", bucket_bytes)
    monkeypatch.setattr("dataprune_ray.space.fitted._ROWS_PER_SPHERE", 100)
    options = {"space": "inputs", "duplicate_epsilon": 0.005, "whiten": False}
    plan = planned(write(tmp_path / "a", copied, files=3, group=50), tmp_path / "s", **options)
    expected = scored(plan)
    found = committed(plan)
    assert set(found.column_names) == {
        "file", "row", "key", "row_hash", "label", "error", *SPACED,
    }  # fmt: skip
    for name in SPACED:
        assert (found[name].to_numpy() == expected[name].to_numpy()).all(), name
    assert sorted(p.name for p in (tmp_path / "s").iterdir() if p.name.startswith("_")) == [
        "_fit.json", "_space.safetensors",
    ]  # fmt: skip
    by_key = dict(zip(found["key"].to_pylist(), found["redundancy"].to_pylist(), strict=True))
    exact = [(by_key[str(100 + i)], by_key[str(1000 + i)]) for i in range(40)]
    assert all(max(pair) == 1.0 > min(pair) for pair in exact)
    near = [max(by_key[str(200 + i)], by_key[str(2000 + i)]) for i in range(40)]
    assert np.mean(np.array(near) > 0.995) > 0.9
    others = [by_key[str(i)] for i in range(300, 600)]
    assert np.mean(np.array(others) > 0.995) < 0.05


@pytest.mark.usefixtures("in_process")
def test_a_shuffle_without_copies_needs_no_digests(tmp_path, copied, monkeypatch):
    monkeypatch.setattr("dataprune_ray.shuffling._BUCKET_BYTES", 60_000)
    monkeypatch.setattr("dataprune_ray.shuffling._find_copies", None)
    monkeypatch.setattr("dataprune_ray.space.fitted._ROWS_PER_SPHERE", 100)
    options = {"space": "inputs", "metric": ["k_center", "facility_location"]}
    plan = planned(write(tmp_path / "a", copied, files=3), tmp_path / "s", **options)
    assert "digest" not in plan.layout.names
    expected, found = scored(plan), committed(plan)
    assert found.column_names == expected.column_names
    for name in options["metric"]:
        values = found[name].to_numpy()
        assert (values == expected[name].to_numpy()).all()
        assert (values == 1).sum() == load_space(plan.space_path).spheres[0] == 7


@pytest.mark.usefixtures("in_process")
def test_a_search_that_was_cut_off_is_begun_again(tmp_path, copied, monkeypatch):
    corpus = write(tmp_path / "a", copied, files=3)
    options = {"space": "inputs", "metric": ["redundancy", "mutual_information"]}
    expected = committed(planned(corpus, tmp_path / "s", **options))
    plan = planned(corpus, tmp_path / "t", **options)
    monkeypatch.setattr("dataprune_ray.shuffling._compare", None)
    with pytest.raises(TypeError):
        committed(plan)
    assert any(p.suffix == ".arrow" for p in (tmp_path / "t").iterdir())
    monkeypatch.undo()
    for module in ("fitting", "shuffling"):
        monkeypatch.setattr(f"dataprune_ray.{module}.run_tasks", map)
    real = fitting._complete
    calls = []

    def breaking(work, item):
        calls.append(item)
        if len(calls) == 2:
            raise OSError("cut off")
        real(work, item)

    monkeypatch.setattr(fitting, "_complete", breaking)
    with pytest.raises(OSError, match="cut off"):
        finish(plan)
    finish(plan)  # the finished file is left as it is, the others are joined with what was found
    assert pq.read_table(plan.folder).equals(expected)
    assert not any(p.suffix == ".arrow" for p in (tmp_path / "t").iterdir())
    for path in (tmp_path / "t").glob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.append_column("2 * redundancy", table["redundancy"]), path)
    finish(plan)  # a formula has been added since: a run that goes on leaves it there
    assert pq.read_table(plan.folder).column_names == [*expected.column_names, "2 * redundancy"]
    assert forget(plan)
    assert [p.name for p in (tmp_path / "t").iterdir()] == []


def test_archives_are_counted_for_the_sample(tmp_path):
    """Nothing but reading tells how many rows an archive holds."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "tars"
    folder.mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for row in range(60):
                payload = io.BytesIO()
                np.save(payload, rng.normal(size=4).astype(np.float32))
                for name, content in (("npy", payload.getvalue()), ("cls", b"%d" % (row % 10))):
                    info = tarfile.TarInfo(f"{shard}-{row:03d}.{name}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    options = {"features": ["npy"], "label": "cls", "id_column": None, "space": "inputs"}
    plan = planned(str(folder), tmp_path / "s", survey_rows=30, metric=["surprisal"],
                   density="knn", **options)  # fmt: skip
    assert [fragment.rows for fragment in plan.rows.fragments] == [None, None]
    assert [_count(plan, fragment) for fragment in plan.rows.fragments] == [60, 60]
    assert len(load_space(plan.space_path).tensors["density_rows"]) == 30


@pytest.mark.parametrize("name", SPACED)
def test_a_baseline_cannot_be_extended_by_what_a_sample_decides(name):
    config = PruneConfig.from_flat({"input": "in", "output": "out", "metric": ["random", name]})
    baseline = Baseline("base", {}, {}, {"on_gpu": False}, "digest")
    with pytest.raises(ConfigError, match=rf"metric='{name}': looks at the whole corpus"):
        check_settings(config, baseline)


def test_a_preview_scores_its_sample_with_a_space_of_its_own(tmp_path, table):
    corpus = write(tmp_path / "a", table, files=2)
    config = PruneConfig.from_flat(
        {
            "input": corpus, "features": ["x"], "label": "label", "id_column": "id",
            "metric": SPACED, "space": "emb", "num_classes": 10, "dry_run": True,
        }
    )  # fmt: skip
    understanding = understand(config, open_corpus(config.corpus))
    label = replace(understanding.label, classes=CLASSES)
    understanding = replace(
        understanding,
        rows=replace(understanding.rows, label=label),
        model=replace(understanding.model, label=label),
    )
    rows = understanding.rows.sampled(0.5)
    sample = probed(Probe(config, rows, understanding, rows.fragments[:1]))
    found = sample.table
    assert min(sample.rates.decode, sample.rates.survey, sample.rates.second) > 0
    assert sample.rates.forward == sample.rates.update == 0.0  # no model looks at embeddings
    assert sample.rates.row_bytes > 0
    assert sample.checkpoints == 0
    assert 250 < found.num_rows < 350
    for name in SPACED:
        assert found[name].null_count == 0
        assert len(found[name].unique()) > 1


@pytest.mark.usefixtures("in_process")
def test_a_fold_is_surveyed_by_its_own_rows(tmp_path, table):
    config = {"space": "inputs", "survey_rows": 100, "density": "knn"}
    whole = planned(write(tmp_path / "a", table, files=2), tmp_path / "s", **config)
    split = Split.fold(3, 1).others()
    rows = whole.rows.within(split)
    fold = replace(whole, rows=rows, folder=str(tmp_path / "fold"))
    score_in_tasks([fold])
    found = pq.read_table(fold.folder)
    inside = split.admits(found["row_hash"].to_numpy())
    assert inside.all()
    assert 350 < len(found) < 450
    sample = load_space(fold.space_path).tensors["density_row_hash"]
    assert split.admits(sample).all()
    assert len(sample) == 100
    assert set(load_space(whole.space_path).tensors["density_row_hash"]) != set(sample)
    for name in SPACED:
        assert found[name].null_count == 0
