"""Settings: ranges, lists, limits, and errors that name the field and the value."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dataprune_ray.config import (
    OPERATIONAL,
    GateConfig,
    PruneConfig,
    TrainConfig,
    TuneConfig,
    parse_limit,
    read_yaml,
    stages,
)
from dataprune_ray.errors import ConfigError

FIELDS = {name for stage in stages(PruneConfig).values() for name in stage.model_fields}


def refusal(**values) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        PruneConfig.from_flat(values)
    assert caught.value.exit_code == 2
    return caught.value


def test_names_are_flat_and_belong_to_one_stage():
    total = sum(len(stage.model_fields) for stage in stages(PruneConfig).values())
    assert total == len(FIELDS)
    assert set(PruneConfig().flat()) == FIELDS


def test_every_field_is_described_once():
    for stage in stages(PruneConfig).values():
        for name, field in stage.model_fields.items():
            assert field.description, name


def test_flat_values_are_distributed_and_come_back():
    config = PruneConfig.from_flat({"keep": 0.3, "metric": ["loss", "el2n"], "input": "x"})
    assert (config.select.keep, config.score.metric, config.corpus.input) == (
        0.3,
        ("loss", "el2n"),
        "x",
    )
    assert PruneConfig.from_flat(config.flat()) == config
    assert PruneConfig.from_flat(json.loads(json.dumps(config.flat()))) == config
    assert config.replace(keep=0.7).select.keep == 0.7
    assert config.replace(keep=0.7).score == config.score


def test_the_result_depends_on_decisive_fields_alone():
    config = PruneConfig()
    trials = {n for stage in (TrainConfig, TuneConfig, GateConfig) for n in stage.model_fields}
    assert set(config.decisive()) == FIELDS - OPERATIONAL - trials
    assert set(config.replace(strategy="auto").decisive()) == FIELDS - OPERATIONAL
    other = config.replace(batch_size=7, actors=3, num_gpus=0.5, overwrite=True, address="auto")
    assert other.decisive() == config.decisive()
    for name, value in {"keep": 0.1, "seed": 1, "metric": ["loss"], "input": "y"}.items():
        assert config.replace(**{name: value}).decisive() != config.decisive()


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValidationError):
        PruneConfig().select.keep = 0.1


@pytest.mark.parametrize("name", ["kepe", "select", "", "keep-end"])
def test_an_unknown_setting_lists_the_known_ones(name):
    error = refusal(**{name: 1})
    assert (error.field, error.value) == (name, 1)
    assert "unknown setting; known are: actors, " in str(error)
    assert all(field in str(error) for field in FIELDS)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("keep", 1.1),
        ("keep", -0.1),
        ("keep", float("nan")),
        ("keep", "half"),
        ("keep", None),
        ("max_fraction", 1.5),
        ("threshold", "high"),
        ("gradient_weight", float("nan")),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", 0.5),
        ("batch_size", 0),
        ("actors", 0),
        ("num_gpus", -1),
        ("num_gpus", float("inf")),
        ("proxy_fraction", 0.0),
        ("proxy_fraction", 1.01),
        ("proxy_learning_rate", 0.0),
        ("proxy_epochs", 0),
        ("num_classes", 0),
        ("image_size", 0),
        ("gradient_weight", -0.5),
        ("class_floor", -1),
        ("part_rows", 0),
        ("format", "csv"),
        ("modality", "audio"),
        ("task", "ranking"),
        ("keep_end", "middle"),
        ("precision", "float8"),
        ("overwrite", "perhaps"),
        ("metric", []),
        ("metric", ""),
        ("metric", {"a": 1}),
        ("input", 3),
    ],
)
def test_a_value_out_of_range_is_named(field, value):
    error = refusal(**{"seed": 1, field: value})
    assert error.field == field
    assert str(error).startswith(f"{field}=")


@pytest.mark.parametrize("field", ["batch_size", "beta", "noise_cut"])
def test_a_number_or_a_word_names_both(field):
    said = str(refusal(**{field: "many"}))
    assert "number" in said or "integer" in said
    assert said.endswith(", or 'auto'")


def test_a_batch_size_that_is_left_open_is_found():
    for value in ("auto", None):
        assert PruneConfig.from_flat({"batch_size": value}).score.batch_size == "auto"
    assert PruneConfig.from_flat({"batch_size": "64"}).score.batch_size == 64


@pytest.mark.parametrize("value", [(0.0,), (0.5, -1.0), (float("nan"),), (float("inf"),)])
def test_deviations_are_positive(value):
    error = refusal(std=value)
    assert error.field == "std"
    assert "std=" in str(error)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("metric", "el2n", ("el2n",)),
        ("metric", "el2n, loss,", ("el2n", "loss")),
        ("metric", ["el2n", "loss"], ("el2n", "loss")),
        ("features", "a,b", ("a", "b")),
        ("features", ["a,b"], ("a,b",)),
        ("features", "", ()),
        ("checkpoint", "x.pt", ("x.pt",)),
        ("mean", 0.5, (0.5,)),
        ("mean", 1, (1.0,)),
        ("mean", "0.5, 0.25", (0.5, 0.25)),
        ("std", [0.5, 1], (0.5, 1.0)),
    ],
)
def test_lists_may_be_one_value_or_text(field, value, expected):
    config = PruneConfig.from_flat({field: value})
    found = {**config.corpus.model_dump(), **config.score.model_dump(), **config.model.model_dump()}
    assert found[field] == expected


# Limits of bad rows


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1%", (0.01, True)),
        ("0.01", (0.01, True)),
        ("0%", (0.0, True)),
        ("0", (0.0, True)),
        ("100%", (1.0, True)),
        ("12.5%", (0.125, True)),
        ("1e-3", (0.001, True)),
        ("1", (1.0, False)),
        ("25", (25.0, False)),
        ("1e6", (1e6, False)),
    ],
)
def test_limits(text, expected):
    assert parse_limit(text) == expected
    assert PruneConfig.from_flat({"max_bad_rows": text}).score.max_bad_rows == text


@pytest.mark.parametrize(
    "text", ["", "%", "many", "101%", "-1", "-1%", "nan", "inf", "nan%", "2.5", "1%x"]
)
def test_limits_that_are_none(text):
    error = refusal(max_bad_rows=text)
    assert (error.field, error.value) == ("max_bad_rows", text)


@pytest.mark.parametrize(("value", "expected"), [(0.01, "0.01"), (25, "25"), ("1%%", "1%")])
def test_limits_as_yaml_writes_them(value, expected):
    assert PruneConfig.from_flat({"max_bad_rows": value}).score.max_bad_rows == expected


@given(st.text(max_size=8))
def test_a_limit_is_a_share_or_a_number_of_rows(text):
    try:
        value, share = parse_limit(text)
    except ValueError:
        return
    assert value >= 0
    assert value <= 1 if share else value == int(value)


# YAML


def test_yaml_keys_may_have_dashes(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("keep: 0.3\nid-column: uid\nmetric: [el2n, loss]\nlabel: null\n")
    found = read_yaml(str(path))
    assert found == {"keep": 0.3, "id_column": "uid", "metric": ["el2n", "loss"], "label": None}
    assert PruneConfig.from_flat(found).corpus.id_column == "uid"


@pytest.mark.parametrize(
    "content", ["", "[1, 2]", "text", "a: [", "!!python/object/apply:os.getcwd []", "a: 1\n\tb: 2"]
)
def test_yaml_that_is_no_mapping_is_refused(tmp_path, content):
    path = tmp_path / "c.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"config='.*c\.yaml'"):
        read_yaml(str(path))


def test_yaml_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"config='.*cannot be read"):
        read_yaml(str(tmp_path / "gone.yaml"))
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(str(tmp_path / "x.yaml"))


@pytest.mark.parametrize(
    ("epochs", "most", "kept"),
    [(4, 20, (1, 2, 3, 4)), (10, 4, (3, 5, 8, 10)), (1, 20, (1,)), (3, 2, (2, 3))],
)
def test_epochs_that_a_proxy_keeps_are_evenly_spaced_and_end_with_the_last(epochs, most, kept):
    config = PruneConfig.from_flat({"proxy_epochs": epochs, "dynamics_checkpoints": most})
    assert config.model.kept_epochs == kept


def test_the_last_of_a_trajectory_judges_where_no_checkpoint_is_given():
    given = PruneConfig.from_flat({"trajectory": ["a", "b"]}).model.given
    assert given == ("b",)
    both = PruneConfig.from_flat({"trajectory": ["a", "b"], "checkpoint": ["c"]}).model.given
    assert both == ("c",)
