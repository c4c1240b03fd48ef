"""Explanations against brute force: percentiles, ranks, flips, nearest rows, what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import percentileofscore

from dataprune_ray import schema
from dataprune_ray.config import PruneConfig
from dataprune_ray.cutoff import REASONS, Block, MemoryPopulation, seeded_hash
from dataprune_ray.errors import BadDataError, ConfigError
from dataprune_ray.explaining import explain, neighbours, rescues
from dataprune_ray.explaining.runs import open_run
from dataprune_ray.features import FeatureSpec, LabelSpec
from dataprune_ray.io import open_corpus
from dataprune_ray.io.identity import position_hashes
from dataprune_ray.quality.rescue import RESCUED
from dataprune_ray.strategies import STRATEGIES, ScoreInfo, compile_rule

ROOT = Path(__file__).parents[2]
METRICS = ("el2n", "margin")
INFO = ScoreInfo("el2n", "high", 0.0, 1.0, ("margin", "low"))
FILES, PER_FILE, SEED = 3, 20, 5
ROWS = FILES * PER_FILE
BAD = (7, 33)
GOOD = np.setdiff1d(np.arange(ROWS), BAD)
LABELS = np.arange(ROWS) % 3 % 2
NAMES = ("0", "1")


def values():
    """Features (60, 4), and el2n and margin of every row; el2n has ties."""
    generator = np.random.default_rng(1)
    features = generator.normal(size=(ROWS, 4)).astype(np.float32)
    el2n = generator.integers(0, 12, ROWS).astype(np.float32) / np.float32(12)
    return features, {"el2n": el2n, "margin": generator.random(ROWS, np.float32)}


FEATURES, SCORES = values()
HASHES = np.concatenate([position_hashes(f"{i}.parquet", 0, PER_FILE) for i in range(FILES)])
PLACED = seeded_hash(HASHES, SEED)


def memory(grouped):
    """The scored rows in memory: what the explanations are held against."""
    codes = LABELS[GOOD].astype(np.int32)
    others = {name: scores[GOOD] for name, scores in SCORES.items()}
    block = Block(SCORES["el2n"][GOOD], PLACED[GOOD], codes, others=others)
    return MemoryPopulation([block], NAMES if grouped else ("",)), block


def place(row):
    return f"{row // PER_FILE}.parquet:{row % PER_FILE}"


def write_corpus(folder):
    folder.mkdir()
    for index in range(FILES):
        part = slice(index * PER_FILE, (index + 1) * PER_FILE)
        x = pa.FixedSizeListArray.from_arrays(pa.array(FEATURES[part].reshape(-1)), 4)
        table = pa.table({"x": x, "label": LABELS[part]})
        pq.write_table(table, folder / f"{index}.parquet", row_group_size=10)


def finished(tmp_path, *, keys=None, **settings):
    """A finished run's output, made without running one."""
    if not (tmp_path / "in").exists():
        write_corpus(tmp_path / "in")
        weights = {"1.weight": torch.ones(2, 4), "1.bias": torch.zeros(2)}
        torch.save(weights, tmp_path / "linear.pt")
    out = tmp_path / "out"
    config = PruneConfig.from_flat(
        {"input": str(tmp_path / "in"), "output": str(out), "fragment_rows": 10, "seed": SEED}
        | {"checkpoint": str(tmp_path / "linear.pt"), "metric": list(METRICS)}
        | settings
    )
    strategy = STRATEGIES[config.select.strategy]
    rule = compile_rule(strategy, memory(strategy.needs_labels)[0], config.select, INFO).rule
    corpus = open_corpus(config.corpus)
    for fragment in corpus.fragments:
        at = [
            int(s.file[0]) * PER_FILE + s.start + i for s in fragment.spans for i in range(s.rows)
        ]
        write_fragment(out, fragment.name, np.array(at), rule, keys)
    plan = {
        "corpus": corpus.fingerprint(),
        "id_column": None,
        "features": asdict(FeatureSpec("tensor", ("x",), (4,))),
        "label": asdict(LabelSpec("label", classes=NAMES, names=("even", "odd"))),
        "metrics": list(METRICS),
        "model": "linear",
        "fragments": [fragment.to_json() for fragment in corpus.fragments],
    }
    (out / "scores" / "_plan.json").write_text(json.dumps(plan))
    manifest = {
        "rows": {"in": ROWS, "kept": int(kept_by(rule).sum()), "quarantined": len(BAD)},
        "keep": {"requested": config.select.keep if strategy.uses_keep else None},
        "metric": "el2n",
        "strategy": strategy.name,
        "rule": rule.to_json(),
        "settings": config.flat(),
    }
    (out / "manifest.json").write_text(json.dumps(manifest))
    return str(out), rule


def kept_by(rule):
    return rule.apply(memory(grouped=True)[1])


def write_fragment(out, name, at, rule, keys):
    for folder in ("scores", "decisions"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    bad = np.isin(at, BAD)
    identity = {
        "file": pa.array([f"{row // PER_FILE}.parquet" for row in at]).dictionary_encode(),
        "row": at % PER_FILE,
        "key": pa.array([None if keys is None else keys[row] for row in at], pa.string()),
        "label": LABELS[at],
    }
    scored = identity | {m: pa.array(SCORES[m][at], mask=bad) for m in METRICS}
    scored |= {"row_hash": HASHES[at]}
    scored |= {"error": pa.array(["broken image" if b else None for b in bad], pa.string())}
    layout = schema.score_schema(pa.int64(), METRICS)
    table = pa.table({n: scored[n] for n in layout.names}, schema=layout)
    pq.write_table(table, out / "scores" / f"{name}.parquet")
    good = at[~bad]
    others = {metric: scores[good] for metric, scores in SCORES.items()}
    codes = LABELS[good].astype(np.int32)
    block = Block(SCORES["el2n"][good], PLACED[good], codes, others=others)
    decided = {n: table.filter(pa.array(~bad))[n] for n in identity}
    decided |= {"score": SCORES["el2n"][good], "kept": rule.apply(block)}
    decided |= {"reason": pa.array([REASONS[c] for c in rule.reason(block)]).dictionary_encode()}
    decided |= {"weight": np.ones(len(good), np.float32)}
    layout = schema.decision_schema(pa.int64())
    table = pa.table({n: decided[n] for n in layout.names}).cast(layout)
    pq.write_table(table, out / "decisions" / f"{name}.parquet")


def ranks(scores, end, mask):
    """Places of the rows in ``mask`` by score from an end, then hash, 1 first."""
    order = np.lexsort((PLACED[mask], -scores[mask] if end == "high" else scores[mask]))
    found = np.zeros(ROWS, int)
    found[np.flatnonzero(mask)[order]] = np.arange(1, mask.sum() + 1)
    return found


@pytest.mark.parametrize("end", ["high", "low"])
def test_percentiles_and_ranks(tmp_path, end):
    out, rule = finished(tmp_path, keep=0.4, keep_end=end)
    good = np.isin(np.arange(ROWS), GOOD)
    rank = ranks(SCORES["el2n"], end, good)
    kept = kept_by(rule)
    for found, row in zip(explain(out, [place(r) for r in GOOD]), GOOD, strict=True):
        assert (found.file, found.row, found.label) == (*place_parts(row), str(LABELS[row]))
        assert found.class_name == ("even", "odd")[LABELS[row]]
        for metric in found.scores:
            own = SCORES[metric.metric]
            peers = own[good & np.equal(LABELS, LABELS[row])]
            assert metric.score == own[row]
            assert metric.percentile == pytest.approx(
                percentileofscore(own[good], own[row], kind="mean")
            )
            assert metric.class_percentile == pytest.approx(
                percentileofscore(peers, own[row], kind="mean")
            )
        decision = found.decision
        assert (decision.rank, decision.rows) == (rank[row], len(GOOD))
        assert decision.kept == kept[list(GOOD).index(row)] == (rank[row] <= 23)
        assert decision.reason.startswith("kept" if decision.kept else "dropped")
        assert decision.rule == rule.explanation
        assert decision.cutoff == rule.cutoffs[""]
        assert decision.distance == pytest.approx(SCORES["el2n"][row] - rule.cutoffs[""])


def place_parts(row):
    return f"{row // PER_FILE}.parquet", row % PER_FILE


SELECT = {"keep": 0.45, "threshold": 0.5, "beta": 0.2, "bins": 4}
BY_KEEP = [name for name, strategy in STRATEGIES.items() if strategy.uses_keep]


def state(name, keep, **settings):
    """What is kept at a fraction, bool (58,), by the strategy itself; None where it refuses."""
    config = PruneConfig.from_flat({**SELECT, **settings, "strategy": name, "keep": keep}).select
    population, block = memory(STRATEGIES[name].needs_labels)
    config = config.model_copy(update={"seed": SEED})
    try:
        return compile_rule(STRATEGIES[name], population, config, INFO).rule.apply(block)
    except ConfigError:
        return None


@pytest.mark.parametrize("name", BY_KEEP)
def test_the_nearest_fraction_that_flips(tmp_path, name):
    out, _ = finished(tmp_path, strategy=name, **SELECT)
    states = {step: state(name, step / 1000) for step in [*range(0, 1000, 20), 450, 1000]}
    turned = 0
    for index, found in enumerate(explain(out, [place(r) for r in GOOD])):
        kept = found.decision.kept
        assert kept == states[450][index]
        turns = [s for s, now in states.items() if now is not None and now[index] != kept]
        if found.flip.keep is None:
            assert found.flip.beside is None
            assert not turns
            continue
        turned += 1
        step, beside = round(found.flip.keep * 1000), round(found.flip.beside * 1000)
        assert (found.flip.keep, found.flip.beside) == (step / 1000, beside / 1000)
        assert beside == (step + 1 if kept else step - 1)
        assert state(name, step / 1000)[index] != kept
        assert state(name, beside / 1000)[index] == kept
        assert all(s <= step if kept else s >= step for s in turns)
        assert repr(found.flip.keep) in found.flip.text
    assert turned > len(GOOD) / 2


@pytest.mark.parametrize("name", [n for n in STRATEGIES if n not in BY_KEEP])
def test_no_fraction_flips_where_keep_is_not_looked_at(tmp_path, name):
    out, rule = finished(tmp_path, strategy=name, threshold=0.5)
    low, high = int(GOOD[SCORES["el2n"][GOOD].argmin()]), int(GOOD[SCORES["el2n"][GOOD].argmax()])
    dropped, kept = explain(out, [place(low), place(high)])
    assert (dropped.decision.kept, kept.decision.kept) == (False, True)
    assert dropped.flip.keep is kept.flip.keep is None
    assert "below the cutoff, whatever keep is" in dropped.flip.text
    assert dropped.decision.distance == SCORES["el2n"][low] - rule.cutoffs[""] < 0


def test_rows_that_a_class_floor_keeps_do_not_flip(tmp_path):
    out, _ = finished(tmp_path, strategy="class_balanced", keep=0.3, class_floor=4)
    found = explain(out, [place(row) for row in GOOD])
    first = [e for e in found if e.decision.rank <= 4]
    assert len(first) == 8
    assert all(e.flip.keep is None and "whatever keep" in e.flip.text for e in first)
    assert all(e.flip.keep is not None for e in found if e.decision.rank > 4)
    assert found[0].decision.rows == (LABELS[GOOD] == LABELS[GOOD[0]]).sum()
    assert "within class" in found[0].text()


def test_a_fraction_between_the_steps(tmp_path):
    out, _ = finished(tmp_path, keep=1 / 3)
    for index, found in enumerate(explain(out, [place(row) for row in GOOD])):
        assert state("ratio", found.flip.keep)[index] != found.decision.kept
        assert state("ratio", found.flip.beside)[index] == found.decision.kept
        assert (found.flip.keep < 1 / 3) == found.decision.kept


def test_a_rule_that_the_settings_do_not_give_is_said(tmp_path):
    out, _ = finished(tmp_path, keep=0.5)
    manifest = json.loads(Path(out, "manifest.json").read_text())
    manifest["keep"]["requested"] = 0.2
    Path(out, "manifest.json").write_text(json.dumps(manifest))
    (found,) = explain(out, [place(0)])
    assert found.flip.keep is None
    assert "not known" in found.flip.text


def test_chosen_by_hash_within_a_score(tmp_path):
    out, rule = finished(tmp_path, strategy="stratified", keep=0.3, bins=2)
    found = explain(out, [place(row) for row in GOOD])
    for row, one in zip(GOOD, found, strict=True):
        score = SCORES["el2n"][row]
        (band,) = [b for b in rule.bands if b.score_low <= score <= b.score_high]
        assert one.decision.hash_limit == pytest.approx(band.hash_max / 2**64)
        assert one.decision.hash_share == pytest.approx(int(PLACED[row]) / 2**64)
        assert one.decision.kept == (one.decision.hash_share <= one.decision.hash_limit)
        assert one.decision.cutoff is None


def test_cut_as_noise_and_drawn_by_weight(tmp_path):
    out, rule = finished(tmp_path, strategy="weighted", keep=0.3, beta=0.2)
    found = explain(out, [place(row) for row in GOOD])
    noise = [e for e in found if e.decision.reason == "dropped: cut as noise"]
    assert len(noise) == 12
    assert sorted(e.decision.rank for e in noise) == list(range(1, 13))
    bounds = {b.score_low for b in rule.noise}
    assert all(e.decision.cutoff in bounds and e.decision.distance >= 0 for e in noise)
    rest = [e for e in found if e not in noise]
    keys = rule.draw.keys(memory(grouped=True)[1])[[e not in noise for e in found]]
    assert [e.decision.rank for e in rest] == (np.argsort(np.argsort(-keys)) + 1).tolist()
    assert all(e.decision.kept == (e.decision.rank <= 17) for e in rest)
    assert {(e.decision.rows, e.decision.cutoff, e.decision.hash_limit) for e in rest} == {
        (46, None, None)
    }


@pytest.mark.parametrize("name", ["ratio", "random", "class_balanced", "weighted"])
def test_rows_that_are_screened_out_and_the_ranks_of_the_others(tmp_path, name):
    changes = {"noise_cut": 0.25, "keep": 0.4}
    out, rule = finished(tmp_path, strategy=name, noise_metric="margin", **changes)
    found = explain(out, [place(row) for row in GOOD])
    margin = SCORES["margin"][GOOD]
    lowest = np.argsort(np.argsort(margin)) < 15  # 0.25 of 58 rows, rounded; no ties
    assert [e.decision.screened for e in found] == lowest.tolist()
    for score, one in zip(margin[lowest], [e for e in found if e.decision.screened], strict=True):
        assert one.decision.reason == "dropped: cut as noise"
        assert (one.decision.metric, one.decision.rows) == ("margin", 58)
        assert one.decision.rank == 1 + (margin < score).sum() <= 15
        assert one.decision.cutoff == np.sort(margin)[14]
        assert one.decision.distance == pytest.approx(score - np.sort(margin)[14])
        assert one.flip.keep is None
        assert "before keep is looked at" in one.flip.text
    rest = [e for e in found if not e.decision.screened]
    assert sum(e.decision.kept for e in rest) == rule.apply(memory(grouped=True)[1]).sum()
    ranks_ = {(e.label if name == "class_balanced" else "", e.decision.rank) for e in rest}
    assert len(ranks_) == len(rest)
    assert max(rank for _, rank in ranks_) == max(e.decision.rows for e in rest) <= 43
    for one in rest:
        position = list(GOOD).index(int(one.file[0]) * PER_FILE + one.row)
        assert one.flip.keep is not None
        turned = state(name, one.flip.keep, noise_cut=0.25, beta=0.0)
        beside = state(name, one.flip.beside, noise_cut=0.25, beta=0.0)
        assert turned[position] != one.decision.kept == beside[position]


def test_a_share_that_was_estimated_is_used_again(tmp_path):
    out, rule = finished(tmp_path, noise_cut=0.25, noise_metric="margin", keep=0.4)
    path = Path(out, "manifest.json")
    manifest = json.loads(path.read_text())
    manifest["settings"]["noise_cut"] = "auto"
    path.write_text(json.dumps(manifest | {"estimated": {"noise_cut": 0.25}}))
    free = GOOD[~rule.screened(memory(grouped=True)[1])]
    found = explain(out, [place(row) for row in free[:5]])
    assert all(one.flip.keep is not None for one in found)


def nearest_by_hand(row, among, count=5):
    unit = FEATURES.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    distance = {other: 1 - unit[row] @ unit[other] for other in among if other != row}
    return [(o, distance[o]) for o in sorted(distance, key=distance.get)[:count]]


def check_nearest(found, row, among):
    expected = nearest_by_hand(row, among)
    assert [f"{n.file}:{n.row}" for n in found.nearest.rows] == [place(o) for o, _ in expected]
    for neighbour, (other, distance) in zip(found.nearest.rows, expected, strict=True):
        assert neighbour.distance == pytest.approx(distance, abs=1e-6)
        assert neighbour.label == str(LABELS[other])
        assert neighbour.score == SCORES["el2n"][other]


def test_nearest_kept_rows(tmp_path):
    out, rule = finished(tmp_path)
    kept = GOOD[kept_by(rule)]
    for row, found in zip(GOOD, explain(out, [place(r) for r in GOOD]), strict=True):
        check_nearest(found, row, kept)
        assert found.nearest.searched == found.nearest.kept == len(kept)
    assert "sampled" not in found.text()


def test_nearest_in_a_sample_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(neighbours, "SEARCHED", 9)
    out, rule = finished(tmp_path)
    kept = GOOD[kept_by(rule)]
    salted = seeded_hash(HASHES[kept], neighbours._SALT)
    sample = kept[np.argsort(salted)[:9]]
    assert len(set(sample // PER_FILE)) > 1
    for row, found in zip(GOOD, explain(out, [place(r) for r in GOOD]), strict=True):
        check_nearest(found, row, sample)
        assert (found.nearest.searched, found.nearest.kept) == (9, len(kept))
    assert f"among 9 of the {len(kept)} kept rows, sampled by hash" in found.text()


def test_without_corpus_or_model_the_rest_is_said(tmp_path):
    out, _ = finished(tmp_path)
    before = explain(out, [place(0)])[0]
    pq.write_table(pa.table({"x": [1.0]}), tmp_path / "in" / "3.parquet")
    (found,) = explain(out, [place(0)])
    assert "changed since the run" in found.nearest.note
    assert (found.decision, found.flip) == (before.decision, before.flip)
    (tmp_path / "linear.pt").unlink()
    (found,) = explain(out, [place(0)])
    assert "linear.pt" in found.nearest.note
    assert "not known: checkpoint=" in found.text()


def test_by_key_and_why_quarantined(tmp_path):
    keys = [f"id-{row}" for row in range(ROWS)]
    keys[4] = keys[44] = "twin"
    keys[5] = "0.parquet:6"
    out, _ = finished(tmp_path, keys=keys)
    asked = ["id-50", "2.parquet:twin", "0.parquet:6", place(33), "id-7"]
    by_key, twin, by_place, bad, bad_too = explain(out, asked)
    assert (by_key.file, by_key.row, by_key.key) == ("2.parquet", 10, "id-50")
    assert (twin.file, twin.row) == ("2.parquet", 4)
    assert (by_place.file, by_place.row, by_place.key) == ("0.parquet", 6, "id-6")
    assert [e.asked for e in (by_key, bad)] == ["id-50", place(33)]
    for found in (bad, bad_too):
        assert found.error == "broken image"
        assert (found.scores, found.decision, found.flip, found.nearest) == ((), None, None, None)
        assert "quarantined broken image" in " ".join(found.text().split())
    with pytest.raises(ConfigError, match=r"explain='twin': 2 rows.*0\.parquet:twin, 2\.parquet"):
        explain(out, ["id-50", "twin"])


def test_a_file_that_is_quarantined_whole(tmp_path):
    out, _ = finished(tmp_path)
    scores = max(Path(out, "scores").glob("*.parquet"))
    table = pq.read_table(scores).slice(0, 1)
    error = table.schema.get_field_index("error")
    table = table.set_column(error, "error", pa.array(["unreadable file"]))
    table = table.set_column(1, "row", pa.array([None], pa.int64()))
    pq.write_table(table, scores)
    for asked in ("2.parquet", "2.parquet:17"):
        (found,) = explain(out, [asked])
        assert (found.file, found.row, found.error) == ("2.parquet", None, "unreadable file")


def test_the_quality_of_a_row_is_shown(tmp_path):
    out, _ = finished(tmp_path)
    Path(out, "quality").mkdir()
    for path in Path(out, "scores").glob("*.parquet"):
        table = pq.read_table(path)
        noisy = [float(v) + 100 for v in table["row"].to_pylist()]
        columns = {"score": table["el2n"], "error": table["error"], "given_probability": noisy}
        columns |= {"top_class": [[1, 0]] * len(table), "cluster": pa.nulls(len(table))}
        pq.write_table(pa.table(columns), Path(out, "quality", path.name))
    good, bad = explain(out, [place(38), place(33)])
    assert good.quality == {"given_probability": 118.0, "top_class": [1, 0], "cluster": None}
    assert bad.quality["given_probability"] == 113.0
    assert "given_probability 118, top_class [1 0]\n" in good.text()


DISTANCES = np.random.default_rng(8).lognormal(0, 1.2, ROWS).astype(np.float32)
CONSISTENT = np.random.default_rng(9).random(ROWS) < 0.7


def kept_with_rescue(keep, share):
    """Rows that a ratio cut with a rescue keeps, those it rescues, and those it would without."""
    quartiles = np.quantile(DISTANCES[GOOD].astype(float), [0.25, 0.75], method="inverted_cdf")
    fence = quartiles[1] + 1.5 * (quartiles[1] - quartiles[0])
    by_score = GOOD[np.lexsort((PLACED[GOOD], -SCORES["el2n"][GOOD]))]
    count = int(keep * len(GOOD) + 0.5)
    plain = by_score[:count]
    eligible = np.flatnonzero(CONSISTENT & (fence < DISTANCES))
    eligible = np.setdiff1d(eligible, [*plain, *BAD])
    farthest = eligible[np.lexsort((PLACED[eligible], -DISTANCES[eligible]))]
    rescued = farthest[: int(share * count)]
    rest = [row for row in by_score if row not in rescued][: count - len(rescued)]
    return {*rest, *rescued}, set(rescued), set(plain), set(eligible), fence


def with_rescue(tmp_path, keep, share):
    """A finished run that rescued rows: decisions by brute force, rules as compiled."""
    out, _ = finished(tmp_path, keep=keep, rescue=share)
    kept, rescued, _, _, fence = kept_with_rescue(keep, share)
    Path(out, "quality").mkdir()
    for path in Path(out, "scores").glob("*.parquet"):
        table = pq.read_table(path)
        at = np.flatnonzero(np.isin(HASHES, table["row_hash"].to_numpy()))
        bad = np.isin(at, BAD)
        predicted = np.where(CONSISTENT, LABELS, 1 - LABELS)[at]
        columns = {n: table[n] for n in ("row_hash", "label", "error")}
        columns |= {"score": table["el2n"], "predicted": pa.array(predicted, mask=bad)}
        columns |= {"neighbour_agreement": pa.array(np.full(len(at), 0.9, np.float32), mask=bad)}
        columns |= {"neighbour_distance": pa.array(DISTANCES[at], mask=bad)}
        pq.write_table(pa.table(columns), Path(out, "quality", path.name))
        good = at[~bad]
        decided = pq.read_table(Path(out, "decisions", path.name)).to_pydict()
        decided["kept"] = [row in kept for row in good]
        put_back = zip(decided["reason"], good, strict=True)
        decided["reason"] = [RESCUED if row in rescued else reason for reason, row in put_back]
        table = pa.table(decided).cast(schema.decision_schema(pa.int64()))
        pq.write_table(table, Path(out, "decisions", path.name))
    cut = rescues.cut_at(open_run(out), keep, fence)
    manifest = json.loads(Path(out, "manifest.json").read_text())
    manifest |= {"rule": cut.rule.to_json(), "rescue": cut.rescue.to_json()}
    Path(out, "manifest.json").write_text(json.dumps(manifest))
    return out


def test_rescued_and_displaced_rows_are_said_to_be_that(tmp_path):
    out = with_rescue(tmp_path, 0.4, 0.1)
    kept, rescued, plain, eligible, _ = kept_with_rescue(0.4, 0.1)
    assert len(rescued) == 2 < len(eligible)
    starts = dict.fromkeys(GOOD, "")
    starts |= dict.fromkeys(eligible, "it could be rescued, but 2 rows")
    starts |= dict.fromkeys(rescued, "the strategy alone does not keep it (dropped: ")
    starts |= dict.fromkeys(plain - kept, "displaced: the strategy alone keeps it (kept: ")
    assert len(plain - kept) == 2
    for row, found in zip(GOOD, explain(out, [place(row) for row in GOOD]), strict=True):
        assert bool(found.decision.rescue) == bool(starts[row]), row
        assert found.decision.rescue.startswith(starts[row]), row
        assert found.decision.kept == (row in kept)
        assert ("\n  rescue      " in found.text()) == bool(starts[row])
    put_back = explain(out, [place(min(rescued))])[0]
    assert f"{DISTANCES[min(rescued)]:.6g} lies beyond" in put_back.decision.rescue


def test_fractions_that_flip_a_cut_with_a_rescue(tmp_path):
    """Both sides of every flip by brute force: what is rescued is found anew at each fraction."""
    out = with_rescue(tmp_path, 0.4, 0.1)
    kept, rescued, plain, _, _ = kept_with_rescue(0.4, 0.1)
    chosen = [*rescued, *(plain - kept), *GOOD[::4]]
    for row, found in zip(chosen, explain(out, [place(row) for row in chosen]), strict=True):
        turned, beside = found.flip.keep, found.flip.beside
        assert abs(turned - beside) == pytest.approx(0.001)
        assert (row in kept_with_rescue(beside, 0.1)[0]) == (row in kept), row
        assert (row in kept_with_rescue(turned, 0.1)[0]) != (row in kept), row
    shutil.rmtree(Path(out, "quality"))
    manifest = json.loads(Path(out, "manifest.json").read_text())
    Path(out, "manifest.json").write_text(json.dumps({**manifest, "rescue": None}))
    assert "quality files" in explain(out, [place(0)])[0].flip.text


@pytest.mark.parametrize("asked", ["3.parquet:0", "0.parquet:20", "nobody", "0.parquet:-1", "1"])
def test_an_unknown_row_is_refused(tmp_path, asked):
    out, _ = finished(tmp_path)
    with pytest.raises(ConfigError, match=f"explain='{asked}': no such row"):
        explain(out, [place(0), asked])


def test_what_is_no_finished_run_is_refused(tmp_path):
    out, _ = finished(tmp_path)
    with pytest.raises(ConfigError, match=r"output=.*none': no such directory"):
        explain(f"{tmp_path}/none", [place(0)])
    with pytest.raises(ConfigError, match=r"not a run's output"):
        explain(str(tmp_path / "in"), [place(0)])
    Path(out, "manifest.json").unlink()
    Path(out, "run.json").write_text(json.dumps({"settings": {}, "inputs": ""}))
    with pytest.raises(ConfigError, match=r"output=.*not finished"):
        explain(out, [place(0)])


def test_a_score_table_elsewhere(tmp_path):
    out, _ = finished(tmp_path, scores=str(tmp_path / "table"))
    with pytest.raises(ConfigError, match=r"scores=.*table': .*--scores"):
        explain(out, [place(0)])
    Path(out, "scores").rename(tmp_path / "table")
    (found,) = explain(out, [place(0)])
    (tmp_path / "table").rename(tmp_path / "moved")
    (again,) = explain(out, [place(0)], scores=str(tmp_path / "moved"))
    assert again == found
    next((tmp_path / "moved").glob("*.parquet")).unlink()
    with pytest.raises(ConfigError, match=r"scores=.*lacks 1 of 6 files"):
        explain(out, [place(0)], scores=str(tmp_path / "moved"))


def test_decisions_of_another_table_are_refused(tmp_path):
    out, _ = finished(tmp_path)
    first, second = sorted(Path(out, "decisions").glob("*.parquet"))[1:3]
    first.write_bytes(second.read_bytes())
    with pytest.raises(BadDataError, match="score table has"):
        explain(out, [place(11)])


def test_the_job_says_it_without_ray(tmp_path):
    out, _ = finished(tmp_path)
    script = (
        "import runpy, sys\n"
        "try: runpy.run_path('jobs/prune.py', run_name='__main__')\n"
        "finally: assert 'ray' not in sys.modules"
    )
    asked = [
        "--explain",
        f"{place(0)},{place(33)}",
        "--explain",
        place(9),
        "--output",
        out,
        "--json",
    ]
    ran = subprocess.run(
        [sys.executable, "-c", script, *asked], cwd=ROOT, capture_output=True, text=True,
        check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    *text, last = ran.stdout.splitlines()
    expected = explain(out, [place(0), place(33), place(9)])
    assert "\n".join(text) == "\n\n".join(e.text() for e in expected)
    assert json.loads(last)["explanations"] == [e.to_json() for e in expected]
