"""A run's status from its directory: begun, half done, finished, changed, foreign, by URI."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataprune_ray import schema
from dataprune_ray.config import CorpusConfig, PruneConfig
from dataprune_ray.errors import ConfigError
from dataprune_ray.io import open_corpus
from dataprune_ray.io.output import MANIFEST, claim
from dataprune_ray.status import status

ROOT = Path(__file__).parents[2]


def begin(tmp_path, **settings):
    """A corpus of 60 rows in six fragments and a run of it that has just begun."""
    (tmp_path / "in").mkdir()
    for index in range(3):
        table = pa.table({"x": range(20), "label": [i % 2 for i in range(20)]})
        pq.write_table(table, tmp_path / "in" / f"{index}.parquet", row_group_size=10)
    values = {"input": str(tmp_path / "in"), "output": str(tmp_path / "out"), "fragment_rows": 10}
    config = PruneConfig.from_flat({**values, **settings})
    corpus = open_corpus(config.corpus)
    claim(
        config.write.output,
        config.decisive(),
        corpus.fingerprint(),
        overwrite=False,
        resume=True,
    )
    return corpus, tmp_path / "out"


def commit(folder, fragment, rows=10, bad=0):
    folder.mkdir(exist_ok=True)
    note = {schema.NOTE: json.dumps({"rows": rows, "bad": bad, "members": []})}
    table = pa.table({"row": range(rows)}).replace_schema_metadata(note)
    pq.write_table(table, folder / f"{fragment.name}.parquet")


def test_a_run_that_has_just_begun(tmp_path):
    _, out = begin(tmp_path, proxy_seeds=3)
    found = status(str(out))
    assert not found.finished
    assert found.corpus == "unchanged"
    assert (found.fragments.done, found.fragments.total) == (0, 6)
    assert (found.rows_scored, found.rows, found.kept) == (0, 60, None)
    assert found.next[:2] == ("train 3 of 3 proxies", "score 6 of 6 fragments")
    assert found.settings["keep"] == 0.5
    assert found.seconds_since_last_file < 60


def test_a_half_done_run(tmp_path):
    corpus, out = begin(tmp_path)
    for fragment in corpus.fragments[:4]:
        commit(out / "scores", fragment, bad=1)
    commit(out / "scores", open_corpus(CorpusConfig(input=corpus.root)).fragments[0])  # another cut
    (out / "scores" / ".writing-0a0a0a0a-x.parquet").write_bytes(b"half")
    (out / "scores" / "_fit.json").write_text("{}")
    (out / "proxy").mkdir()
    (out / "proxy" / "seed-0.safetensors").write_bytes(b"")
    (out / "proxy" / "seed-0.safetensors.json").write_text("{}")
    found = status(str(out))
    assert (found.proxies.done, found.proxies.total) == (1, 3)
    assert (found.fragments.done, found.fragments.total) == (4, 6)
    assert (found.rows_scored, found.rows_bad) == (40, 4)
    assert found.next[:2] == ("train 2 of 3 proxies", "score 2 of 6 fragments")
    assert "40 of 60 scored, 4 of them bad" in found.text()


def test_a_finished_run(tmp_path):
    corpus, out = begin(tmp_path, checkpoint=["weights.pt"])
    for fragment in corpus.fragments:
        commit(out / "scores", fragment)
        commit(out / "decisions", fragment)
    commit(out / "quarantine", corpus.fragments[0], rows=3)
    (out / "data").mkdir()
    (out / "data" / "part-00000.parquet").write_bytes(b"x")
    manifest = {"rows": {"kept": 30}, "outputs": [{"path": "data/part-00000.parquet"}]}
    (out / MANIFEST).write_text(json.dumps(manifest))
    found = status(str(out))
    assert found.finished
    assert (found.kept, found.quarantined) == (30, 3)
    assert (found.parts.done, found.parts.total) == (1, 1)
    assert (found.decisions.done, found.proxies.total) == (6, 0)
    assert found.next == ("do nothing: the run is finished",)
    assert "finished, last file" in found.text()
    assert "30 kept" in found.text()


def test_a_changed_and_a_vanished_corpus(tmp_path):
    corpus, out = begin(tmp_path)
    commit(out / "scores", corpus.fragments[0])
    os.utime(tmp_path / "in" / "1.parquet", ns=(1, 1))
    found = status(str(out))
    assert found.corpus == "changed"
    assert "--overwrite" in found.next[0]
    for path in (tmp_path / "in").iterdir():
        path.unlink()
    found = status(str(out))
    assert found.corpus.startswith("unreadable: input=")
    assert found.fragments.total is found.rows is None
    assert found.rows_scored == 10
    assert found.next == ("fail: the corpus cannot be read",)
    assert "1 scored" in found.text()


def test_a_cut_of_given_scores(tmp_path):
    scores = tmp_path / "earlier"
    corpus, out = begin(tmp_path, scores=str(scores))
    found = status(str(out))
    assert (found.fragments.done, found.proxies.total) == (0, 0)
    assert found.next == ("refuse: the score table lacks 6 of 6 fragments",)
    for fragment in corpus.fragments:
        commit(scores, fragment)
    found = status(str(out))
    assert (found.fragments.done, found.rows_scored) == (6, 60)
    assert len(found.next) == 1


def test_metrics_without_a_model_need_no_proxy(tmp_path):
    _, out = begin(tmp_path, metric=["random"])
    assert status(str(out)).proxies.total == 0


def test_a_score_file_that_is_none_is_not_counted(tmp_path):
    corpus, out = begin(tmp_path)
    commit(out / "scores", corpus.fragments[0])
    (out / "scores" / f"{corpus.fragments[1].name}.parquet").write_bytes(b"nothing")
    pq.write_table(pa.table({"a": [1]}), out / "scores" / f"{corpus.fragments[2].name}.parquet")
    assert status(str(out)).fragments.done == 1


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda _: None, "no such directory"),
        (lambda path: path.mkdir(), "is empty"),
        (lambda path: (path.mkdir(), (path / "a.txt").write_text("x")), "not a run's output"),
        (lambda path: (path.mkdir(), (path / "run.json").write_text("{")), "not a run's output"),
        (lambda path: (path.mkdir(), (path / "run.json").write_text("[1]")), "not a run's output"),
        (lambda path: path.write_text("x"), "not a run's output"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path, make, reason):
    make(tmp_path / "out")
    with pytest.raises(ConfigError, match=rf"status='.*out': .*{reason}"):
        status(str(tmp_path / "out"))


def test_by_uri(tmp_path):
    corpus, out = begin(tmp_path)
    commit(out / "scores", corpus.fragments[0])
    found = status(f"file://{out}")
    assert found.fragments.done == 1
    assert found.output == f"file://{out}"
    with pytest.raises(ConfigError, match="status="):
        status(f"file://{tmp_path}/none")


def test_the_job_says_it_without_ray(tmp_path):
    _, out = begin(tmp_path)
    script = (
        "import runpy, sys; sys.argv = ['prune.py', '--status', sys.argv[1], '--json']\n"
        "try: runpy.run_path('jobs/prune.py', run_name='__main__')\n"
        "finally: assert 'ray' not in sys.modules"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, str(out)], cwd=ROOT, capture_output=True, text=True,
        check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    *_, last = ran.stdout.splitlines()
    content = json.loads(last)
    assert content["exit_code"] == 0
    assert content["status"]["fragments"] == {"done": 0, "total": 6}
