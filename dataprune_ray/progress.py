"""Progress as log lines: how far, how fast, how long still."""

from __future__ import annotations

import logging
import time

logger = logging.getLogger("dataprune")

_SECONDS_BETWEEN_LINES = 2.0


class Progress:
    """Counts units of one stage and says now and then how it goes; ``total`` None if unknown."""

    def __init__(self, stage: str, unit: str, total: int | None) -> None:
        self.stage = stage
        self.unit = unit
        self.total = total
        self.done = 0
        self._fresh = 0
        self._spoken = time.monotonic()
        self._started: float | None = None  # first result: starting workers is not the rate

    def add(self, count: int, *, reused: bool = False) -> None:
        """Count finished units; reused ones and the first do not enter the rate."""
        self.done += count
        now = time.monotonic()
        if self._started is None and not reused:
            self._started = now
        elif not reused:
            self._fresh += count
        if now - self._spoken >= _SECONDS_BETWEEN_LINES:
            self._spoken = now
            logger.info("%s", self.line(now))

    def line(self, now: float) -> str:
        """What to say at ``now``."""
        rate = self._fresh / max(now - self._started, 1e-9) if self._started is not None else 0.0
        if self.total is None:
            return f"{self.stage}: {self.done:,} {self.unit}, {rate:,.0f} {self.unit}/s"
        share = 100.0 * self.done / max(self.total, 1)
        text = f"{self.stage}: {self.done:,} of {self.total:,} {self.unit} ({share:.0f} %)"
        if not rate:
            return text
        left = (self.total - self.done) / rate
        return f"{text}, {rate:,.0f} {self.unit}/s, {_clock(left)} left"


def _clock(seconds: float) -> str:
    whole = round(max(seconds, 0.0))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
