"""Comparison, search and quality on the page: words, drawings, bounds; and the stored report."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace
from importlib import resources

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_samples import (
    COMPARISONS,
    HOSTILE,
    Page,
    compare,
    digits_comparison,
    folds_comparison,
    hostile,
    image,
    item,
    keeps_comparison,
    quality_digits,
    report,
    run,
    single_comparison,
    trained,
    tuned_digits,
)
from scipy import stats

from dataprune_ray.errors import ConfigError
from dataprune_ray.quality import Leakage, Quality
from dataprune_ray.report import (
    PAGE_LIMIT,
    BadRow,
    ClassCount,
    Gallery,
    ReportData,
    arms,
    from_json,
    render,
    render_comparison,
    to_json,
)
from dataprune_ray.report.curves import Line, apart, lines, thinned
from dataprune_ray.report.plots import Change, Dots, diverging, dots
from dataprune_ray.report.svg import NARROW, WIDE
from dataprune_ray.verdict import ArmSummary, Comparison, Costs, Interval, Tuned, TuneStep

SETTINGS = (("seeds", "3"),)


def hostile_comparison(text):
    """A comparison whose every string is ``text``, with numbers that are none."""
    odd = run(
        text, 1, math.nan, budget=text, class_scores=(math.nan, None), curve=((1, math.nan), (9, 5))
    )
    full = run("full", 1, 50.0, budget=text, class_scores=(20.0, 30.0), curve=((1, 2), (9, 60)))
    bound = Interval(math.nan, -math.inf, math.inf, 1)
    values = {"rows": 5, "std": math.inf, "updates": 1e9, "seconds": math.nan, "runs": 2}
    values |= {"gpu_seconds": math.inf, "budget": text, "to_random": bound}
    worst = (text, -3.0)
    return Comparison(
        measure=text,
        classes=(text, text),
        test=text,
        runs=(full, odd),
        arms=(
            ArmSummary(arm="full", keep=1.0, mean=50.0, **values),
            ArmSummary(
                arm=text, keep=0.2, mean=math.nan, to_full=bound, worst_class=worst, **values
            ),
        ),
        costs=Costs(((text, math.nan),), -1.0, -5.0, -2.0, -7, measured=False, break_even=None),
        max_drop=0.5,
        confidence=0.95,
        beat_random=True,
        passed=False,
        reasons=(text,),
        notes=(text,),
    )


def hostile_tuned(text):
    step = TuneStep(1, text, 0.2, 10, 1, math.nan, math.nan, survived=False)
    confirmed = ((text, Interval(0.0, -math.inf, math.inf, 1)),)
    return Tuned(text, text, 0.5, 0.2, None, text, (step,), 0, confirmed)


def hostile_quality(text):
    leakage = Leakage(1, 0, 1, 0.9, ((text, text),))
    return Quality(0, None, None, 0, 0, 0, 0, 0, ((0, 0),), 0, 0, leakage)


def everything(comparison, tuned, quality, **changes):
    return report(comparison=comparison, tuned=tuned, quality=quality, **changes)


PAGES = {
    **{
        name: lambda make=make: render_comparison(make(), "Title", "python x.py", SETTINGS)
        for name, make in COMPARISONS.items()
    },
    **{
        f"report-{name}": lambda make=make: render(
            everything(make(), tuned_digits(), quality_digits())
        )
        for name, make in COMPARISONS.items()
    },
    **{
        f"hostile-{number}": lambda text=text: render(
            replace(
                hostile(text),
                comparison=hostile_comparison(text),
                tuned=hostile_tuned(text),
                quality=hostile_quality(text),
            )
        )
        for number, text in enumerate((HOSTILE, "\x00\udce9\u202e\r\n", "学習 🙂", "x" * 9_000, ""))
    },
    "hostile-alone": lambda: render_comparison(
        hostile_comparison(HOSTILE), HOSTILE, HOSTILE, ((HOSTILE, HOSTILE),), ((HOSTILE, HOSTILE),)
    ),
    "no-runs": lambda: render_comparison(
        replace(hostile_comparison("x"), runs=(), arms=(), classes=(), costs=None), "", ""
    ),
    "no-steps": lambda: render(everything(None, replace(hostile_tuned("x"), steps=()), None)),
}


@pytest.mark.parametrize("name", PAGES)
def test_page_is_balanced_unique_bounded_escaped_and_the_same_twice(name):
    source = PAGES[name]()
    page = Page(source)
    assert len(source.encode()) < PAGE_LIMIT
    assert page.tags.count("h1") == 1
    assert len(page.ids) == len(set(page.ids))
    assert not {"script", "iframe", "object", "form"} & set(page.tags)
    assert not [a for a in page.attributes if a[1].startswith("on") or a[1] == "style"]
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", source)
    numbers = re.findall(r'\b(?:x1?|x2|y1?|y2|cx|cy|width|height|points)="([^"]*)"', source)
    assert not re.search("nan|inf", " ".join(numbers), re.IGNORECASE)
    for attribute in ("aria-labelledby", "href"):
        for value in (v for _, n, v in page.attributes if n == attribute and v[:5] != "data:"):
            assert set(value.replace("#", "").split()) <= set(page.ids)
    assert source == PAGES[name]()


def test_sections_show_only_where_there_is_something_and_in_order():
    names = ("numbers", "comparison", "search", "scores", "classes", "quality", "rows", "again")
    plain = Page(render(report())).ids
    assert not {"comparison", "search", "quality"} & set(plain)
    page = Page(render(everything(digits_comparison(), tuned_digits(), quality_digits())))
    assert [name for name in page.ids if name in names] == list(names)


def test_a_page_on_a_comparison_alone_has_nothing_of_a_prune():
    page = Page(render_comparison(digits_comparison(), "Digits", "python x", SETTINGS))
    assert {"comparison", "settings", "again"} <= set(page.ids)
    assert not {"numbers", "scores", "rows", "bad-rows", "outputs"} & set(page.ids)
    assert "seeds 3" in page.text


# -- words -----------------------------------------------------------------------------------------


def text_of(comparison):
    return Page(render_comparison(comparison, "t", "c")).text


def test_the_verdict_is_said_in_words_with_its_reasons():
    good, bad = digits_comparison(), keeps_comparison()
    assert (good.passed, bad.passed) == (True, False)
    assert "Passed: pruning costs at most 0.5 points of accuracy and beats" in text_of(good)
    assert "Failed: it is not shown that pruning costs at most 1 point of" in text_of(bad)
    for comparison in (good, bad):
        assert all(reason in text_of(comparison) for reason in comparison.reasons)
        assert comparison.test in text_of(comparison)
    assert all(note in text_of(good) for note in good.notes)


def test_the_table_holds_every_arm_under_every_budget():
    comparison = digits_comparison()
    text = text_of(comparison)
    assert "Equal updates" in text
    assert "Equal epochs" in text
    for arm in comparison.arms:
        assert (
            f"{arm.arm} {arm.rows:,} {100 * arm.keep:.1f}% {arm.mean:.2f} ± {arm.std:.2f}" in text
        )
        if arm.to_full:
            said = f"{arm.to_full.mean:+.2f}{arm.to_full.low:+.2f} to {arm.to_full.high:+.2f}"
            assert said in text


def test_a_single_run_has_no_interval_and_says_so():
    source = render_comparison(single_comparison(), "t", "c")
    assert "one pair" in source
    assert "A single run says nothing of the spread" in source
    assert 'class="whisker"' not in source
    assert "±" not in Page(source).text


@pytest.mark.parametrize(
    ("break_even", "said"),
    [
        (0.2, "has paid back after 1 training."),
        (3.01, "has paid back after 4 trainings."),
        (None, "It never pays back in time"),
        (math.inf, "It never pays back in time"),
    ],
)
def test_break_even_is_a_whole_number_of_trainings(break_even, said):
    known = Costs((("score", 30.0), ("write", 10.0)), 9.5, 100.0, 0.0, 0, True, break_even)
    text = text_of(replace(digits_comparison(), costs=known))
    assert said in text
    assert "Pruning took 40.0 s once." in text
    assert "saves 9.50 s, measured at equal epochs; that is 100 fewer updates." in text


def test_a_longer_training_is_no_saving():
    known = Costs((("score", 30.0),), -2.0, 0.0, 0.0, 0, measured=False, break_even=None)
    text = text_of(replace(digits_comparison(), costs=known))
    assert "takes longer by 2.00 s, reckoned for equal epochs" in text
    assert "saved by each training -2.00 s" in text


# -- dots, intervals and curves --------------------------------------------------------------------


def numbers(pattern, source):
    return [tuple(map(float, found.groups())) for found in re.finditer(pattern, str(source))]


SPOT = r'<circle class="dot" cx="([\d.]+)"'
MEAN = r'<line class="mean" x1="([\d.]+)"'
WHISKER = r'<line class="whisker" x1="([\d.]+)" x2="([\d.]+)" y1="([\d.]+)" y2="\3"'


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_dots_means_and_intervals_stand_where_their_values_are(width):
    values = (90.0, 90.5, 92.0)
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    row = Dots("arm", "s1", tuple((v, str(v)) for v in values), float(np.mean(values)), low, high)
    wide = Dots("other", "s2", ((80.0, "80"), (99.0, "99")), 89.5, 89.0, 90.0)
    svg = dots([row, wide], name="d", title="t", description="d", axis="a", width=width)
    spots = [x for (x,) in numbers(SPOT, svg)]
    scale, zero = np.polyfit([*values, 80.0, 99.0], spots, 1)
    assert spots == pytest.approx([scale * v + zero for v in [*values, 80.0, 99.0]], abs=0.02)
    (mean,), _ = numbers(MEAN, svg)
    assert (mean - zero) / scale == pytest.approx(np.mean(values), abs=1e-2)
    left, right, _ = numbers(WHISKER, svg)[0]
    assert [(left - zero) / scale, (right - zero) / scale] == pytest.approx([low, high], abs=2e-2)
    assert 0 <= min(spots) <= max(spots) <= width


def test_the_interval_of_an_arm_is_students():
    comparison = digits_comparison()
    mine = [a for a in comparison.arms if a.budget == "updates"]
    svg = str(arms.scores(comparison, mine, arms.styles(mine))).split("</svg>")[0]
    scores = [
        r.score for a in mine for r in comparison.runs if (r.arm, r.budget) == (a.arm, "updates")
    ]
    ordered = [s for i in range(len(mine)) for s in sorted(scores[3 * i : 3 * i + 3])]
    scale, zero = np.polyfit(ordered, [x for (x,) in numbers(SPOT, svg)], 1)
    drawn = [((a - zero) / scale, (b - zero) / scale) for a, b, _ in numbers(WHISKER, svg)]
    for i, pair in enumerate(drawn):
        own = ordered[3 * i : 3 * i + 3]
        assert pair == pytest.approx(
            stats.t.interval(0.95, 2, np.mean(own), stats.sem(own)), abs=0.01
        )
    assert len(drawn) == len(mine)


def test_every_run_is_a_dot_in_each_drawing():
    comparison = folds_comparison()
    mine = list(comparison.arms)
    svg = arms.scores(comparison, mine, arms.styles(mine))
    assert len(numbers(SPOT, svg)) == 2 * len(comparison.runs)
    paired = arms.differences_to_full(comparison, mine, arms.styles(mine))
    assert len(numbers(SPOT, paired)) == 2 * 2 * 10  # drawings, arms, folds
    assert "fold 9, seed 2" in svg


def test_a_long_interval_is_cut_without_an_end_stroke():
    row = Dots("arm", "s1", ((1.0, ""), (2.0, "")), 1.5, -500.0, 500.0)
    svg = dots([row], name="d", title="t", description="d", axis="a")
    assert len(numbers(WHISKER, svg)) == 1
    assert str(svg).count('class="whisker"') == 1


def test_mean_curve_is_the_mean_of_interpolated_runs():
    first = run("a", 0, 1.0, curve=((0, 0.0), (10, 100.0)))
    second = run("a", 1, 1.0, curve=((4, 20.0), (8, 40.0), (30, 90.0)))
    steps, means = zip(*arms.mean_curve([first, second]), strict=True)
    assert steps == (4.0, 8.0, 10.0)
    assert means == pytest.approx((30.0, 60.0, (100 + 40 + 50 * 2 / 22) / 2))
    assert arms.mean_curve([first]) == first.curve
    assert arms.mean_curve([run("a", 0, 1.0)]) == ()


def test_a_start_far_below_is_cut_off_and_said():
    comparison = digits_comparison()
    found = re.search(r"the start, below ([\d.]+), is cut off", text_of(comparison))
    late = [v for r in comparison.runs for at, v in r.curve if at == r.curve[-1][0]]
    assert 15 < float(found.group(1)) < min(late)
    flat = tuple(replace(r, curve=((1, 90.0), (99, 91.0))) for r in comparison.runs)
    assert "is cut off" not in text_of(replace(comparison, runs=flat))


@given(st.lists(st.floats(0, 300), min_size=1, max_size=12))
def test_labels_are_moved_apart_and_stay_inside(places):
    moved = apart(sorted(places), 16.0, 0.0, 300.0)
    assert all(b - a >= 16.0 - 1e-6 for a, b in itertools.pairwise(moved))
    assert -1e-6 <= moved[0] <= moved[-1] <= 300.0 + 1e-6


@given(st.integers(0, 500), st.integers(2, 60))
def test_thinned_keeps_both_ends(number, limit):
    points = [(float(i), float(-i)) for i in range(number)]
    kept = thinned(points, limit)
    assert len(kept) == min(number, limit)
    assert list(kept) == sorted(set(kept))
    assert not points or (kept[0], kept[-1]) == (points[0], points[-1])


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_lines_are_named_where_there_is_room(width):
    series = [
        Line("pruned", "s1", ((1.0, 2.0), (2.0, 3.0))),
        Line("random", "s2", ((1.0, 1.0), (2.0, math.nan)), joined=False),
    ]
    svg = str(lines(series, name="l", title="t", description="d", axis="a", width=width))
    assert svg.count('class="line"') == 1
    assert svg.count('class="mark"') == 3
    assert svg.count('<text class="label') == (2 if width == WIDE else 0)
    Page(svg)


# -- classes and keep fractions --------------------------------------------------------------------


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_changes_go_to_either_side_in_proportion(width):
    rows = [Change("a", -2.0, "-2"), Change("b", 1.0, "+1"), Change("c", 0.0, "0")]
    svg = diverging(rows, name="c", title="t", description="d", width=width)
    (left, worse), (right, better) = numbers(
        r'<rect class="(?:worse|better)" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', svg
    )
    assert worse / better == pytest.approx(2, rel=1e-2)
    assert left + worse == pytest.approx(right, abs=0.02)


def test_the_worst_classes_are_drawn_and_the_others_counted():
    comparison = keeps_comparison()
    by_arm = {
        name: np.mean([r.class_scores for r in comparison.runs if r.arm == name], axis=0)
        for name in ("full", "pruned")
    }
    change = by_arm["pruned"] - by_arm["full"]
    order = np.argsort(change)
    source = render_comparison(comparison, "t", "c")
    chart = re.search(r'aria-labelledby="class-change-0-wide-t.*?</svg>', source, re.DOTALL).group()
    drawn = re.findall(r"<g><title>(.*?)</title>", chart)
    assert drawn == [comparison.classes[i] for i in order[:20]]
    assert (
        f"80 others are in the table, from {change[order[20]]:+.2f} to {change[order[-1]]:+.2f}"
        in source
    )
    assert f"{(change < 0).sum()} lost and {(change > 0).sum()} gained" in source


def test_without_class_accuracies_there_is_no_section_on_classes():
    assert "Change by class" not in text_of(single_comparison())


def test_accuracy_by_keep_shows_with_several_keeps_only():
    assert "by share of rows kept" not in text_of(digits_comparison())
    comparison = keeps_comparison()
    svg = arms.by_keep(comparison, comparison.arms)
    assert "by share of rows kept" in text_of(comparison)
    wide = str(svg).split("</svg>")[0]
    paths = re.findall(r'<polyline class="line" points="([^"]*)"', wide)
    ends = {path.split()[-1] for path in paths}
    assert len(paths) == 2
    assert len(ends) == 1  # every series ends in the full data
    assert [len(path.split()) for path in paths] == [4, 4]


def test_points_of_one_keep_are_not_joined():
    runs = trained(
        {"full": (100, 90), "pruned": (50, 80), "pruned:b": (50, 82), "random": (20, 70)}
    )
    svg = str(arms.by_keep(comparison := compare(runs), comparison.arms)).split("</svg>")[0]
    assert svg.count('class="line"') == 1  # random to full


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("full", "full"),
        ("pruned", "pruned"),
        ("runs/random-looking", "pruned"),
        ("random", "random"),
        ("random:50%", "random"),
        ("random_balanced", "random_balanced"),
        ("random_balanced:b", "random_balanced"),
    ],
)
def test_kind_of_an_arm(name, kind):
    assert arms.family(name) == kind


# -- colours ---------------------------------------------------------------------------------------

# Machado, Oliveira and Fernandes 2009: full severity, on linear RGB.
VISION = {
    "usual": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour):
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def cielab(colour, vision):
    xyz = XYZ @ np.clip(vision @ linear(colour), 0, 1) / XYZ.sum(1)
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("scheme", [0, 1])
def test_series_differ_for_every_kind_of_vision(scheme, vision):
    style = resources.files("dataprune_ray.report").joinpath("templates/report.css").read_text()
    found = re.findall(r"--(s\d|card): (#\w{6});", style)
    colours = dict(found[9 * scheme : 9 * scheme + 9])
    card = colours.pop("card")
    assert len(colours) == 8
    for colour in colours.values():
        dark, light = sorted(XYZ[1] @ linear(c) for c in (colour, card))
        assert (light + 0.05) / (dark + 0.05) >= 4.5  # their names are drawn in them
    for one, other in itertools.combinations(colours.values(), 2):
        far = np.linalg.norm(cielab(one, VISION[vision]) - cielab(other, VISION[vision]))
        assert far >= 14, (one, other)


# -- search and quality ----------------------------------------------------------------------------


def test_the_search_shows_every_step_and_why():
    tuned = tuned_digits()
    text = Page(render(report(tuned=tuned))).text
    assert tuned.reason in text
    assert "An estimated 19.7% of the labels are wrong. 9 candidates in 3 rounds" in text
    assert text.count("✓ went on") == sum(step.survived for step in tuned.steps)
    assert text.count("✕ out") == sum(not step.survived for step in tuned.steps)
    for step in tuned.steps:
        assert f"{step.round} {step.candidate} 30.0% {step.updates:,} 2 {step.mean:.2f} ±" in text
    assert "+1.32+0.71 to +1.93" in text


def test_quality_in_words():
    text = Page(render(report(quality=quality_digits()))).text
    assert "The cut keeps nothing of 1 class and of 3 clusters of features." in text
    assert "Suspected and kept 1,204 10.1% of the suspected rows are in the cut" in text
    assert "6 smaller clusters not drawn; they keep" in text
    assert "Of 10,000 test rows, 12 are in the corpus as they are and 40 nearly" in text
    assert "train/shard-00003.parquet:118 test/part-00000.parquet:4" in text


def test_what_was_not_judged_is_not_claimed():
    bare = Quality(7, None, None, 0, 0, 0, 0, 0)
    text = Page(render(report(quality=bare))).text
    for words in ("Estimated wrong labels", "Neighbours", "keeps nothing", "Test rows in"):
        assert words not in text
    clean = replace(bare, leakage=Leakage(0, 0, 50, 0.9))
    assert "None of 50 test rows is in the corpus" in Page(render(report(quality=clean))).text


# -- bounds ----------------------------------------------------------------------------------------


def huge():
    """Far too much of everything."""
    long = HOSTILE * 30
    names = ["full", *(f"{i} {long}" for i in range(60))]
    classes = tuple(f"{i} {long}" for i in range(1_500))
    runs = [
        run(
            name,
            seed,
            float(50 + seed % 40),
            budget=budget,
            class_scores=tuple(float(i % 90) for i in range(1_500)),
            curve=tuple((i, float(i % 97)) for i in range(300)),
        )
        for budget in ("updates", "epochs")
        for name in names
        for seed in range(15)
    ]
    comparison = compare(runs[:90] + runs[-45:], classes)
    few = replace(runs[0], class_scores=(), curve=())
    every = tuple(replace(few, arm=r.arm, seed=r.seed, budget=r.budget) for r in runs)
    summaries = tuple(
        replace(comparison.arms[0], arm=name, budget=budget, worst_class=(long, -1.0))
        for budget in ("updates", "epochs", "third")
        for name in names
    )
    step = TuneStep(1, long, 0.2, 10, 2, 50.0, 1.0, survived=True)
    return everything(
        replace(
            comparison,
            arms=comparison.arms + summaries,
            runs=comparison.runs + every,
            reasons=(long,) * 500,
            notes=(long,) * 500,
            costs=Costs(((long, 1.0),) * 500, 1.0, 1.0, 1.0, 1, measured=True, break_even=500.0),
        ),
        Tuned(
            *(long, long, 0.1, 0.2, 0.3, long),
            tuple(replace(step, candidate=f"{i} {long}", round=i % 40) for i in range(5_000)),
            9,
            ((long, Interval(1.0, 0.0, 2.0, 3)),) * 500,
        ),
        replace(
            quality_digits(),
            clusters=((10, 5),) * 5_000,
            leakage=Leakage(9, 9, 9, 0.9, ((long, long),) * 5_000),
        ),
        galleries=(
            Gallery("g", "", tuple(item(row=r, image=image(190, seed=r % 5)) for r in range(60))),
        ),
    )


def test_far_too_much_is_cut_and_counted():
    source = render(huge())
    assert PAGE_LIMIT * 0.8 < len(source.encode()) < PAGE_LIMIT
    text = Page(source).text
    for noun in ("reasons", "notes", "arms", "classes", "stages", "runs", "steps", "candidates"):
        assert re.search(rf"[\d,]+ {noun} not shown here", text), noun
    assert re.search(r"[\d,]+ examples not shown here", text)
    assert "4,976 smaller clusters not drawn" in text


def test_far_too_much_in_every_section_at_once_still_fits():
    long = HOSTILE * 60
    data = replace(
        huge(),
        title=long,
        sentence=long,
        classes=tuple(ClassCount(f"{i} {long}", 1, 1, 1) for i in range(1_000)),
        bad_reasons=((long, 3),) * 1_000,
        bad_examples=(BadRow(long, 1, long, long),) * 1_000,
        settings=((long, long),) * 1_000,
        outputs=(("/" * 5_000, long),) * 1_000,
        warnings=(long,) * 1_000,
        versions=((long, long),) * 1_000,
        command=long,
    )
    assert len(render(data).encode()) < PAGE_LIMIT
    pairs = ((long, long),) * 1_000
    alone = render_comparison(data.comparison, long, long, pairs, pairs)
    assert len(alone.encode()) < PAGE_LIMIT


# -- the stored report -----------------------------------------------------------------------------


@settings(max_examples=60, suppress_health_check=list(HealthCheck), deadline=None)
@given(st.from_type(ReportData))
def test_a_stored_report_comes_back_as_it_was(data):
    assert repr(from_json(to_json(data))) == repr(data)  # by repr, as NaN is not equal to itself


@given(st.text(st.characters()))
def test_any_text_is_stored(text):
    data = hostile(text)
    assert from_json(to_json(data)) == data


def test_text_that_looks_escaped_is_stored():
    data = hostile("\x1adce9 \x1a001a \ud83d\ude00 \udce9")
    assert from_json(to_json(data)) == data


@pytest.mark.parametrize("name", COMPARISONS)
def test_a_comparison_added_later_gives_the_page_of_one_run(name):
    finished = report(galleries=(Gallery("g", "", (item(image=image(8)),)),))
    later = replace(from_json(to_json(finished)), comparison=COMPARISONS[name]())
    assert render(from_json(to_json(later))) == render(
        replace(finished, comparison=COMPARISONS[name]())
    )


def test_infinite_bounds_are_kept():
    back = from_json(to_json(report(comparison=single_comparison())))
    assert back.comparison.arms[1].to_full == Interval(pytest.approx(-0.1), -math.inf, math.inf, 1)


def test_what_is_too_large_loses_gallery_rows_and_says_so():
    shelves = tuple(
        Gallery(name, "", tuple(item(row=r, image=image(64, seed=r)) for r in range(20)))
        for name in ("a", "b")
    )
    whole = report(galleries=shelves)
    limit = len(to_json(whole)) // 2
    content = to_json(whole, limit)
    back = from_json(content)
    assert limit * 0.8 < len(content) <= limit
    kept = [len(gallery.items) for gallery in back.galleries]
    assert kept[0] == kept[1] > 5
    assert back.galleries[0].items == whole.galleries[0].items[: kept[0]]
    assert f"{40 - sum(kept)} rows of the galleries were too large" in back.warnings[0]


def test_a_report_that_cannot_be_cut_down_is_refused():
    with pytest.raises(ConfigError, match="more than the 1,000 that are stored"):
        to_json(report(settings=(("a", "x" * 2_000),)), 1_000)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"title": 1}', b"\xff", b'[{"title": "x"}]'])
def test_what_is_no_stored_report_is_refused(content):
    with pytest.raises(ConfigError, match="must be a file that this version"):
        from_json(content)
