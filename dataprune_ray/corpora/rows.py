"""Between a source and a writer: rows cut into row groups and shards, numbered, labels changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dataprune_ray.corpora.config import MakeCorpusConfig
from dataprune_ray.corpora.noise import flip
from dataprune_ray.corpora.source import Source
from dataprune_ray.errors import BadDataError, ConfigError
from dataprune_ray.io.shards import CLEAN_LABEL, ID, Sample, SampleBatch

_arrow: Any = pa  # its type stubs lack some functions

#: A row group ends early at this many bytes of content, so that large images fit in memory.
GROUP_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class Piece:
    """The rows of one row group: samples or a record batch; and the shard they belong to."""

    shard: int
    rows: Any

    def __len__(self) -> int:
        rows = self.rows
        return len(rows.ids) if isinstance(rows, SampleBatch) else len(rows)


def group_samples(
    samples: Iterable[Sample], limit: int | None, shard_rows: int, group_rows: int
) -> Iterator[Piece]:
    """Lists of at most ``group_rows`` samples or about ``GROUP_BYTES``, none across two shards."""
    group: list[Sample] = []
    size = 0
    shard, in_shard = 0, 0
    for count, sample in enumerate(samples, start=1):
        group.append(sample)
        content = sample.content
        size += len(content) if isinstance(content, bytes) else content.nbytes
        in_shard += 1
        full = in_shard == shard_rows
        if full or len(group) == group_rows or size >= GROUP_BYTES:
            yield Piece(shard, group)
            group, size = [], 0
        if full:
            shard, in_shard = shard + 1, 0
        if count == limit:
            break
    if group:
        yield Piece(shard, group)


def group_batches(
    batches: Iterable[pa.RecordBatch], limit: int | None, shard_rows: int, group_rows: int
) -> Iterator[Piece]:
    """Record batches of ``group_rows`` rows, fewer where ``group_samples`` has fewer."""
    parts: list[pa.RecordBatch] = []
    held, size, shard, in_shard, total = 0, 0, 0, 0, 0
    for batch in batches:
        start = 0
        row_bytes = max(1, batch.nbytes // max(1, len(batch)))
        while start < len(batch) and total != limit:
            room = min(
                group_rows - held, shard_rows - in_shard, -(-(GROUP_BYTES - size) // row_bytes)
            )
            if limit is not None:
                room = min(room, limit - total)
            part = batch.slice(start, room)
            parts.append(part)
            start += len(part)
            held, in_shard, total = held + len(part), in_shard + len(part), total + len(part)
            size += len(part) * row_bytes
            full = in_shard == shard_rows
            if full or held == group_rows or size >= GROUP_BYTES:
                yield Piece(shard, _arrow.concat_batches(parts))
                parts, held, size = [], 0, 0
            if full:
                shard, in_shard = shard + 1, 0
        if total == limit:
            break
    if parts:
        yield Piece(shard, _arrow.concat_batches(parts))


@dataclass
class Numbering:
    """Gives each row its id, counting on over all splits, and the noisy ones another label."""

    label: str
    share: float
    seed: int
    #: Every value a label can have; needed for noise alone.
    values: Sequence[Any] = ()
    next_id: int = field(default=0)

    @classmethod
    def of(cls, config: MakeCorpusConfig, source: Source) -> Numbering:
        """Numbering of a source's rows.

        Raises:
            ConfigError: the source's labels cannot be given noise.
        """
        noise = config.noise
        numbering = cls(noise.label, noise.label_noise, noise.seed)
        if not noise.label_noise:
            return numbering
        values: Sequence[Any] = range(len(source.class_names or ()))
        if source.label_values is not None:
            if source.kind == "table" and noise.label == "none":
                raise ConfigError("label", noise.label, "label noise needs a label column")
            values = source.label_values()
        if len(values) < 2 or isinstance(values[0], float):  # noqa: PLR2004
            raise ConfigError(
                "label_noise", noise.label_noise, f"needs two known classes or more, not {values!r}"
            )
        if source.schema is not None and CLEAN_LABEL in source.schema.names:
            raise ConfigError("label_noise", noise.label_noise, f"there is a {CLEAN_LABEL} already")
        return replace(numbering, values=values)

    def number(self, pieces: Iterable[Piece], *, noisy: bool) -> Iterator[Piece]:
        """The pieces as writers take them: ``SampleBatch``, or record batches with an id column."""
        for piece in pieces:
            ids = np.arange(self.next_id, self.next_id + len(piece.rows), dtype=np.int64)
            self.next_id += len(ids)
            number = self._batch if isinstance(piece.rows, pa.RecordBatch) else self._samples
            yield Piece(piece.shard, number(piece.rows, ids, noisy=noisy and self.share > 0))

    def _samples(
        self, samples: Sequence[Sample], ids: npt.NDArray[np.int64], *, noisy: bool
    ) -> SampleBatch:
        labels = _array([sample.label for sample in samples])
        if not noisy:
            return SampleBatch(samples, ids, labels)
        return SampleBatch(samples, ids, self._flip(labels, ids), labels)

    def _batch(
        self, batch: pa.RecordBatch, ids: npt.NDArray[np.int64], *, noisy: bool
    ) -> pa.RecordBatch:
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        if noisy:
            columns[CLEAN_LABEL] = columns[self.label]
            columns[self.label] = self._flip(columns[self.label], ids)
        columns.setdefault(ID, pa.array(ids))
        return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))

    def _flip(self, labels: pa.Array[Any], ids: npt.NDArray[np.int64]) -> pa.Array[Any]:
        values = pa.array(self.values, labels.type)
        found: Any = pc.index_in(labels, value_set=values)
        codes = found.fill_null(-1).to_numpy().astype(np.int64)
        flipped = flip(codes, ids, len(values), self.share, self.seed)
        taken: pa.Array[Any] = values.take(pa.array(flipped, mask=flipped < 0))
        return taken


def _array(labels: list[Any]) -> pa.Array[Any]:
    kinds = {type(label) for label in labels}
    if kinds <= {int}:
        return pa.array(labels, pa.int64())
    if kinds <= {int, float}:
        return pa.array(labels, pa.float64())
    if kinds <= {str}:
        return pa.array(labels, pa.string())
    raise BadDataError(f"labels of kinds {sorted(kind.__name__ for kind in kinds)}: mixed")
