"""The survey before scoring: a sample of the corpus, to which the feature space is fitted.

A sample holds the rows of lowest place by hash, so it is the same however the corpus is cut. The
fitted space is committed beside the scores; where it is there, it is not fitted again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dataprune_ray.engine import Engine
from dataprune_ray.errors import BadDataError
from dataprune_ray.features import encode_example
from dataprune_ray.forward import load_model
from dataprune_ray.io import READ_ERRORS, get_reader
from dataprune_ray.io.corpus import Fragment
from dataprune_ray.io.filesystems import exists, redact, write_bytes
from dataprune_ray.io.rows import columns_to_read
from dataprune_ray.io.splits import Split, places
from dataprune_ray.metrics import METRICS
from dataprune_ray.models import FeatureTap, image_transform
from dataprune_ray.plans import ScorePlan
from dataprune_ray.space import INPUTS, MODEL, Space, Survey
from dataprune_ray.tasks import run_tasks

logger = logging.getLogger("dataprune")

#: Features of a sample that are held at once, at most.
_BYTES = 256 << 20
#: Tasks of a survey: each loads the model once.
_TASKS = 64
#: Mixed in so that the sample has nothing to do with folds, ties or random arms of the same seed.
_SALT = 0x5EED_5ACE

Run = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


def survey(plan: ScorePlan, num_gpus: float = 0.0) -> None:
    """Sample the corpus on the cluster and commit the space, where some metric needs one.

    Raises:
        BadDataError: there is no good row.
        StorageError: rows that storage keeps back could belong to the sample.
    """
    _survey(plan, partial(run_tasks, num_gpus=num_gpus))


def survey_here(plan: ScorePlan) -> None:
    """The same in this process, for a small plan."""
    _survey(plan, map)


def _survey(plan: ScorePlan, run: Run) -> None:
    if not plan.placed or exists(plan.space_path):
        return
    told = replace(plan, metrics=tuple(n for n in plan.metrics if "space" in METRICS[n].needs))
    limit = min(plan.space.survey_rows, max(1, _BYTES // (4 * _width(told))))
    rows = sum(run(partial(_count, told), plan.rows.fragments)) * plan.rows.share
    seed = (plan.rows.seed + _SALT) % 2**63
    share = min(1.0, (limit + 6 * math.sqrt(limit)) / max(rows, 1.0))
    within = plan.rows.within(Split.share(share, seed)) if share < 1 else plan.rows
    told = replace(told, rows=replace(within, fragments=(), digests=False))
    fragments = plan.rows.fragments
    groups = [fragments[start::_TASKS] for start in range(min(_TASKS, len(fragments)))]
    found = _sorted(list(run(partial(_sample, told, seed, limit), groups)), limit)
    if not len(found.place):
        raise BadDataError(
            f"no good row of {redact(plan.rows.root)!r} to survey: see the errors of its rows"
        )
    label = plan.model.label
    classified = label.column is not None and label.task == "classification"
    classes = len(label.classes) if classified else 0
    labels = found.labels.astype(np.int64) if classified else np.zeros(len(found.place), np.int64)
    sampled = Survey(found.features, labels, found.row_hash, classes, math.ceil(rows))
    space = Space.fit(sampled, plan.placed, plan.space, plan.rows.seed)
    _say(plan, sampled)
    write_bytes(plan.space_path, space.to_bytes(rows=str(len(labels))))


def _say(plan: ScorePlan, sampled: Survey) -> None:
    what = {MODEL: "of the model", INPUTS: "of the inputs"}.get(
        plan.space.source, f"from {plan.space.source}"
    )
    rows, width = sampled.features.shape
    logger.info("surveyed %s rows: %s features %s", f"{rows:,}", f"{width:,}", what)
    lost = sampled.classes - len(np.unique(sampled.labels)) if sampled.classes else 0
    if lost:
        logger.warning("%d of %d classes have no row in the survey", lost, sampled.classes)


def _width(plan: ScorePlan) -> int:
    """Dimensions of the features."""
    if plan.rows.extra is not None:
        return math.prod(plan.rows.extra.shape)
    example = encode_example(plan.rows.features, image_transform(plan.model))
    if plan.space.source == INPUTS:
        return math.prod(example.shape[1:])
    tap = FeatureTap(load_model(plan.model, plan.used.models[0]).eval())
    with torch.no_grad():
        features = tap(torch.from_numpy(example))[1]
    assert features is not None  # noqa: S101 - see `check_models`
    return int(features.shape[1])


def _count(plan: ScorePlan, fragment: Fragment) -> int:
    """Rows of a fragment, read only where nothing else tells."""
    if fragment.rows is not None:
        return fragment.rows
    reader, columns = get_reader(plan.rows.format), columns_to_read(plan.rows)
    rows = 0
    for span in fragment.spans:
        try:
            for batch in reader.read(plan.rows.root, span, columns, 8192):
                rows += batch.num_rows
        except READ_ERRORS:  # the rows that broken archives still give are counted
            continue
    return rows


@dataclass(frozen=True, eq=False)
class _Part:
    """Sampled rows: places and identities uint64 (m,), labels (m,), features float32 (m, D)."""

    place: npt.NDArray[np.uint64]
    row_hash: npt.NDArray[np.uint64]
    labels: npt.NDArray[Any]
    features: npt.NDArray[np.float32]


def _sample(plan: ScorePlan, seed: int, limit: int, fragments: Sequence[Fragment]) -> _Part:
    """The rows of lowest place in some fragments."""
    engine = Engine(plan)
    parts: list[_Part] = []
    for fragment in fragments:
        for batch, features in engine.survey(fragment):
            batch.need_read()
            finite = np.isfinite(features).all(axis=1)
            row_hash = batch.row_hash[batch.good][finite]
            place = places(row_hash, seed)
            parts.append(_Part(place, row_hash, batch.targets[finite], features[finite]))
        parts = [_sorted(parts, limit)]
    return _sorted(parts, limit)


def _sorted(parts: Sequence[_Part], limit: int) -> _Part:
    """The ``limit`` rows of lowest place, in its order."""
    parts = [part for part in parts if len(part.place)]
    if not parts:
        none = np.zeros(0, np.uint64)
        return _Part(none, none, np.zeros(0, np.int64), np.zeros((0, 1), np.float32))
    place = np.concatenate([part.place for part in parts])
    order = np.argsort(place, kind="stable")[:limit]
    return _Part(
        place[order],
        np.concatenate([part.row_hash for part in parts])[order],
        np.concatenate([part.labels for part in parts])[order],
        np.concatenate([part.features for part in parts])[order],
    )
