"""Broken files one by one through the readers: the rows that come out, and the reasons."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from bad_files import CASES, CLASSES, GOOD, KINDS, PAYLOADS, PWNED, VECTORS, Code

from dataprune_ray import cli
from dataprune_ray.config import CorpusConfig, PruneConfig
from dataprune_ray.errors import BadDataError, ConfigError
from dataprune_ray.features import recognise
from dataprune_ray.io import get_reader, open_corpus
from dataprune_ray.io.rows import RowPlan, read_rows
from dataprune_ray.models import read_state


def read_all(root):
    """Positions and reasons by file of every row of a corpus."""
    config = CorpusConfig(input=str(root), num_classes=CLASSES)
    corpus = open_corpus(config)
    first = corpus.fragments[0].spans[0]
    batch = next(iter(get_reader(corpus.format).read(corpus.root, first, None, GOOD)))
    found = recognise(config, corpus.schema, batch)
    found_rows = {}
    for fragment in corpus.fragments:
        for batch in read_rows(RowPlan.of(corpus, found.features, found.label, None, 0), fragment):
            rows = found_rows.setdefault(batch.file, [])
            rows += [(int(row), batch.errors.get(i)) for i, row in enumerate(batch.rows)]
    return found_rows


def test_there_are_enough():
    assert len(CASES) + len(PAYLOADS) + len(VECTORS) > 80


@pytest.mark.parametrize(("kind", "case"), CASES, ids=[f"{k}-{c.name}" for k, c in CASES])
def test_a_broken_file_beside_a_good_one(tmp_path, kind, case):
    root = tmp_path / "corpus"
    root.mkdir()
    name, good, _, _ = KINDS[kind]
    (root / name).write_bytes(good())
    case.put(root)
    found = read_all(root)
    assert found.pop(name) == [(i, None) for i in range(GOOD)]
    rows = [row for rows in found.values() for row in rows]
    assert len(rows) == case.rows, rows
    reasons = {row: reason for row, reason in rows if reason is not None}
    assert sorted(reasons) == sorted(case.bad), reasons
    for row, reason in case.bad.items():
        assert re.search(reason, reasons[row], re.DOTALL), (row, reasons[row])
    assert not PWNED.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path):
    name, good, _, _ = KINDS["tables"]
    (tmp_path / name).write_bytes(good())
    (tmp_path / "secret.parquet").write_bytes(good())
    (tmp_path / "secret.parquet").chmod(0)
    ((row, reason),) = read_all(tmp_path)["secret.parquet"]
    assert row == -1
    assert "Permission denied" in reason


def test_a_file_that_cannot_be_opened(tmp_path, monkeypatch):
    name, good, _, _ = KINDS["tables"]
    (tmp_path / name).write_bytes(good())
    (tmp_path / "secret.parquet").write_bytes(good())
    from dataprune_ray.io import parquet  # noqa: PLC0415

    opened = parquet.open_input

    def refuse(path):
        if "secret" in path:
            raise PermissionError(13, "Permission denied", path)
        return opened(path)

    monkeypatch.setattr(parquet, "open_input", refuse)
    ((row, reason),) = read_all(tmp_path)["secret.parquet"]
    assert row == -1
    assert "Permission denied" in reason


def test_a_file_name_that_is_not_utf8_is_refused(tmp_path):
    name, good, _, _ = KINDS["tables"]
    (tmp_path / name).write_bytes(good())
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.parquet")).write_bytes(good())
    with pytest.raises(ConfigError, match=r"input='.*xff.parquet'.*not UTF-8"):
        open_corpus(CorpusConfig(input=str(tmp_path)))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"\0" * 5000])
def test_nothing_readable_is_bad_data(tmp_path, content):
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(BadDataError, match="no file can be read"):
        open_corpus(CorpusConfig(input=str(tmp_path)))


@pytest.mark.parametrize(
    "text",
    [
        "keep: !!python/object/apply:os.mkdir ['{path}']",
        "!!python/object/new:os.mkdir ['{path}']",
        "keep: 0.3\nkeep",
        "- keep",
        "keep: [",
        "\0",
        "&a [*a]",
    ],
)
def test_a_settings_file_that_is_none_is_refused(tmp_path, text):
    path = tmp_path / "settings.yaml"
    path.write_text(text.format(path=tmp_path / "made"))
    with pytest.raises(ConfigError, match="config="):
        cli.parse(PruneConfig, ["--config", str(path)], "", {})
    assert not (tmp_path / "made").exists()


def test_a_checkpoint_with_code_is_refused(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"1.weight": torch.zeros(2), "code": Code(tmp_path / "made")}, path)
    with pytest.raises(ConfigError, match="checkpoint="):
        read_state(str(path), path.read_bytes())
    assert not (tmp_path / "made").exists()
