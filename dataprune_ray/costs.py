"""What a run costs, on paper: seconds, core and GPU hours, dollars, memory and bytes of each stage.

With ``rows`` on ``W`` workers, a stage whose work divides by fragments takes::

    start-up + max(work / W + (1 - 1/W) * longest, units * unit_seconds)

``work`` is in seconds of one worker; what follows is the bound of list scheduling (Graham, "Bounds
on multiprocessing timing anomalies", 1969), of which the longest unit is the tail; and the driver
needs ``unit_seconds`` of its own for each unit it hands out, however many workers there are.

=============== =================================================================================
stage           work, in seconds
=============== =================================================================================
list files      ``files * file``, on the driver
scan labels     ``rows * scanned * scan_value``
train proxy     ``train_rows * decode + updates * update`` each, side by side where there is room
survey          ``surveyed * survey``, on one core
learn           ``rows * learn``, on two cores at most
score           ``rows * (decode + checkpoints * forward + store)`` on CPUs; on GPUs an actor
                decodes ahead of its model: ``rows * max(decode, checkpoints * forward + store)``
second stages   ``rows * second``
select          ``passes * rows * cut_row``
decide          ``rows * decide_row``
write           ``rows * (copy_row + row_bytes * read_byte) + kept * row_bytes * write_byte``
report          ``rows * report_row``
=============== =================================================================================

`Rates` are measured on a sample of the corpus itself, by ``--dry-run``. What does not depend on it
is in `dataprune_ray.calibration`. Nothing here knows Ray or reads a file.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from dataprune_ray.calibration import Constants

_HOUR = 3600.0


@dataclass(frozen=True)
class Rates:
    """Measured on a sample of the corpus: seconds, of one core or GPU.

    Attributes:
        decode: per row, to read and decode it.
        forward: per row and checkpoint, on the device that scores.
        store: per row, to make its score columns and to write them.
        update: per update of a proxy's training; 0 where none is trained.
        survey: per surveyed row, to sample it and to fit the feature space.
        learn: per corpus row, to train what a metric is predicted with.
        second: per row, of second stages and formulas.
        row_bytes: of a row in memory, all its columns.
        score_bytes: of a row in the score table, compressed.
    """

    decode: float
    forward: float
    store: float
    update: float = 0.0
    survey: float = 0.0
    learn: float = 0.0
    second: float = 0.0
    row_bytes: float = 0.0
    score_bytes: float = 0.0


@dataclass(frozen=True)
class Workload:
    """What a run has to do.

    Attributes:
        rows: of the corpus, and ``kept`` of them.
        stored_bytes: of the corpus's files.
        files, fragments, parts: of the corpus, of the work, of the output.
        longest: rows of the longest fragment.
        passes: over the score table to compile the keep rule.
        checkpoints: that score every row: its forward passes.
        scanned: values of a row that are read to know labels and moments; 0: nothing is scanned.
        trainings: proxies to train, with ``train_rows`` and ``updates`` each.
        surveyed: rows that a feature space is fitted to; 0: none.
    """

    rows: int
    kept: int
    stored_bytes: int
    files: int
    fragments: int
    parts: int
    longest: int
    passes: int
    checkpoints: int
    scanned: int = 0
    trainings: int = 0
    train_rows: int = 0
    updates: int = 0
    surveyed: int = 0


@dataclass(frozen=True)
class Shape:
    """A cluster: its CPUs and GPUs, its scoring actors, and the share of a GPU that each takes."""

    cpus: float
    gpus: float
    actors: int
    gpus_each: float = 0.0

    @property
    def cores(self) -> float:
        """CPUs, one at least: what tasks share."""
        return max(self.cpus, 1.0)

    @property
    def slots(self) -> int:
        """Trainings that run side by side."""
        if self.gpus_each:
            return max(1, int(self.gpus / self.gpus_each))
        return max(1, int(self.cpus))


@dataclass(frozen=True)
class Prices:
    """Dollars per hour of a CPU and of a GPU; None where not known."""

    cpu_hour: float | None = None
    gpu_hour: float | None = None

    def of(self, shape: Shape, seconds: float) -> float | None:
        """Dollars for the whole cluster over some seconds, idle parts too; None without a price."""
        if self.cpu_hour is None or (shape.gpus and self.gpu_hour is None):
            return None
        per_hour = shape.cpus * self.cpu_hour + shape.gpus * (self.gpu_hour or 0.0)
        return seconds / _HOUR * per_hour


@dataclass(frozen=True)
class StageCost:
    """A stage: seconds on the clock, hours of cores and GPUs at work, dollars of the cluster."""

    name: str
    seconds: float
    core_hours: float
    gpu_hours: float
    dollars: float | None


@dataclass(frozen=True)
class Estimate:
    """What a run costs on a cluster, in the order of its stages."""

    shape: Shape
    stages: tuple[StageCost, ...]
    driver_bytes: float
    score_bytes: float
    decision_bytes: float
    data_bytes: float

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def core_hours(self) -> float:
        """Hours of cores at work."""
        return sum(stage.core_hours for stage in self.stages)

    @property
    def gpu_hours(self) -> float:
        """Hours of GPUs at work."""
        return sum(stage.gpu_hours for stage in self.stages)

    @property
    def dollars(self) -> float | None:
        """Of the whole cluster; None without a price."""
        found = [stage.dollars for stage in self.stages]
        return None if None in found else sum(value or 0.0 for value in found)

    def of(self, *names: str) -> float:
        """Seconds of some stages; those that the run does not have count 0."""
        return sum(stage.seconds for stage in self.stages if stage.name in names)

    def to_json(self) -> dict[str, Any]:
        """Everything, JSON-ready."""
        return {
            **asdict(self),
            "seconds": self.seconds,
            "core_hours": self.core_hours,
            "gpu_hours": self.gpu_hours,
            "dollars": self.dollars,
        }


@dataclass(frozen=True)
class _Units:
    """How work is divided: units, share of the longest, and what each costs the driver."""

    count: int = 1
    longest: float = 1.0
    seconds: float = 0.0


@dataclass(frozen=True)
class _Work:
    """A stage's work, in seconds of one core and of one GPU, on ``workers`` of them at a time."""

    name: str
    start: float
    core: float = 0.0
    workers: float = 1.0
    units: _Units | None = None
    gpu: float = 0.0

    @property
    def seconds(self) -> float:
        """On the clock."""
        work = max(self.core, self.gpu)
        if self.units is None:
            return self.start + work / self.workers
        workers = min(self.workers, max(self.units.count, 1))
        dealt = makespan(work, workers, work * self.units.longest)
        return self.start + max(dealt, self.units.count * self.units.seconds)


def makespan(work: float, workers: float, longest: float) -> float:
    """Seconds of ``work`` seconds dealt to workers as they become free.

    The bound of list scheduling (Graham 1969). With fewer than one worker it takes longer.

    Args:
        work: of all units together.
        workers: above 0.
        longest: seconds of the longest unit.
    """
    return work / workers + max(0.0, 1.0 - 1.0 / workers) * longest


def estimate(
    work: Workload, rates: Rates, shape: Shape, prices: Prices, constants: Constants
) -> Estimate:
    """What a run costs on a cluster: see the module for the formulas."""
    stages = []
    for stage in _stages(work, rates, shape, constants):
        seconds = stage.seconds
        stages.append(
            StageCost(
                name=stage.name,
                seconds=seconds,
                core_hours=stage.core / _HOUR,
                gpu_hours=stage.gpu / _HOUR,
                dollars=prices.of(shape, seconds),
            )
        )
    return Estimate(
        shape=shape,
        stages=tuple(stages),
        driver_bytes=driver_bytes(work, constants),
        score_bytes=work.rows * rates.score_bytes,
        decision_bytes=work.rows * constants.decision_bytes_row,
        data_bytes=work.stored_bytes * work.kept / max(work.rows, 1),
    )


def driver_bytes(work: Workload, constants: Constants) -> float:
    """Memory of the driver: what it imports, and what it knows of fragments, files and parts."""
    return (
        constants.driver_bytes
        + work.fragments * constants.driver_bytes_fragment
        + work.files * constants.driver_bytes_file
        + work.parts * constants.driver_bytes_part
    )


def _stages(work: Workload, rates: Rates, shape: Shape, fixed: Constants) -> list[_Work]:
    """Every stage that a run has, in its order."""
    found = [
        _Work("list files", 0.0, work.files * fixed.file),
        _Work("start Ray", fixed.start_ray),
    ]
    by_fragment = _Units(work.fragments, work.longest / max(work.rows, 1), fixed.task)
    by_part = _Units(work.parts, 1.0 / max(work.parts, 1), fixed.task)
    tasks = partial(_Work, workers=shape.cores, units=by_fragment)
    if work.scanned:
        scan = work.rows * work.scanned * fixed.scan_value
        found.append(tasks("scan labels", fixed.start_scan, scan))
    if work.trainings:
        found.append(_training(work, rates, shape, fixed))
    if work.surveyed:
        found.append(_Work("survey", 0.0, work.surveyed * rates.survey))
    if rates.learn:
        found.append(_Work("learn", 0.0, work.rows * rates.learn, min(2.0, shape.cores)))
    found.append(_scoring(work, rates, shape, fixed))
    if rates.second:
        found.append(tasks("second stages", 0.0, work.rows * rates.second))
    copy = work.rows * (fixed.copy_row + rates.row_bytes * fixed.read_byte)
    copy += work.kept * rates.row_bytes * fixed.write_byte
    cut = work.passes * work.rows * fixed.cut_row
    return [
        *found,
        tasks("select", fixed.start_select, cut),
        tasks("decide", fixed.start_decide, work.rows * fixed.decide_row),
        _Work("write", fixed.start_write, copy, shape.cores, by_part),
        tasks("report", fixed.start_report, work.rows * fixed.report_row),
    ]


def _training(work: Workload, rates: Rates, shape: Shape, fixed: Constants) -> _Work:
    """The proxies, as many side by side as there is room for."""
    each = work.train_rows * rates.decode + work.updates * rates.update
    total = work.trainings * each
    rounds = math.ceil(work.trainings / shape.slots)
    gpu = total if shape.gpus_each else 0.0
    return _Work("train proxy", fixed.start_train, total, work.trainings / rounds, gpu=gpu)


def _scoring(work: Workload, rates: Rates, shape: Shape, fixed: Constants) -> _Work:
    """The forward passes over every row, by the pool of actors."""
    decode = work.rows * rates.decode
    models = work.rows * (work.checkpoints * rates.forward + rates.store)
    units = _Units(work.fragments, work.longest / max(work.rows, 1), fixed.block)
    if shape.gpus_each:
        return _Work("score", fixed.start_pool, decode, shape.actors, units, models)
    actors = min(shape.actors, shape.cores)
    return _Work("score", fixed.start_pool, decode + models, actors, units)
