"""One run at a time in an output directory.

On a local or shared POSIX file system the operating system holds the lock (``flock``): it ends
with the process, however that ends. In an object store a small object names the holder, which
renews it all the time. Who finds one waits: for its renewal, and is refused, or until it was not
renewed for a while, and takes it over. A store offers no conditional write here, so that is the
best effort, not a proof: two runs that start within the same moment are told apart by reading back
what was written last.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.fs as pafs

from dataprune_ray.errors import ConfigError
from dataprune_ray.io.filesystems import redact, resolve
from dataprune_ray.io.retries import retried

logger = logging.getLogger("dataprune")

#: Name of the lock in the output directory; hidden, so that no reader takes it for data.
LOCK = ".lock"
BEAT_SECONDS = 20.0
STALE_SECONDS = 90.0
SETTLE_SECONDS = 1.0
_LOOK_SECONDS = 1.0


@contextmanager
def locked(root: str) -> Iterator[None]:
    """Hold an output directory for the length of the block.

    In an object store that a killed run has locked, the start waits for up to `STALE_SECONDS`.

    Raises:
        ConfigError: another run holds it; the message says which.
    """
    filesystem, inner = resolve(root)
    if isinstance(filesystem, pafs.LocalFileSystem):
        with _held_by_system(Path(inner) / LOCK, root):
            yield
    else:
        with held_by_heartbeat(filesystem, f"{inner.rstrip('/')}/{LOCK}", root):
            yield


def _owner() -> dict[str, Any]:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": since}


def _named(owner: dict[str, Any]) -> str:
    if not owner:
        return "another run"
    place = f"process {owner.get('pid')} on {owner.get('host')}"
    return f"another run ({place}, since {owner.get('since')})"


def _refusal(root: str, owner: dict[str, Any]) -> ConfigError:
    advice = f"{_named(owner)} is writing it; wait for its end, or choose another --output"
    return ConfigError("output", redact(root), advice)


def _parsed(text: str | bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


# The operating system's lock ---------------------------------------------------------------------


@contextmanager
def _held_by_system(path: Path, root: str) -> Iterator[None]:
    with _open_locked(path, root) as file:
        file.truncate(0)
        file.write(json.dumps(_owner()) + "\n")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # while it is held: nobody else's can be removed


def _open_locked(path: Path, root: str) -> IO[str]:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(path, file):
                return file
        except BlockingIOError:
            file.seek(0)
            owner = _parsed(file.read())
            file.close()
            raise _refusal(root, owner) from None
        except BaseException:
            file.close()
            raise
        file.close()  # its holder removed it between our opening and our locking


def _is_still(path: Path, file: IO[str]) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    return False


# The heartbeat -----------------------------------------------------------------------------------


@contextmanager
def held_by_heartbeat(
    filesystem: pafs.FileSystem,
    path: str,
    root: str,
    *,
    beat: float = BEAT_SECONDS,
    stale: float = STALE_SECONDS,
    settle: float = SETTLE_SECONDS,
) -> Iterator[None]:
    """Hold a lock object for the length of the block.

    Args:
        filesystem: where it lies.
        path: its path there.
        root: what to name in messages.
        beat: seconds between renewals.
        stale: seconds without a renewal after which another run takes it over. They are counted
            from the renewal that the lock notes, which needs clocks that agree much better than
            that, but from the first look at the latest.
        settle: seconds after which a first write is read back.

    Raises:
        ConfigError: another run holds it.
    """
    lock = _Heartbeat(filesystem, path, {**_owner(), "token": uuid.uuid4().hex})
    _await_end(lock, root, stale)
    lock.write()
    time.sleep(settle)
    if (other := lock.other()) is not None:
        raise _refusal(root, other)
    stopped = threading.Event()
    thread = threading.Thread(target=lock.renew, args=(stopped, beat), name="lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
        lock.remove()


def _await_end(lock: _Heartbeat, root: str, stale: float) -> None:
    """Wait until nobody else holds the lock, or until its holder has not renewed it for too long.

    Raises:
        ConfigError: the holder renewed it, so it is at work.
    """
    first = other = retried(lock.other)
    if first is None:
        return
    left = min(stale, stale - (time.time() - float(first.get("beat", 0.0))))
    if left > 0:
        logger.info(
            "%s is locked by %s; if that was killed, this run goes on in %.0f s at most",
            redact(root),
            _named(first),
            math.ceil(left),
        )
    end = time.monotonic() + left
    while other is not None and time.monotonic() < end:
        time.sleep(min(_LOOK_SECONDS, stale / 10))
        other = retried(lock.other)
        if other is not None and other != first:
            raise _refusal(root, other)


class _Heartbeat:
    """The lock object of one holder."""

    def __init__(self, filesystem: pafs.FileSystem, path: str, owner: dict[str, Any]) -> None:
        self.filesystem = filesystem
        self.path = path
        self.owner = owner

    def other(self) -> dict[str, Any] | None:
        """Who else holds the lock, if anybody does."""
        try:
            with self.filesystem.open_input_stream(self.path) as stream:
                found = _parsed(stream.read())
        except FileNotFoundError:
            return None
        return None if not found or found.get("token") == self.owner["token"] else found

    def write(self) -> None:
        """Claim or renew it."""
        content = json.dumps({**self.owner, "beat": time.time()}).encode()
        with self.filesystem.open_output_stream(self.path) as stream:
            stream.write(content)

    def renew(self, stopped: threading.Event, beat: float) -> None:
        """Renew it until stopped, or until another run has taken it."""
        while not stopped.wait(beat):
            try:
                other = self.other()
                if other is not None:
                    logger.warning("warning: another run took %s over: %s", self.path, other)
                    return
                self.write()
            except (OSError, pa.ArrowException) as error:
                logger.warning("warning: the lock cannot be renewed: %s", error)

    def remove(self) -> None:
        """Give it up, where it is still this holder's."""
        with suppress(OSError, pa.ArrowException):
            if self.other() is None:
                self.filesystem.delete_file(self.path)
