import json
import logging
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dataprune_ray.clock import Clock, Scoring, Spent
from dataprune_ray.config import PruneConfig
from dataprune_ray.engine import Engine
from dataprune_ray.io import open_corpus
from dataprune_ray.journal import Journal
from dataprune_ray.models import build_model, core_of
from dataprune_ray.planning import judges, score_plan
from dataprune_ray.plans import FragmentCount, scoring_of
from dataprune_ray.report.timing import timing
from dataprune_ray.understanding import understand


class Ticking:
    """A clock that goes on by what it is told."""

    def __init__(self):
        self.time = 0.0

    def __call__(self):
        return self.time


def test_parts_add_up_and_start_anew():
    now = Ticking()
    clock = Clock(now)

    def slow():
        for item in "ab":
            now.time += 2.0
            yield item
        now.time += 1.0  # finding the end takes time too

    for _ in clock.each("wait", slow()):
        with clock.at("model"):
            now.time += 3.0
        now.time += 0.5

    def fail():
        with clock.at("write"):
            now.time += 4.0
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    spent = clock.take()
    assert spent == Spent(total=16.0, wait=5.0, model=6.0, write=4.0)
    assert spent.rest == pytest.approx(1.0)
    now.time += 7.0
    assert clock.take() == Spent(total=7.0)


def test_each_ends_with_its_consumer_and_passes_errors_on():
    ended = []

    def items():
        try:
            yield 1
            raise ValueError("broken")
        finally:
            ended.append(True)

    stream = Clock().each("read", items())
    assert next(stream) == 1
    with pytest.raises(ValueError, match="broken"):
        next(stream)
    other = Clock().each("read", items())
    next(other)
    other.close()
    del other
    assert ended == [True, True]


def test_sums_know_a_gpu_only_where_there_was_one():
    one, other = Spent(total=2.0, model=1.0), Spent(total=4.0, model=1.5, busy=3.0)
    assert one + one == Spent(total=4.0, model=2.0)
    assert one + other == Spent(total=6.0, model=2.5, busy=3.0)
    assert Scoring(10, 1, one).busy is None
    assert Scoring(10, 1, other).busy == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("spent", "said"),
    [
        (Spent(total=10, wait=6.1, decode=9, read=1), "waited for decoding 61%"),
        (Spent(total=10, wait=6.1, decode=9, read=1, busy=2), "more CPU cores per GPU"),
        (Spent(total=10, wait=5, decode=1, read=4), "waited for reading 50%"),
        (Spent(total=10, model=7), "models and metrics took 70% of the time: more CPU cores"),
        (Spent(total=10, model=1, back=6, busy=9), "the GPU is what limits it"),
        (Spent(total=10, copy=5), "copying to the device took 50%"),
        (Spent(total=10, write=5), "writing scores took 50%"),
        (Spent(total=10, wait=3, model=3), "no part took 40%"),
        (Spent(), "no time was measured"),
    ],
)
def test_the_bottleneck_in_words(spent, said):
    scoring = Scoring(100, 1, spent)
    assert said in scoring.bottleneck
    assert scoring.bottleneck in scoring.line()
    assert json.loads(json.dumps(scoring.to_json()))["bottleneck"] == scoring.bottleneck


def test_counts_travel_as_text_and_reused_ones_are_not_timed():
    fresh = FragmentCount(
        3, 100, 2, ("a", "b"), spent=Spent(total=2.0, busy=1.0), worker="w:1", batch_rows=64
    )
    assert FragmentCount.from_json(fresh.to_json()) == fresh
    reused = FragmentCount(4, 50, 0, reused=True)
    assert FragmentCount.from_json(reused.to_json()) == reused
    assert scoring_of([reused]) is None
    other = FragmentCount(5, 40, 0, spent=Spent(total=3.0), worker="w:2", batch_rows=32)
    scoring = scoring_of([fresh, reused, other])
    assert (scoring.rows, scoring.workers, scoring.batch_rows) == (140, 2, (32, 64))
    assert scoring.rate == pytest.approx(28.0)
    assert scoring.to_json()["rows_per_second_per_worker"] == 28.0


def test_the_journal_warns_where_memory_ran_out(caplog):
    caplog.set_level(logging.INFO, "dataprune")
    journal = Journal()
    journal.scored(None)
    assert (journal.scoring, caplog.messages) == (None, [])
    counts = [
        FragmentCount(i, 10, 0, spent=Spent(total=1.0), batch_rows=64 >> i, halved=i == 1)
        for i in range(2)
    ]
    journal.scored(scoring_of(counts[:1]))
    assert not journal.warnings
    assert "64 rows a forward pass" in caplog.messages[-1]
    journal.scored(scoring_of(counts))
    assert journal.scoring.to_json()["batches_halved"] is True
    (warning,) = journal.warnings
    assert "their batches went on with 32 or 64 rows" in warning


def test_the_page_shows_every_part_and_no_gpu_where_there_is_none():
    scoring = Scoring(1000, 2, Spent(total=10, wait=6.1, decode=9.5, read=1), (256,))
    shown = timing(scoring)
    assert "100 rows per second each" in shown.sentence
    assert "GPU" not in shown.sentence + shown.bottleneck
    for words in ("waiting for rows", "decoding rows (beside it)", "61.0%", "95.0%"):
        assert words in shown.chart
    assert timing(None) is None
    assert timing(Scoring(0, 1, Spent())) is None
    with_gpu = timing(Scoring(1000, 1, Spent(total=10, busy=8.0)))
    assert "in hand 80.0% of that time" in with_gpu.sentence


@pytest.fixture
def engine(tmp_path):
    rng = np.random.default_rng(0)
    note = {b"dataprune": b'{"dtype": "uint8", "shape": [8, 8]}'}
    layout = pa.schema([pa.field("img", pa.binary(), metadata=note), ("label", pa.int64())])
    images = [rng.integers(0, 256, 64, np.uint8).tobytes() for _ in range(500)]
    table = pa.table([images, rng.integers(0, 5, 500)], schema=layout)
    (tmp_path / "corpus").mkdir()
    pq.write_table(table, tmp_path / "corpus" / "a.parquet")
    values = {"input": f"{tmp_path}/corpus", "output": f"{tmp_path}/out", "model": "linear"}
    config = PruneConfig.from_flat({**values, "num_classes": 5})
    understanding = understand(config, open_corpus(config.corpus))
    path = f"{tmp_path}/linear.pt"
    torch.save(core_of(build_model(understanding.model, 5)).state_dict(), path)
    config = config.replace(checkpoint=[path])
    plan = score_plan(config, understanding, judges(config, ()), f"{tmp_path}/scores")
    return Engine(plan)


def test_a_fragment_reports_where_its_time_went(engine):
    (fragment,) = engine.plan.rows.fragments
    count = engine.commit(fragment)
    spent = count.spent
    assert count.rows == 500
    assert count.batch_rows == engine.plan.batch_size
    for part in ("wait", "copy", "model", "back", "write", "read", "decode"):
        assert 0 < getattr(spent, part) < spent.total, part
    assert spent.busy is None
    assert sum(asdict(spent)[n] for n in ("wait", "copy", "model", "back", "write")) < spent.total
    both = scoring_of([count, engine.commit(fragment)])
    assert (both.rows, both.workers) == (1000, 1)
