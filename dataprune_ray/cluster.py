"""Joining or starting Ray, and sizing pools by what the cluster has."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from dataprune_ray.config import ScoreConfig
from dataprune_ray.errors import ConfigError
from dataprune_ray.scoring import Pool
from dataprune_ray.starting import quietly, taken_over, wanted

_HERE = "this machine"


@dataclass(frozen=True)
class Cluster:
    """What Ray has to offer: ``where`` says in words whose Ray it is.

    ``cpus_per_gpu`` are those of the node that has the fewest for each of its GPUs.
    """

    cpus: float
    gpus: float
    where: str
    local: bool
    cpus_per_gpu: float = 1.0


@contextmanager
def cluster(address: str | None) -> Iterator[Cluster]:
    """Ray for the length of a run: one already joined, the one asked for, or a local one.

    A Ray that was not started here is left running.

    Raises:
        ConfigError: no cluster answers at ``address``.
    """
    started = True
    address = wanted(address)
    where = f"the cluster at {address}" if address else _HERE
    if not ray.is_initialized():
        _init(address)
    elif not taken_over():
        started, where = False, "a Ray that was already running"
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        found = ray.cluster_resources()
        yield Cluster(
            found.get("CPU", 0.0), found.get("GPU", 0.0), where, where == _HERE, _cpus_per_gpu()
        )
    finally:
        if started:
            ray.shutdown()


def _init(address: str | None) -> None:
    try:
        quietly(address)
    except ConnectionError as error:
        raise ConfigError("address", address, f"no cluster answers there: {error}") from None


def _cpus_per_gpu() -> float:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return min((n.get("CPU", 0.0) / n["GPU"] for n in nodes if n.get("GPU")), default=1.0)


def pool_of(config: ScoreConfig, found: Cluster) -> Pool:
    """Actors and their resources: one CPU each, with one left for everything else.

    Actors with GPUs share the CPUs of their nodes, and decode images in as many threads.
    On one or two CPUs an actor asks for half of one, because the engine's own tasks need a share.
    A cluster that grows on demand may show fewer CPUs now than ``actors`` asks for.
    """
    if config.num_gpus:
        actors = config.actors or max(1, int(found.gpus / config.num_gpus))
        share = max(1, int(found.cpus_per_gpu * config.num_gpus) - 1)  # a node has other work, too
        return Pool(actors, float(share) if found.cpus > found.gpus else 0.5, config.num_gpus)
    if config.actors and not found.local:
        return Pool(config.actors, min(1.0, max(found.cpus - 1.0, 0.5)), 0.0)
    if found.cpus <= 2:  # noqa: PLR2004
        actors = config.actors or max(1, int(found.cpus))
        return Pool(actors, min(0.5, max(found.cpus, 1.0) / 2 / actors), 0.0)
    actors = config.actors or int(found.cpus) - 1
    return Pool(actors, min(1.0, (found.cpus - 1) / actors), 0.0)
