"""Fits what an expensive metric says of a sample, chooses among predictors, predicts the rest.

Three predictors are tried: the first cue alone (the out-of-fold score of a cheap model), gradient
boosting on all cues, and the mean of the nearest rows by features. The one with the largest
Spearman correlation on rows that it was not fitted to is taken. What it says is then mapped, rank
by rank, onto the distribution of the exact scores, so that predicted and exact rows share one
scale: a regression alone would draw predictions together and leave the extremes to exact rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from threadpoolctl import threadpool_limits

from dataprune_ray.quality.neighbours import normalised

#: Rows without which nothing can be held out.
LEAST_ROWS = 20
_FITTED = 0.7  # share of a lesson that predictors are compared after being fitted to
_NEIGHBOURS = 10
_Z95 = 1.959964
_RANK_SPREAD = 1.03  # square root of 1.06

Reals = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Agreement:
    """How well predictions rank rows that they were not fitted to.

    ``spearman`` in [-1, 1] with its 95 % interval (Fisher's z, with Fieller's factor
    1.06 for ranks); ``rows`` were held out, ``fitted`` are what the final predictor saw;
    ``tried`` holds every predictor's correlation.
    """

    chosen: str
    spearman: float
    low: float
    high: float
    rows: int
    fitted: int
    tried: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "chosen": self.chosen,
            "spearman": round(self.spearman, 6),
            "spearman_low": round(self.low, 6),
            "spearman_high": round(self.high, 6),
            "held_out_rows": self.rows,
            "fitted_rows": self.fitted,
            "tried": {name: round(value, 6) for name, value in self.tried.items()},
        }


@dataclass(frozen=True, eq=False)
class Lesson:
    """Rows whose exact scores are known, as models that have not seen them judge them.

    ``cues`` float32 (n, d), ``features`` float32 (n, D), ``judge`` int64 (n,): which model judged,
    ``target`` float32 (n,): the exact scores. Rows stand in an order that chance decided.
    """

    cues: Reals
    features: Reals
    judge: npt.NDArray[np.int64]
    target: Reals

    def __len__(self) -> int:
        return len(self.target)

    def part(self, rows: slice | npt.NDArray[np.int64]) -> Lesson:
        """Some of the rows."""
        return Lesson(self.cues[rows], self.features[rows], self.judge[rows], self.target[rows])


@dataclass(frozen=True, eq=False)
class Choice:
    """The predictor that was chosen, and what it said of the rows held out: float64 (h,)."""

    agreement: Agreement
    said: npt.NDArray[np.float64]


class Learner:
    """A fitted predictor. Two that are fitted to equal lessons with one seed predict alike."""

    def __init__(self, lesson: Lesson, seed: int, choice: Choice | None = None) -> None:
        """Choose a predictor and fit it.

        Args:
            lesson: `LEAST_ROWS` rows at least.
            seed: of the boosting.
            choice: as it was made before; None: to be made.

        Raises:
            ValueError: there are fewer rows.
        """
        if len(lesson) < LEAST_ROWS:
            raise ValueError(f"{len(lesson)} rows are too few to learn from")
        self.lesson = lesson
        self.seed = seed
        self.choice = choice or _choose(lesson, seed)
        self.agreement = self.choice.agreement
        self._predict = _PREDICTORS[self.agreement.chosen](lesson, seed)
        self._said, self._place = _distribution(self.choice.said)
        self._exact = np.sort(lesson.target)

    def predict(self, cues: Reals, features: Reals, judge: npt.NDArray[np.int64]) -> Reals:
        """Predicted scores of rows as in a `Lesson`, on the exact scores' scale: float32 (m,)."""
        none = np.zeros(len(cues), np.float32)
        if not len(cues):
            return none
        said = self._predict(Lesson(cues, features, judge, none))
        place = np.interp(said, self._said, self._place)
        places = (np.arange(len(self._exact)) + 0.5) / len(self._exact)
        return np.interp(place, places, self._exact).astype(np.float32)

    def to_bytes(self) -> bytes:
        """What it takes to fit it again, as safetensors."""
        arrays = {
            "cues": self.lesson.cues,
            "features": self.lesson.features,
            "judge": self.lesson.judge,
            "target": self.lesson.target,
            "seed": np.array([self.seed], np.int64),
            "said": self.choice.said,
            "agreement": np.frombuffer(json.dumps(asdict(self.agreement)).encode(), np.uint8),
        }
        content: bytes = safetensors.numpy.save(
            {n: np.ascontiguousarray(a) for n, a in arrays.items()}
        )
        return content

    @classmethod
    def from_bytes(cls, content: bytes) -> Learner:
        """The learner that `to_bytes` stored."""
        held = safetensors.numpy.load(content)
        lesson = Lesson(held["cues"], held["features"], held["judge"], held["target"])
        agreement = Agreement(**json.loads(held["agreement"].tobytes()))
        return cls(lesson, int(held["seed"][0]), Choice(agreement, held["said"]))


def _choose(lesson: Lesson, seed: int) -> Choice:
    """Fit every predictor to the first rows of a lesson and compare them on the others."""
    cut = round(_FITTED * len(lesson))
    fitted, held = lesson.part(slice(None, cut)), lesson.part(slice(cut, None))
    said = {name: fit(fitted, seed)(held) for name, fit in _PREDICTORS.items()}
    tried = {name: _correlation(values, held.target) for name, values in said.items()}
    chosen = max(tried, key=lambda name: tried[name])
    return Choice(_agreement(chosen, tried, len(held), len(lesson)), said[chosen])


def _correlation(said: npt.NDArray[Any], exact: Reals) -> float:
    """Spearman's; 0 where one of the two is constant."""
    if np.ptp(said) == 0 or np.ptp(exact) == 0:
        return 0.0
    from scipy import stats  # noqa: PLC0415 - a second, for those who fit only

    return float(stats.spearmanr(said, exact).statistic)


def _agreement(chosen: str, tried: Mapping[str, float], held: int, fitted: int) -> Agreement:
    found = tried[chosen]
    centre = np.arctanh(np.clip(found, -1 + 1e-12, 1 - 1e-12))
    half = _Z95 * _RANK_SPREAD / np.sqrt(max(held - 3, 1))
    low, high = np.tanh(centre - half), np.tanh(centre + half)
    low, high = min(float(low), found), max(float(high), found)
    return Agreement(chosen, found, low, high, held, fitted, dict(tried))


def _distribution(
    values: npt.NDArray[Any],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Distinct values in ascending order, and each one's mid-rank as a share: both (u,)."""
    distinct, counts = np.unique(np.asarray(values, np.float64), return_counts=True)
    before = np.cumsum(counts) - counts
    return distinct, (before + counts / 2) / counts.sum()


# Predictors: fitted to a lesson, they say something of other rows that ranks as the target ------

_Said = Callable[[Lesson], npt.NDArray[np.float64]]


def _out_of_fold(lesson: Lesson, _: int) -> _Said:
    """The first cue, turned around where it falls as the target rises."""
    sign = -1.0 if _correlation(lesson.cues[:, 0], lesson.target) < 0 else 1.0
    return lambda rows: sign * rows.cues[:, 0].astype(np.float64)


def _boosting(lesson: Lesson, seed: int) -> _Said:
    """Gradient boosting on the cues."""
    from sklearn.ensemble import HistGradientBoostingRegressor  # noqa: PLC0415 - a second, for those who fit only

    model = HistGradientBoostingRegressor(
        max_iter=150,
        learning_rate=0.05,
        min_samples_leaf=10,
        early_stopping=False,
        random_state=seed % 2**32,
    )
    with threadpool_limits(1):  # actors have a core each; threads beyond would wait for another
        model.fit(lesson.cues, lesson.target)

    def say(rows: Lesson) -> npt.NDArray[np.float64]:
        with threadpool_limits(1):
            return np.asarray(model.predict(rows.cues), np.float64)

    return say


def _neighbours(lesson: Lesson, _: int) -> _Said:
    """Mean target of the nearest rows, by cosine, among those that the same model judged."""
    from sklearn.neighbors import NearestNeighbors  # noqa: PLC0415 - a second, for those who fit only

    judges = np.unique(lesson.judge)
    known = {int(j): np.flatnonzero(lesson.judge == j) for j in judges}
    mean = float(lesson.target.mean(dtype=np.float64))
    trees = {
        j: NearestNeighbors(n_neighbors=min(_NEIGHBOURS, len(rows)), algorithm="brute").fit(
            normalised(lesson.features[rows])
        )
        for j, rows in known.items()
    }

    def say(rows: Lesson) -> npt.NDArray[np.float64]:
        said = np.full(len(rows), mean)
        for j, tree in trees.items():
            own = np.flatnonzero(rows.judge == j)
            if len(own):
                index = tree.kneighbors(normalised(rows.features[own]), return_distance=False)
                index.sort(axis=1)  # the order of a sum must not depend on the batch
                said[own] = lesson.target[known[j]][index].mean(axis=1, dtype=np.float64)
        return said

    return say


#: In the order in which ties are broken: the simplest first.
_PREDICTORS: dict[str, Callable[[Lesson, int], _Said]] = {
    "out_of_fold": _out_of_fold,
    "boosting": _boosting,
    "neighbours": _neighbours,
}
