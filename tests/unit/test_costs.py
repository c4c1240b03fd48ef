"""The cost model: formulas against sums by hand and a simulated schedule."""

from __future__ import annotations

import heapq
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataprune_ray import estimating
from dataprune_ray.calibration import FITTED
from dataprune_ray.config import PruneConfig
from dataprune_ray.costs import (
    Prices,
    Rates,
    Shape,
    Workload,
    driver_bytes,
    estimate,
    makespan,
)
from dataprune_ray.errors import ConfigError
from dataprune_ray.summary import cost_lines

WORK = Workload(
    rows=1_000_000,
    kept=300_000,
    stored_bytes=2_000_000_000,
    files=10,
    fragments=16,
    parts=4,
    longest=62_500,
    passes=3,
    checkpoints=2,
)
RATES = Rates(decode=2e-5, forward=3e-5, store=1e-6, row_bytes=2_000.0, score_bytes=25.0)
BARE = replace(
    FITTED,
    **{
        name: 0.0 for name in vars(FITTED) if name.startswith("start_") or name in ("task", "block")
    },
)


def stage(found, name):
    (one,) = [stage for stage in found.stages if stage.name == name]
    return one


def cost(work=WORK, rates=RATES, shape=None, prices=None, constants=BARE):
    shape = shape or Shape(4.0, 0.0, 4)
    return estimate(work, rates, shape, prices or Prices(), constants)


@given(st.lists(st.floats(0.1, 10.0), min_size=1, max_size=40), st.integers(1, 8))
def test_no_schedule_of_free_workers_takes_longer_than_the_bound(units, workers):
    free = [0.0] * workers
    for unit in units:
        heapq.heappush(free, heapq.heappop(free) + unit)
    bound = makespan(sum(units), workers, max(units))
    assert sum(units) / workers - 1e-9 <= max(free) <= bound + 1e-9


def test_scoring_divides_by_the_workers_and_ends_with_a_tail():
    per_row = 2e-5 + 2 * 3e-5 + 1e-6
    seconds = 1_000_000 * per_row / 4 + 0.75 * 62_500 * per_row
    assert stage(cost(), "score").seconds == pytest.approx(seconds)
    assert stage(cost(), "score").core_hours == pytest.approx(1_000_000 * per_row / 3600)
    assert stage(cost(), "score").gpu_hours == 0.0


def test_on_gpus_the_slower_of_decoding_and_models_counts():
    shape = Shape(16.0, 4.0, 8, 0.5)
    found = stage(cost(shape=shape), "score")
    models = 1_000_000 * (2 * 3e-5 + 1e-6)
    assert found.seconds == pytest.approx(models / 8 + 7 / 8 * models / 16)
    assert found.gpu_hours == pytest.approx(models / 3600)
    assert found.core_hours == pytest.approx(20.0 / 3600)
    slow = stage(cost(rates=replace(RATES, decode=1e-3), shape=shape), "score")
    assert slow.seconds == pytest.approx(1000.0 / 8 + 7 / 8 * 1000.0 / 16)


def test_no_more_workers_than_units_and_the_driver_is_a_floor():
    shape = Shape(1000.0, 0.0, 999)
    alone = stage(cost(shape=shape), "score").seconds
    assert alone == pytest.approx(81.0 / 16 + 15 / 16 * 81.0 / 16)
    many = replace(WORK, fragments=16_000, longest=63)
    assert stage(cost(many, constants=replace(BARE, block=0.02), shape=shape), "score").seconds == (
        pytest.approx(16_000 * 0.02)
    )


def test_cut_decide_and_write_follow_the_constants():
    found, share = cost(), 1 / 4 + 3 / 4 / 16
    assert stage(found, "select").seconds == pytest.approx(3e6 * BARE.cut_row * share)
    assert stage(found, "decide").seconds == pytest.approx(1e6 * BARE.decide_row * share)
    copy = 1e6 * (BARE.copy_row + 2_000 * BARE.read_byte) + 3e5 * 2_000 * BARE.write_byte
    assert stage(found, "write").seconds == pytest.approx(copy * (1 / 4 + 3 / 4 / 4))


def test_proxies_train_in_rounds():
    work = replace(WORK, trainings=3, train_rows=10_000, updates=500)
    rates = replace(RATES, update=1e-2)
    each = 10_000 * 2e-5 + 500 * 1e-2
    for cpus, rounds in ((1.0, 3), (2.0, 2), (3.0, 1), (64.0, 1)):
        found = stage(cost(work, rates, Shape(cpus, 0.0, 1)), "train proxy")
        assert found.seconds == pytest.approx(rounds * each)
        assert found.core_hours == pytest.approx(3 * each / 3600)


def test_stages_that_are_not_asked_for_are_not_there():
    bare = {one.name for one in cost().stages}
    rates = replace(RATES, update=1e-3, survey=1e-3, learn=1e-6, second=1e-6)
    work = replace(WORK, scanned=1, trainings=1, train_rows=10, updates=10, surveyed=1000)
    full = {one.name for one in cost(work, rates).stages}
    asked = {"scan labels", "train proxy", "survey", "learn", "second stages"}
    assert full - bare == asked
    assert stage(cost(work, rates), "survey").seconds == pytest.approx(1.0)


def test_dollars_pay_for_the_whole_cluster_and_need_every_price():
    shape = Shape(8.0, 2.0, 2, 1.0)
    assert cost(shape=shape).dollars is None
    assert cost(shape=shape, prices=Prices(0.05)).dollars is None
    assert cost(shape=Shape(8.0, 0.0, 7), prices=Prices(0.05)).dollars is not None
    found = cost(shape=shape, prices=Prices(0.05, 2.0))
    assert found.dollars == pytest.approx(found.seconds / 3600 * (8 * 0.05 + 2 * 2.0))
    assert sum(one.dollars for one in found.stages) == pytest.approx(found.dollars)


def test_memory_and_bytes():
    found = cost()
    assert found.score_bytes == 25e6
    assert found.decision_bytes == pytest.approx(1e6 * BARE.decision_bytes_row)
    assert found.data_bytes == pytest.approx(0.3 * 2e9)
    more = replace(WORK, fragments=32)
    assert driver_bytes(more, BARE) - driver_bytes(WORK, BARE) == pytest.approx(
        16 * BARE.driver_bytes_fragment
    )


@given(st.integers(1, 10**9), st.floats(1.0, 512.0), st.floats(1.0, 512.0))
def test_more_cores_never_take_longer_and_more_rows_never_less(rows, cpus, more):
    work = replace(WORK, rows=rows, kept=rows // 2, longest=-(-rows // 16))
    few = cost(work, shape=Shape(cpus, 0.0, int(cpus)), constants=FITTED)
    many = cost(work, shape=Shape(cpus + more, 0.0, int(cpus + more)), constants=FITTED)
    assert many.seconds <= few.seconds * (1 + 1e-9)
    twice = cost(replace(work, rows=2 * rows, longest=-(-rows // 8)), constants=FITTED)
    assert twice.seconds >= cost(work, constants=FITTED).seconds


def test_text_and_json_hold_the_planned_clusters():
    found = [cost(shape=Shape(n, 0.0, int(n)), prices=Prices(0.04)) for n in (2.0, 64.0)]
    text = "\n".join(cost_lines(found))
    for one in found[0].stages:
        assert f"  {one.name:<13}  {one.seconds:>9,.1f}" in text
    assert f"  {'64, 0':<13}  {found[1].seconds:>9,.1f}" in text
    assert "dollars" in text
    assert "dollars" not in "\n".join(cost_lines([cost()]))
    content = found[1].to_json()
    assert content["seconds"] == pytest.approx(sum(s["seconds"] for s in content["stages"]))
    assert content["shape"]["cpus"] == 64.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plan_cpus": [8], "plan_gpus": 2}, "plan_gpus=2: needs the speed of a GPU"),
        ({"plan_gpus": 2, "num_gpus": 1}, "plan_gpus=2: needs the CPUs beside them"),
        ({"plan_cpus": [0]}, "plan_cpus=.*a cluster has one CPU at least"),
    ],
)
def test_plans_that_nothing_was_measured_for_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        estimating.check_plans(PruneConfig.from_flat(changes))
