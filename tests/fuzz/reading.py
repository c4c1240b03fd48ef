"""What a fuzzed corpus goes through, in a process of its own: decoders may take theirs down.

Run as a program it answers requests on stdin, one pickled request and answer after the other.
"""

from __future__ import annotations

import pickle
import resource
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

import pyarrow as pa

from dataprune_ray.config import CorpusConfig
from dataprune_ray.errors import DataPruneError
from dataprune_ray.features import recognise
from dataprune_ray.io import READ_ERRORS, get_reader, open_corpus
from dataprune_ray.io.rows import RowPlan, read_rows

MEMORY_BYTES = 6 << 30
MOST_ROWS = 100_000


def examine(files: dict[str, bytes]) -> dict:
    """Open the files as a corpus and read every row.

    Returns:
        ``refused``: the purposeful error, if any; ``files``: per file the rows that were known
        before reading, all positions that came out, and how many were bad.
    """
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return _read(CorpusConfig(input=str(folder), max_pixels=1 << 20))
    except DataPruneError as error:
        return {"refused": f"{type(error).__name__}: {error}", "files": {}}
    finally:
        shutil.rmtree(folder)


def _read(config: CorpusConfig) -> dict:
    corpus = open_corpus(config)
    found = recognise(config, corpus.schema, _first_rows(corpus))
    label = found.label
    if label.column is not None and not label.classes and label.task == "classification":
        config = config.model_copy(update={"num_classes": 10})
        label = recognise(config, corpus.schema, _first_rows(corpus)).label
    plan = RowPlan.of(corpus, found.features, label, None, 0)
    known = {file.path: file.rows for file in corpus.files}
    out = {name: {"known": rows, "positions": [], "bad": 0} for name, rows in known.items()}
    total = 0
    for fragment in corpus.fragments:
        for batch in read_rows(plan, fragment):
            entry = out[batch.file]
            entry["positions"] += batch.rows.tolist()
            entry["bad"] += len(batch.errors)
            assert len(batch.values) == len(batch.targets) == batch.good.sum()
            assert len(batch.keys) == len(batch.stored) == len(batch.row_hash) == len(batch)
            assert set(batch.errors) == {i for i, good in enumerate(batch.good) if not good}
            total += len(batch)
            if total > MOST_ROWS:
                raise AssertionError(f"more than {MOST_ROWS} rows")
    return {"refused": None, "files": out}


def _first_rows(corpus) -> pa.RecordBatch:
    for fragment in corpus.fragments:
        for span in fragment.spans:
            if span.error is None:
                try:
                    for batch in get_reader(corpus.format).read(corpus.root, span, None, 64):
                        return batch
                except READ_ERRORS:
                    continue
    return pa.RecordBatch.from_pylist([], schema=corpus.schema)


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    pa.set_cpu_count(1)
    answers = sys.stdout.buffer
    sys.stdout = sys.stderr
    while True:
        try:
            files = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = examine(files)
        except Exception as error:  # noqa: BLE001 - the answer, whatever it is
            answer = {"failed": f"{type(error).__name__}: {error}\n{traceback.format_exc()}"}
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
