"""The report without a browser: well-formed, escaped, bounded, self-contained, deterministic."""

from __future__ import annotations

import io
import itertools
import math
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from report_samples import EMPTY, HOSTILE, Page, histogram, hostile, image, item, report

from dataprune_ray.drift import ClassDrift, Drift
from dataprune_ray.report import (
    PAGE_LIMIT,
    BadRow,
    ClassCount,
    Gallery,
    ReportData,
    charts,
    formats,
    galleries,
    render,
    thumbnails,
)
from dataprune_ray.report.svg import NARROW, WIDE, nice_ticks, tick_labels

# -- the page --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        EMPTY,
        report(),
        report(histogram=histogram(kept=(0, 0), dropped=(0, 0))),
        report(histogram=histogram(kept=(5,), dropped=(0,), edges=(0.5, 0.5))),
        report(histogram=histogram(edges=(0.0,), kept=(), dropped=(), cutoff=None)),
        report(histogram=histogram(cutoff=math.inf)),
        report(histogram=histogram(cutoff=math.nan)),
        report(histogram=histogram(cutoff=-7.0)),
        report(classes=(ClassCount("all bad", 0, 0, 9),)),
        report(classes=tuple(ClassCount(f"bad {i}", 0, 0, 9) for i in range(60))),
        report(galleries=(Gallery("none", "", ()),)),
        report(galleries=(Gallery("x", "", (item(score=math.nan, label=None, text=""),)),)),
        report(stages=(("instant", 0.0), ("odd", math.nan), ("infinite", math.inf))),
        hostile(HOSTILE),
        hostile("\x00\x1b\x7f\udce9\u202e\r\n"),
        hostile("λόγος 学習 مرحبا 🙂"),
        hostile("x" * 20_000),
        hostile(""),
    ],
)
def test_page_is_balanced_unique_and_bounded(data):
    source = render(data)
    page = Page(source)
    assert source.startswith("<!doctype html>\n<html lang=")
    assert len(source.encode()) < PAGE_LIMIT
    assert page.tags.count("h1") == 1
    assert len(page.ids) == len(set(page.ids))
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", source)
    for name in ("aria-labelledby", "href"):
        for value in (v for _, n, v in page.attributes if n == name and not v.startswith("data:")):
            assert set(value.replace("#", "").split()) <= set(page.ids)


def test_sections_come_in_reading_order():
    page = Page(render(replace(hostile("word"), rows_quarantined=1)))
    expected = (
        *("numbers", "warnings", "scores", "classes", "rows", "bad-rows", "time", "settings"),
        *("outputs", "again"),
    )
    assert [name for name in page.ids if name in expected] == list(expected)


def test_drift_shows_only_where_there_is_a_baseline():
    assert "drift" not in Page(render(report())).ids
    drift = Drift(
        metric=HOSTILE,
        rows_before=10,
        rows_now=30,
        psi=0.31,
        ks=0.2,
        class_psi=0.05,
        classes=(ClassDrift(HOSTILE, 10, 30, 0.5, 0.4),),
        edges=(0.0, 0.5, 1.0),
        before=(5, 5),
        now=(6, 24),
        limit=0.25,
    )
    page = Page(render(report(drift=drift)))
    assert "drift" in page.ids
    assert len(set(page.ids)) == len(page.ids)
    assert "The shift is large. It is beyond the limit of 0.25" in page.text
    assert "0.310" in page.text
    assert "5,000 shared, 0 earlier, 3,000 later" in page.text


def test_hostile_text_stays_text():
    source = render(hostile(HOSTILE))
    page = Page(source)
    assert "script" not in page.tags
    assert not [a for a in page.attributes if a[1].startswith("on")]
    assert all(v.startswith("data:image/png;base64,") for _, n, v in page.attributes if n == "src")
    assert page.text.count("{{ 7 * 7 }}") > 20
    assert "alert('x')" in page.text


def test_page_asks_for_nothing_from_outside():
    source = render(replace(hostile("word"), title="Offline"))
    assert not re.search(r"(https?:)?//(?!www\.w3\.org/2000/svg)", source)
    assert "@import" not in source
    assert "url(" not in source
    page = Page(source)
    assert not {"script", "iframe", "object", "embed", "form", "base"} & set(page.tags)
    assert not [a for a in page.attributes if a[1] == "style"]
    policy = next(v for t, n, v in page.attributes if t == "meta" and "default-src" in v)
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy


def test_same_data_same_page():
    data = hostile("word")
    assert render(data) == render(data)


def test_importing_the_report_imports_no_ray():
    code = "import sys, dataprune_ray.report; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_key_numbers():
    text = Page(render(report())).text
    assert "Rows in 31 30 could be scored" in text
    assert "Kept 16 53.33% achieved, 50% requested" in text
    assert "Dropped 14 46.67%" in text
    assert "Quarantined 1 3.23% of rows in" in text
    assert "Size before 2.00 MB, after 1.10 MB (55.0% of before)" in text


def test_no_requested_fraction_is_said():
    assert "no fraction was requested" in Page(render(report(requested_keep=None))).text


@pytest.mark.parametrize(
    ("kept_end", "said"),
    [
        ("high", "Higher is worth keeping"),
        ("low", "Lower is worth keeping"),
        ("random", "Rows are kept at random"),
    ],
)
def test_direction_is_said(kept_end, said):
    plain = Page(render(report(histogram=histogram(kept_end=kept_end)))).text
    assert said in plain
    assert "set by the user" not in plain


def test_rows_spread_over_all_scores_have_no_first_end():
    text = Page(render(report(histogram=histogram(kept_end="high", spread=True)))).text
    assert "Rows are taken from all scores, not from one end first." in text
    assert "are kept first" not in text


def test_overridden_direction_is_said():
    text = Page(render(report(histogram=histogram(kept_end="low", overridden=True)))).text
    assert "The direction was set by the user, against the metric's own" in text
    assert "el2n keeps the high end" in text


def test_command_is_whole_and_can_be_copied():
    command = "python jobs/prune.py  --input 's3://a b/c' --output " + "x" * 90
    source = render(report(command=command))
    inside = re.search("<pre><code>(.*?)</code></pre>", source, re.DOTALL).group(1)
    assert "".join(Page(inside).words) == command


def test_warnings_show_only_when_there_are_any():
    assert "warnings" not in Page(render(report())).ids
    assert "2 warnings a b" in Page(render(report(warnings=("a", "b")))).text


# -- what does not fit -----------------------------------------------------------------------------


def test_two_hundred_large_images_stay_under_the_limit():
    large = [image(190, seed=i) for i in range(10)]  # about 110 kB each
    shelves = tuple(
        Gallery(f"gallery {g}", "", tuple(item(row=r, image=large[r % 10]) for r in range(50)))
        for g in range(4)
    )
    source = render(report(galleries=shelves))
    assert PAGE_LIMIT * 0.9 < len(source.encode()) < PAGE_LIMIT
    page = Page(source)
    shown = page.tags.count("img")
    said = [int(n) for n in re.findall(r"(\d+) rows not shown here: this page is kept", page.text)]
    assert len(said) == 4
    assert shown + sum(said) == 200
    assert max(said) - min(said) <= 1  # every gallery gives way from its end, none is starved


def test_an_image_that_is_no_thumbnail_is_named_not_embedded():
    bomb = io.BytesIO()
    Image.new("1", (9_000, 9_000)).save(bomb, "PNG")
    row = (
        item(image=b"GIF89a not an image"),
        item(image=b"\x89PNG\r\n\x1a\n" + b"\x00" * 400_000),
        item(image=bomb.getvalue()),
        item(image=b""),
    )
    page = Page(render(report(galleries=(Gallery("odd", "", row),))))
    assert "img" not in page.tags
    assert page.text.count("Image not embedded") == 4


def test_everything_too_long_at_once_is_cut_and_counted():
    long = HOSTILE * 60
    data = ReportData(
        title=long,
        rows_in=5,
        rows_kept=2,
        rows_dropped=2,
        rows_quarantined=1,
        requested_keep=0.5,
        bytes_in=1,
        bytes_out=1,
        sentence=long,
        histogram=histogram(
            metric=long, kept_end=long, kept=(1,) * 5_000, dropped=(2,) * 5_000, overridden=True
        ),
        classes=tuple(ClassCount(f"{i} {long}", 1, 1, 1) for i in range(3_000)),
        galleries=tuple(
            Gallery(
                long, long, (item(file=long, key=long, label=long, fields=((long, long),) * 90),)
            )
            for _ in range(300)
        ),
        bad_reasons=((long, 3),) * 2_000,
        bad_examples=(BadRow(long, 1, long, long),) * 2_000,
        stages=((long, 1.0),) * 2_000,
        settings=((long, long),) * 5_000,
        outputs=(("/" * 5_000, long),) * 2_000,
        warnings=(long,) * 2_000,
        command=long,
        versions=((long, long),) * 2_000,
    )
    source = render(data)
    assert len(source.encode()) < PAGE_LIMIT
    text = Page(source).text
    for noun in (
        *("warnings", "classes", "galleries", "reasons", "examples", "stages", "settings"),
        *("outputs", "versions"),
    ):
        assert re.search(rf"[\d,]+ {noun} not shown here", text), noun
    assert "more fields" in text
    assert "5,000 bins are drawn as 100" in text
    assert "more characters)" in text


def test_thousands_of_short_settings_all_show():
    settings = tuple((f"option_{i}", str(i)) for i in range(5_000))
    text = Page(render(report(settings=settings))).text
    assert "option_4999 4999" in text
    assert "not shown" not in text


def test_long_text_is_clipped_with_its_rest_counted():
    text = Page(render(report(galleries=(Gallery("t", "", (item(text="y" * 1_601),)),)))).text
    assert "1,001 more characters" in text


def test_room_is_given_in_turns():
    rows = tuple(item(row=r, text="t") for r in range(9))
    shelves, left_out = galleries.build((Gallery("a", "", rows), Gallery("b", "", rows)), 8_000)
    assert left_out == 0
    counts = [len(shelf.cards) for shelf in shelves]
    assert sum(counts) > 2
    assert counts[0] - counts[1] in {0, 1}
    assert [card.row for card in shelves[1].cards] == list(range(counts[1]))


# -- classes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 10, 40])
def test_few_classes_each_get_a_bar(number):
    counts = tuple(ClassCount(f"class-{i}", i, number - i, 0) for i in range(number))
    source = render(report(classes=counts))
    page = Page(source)
    assert page.text.count(f"class-{number - 1}") >= 4
    assert "too many" not in page.text


@pytest.mark.parametrize("number", [41, 100, 1000])
def test_many_classes_show_extremes_and_say_so(number):
    counts = tuple(ClassCount(f"class-{i}", i, number - i, 0) for i in range(number))
    text = Page(render(report(classes=counts))).text
    assert f"{number:,} classes are too many for a bar each" in text
    assert "Lowest kept share" in text
    assert "Highest kept share" in text
    assert "1 class keeps no row at all" in text
    assert f"class-{number - 1} " in text


# -- charts ----------------------------------------------------------------------------------------

FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(st.tuples(FLOATS, FLOATS).map(sorted), st.integers(1, 12))
def test_ticks_are_few_ascending_and_cover_the_range(ends, target):
    ticks = nice_ticks(*ends, target)
    assert ticks[0] <= ends[0] <= ends[1] <= ticks[-1]
    assert all(a < b for a, b in itertools.pairwise(ticks))
    assert 2 <= len(ticks) <= 1.5 * target + 3
    assert all(map(math.isfinite, ticks))
    assert len(tick_labels(ticks)) == len(ticks)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(1, 12))
def test_ticks_are_round_evenly_spaced_and_labelled_apart(low, span, target):
    ticks = nice_ticks(low, low + span, target)
    steps = [b - a for a, b in itertools.pairwise(ticks)]
    assert max(steps) == pytest.approx(min(steps), rel=1e-3)
    lead = f"{np.mean(steps):.1e}"[:3]
    assert lead in {"1.0", "2.0", "5.0"}
    labels = tick_labels(ticks)
    assert len(set(labels)) == len(labels)


def test_tick_labels_have_the_decimals_of_the_step():
    assert tick_labels(nice_ticks(0, 1)) == ("0.0", "0.2", "0.4", "0.6", "0.8", "1.0")
    assert tick_labels((0.0, 2000.0, 4000.0)) == ("0", "2,000", "4,000")


def rectangles(svg, style, size):
    return [
        float(value)
        for value in re.findall(rf'<rect class="{style}"[^>]* {size}="([\d.]+)"', str(svg))
    ]


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 10_000)), min_size=1, max_size=60))
def test_bar_heights_are_proportional_to_counts(pairs):
    kept, dropped = zip(*pairs, strict=True)
    edges = tuple(map(float, range(len(pairs) + 1)))
    svg = charts.histogram(
        charts.Bins(edges, (("kept", kept), ("dropped", dropped))),
        name="h",
        title="t",
        description="d",
        axis="score",
    )
    Page(str(svg))
    heights = rectangles(svg, "kept", "height") + rectangles(svg, "dropped", "height")
    counts = [n for n in kept if n] + [n for n in dropped if n]
    assert len(heights) == len(counts)
    scale = max(heights, default=1) / max(counts, default=1)
    assert heights == pytest.approx([scale * n for n in counts], abs=0.02 + scale * 1e-2)


def test_dropped_stands_on_kept():
    svg = charts.histogram(
        charts.Bins((0.0, 1.0), (("kept", (3,)), ("dropped", (5,)))),
        name="h",
        title="t",
        description="d",
        axis="score",
    )
    (kept_top,), (kept_height,) = rectangles(svg, "kept", "y"), rectangles(svg, "kept", "height")
    (top,), (height,) = rectangles(svg, "dropped", "y"), rectangles(svg, "dropped", "height")
    assert top + height == pytest.approx(kept_top, abs=0.02)
    assert height / kept_height == pytest.approx(5 / 3, rel=1e-2)


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("cutoff", [-5.0, 0.0, 0.5, 1.0, 9.0])
def test_cutoff_line_and_labels_stay_inside(cutoff, width):
    svg = charts.histogram(
        charts.Bins((0.0, 0.5, 1.0), (("kept", (3, 1)),)),
        name="h",
        title="t",
        description="d",
        axis="score",
        width=width,
        marker=charts.Marker(cutoff, f"cutoff {cutoff}", "← dropped", "kept →"),
    )
    x = float(re.search(r'<line class="cutoff" x1="([\d.]+)"', svg).group(1))
    assert 0 < x < width
    assert f"cutoff {cutoff}</text>" in svg


@given(st.lists(st.integers(0, 1_000), min_size=1, max_size=700), st.integers(1, 100))
def test_merged_bins_keep_the_counts(counts, limit):
    edges = tuple(map(float, range(len(counts) + 1)))
    bins = charts.merged(charts.Bins(edges, (("kept", tuple(counts)),)), limit)
    assert len(bins.edges) - 1 == len(bins.layers[0][1]) <= limit
    assert sum(bins.layers[0][1]) == sum(counts)
    assert (bins.edges[0], bins.edges[-1]) == (edges[0], edges[-1])


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_bar_lengths_are_proportional(width):
    rows = [charts.Bar(n, (("kept", float(v)),), (str(v),)) for n, v in (("a", 10), ("b", 40))]
    svg = charts.bars(rows, name="b", title="t", description="d", width=width)
    short, long = rectangles(svg, "kept", "width")
    assert long / short == pytest.approx(4, rel=1e-2)
    assert rectangles(svg, "track", "width")[1] == long


def test_charts_carry_an_accessible_name_and_escape_it():
    svg = str(charts.bars([], name="b", title=HOSTILE, description=HOSTILE))
    page = Page(svg)
    assert ("svg", "role", "img") in page.attributes
    assert page.ids == ["b-wide-t", "b-wide-d"]
    assert "script" not in page.tags


# -- words -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "0.0%"),
        (1, "100.0%"),
        (0.99999, ">99.9%"),
        (0.00001, "<0.1%"),
        (0.3, "30.0%"),
        (None, "–"),  # noqa: RUF001
    ],
)
def test_percent_is_honest_at_its_ends(value, said):
    assert formats.percent(value) == said


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (999_999, "1.00 MB"),
        (17_431_552, "17.4 MB"),
        (4 * 10**15, "4.00 PB"),
    ],
)
def test_size(number, said):
    assert formats.size(number) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.4123, "0.41 s"),
        (12.34, "12.3 s"),
        (204, "3 min 24 s"),
        (3599.7, "1 h 00 min"),
        (7_530, "2 h 05 min"),
    ],
)
def test_duration(seconds, said):
    assert formats.duration(seconds) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0, "0"),
        (0.43125, "0.4313"),
        (-12.5, "-12.50"),
        (123_456.0, "123,456"),
        (3e-9, "3.000e-09"),
        (math.nan, "NaN"),
        (-math.inf, "-∞"),
    ],
)
def test_score(value, said):
    assert formats.score(value) == said


@given(FLOATS)
def test_exact_gives_back_the_float32(value):
    assert np.float32(formats.exact(value)) == np.float32(value)


@given(st.text(st.characters()))
def test_clean_text_is_encodable_and_stays_clean(text):
    once = formats.clean(text)
    once.encode()
    assert formats.clean(once) == once
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", once)


def test_clean_shows_undecodable_bytes():
    assert formats.clean("caf\udce9\x00") == "caf\\udce9␀"


@given(st.text(), st.integers(4, 40))
def test_shortened_text_fits(text, cells):
    assert formats.columns(formats.shorten(text, cells)) <= cells


def test_tiny_images_grow_by_whole_factors():
    small = thumbnails.thumbnail(image(28))
    large = thumbnails.thumbnail(image(96, kind="WEBP"))
    assert (small.width, small.tiny) == (112, True)
    assert (large.width, large.tiny) == (96, False)
    assert large.uri.startswith("data:image/webp;base64,")
    assert thumbnails.thumbnail(image(9, kind="JPEG")).uri.startswith("data:image/jpeg;base64,")
