"""Mutated files through the readers: purposeful errors only, and no row that the footer says lost.

Every corpus is read in a process of its own, so that a decoder that crashes is a failure with a
name. ``DATAPRUNE_FUZZ_EXAMPLES`` asks for more examples, then chosen at random.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ASKED = os.environ.get("DATAPRUNE_FUZZ_EXAMPLES")
EXAMPLES = int(ASKED or 120)
ROWS = 24

fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=ASKED is None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


class Examiner:
    """A process that reads corpora; a new one after each that a corpus has taken down."""

    def __init__(self):
        self.process = None

    def __call__(self, files):
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", str(HERE / "reading.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        try:
            pickle.dump(files, self.process.stdin)
            self.process.stdin.flush()
            answer = pickle.load(self.process.stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            code = self.process.wait(30)
            self.close()
            name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise AssertionError(f"the reading process ended: {name}") from None
        assert "failed" not in answer, answer["failed"]
        return answer

    def close(self):
        if self.process is not None:
            self.process.stdin.close()
            self.process.stdout.close()
            self.process.wait(30)
            self.process = None


@pytest.fixture(scope="module")
def examine():
    examiner = Examiner()
    yield examiner
    examiner.close()


# Mutations ---------------------------------------------------------------------------------------


@st.composite
def positions(draw, size):
    """Anywhere, and as often near the end, where Parquet keeps its footer, or near the start."""
    where = draw(st.sampled_from(["any", "end", "start"]))
    low = max(0, size - 700) if where == "end" else 0
    high = min(size, 600) if where == "start" else size
    return draw(st.integers(low, max(low, high - 1)))


@st.composite
def mutated(draw, content, other=b""):
    """The content after one to four changes; ``other`` is where foreign pieces come from."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        if not data:
            break
        at = draw(positions(len(data)))
        length = draw(st.integers(1, 64))
        kind = draw(
            st.sampled_from(["flip", "flip", "set", "cut", "drop", "double", "zero", "mix"])
        )
        if kind == "flip":
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set":
            data[at] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFE, 0xFF]))
        elif kind == "cut":
            del data[at:]
        elif kind == "drop":
            del data[at : at + length]
        elif kind == "double":
            data[at:at] = data[at : at + length]
        elif kind == "zero":
            data[at : at + length] = bytes(len(data[at : at + length]))
        elif kind == "mix" and other:
            start = draw(st.integers(0, len(other) - 1))
            data[at : at + length] = other[start : start + length]
    return bytes(data)


@st.composite
def damaged(draw, content):
    """The content cut or with one bit turned: what nobody can take for other, valid content."""
    at = draw(positions(len(content)))
    if draw(st.booleans()):
        return content[:at]
    data = bytearray(content)
    data[at] ^= 1 << draw(st.integers(0, 7))
    return bytes(data)


# Valid files -------------------------------------------------------------------------------------


def parquet(table, **options):
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def picture(index, form="PNG"):
    rng = np.random.default_rng(index)
    sink = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(sink, form)
    return sink.getvalue()


def npy(index):
    sink = io.BytesIO()
    np.save(sink, np.random.default_rng(index).integers(0, 256, (8, 8, 3), np.uint8))
    return sink.getvalue()


def numbers(seed=0):
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "x": pa.array(rng.random(ROWS)),
            "n": pa.array([None if i % 5 == 0 else i for i in range(ROWS)], pa.int32()),
            "kind": pa.array([f"k{i % 3}" for i in range(ROWS)]).dictionary_encode(),
            "label": pa.array(rng.integers(0, 3, ROWS)),
        }
    )


def vectors(seed=0):
    rng = np.random.default_rng(seed)
    values = [rng.random(4).tolist() for _ in range(ROWS)]
    return pa.table(
        {
            "vector": pa.array(values, pa.list_(pa.float32())),
            "label": pa.array(rng.integers(0, 3, ROWS)),
        }
    )


def pictures(payloads):
    labels = pa.array([i % 3 for i in range(len(payloads))])
    return pa.table({"image": pa.array(payloads, pa.binary()), "label": labels})


def archive(samples, compression=""):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=f"w:{compression}") as tar:
        for index in range(samples):
            document = json.dumps({"label": index % 3, "text": "ä" * index}).encode()
            for name, content in (("png", picture(index)), ("json", document)):
                info = tarfile.TarInfo(f"sample{index:03d}.{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return sink.getvalue()


PARQUETS = {
    "numbers": parquet(numbers(), row_group_size=8, compression="none"),
    "snappy": parquet(numbers(), row_group_size=10),
    "zstd-checked": parquet(
        numbers(), compression="zstd", write_page_checksum=True, data_page_version="2.0"
    ),
    "delta": parquet(
        numbers().set_column(2, "kind", numbers()["kind"].cast(pa.string())),
        use_dictionary=False,
        compression="none",
        column_encoding={
            "x": "BYTE_STREAM_SPLIT",
            "n": "DELTA_BINARY_PACKED",
            "kind": "DELTA_BYTE_ARRAY",
            "label": "DELTA_BINARY_PACKED",
        },
    ),
    "vectors": parquet(vectors(), row_group_size=8, compression="none"),
    "pictures": parquet(pictures([picture(i) for i in range(ROWS)]), row_group_size=8),
}
ARCHIVES = {"plain": archive(8), "gzip": archive(8, "gz")}


def check(answer, name, *, least=0):
    """Every row that the footer counts came out once and in order."""
    if answer["refused"] is not None:
        assert answer["refused"].startswith(("ConfigError: ", "BadDataError: "))
        return
    found = answer["files"][name]
    if found["known"] is not None:
        assert found["positions"] == list(range(found["known"]))
    elif found["positions"] != [-1]:
        assert found["positions"] == list(range(len(found["positions"])))
    assert found["bad"] or len(found["positions"]) >= least


@pytest.mark.parametrize("kind", PARQUETS)
def test_valid_files_are_read_whole(examine, kind):
    answer = examine({"a.parquet": PARQUETS[kind]})
    assert answer["files"]["a.parquet"] == {
        "known": ROWS,
        "positions": list(range(ROWS)),
        "bad": 0,
    }


@pytest.mark.parametrize("kind", PARQUETS)
@fuzzed
@given(data=st.data())
def test_parquet(examine, kind, data):
    valid = PARQUETS[kind]
    others = b"".join(PARQUETS.values())
    files = {"b.parquet": data.draw(mutated(valid, others))}
    if data.draw(st.booleans()):  # beside a file that says what the corpus is like
        files["a.parquet"] = valid
    answer = examine(files)
    check(answer, "b.parquet")
    if "a.parquet" in files:
        assert answer["files"]["a.parquet"]["positions"] == list(range(ROWS))
        assert answer["files"]["b.parquet"]["positions"]


@pytest.mark.parametrize("kind", ARCHIVES)
@fuzzed
@given(data=st.data())
def test_archives(examine, kind, data):
    suffix = "tar.gz" if kind == "gzip" else "tar"
    content = data.draw(mutated(ARCHIVES[kind], archive(3)))
    files = {f"a.{suffix}": ARCHIVES[kind], f"b.{suffix}": content}
    check(examine(files), f"b.{suffix}")
    check(examine({f"b.{suffix}": content}), f"b.{suffix}")


@pytest.mark.parametrize("kind", ARCHIVES)
@fuzzed
@given(data=st.data())
def test_damage_to_an_archive_loses_no_sample_silently(examine, kind, data):
    suffix = "tar.gz" if kind == "gzip" else "tar"
    content = data.draw(damaged(ARCHIVES[kind]))
    files = {f"a.{suffix}": ARCHIVES[kind], f"b.{suffix}": content}
    check(examine(files), f"b.{suffix}", least=8)


@pytest.mark.parametrize("make", [picture, npy, lambda i: picture(i, "JPEG"),
                                  lambda i: picture(i, "GIF"), lambda i: picture(i, "TIFF"),
                                  lambda i: picture(i, "WEBP"), lambda i: picture(i, "BMP")],
                         ids=["png", "npy", "jpeg", "gif", "tiff", "webp", "bmp"])  # fmt: skip
@fuzzed
@given(data=st.data())
def test_members(examine, make, data):
    valid = [make(i) for i in range(3)]
    payloads = [*valid, *(data.draw(mutated(valid[0], valid[1])) for _ in range(4)), *valid]
    answer = examine({"a.parquet": parquet(pictures(payloads))})
    check(answer, "a.parquet")
    assert answer["refused"] is None
    assert answer["files"]["a.parquet"]["known"] == 10
    assert answer["files"]["a.parquet"]["bad"] <= 4


@fuzzed
@given(data=st.data())
def test_json_members(examine, data):
    valid = [json.dumps({"label": i % 3, "deep": {"x": [1, 2.5, None, "ä"]}}) for i in range(3)]
    texts = [v.encode() for v in valid]
    texts += [data.draw(mutated(texts[0], texts[1])) for _ in range(4)]
    texts += [data.draw(st.binary(max_size=20)), b"[" * data.draw(st.integers(0, 5000))]
    table = pa.table(
        {
            "json": pa.array(texts, pa.binary()),
            "image": pa.array([picture(i) for i in range(len(texts))], pa.binary()),
        }
    )
    answer = examine({"a.parquet": parquet(table)})
    check(answer, "a.parquet")
