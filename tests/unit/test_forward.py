"""The models on a device: memory that runs out, queued copies, layouts; all on the CPU."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dataprune_ray.config import PruneConfig
from dataprune_ray.devices import CudaLane, Lane, lane_of, packed, unpacked
from dataprune_ray.engine import Engine
from dataprune_ray.errors import ConfigError
from dataprune_ray.evidence import Models
from dataprune_ray.forward import Forward
from dataprune_ray.io import open_corpus
from dataprune_ray.io.rows import batch_rows
from dataprune_ray.models import build_model, core_of
from dataprune_ray.planning import judges, score_plan
from dataprune_ray.understanding import understand

METRICS = ["el2n", "grad_norm", "entropy", "margin"]
ROWS = 120


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other are slow where other processes want the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forward")
    rng = np.random.default_rng(0)
    note = {b"dataprune": b'{"dtype": "uint8", "shape": [12, 12, 3]}'}
    layout = pa.schema([pa.field("img", pa.binary(), metadata=note), ("label", pa.int64())])
    images = [rng.integers(0, 256, 432, np.uint8).tobytes() for _ in range(ROWS)]
    (folder / "corpus").mkdir()
    table = pa.table([images, rng.integers(0, 5, ROWS)], schema=layout)
    pq.write_table(table, folder / "corpus" / "a.parquet", row_group_size=100)
    return folder


def plan_of(corpus, model="small_cnn", **changes):
    values = {"input": f"{corpus}/corpus", "output": f"{corpus}/out", "num_classes": 5}
    config = PruneConfig.from_flat({**values, "model": model, "metric": METRICS, **changes})
    understanding = understand(config, open_corpus(config.corpus))
    paths = [f"{corpus}/{model}-{seed}.pt" for seed in range(2)]
    for seed, path in enumerate(paths):
        torch.manual_seed(seed)
        torch.save(core_of(build_model(understanding.model, 5)).state_dict(), path)
    config = config.replace(checkpoint=paths)
    return score_plan(config, understanding, judges(config, ()), f"{corpus}/scores")


def scores_of(engine):
    (fragment,) = engine.plan.rows.fragments
    table = pa.concat_tables(engine.tables(fragment, engine.plan.layout, set()))
    assert table["row"].to_pylist() == list(range(ROWS))
    return {name: table[name].to_numpy() for name in METRICS}


def fail_above(taps, rows, error):
    """Have models run out of memory above so many rows."""

    def check(_, inputs):
        if inputs[0].ndim == 4 and len(inputs[0]) > rows:
            raise error

    for tap in taps:
        tap.model.register_forward_pre_hook(check)


@pytest.mark.parametrize(
    ("limit", "left", "error"),
    [
        (100, 64, torch.OutOfMemoryError("CUDA out of memory")),
        (5, 4, RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")),
    ],
)
def test_scores_are_the_same_where_memory_runs_out(corpus, limit, left, error):
    plan = plan_of(corpus, batch_size=256)
    expected = scores_of(Engine(plan))
    engine = Engine(plan)
    fail_above(engine.forward.taps.values(), limit, error)
    found = scores_of(engine)
    for name in METRICS:
        assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name
    assert engine.pass_rows == left
    (fragment,) = plan.rows.fragments
    count = engine.commit(fragment)
    assert (count.rows, count.bad, count.batch_rows) == (ROWS, 0, left)
    assert count.halved
    assert not Engine(plan).commit(fragment).halved


def test_a_row_too_large_for_the_memory_is_an_error(corpus):
    engine = Engine(plan_of(corpus, batch_size=8))
    fail_above(engine.forward.taps.values(), 0, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(ConfigError, match="single row of 3 x 12 x 12: CUDA out of memory"):
        scores_of(engine)


def test_models_of_the_quality_pass_shrink_their_batches(corpus):
    plan = plan_of(corpus)
    folds = [SimpleNamespace(checkpoint=path) for path in plan.judges.models]
    told = SimpleNamespace(use_gpu=False, batch_size=64, model=plan.model, folds=folds)
    values = np.random.default_rng(0).integers(0, 256, (100, 3, 12, 12), np.uint8)
    expected = Models(told).run(1, values)
    models = Models(told)
    fail_above(models.taps, 20, torch.OutOfMemoryError("CUDA out of memory"))
    for found, known in zip(models.run(1, values), expected, strict=True):
        assert found == pytest.approx(known, rel=1e-4, abs=1e-5)
    assert models.sizes.rows == 16
    torch.testing.assert_close(expected[0].sum(axis=1), np.ones(100, np.float32))


class Cuda:
    """What `CudaLane` uses of ``torch.cuda``, on the CPU: notes what happens in which order."""

    def __init__(self, total=1 << 30):
        self.log = []
        self.total = total
        self.time = 0.0
        self.finished = True

    def Stream(self, device):  # noqa: N802 - torch's name
        assert device.type == "cpu"
        return "side"

    def stream(self, stream):
        log = self.log

        class Within:
            def __enter__(self):
                log.append(f"enter {stream}")

            def __exit__(self, *_):
                log.append(f"leave {stream}")

        return Within()

    def current_stream(self, _):
        return SimpleNamespace(wait_stream=lambda other: self.log.append(f"wait for {other}"))

    def Event(self, *, enable_timing=False):  # noqa: N802 - torch's name
        event = SimpleNamespace(at=None)

        def record():
            self.time += 1.0
            event.at = self.time
            self.log.append("timed" if enable_timing else "copied back")

        event.record = record
        event.synchronize = lambda: self.log.append("collected")
        event.query = lambda: self.finished
        event.elapsed_time = lambda other: 1000 * (other.at - event.at)
        return event

    def empty_cache(self):
        self.log.append("released")

    def mem_get_info(self, _):
        return self.total // 2, self.total

    def memory_allocated(self, _):
        return 0

    def max_memory_allocated(self, _):
        return 1 << 20

    def synchronize(self, _):
        pass

    def reset_peak_memory_stats(self, _):
        pass


@pytest.fixture
def cuda(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    return Cuda()


def queued(plan, cuda):
    """An engine whose rows take the way to a GPU and back, on the CPU."""
    engine = Engine(plan)
    lane = CudaLane(torch.device("cpu"), cuda, pinned=False)
    engine.forward = Forward(plan, engine.clock, lane)
    return engine


def test_the_way_to_a_gpu_changes_no_score_and_counts_busy_time(corpus, cuda):
    plan = plan_of(corpus, batch_size=64)
    expected, engine = scores_of(Engine(plan)), queued(plan, cuda)
    found = scores_of(engine)
    for name in METRICS:
        assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name
    (fragment,) = plan.rows.fragments
    assert engine.commit(fragment).spent.busy == pytest.approx(2.0)  # 64 + 56 rows, 1 s each
    assert Engine(plan).commit(fragment).spent.busy is None


def test_a_batch_is_sent_before_results_of_the_one_before_are_collected(corpus, cuda):
    plan = plan_of(corpus, batch_size=64)
    engine = queued(plan, cuda)
    values, targets = np.zeros((64, 3, 12, 12), np.uint8), np.zeros(64, np.int64)
    launched = [engine.forward.launch(values, targets) for _ in range(3)]
    order = [e for e in cuda.log if e in {"wait for side", "copied back", "collected"}]
    assert order == ["wait for side", "wait for side", "copied back"] * 3  # labels, inputs
    for collect in launched:
        assert len(collect()["el2n"]) == 64
    assert cuda.log[-3:] == ["collected"] * 3


def test_busy_time_waits_for_what_the_gpu_has_not_finished(cuda):
    lane = CudaLane(torch.device("cpu"), cuda, pinned=False)
    cuda.finished = False
    for _ in range(3):
        with lane.working():
            pass
    assert lane.busy() == 0.0
    cuda.finished = True
    assert lane.busy() == pytest.approx(3.0)
    assert lane.busy() == 0.0


@pytest.mark.parametrize(
    ("share", "budget"), [(1.0, 0.8 * 2**29), (0.25, 0.8 * 2**28), (2.0, 0.8 * 2**29)]
)
def test_a_fraction_of_a_gpu_has_that_share_of_its_memory(cuda, share, budget):
    lane = CudaLane(torch.device("cpu"), cuda, pinned=False)
    assert lane.budget(share) == int(budget)
    cuda.memory_allocated = lambda _: 2**30
    assert lane.budget(share) == 0
    assert Lane(torch.device("cpu")).budget(share) == 0


@pytest.mark.parametrize(("gpus", "share"), [(0.25, 0.25), (1, 1.0), (2, 1.0), (0, 0.0)])
def test_batches_are_sized_to_a_gpu_where_they_are_not_given(corpus, cuda, gpus, share):
    plan = plan_of(corpus, num_gpus=gpus)
    assert plan.memory_share == share
    assert plan_of(corpus, num_gpus=gpus, batch_size=40).memory_share == 0.0
    engine = queued(replace(plan, use_gpu=False), cuda)
    limit = 100
    fail_above(engine.forward.taps.values(), limit, torch.OutOfMemoryError("CUDA out of memory"))
    # Timed by the fake events every batch takes a second, so that only memory stops the search.
    assert engine.pass_rows == (64 if share else plan.batch_size)
    assert scores_of(engine).keys() == set(METRICS)


def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"finds no CUDA device on .* leave --num-gpus out"):
        lane_of(gpu=True)
    assert lane_of(gpu=False).device.type == "cpu"


@pytest.mark.parametrize(
    ("model", "metric", "expected"),
    [
        ("small_cnn", ["el2n"], True),
        ("linear", ["el2n"], False),
        ("small_cnn", ["grad_norm_full"], False),
    ],
)
def test_only_models_that_convolve_take_their_channels_last(corpus, cuda, model, metric, expected):
    plan = plan_of(corpus, model, metric=metric)
    lane = CudaLane(torch.device("cpu"), cuda, pinned=False)
    forward = Forward(plan, lane=lane)
    values = np.random.default_rng(0).integers(0, 256, (40, 3, 12, 12), np.uint8)
    inputs, _ = forward.prepared(values, np.zeros(40, np.int64), 64)
    assert inputs.shape[0] == 64
    assert torch.equal(inputs[:40], torch.from_numpy(values))
    assert inputs.is_contiguous(memory_format=torch.channels_last) is expected


class Viewing(torch.nn.Module):
    """As many models are written: it takes the layout of memory for granted."""

    def __init__(self):
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 4, 3)
        self.linear = torch.nn.Linear(4 * 10 * 10, 5)

    def forward(self, images):
        return self.linear(self.convolution(images.float()).view(len(images), -1))


def test_a_model_that_insists_on_its_layout_keeps_it(cuda):
    lane = CudaLane(torch.device("cpu"), cuda, pinned=False)
    example = np.random.default_rng(0).integers(0, 256, (2, 3, 12, 12), np.uint8)
    models = [Viewing(), Viewing()]
    before = [model(torch.from_numpy(example)) for model in models]
    with pytest.raises(RuntimeError, match="view"):  # else this shows nothing
        models[0].to(memory_format=torch.channels_last)(torch.from_numpy(example))
    assert lane.arrange(models, example) is False
    for model, expected in zip(models, before, strict=True):
        torch.testing.assert_close(model(torch.from_numpy(example)), expected)


def test_columns_travel_together():
    columns = {"a": torch.arange(5.0), "b": torch.arange(15.0).reshape(5, 3).double()}
    joined = packed(columns, 4)
    assert joined.dtype == torch.float32
    assert joined.shape == (4, 4)
    found = unpacked(joined.numpy(), {"a": None, "b": 3})
    assert found["a"].tolist() == [0, 1, 2, 3]
    assert found["b"].tolist() == columns["b"][:4].tolist()


def test_rows_are_read_in_multiples_of_a_pass(corpus):
    features = plan_of(corpus).rows.features
    big = replace(features, shape=(3, 224, 224))
    assert batch_rows(features) == 8192
    assert batch_rows(features, 100) == 8100
    assert batch_rows(big) == (16 << 20) // big.row_bytes
    assert batch_rows(big, 32) % 32 == 0
    assert batch_rows(big, 512) == 512
