"""What a search tries, what it refuses, and the settings that it leaves."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataprune_ray import trying, tuning
from dataprune_ray.config import PruneConfig
from dataprune_ray.errors import ConfigError
from dataprune_ray.strategies import STRATEGIES
from dataprune_ray.summary import tuned_text
from dataprune_ray.tuning import Candidate, candidates
from dataprune_ray.verdict import Interval, Tuned, TuneStep


@settings(deadline=None)
@given(st.floats(0.01, 0.99), st.one_of(st.none(), st.floats(0, 0.6)), st.booleans())
def test_defaults_can_all_be_cut_and_hold_random(keep, noise, grouped):
    found = candidates((), keep, noise, grouped=grouped)
    assert len(set(found)) == len(found)
    assert Candidate("random") in found
    for one in found:
        assert one.beta + keep <= 1
        assert STRATEGIES[one.strategy].uses_keep
        assert grouped or not STRATEGIES[one.strategy].needs_labels
        assert Candidate.parse(str(one)) == one


@pytest.mark.parametrize(("noise", "expected"), [(0.204, {0.2, 0.3}), (0.37, {0.37, 0.47})])
def test_the_noise_share_sets_what_is_cut_off(noise, expected):
    found = candidates((), 0.3, noise, grouped=True)
    betas = {one.beta for one in found if one.strategy == "stratified"}
    assert expected <= betas
    assert Candidate("class_balanced", min(expected)) in found


def test_a_clean_corpus_is_tried_at_round_shares_alone():
    found = candidates((), 0.3, 0.004, grouped=False)
    assert {one.beta for one in found} == {0.0, 0.1, 0.2, 0.3}


def test_named_candidates_are_tried_with_random():
    found = candidates(("window:0.25", "ratio", "ratio"), 0.5, 0.2, grouped=True)
    assert [str(one) for one in found] == ["window:0.25", "ratio", "random"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "strategy='nothing'"),
        ("threshold", "does not keep a given fraction"),
        ("window:much", "give a beta"),
        ("window:1.0", "between 0 and 1"),
        ("window:-0.1", "between 0 and 1"),
        ("random:0.1", "leave beta out"),
    ],
)
def test_what_cannot_be_tried_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        Candidate.parse(text)


def test_diverged_trainings_come_last():
    assert sorted([[math.nan], [1.0], [3.0, 5.0]], key=tuning._rank) == [
        [3.0, 5.0],
        [1.0],
        pytest.approx([math.nan], nan_ok=True),
    ]


TUNED = Tuned(
    chosen="window:0.2",
    strategy="window",
    beta=0.2,
    keep=0.3,
    noise_share=0.19,
    reason="window:0.2 minus random: +1.00 points.",
    steps=(
        TuneStep(1, "window:0.2", 0.3, 100, 2, 91.5, 0.25, survived=True),
        TuneStep(1, "ratio", 0.3, 100, 2, 80.0, 0.5, survived=False),
    ),
    validation_rows=1_200,
    confirmed=(("window:0.2", Interval(1.0, -math.inf, math.inf, 1)),),
)


def test_its_settings_are_those_of_the_corpus_with_the_choice():
    config = PruneConfig.from_flat(
        {"input": "c", "output": "o", "strategy": "auto", "keep": 0.5, "metric": "loss", "seed": 3}
    )
    best = trying.settings(config, "o/scores", TUNED)
    again = PruneConfig.from_flat(best)
    assert (again.select.strategy, again.select.beta, again.select.keep) == ("window", 0.2, 0.3)
    assert again.score.metric == ("loss",)
    assert (again.run.scores, again.select.seed, again.corpus.input) == ("o/scores", 3, "c")
    assert "output" not in best


def test_the_text_shows_every_trial_and_the_choice():
    text = tuned_text({**TUNED.to_json(), "output": "o"})
    assert "91.50 ±" in text
    assert "ratio" in text
    assert text.count("dropped") == 1
    assert "19.0 %" in text
    assert "Chosen: window:0.2 at keep 0.3." in text
    assert "--config o/best.yaml" in text


def test_intervals_without_bounds_are_strict_json():
    assert TUNED.to_json()["confirmed"][0][1]["low"] is None
