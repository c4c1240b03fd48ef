"""Columns to model inputs: images, tensors, tabular rows and text, and their labels.

`recognise` looks at a schema and its first rows and decides what the features and the label are;
`encode` and `encode_labels` turn a batch into arrays and say for each row that could not be turned
into one why not. Pure functions over Arrow batches; nothing here opens a file.
"""

from __future__ import annotations

from dataprune_ray.features.columns import column, top_level
from dataprune_ray.features.encode import encode, encode_example
from dataprune_ray.features.encoded import Encoded
from dataprune_ray.features.groups import NO_VALUE, check_group_column, group_values
from dataprune_ray.features.labels import encode_labels
from dataprune_ray.features.recognise import recognise
from dataprune_ray.features.spec import FeatureSpec, LabelSpec, TabularColumn

__all__ = [
    "NO_VALUE",
    "Encoded",
    "FeatureSpec",
    "LabelSpec",
    "TabularColumn",
    "check_group_column",
    "column",
    "encode",
    "encode_example",
    "encode_labels",
    "group_values",
    "recognise",
    "top_level",
]
