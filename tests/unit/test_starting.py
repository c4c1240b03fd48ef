"""A Ray started beside imports: whose it is, and when none is started. Ray itself stays out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from dataprune_ray import starting


class _Ray:
    """What `starting` calls of Ray."""

    def __init__(self) -> None:
        self.running = False
        self.asked: list[dict[str, Any]] = []

    def init(self, **settings: Any) -> None:
        self.asked.append(settings)
        self.running = True

    def is_initialized(self) -> bool:
        return self.running


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> _Ray:
    found = _Ray()
    monkeypatch.setattr(starting, "ray", found)
    monkeypatch.setattr(starting, "_early", type(starting._early)())
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "imported_beside_ray.py").write_text("value = 1\n")
    (tmp_path / "breaks_beside_ray.py").write_text("raise RuntimeError('broken module')\n")
    for name in ("imported_beside_ray", "breaks_beside_ray"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return found


def test_a_local_ray_is_started_beside_the_imports_and_taken_over_once(fake: _Ray) -> None:
    starting.beside_imports("imported_beside_ray", None)
    assert sys.modules["imported_beside_ray"].value == 1
    assert [settings["address"] for settings in fake.asked] == ["local"]
    assert starting.taken_over()
    assert not starting.taken_over()  # a second run in the program finds a Ray that runs already


@pytest.mark.parametrize("by", ["flag", "environment", "running"])
def test_none_is_started_where_a_cluster_is_named_or_ray_runs(
    fake: _Ray, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    if by == "environment":
        monkeypatch.setenv("RAY_ADDRESS", "ray.example:6379")
    fake.running = by == "running"
    starting.beside_imports("imported_beside_ray", "ray.example:6379" if by == "flag" else None)
    assert "imported_beside_ray" in sys.modules
    assert not fake.asked
    assert not starting.taken_over()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.usefixtures("fake")
def test_what_an_import_raises_is_raised() -> None:
    with pytest.raises(RuntimeError, match="broken module"):
        starting.beside_imports("breaks_beside_ray", None)
