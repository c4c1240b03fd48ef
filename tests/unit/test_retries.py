"""Storage errors that pass are waited out; others, and those that do not pass, come out."""

from __future__ import annotations

import errno
import pickle
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataprune_ray.errors import BadDataError, DiskFullError, StorageError
from dataprune_ray.io import get_reader, parquet, retries
from dataprune_ray.io.corpus import Span
from dataprune_ray.io.filesystems import FileInfo
from dataprune_ray.io.parquet import ParquetReader
from dataprune_ray.io.retries import Patience, is_passing, retried
from dataprune_ray.io.steady import SteadyReader


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """The waits that were asked for; none is waited."""
    waited = []
    monkeypatch.setattr(retries.time, "sleep", waited.append)
    return waited


class Flaky:
    """Raises the given errors, one a call, then returns what it is called with."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.calls = 0

    def __call__(self, value):
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return value


PASSING = [
    TimeoutError("read"),
    ConnectionResetError(errno.ECONNRESET, "reset"),
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ESTALE, "Stale file handle"),
    OSError(
        "When reading information for key 'a' in bucket 'b': AWS Error UNKNOWN (HTTP status 503) "
        "during HeadObject operation: No response body."
    ),
    OSError("AWS Error SLOW_DOWN during PutObject operation: Please reduce your request rate."),
    OSError("AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 28, Timeout"),
    OSError("AWS Error UNKNOWN (HTTP status 429) during ListObjectsV2 operation: none"),
    OSError("google::cloud::Status(UNAVAILABLE: Retry policy exhausted)"),
]
LASTING = [
    FileNotFoundError(errno.ENOENT, "none"),
    PermissionError(errno.EACCES, "no"),
    NotADirectoryError(errno.ENOTDIR, "no"),
    OSError(errno.ENOSPC, "No space left on device"),
    OSError("AWS Error ACCESS_DENIED during HeadObject operation: No response body."),
    OSError("AWS Error UNKNOWN (HTTP status 400) during HeadObject operation: none"),
    OSError("Couldn't deserialize thrift: TProtocolException: Invalid data"),
    OSError("Corrupt snappy compressed data."),
    pa.ArrowInvalid("Parquet magic bytes not found in footer"),
    ValueError("timed out"),
    StorageError("storage failed 8 times in a row: connection reset"),
    DiskFullError("/data", "No space left on device"),
]


@pytest.mark.parametrize("error", PASSING, ids=str)
def test_errors_that_may_pass(error):
    flaky = Flaky(error, error)
    assert retried(flaky, 7) == 7
    assert flaky.calls == 3


@pytest.mark.parametrize("error", LASTING, ids=str)
def test_errors_that_last_come_out_at_once(error, waits):
    assert not is_passing(error)
    flaky = Flaky(error)
    with pytest.raises(type(error)) as caught:
        retried(flaky, 7)
    assert caught.value is error
    assert flaky.calls == 1
    assert waits == []


def test_what_does_not_pass_is_given_up_and_not_tried_by_the_caller_again(waits):
    flaky = Flaky(*[TimeoutError("read")] * 100)
    with pytest.raises(StorageError, match="storage failed 8 times in a row: read") as caught:
        retried(lambda: retried(flaky, 7))
    assert flaky.calls == 8
    assert len(waits) == 7
    assert isinstance(caught.value, OSError)
    assert caught.value.exit_code == 1


def test_waits_grow_to_a_limit_and_are_shortened_at_random():
    patience = Patience(attempts=6, first=1.0, longest=5.0)
    assert list(patience.waits(lambda: 0.0)) == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert list(patience.waits(lambda: 1.0)) == [0.5, 1.0, 2.0, 2.5, 2.5]
    assert len({tuple(patience.waits()) for _ in range(10)}) > 1


def test_errors_survive_the_way_between_processes():
    for error in (StorageError("gone"), DiskFullError("/data", "No space left on device")):
        restored = pickle.loads(pickle.dumps(error))
        assert type(restored) is type(error)
        assert str(restored) == str(error)


# Reading


@pytest.fixture
def corpus(tmp_path):
    """300 rows in row groups of 70, and their span."""
    table = pa.table({"a": list(range(300)), "b": [str(i) for i in range(300)]})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=70)
    return str(tmp_path), Span("x.parquet", 0, 300, (0, 5))


class Interrupted:
    """A reader that fails after so many batches, once for each number."""

    def __init__(self, *after, error=TimeoutError):
        self.after = list(after)
        self.error = error
        self.reader = ParquetReader()

    def read(self, root, span, columns, batch_rows):
        stop = self.after.pop(0) if self.after else None
        for number, batch in enumerate(self.reader.read(root, span, columns, batch_rows)):
            if number == stop:
                raise self.error("read")
            yield batch


@pytest.mark.parametrize("after", [[0], [1], [2, 0, 1, 2], [3, 3, 3]])
def test_an_interrupted_read_hands_out_the_same_batches(corpus, after):
    root, span = corpus
    undisturbed = list(ParquetReader().read(root, span, ["a"], 64))
    steady = SteadyReader(Interrupted(*after))
    assert list(steady.read(root, span, ["a"], 64)) == undisturbed


def test_batches_cut_otherwise_the_second_time_lose_and_repeat_no_row(corpus):
    root, span = corpus

    class Other(Interrupted):
        def read(self, root, span, columns, batch_rows):
            yield from super().read(root, span, columns, batch_rows - 14 * len(self.after))

    batches = SteadyReader(Other(2)).read(root, span, ["a"], 64)
    assert pa.Table.from_batches(batches)["a"].to_pylist() == list(range(300))


def test_progress_renews_the_patience(corpus):
    root, span = corpus
    steady = SteadyReader(Interrupted(*range(1, 5), *[4] * 6))
    assert sum(batch.num_rows for batch in steady.read(root, span, None, 64)) == 300


def test_a_read_that_never_gets_on_is_given_up(corpus):
    root, span = corpus
    batches = SteadyReader(Interrupted(*[1] * 50)).read(root, span, None, 64)
    assert next(batches).num_rows == 64
    with pytest.raises(StorageError):
        next(batches)


def test_footers_are_read_again(corpus, monkeypatch):
    root, span = corpus
    failing = Flaky(*[OSError(errno.EIO, "Input/output error")] * 3)
    original = parquet.open_input

    def open_input(path):
        failing(path)
        return original(path)

    monkeypatch.setattr(parquet, "open_input", open_input)
    reader = get_reader("parquet")
    _, sources = reader.inspect(root, [FileInfo("x.parquet", 1, "v")])
    assert sources[0].groups == (70, 70, 70, 70, 20)
    failing.errors = [TimeoutError("read")]
    assert reader.narrow(root, span, 75, 80) == replace(span, start=70, rows=70, groups=(1, 2))
    failing.errors = [TimeoutError("read")] * 50
    with pytest.raises(BadDataError, match="unreadable file: storage failed 8 times"):
        reader.inspect(root, [FileInfo("x.parquet", 1, "v")])
