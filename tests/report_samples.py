"""Reports to render in tests, and a parser that insists on balanced pages."""

from __future__ import annotations

import html.parser
import io

import numpy as np
from PIL import Image

from dataprune_ray.clock import Scoring, Spent
from dataprune_ray.inference import costs, judge, summarise
from dataprune_ray.quality import Leakage, Quality
from dataprune_ray.report import (
    BadRow,
    ClassCount,
    Gallery,
    GalleryItem,
    ReportData,
    ScoreHistogram,
)
from dataprune_ray.verdict import Comparison, Interval, TrialRun, Tuned, TuneStep

HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>&amp;{{ 7 * 7 }}"
VOID = {"meta", "link", "img", "br", "wbr", "hr", "input"}


class Page(html.parser.HTMLParser):
    """Tags balanced or an error; elements, ids and visible text collected."""

    def __init__(self, source):
        super().__init__(convert_charrefs=True)
        self.stack, self.tags, self.ids, self.attributes, self.words = [], [], [], [], []
        self.feed(source)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.stack.pop()

    def handle_endtag(self, tag):
        assert tag not in VOID
        assert self.stack.pop() == tag, f"</{tag}> closes nothing"
        if tag in {"td", "th", "text", "title", "desc"}:
            self.words.append(" ")

    def handle_data(self, data):
        if "style" not in self.stack:
            self.words.append(data)

    @property
    def text(self):
        return " ".join("".join(self.words).split())


def histogram(kept=(0, 4, 9, 3), dropped=(8, 6, 0, 0), **changes):
    edges = tuple(np.linspace(0.0, 1.0, len(kept) + 1).tolist())
    values = {"metric": "el2n", "edges": edges, "kept": kept, "dropped": dropped}
    return ScoreHistogram(**{**values, "cutoff": 0.375, "kept_end": "high", **changes})


def report(**changes):
    values = {
        "title": "A corpus",
        "rows_in": 31,
        "rows_kept": 16,
        "rows_dropped": 14,
        "rows_quarantined": 1,
        "requested_keep": 0.5,
        "bytes_in": 2_000_000,
        "bytes_out": 1_100_000,
        "sentence": "Scored and pruned.",
        "histogram": histogram(),
    }
    return ReportData(**{**values, **changes})


def image(size, mode="RGB", kind="PNG", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


def item(**changes):
    values = {"file": "a/b.parquet", "row": 3, "key": None, "label": "7", "score": 0.25}
    return GalleryItem(**{**values, "kept": True, **changes})


def hostile(text):
    """A report whose every string is ``text``."""
    return ReportData(
        title=text,
        rows_in=5,
        rows_kept=2,
        rows_dropped=2,
        rows_quarantined=1,
        requested_keep=None,
        bytes_in=1,
        bytes_out=1,
        sentence=text,
        histogram=histogram(metric=text, kept_end=text, overridden=True),
        classes=tuple(ClassCount(text, 1, 1, 1) for _ in range(50)),
        galleries=(
            Gallery(
                text,
                text,
                (
                    item(file=text, key=text, label=text, text=text),
                    item(file=text, label=text, image=image(8)),
                    item(file=text, fields=((text, text),)),
                ),
            ),
        ),
        bad_reasons=((text, 3),),
        bad_examples=(BadRow(text, 1, text, text), BadRow(text, None, None, text)),
        stages=((text, 1.0),),
        scoring=Scoring(16, 2, Spent(total=3.0, wait=2.0, decode=2.5, busy=0.5), (256,)),
        settings=((text, text),),
        outputs=((text, text),),
        warnings=(text,),
        command=text,
        versions=((text, text),),
    )


EMPTY = ReportData(
    title="",
    rows_in=0,
    rows_kept=0,
    rows_dropped=0,
    rows_quarantined=0,
    requested_keep=None,
    bytes_in=0,
    bytes_out=0,
    sentence="",
    histogram=ScoreHistogram("", (), (), (), None, "random"),
)


# -- a comparison, a search and a quality pass ---------------------------------------------------


def run(arm, seed, score, **changes):
    """One training; what is not given follows from the arm's name and the seed."""
    values = {
        "fold": None,
        "budget": "updates",
        "rows": 60_000 if arm == "full" else 18_000,
        "updates": 4_690,
        "epochs": 10.0,
        "seconds": 21.0 + seed,
        "gpu_seconds": 0.0,
        "loss": 0.1,
        "test_rows": 10_000,
    }
    return TrialRun(arm=arm, seed=seed, score=score, **{**values, **changes})


def compare(runs, classes=(), *, max_drop=0.5, beat_random=True, notes=(), spent=()):
    """The comparison that ``runs`` give, judged by the first budget among them."""
    summaries = summarise(runs, classes, 0.95)
    passed, reasons = judge(
        runs,
        budget=runs[0].budget,
        max_drop=max_drop,
        confidence=0.95,
        beat_random=beat_random,
    )
    return Comparison(
        measure="accuracy",
        classes=tuple(classes),
        test="10,000 rows of s3://corpora/digits/test",
        runs=tuple(runs),
        arms=summaries,
        costs=costs(summaries, spent, 12_121_344) if spent else None,
        max_drop=max_drop,
        confidence=0.95,
        beat_random=beat_random,
        passed=passed,
        reasons=reasons,
        notes=tuple(notes),
    )


def trained(levels, *, classes=10, seeds=3, budgets=("updates",), folds=(None,), seed=3):
    """Runs around the given ``{arm: (rows, final accuracy)}``, with curves and class accuracies."""
    rng = np.random.default_rng(seed)
    runs = []
    for budget in budgets:
        for fold in folds:
            for number in range(seeds):
                shared = rng.normal(0, 0.12)
                for arm, (rows, level) in levels.items():
                    updates = 4_690 if budget == "updates" else round(4_690 * rows / 60_000)
                    score = min(level + shared + rng.normal(0, 0.08), 100.0)
                    steps = np.linspace(1, updates, 8).round().astype(int)
                    curve = score - (score - 15) * np.exp(-steps / 500.0)
                    by_class = np.minimum(score + rng.normal(0, 0.9, classes), 100)
                    runs.append(
                        run(
                            arm,
                            number,
                            float(score),
                            fold=fold,
                            budget=budget,
                            rows=rows,
                            updates=updates,
                            epochs=updates * 128 / rows,
                            seconds=updates / 180 + float(rng.uniform(0, 1)),
                            loss=float(np.exp(-score / 30)),
                            class_scores=tuple(map(float, by_class)),
                            curve=tuple(zip(map(int, steps), map(float, curve), strict=True)),
                        )
                    )
    return runs


def digits_comparison():
    """Four arms, three seeds, both budgets, passed."""
    arms = {
        "full": (60_000, 98.3),
        "pruned": (30_000, 98.25),
        "random": (30_000, 97.6),
        "random_balanced": (30_000, 97.65),
    }
    return compare(
        trained(arms, budgets=("updates", "epochs")),
        tuple(map(str, range(10))),
        notes=("Class accuracies over fewer than 100 test rows move by a point by chance.",),
        spent=(("train proxy", 48.2), ("score", 21.4), ("select", 0.4), ("write", 6.0)),
    )


def keeps_comparison():
    """Several keep fractions, a hundred classes, failed."""
    arms = {
        "full": (50_000, 75.1),
        "pruned": (15_000, 61.0),
        "pruned:runs/stratified-50": (25_000, 69.8),
        "pruned:runs/window-with-a-very-long-name/2026-11-25/keep-070": (35_000, 73.6),
        "random": (15_000, 62.7),
        "random:50%": (25_000, 68.9),
        "random:70%": (35_000, 72.8),
    }
    classes = tuple(f"class {i} " + "with a long name " * (i % 4) for i in range(100))
    return compare(trained(arms, classes=100, seed=5), classes, max_drop=1.0)


def folds_comparison():
    """Ten folds and three seeds: thirty dots an arm."""
    arms = {"full": (1_617, 97.1), "pruned": (808, 96.6), "random": (808, 95.4)}
    return compare(
        trained(arms, folds=range(10), seed=8),
        tuple(map(str, range(10))),
        notes=("Folds share training rows; the intervals are corrected for that.",),
    )


def single_comparison():
    """One seed: nothing can be said of the spread."""
    runs = [run("full", 0, 97.0), run("pruned", 0, 96.9), run("random", 0, 96.0)]
    return compare(runs, spent=(("score", 3.0),))


def tuned_digits():
    """Three rounds over nine candidates."""
    rng = np.random.default_rng(4)
    names = ["random", "ratio", *(f"stratified:{b}" for b in (0, 0.1, 0.2, 0.3)), "window:0.1"]
    names += ["window:0.2", "class_balanced"]
    left, steps = {name: 90 + float(rng.normal(0, 1.2)) for name in names}, []
    for number in (1, 2, 3):
        best = sorted(left, key=lambda name: -left[name])[: max(2, len(left) // 2)]
        survivors = {*best, "random"}
        steps += [
            TuneStep(number, name, 0.3, 500 * 2**number, 2, level + number, 0.2, name in survivors)
            for name, level in left.items()
        ]
        left = {name: left[name] for name in names if name in survivors}
    chosen = max(left, key=left.__getitem__)
    return Tuned(
        chosen=chosen,
        strategy=chosen.split(":")[0],
        beta=0.2,
        keep=0.3,
        noise_share=0.197,
        reason=f"{chosen} is better than random by 1.32 points on fresh seeds, and its interval "
        "lies above 0.",
        steps=tuple(steps),
        validation_rows=12_000,
        confirmed=((chosen, Interval(1.32, 0.71, 1.93, 3)), ("ratio", Interval(-6, -8.1, -3.9, 3))),
    )


def quality_digits():
    """Label noise, thirty clusters, two of them gone, and leakage."""
    sizes = [4_000 // (i + 1) + 20 for i in range(30)]
    kept = [size * (i * 7 % 10) // 10 for i, size in enumerate(sizes)]
    return Quality(
        rows=60_000,
        noise_share=0.197,
        neighbour_disagreement=0.213,
        suspected=11_930,
        suspected_kept=1_204,
        dropped_score_outliers=311,
        dropped_density_outliers=87,
        rescued=42,
        clusters=tuple(zip(sizes, kept, strict=True)),
        empty_clusters=3,
        classes_lost=1,
        leakage=Leakage(
            exact=12,
            near=40,
            test_rows=10_000,
            similarity=0.98,
            examples=(
                ("train/shard-00003.parquet:118", "test/part-00000.parquet:4"),
                ("train/" + "deep/" * 20 + "x.parquet:4902", "test/part-00001.parquet:77"),
            ),
        ),
    )


COMPARISONS = {
    "digits": digits_comparison,
    "keeps": keeps_comparison,
    "folds": folds_comparison,
    "single": single_comparison,
}
