from dataprune_ray import progress
from dataprune_ray.progress import Progress


def test_rate_and_time_left_without_start_up_and_reused_rows(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = Progress("scoring", "rows", 10_000)
    shown.add(2_000, reused=True)
    now[0] = 150.0
    shown.add(1_000)  # the first result ends the start-up
    now[0] = 160.0
    shown.add(1_000)
    assert shown.line(160.0) == "scoring: 4,000 of 10,000 rows (40 %), 100 rows/s, 0:01:00 left"


def test_unknown_total():
    shown = Progress("scoring", "rows", None)
    shown.add(5)
    assert shown.line(shown._started + 1).startswith("scoring: 5 rows, ")
