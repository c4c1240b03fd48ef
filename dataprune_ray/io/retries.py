"""Storage errors that pass, and how long they are waited out.

A store in the network now and then refuses, resets or times out; asked again it answers. What says
that a file is missing, forbidden or damaged, or that a disk is full, is not asked again. pyarrow's
S3 client repeats a request for some six seconds by itself; the waits here come on top of that.
"""

from __future__ import annotations

import errno
import logging
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from dataprune_ray.errors import DataPruneError, StorageError

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger("dataprune")

_PASSING_NUMBERS = frozenset(
    getattr(errno, name)
    for name in (
        "EAGAIN", "EBUSY", "ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EHOSTDOWN",
        "EHOSTUNREACH", "EINTR", "EIO", "ENETDOWN", "ENETRESET", "ENETUNREACH", "ENOBUFS",
        "ENOLINK", "ENOTCONN", "EPIPE", "EPROTO", "EREMOTEIO", "ESTALE", "ETIMEDOUT",
    )
    if hasattr(errno, name)
)  # fmt: skip
#: What object stores say, which pyarrow passes on as text.
_PASSING_WORDS = re.compile(
    r"HTTP status (5\d\d|429|408)\b"
    r"|AWS Error (NETWORK_CONNECTION|SLOW_DOWN|THROTTLING|REQUEST_TIMEOUT|INTERNAL_FAILURE"
    r"|SERVICE_UNAVAILABLE)\b"
    r"|Status\((UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|ABORTED|INTERNAL)\b"
    r"|\bcurlCode\b|\btimed out\b|\btime-?out\b|\bconnection (was )?(reset|closed|refused)\b"
    r"|\btemporarily unavailable\b|\bservice unavailable\b|\bslow ?down\b|\bserver busy\b",
    re.IGNORECASE,
)


def is_passing(error: BaseException) -> bool:
    """Whether the same call may work a little later."""
    if isinstance(error, DataPruneError) or not isinstance(error, OSError):
        return False
    if isinstance(error, (TimeoutError, ConnectionError)) or error.errno in _PASSING_NUMBERS:
        return True
    return error.errno is None and _PASSING_WORDS.search(str(error)) is not None


@dataclass(frozen=True)
class Patience:
    """How often a call is made, and the waits in between, in seconds: doubling up to ``longest``.

    Each wait is shortened by up to a half at random, so that workers do not come back together.
    """

    attempts: int = 8
    first: float = 0.25
    longest: float = 10.0

    def waits(self, chance: Callable[[], float] = random.random) -> Iterator[float]:
        """Seconds before each further attempt."""
        for attempt in range(self.attempts - 1):
            yield min(self.first * 2.0**attempt, self.longest) * (1.0 - chance() / 2)


PATIENCE = Patience()


class Waiting:
    """The waits between the attempts of one thing that is tried again."""

    def __init__(self, patience: Patience | None = None) -> None:
        self._patience = patience or PATIENCE
        self._waits = self._patience.waits()

    def after(self, error: Exception) -> None:
        """Wait where the error may pass; otherwise raise it.

        Raises:
            StorageError: the error might pass but did not, after every attempt.
        """
        if not is_passing(error):
            raise error
        wait = next(self._waits, None)
        if wait is None:
            raise StorageError(
                f"storage failed {self._patience.attempts} times in a row: {error}"
            ) from error
        logger.warning("storage failed, next attempt in %.1f s: %s", wait, error)
        time.sleep(wait)

    def reset(self) -> None:
        """Something worked: the next error is a new one."""
        self._waits = self._patience.waits()


def retried(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call an idempotent function, again where a storage error may pass.

    Raises:
        StorageError: an error that might pass did not.
        Exception: what else the function raises.
    """
    waiting = Waiting()
    while True:
        try:
            return function(*args, **kwargs)
        except OSError as error:
            waiting.after(error)
