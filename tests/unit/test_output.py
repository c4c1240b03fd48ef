"""Output directories: claimed, resumed, finished, refused, and only our own files removed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dataprune_ray.errors import ConfigError
from dataprune_ray.io import output
from dataprune_ray.io.lock import LOCK
from dataprune_ray.io.output import (
    MANIFEST,
    RUN_FILE,
    claim,
    finished,
    remove_leftovers,
    remove_run,
)

SETTINGS = {"keep": 0.5, "metric": ["el2n"], "input": "corpus"}
OURS = (
    "data/part-00000.parquet",
    "data/part-123456.parquet",
    "scores/000000-0123456789ab.parquet",
    "scores/_plan.json",
    "scores/_fit.json",
    "scores/_fitted.json",
    "decisions/000001-0123456789ab.parquet",
    "quarantine/000001-0123456789ab.parquet",
    "proxy/seed-0.safetensors",
    "proxy/seed-12.safetensors.json",
    "proxy/seed-0.safetensors.epoch-001.safetensors",
    "scores/_space.safetensors",
    "scores/_learner.safetensors",
    "scores/_learner.safetensors.json",
    "scores/_judge-0.safetensors",
    "scores/_judge-1.safetensors.json",
    "report.html",
)
THEIRS = ("data/mine.parquet", "notes.txt", "scores/x.parquet", "other/report.html", "data/a/b")


def put(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"{}")


def files(root: Path) -> set[str]:
    return {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}


def take(root: Path, settings=None, inputs="abc", **options):
    options = {"overwrite": False, "resume": True, **options}
    return claim(str(root), settings or SETTINGS, inputs, **options)


def finish(root: Path) -> None:
    put(root, *OURS)
    (root / MANIFEST).write_text('{"rows": 3}')


@pytest.mark.parametrize("made", [False, True])
def test_a_new_or_empty_directory_is_taken(tmp_path, made):
    root = tmp_path / "out"
    if made:
        root.mkdir()
    found = take(root)
    assert (found.finished, found.resumed) == (None, False)
    assert json.loads((root / RUN_FILE).read_text()) == {"settings": SETTINGS, "inputs": "abc"}
    assert found.path("data", "x") == str(root / "data" / "x")


def test_the_same_run_is_resumed(tmp_path):
    take(tmp_path)
    put(tmp_path, OURS[2])
    found = take(tmp_path)
    assert found.resumed
    assert found.finished is None
    assert OURS[2] in files(tmp_path)


def test_an_unfinished_run_is_refused_without_resume(tmp_path):
    take(tmp_path)
    with pytest.raises(ConfigError, match=r"resume=False: .*unfinished"):
        take(tmp_path, resume=False)


@pytest.mark.parametrize("resume", [True, False])
def test_a_finished_run_is_recognised(tmp_path, resume):
    take(tmp_path)
    finish(tmp_path)
    before = files(tmp_path)
    assert take(tmp_path, resume=resume).finished == {"rows": 3}
    assert files(tmp_path) == before


@pytest.mark.parametrize("finished", [False, True])
def test_a_changed_setting_is_refused_and_named(tmp_path, finished):
    take(tmp_path)
    if finished:
        finish(tmp_path)
    before = files(tmp_path)
    with pytest.raises(ConfigError, match=r"keep=0.3: .*was made with 0.5.*--overwrite") as caught:
        take(tmp_path, {**SETTINGS, "keep": 0.3})
    assert caught.value.field == "keep"
    assert files(tmp_path) == before


def test_a_setting_that_is_new_or_gone_is_named(tmp_path):
    take(tmp_path)
    with pytest.raises(ConfigError, match="floor=3"):
        take(tmp_path, {**SETTINGS, "floor": 3})
    with pytest.raises(ConfigError, match="keep=None"):
        take(tmp_path, {k: v for k, v in SETTINGS.items() if k != "keep"})


def test_changed_input_files_are_refused(tmp_path):
    take(tmp_path)
    with pytest.raises(ConfigError, match=r"input='corpus': its files changed"):
        take(tmp_path, inputs="other")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "name", ["x.txt", "data/part-00000.parquet", "scores/000000-0123456789ab.parquet", MANIFEST]
)
def test_a_strange_directory_is_refused_and_left_alone(tmp_path, overwrite, name):
    put(tmp_path, name)
    with pytest.raises(ConfigError, match="output="):
        take(tmp_path, overwrite=overwrite)
    assert files(tmp_path) == {name}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("content", ["{}", "[1]", "not json", '{"settings": 3, "inputs": "x"}'])
def test_the_run_file_of_another_program_is_no_claim(tmp_path, overwrite, content):
    put(tmp_path, "report.html", MANIFEST)
    (tmp_path / RUN_FILE).write_text(content)
    with pytest.raises(ConfigError, match="output="):
        take(tmp_path, overwrite=overwrite)
    assert files(tmp_path) == {"report.html", MANIFEST, RUN_FILE}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_no_output_directory(tmp_path, overwrite):
    put(tmp_path, "x")
    with pytest.raises(ConfigError, match="is a file, not a directory"):
        take(tmp_path / "x", overwrite=overwrite)
    assert files(tmp_path) == {"x"}


def test_overwrite_removes_our_files_and_no_others(tmp_path):
    take(tmp_path)
    finish(tmp_path)
    put(tmp_path, *THEIRS, "data/.writing-1-part-00001.parquet", ".writing-2-manifest.json")
    found = take(tmp_path, {**SETTINGS, "keep": 0.1}, overwrite=True)
    assert (found.finished, found.resumed) == (None, False)
    assert files(tmp_path) == {*THEIRS, RUN_FILE}
    assert json.loads((tmp_path / RUN_FILE).read_text())["settings"]["keep"] == 0.1
    assert not (tmp_path / "decisions").exists()


def test_overwrite_of_nothing_is_a_new_run(tmp_path):
    assert not take(tmp_path / "new", overwrite=True).resumed
    assert files(tmp_path / "new") == {RUN_FILE}


def test_overwrite_keeps_the_score_table_that_is_cut_again(tmp_path):
    take(tmp_path)
    finish(tmp_path)
    take(tmp_path, {**SETTINGS, "keep": 0.1}, overwrite=True, keep_scores=True)
    kept = {name for name in OURS if name.startswith(("scores/", "proxy/"))}
    assert files(tmp_path) == {*kept, RUN_FILE}


@pytest.mark.parametrize("keep_scores", [False, True])
def test_an_overwrite_that_was_killed_can_be_done_again(tmp_path, monkeypatch, keep_scores):
    take(tmp_path)
    finish(tmp_path)
    calls = []

    def killed(path):
        if len(calls) == limit:
            raise KeyboardInterrupt
        calls.append(path)
        remove(path)

    remove = output.remove_file
    changed = {**SETTINGS, "keep": 0.1}
    for limit in range(len(OURS) + 1):
        finish(tmp_path)
        calls.clear()
        monkeypatch.setattr(output, "remove_file", killed)
        try:
            take(tmp_path, changed, overwrite=True, keep_scores=keep_scores)
        except KeyboardInterrupt:
            assert not limit or not (tmp_path / MANIFEST).exists()
        monkeypatch.setattr(output, "remove_file", remove)
        again = take(tmp_path, changed, overwrite=True, keep_scores=keep_scores)
        assert again.finished is None
        assert RUN_FILE in files(tmp_path)
        assert ("data/part-00000.parquet" in files(tmp_path)) is False


def test_a_first_claim_that_was_killed_can_be_done_again(tmp_path):
    put(tmp_path, ".writing-12345678-run.json")
    assert not take(tmp_path).resumed


def test_remove_run_takes_everything_of_ours(tmp_path):
    take(tmp_path)
    finish(tmp_path)
    put(tmp_path, *THEIRS)
    remove_run(str(tmp_path))
    assert files(tmp_path) == set(THEIRS)
    with pytest.raises(ConfigError, match="nothing is removed"):
        remove_run(str(tmp_path))
    remove_run(str(tmp_path / "none"))


def test_leftovers_of_a_killed_run_go_where_asked(tmp_path):
    put(tmp_path, "data/.writing-1-x", "data/x", "scores/.writing-1-x", "other/.writing-1-x")
    remove_leftovers(str(tmp_path), ("data", "decisions"))
    assert files(tmp_path) == {"data/x", "scores/.writing-1-x", "other/.writing-1-x"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_lock_makes_a_directory_no_stranger(tmp_path, overwrite):
    put(tmp_path, LOCK)
    assert not take(tmp_path, overwrite=overwrite).resumed
    assert files(tmp_path) == {LOCK, RUN_FILE}


def test_a_finished_run_is_known_without_writing(tmp_path):
    root = tmp_path / "out"
    assert finished(str(root), SETTINGS, "abc") is None
    assert not root.exists()
    take(root)
    assert finished(str(root), SETTINGS, "abc") is None
    finish(root)
    before = files(root)
    assert finished(str(root), SETTINGS, "abc") == {"rows": 3}
    assert finished(str(root), {**SETTINGS, "keep": 0.1}, "abc") is None
    assert finished(str(root), SETTINGS, "other") is None
    assert files(root) == before
    with pytest.raises(ConfigError, match="is a file"):
        finished(str(root / MANIFEST), SETTINGS, "abc")


def test_passwords_stay_out_of_the_settings_of_a_run(tmp_path):
    secret = "s3://key:hush@bucket/corpus?endpoint_override=localhost%3A9"
    claim(
        str(tmp_path / "out"),
        {"input": secret, "checkpoint": [secret]},
        "x",
        overwrite=False,
        resume=True,
    )
    text = (tmp_path / "out" / "run.json").read_text()
    assert "hush" not in text
    assert "endpoint_override=localhost" in text
    again = claim(
        str(tmp_path / "out"),
        {"input": secret, "checkpoint": [secret]},
        "x",
        overwrite=False,
        resume=True,
    )
    assert again.resumed
