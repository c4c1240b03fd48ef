"""NumPy files: ``X.npy`` (N, …) beside ``y.npy`` (N,), memory-mapped, never unpickled.

A folder with ``X_train.npy``, ``y_train.npy``, ``X_test.npy`` and ``y_test.npy`` has two splits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dataprune_ray.corpora.config import MakeCorpusConfig
from dataprune_ray.corpora.source import Source, only_split, own_splits
from dataprune_ray.errors import ConfigError
from dataprune_ray.io.shards import Sample

_ROWS = 1024
Pair = tuple[Path, Path]


def open_arrays(config: MakeCorpusConfig) -> Source:
    """The folder or file named after ``npy:``.

    Raises:
        ConfigError: files are missing, or their dtypes or shapes do not fit.
    """
    pairs = _pairs(config)
    lengths = {name: _check(config.data.source, *pair) for name, pair in pairs.items()}
    return Source(
        "tensor",
        {name: partial(_samples, *pair) for name, pair in pairs.items()},
        dict(lengths),
        label_values=partial(_distinct, [labels for _, labels in pairs.values()]),
    )


def _pairs(config: MakeCorpusConfig) -> dict[str, Pair]:
    source = config.data.source
    path = Path(source.partition(":")[2])
    folder = path if path.is_dir() else path.parent
    if path.is_file() or (folder / "X.npy").is_file():
        data = path if path.is_file() else folder / "X.npy"
        found = {only_split(config.data): (data, folder / "y.npy")}
    else:
        named = {s: (folder / f"X_{s}.npy", folder / f"y_{s}.npy") for s in ("train", "test")}
        present = [name for name, pair in named.items() if pair[0].is_file()]
        if not present:
            raise ConfigError("source", source, "holds neither X.npy nor X_train.npy")
        found = {name: named[name] for name in own_splits(config.data, present)}
    for _, labels in found.values():
        if not labels.is_file():
            raise ConfigError("source", source, f"{labels} is missing")
    return found


def _open(path: Path) -> npt.NDArray[Any]:
    loaded: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return loaded


def _check(source: str, data: Path, labels: Path) -> int:
    try:
        x, y = _open(data), _open(labels)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError("source", source, f"cannot be opened: {error}") from None
    if x.dtype.kind not in "biuf" or x.dtype.itemsize > np.dtype(np.float64).itemsize or x.ndim < 2:  # noqa: PLR2004
        found = f"{x.dtype} of shape {x.shape}"
        raise ConfigError("source", source, f"{data} must hold numbers (N, …), not {found}")
    if y.dtype.kind not in "biufU" or y.shape not in ((len(x),), (len(x), 1)):
        found = f"{y.dtype} of shape {y.shape}"
        raise ConfigError("source", source, f"{labels} must hold {len(x)} labels, not {found}")
    return len(x)


def _samples(data: Path, labels: Path) -> Iterator[Sample]:
    """Rows, mapping the file anew for each run of rows so that read pages are let go."""
    start, total = 0, len(_open(data))
    while start < total:
        x = np.array(_open(data)[start : start + _ROWS])
        y = np.array(_open(labels)[start : start + _ROWS]).reshape(-1)
        start += _ROWS
        if x.dtype.kind == "b":
            x = x.view(np.uint8)
        for row, label in zip(x, _integers(y).tolist(), strict=True):
            yield Sample(row, label)


def _integers(labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return labels.astype(np.int64) if labels.dtype.kind in "bu" else labels


def _distinct(files: Sequence[Path]) -> list[Any]:
    found: set[Any] = set()
    for path in files:
        labels = _open(path)
        for start in range(0, len(labels), _ROWS * _ROWS):
            part = np.array(labels[start : start + _ROWS * _ROWS]).reshape(-1)
            found.update(_integers(np.unique(part)).tolist())
    return sorted(found)
