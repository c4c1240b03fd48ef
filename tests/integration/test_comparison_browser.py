"""Comparison, search and quality in a real browser: no console error, no overflow, contrast."""

from __future__ import annotations

from dataclasses import replace

import pytest
from browsing import SCHEMES, WIDTHS, browse, needs_chromium
from report_samples import (
    COMPARISONS,
    HOSTILE,
    digits_comparison,
    folds_comparison,
    hostile,
    keeps_comparison,
    quality_digits,
    report,
    tuned_digits,
)

from dataprune_ray.report import render, render_comparison

pytestmark = needs_chromium


def long_names():
    """Names that do not break where a line ends, in every place."""
    comparison, word = keeps_comparison(), "unbreakable" * 12

    def renamed(arm):
        return arm if arm in {"full", "pruned", "random"} else f"{word}{arm}{HOSTILE}"

    comparison = replace(
        comparison,
        arms=tuple(replace(arm, arm=renamed(arm.arm)) for arm in comparison.arms),
        runs=tuple(replace(run, arm=renamed(run.arm)) for run in comparison.runs),
        classes=tuple(f"{word}{name}" for name in comparison.classes),
        test=word * 3,
        reasons=(word * 3, HOSTILE),
        notes=(word * 3, HOSTILE),
    )
    tuned = tuned_digits()
    steps = tuple(replace(step, candidate=word + step.candidate) for step in tuned.steps)
    tuned = replace(tuned, steps=steps, chosen=word + tuned.chosen, reason=word * 3)
    return render(
        replace(hostile("word"), comparison=comparison, tuned=tuned, quality=quality_digits())
    )


PAGES = {
    **{
        name: lambda make=make: render_comparison(make(), "A comparison", "python jobs/compare.py")
        for name, make in COMPARISONS.items()
    },
    "whole": lambda: render(
        report(comparison=folds_comparison(), tuned=tuned_digits(), quality=quality_digits())
    ),
    "long-names": long_names,
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", PAGES)
def test_sections_fit_and_read_well_at_every_width(name, scheme, tmp_path):
    page = PAGES[name]()
    frames, console = browse(page, tmp_path, scheme)
    assert console == []
    assert [frame["width"] for frame in frames] == pytest.approx(WIDTHS, abs=20)
    for frame in frames:
        assert frame["overflow"] <= 0
        assert frame["outside"] == []
        assert frame["clipped"] == []
        assert frame["contrast"] >= 4.5, frame["faintest"]
        assert frame["images"] == [True] * page.count("<img ")
        shown = [width for width in frame["charts"] if width]
        drawn = [width for width in frame["charts"] if not width]
        assert len(shown) >= len(drawn) >= 2  # each chart once, the other drawing of it hidden


def test_the_measurement_sees_text_that_leaves_its_drawing(tmp_path):
    page = render_comparison(digits_comparison(), "A comparison", "python jobs/compare.py")
    spoiled = page.replace('<text class="name" x="0"', '<text class="name" x="-40"', 1)
    frames, _ = browse(spoiled, tmp_path, "light", (1280,))
    assert len(frames[0]["clipped"]) == 1
