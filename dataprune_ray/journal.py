"""What a run notes about itself while it goes on."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from dataprune_ray import telemetry

logger = logging.getLogger("dataprune")


@dataclass
class Journal:
    """What a run notes about itself: seconds by stage, and warnings."""

    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    run: str | None = None  # tag of the metrics, from when Ray is there to take them

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage."""
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        if self.run is not None:
            telemetry.set_stage_seconds(self.run, name, self.seconds[name])

    def warn(self, text: str) -> None:
        """Say it now, and again in the report and the manifest."""
        logger.warning("warning: %s", text)
        self.warnings.append(text)
