"""Sums of float32 values without rounding: equal for any order and any split of the rows."""

from __future__ import annotations

from fractions import Fraction
from typing import Self

import numpy as np
from numpy.typing import NDArray

_EXPONENTS = 256
_HIDDEN_BIT = 1 << 23
#: Every finite float32 is a whole multiple of 2**-149.
_UNIT_BITS = 149
#: Values per ``bincount``: float64 bins stay exact up to 2**29 24-bit mantissas.
_CHUNK = 1 << 18
#: Values per int64 bin before it is carried into Python's integers (2**39 would overflow).
_CARRY = 1 << 38


class ExactSum:
    """Exact, mergeable sum of float32 values, one per column.

    Signed mantissas are summed per exponent as integers, so ``add`` and ``merge`` commute and
    associate: the mean of a corpus does not depend on how it was cut into blocks. Pickled as one
    Python integer per column.
    """

    def __init__(self, columns: int = 1) -> None:
        self.columns = columns
        self.count = 0
        self._bins = np.zeros((columns, _EXPONENTS), dtype=np.int64)
        self._pending = 0
        self._carried = [0] * columns

    def add(self, values: NDArray[np.float32]) -> Self:
        """Add float32 values (N,) or (N, C), finite; returns itself.

        Raises:
            ValueError: a value is NaN or infinite, or the width or dtype differs.
        """
        rows = values.reshape(-1, 1) if values.ndim == 1 else values  # (N, C)
        if rows.ndim != 2 or rows.shape[1] != self.columns:  # noqa: PLR2004
            raise ValueError(f"expected {self.columns} columns, found shape {values.shape}")
        if rows.dtype != np.float32:
            raise ValueError(f"values must be float32, found {rows.dtype}")
        step = max(1, _CHUNK // max(1, self.columns))
        for start in range(0, len(rows), step):
            self._add_chunk(rows[start : start + step])
        return self

    def merge(self, other: ExactSum) -> Self:
        """Add another sum of the same width; returns itself."""
        if other.columns != self.columns:
            raise ValueError(f"cannot merge sums of {self.columns} and {other.columns} columns")
        self._carry_if_full(other._pending)
        self._bins += other._bins
        self._pending += other._pending
        self._carried = [a + b for a, b in zip(self._carried, other._carried, strict=True)]
        self.count += other.count
        return self

    def totals(self) -> list[Fraction]:
        """The exact sums, one per column."""
        self._carry()
        return [Fraction(total, 1 << _UNIT_BITS) for total in self._carried]

    def means(self) -> NDArray[np.float64]:
        """Correctly rounded means, float64 (C,).

        Raises:
            ValueError: nothing was added.
        """
        if self.count == 0:
            raise ValueError("the mean of no rows is undefined")
        self._carry()
        scale = self.count << _UNIT_BITS
        return np.array([total / scale for total in self._carried], dtype=np.float64)

    def mean(self) -> float:
        """Correctly rounded mean of the only column.

        Raises:
            ValueError: nothing was added, or there is more than one column.
        """
        if self.columns != 1:
            raise ValueError(f"{self.columns} columns have no single mean; use means()")
        return float(self.means()[0])

    def _add_chunk(self, rows: NDArray[np.float32]) -> None:
        if not np.isfinite(rows).all():
            raise ValueError("values must be finite: NaN and infinity have no exact sum")
        bits = np.ascontiguousarray(rows).view(np.int32)  # (n, C)
        exponent = (bits >> 23) & 0xFF
        mantissa = (bits & (_HIDDEN_BIT - 1)) | ((exponent > 0) * np.int32(_HIDDEN_BIT))
        signed = np.where(bits < 0, -mantissa, mantissa)
        # Exponents 0 (subnormal) and 1 share a scale: 2**-149 per unit.
        bins = np.maximum(exponent, 1) - 1 + np.arange(self.columns) * _EXPONENTS
        sums = np.bincount(
            bins.ravel(), weights=signed.ravel(), minlength=self.columns * _EXPONENTS
        )
        self._carry_if_full(len(rows))
        self._bins += sums.astype(np.int64).reshape(self._bins.shape)
        self._pending += len(rows)
        self.count += len(rows)

    def _carry_if_full(self, more: int) -> None:
        if self._pending + more > _CARRY:
            self._carry()

    def _carry(self) -> None:
        """Move the int64 bins into one Python integer per column."""
        for column, exponent in zip(*np.nonzero(self._bins), strict=True):
            self._carried[column] += int(self._bins[column, exponent]) << int(exponent)
        self._bins[:] = 0
        self._pending = 0

    def __getstate__(self) -> tuple[int, int, list[int]]:
        self._carry()
        return self.columns, self.count, self._carried

    def __setstate__(self, state: tuple[int, int, list[int]]) -> None:
        self.__init__(state[0])  # type: ignore[misc]
        self.count = state[1]
        self._carried = list(state[2])
