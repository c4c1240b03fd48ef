"""Score tables: their plan, and their files as blocks of a population, without Ray."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dataprune_ray import schema
from dataprune_ray.cutoff import Block, Column, empty_block, seeded_hash
from dataprune_ray.cutoff.population import UNGROUPED
from dataprune_ray.errors import BadDataError, ConfigError
from dataprune_ray.io.corpus import Fragment
from dataprune_ray.io.filesystems import exists, join, read_bytes, redact, resolve
from dataprune_ray.io.output import PLAN

S = TypeVar("S")

#: Rows per block: a few megabytes, and enough to pay for the largest histogram.
_BATCH_ROWS = 1 << 18
_THREADS = 4


def saved_plan(folder: str) -> dict[str, Any]:
    """What a run left beside its score table: corpus, features, label, metrics, fragments.

    Raises:
        ConfigError: there is nothing.
    """
    path = join(folder, PLAN)
    if not exists(path):
        raise ConfigError("scores", redact(folder), "is not a score table of an earlier run")
    saved: dict[str, Any] = json.loads(read_bytes(path))
    return saved


def saved_fragments(plan: Mapping[str, Any]) -> tuple[Fragment, ...]:
    """The fragments that a score table's plan lists."""
    return tuple(Fragment.from_json(text) for text in plan["fragments"])


class RowFilter(Protocol):
    """Which rows of a score file belong to a population."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that it reads."""
        ...

    def __call__(self, batch: pa.RecordBatch) -> NDArray[np.bool_]:
        """Of a batch of rows without error with these columns: bool (n,)."""
        ...


@dataclass(frozen=True)
class ScoreView:
    """How score files are read as blocks.

    Attributes:
        metric: score column; only read where a kernel asks for scores.
        group_column: label column that groups the rows, int64 or string; None: one group.
        groups: group names by code, the labels as strings.
        seed: mixed into the identity hashes.
        columns: what the blocks hold.
        where: leaves out rows; None: all rows without error.
    """

    metric: str
    group_column: str | None
    groups: tuple[str, ...]
    seed: int
    columns: frozenset[Column]
    where: RowFilter | None = None

    @property
    def others(self) -> list[str]:
        """Score columns that the blocks hold by name."""
        return sorted(self.columns - {"scores", "hashes", "groups"})

    def names(self) -> list[str]:
        """Columns of the file that the blocks are made of."""
        names = [schema.ERROR]
        if "scores" in self.columns:
            names.append(self.metric)
        if "hashes" in self.columns:
            names.append(schema.ROW_HASH)
        if "groups" in self.columns and self.group_column is not None:
            names.append(self.group_column)
        names += self.others
        if self.where is not None:
            names += self.where.columns
        return list(dict.fromkeys(names))


@dataclass(frozen=True)
class ScoreFiles(ABC):
    """Which rows of which score files make up a population; those with an ``error`` never do.

    Attributes:
        paths: score files, as paths or URIs.
        metric: score column; only read where a kernel asks for scores.
        group_column: label column that groups the rows, int64 or string; None: one group.
        groups: group names by code, the labels as strings; ``("",)`` without a group column.
        seed: mixed into the identity hashes.
        where: leaves out rows; None: all rows without error.
    """

    paths: Sequence[str]
    metric: str
    group_column: str | None = None
    groups: tuple[str, ...] = UNGROUPED
    seed: int = 0
    where: RowFilter | None = None

    def view(self, columns: frozenset[Column]) -> ScoreView:
        """How the files are read as blocks with these columns."""
        return ScoreView(
            self.metric, self.group_column, self.groups, self.seed, columns, self.where
        )

    @abstractmethod
    def reduce(
        self,
        kernel: Callable[[Block], S],
        merge: Callable[[S, S], S],
        columns: frozenset[Column],
    ) -> S:
        """See :class:`dataprune_ray.cutoff.Population`."""


@dataclass(frozen=True)
class FilePopulation(ScoreFiles):
    """The scored rows of score files as a population that this process reduces, in threads.

    A thread holds one block and one merged result, so memory does not grow with the files.
    """

    def reduce(
        self,
        kernel: Callable[[Block], S],
        merge: Callable[[S, S], S],
        columns: frozenset[Column],
    ) -> S:
        """See :class:`dataprune_ray.cutoff.Population`.

        Raises:
            ConfigError: a score file lacks a column that is asked for.
            BadDataError: a row without error has no finite score, or a label without a group.
        """
        shares = [list(self.paths[i::_THREADS]) for i in range(_THREADS)]
        work = partial(reduce_files, view=self.view(columns), kernel=kernel, merge=merge)
        with ThreadPoolExecutor(_THREADS) as pool:
            first, *others = pool.map(work, [share for share in shares if share] or [[]])
        for other in others:
            first = merge(first, other)
        return first


def reduce_files(
    paths: Sequence[str],
    view: ScoreView,
    kernel: Callable[[Block], S],
    merge: Callable[[S, S], S],
) -> S:
    """Kernel and merge over the blocks of a few files, one after the other."""
    codes = {name: code for code, name in enumerate(view.groups)}
    blocks = (block for path in paths for block in read_blocks(path, view, codes))
    first = next(blocks, None)
    merged = kernel(empty_block(view.columns) if first is None else first)
    for block in blocks:
        merged = merge(merged, kernel(block))
    return merged


def read_blocks(path: str, view: ScoreView, codes: Mapping[str, int]) -> Iterator[Block]:
    """The rows of one score file that have no error, block by block."""
    filesystem, inner = resolve(path)
    names = view.names()
    grouped = [name for name in names if name == view.group_column]
    filtered = () if view.where is None else view.where.columns
    coded = [name for name in grouped if name not in filtered]  # strings are read as codes
    with (
        filesystem.open_input_file(inner) as source,
        pq.ParquetFile(source, read_dictionary=coded) as file,
    ):
        present = file.schema_arrow.names
        for name in names:
            if name not in present:
                found = ", ".join(present)
                raise ConfigError("scores", redact(path), f"has no column {name!r}; has: {found}")
        if _no_errors(file.metadata, present.index(schema.ERROR)):
            if view.where is None and not view.columns:  # only how many rows there are
                yield Block(rows=file.metadata.num_rows)
                return
            if len(names) > 1:
                names.remove(schema.ERROR)  # reading it would cost as much as the scores
        for batch in file.iter_batches(_BATCH_ROWS, columns=names, use_threads=False):
            if schema.ERROR in names:
                batch = batch.filter(pc.is_null(batch.column(schema.ERROR)))  # noqa: PLW2901
            if view.where is not None:
                batch = batch.filter(pa.array(view.where(batch)))  # noqa: PLW2901
            yield _block(batch, view, codes, path)


def _no_errors(metadata: Any, column: int) -> bool:
    """Whether the footer proves that the ``error`` column, at this position, holds nothing."""
    for group in range(metadata.num_row_groups):
        chunk = metadata.row_group(group).column(column)
        if chunk.path_in_schema != schema.ERROR:
            return False  # nested columns before it have moved it
        statistics = chunk.statistics
        if statistics is None or not statistics.has_null_count:
            return False
        if statistics.null_count < metadata.row_group(group).num_rows:
            return False
    return True


def _block(batch: Any, view: ScoreView, codes: Mapping[str, int], path: str) -> Block:
    """A record batch of rows without error as a block."""
    scores = hashes = groups = None
    if "scores" in view.columns:
        scores = _scores(batch.column(view.metric), view.metric, path)
    if "hashes" in view.columns:
        identity = batch.column(schema.ROW_HASH).to_numpy(zero_copy_only=False)
        hashes = seeded_hash(identity, view.seed)
    if "groups" in view.columns and view.group_column is not None:
        groups = group_codes(batch.column(view.group_column), codes, path)
    elif "groups" in view.columns:
        groups = np.zeros(batch.num_rows, np.int32)
    others = {name: _scores(batch.column(name), name, path) for name in view.others}
    return Block(scores, hashes, groups, batch.num_rows, others)


def _scores(column: Any, metric: str, path: str) -> NDArray[np.float32]:
    """Scores (n,) of rows without error.

    Raises:
        BadDataError: a score is missing, NaN or infinite.
    """
    scores: NDArray[np.float32] = column.to_numpy(zero_copy_only=False)
    bad = len(scores) - int(np.count_nonzero(np.isfinite(scores)))
    if bad:
        raise BadDataError(
            f"{redact(path)}: {bad} rows have no finite {metric} and no error; "
            "the score table is damaged, score the corpus again"
        )
    return scores


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
    if pa.types.is_int64(labels.type) and not labels.null_count and len(labels):
        found = _integer_codes(labels.to_numpy(zero_copy_only=False), codes)
        if found is not None:
            return found
    encoded = labels if pa.types.is_dictionary(labels.type) else labels.dictionary_encode()
    if encoded.null_count:
        raise BadDataError(
            f"{redact(where)}: {encoded.null_count} rows without error have no label"
        )
    names = encoded.dictionary.cast(pa.string()).to_pylist()
    indices = encoded.indices.to_numpy(zero_copy_only=False)
    seen = np.flatnonzero(np.bincount(indices, minlength=len(names)))
    unknown = sorted({names[i] for i in seen} - codes.keys())
    if unknown:
        raise BadDataError(f"{redact(where)}: labels without a group: {', '.join(unknown[:5])}")
    table = np.array([codes.get(name, -1) for name in names], np.int32)
    return np.asarray(table[indices], np.int32)


#: Distance of the lowest and the highest integer label up to which their codes make a table.
_MOST_LABELS = 1 << 16


def _integer_codes(labels: NDArray[np.int64], codes: Mapping[str, int]) -> NDArray[np.int32] | None:
    """Group codes (n,) of integer labels by a table; None where it cannot tell them all."""
    low, high = int(labels.min()), int(labels.max())
    if high - low >= _MOST_LABELS:
        return None
    table = np.array([codes.get(str(label), -1) for label in range(low, high + 1)], np.int32)
    found = table[labels - low]
    return None if (found < 0).any() else found
