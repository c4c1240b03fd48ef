"""What a corpus is made from: a kind, its splits, and what is known about the labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from dataprune_ray.corpora.config import SourceConfig
from dataprune_ray.errors import ConfigError
from dataprune_ray.io.shards import Sample


@dataclass(frozen=True)
class Source:
    """Rows by split, each split opened anew by calling its function.

    A table yields ``pyarrow.RecordBatch``, every other kind yields ``Sample``.
    """

    kind: Literal["image", "tensor", "table"]
    splits: Mapping[str, Callable[[], Iterator[Sample] | Iterator[pa.RecordBatch]]]
    #: Rows per split; None where only reading tells.
    lengths: Mapping[str, int | None]
    #: Name of label 0, 1, …; None where labels are not numbered classes.
    class_names: tuple[str, ...] | None = None
    #: All values a label can have, where ``class_names`` does not already tell.
    label_values: Callable[[], Sequence[Any]] | None = None
    #: Columns of a table, else None.
    schema: pa.Schema | None = None
    #: What a reader of the summary should know, such as files left out.
    notes: tuple[str, ...] = ()


def own_splits(config: SourceConfig, available: Sequence[str]) -> list[str]:
    """The wanted ones of a source's own splits, train first.

    Raises:
        ConfigError: the wanted split does not exist.
    """
    wanted = ("train", "test") if config.split == "all" else (config.split,)
    found = [name for name in wanted if name in available]
    if not found:
        raise ConfigError(
            "split", config.split, f"{config.source} has only: {', '.join(available)}"
        )
    return found


def only_split(config: SourceConfig) -> str:
    """Name for the rows of a source that has no splits of its own."""
    return "train" if config.split == "all" else config.split
