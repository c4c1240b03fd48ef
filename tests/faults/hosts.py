"""A Ray cluster of two hosts: network namespaces joined by a cable that can be pulled."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from harness import Job, kill

HEAD, NODE = "10.0.0.1", "10.0.0.2"  # seen by the two namespaces alone
PORT = 6379
START_SECONDS = 90
#: A lost host is noticed after about five seconds.
HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1500",
    "RAY_health_check_failure_threshold": "3",
}


class NotPermittedError(Exception):
    """Network namespaces cannot be made here."""


def ip(*words):
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotPermittedError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


class TwoHosts:
    """A head and a node, each with its own network, its own Ray and its own temporary folder.

    They see the same file system, as hosts see the same bucket: a host that is cut off from the
    other one can still write.
    """

    def __init__(self, folder, environment=None):
        if os.geteuid() != 0 or not shutil.which("ip"):
            raise NotPermittedError("network namespaces need root and the command ip")
        self.folder = folder
        self.environment = {**(environment or {}), **HEALTH_CHECKS}
        self.spaces = {name: f"dataprune-{os.getpid()}-{name}" for name in ("head", "node")}
        self.jobs = {}
        try:
            self._connect()
            head = self._start("head", "--head", f"--port={PORT}", "--include-dashboard=false")
            self._wait(head, lambda: listens(head.process.pid, PORT))
            node = self._start("node", f"--address={self.address}")
            self._wait(node, lambda: "Ray runtime started" in node.log.read_text())
        except BaseException:
            self.close()
            raise

    address = f"{HEAD}:{PORT}"

    def _connect(self):
        for space in self.spaces.values():
            ip("netns", "add", space)
        ends = ["eth0", "netns", self.spaces["head"]], ["eth0", "netns", self.spaces["node"]]
        ip("link", "add", *ends[0], "type", "veth", "peer", "name", *ends[1])
        for space, own, other in zip(self.spaces.values(), (HEAD, NODE), (NODE, HEAD), strict=True):
            ip("-n", space, "address", "add", f"{own}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "lo", "up")
            ip("-n", space, "link", "set", "eth0", "up")
            ip("-n", space, "route", "add", "default", "via", other)

    def _start(self, name, *words):
        temporary = self.folder / f"ray-{name}"
        temporary.mkdir()
        own = {"head": HEAD, "node": NODE}[name]
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *words,
            f"--node-ip-address={own}", "--num-cpus=2", "--object-store-memory=100000000",
            "--disable-usage-stats", f"--temp-dir={temporary}",
        ]  # fmt: skip
        job = self.jobs[name] = self.run(command, self.folder / f"{name}.log", on=name)
        return job

    def run(self, command, log, on="head"):
        """Run a command on one of the hosts."""
        inside = ["ip", "netns", "exec", self.spaces[on], *command]
        return Job(inside, log, self.environment)

    @staticmethod
    def _wait(job, is_up):
        deadline = time.monotonic() + START_SECONDS
        while not is_up():
            assert job.process.poll() is None, job.log.read_text()
            assert time.monotonic() < deadline, job.log.read_text()
            time.sleep(0.1)

    def pull_the_cable(self):
        """From now on nothing arrives on either side, and neither side is told."""
        ip("-n", self.spaces["node"], "link", "set", "eth0", "down")

    def close(self):
        """End every process on the hosts, then the hosts."""
        for job in self.jobs.values():
            job.end()
        for space in self.spaces.values():
            with suppress(NotPermittedError):  # it was never made
                kill(map(int, ip("netns", "pids", space).split()))
                ip("netns", "delete", space)


def listens(pid, port):
    """Whether something listens on a port in the network that a process has of its own."""
    if Path(f"/proc/{pid}/ns/net").readlink() == Path("/proc/self/ns/net").readlink():
        return False  # it has not entered its namespace yet
    for name in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
                _, local, _, state, *_ = line.split()
                if state == "0A" and int(local.rpartition(":")[2], 16) == port:
                    return True
    return False
