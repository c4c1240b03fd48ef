"""Flags, files and defaults in their order; errors as exit codes; the last line of JSON."""

from __future__ import annotations

import json
from typing import get_args

import pytest

from dataprune_ray import __version__, cli
from dataprune_ray.config import PruneConfig, stages
from dataprune_ray.errors import BadDataError, ConfigError, DataPruneError, GateError


def parse(*arguments: str, **defaults) -> PruneConfig:
    return cli.parse(PruneConfig, list(arguments), "A job.", defaults)[0]


def test_no_flags_give_the_defaults():
    assert parse() == PruneConfig()
    assert parse(keep=0.2, input="x") == PruneConfig.from_flat({"keep": 0.2, "input": "x"})


def test_flags_override_the_file_and_the_file_the_defaults(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("keep: 0.3\nseed: 7\nmetric: [loss, el2n]\nid-column: a\noverwrite: true\n")
    config = parse("--config", str(path), "--keep", "0.4", keep=0.1, seed=1, strategy="mean")
    assert config.select.keep == 0.4
    assert config.select.seed == 7
    assert config.select.strategy == "mean"
    assert config.score.metric == ("loss", "el2n")
    assert config.corpus.id_column == "a"
    assert config.write.overwrite
    config = parse("--config", str(path), "--metric", "margin", "--no-overwrite")
    assert config.score.metric == ("margin",)
    assert not config.write.overwrite


def test_a_share_is_a_number_or_a_word():
    assert parse("--noise-cut", "0.2", "--beta", "auto").select.noise_cut == 0.2
    assert parse("--noise-cut", "auto").select.noise_cut == "auto"
    with pytest.raises(ConfigError, match="noise_cut='most'"):
        parse("--noise-cut", "most")


def test_every_field_is_a_flag():
    values = {
        "bool": "",
        "int": "3",
        "float": "0.5",
        "str": "x",
    }
    for stage in stages(PruneConfig).values():
        for name, field in stage.model_fields.items():
            flag = "--" + name.replace("_", "-")
            kind = str(field.annotation)
            if kind.startswith("tuple[typing.Literal"):
                value = get_args(get_args(field.annotation)[0])[0]
            elif "Literal" in kind:
                value = str(field.default)
            else:
                value = next((v for k, v in values.items() if k in kind), "x")
            value = "2%" if name == "max_bad_rows" else value
            config = parse(flag, value) if value else parse(flag)
            found = config.flat()[name]
            found = found[0] if isinstance(found, list) else found
            assert str(found) in (value, "True", "3.0")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--metric", "el2n,loss"], ("el2n", "loss")),
        (["--metric", "el2n", "--metric", "loss"], ("el2n", "loss")),
        (["--metric", " el2n , loss ,"], ("el2n", "loss")),
        (["--metric=el2n"], ("el2n",)),
    ],
)
def test_lists(arguments, expected):
    assert parse(*arguments).score.metric == expected


def test_lists_of_numbers():
    config = parse("--mean", "0.5,0.25,0.1", "--std", "1,2,3")
    assert config.corpus.mean == (0.5, 0.25, 0.1)
    assert config.corpus.std == (1.0, 2.0, 3.0)
    assert parse("--mean=-0.5,1").corpus.mean == (-0.5, 1.0)


@pytest.mark.parametrize("limit", ["1%", "0.01", "25", "0"])
def test_limits(limit):
    assert parse("--max-bad-rows", limit).score.max_bad_rows == limit


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--keep", "2"], "keep=2.0: "),
        (["--max-bad-rows", "101%"], "max_bad_rows='101%'"),
        (["--std", "0.5,0"], r"std=\(?\[?0.5, 0.0"),
        (["--metric", ""], r"metric=\[\]"),
        (["--config", "/no/such.yaml"], "config='/no/such.yaml'"),
    ],
)
def test_bad_values_are_configuration_errors(arguments, said):
    with pytest.raises(ConfigError, match=said):
        parse(*arguments)


def test_an_unknown_key_of_the_file_is_named(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("kepe: 0.3\n")
    with pytest.raises(ConfigError, match=r"kepe=0\.3: unknown setting; known are: actors"):
        parse("--config", str(path))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--kepe", "1"], "--kepe"),
        (["--kee", "0.5"], "--kee"),
        (["--keep", "half"], "--keep"),
        (["--seed", "1.5"], "--seed"),
        (["--format", "csv"], "parquet"),
        (["--mean", "a,b"], "--mean"),
        (["stray"], "stray"),
        (["--keep"], "--keep"),
    ],
)
def test_flags_that_cannot_be_parsed_end_with_two(arguments, said, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(*arguments)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_help_shows_every_flag_with_its_default(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0
    assert "A job." in shown
    for stage in stages(PruneConfig).values():
        for name in stage.model_fields:
            assert "--" + name.replace("_", "-") in shown
    assert "(default el2n)" in shown
    assert "a share (1% or 0.01) or a number of rows (default 1%)" in shown
    assert "%%" not in shown


def test_the_version(capsys):
    with pytest.raises(SystemExit):
        parse("--version")
    assert capsys.readouterr().out.strip() == __version__


# Running


def run(body, *, as_json: bool, capsys):
    code = cli.run(body, as_json=lambda: as_json)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def raising(error):
    def body():
        raise error

    return body


def test_a_job_that_succeeds(capsys):
    code, out, err = run(lambda: {"kept": 3}, as_json=False, capsys=capsys)
    assert (code, out) == (0, "")
    assert "error" not in err

    def body():
        print("summary")  # noqa: T201 - a job prints
        return {"kept": 3}

    code, out, _ = run(body, as_json=True, capsys=capsys)
    assert code == 0
    first, last = out.splitlines()
    assert first == "summary"
    assert json.loads(last) == {"exit_code": 0, "kept": 3}


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConfigError("keep", 2, "is too much"), 2),
        (GateError("worse"), 3),
        (BadDataError("too many"), 4),
        (DataPruneError("other"), 1),
    ],
)
def test_errors_become_exit_codes(error, expected, capsys):
    code, out, err = run(raising(error), as_json=False, capsys=capsys)
    assert (code, out) == (expected, "")
    assert f"error: {error}" in err
    assert "Traceback" not in err
    code, out, err = run(raising(error), as_json=True, capsys=capsys)
    assert code == expected
    assert json.loads(out.splitlines()[-1]) == {"exit_code": expected, "error": str(error)}
    assert f"error: {error}" in err


def test_an_unforeseen_error_is_one_with_its_traceback(capsys, caplog):
    code, out, _ = run(raising(KeyError("x")), as_json=True, capsys=capsys)
    assert code == 1
    assert json.loads(out.splitlines()[-1]) == {"exit_code": 1, "error": "KeyError: 'x'"}
    assert "KeyError: 'x'" in caplog.text


def test_a_flag_error_keeps_its_exit_code():
    with pytest.raises(SystemExit) as caught:
        cli.run(lambda: {"x": parse("--kepe")}, as_json=lambda: False)
    assert caught.value.code == 2


def test_an_interrupt_is_no_result():
    with pytest.raises(KeyboardInterrupt):
        cli.run(raising(KeyboardInterrupt()), as_json=lambda: True)
