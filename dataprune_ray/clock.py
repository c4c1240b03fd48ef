"""Where a scoring worker's time goes: seconds of the worker and of its reader, summed over a run.

A worker's own seconds add up: it waits for its reader, copies rows to the device, runs the models,
brings results back and writes. The reader is a thread beside it, whose seconds overlap with these.
On a GPU work is queued, so that the host's seconds for the model are those of the queueing, and it
is while results come back that it waits for the device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

T = TypeVar("T")

#: Parts of a worker's own time, with what a reader of a report calls them.
WORKER = {
    "wait": "waiting for rows",
    "copy": "copying to the device",
    "model": "models and metrics",
    "back": "results back to the host",
    "write": "writing scores",
    "rest": "the rest",
}
#: Parts of its reader's time.
READER = {"read": "reading files", "decode": "decoding rows"}
_MOST = 0.4  # of a worker's time: a part that takes as much is what to look at first


@dataclass(frozen=True)
class Spent:
    """Seconds of one worker, or of several added up.

    ``total`` is wall-clock time at work; ``wait``, ``copy``, ``model``, ``back`` and ``write`` are
    parts of it; ``read`` and ``decode`` are the reader's. ``busy`` is how long a GPU had work of
    this worker in hand, None without one.
    """

    total: float = 0.0
    wait: float = 0.0
    copy: float = 0.0
    model: float = 0.0
    back: float = 0.0
    write: float = 0.0
    read: float = 0.0
    decode: float = 0.0
    busy: float | None = None

    @property
    def rest(self) -> float:
        """What is in none of the worker's parts: making tables, above all."""
        parts = (self.wait, self.copy, self.model, self.back, self.write)
        return max(0.0, self.total - sum(parts))

    def __add__(self, other: Spent) -> Spent:
        """The seconds of both."""
        names = [field.name for field in fields(self) if field.name != "busy"]
        known = [busy for busy in (self.busy, other.busy) if busy is not None]
        sums = {name: getattr(self, name) + getattr(other, name) for name in names}
        return Spent(**sums, busy=sum(known) if known else None)


class Clock:
    """A worker's seconds by part since it was last asked."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._began = now()
        self._seconds: dict[str, float] = {}

    def add(self, part: str, seconds: float) -> None:
        """Count seconds to a part."""
        self._seconds[part] = self._seconds.get(part, 0.0) + seconds

    @contextmanager
    def at(self, part: str) -> Iterator[None]:
        """Count a block's seconds to a part, also where the block fails."""
        began = self._now()
        try:
            yield
        finally:
            self.add(part, self._now() - began)

    def each(self, part: str, items: Iterable[T]) -> Iterator[T]:
        """The same items; the seconds that each takes to come are counted to a part."""
        source = iter(items)
        while True:
            with self.at(part):
                try:
                    item = next(source)
                except StopIteration:
                    return
            yield item

    def take(self) -> Spent:
        """The seconds since the start, or since the last call, which start anew."""
        now = self._now()
        seconds, self._seconds = self._seconds, {}
        began, self._began = self._began, now
        return Spent(total=now - began, **seconds)


@dataclass(frozen=True)
class Scoring:
    """How the scoring of a run went: rows that it scored itself, and where workers' time went."""

    rows: int
    workers: int
    spent: Spent
    batch_rows: tuple[int, ...] = ()  # rows of a forward pass, every size that a worker ended with
    halved: bool = False  # whether memory ran out somewhere

    @classmethod
    def of(
        cls,
        rows: int,
        workers: Iterable[str],
        spent: Sequence[Spent],
        sizes: Iterable[int],
        *,
        halved: bool = False,
    ) -> Scoring | None:
        """The sum over fragments; None where none was scored."""
        if not spent:
            return None
        known = tuple(sorted({size for size in sizes if size}))
        return cls(rows, len(set(workers)), sum(spent, Spent()), known, halved)

    @property
    def rate(self) -> float:
        """Rows per second of one worker, without its start."""
        return self.rows / self.spent.total if self.spent.total else 0.0

    @property
    def busy(self) -> float | None:
        """Share of the workers' time in which a GPU had work in hand, in [0, 1]; None without."""
        if self.spent.busy is None or not self.spent.total:
            return None
        return min(1.0, self.spent.busy / self.spent.total)

    @property
    def shares(self) -> tuple[tuple[str, float, float], ...]:
        """Parts of the workers' own time: name, seconds, share in [0, 1]."""
        return _shares(self.spent, WORKER, self.spent.total)

    @property
    def reader_shares(self) -> tuple[tuple[str, float, float], ...]:
        """Parts of the readers' time: name, seconds, as a share of the workers' time."""
        return _shares(self.spent, READER, self.spent.total)

    @property
    def bottleneck(self) -> str:
        """What held scoring up, and what helps, in one sentence."""
        spent, total = self.spent, self.spent.total
        if not total:
            return "no time was measured"
        if spent.wait >= _MOST * total:
            return f"scoring waited for {self._source()}"
        if spent.model + spent.back >= _MOST * total:
            share = (spent.model + spent.back) / total
            return f"models and metrics took {share:.0%} of the time: {self._faster()}"
        for part, advice in (
            ("copy", "rows are large for what the model does; store smaller ones"),
            ("write", "the output's storage is slow; a faster one helps"),
        ):
            share = getattr(spent, part) / total
            if share >= _MOST:
                return f"{WORKER[part]} took {share:.0%} of the time: {advice}"
        return f"no part took {_MOST:.0%} of the time"

    def _source(self) -> str:
        """What the reader was at while the worker waited."""
        share = self.spent.wait / self.spent.total
        if self.spent.read > self.spent.decode:
            advice = "larger row groups, storage nearby, or more actors reading at once"
            return f"reading {share:.0%} of the time: {advice}"
        cores = "CPU cores" if self.spent.busy is None else "CPU cores per GPU"
        return f"decoding {share:.0%} of the time: more {cores}, or tensors in place of JPEG or PNG"

    def _faster(self) -> str:
        if self.spent.busy is None:
            return "more CPU cores, a GPU or a smaller model"
        return "the GPU is what limits it; more GPUs or a smaller model"

    def to_json(self) -> dict[str, Any]:
        """Everything, JSON-ready, with seconds rounded to milliseconds."""
        seconds = {**asdict(self.spent), "rest": self.spent.rest}
        return {
            "rows": self.rows,
            "workers": self.workers,
            "rows_per_second_per_worker": round(self.rate, 1),
            "batch_rows": list(self.batch_rows),
            "batches_halved": self.halved,
            "gpu_busy": None if self.busy is None else round(self.busy, 4),
            "seconds": {k: None if v is None else round(v, 3) for k, v in seconds.items()},
            "bottleneck": self.bottleneck,
        }

    def line(self) -> str:
        """One line for the log."""
        gpu = "" if self.busy is None else f", GPU busy {self.busy:.0%} of it"
        workers = "worker" if self.workers == 1 else "workers"
        sizes = " or ".join(f"{size:,}" for size in self.batch_rows)
        passes = f", {sizes} rows a forward pass" if sizes else ""
        return (
            f"scored {self.rows:,} rows with {self.workers} {workers}, {self.rate:,.0f} rows/s "
            f"each{passes}{gpu}; {self.bottleneck}"
        )


def _shares(
    spent: Spent, parts: dict[str, str], total: float
) -> tuple[tuple[str, float, float], ...]:
    found = ((said, getattr(spent, part)) for part, said in parts.items())
    return tuple((said, value, value / total if total else 0.0) for said, value in found)
