"""Column names and Arrow schemas of the tables a run writes: score table, decisions, quarantine.

Score table (``scores/``, one row per corpus row, in corpus order):

=========== ======================= =========================================================
column      type                    meaning
=========== ======================= =========================================================
file        dictionary<string>      path relative to the corpus root, ``/`` separated
row         int64                   position in that file, from 0
key         string, nullable        value of the id column, or the WebDataset ``__key__``
row_hash    uint64                  identity hash, without the seed (see ``io.identity``)
label       as in the corpus        int64, string or float64; null if missing
group       string                  value of ``--group-column``; only where that is given
METRIC …    float32, nullable       one column per metric; null where ``error`` is set
error       string, nullable        why the row could not be scored
=========== ======================= =========================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

FILE = "file"
ROW = "row"
KEY = "key"
ROW_HASH = "row_hash"
LABEL = "label"
GROUP = "group"
ERROR = "error"
OUTPUTS = "outputs"

SCORE = "score"
KEPT = "kept"
REASON = "reason"
WEIGHT = "weight"

#: Columns of few distinct values: score files store and read them as codes.
REPEATED = (FILE, LABEL, GROUP, ERROR)

#: Metadata key of a score file under which its counts are noted.
NOTE = b"dataprune"
#: In that note: size, version and checksum of the corpus files that begin in the fragment.
FILES = "files"

UNJUDGED = "unjudged"
FOLD = "fold"
SELF_CONFIDENCE = "self_confidence"
PREDICTED = "predicted"
TOP_CLASS = "top_class"
TOP_PROBABILITY = "top_probability"
AGREEMENT = "neighbour_agreement"
DISTANCE = "neighbour_distance"
CLUSTER = "cluster"

CENTRE_DISTANCE = "centre_distance"
CLASS_DISTANCE = "class_distance"
LOG_DENSITY = "log_density"
SPHERE = "sphere"
SPHERE_SIMILARITY = "sphere_similarity"
VECTOR = "vector"
DIGEST = "digest"

#: Columns that say where a row lies in the feature space (see `space`), with their types.
PLACED: dict[str, pa.DataType] = {
    CLUSTER: pa.int32(),
    CENTRE_DISTANCE: pa.float32(),
    CLASS_DISTANCE: pa.float32(),
    LOG_DENSITY: pa.float32(),
    AGREEMENT: pa.float32(),
    SPHERE: pa.int32(),
    SPHERE_SIMILARITY: pa.float32(),
    VECTOR: pa.binary(),  # float32 values of length 1 together, in the machine's order
    DIGEST: pa.binary(16),
}
#: Columns that scoring stores for second stages, which remove them; None: a list of floats.
TEMPORARY: dict[str, pa.DataType | None] = {OUTPUTS: None, **PLACED}
#: Columns of the score table that are not metrics.
RESERVED = frozenset({FILE, ROW, KEY, ROW_HASH, LABEL, GROUP, ERROR, *TEMPORARY})

_FILE_TYPE = pa.dictionary(pa.int32(), pa.string())


def score_schema(
    label_type: pa.DataType,
    metrics: Sequence[str],
    temporary: Mapping[str, pa.DataType] | None = None,
    *,
    grouped: bool = False,
) -> pa.Schema:
    """Schema of one score file, with the temporary columns that it holds for second stages.

    ``grouped``: with the group of each row, by ``--group-column``.
    """
    fields = [
        pa.field(FILE, _FILE_TYPE),
        pa.field(ROW, pa.int64()),
        pa.field(KEY, pa.string()),
        pa.field(ROW_HASH, pa.uint64()),
        pa.field(LABEL, label_type),
        *([pa.field(GROUP, pa.string())] if grouped else []),
        *[pa.field(name, pa.float32()) for name in metrics],
        pa.field(ERROR, pa.string()),
    ]
    fields += [pa.field(name, kind) for name, kind in (temporary or {}).items()]
    return pa.schema(fields)


def quality_schema(
    label_type: pa.DataType, top: int, others: Sequence[str] = (), *, grouped: bool = False
) -> pa.Schema:
    """Schema of one quality file: the rows of a score file in its order, judged out of fold.

    ``score``, ``error``, the score columns ``others`` and, where ``grouped``, ``group`` are the
    score table's; ``unjudged`` says why a row with a score has no judgement. ``top_class`` (class
    codes) and ``top_probability`` hold the ``top`` most probable classes. Columns are null where
    they do not apply.
    """
    return pa.schema(
        [
            pa.field(ROW_HASH, pa.uint64()),
            pa.field(LABEL, label_type),
            pa.field(SCORE, pa.float32()),
            pa.field(ERROR, pa.string()),
            pa.field(UNJUDGED, pa.string()),
            pa.field(FOLD, pa.int32()),
            pa.field(SELF_CONFIDENCE, pa.float32()),
            pa.field(PREDICTED, label_type),
            pa.field(TOP_CLASS, pa.list_(pa.int32(), top)),
            pa.field(TOP_PROBABILITY, pa.list_(pa.float32(), top)),
            pa.field(AGREEMENT, pa.float32()),
            pa.field(DISTANCE, pa.float32()),
            pa.field(CLUSTER, pa.int32()),
            *[pa.field(name, pa.float32()) for name in others],
            *([pa.field(GROUP, pa.string())] if grouped else []),
        ]
    )


def decision_schema(label_type: pa.DataType, *, grouped: bool = False) -> pa.Schema:
    """Schema of one decisions file: every scored row, kept or dropped, and why.

    ``grouped``: with the group that has a quota, where that is not the class.
    """
    return pa.schema(
        [
            pa.field(FILE, _FILE_TYPE),
            pa.field(ROW, pa.int64()),
            pa.field(KEY, pa.string()),
            pa.field(LABEL, label_type),
            pa.field(SCORE, pa.float32()),
            pa.field(KEPT, pa.bool_()),
            pa.field(REASON, pa.dictionary(pa.int8(), pa.string())),
            pa.field(WEIGHT, pa.float32()),
            *([pa.field(GROUP, pa.string())] if grouped else []),
        ]
    )


#: Schema of one quarantine file: rows that could not be scored, and why.
QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field(FILE, _FILE_TYPE),
        pa.field(ROW, pa.int64()),
        pa.field(KEY, pa.string()),
        pa.field(ERROR, pa.string()),
    ]
)
