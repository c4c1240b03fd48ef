"""A reader that outlasts passing storage errors without losing or repeating a row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa

from dataprune_ray.io.corpus import Reader, SourceFile, Span
from dataprune_ray.io.filesystems import FileInfo
from dataprune_ray.io.retries import Waiting, retried


class SteadyReader:
    """A `Reader` around another one."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    @property
    def suffixes(self) -> tuple[str, ...]:
        """See `Reader.suffixes`."""
        return self._reader.suffixes

    @property
    def key_column(self) -> str | None:
        """See `Reader.key_column`."""
        return self._reader.key_column

    def inspect(self, root: str, files: Sequence[FileInfo]) -> tuple[pa.Schema, list[SourceFile]]:
        """See `Reader.inspect`; readers repeat what fails file by file."""
        return self._reader.inspect(root, files)

    def read(
        self, root: str, span: Span, columns: Sequence[str] | None, batch_rows: int
    ) -> Iterator[pa.RecordBatch]:
        """See `Reader.read` and `steadily`.

        Raises:
            StorageError: an error that might pass did not.
        """
        yield from steadily(lambda: self._reader.read(root, span, columns, batch_rows))

    def narrow(self, root: str, span: Span, first: int, last: int) -> Span:
        """See `Reader.narrow`."""
        return retried(self._reader.narrow, root, span, first, last)


def steadily(read: Callable[[], Iterator[pa.RecordBatch]]) -> Iterator[pa.RecordBatch]:
    """What ``read`` reads; after an error that may pass, it reads from its start again.

    Rows that were handed out before are skipped, batch by batch, so that the batches are those of
    an undisturbed read.

    Raises:
        StorageError: an error that might pass did not.
    """
    done = 0
    waiting = Waiting()
    while True:
        try:
            position = 0
            for batch in read():
                position += batch.num_rows
                if position > done or not batch.num_rows:
                    yield batch.slice(max(0, batch.num_rows - (position - done)))
                    done = max(done, position)
                    waiting.reset()
        except OSError as error:
            waiting.after(error)
        else:
            return
