"""Confident learning: how much of the labels is wrong, and which ones probably are.

Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels" (2021).
A row counts for class j where a model that has not seen it gives j at least the probability that
rows labelled j have on average. Counts of (label, counted class) pairs, scaled to the number of
rows of each label, estimate the joint distribution of given and true labels. Its mass off the
diagonal is the noise share.

Everything is counts and fixed-point sums: parts of a corpus merge by addition, in any order, to
the same bits. Not for regression, and not for probabilities of a model that was trained on the row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Most probable classes that are kept of a row, so that its counted class can be found later.
TOP = 10
#: Probabilities are summed in units of this: 2**31 rows of one class fit into 63 bits.
_UNIT = 2.0**-32
#: A probability this close to a threshold reaches it.
_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class ClassSums:
    """Sums of out-of-fold p_y by label, int64 (C,) in units of 2**-32, and rows by label (C,)."""

    total: NDArray[np.int64]
    rows: NDArray[np.int64]

    @classmethod
    def of(
        cls, given: NDArray[np.integer], self_confidence: NDArray[np.float32], classes: int
    ) -> ClassSums:
        """Of rows with labels ``given`` (n,) in 0..C-1 and p_y (n,) in [0, 1]."""
        units = np.rint(np.asarray(self_confidence, np.float64) / _UNIT).astype(np.int64)
        total = np.zeros(classes, np.int64)
        np.add.at(total, given, units)
        return cls(total, np.bincount(given, minlength=classes).astype(np.int64))

    def merge(self, other: ClassSums) -> ClassSums:
        """Of the rows of both."""
        return ClassSums(self.total + other.total, self.rows + other.rows)

    def thresholds(self) -> NDArray[np.float64]:
        """Mean p_j over the rows labelled j, float64 (C,); infinity for a class without rows."""
        means = np.full(len(self.rows), np.inf)
        present = self.rows > 0
        means[present] = self.total[present] * _UNIT / self.rows[present]
        return means


def most_probable(
    probabilities: NDArray[np.float32], count: int = TOP
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The most probable classes of each row, and their probabilities, highest first.

    Args:
        probabilities: float32 (n, C).
        count: classes to take; fewer where C is smaller.

    Returns:
        int32 and float32 (n, min(count, C)); of equal probabilities the lower class comes first.
    """
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :count]
    return order.astype(np.int32), np.take_along_axis(probabilities, order, axis=1)


def counted_class(
    classes: NDArray[np.int32], probabilities: NDArray[np.float32], thresholds: NDArray[np.float64]
) -> NDArray[np.int32]:
    """The most probable class among those that reach their threshold.

    Args:
        classes: int32 (n, M), of `most_probable`. A class beyond these is not considered; its
            probability is at most 1 / (M + 1).
        probabilities: float32 (n, M), theirs.
        thresholds: float64 (C,).

    Returns:
        int32 (n,); -1 where no class reaches its threshold.
    """
    if not classes.shape[1]:
        return np.full(len(classes), -1, np.int32)
    reached = probabilities >= thresholds[classes] - _TOLERANCE
    first = reached.argmax(axis=1)
    found = np.take_along_axis(classes, first[:, None], axis=1)[:, 0]
    return np.where(reached.any(axis=1), found, np.int32(-1)).astype(np.int32)


def confident_joint(
    given: NDArray[np.integer], counted: NDArray[np.integer], classes: int
) -> NDArray[np.int64]:
    """Rows by label and counted class, int64 (C, C); rows without a counted class are left out."""
    known = counted >= 0
    flat = given[known].astype(np.int64) * classes + counted[known]
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes)


def suspected(given: NDArray[np.integer], counted: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Rows off the diagonal of the confident joint, bool (n,): probably mislabelled."""
    return np.asarray((counted >= 0) & (counted != given))


def calibrated(joint: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """The joint distribution of given and true labels.

    Args:
        joint: counts (C, C) of `confident_joint`.
        rows: rows by label (C,), counted or not.

    Returns:
        float64 (C, C) that sums to 1, or all zeros where there are no rows. Row i sums to the
        share of label i; a label of which no row was counted lies on the diagonal.
    """
    counts = joint.astype(np.float64)
    empty = joint.sum(axis=1) == 0
    counts[empty, empty] = 1.0
    shares = rows / max(int(rows.sum()), 1)
    return np.asarray(counts / counts.sum(axis=1, keepdims=True) * shares[:, None])


def share_of_noise(distribution: NDArray[np.float64]) -> float:
    """Mass of a calibrated joint (C, C) off its diagonal: the share of wrong labels, 0 to 1."""
    off = distribution.copy()
    np.fill_diagonal(off, 0.0)
    return float(off.sum())
