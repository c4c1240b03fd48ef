"""Columns of quality files as numpy arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dataprune_ray import schema
from dataprune_ray.quality.rescue import AGREEMENT, Evidence

#: What `evidence_of` reads.
EVIDENCE = (schema.LABEL, schema.PREDICTED, schema.AGREEMENT, schema.DISTANCE)


def distances(rows: Any) -> NDArray[np.float32]:
    """Neighbour distances float32 (n,) of a table or batch, NaN where a row was not judged."""
    column = rows.column(schema.DISTANCE)
    return np.asarray(column.fill_null(np.nan).to_numpy(zero_copy_only=False), np.float32)


def evidence_of(rows: Any) -> Evidence:
    """What speaks for rescuing the rows (n,) of a table or batch with the columns `EVIDENCE`."""
    agrees = pc.greater_equal(rows.column(schema.AGREEMENT), AGREEMENT)
    right = pc.equal(rows.column(schema.PREDICTED), rows.column(schema.LABEL))
    consistent = pc.fill_null(pc.and_(agrees, right), fill_value=False)
    return Evidence(distances(rows), np.asarray(consistent.to_numpy(zero_copy_only=False)))


@dataclass(frozen=True)
class Judged:
    """Filter of a quality file: the rows that were judged."""

    columns: tuple[str, ...] = (schema.DISTANCE,)

    def __call__(self, batch: pa.RecordBatch) -> NDArray[np.bool_]:
        """Which rows have a neighbour distance: bool (n,)."""
        return np.asarray(batch.column(schema.DISTANCE).is_valid())
