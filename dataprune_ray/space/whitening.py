"""Decorrelated features, in which cosines tell near duplicates from rows of one class.

The penultimate features of a trained classifier point in about as many directions as there are
classes: two rows of a class have a cosine near 1. Whitening (features less their mean, times the
inverse root of their covariance) gives all directions the same weight, so what makes a row itself
counts. The covariance is shrunk by as much as Ledoit and Wolf (2004) advise for the sample's size;
of more than 512 dimensions the first 512 principal components are kept.
"""

from __future__ import annotations

import numpy as np

from dataprune_ray.space.steady import Rows

_MOST = 512
_LEAST_VARIANCE = 1e-6


def whitening(rows: Rows) -> Rows:
    """Axes (D, d) that rows (m, D), centred, are multiplied with."""
    from sklearn.covariance import ledoit_wolf_shrinkage  # noqa: PLC0415 - a second, for those who fit only

    size = rows.shape[1]
    covariance = rows.T @ rows / len(rows)
    mean = float(np.trace(covariance)) / size
    if mean == 0.0:  # one row, or copies of one
        return np.eye(size)[:, :_MOST]
    shrinkage = float(ledoit_wolf_shrinkage(rows, assume_centered=True))
    values, axes = np.linalg.eigh(covariance)
    values = (1.0 - shrinkage) * values + shrinkage * mean
    order = np.argsort(values)[::-1][:_MOST]
    kept = np.maximum(values[order], _LEAST_VARIANCE * values[order[0]])
    return np.ascontiguousarray(axes[:, order] / np.sqrt(kept))
