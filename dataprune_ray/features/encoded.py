"""The result of encoding: arrays of the good rows, reasons of the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
#: Per-image transform: uint8 (C, H, W) to a float array or tensor of a fixed shape.
Transform = Callable[[Array], Array]


@dataclass(frozen=True)
class Encoded:
    """``values`` of the rows where ``good``, in order; ``errors`` of the others by position.

    ``good`` is bool (n,), ``values`` has ``good.sum()`` rows, ``errors`` maps position to reason.
    """

    values: Array
    good: npt.NDArray[np.bool_]
    errors: dict[int, str]


def positions(mask: Array) -> list[int]:
    """Where a mask (n,) holds."""
    return [int(position) for position in np.flatnonzero(mask)]


def all_good(values: Array) -> Encoded:
    """Values of which none has an error."""
    return Encoded(values, np.ones(len(values), bool), {})


def collect(
    rows: list[Array],
    errors: dict[int, str],
    total: int,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
) -> Encoded:
    """Stack the rows without an error; one of another shape than the first's has one."""
    places = [i for i in range(total) if i not in errors]
    for place, row in zip(places, rows, strict=True):
        if row.shape != rows[0].shape:
            errors[place] = f"shape {row.shape} is not {rows[0].shape}"
    good = np.ones(total, bool)
    good[list(errors)] = False
    rows = [row for place, row in zip(places, rows, strict=True) if good[place]]
    values = np.stack(rows) if rows else np.zeros((0, *shape), dtype)
    if values.dtype.kind == "f":
        return finite_rows(values, good, errors)
    return Encoded(values, good, errors)


def finite_rows(values: Array, good: npt.NDArray[np.bool_], errors: dict[int, str]) -> Encoded:
    """Drop rows with NaN or infinity, naming them."""
    if values.dtype.kind != "f" or not len(values):
        return Encoded(values, good, errors)
    finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    if finite.all():
        return Encoded(values, good, errors)
    positions = np.flatnonzero(good)[~finite]
    errors = errors | {int(p): "feature is not finite" for p in positions}
    good = good.copy()
    good[positions] = False
    return Encoded(values[finite], good, errors)
