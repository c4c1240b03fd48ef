"""Fixtures that several test folders share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# A busy machine is no failure: examples have no time limit of their own. A check of a change tries
# the same examples every time; elsewhere each run tries others.
settings.register_profile("project", deadline=None, derandomize="DATAPRUNE_CI" in os.environ)
settings.load_profile("project")


@pytest.fixture(scope="session")
def local_ray():
    """A small Ray on this machine; a Ray that was already there is used and left running."""
    os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
    import ray  # noqa: PLC0415 - unit tests run without importing Ray

    started = not ray.is_initialized()
    if started:
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=200_000_000,
            log_to_driver=False,
        )
    yield
    if started:
        ray.shutdown()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of public data sets named by DATAPRUNE_DATA."""
    folder = os.environ.get("DATAPRUNE_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("set DATAPRUNE_DATA to the folder with the public data sets to run this test")
    return Path(folder)
