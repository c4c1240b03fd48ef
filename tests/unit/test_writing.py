import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataprune_ray import writing
from dataprune_ray.cutoff import KeepRule
from dataprune_ray.deciding import Decided, WritePlan, identity_sum, reason_kind
from dataprune_ray.io.corpus import Fragment, Span
from dataprune_ray.writing import Part, Written, plan_parts

RULE = KeepRule((), ("",), "", None, "", {})


def fragments(count):
    return tuple(Fragment(i, (Span(f"{i}.parquet", 0, 10, (0, 1)),)) for i in range(count))


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 60))
def test_parts_hold_every_kept_row_once_in_order_and_evenly(kept, rows_per_part):
    parts = plan_parts(fragments(len(kept)), kept, rows_per_part)
    dealt = [
        (piece.fragment.index, row)
        for part in parts
        for piece in part.slices
        for row in range(piece.first, piece.last)
    ]
    assert dealt == [(i, row) for i, count in enumerate(kept) for row in range(count)]
    sizes = [part.rows for part in parts]
    assert [sum(p.last - p.first for p in part.slices) for part in parts] == sizes
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= rows_per_part
    assert [part.name for part in parts] == [f"part-{i:05d}.parquet" for i in range(len(parts))]


def test_written_parts_are_in_their_order_also_past_five_digits(monkeypatch):
    parts = [Part(index, (), 1) for index in (9, 99_999, 100_000, 100_001)]
    monkeypatch.setattr(writing, "remove_other_parts", lambda *_: None)
    monkeypatch.setattr(writing, "_source_style", lambda _: {})
    monkeypatch.setattr(writing, "cluster_cpus", lambda: 2)
    monkeypatch.setattr(
        writing,
        "run_tasks",
        lambda _, items: [Written(f"data/{p.name}", p.rows, 1, "") for p in reversed(items)],
    )
    plan = WritePlan("", "", pa.schema([]), "out", "", "", RULE, None, 0, pa.int64())
    written = writing.write_parts(plan, None, parts, lambda _: None)
    assert [part.path for part in written] == [f"data/{part.name}" for part in parts]


def test_nothing_kept_is_one_empty_part():
    (part,) = plan_parts(fragments(3), [0, 0, 0], 10)
    assert (part.rows, part.slices) == (0, ())


@given(st.lists(st.integers(0, 2**64 - 1), max_size=50), st.randoms())
def test_identity_sum_ignores_order_and_grouping(values, random):
    whole = identity_sum(np.array(values, np.uint64))
    shuffled = list(values)
    random.shuffle(shuffled)
    cut = len(values) // 3
    pieces = [identity_sum(np.array(p, np.uint64)) for p in (shuffled[:cut], shuffled[cut:])]
    assert sum(pieces) % 2**128 == whole


def test_identity_sum_tells_sets_apart():
    base = np.arange(1000, dtype=np.uint64)
    other = base.copy()
    other[7] += np.uint64(5000)
    assert identity_sum(base) != identity_sum(other)
    assert identity_sum(base) != identity_sum(base[:-1])


def test_counts_merge():
    first, second = Decided(rows=3, kept=1, digest=5), Decided(rows=2, kept=2, digest=2**128 - 1)
    first.kept_by_class["a"] += 1
    second.kept_by_class["a"] += 2
    first.merge(second)
    assert (first.rows, first.kept, first.digest) == (5, 3, 4)
    assert first.kept_by_class == {"a": 3}
    assert first.content_hash != Decided().content_hash


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("image cannot be decoded: cannot identify image file", "image cannot be decoded"),
        ("label 17 is outside the 10 classes", "label … is outside the … classes"),
        ("el2n is not finite", "… is not finite"),
    ],
)
def test_reasons_are_counted_by_kind(error, kind):
    assert reason_kind(error) == kind
