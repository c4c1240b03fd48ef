"""A Ray of this program's own, started while its modules load: each takes seconds, on a core.

Nothing here imports more than Ray itself.
"""

from __future__ import annotations

import importlib
import logging
import os
import threading

import ray

_LOCAL_STORE_BYTES = 512 << 20
#: Said of a Ray that a job started beside its imports, until the run takes it over.
_early = threading.Event()


def quietly(address: str | None) -> None:
    """Join the cluster at an address, or start a quiet Ray of this process's own.

    Raises:
        ConnectionError: no cluster answers there.
    """
    if address is not None:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        return
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    ray.init(
        address="local",  # never a cluster that happens to run on this machine
        object_store_memory=_LOCAL_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def wanted(address: str | None) -> str | None:
    """The cluster to join: the one given, or the one of the environment; None: a local Ray."""
    return address or os.environ.get("RAY_ADDRESS") or None


def beside_imports(module: str, address: str | None) -> None:
    """Import a module and, where the run will want a local Ray, start one meanwhile.

    `taken_over` tells the run of it. Where the program ends before, Ray ends with it.
    """
    if wanted(address) is not None or ray.is_initialized():
        importlib.import_module(module)
        return
    # Ray's own modules first: two threads in one circle of imports may see half a module.
    importlib.import_module("ray.train")
    imports = threading.Thread(target=importlib.import_module, args=(module,), name="imports")
    imports.start()
    try:
        quietly(None)
        _early.set()
    finally:
        imports.join()
    importlib.import_module(module)  # raises what the thread met


def taken_over() -> bool:
    """Whether a Ray that `beside_imports` started is there; from now on it is the caller's."""
    early = _early.is_set() and ray.is_initialized()
    _early.clear()
    return early
