"""Groups of rows by the values of a column: what quotas are given to besides classes."""

from __future__ import annotations

import pyarrow as pa

from dataprune_ray.errors import ConfigError
from dataprune_ray.features.columns import column, leads_somewhere

#: Name of the group of the rows that have no value.
NO_VALUE = "(null)"

_KINDS = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_integer,
    pa.types.is_boolean,
    pa.types.is_null,
)


def check_group_column(path: str, schema: pa.Schema, sample: pa.RecordBatch) -> None:
    """Refuse a column whose values cannot name groups.

    Args:
        path: of the column, as features are named.
        schema: the corpus's.
        sample: its first rows, or none of them.

    Raises:
        ConfigError: there is no such column, or it holds neither text, integers nor booleans.
    """
    if not leads_somewhere(path, schema):
        known = ", ".join(schema.names)
        raise ConfigError("group_column", path, f"no such column; the corpus has {known}")
    kind = column(sample, path).type
    if not any(is_kind(kind) for is_kind in _KINDS):
        raise ConfigError(
            "group_column", path, f"is of type {kind}; a group is a text, an integer or a boolean"
        )


def group_values(batch: pa.RecordBatch, path: str) -> pa.Array:
    """The group of each row as text (n,); `NO_VALUE` where the column is null."""
    return column(batch, path).cast(pa.string()).fill_null(NO_VALUE)
