"""What a run is called in metrics, and what is counted."""

from __future__ import annotations

import pytest

from dataprune_ray import telemetry


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("pruned/digits", "pruned/digits"),
        ("pruned/digits/scores", "pruned/digits"),
        ("pruned/digits/", "pruned/digits"),
        ("s3://bucket/out/scores", "s3://bucket/out"),
        ("s3://key:secret@bucket/out/scores?region=x", "s3://bucket/out"),
        ("s3://key:secret@bucket/out?access_key=y", "s3://bucket/out"),
    ],
)
def test_a_run_is_named_by_its_output_without_credentials(path, name):
    assert telemetry.run_name(path) == name


@pytest.fixture
def counted(monkeypatch):
    """What counters and gauges are told, instead of telling Ray."""
    told = []

    class Fake:
        def __init__(self, name, description, tag_keys):
            assert description.endswith(".")
            self.name, self.tag_keys = name, tag_keys

        def inc(self, value, tags):
            assert value > 0
            assert set(tags) == set(self.tag_keys)
            told.append((self.name, value, tags["run"]))

        def set(self, value, tags):
            assert set(tags) == set(self.tag_keys)
            told.append((self.name, value, tags["run"], tags["stage"]))

    monkeypatch.setattr(telemetry, "Counter", Fake)
    monkeypatch.setattr(telemetry, "Gauge", Fake)
    caches = (telemetry._counter, telemetry._stage_seconds)
    for each in caches:
        each.cache_clear()
    yield told
    for each in caches:
        each.cache_clear()


def test_each_count_has_its_metric(counted):
    telemetry.count_scored("r", 5)
    telemetry.count_quarantined("r", 2)
    telemetry.count_written("r", 3, 700)
    telemetry.set_stage_seconds("r", "score", 1.5)
    assert counted == [
        ("dataprune_rows_scored", 5, "r"),
        ("dataprune_rows_quarantined", 2, "r"),
        ("dataprune_rows_kept", 3, "r"),
        ("dataprune_bytes_written", 700, "r"),
        ("dataprune_stage_seconds", 1.5, "r", "score"),
    ]


def test_nothing_is_no_count(counted):
    telemetry.count_scored("r", 0)
    telemetry.count_quarantined("r", 0)
    telemetry.count_written("r", 0, 300)
    assert counted == [("dataprune_bytes_written", 300, "r")]
