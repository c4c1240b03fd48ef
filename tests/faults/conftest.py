from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import harness


@pytest.fixture(scope="session")
def folder():
    """A folder with a short path: Ray's sockets lie below it, and their names are limited."""
    made = Path(tempfile.mkdtemp(prefix="dpf", dir="/tmp"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="session")
def environment(folder):
    """Ray keeps its sessions where they are removed after the tests."""
    return {"RAY_TMPDIR": str(folder)}


@pytest.fixture(scope="session")
def corpus(folder):
    return harness.make_corpus(folder)


@pytest.fixture(scope="session")
def reference(folder, corpus, environment):
    """The output of an undisturbed run."""
    output, log = folder / "reference", folder / "reference.log"
    assert harness.Job(corpus.command(output), log, environment).wait() == 0, log.read_text()
    assert harness.every_row_once(output) == corpus.rows
    return output
