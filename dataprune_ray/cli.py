"""Command line of the jobs: flags derived from the configuration, errors turned into exit codes."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from dataprune_ray import __version__
from dataprune_ray.config import Stage, build, read_yaml, stages
from dataprune_ray.errors import DataPruneError

C = TypeVar("C", bound=Stage)


def parse(
    cls: type[C], argv: Sequence[str] | None, description: str, defaults: Mapping[str, Any]
) -> tuple[C, argparse.Namespace]:
    """Parse ``argv`` into a configuration: defaults, then ``--config`` YAML, then flags.

    Args:
        cls: job configuration made of stages; every stage field becomes a flag.
        argv: arguments without the program name; None for ``sys.argv``.
        description: first line of ``--help``.
        defaults: settings of this job that differ from the configuration's own.

    Raises:
        ConfigError: a value is out of range or a name unknown.
    """
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    for title, stage in stages(cls).items():
        group = parser.add_argument_group(title)
        for name, field in stage.model_fields.items():
            _add_flag(group, name, field)
    other = parser.add_argument_group("job")
    other.add_argument("--config", metavar="FILE.yaml", help="settings file; flags override it")
    other.add_argument("--json", action="store_true", help="end with one line of JSON on stdout")
    other.add_argument("--version", action="version", version=__version__)
    options = parser.parse_args(argv)
    values = dict(defaults)
    if options.config:
        values.update(read_yaml(options.config))
    known = {name for stage in stages(cls).values() for name in stage.model_fields}
    values.update({k: v for k, v in vars(options).items() if k in known and v is not None})
    return build(cls, values), options


def run(
    main: Callable[[], Mapping[str, Any]],
    *,
    as_json: Callable[[], bool],
    outcome: Mapping[str, Any] | None = None,
) -> int:
    """Call a job's body, print its errors on stderr and return the process's exit code.

    With ``as_json`` the last line on stdout is a JSON object with the exit code and what the body
    returned, or the error with what ``outcome`` holds by then; also where the error was not
    foreseen (exit code 1).
    """
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr
    )
    try:
        result = dict(main())
        code = 0
    except DataPruneError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - a job's stderr
        result = {"error": str(error), **(outcome or {})}
        code = error.exit_code
    except Exception as error:
        logging.getLogger(__name__).exception("unexpected error")
        result = {"error": f"{type(error).__name__}: {error}"}
        code = 1
    if as_json():
        print(json.dumps({"exit_code": code, **result}), flush=True)  # noqa: T201 - its last line
    return code


#: Corpus that jobs without --input make for themselves.
DIGITS = "corpus/digits"


def default_output(folder: str, source: str) -> str:
    """``FOLDER/NAME`` here; a split's folder is named after its corpus."""
    path = PurePosixPath(source)
    name = path.parent.name if path.name in ("train", "test", "data") else path.stem
    return f"{folder}/{name or 'corpus'}"


def _add_flag(group: argparse._ArgumentGroup, name: str, field: FieldInfo) -> None:
    flag = "--" + name.replace("_", "-")
    kind = field.annotation
    base = str if _is_choice_or_number(kind) else _without_none(kind)
    text = (field.description or "").replace("%%", "%").replace("%", "%%")
    default = field.default
    if default not in (None, (), "", False, True):
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        text += f" (default {shown})".replace("%", "%%")
    if base is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
    elif get_origin(base) is Literal:
        group.add_argument(flag, choices=get_args(base), default=None, help=text)
    elif get_origin(base) is tuple:
        item = get_args(base)[0]
        item = str if get_origin(item) is Literal else item  # the configuration checks the choice
        group.add_argument(
            flag, action=_Extend, type=_comma_list(item), default=None, metavar="A,B", help=text
        )
    else:
        group.add_argument(flag, type=base, default=None, metavar=name.upper(), help=text)


class _Extend(argparse.Action):
    """Collects repeated and comma-separated values into one list."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest) or []), *values])


def _comma_list(item: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    def parse_list(text: str) -> list[Any]:
        return [item(part.strip()) for part in text.split(",") if part.strip()]

    parse_list.__name__ = f"list of {getattr(item, '__name__', 'values')}"
    return parse_list


def _is_choice_or_number(kind: Any) -> bool:
    """Whether a setting takes a word besides its numbers: the configuration tells them apart."""
    union = get_origin(kind) in (Union, types.UnionType)
    return union and any(get_origin(arg) is Literal for arg in get_args(kind))


def _without_none(kind: Any) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        return next(arg for arg in get_args(kind) if arg is not type(None))
    return kind
