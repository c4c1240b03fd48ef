"""Every exception the package raises on purpose, each with the exit code a job ends with.

A message names the field or file, the value that was found and what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterable


class DataPruneError(Exception):
    """Base of all errors raised on purpose; ``exit_code`` is the process status of a job."""

    exit_code: int = 1


class ConfigError(DataPruneError):
    """A setting is wrong: said before Ray starts wherever that can be known."""

    exit_code = 2

    def __init__(self, field: str, value: object, advice: str) -> None:
        super().__init__(f"{field}={value!r}: {advice}")
        self.field = field
        self.value = value

    def __reduce__(self) -> tuple[type[ConfigError], tuple[object, ...]]:
        message = str(self)
        return (_restore_config_error, (self.field, self.value, message))  # type: ignore[return-value]


def _restore_config_error(field: str, value: object, message: str) -> ConfigError:
    error = ConfigError(field, value, "")
    error.args = (message,)
    return error


class UnknownNameError(ConfigError):
    """A name that no registry entry has."""

    def __init__(self, field: str, value: object, choices: Iterable[str]) -> None:
        super().__init__(field, value, f"unknown; choose one of: {', '.join(sorted(choices))}")


class StorageError(DataPruneError, OSError):
    """A file system that should answer did not, however often it was asked."""


class DiskFullError(DataPruneError):
    """Nothing more can be written; what was committed stays and is not done again."""

    def __init__(self, path: str, reason: object) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"disk full at {self.path}: {self.reason}; free some space there and run the same "
            "command again: it goes on where it stopped"
        )


class GateError(DataPruneError):
    """A comparison's gate failed."""

    exit_code = 3


class BadDataError(DataPruneError):
    """More bad data than the run allows, or a corpus that cannot be pruned at all."""

    exit_code = 4
