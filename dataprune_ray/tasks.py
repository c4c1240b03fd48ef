"""Plain Ray tasks over many small inputs, a bounded number in flight."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pyarrow as pa
import ray

from dataprune_ray.errors import DataPruneError
from dataprune_ray.io.retries import retried

A = TypeVar("A")
R = TypeVar("R")

#: CPUs at most with which a task has one to itself.
_FEW_CPUS = 2
#: Workers that a task may lose before the run fails: machines that are cheap go away often.
_LOST_WORKERS = 8


def run_tasks(
    function: Callable[[A], R],
    items: Iterable[A],
    *,
    num_cpus: float | None = None,
    num_gpus: float = 0,
) -> Iterator[R]:
    """``function`` of each item, in Ray tasks across the cluster, results as they finish.

    What is common to all items belongs into ``function`` (a partial or a frozen dataclass): it is
    sent once. A function must be idempotent: a task is run again where its worker or node is lost,
    or where a storage error may pass. ``num_cpus`` is `task_cpus` unless given.

    Raises:
        DataPruneError: what a task raised on purpose, as itself.
    """
    shared = ray.put(function)
    remote = ray.remote(_call).options(
        num_cpus=task_cpus() if num_cpus is None else num_cpus,
        num_gpus=num_gpus,
        scheduling_strategy="SPREAD",
        max_retries=_LOST_WORKERS,
    )
    return unordered((remote.remote(shared, item) for item in items), in_flight())


def unordered(refs: Iterator[Any], limit: int) -> Generator[Any]:
    """Results of tasks as they finish, at most ``limit`` of them submitted; cancels the rest.

    Raises:
        DataPruneError: what a task raised on purpose, as itself.
    """
    pending: list[Any] = []
    ready: list[Any] = []
    try:
        for ref in refs:
            pending.append(ref)
            if len(pending) + len(ready) >= limit:
                yield _next_result(pending, ready)
        while pending or ready:
            yield _next_result(pending, ready)
    finally:
        for ref in pending:
            ray.cancel(ref)


def task_cpus() -> float:
    """CPUs that a task asks for: half of one, so that one reads while another computes.

    Where there are few, a whole one: a process more costs seconds of imports and gains nothing.
    """
    return 1.0 if cluster_cpus() <= _FEW_CPUS else 0.5


def in_flight() -> int:
    """How many tasks are submitted at a time: enough to keep the cluster busy."""
    return 4 * cluster_cpus()


def cluster_cpus() -> int:
    """CPUs of the whole cluster, at least one."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _next_result(pending: list[Any], ready: list[Any]) -> Any:
    """The result of a task of ``ready``; where there is none, all that are done become ready.

    A look costs time for every pending task, so it is not made for each result.
    """
    if not ready:
        ray.wait(pending, num_returns=1)
        ready[:], pending[:] = ray.wait(pending, num_returns=len(pending), timeout=0)
    with own_errors():
        return ray.get(ready.pop())


@contextmanager
def own_errors() -> Iterator[None]:
    """Let an error that a worker raised on purpose come out as itself, not wrapped by Ray."""
    try:
        yield
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, DataPruneError) and not isinstance(cause, ray.exceptions.RayError):
                raise cause from None
            cause = getattr(cause, "cause", None) or cause.__cause__
        raise


def _call(function: Callable[[A], R], item: A) -> R:
    pa.set_cpu_count(1)
    return retried(function, item)
