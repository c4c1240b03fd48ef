"""What a run notes about itself while it goes on."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from dataprune_ray import telemetry
from dataprune_ray.clock import Scoring

logger = logging.getLogger("dataprune")


@dataclass
class Journal:
    """What a run notes about itself: seconds by stage, and warnings."""

    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    scoring: Scoring | None = None  # where rows were scored by this run
    run: str | None = None  # tag of the metrics, from when Ray is there to take them

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage."""
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        if self.run is not None:
            telemetry.set_stage_seconds(self.run, name, self.seconds[name])

    def scored(self, scoring: Scoring | None) -> None:
        """Note how scoring went, and say it; None where this run scored nothing."""
        self.scoring = scoring
        if scoring is None:
            return
        logger.info("%s", scoring.line())
        if scoring.halved:
            sizes = " or ".join(f"{size:,}" for size in scoring.batch_rows)
            self.warn(
                f"memory ran out while rows were scored: their batches went on with {sizes} rows; "
                "--batch-size of as many saves the attempts"
            )

    def warn(self, text: str) -> None:
        """Say it now, and again in the report and the manifest."""
        logger.warning("warning: %s", text)
        self.warnings.append(text)
