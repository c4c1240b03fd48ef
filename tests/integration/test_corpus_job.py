"""The corpus job as a command: exit codes, what it prints, and public data sets."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


def job(*arguments, cwd=None):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "jobs" / "corpus.py"), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, cwd=cwd
    )


def test_without_arguments_the_digits_are_made(tmp_path):
    done = job(cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "corpus/digits/train: 1,797 rows" in done.stdout
    last = done.stdout.splitlines()[-1].strip()
    assert last == "python jobs/prune.py --input corpus/digits/train --label label"
    again = job("--json", cwd=tmp_path)
    assert json.loads(again.stdout)["made"] is False


def test_a_wrong_setting_ends_with_2_and_one_line(tmp_path):
    done = job("--source", "zoo", "--output", tmp_path / "x", "--json")
    assert done.returncode == 2
    assert done.stderr.startswith("error: source='zoo': unknown; choose one of")
    assert json.loads(done.stdout)["exit_code"] == 2


def test_settings_come_from_a_file_too(tmp_path):
    (tmp_path / "c.yaml").write_text(f"limit: 7\nlayout: webdataset\noutput: {tmp_path / 'o'}\n")
    done = job("--config", tmp_path / "c.yaml")
    assert done.returncode == 0
    assert done.stdout.endswith(f"--input {tmp_path}/o/train --label cls\n")
    assert (tmp_path / "o" / "train" / "train-00000-of-00001.tar").exists()


@pytest.mark.parametrize("kind", ["images", "table"])
def test_memory_does_not_grow_with_the_set(kind, tmp_path):
    peaks = []
    for rows in (1500, 6000):  # both fill the reader's and the writer's buffers
        source = tmp_path / f"in{rows}"
        source.mkdir()
        if kind == "images":
            (source / "a").mkdir()
            for i in range(rows):
                (source / "a" / f"{i}.png").write_bytes(bytes(100_000))
            argument = f"images:{source}"
        else:
            line = "0," + "x" * 100_000 + "\n"
            (source / "x.csv").write_text("label,text\n" + line * rows)
            argument = f"table:{source}/x.csv"
        peaks.append(_peak("--source", argument, "--output", tmp_path / f"out{rows}"))
    assert peaks[1] < peaks[0] + 200 * 2**20, peaks  # the set grew by 450 MB


def _peak(*arguments):
    """Peak resident bytes of one run of the job."""
    code = (
        "import runpy, sys\n"
        f"sys.argv = {['corpus.py', *map(str, arguments)]!r}\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / 'jobs' / 'corpus.py')!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "status = open('/proc/self/status').read()\n"
        "print('PEAK', status.split('VmHWM:')[1].split()[0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return int(done.stdout.split("PEAK ")[1]) * 1024


@pytest.mark.data
def test_mnist_is_exact(data_dir, tmp_path):
    out = tmp_path / "mnist"
    done = job("--source", "torchvision:MNIST", "--root", data_dir, "--output", out, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["splits"] == {"train": 60_000, "test": 10_000}
    assert len(list((out / "train").glob("train-*-of-00006.parquet"))) == 6
    for split, prefix in (("train", "train"), ("test", "t10k")):
        raw = data_dir / "MNIST" / "raw"
        pixels = np.fromfile(raw / f"{prefix}-images-idx3-ubyte", np.uint8)[16:].reshape(-1, 28, 28)
        labels = np.fromfile(raw / f"{prefix}-labels-idx1-ubyte", np.uint8)[8:]
        table = pq.read_table(out / split)
        assert table["label"].to_pylist() == labels.tolist()
        for row in range(0, len(pixels), 97):
            image = Image.open(io.BytesIO(table["img"][row]["bytes"].as_py()))
            np.testing.assert_array_equal(np.asarray(image), pixels[row])


@pytest.mark.data
def test_sst2_text_is_untouched(data_dir, tmp_path):
    source = data_dir / "sst2" / "train.tsv"
    done = job("--source", f"table:{source}", "--output", tmp_path / "o")
    assert done.returncode == 0, done.stderr
    lines = source.read_text(encoding="utf-8").split("\n")[1:-1]
    table = pq.read_table(tmp_path / "o" / "train")
    assert table.num_rows == len(lines) == 67_349
    found = zip(table["label"].to_pylist(), table["sentence"].to_pylist(), strict=True)
    assert [f"{label}\t{sentence}" for label, sentence in found] == lines


@pytest.mark.data
def test_cifar10_jpegs_are_copied_byte_for_byte(data_dir, tmp_path):
    rows = pq.read_table(data_dir / "cifar10" / "test-00000-of-00001.parquet")[:200].to_pylist()
    for i, row in enumerate(rows):
        folder = tmp_path / "in" / str(row["label"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i:04d}.jpg").write_bytes(row["img"]["bytes"])
    assert job("--source", f"images:{tmp_path / 'in'}", "--output", tmp_path / "o").returncode == 0
    made = pq.read_table(tmp_path / "o" / "train").to_pylist()
    found = {int(Path(r["img"]["path"]).stem): (r["img"]["bytes"], r["label"]) for r in made}
    assert found == {i: (row["img"]["bytes"], row["label"]) for i, row in enumerate(rows)}
