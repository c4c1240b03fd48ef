"""The GPU benchmark's own code, small and on the CPU."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    spec = importlib.util.spec_from_file_location("gpu_benchmark", FOLDER / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_benchmark", module)
    spec.loader.exec_module(module)
    return module


def test_every_case_is_one_line(benchmark, monkeypatch, capsys):
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--tiny"])
    try:
        assert benchmark.main() == 0
    finally:
        torch.set_num_threads(threads)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    names = ["gpu jpeg", "gpu pixels", "gpu rows", "gpu checkpoints"]
    assert [line["benchmark"] for line in lines] == names
    for line in lines:
        ratio = line["rows_per_second"] / line["bare_rows_per_second"]
        assert line["share_of_bare"] == pytest.approx(ratio, rel=0.01)
        assert line["rows"] in {benchmark.TINY.images, benchmark.TINY.rows}
        assert line["gpu_busy"] is None
    assert lines[-1]["checkpoints"] == benchmark.TINY.checkpoints


@pytest.mark.parametrize(
    ("arguments", "said"), [([], "no CUDA device"), (["--device", "cpu"], "add --tiny")]
)
def test_it_refuses_what_it_cannot_measure(benchmark, monkeypatch, capsys, arguments, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments])
    assert benchmark.main() == 2
    assert said in capsys.readouterr().err
