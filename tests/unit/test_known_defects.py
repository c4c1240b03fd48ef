"""Defects that public implementations of data pruning have: each would be caught here.

They are named for what goes wrong there. A small corpus is scored, decided and written without
Ray by the functions that the workers run.
"""

from __future__ import annotations

import io
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dataprune_ray.config import PruneConfig, SelectConfig
from dataprune_ray.cutoff import Block, MemoryPopulation, kept_counts, seeded_hash
from dataprune_ray.deciding import WritePlan, _decide
from dataprune_ray.engine import Engine
from dataprune_ray.io import open_corpus
from dataprune_ray.io.identity import position_hashes
from dataprune_ray.io.scores import FilePopulation
from dataprune_ray.metrics import METRICS, ModelOutputs
from dataprune_ray.planning import score_plan
from dataprune_ray.plans import Judges
from dataprune_ray.strategies import STRATEGIES, ScoreInfo, compile_rule
from dataprune_ray.understanding import understand
from dataprune_ray.writing import _write_part, plan_parts

INFO = ScoreInfo("m", "high", 0.0, 1.0)
#: Strategies that keep an exact number of rows.
COUNTED = [n for n, s in STRATEGIES.items() if s.uses_keep and n != "quantile"]
ROWS = 60


def compiled(name, scores, keep, codes=None, groups=("",), info=INFO, **changes):
    block = Block(scores, seeded_hash(np.arange(len(scores), dtype=np.uint64), 0), codes)
    config = SelectConfig(strategy=name, keep=keep, **changes)
    population = MemoryPopulation([block], groups)
    return STRATEGIES[name].compile(population, config, info), block


# Order and counts --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["entropy", "confidence", "margin", "el2n", "loss", "grad_norm"])
def test_the_most_certain_rows_are_kept_because_one_branch_sorts_the_other_way(name):
    certainty = torch.linspace(0.1, 6.0, 20)
    logits = torch.zeros(1, 20, 4)
    logits[0, :, 0] = certainty
    outputs = ModelOutputs(
        logits, torch.zeros(20, dtype=torch.int64), features=(torch.ones(1, 20, 3)[0],)
    )
    metric = METRICS[name]
    scores = metric.score(outputs).numpy()
    info = ScoreInfo(name, metric.polarity, metric.low, metric.high)
    rule, block = compiled("ratio", scores, 0.25, info=info)
    assert np.flatnonzero(rule.apply(block)).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["class_balanced", "random_balanced"])
@pytest.mark.parametrize("order", [[10, 100, 1000], [1000, 100, 10]])
def test_the_last_class_gives_every_class_its_quota(name, order):
    codes = np.repeat(np.arange(3, dtype=np.int32), order)
    scores = np.random.default_rng(0).random(len(codes), np.float32)
    rule, block = compiled(name, scores, 0.3, codes, ("a", "b", "c"))
    kept = kept_counts(MemoryPopulation([block], ("a", "b", "c")), rule)
    assert kept.tolist() == [size * 3 // 10 for size in order]


@pytest.mark.parametrize("name", COUNTED)
def test_keep_is_read_as_the_share_to_prune(name):
    scores = np.random.default_rng(1).random(1000, np.float32)
    codes, groups = (np.zeros(1000, np.int32), ("all", "none"))
    rule, block = compiled(name, scores, 0.2, codes, groups)
    assert rule.apply(block).sum() == 200
    assert all(score in scores for score in block.scores[rule.apply(block)])


def test_keep_takes_the_wrong_end():
    scores = np.arange(100, dtype=np.float32) / 100
    high, block = compiled("ratio", scores, 0.2)
    low, _ = compiled("ratio", scores, 0.2, info=replace(INFO, polarity="low"))
    assert np.flatnonzero(high.apply(block)).tolist() == list(range(80, 100))
    assert np.flatnonzero(low.apply(block)).tolist() == list(range(20))


@pytest.mark.parametrize("name", [n for n in COUNTED if not STRATEGIES[n].needs_labels])
def test_tied_scores_lose_rows_where_quantile_bins_collapse(name):
    scores = np.repeat(np.array([0, 0.25, 1], np.float32), [40_000, 9_000, 1_000])
    rule, block = compiled(name, scores, 0.5)
    assert rule.apply(block).sum() == 25_000


@pytest.mark.parametrize("name", [n for n in COUNTED if not STRATEGIES[n].needs_labels])
@pytest.mark.parametrize("keep", [0.01, 0.1, 0.3, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("kind", ["distinct", "tied", "constant", "skewed", "tiny"])
def test_a_cut_at_the_nth_score_keeps_one_more_and_fails_at_the_whole(name, keep, kind):
    rng = np.random.default_rng(2)
    scores = {
        "distinct": np.arange(10, dtype=np.float32) / 10,
        "tied": rng.integers(0, 3, 101).astype(np.float32) / 2,
        "constant": np.full(37, 0.5, np.float32),
        "skewed": rng.random(500, np.float32) ** 20,
        "tiny": np.array([0.5], np.float32),
    }[kind]
    rule, block = compiled(name, scores, keep)
    assert rule.apply(block).sum() == math.floor(round(keep * 100) * len(scores) / 100 + 0.5)


# Batches -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["loss", "el2n", "grad_norm", "grad_norm_full", "loss_grad"])
def test_a_short_last_batch_gets_larger_norms(name):
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 3)
    inputs, labels = torch.randn(32, 5), torch.randint(0, 3, (32,))

    def score(part):
        with torch.no_grad():
            logits = model(inputs[part])[None]
        outputs = ModelOutputs(
            logits, labels[part], (inputs[part],), inputs=inputs[part], models=(model,)
        )
        return METRICS[name].score(outputs)

    whole = score(slice(0, 32))
    pieces = torch.cat([score(slice(0, 29)), score(slice(29, 32))])
    assert torch.allclose(whole, pieces, rtol=1e-5, atol=1e-6)
    single = torch.cat([score(slice(i, i + 1)) for i in range(32)])
    assert torch.allclose(whole, single, rtol=1e-5, atol=1e-6)


# Files -------------------------------------------------------------------------------------------


def jpeg(value):
    buffer = io.BytesIO()
    noise = np.random.default_rng(value).integers(0, 255, (16, 16, 3)).astype(np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG", quality=37)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folders of a corpus that was scored, cut and written; config, scores, rule and decisions."""
    folder = tmp_path_factory.mktemp("defects")
    (folder / "in").mkdir()
    rng = np.random.default_rng(3)
    features = rng.normal(size=(ROWS, 4)).astype(np.float32)
    labels = rng.integers(0, 3, ROWS)
    for name, part in (("b.parquet", slice(0, 25)), ("a.parquet", slice(25, ROWS))):
        rows = range(*part.indices(ROWS))
        table = pa.table(
            {
                "x": pa.FixedSizeListArray.from_arrays(pa.array(features[part].ravel()), 4),
                "image": [jpeg(i) for i in rows],
                "label": pa.array(labels[part], pa.int8()),
                "note": pa.array([f"row {i}" for i in rows]).dictionary_encode(),
            }
        )
        pq.write_table(table, folder / "in" / name, row_group_size=7)
    torch.manual_seed(1)
    linear = torch.nn.Linear(4, 3)
    torch.save({"1.weight": linear.weight, "1.bias": linear.bias}, folder / "linear.pt")
    config = PruneConfig.from_flat(
        {"input": str(folder / "in"), "output": str(folder / "out"), "features": ["x"]}
        | {"label": "label", "num_classes": 3, "model": "linear", "keep": 0.4}
        | {"checkpoint": [str(folder / "linear.pt")], "metric": ["el2n", "loss", "margin"]}
        | {"fragment_rows": 1000}
    )
    corpus = open_corpus(config.corpus)
    known = understand(config, corpus)
    label = replace(known.label, classes=("0", "1", "2"))
    known = replace(
        known,
        rows=replace(known.rows, label=label),
        model=replace(known.model, label=label),
    )
    plan = score_plan(config, known, Judges(config.model.checkpoint), str(folder / "scores"))
    for fragment in corpus.fragments:
        Engine(plan).commit(fragment)
    paths = [plan.path(fragment) for fragment in corpus.fragments]
    rule = compile_rule(
        known.strategy, FilePopulation(paths, "el2n"), config.select, known.info
    ).rule
    writing = WritePlan(
        root=corpus.root,
        format=corpus.format,
        schema=corpus.schema,
        output=str(folder / "out"),
        scores=plan.folder,
        metric="el2n",
        rule=rule,
        group_column=None,
        seed=0,
        label_type=label.type,
    )
    kept = [_decide(writing, item)[1].kept for item in enumerate(corpus.fragments)]
    for part in plan_parts(corpus.fragments, kept, 10):
        _write_part(writing, part)
    with torch.no_grad():
        p = torch.softmax(linear(torch.from_numpy(features)).double(), 1)
    return folder, p.numpy(), labels


def in_corpus_order():
    """Positions of the rows in the order of the corpus: files by name, not as they were made."""
    return np.r_[25:ROWS, 0:25]


def test_kept_images_are_encoded_again_and_labels_get_lost(run):
    folder, p, labels = run
    order = in_corpus_order()
    source = pa.concat_tables([pq.read_table(folder / "in" / f"{n}.parquet") for n in "ab"])
    residual = p - np.eye(3)[labels]
    el2n = np.linalg.norm(residual, axis=1)[order]
    kept = np.sort(np.argsort(-el2n)[: ROWS * 4 // 10])
    written = pq.read_table(folder / "out" / "data")
    assert written.schema.equals(source.schema)
    assert written.to_pylist() == source.take(kept).to_pylist()
    assert written["image"].to_pylist() == [jpeg(int(i)) for i in order[kept]]


def test_ids_come_from_the_order_in_which_rows_are_read(run):
    folder, *_ = run
    scores = pq.read_table(folder / "scores")
    for name, rows in (("a.parquet", ROWS - 25), ("b.parquet", 25)):
        mine = scores.filter(pa.compute.equal(scores["file"].cast(pa.string()), name))
        assert mine["row"].to_pylist() == list(range(rows))
        assert (mine["row_hash"].to_numpy() == position_hashes(name, 0, rows)).all()


def test_every_score_is_stored_under_the_name_of_one_metric(run):
    folder, p, labels = run
    order = in_corpus_order()
    scores = pq.read_table(folder / "scores")
    own = p[np.arange(ROWS), labels]
    others = np.where(np.eye(3)[labels] == 1, -1, p).max(axis=1)
    expected = {
        "el2n": np.linalg.norm(p - np.eye(3)[labels], axis=1),
        "loss": -np.log(own),
        "margin": own - others,
    }
    for name, values in expected.items():
        assert np.allclose(scores[name].to_numpy(), values[order], rtol=1e-5, atol=1e-6), name


def test_a_list_of_removed_rows_is_read_as_kept(run):
    folder, *_ = run
    decisions = pq.read_table(folder / "out" / "decisions").to_pandas()
    assert Counter(decisions["kept"]) == {True: 24, False: 36}
    assert (decisions["reason"].str.startswith("kept") == decisions["kept"]).all()
    lowest, highest = (decisions[decisions["kept"] == k]["score"] for k in (True, False))
    assert lowest.min() >= highest.max()
    written = pq.read_table(folder / "out" / "data")["note"].to_pylist()
    order = in_corpus_order()
    assert written == [f"row {order[i]}" for i in np.flatnonzero(decisions["kept"])]
