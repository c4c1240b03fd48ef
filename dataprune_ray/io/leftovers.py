"""What attempts that were cut off leave in an output folder, and its removal.

Only files with a run's own names are ever removed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress

from dataprune_ray.io.filesystems import join, list_names, remove_file
from dataprune_ray.io.output import FOLDERS, Output, remove_leftovers

_FRAGMENT = re.compile(r"\d{6,}-[0-9a-f]{12}\.parquet")
_PART = re.compile(r"part-\d{5,}\.parquet")


@contextmanager
def tidied(output: Output) -> Iterator[None]:
    """Remove unfinished files: of an earlier attempt before the block, of this one if it fails.

    They would only take up space: no reader takes them for finished ones.
    """
    if output.resumed:
        remove_leftovers(output.root, FOLDERS)
    try:
        yield
    except Exception:
        with suppress(OSError):  # the error that led here says more
            remove_leftovers(output.root, FOLDERS)
        raise


def remove_other_fragments(folder: str, names: Collection[str]) -> None:
    """Delete the files of fragments that are not among ``names``."""
    _remove_others(folder, _FRAGMENT, names)


def remove_other_parts(folder: str, names: Collection[str]) -> None:
    """Delete the parts that are not among ``names``."""
    _remove_others(folder, _PART, names)


def _remove_others(folder: str, ours: re.Pattern[str], names: Collection[str]) -> None:
    for name in list_names(folder, ".parquet"):
        if ours.fullmatch(name) and name not in names:
            remove_file(join(folder, name))
