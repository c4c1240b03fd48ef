"""The report in a real browser: no console error, no horizontal overflow, readable contrast."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from browsing import SCHEMES, WIDTHS, browse, needs_chromium
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from report_samples import EMPTY

from dataprune_ray.report import (
    BadRow,
    ClassCount,
    Gallery,
    GalleryItem,
    ReportData,
    ScoreHistogram,
    render,
)

pytestmark = needs_chromium


# -- samples ---------------------------------------------------------------------------------------


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def handwritten(digit, rng):
    """A white digit on black, 28 pixels square, shifted, turned and blurred."""
    image = Image.new("L", (56, 56))
    ImageDraw.Draw(image).text(
        (28 + int(rng.integers(-3, 4)), 28), str(digit), 255, ImageFont.load_default(44), "mm"
    )
    image = image.rotate(float(rng.normal(0, 14)), Image.Resampling.BICUBIC)
    image = image.filter(ImageFilter.GaussianBlur(1.2)).resize((28, 28))
    noisy = np.asarray(image, float) * 1.25 + rng.normal(0, 6, (28, 28))
    return png(Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)))


def photo(rng):
    """A smooth colour picture of 160 by 120 pixels."""
    small = rng.integers(30, 226, (4, 5, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize((160, 120), Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


def histogram(rng, *, bins=60, kept_end="high", overridden=False, metric="el2n"):
    values = np.concatenate([rng.gamma(2.0, 0.11, 48_000), rng.normal(0.85, 0.18, 11_958)])
    values = np.clip(values, 0, 1.42)
    cutoff = float(np.sort(values)[-17_987])
    counts, edges = np.histogram(values, bins=bins)
    high = np.histogram(values[values >= cutoff], bins=edges)[0]
    kept = {"high": high, "low": counts - high, "random": counts // 2}[kept_end]
    dropped = counts - kept
    as_ints = lambda array: tuple(int(number) for number in array)  # noqa: E731
    return ScoreHistogram(
        metric, tuple(map(float, edges)), as_ints(kept), as_ints(dropped), cutoff, kept_end,
        overridden,
    )  # fmt: skip


def items(rng, number, *, scores, kept, make):
    return tuple(
        GalleryItem(
            file=f"train/shard-{int(rng.integers(0, 12)):05d}.parquet",
            row=int(rng.integers(0, 5_000)),
            key=None,
            score=float(score),
            kept=kept,
            **make(index),
        )
        for index, score in enumerate(np.linspace(*scores, number) + rng.normal(0, 1e-4, number))
    )


def digits_report():
    rng = np.random.default_rng(7)

    def digit(index):
        return {"label": str(index % 10), "image": handwritten(index % 10, rng)}

    def mislabelled(index):
        return {"label": str((index + 3) % 10), "image": handwritten(index % 10, rng)}

    return ReportData(
        title="Handwritten digits, pruned to 30%",
        rows_in=60_000,
        rows_kept=17_987,
        rows_dropped=41_971,
        rows_quarantined=42,
        requested_keep=0.3,
        bytes_in=17_431_552,
        bytes_out=5_310_208,
        sentence="Scored 60,000 rows with el2n from a small_cnn proxy trained for 10 epochs, and "
        "kept the hardest 30%.",
        histogram=histogram(rng),
        classes=tuple(
            ClassCount(str(c), round(n * s), n - round(n * s) - (bad := c % 4 and 6), bad)
            for c, (n, s) in enumerate(
                zip(
                    (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
                    (0.21, 0.16, 0.33, 0.36, 0.29, 0.35, 0.22, 0.28, 0.42, 0.403),
                    strict=True,
                )
            )
        ),
        galleries=(
            Gallery(
                "Highest scores, kept",
                "The rows that the proxy finds hardest. Look for wrong labels: noise is kept here.",
                items(rng, 12, scores=(1.419, 1.352), kept=True, make=mislabelled),
            ),
            Gallery(
                "Just above the cutoff, kept",
                "The last rows that made it.",
                items(rng, 12, scores=(0.4315, 0.4342), kept=True, make=digit),
            ),
            Gallery(
                "Lowest scores, dropped",
                "The rows that the proxy learns first; the ones kept stand for them.",
                items(rng, 12, scores=(0.0011, 0.0032), kept=False, make=digit),
            ),
        ),
        bad_reasons=(
            ("image cannot be decoded", 31),
            ("label is null", 9),
            ("score is not finite", 2),
        ),
        bad_examples=(
            BadRow("train/shard-00003.parquet", 118, None, "image cannot be decoded: broken PNG"),
            BadRow("train/shard-00003.parquet", 4_902, "img_084902", "label is null"),
            BadRow("train/shard-00011.parquet", None, None, "file ends early: no footer"),
        ),
        stages=(
            ("train proxy", 48.21),
            ("score", 21.37),
            ("select", 0.41),
            ("write", 6.02),
            ("report", 0.88),
        ),
        settings=(
            ("input", "s3://corpora/digits/train"),
            ("metric", "el2n"),
            ("strategy", "top"),
            ("keep", "0.3"),
            ("per_class", "false"),
            ("seed", "0"),
        ),
        outputs=(
            ("runs/digits-30/data/", "17,987 kept rows in 2 Parquet files"),
            ("runs/digits-30/scores/", "one row per corpus row, with every metric"),
            ("runs/digits-30/decisions/", "kept or dropped, with the reason, per row"),
            ("runs/digits-30/quarantine/", "42 bad rows with their errors"),
            ("runs/digits-30/manifest.json", "counts, rule, inputs, outputs, versions"),
        ),
        warnings=(
            "Label noise sits at the kept end of el2n: see the first gallery before training.",
        ),
        command="python jobs/prune.py --input s3://corpora/digits/train --output runs/digits-30 "
        "--features image --label label --metric el2n --strategy top --keep 0.3 --seed 0 "
        "--model small_cnn --batch-size 512 --num-gpus 1",
        versions=(
            ("dataprune-ray", "0.1.0"),
            ("python", "3.11.7"),
            ("ray", "2.63.0"),
            ("torch", "2.14.0"),
        ),
    )


REVIEWS = (
    "Great phone, the battery lasts two days and the screen is lovely.",
    "Terrible. Arrived broken, and nobody answered my mails for three weeks!",
    "Είναι εξαιρετικό προϊόν, το συνιστώ ανεπιφύλακτα.",
    "画質がとても良く、値段以上の価値があります。また買いたいです。",
    "منتج ممتاز وسعره مناسب جدا",
    "<script>document.title = 'owned'</script><img src=x onerror=alert(1)>",
    "a" * 400,
    "One sentence, again and again. " * 60,
)


def text_report():
    """Text rows, hundreds of classes, hostile and very long strings, the direction turned."""
    rng = np.random.default_rng(11)

    def review(index):
        return {"label": f"topic {index}", "text": REVIEWS[index % len(REVIEWS)]}

    deep = "s3://a-bucket-with-a-long-name/" + "/".join(f"level-{i}" for i in range(24))
    return replace(
        digits_report(),
        title="Reviews <script>alert(1)</script> & " + "unbreakable" * 12,
        histogram=histogram(rng, kept_end="low", overridden=True, metric="forgetting_events"),
        classes=tuple(
            ClassCount(f"topic {i} " + "and more " * (i % 9), k, int(rng.integers(1, 900)), i % 3)
            for i, k in enumerate(map(int, rng.integers(0, 600, 300)))
        ),
        galleries=(
            Gallery(
                "Lowest scores, kept",
                "Typical reviews.",
                items(rng, 8, scores=(0, 3), kept=True, make=review),
            ),
            Gallery("Nothing", "An empty group.", ()),
        ),
        bad_examples=(BadRow(deep + "/file.parquet", 12, "k" * 300, "UnicodeDecodeError " * 20),),
        settings=tuple(
            (f"option_{i}.{'nested.' * (i % 9)}x", "v" * (i % 300)) for i in range(4000)
        ),
        outputs=((deep + "/data/", "kept rows"),),
        warnings=("w" * 500, "Look at the classes."),
        command="python jobs/prune.py --input " + deep + " --output " + "x" * 300,
    )


def table_report():
    rng = np.random.default_rng(5)

    def person(index):
        return {
            "label": (">50K", "<=50K")[index % 2],
            "fields": (
                ("age", str(int(rng.integers(18, 80)))),
                ("workclass", "Private"),
                ("education", "Bachelors"),
                ("occupation", "Exec-managerial"),
                ("hours-per-week", str(int(rng.integers(20, 60)))),
                ("native-country", "United-States"),
            ),
        }

    def picture(index):
        return {"label": f"scene {index}", "image": photo(rng)}

    return replace(
        digits_report(),
        title="Census income, half of it",
        sentence="Kept a random half of the rows, as a baseline.",
        histogram=replace(histogram(rng, kept_end="random", bins=400), cutoff=None),
        requested_keep=None,
        classes=(ClassCount("<=50K", 12_000, 12_720), ClassCount(">50K", 4_000, 3_841, 12)),
        galleries=(
            Gallery(
                "Kept", "A random few.", items(rng, 6, scores=(0.1, 0.9), kept=True, make=person)
            ),
            Gallery(
                "Photographs",
                "Larger thumbnails.",
                items(rng, 7, scores=(0.9, 0.1), kept=False, make=picture),
            ),
        ),
        warnings=(),
    )


REPORTS = {
    "digits": digits_report,
    "text": text_report,
    "table": table_report,
    "empty": lambda: EMPTY,
}


# -- browser ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", REPORTS)
def test_page_fits_and_reads_well_at_every_width(name, scheme, tmp_path):
    page = render(REPORTS[name]())
    frames, console = browse(page, tmp_path, scheme)
    assert console == []
    assert [frame["width"] for frame in frames] == pytest.approx(WIDTHS, abs=20)  # less scrollbar
    for frame in frames:
        assert frame["overflow"] <= 0
        assert frame["outside"] == []
        assert frame["clipped"] == []
        assert frame["contrast"] >= 4.5, frame["faintest"]
        assert frame["images"] == [True] * page.count("<img ")
        assert len([width for width in frame["charts"] if width]) >= 1
        assert "owned" not in frame["title"]


def test_dark_and_light_differ(tmp_path):
    page = render(digits_report())
    backgrounds = {
        scheme: browse(page, tmp_path, scheme, (1280,))[0][0]["background"] for scheme in SCHEMES
    }
    assert backgrounds["light"] == "rgb(246, 247, 249)"
    assert backgrounds["dark"] == "rgb(18, 21, 27)"


def test_the_measurement_sees_what_it_looks_for(tmp_path):
    page = render(digits_report())
    spoiled = page.replace(
        "<main>",
        '<main><p style="color:red">styled against the policy</p>'
        '<img src="blocked.png" alt="" width="2000" height="10">',
    )
    frames, console = browse(spoiled, tmp_path, "light", (390,))
    assert frames[0]["overflow"] > 1000
    assert frames[0]["outside"]
    assert False in frames[0]["images"]
    assert any("Content Security Policy" in line for line in console)


def test_only_one_drawing_of_a_chart_shows(tmp_path):
    page = render(digits_report())
    frames, _ = browse(page, tmp_path, "light", (390, 1280))
    for frame in frames:
        shown = [width > 0 for width in frame["charts"]]
        assert shown.count(True) == 4  # the strip, scores, classes and stages
