"""Leakage: rows of a test corpus that the training corpus holds too, the same or nearly.

Test rows are held in memory, at most a given number of them, chosen by hash where there are more;
every row of the training corpus is compared with all of them. Scores on such rows flatter a model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from dataprune_ray.features import FeatureSpec
from dataprune_ray.io.corpus import Fragment
from dataprune_ray.io.rows import RowBatch, RowPlan, ahead, read_rows
from dataprune_ray.io.splits import places
from dataprune_ray.models import ModelSpec, image_transform
from dataprune_ray.quality import Leakage
from dataprune_ray.quality.likeness import NEAR, content_hashes, outlines, signatures
from dataprune_ray.tasks import run_tasks

_EXAMPLES = 10
#: Training rows compared at once: 40 MB of cosines with 20,000 test rows.
_AT_ONCE = 512


def leakage(rows: RowPlan, test: RowPlan, model: ModelSpec, limit: int = 20_000) -> Leakage:
    """Count the test rows that are in the corpus, by Ray tasks.

    Exact: the encoded features are the same. Near: their signatures have a cosine of 0.98 or more
    (see `quality.likeness`); not searched in tables.

    Args:
        rows: the training rows.
        test: the test rows, encoded as the training rows are.
        model: whose own transform images go through.
        limit: test rows compared; of more, those of lowest place by hash.
    """
    held = _Held.empty(limit)
    for found in run_tasks(partial(_collect, test, model, limit), test.fragments):
        held = held.merged(found)
    if not len(held.content):
        return Leakage(0, 0, 0, NEAR)
    tested = _Tested.of(held, rows.features)
    exact = np.zeros(len(held.content), np.bool_)
    near = exact.copy()
    pairs: list[tuple[str, str]] = []
    for same, alike, some in run_tasks(partial(_compare, rows, model, tested), rows.fragments):
        exact |= same
        near |= alike
        pairs = sorted({*pairs, *some})[:_EXAMPLES]
    return Leakage(
        exact=int(exact.sum()),
        near=int((near & ~exact).sum()),
        test_rows=len(exact),
        similarity=NEAR,
        examples=tuple(pairs),
        test_rows_in_all=held.count,
    )


@dataclass(frozen=True, eq=False)
class _Held:
    """Test rows: place and content hash uint64 (m,), outline (m, d), name; ``count`` were seen."""

    limit: int
    count: int
    place: npt.NDArray[np.uint64]
    content: npt.NDArray[np.uint64]
    outline: npt.NDArray[np.float32]
    names: npt.NDArray[np.str_]

    @classmethod
    def empty(cls, limit: int) -> _Held:
        none = np.zeros(0, np.uint64)
        return cls(limit, 0, none, none, np.zeros((0, 0), np.float32), np.zeros(0, np.str_))

    def merged(self, other: _Held) -> _Held:
        """The rows of lowest place of both."""
        count = self.count + other.count
        if not len(self.place) or not len(other.place):
            one = self if len(self.place) else other
            return _Held(self.limit, count, one.place, one.content, one.outline, one.names)
        place = np.concatenate([self.place, other.place])
        order = np.argsort(place, kind="stable")[: self.limit]
        return _Held(
            self.limit,
            count,
            place[order],
            np.concatenate([self.content, other.content])[order],
            np.concatenate([self.outline, other.outline])[order],
            np.concatenate([self.names, other.names])[order],
        )


@dataclass(frozen=True, eq=False)
class _Tested:
    """What training rows are compared with: content hashes (m,), signatures (m, d) or None."""

    content: npt.NDArray[np.uint64]
    names: npt.NDArray[np.str_]
    centre: npt.NDArray[np.float64]
    signature: npt.NDArray[np.float32] | None

    @classmethod
    def of(cls, held: _Held, features: FeatureSpec) -> _Tested:
        centre = held.outline.astype(np.float64).mean(axis=0)
        near = features.modality != "tabular"
        return cls(
            held.content, held.names, centre, signatures(held.outline, centre) if near else None
        )


def _encoded(plan: RowPlan, model: ModelSpec, fragment: Fragment) -> Iterator[RowBatch]:
    for batch in ahead(read_rows(plan, fragment, image_transform(model))):
        if len(batch.values):
            yield batch


def _collect(plan: RowPlan, model: ModelSpec, limit: int, fragment: Fragment) -> _Held:
    held = _Held.empty(limit)
    modality = plan.features.modality
    for batch in _encoded(plan, model, fragment):
        place = places(batch.row_hash[batch.good], plan.seed)
        order = np.argsort(place, kind="stable")[:limit]
        values = batch.values[order]
        found = _Held(
            limit,
            len(place),
            place[order],
            content_hashes(values, modality),
            outlines(values, modality),
            _names(batch)[order],
        )
        held = held.merged(found)
    return held


def _compare(
    plan: RowPlan, model: ModelSpec, tested: _Tested, fragment: Fragment
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], list[tuple[str, str]]]:
    """Test rows that a fragment holds, exactly and nearly: bool (m,); and a few pairs of names."""
    same = np.zeros(len(tested.content), np.bool_)
    near = same.copy()
    pairs: set[tuple[str, str]] = set()
    for batch in _encoded(plan, model, fragment):
        names = _names(batch)
        for first in range(0, len(batch.values), _AT_ONCE):
            values = batch.values[first : first + _AT_ONCE]
            content = content_hashes(values, plan.features.modality)
            equal = content[:, None] == tested.content  # (n, m)
            alike = equal
            if tested.signature is not None:
                outline = outlines(values, plan.features.modality)
                alike = signatures(outline, tested.centre) @ tested.signature.T >= NEAR
            same |= equal.any(axis=0)
            near |= alike.any(axis=0)
            for row, other in zip(*np.nonzero(equal | alike), strict=True):
                pairs.add((str(names[first + row]), str(tested.names[other])))
            pairs = set(sorted(pairs)[:_EXAMPLES])
    return same, near, sorted(pairs)


def _names(batch: RowBatch) -> npt.NDArray[np.str_]:
    """Where the good rows (m,) lie, as ``file:row``."""
    return np.array([f"{batch.file}:{row}" for row in batch.rows[batch.good]], np.str_)
