"""What a quality pass found, as plain numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Leakage:
    """Test rows that the corpus holds too.

    Attributes:
        exact: test rows whose encoded features are in the corpus.
        near: others that are in it nearly.
        test_rows: test rows compared; fewer than ``test_rows_in_all`` where they were sampled.
        similarity: cosine from which a pair counts as near.
        examples: pairs of (train, test) places, as ``file:row``.
        test_rows_in_all: test rows there are.
    """

    exact: int
    near: int
    test_rows: int
    similarity: float
    examples: tuple[tuple[str, str], ...] = ()
    test_rows_in_all: int = 0


@dataclass(frozen=True)
class Quality:
    """What the out-of-fold models and the neighbours say of the corpus and of the cut.

    Attributes:
        rows: rows that were judged.
        noise_share: estimated share of wrong labels (confident joint); None without classes.
        neighbour_disagreement: mean share of nearest neighbours with another label.
        suspected: rows that the confident joint flags as mislabelled.
        suspected_kept: how many of them the cut keeps.
        dropped_score_outliers: dropped rows beyond the box plot's fences (1.5 IQR) of all scores.
        dropped_density_outliers: dropped rows farther from their neighbours than the fence.
        rescued: rare rows put back within the budget.
        clusters: (rows, kept rows) of each cluster of the features, largest first.
        empty_clusters: clusters of which nothing is kept.
        classes_lost: classes of which nothing is kept.
        leakage: against a test set, where one was given.
    """

    rows: int
    noise_share: float | None
    neighbour_disagreement: float | None
    suspected: int
    suspected_kept: int
    dropped_score_outliers: int
    dropped_density_outliers: int
    rescued: int
    clusters: tuple[tuple[int, int], ...] = ()
    empty_clusters: int = 0
    classes_lost: int = 0
    leakage: Leakage | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)
