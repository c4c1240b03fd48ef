"""What a report shows, as plain numbers and bytes: no Ray, no files, no model."""

from __future__ import annotations

from dataclasses import dataclass, field

from dataprune_ray.clock import Scoring
from dataprune_ray.drift import Drift
from dataprune_ray.quality import Quality
from dataprune_ray.verdict import Comparison, Tuned


@dataclass(frozen=True)
class ScoreHistogram:
    """Distribution of the deciding metric, kept and dropped rows apart.

    ``edges`` has one value more than ``kept`` and ``dropped``; ``cutoff`` is None where no single
    value separates kept from dropped (per-class or random selection).
    """

    metric: str
    edges: tuple[float, ...]
    kept: tuple[int, ...]
    dropped: tuple[int, ...]
    cutoff: float | None
    kept_end: str  # "high", "low" or "random"
    spread: bool = False  # rows are taken from all scores, not from one end
    overridden: bool = False  # the user turned the metric's own polarity around


@dataclass(frozen=True)
class ClassCount:
    """Rows of one class."""

    name: str
    kept: int
    dropped: int
    quarantined: int = 0


@dataclass(frozen=True)
class GalleryItem:
    """One row of the corpus as a person would look at it: exactly one of image, text or fields."""

    file: str
    row: int
    key: str | None
    label: str | None
    score: float
    kept: bool
    image: bytes | None = None  # PNG, JPEG or WebP bytes, at most a thumbnail
    text: str | None = None
    fields: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Gallery:
    """A titled group of rows with one sentence on why these were picked."""

    title: str
    caption: str
    items: tuple[GalleryItem, ...]


@dataclass(frozen=True)
class BadRow:
    """A quarantined row; ``row`` is None where a whole file could not be read."""

    file: str
    row: int | None
    key: str | None
    error: str


@dataclass(frozen=True)
class ReportData:
    """Everything that the page shows, in the page's order."""

    title: str
    rows_in: int
    rows_kept: int
    rows_dropped: int
    rows_quarantined: int
    requested_keep: float | None  # None where the strategy does not ask for a fraction
    bytes_in: int
    bytes_out: int
    sentence: str  # what was asked and done, in one or two plain sentences
    histogram: ScoreHistogram
    classes: tuple[ClassCount, ...] = ()
    galleries: tuple[Gallery, ...] = ()
    bad_reasons: tuple[tuple[str, int], ...] = ()
    bad_examples: tuple[BadRow, ...] = ()
    stages: tuple[tuple[str, float], ...] = ()  # name, seconds
    scoring: Scoring | None = None  # where its workers' time went, if rows were scored
    settings: tuple[tuple[str, str], ...] = ()
    outputs: tuple[tuple[str, str], ...] = ()  # path, what it is
    warnings: tuple[str, ...] = ()
    command: str = ""
    versions: tuple[tuple[str, str], ...] = field(default=())
    drift: Drift | None = None  # since a baseline, where there is one
    quality: Quality | None = None  # where it was asked for
    tuned: Tuned | None = None  # how the strategy was found, where it was searched for
    comparison: Comparison | None = None  # full against pruned, once it was run
