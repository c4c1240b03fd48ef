"""Labels of a score table as group codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dataprune_ray.errors import BadDataError
from dataprune_ray.io.filesystems import redact


def group_codes(labels: Any, codes: Mapping[str, int], where: str) -> NDArray[np.int32]:
    """Group codes of a label column.

    Args:
        labels: Arrow array (n,) of int64 or string labels.
        codes: code of each label's string form.
        where: what to name in the error.

    Returns:
        int32 (n,).

    Raises:
        BadDataError: a label is null or has no code.
    """
    encoded = labels if pa.types.is_dictionary(labels.type) else labels.dictionary_encode()
    if encoded.null_count:
        raise BadDataError(
            f"{redact(where)}: {encoded.null_count} rows without error have no label"
        )
    names = encoded.dictionary.cast(pa.string()).to_pylist()
    indices = encoded.indices.to_numpy(zero_copy_only=False)
    unknown = sorted({names[i] for i in np.unique(indices)} - codes.keys())
    if unknown:
        raise BadDataError(f"{redact(where)}: labels without a group: {', '.join(unknown[:5])}")
    table = np.array([codes.get(name, -1) for name in names], np.int32)
    return np.asarray(table[indices], np.int32)
