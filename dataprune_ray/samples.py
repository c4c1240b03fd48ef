"""The sample of each fold, among which neighbours and clusters are searched.

A sample holds the rows of lowest place by hash, so it is the same however the corpus is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from dataprune_ray.evidence import JudgePlan, Models, by_fold, codes_of
from dataprune_ray.io.corpus import Fragment
from dataprune_ray.io.filesystems import write_bytes
from dataprune_ray.io.rows import ahead, read_rows
from dataprune_ray.io.splits import Split, places
from dataprune_ray.models import image_transform
from dataprune_ray.quality.neighbours import Reference


@dataclass(frozen=True, eq=False)
class Sampled:
    """Rows of a fold's sample: places and identities uint64 (m,), labels (m,), features (m, D)."""

    place: npt.NDArray[np.uint64]
    row_hash: npt.NDArray[np.uint64]
    labels: npt.NDArray[np.int64]
    features: npt.NDArray[np.float32]


def sample_fragment(
    plan: JudgePlan, lasts: Sequence[int], fragment: Fragment
) -> list[tuple[int, Sampled]]:
    """The rows of a fragment in the folds' samples: those up to a last place, by fold."""
    gaps = [
        Split(last + 1, fold.split.high, inside=False, seed=fold.split.seed)
        for fold, last in zip(plan.folds, lasts, strict=True)
        if last + 1 < fold.split.high
    ]
    models = Models(plan)
    found = []
    for batch in ahead(read_rows(plan.rows.within(*gaps), fragment, image_transform(plan.model))):
        for fold, chosen in by_fold(plan, batch):
            _, features = models.run(fold, batch.values[chosen])
            finite = np.isfinite(features).all(axis=1)
            row_hash = batch.row_hash[batch.good][chosen][finite]
            place = places(row_hash, plan.folds[fold].split.seed)
            labels = codes_of(plan, batch)[chosen][finite]
            found.append((fold, Sampled(place, row_hash, labels, features[finite])))
    return found


def fit_reference(plan: JudgePlan, seed: int, limit: int, item: tuple[int, list[Sampled]]) -> None:
    """Keep the ``limit`` rows of lowest place as the fold's sample; cluster it; write it."""
    fold, parts = item
    place = np.concatenate([part.place for part in parts])
    order = np.argsort(place, kind="stable")[:limit]
    reference = Reference.fit(
        np.concatenate([part.features for part in parts])[order],
        np.concatenate([part.labels for part in parts])[order],
        np.concatenate([part.row_hash for part in parts])[order],
        plan.neighbours,
        seed,
    )
    tensors = {
        "features": reference.features,
        "labels": reference.labels,
        "row_hash": reference.row_hash,
        "centres": reference.centres,
        "unit": np.array([reference.unit]),
    }
    content = safetensors.numpy.save(tensors, {"census": plan.census})
    write_bytes(plan.folds[fold].reference, content)
