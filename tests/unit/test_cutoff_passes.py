"""Passes of the exact cut that only large populations take, against sorting."""

from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataprune_ray import cutoff, schema
from dataprune_ray.cutoff import Block, MemoryPopulation, kernels, selection
from dataprune_ray.io.scores import FilePopulation, group_codes
from dataprune_ray.strategies.stratified import places_of

EXTREMES = np.array(
    [-3.4028235e38, -1.5, -1e-45, -0.0, 0.0, 1e-45, 1e-38, 0.5, 1, 3.4028235e38], np.float32
)


def reduced(scores, hashes, codes, names):
    """A population of three blocks, one of them empty."""
    at = len(scores) // 3
    parts = [slice(0, at), slice(at, at), slice(at, None)]
    return MemoryPopulation([Block(scores[p], hashes[p], codes[p]) for p in parts], names)


def kept(cut, scores, hashes, end):
    if not cut.quota:
        return np.zeros(len(scores), bool)
    beyond = scores > np.float32(cut.score) if end == "high" else scores < np.float32(cut.score)
    return beyond | ((scores == np.float32(cut.score)) & (hashes <= np.uint64(cut.hash_max)))


def by_sorting(scores, hashes, quota, end):
    score = scores.astype(np.float64) * (-1 if end == "high" else 1)
    return set(np.lexsort((hashes, score))[:quota])


@pytest.mark.parametrize("end", ["high", "low"])
@pytest.mark.parametrize("gathered", [0, 1_500, 1 << 22])
@pytest.mark.parametrize("groups", [1, 4, 700])
def test_groups_of_extreme_and_tied_scores(end, gathered, groups, monkeypatch):
    monkeypatch.setattr(selection, "_MAX_GATHERED", gathered)
    monkeypatch.setattr(selection, "_MAX_BINS", 1 << 12)
    rng = np.random.default_rng(groups)
    rows = 9_000
    scores = rng.standard_normal(rows).astype(np.float32)
    tied = rng.random(rows) < 0.5
    scores[tied] = rng.choice(EXTREMES, tied.sum())
    hashes = cutoff.seeded_hash(np.arange(rows, dtype=np.uint64), 3)
    codes = rng.integers(0, max(groups - 1, 1), rows).astype(np.int32)  # the last has no rows
    names = ("",) if groups == 1 else tuple(map(str, range(groups)))
    sizes = np.bincount(codes, minlength=groups)
    quotas = [int(size * share) for size, share in zip(sizes, rng.random(groups), strict=True)]
    source = reduced(scores, hashes, codes, names)
    opening = cutoff.open_cut(source, end)
    assert opening.sizes == sizes.tolist()
    cuts = cutoff.exact_cut(source, quotas, end=end, by_score=True)
    assert cutoff.exact_cut(source, quotas, end=end, by_score=True, opening=opening) == cuts
    by_hash = cutoff.exact_cut(source, quotas, end=end, by_score=False, sizes=sizes.tolist())
    for code, cut in enumerate(cuts):
        mine = codes == code
        own, own_hashes = scores[mine], hashes[mine]
        expected = by_sorting(own, own_hashes, quotas[code], end)
        assert set(np.flatnonzero(kept(cut, own, own_hashes, end))) == expected
        bound = np.uint64(by_hash[code].hash_max)
        assert np.count_nonzero(own_hashes <= bound) * (quotas[code] > 0) == quotas[code]


@pytest.mark.parametrize("crowd", [0, 2**63, 2**64 - 3_000])
@pytest.mark.parametrize("gathered", [200, 1 << 22])
def test_hashes_that_are_not_uniform_are_cut_exactly(crowd, gathered, monkeypatch):
    monkeypatch.setattr(selection, "_MAX_GATHERED", gathered)
    hashes = np.uint64(crowd) + np.random.default_rng(0).permutation(3_000).astype(np.uint64)
    source = MemoryPopulation([Block(np.ones(3_000, np.float32), hashes)])
    for quota in (1, 1_000, 1_500, 2_999, 3_000):
        for found in (
            cutoff.exact_cut(source, [quota], end="high", by_score=True),
            cutoff.exact_cut(source, [quota], end="high", by_score=False, sizes=[3_000]),
        ):
            assert np.count_nonzero(hashes <= np.uint64(found[0].hash_max)) == quota


def test_refusals():
    source = MemoryPopulation([Block(np.ones(3, np.float32), np.arange(3, dtype=np.uint64))])
    with pytest.raises(ValueError, match="exceeds the 3 rows"):
        cutoff.exact_cut(source, [4], end="high", by_score=False, sizes=[3])
    opening = cutoff.open_cut(source, "low")
    with pytest.raises(ValueError, match="opening is of the low end"):
        cutoff.exact_cut(source, [1], end="high", by_score=True, opening=opening)


class Counting:
    """A population that counts how often it is reduced, and which columns were read."""

    def __init__(self, source):
        self.source, self.groups, self.read = source, source.groups, []

    def reduce(self, kernel, merge, columns):
        self.read.append(set(columns))
        return self.source.reduce(kernel, merge, columns)


def test_a_tied_cut_of_many_groups_takes_three_passes():
    rng = np.random.default_rng(5)
    scores = rng.random(50_000, dtype=np.float32)
    scores[::3] = 0.5
    hashes = cutoff.seeded_hash(np.arange(50_000, dtype=np.uint64), 0)
    codes = rng.integers(0, 100, 50_000).astype(np.int32)
    source = Counting(MemoryPopulation([Block(scores, hashes, codes)], tuple(map(str, range(100)))))
    quotas = (np.bincount(codes) // 2).tolist()
    cutoff.exact_cut(source, quotas, end="high", by_score=True)
    assert source.read == [
        {"scores", "groups"},
        {"scores", "groups"},
        {"scores", "hashes", "groups"},
    ]


@pytest.mark.parametrize("bins", [2, 3, 26, 500, 40_000, 1 << 16])
def test_bins_of_cells_ascend_without_gaps(bins):
    table = kernels.bins_of_cells(bins)
    assert set(np.diff(table)) <= {0, 1}
    assert table[0] == 0
    assert table[-1] < bins


@pytest.mark.parametrize("end", ["high", "low"])
def test_rank_keys_ascend_from_the_kept_end(end):
    for scores in (EXTREMES, EXTREMES[4:], EXTREMES[:0]):
        expected = cutoff.ordered_key(scores)
        expected = ~expected if end == "high" else expected
        np.testing.assert_array_equal(kernels.rank_key(scores, end), expected)
    with pytest.raises(ValueError, match="finite"):
        kernels.rank_key(np.array([0, np.nan], np.float32), end)
    with pytest.raises(ValueError, match="finite"):
        kernels.rank_key(np.array([0, np.inf], np.float32), end)


def test_counts_are_pickled_without_empty_bins():
    rows = np.zeros(100_000, np.int64)
    rows[[3, 99_999]] = [7, 2**40]
    text = pickle.dumps(kernels.Counts(rows))
    assert len(text) < 1_000
    np.testing.assert_array_equal(pickle.loads(text).rows, rows)


@pytest.mark.parametrize(
    "starts",
    [
        np.linspace(-1, 1, 41, dtype=np.float32),
        np.array([0.0], np.float32),
        np.array([0, 1e-45, 1, 2, 1e30], np.float32),
        np.nextafter(np.float32(1), np.float32(2)) * np.ones(1, np.float32),
    ],
)
def test_places_are_those_of_bisection(starts):
    rng = np.random.default_rng(0)
    around = np.concatenate([starts, np.nextafter(starts, np.float32(-9)), EXTREMES])
    scores = np.concatenate([around, rng.uniform(-2, 2, 500).astype(np.float32)])
    expected = np.searchsorted(starts, scores, side="right") - 1
    np.testing.assert_array_equal(places_of(scores, starts), expected)


def score_file(path, labels, scores, errors, **options):
    rows = len(labels)
    table = pa.table(
        {
            schema.ROW_HASH: cutoff.seeded_hash(np.arange(rows, dtype=np.uint64), rows),
            schema.LABEL: labels,
            "el2n": pa.array(scores, mask=errors),
            schema.ERROR: pa.array(np.where(errors, "bad", ""), mask=~errors),
        }
    )
    pq.write_table(table, path, **options)
    return str(path)


@pytest.mark.parametrize("kind", ["int64", "string"])
def test_files_with_and_without_statistics_or_dictionaries(kind, tmp_path):
    rng = np.random.default_rng(1)
    paths, seen = [], []
    for number, options in enumerate(
        [{}, {"write_statistics": False}, {"use_dictionary": False, "row_group_size": 100}]
    ):
        for bad in (0.0, 0.1):
            labels = rng.choice([-7, 3, 70_000], 400)
            scores = rng.random(400, dtype=np.float32).round(1)
            errors = rng.random(400) < bad
            path = tmp_path / f"{number}-{bad}.parquet"
            given = pa.array(labels.astype(str) if kind == "string" else labels)
            paths.append(score_file(path, given, scores, errors, **options))
            seen.append((labels[~errors], scores[~errors]))
    labels, scores = map(np.concatenate, zip(*seen, strict=True))
    names = ("-7", "3", "5", "70000")
    source = FilePopulation(paths, "el2n", schema.LABEL, names)
    sizes = [int((labels == int(name)).sum()) for name in names]
    assert cutoff.group_counts(source).tolist() == sizes
    assert cutoff.group_counts(cutoff.pooled(source)).tolist() == [len(scores)]
    cuts = cutoff.exact_cut(source, [n // 3 for n in sizes], end="low", by_score=True)
    for name, size, cut in zip(names, sizes, cuts, strict=True):
        if size:
            assert cut.score == np.sort(scores[labels == int(name)])[size // 3 - 1]


def test_integer_labels_far_apart_and_unknown():
    far = pa.array([5, -(2**62), 2**62])
    codes = {"5": 1, str(-(2**62)): 0, str(2**62): 2}
    assert group_codes(far, codes, "f").tolist() == [1, 0, 2]
    assert group_codes(pa.array([5, 5]), {"5": 4}, "f").tolist() == [4, 4]
    with pytest.raises(Exception, match="labels without a group: 6"):
        group_codes(pa.array([5, 6]), {"5": 4}, "f")
