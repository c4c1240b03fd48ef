"""Two hosts with a network between them: one is cut off while it scores."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from harness import Moment, assert_same, names, wait_until
from hosts import HEAD, NODE, NotPermittedError, TwoHosts

FRAGMENTS = 36
ALIVE = """
import json, ray, sys
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
print(json.dumps({node["NodeManagerAddress"]: node["Alive"] for node in ray.nodes()}))
"""


@pytest.fixture
def hosts(environment):
    base = Path(tempfile.mkdtemp(prefix="dph", dir="/tmp"))
    try:
        made = TwoHosts(base, environment)
    except NotPermittedError as reason:
        shutil.rmtree(base)
        pytest.skip(str(reason))
    yield made
    made.close()
    shutil.rmtree(base)


def test_a_host_cut_off_while_it_scores(hosts, folder, corpus, reference):
    output, log = folder / "hosts", folder / "hosts.log"
    job = hosts.run(corpus.command(output, f"--address={hosts.address}"), log)
    try:
        assert wait_until(job, output, Moment("scores", 8, 0.02)), log.read_text()
        scoring = hosts.jobs["node"].workers("MapBatches")
        hosts.pull_the_cable()
        committed = len(names(output / "scores"))
        assert scoring, "no actor ran on the second host"
        assert committed < FRAGMENTS
        assert job.wait() == 0, log.read_text()
    finally:
        job.end()
    assert_same(corpus, output, reference)
    alive = folder / "alive.log"
    asked = hosts.run([sys.executable, "-c", ALIVE, hosts.address], alive)
    assert asked.wait() == 0, alive.read_text()
    assert json.loads(alive.read_text().splitlines()[-1]) == {HEAD: True, NODE: False}
