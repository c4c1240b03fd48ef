"""Image classification sets that torchvision knows, read with torchvision's own classes.

Sets kept as image files give their files' bytes untouched; sets kept as arrays give pixels. Memory
is what torchvision needs for the set.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dataprune_ray.corpora.config import MakeCorpusConfig
from dataprune_ray.corpora.source import Source, own_splits
from dataprune_ray.errors import ConfigError, UnknownNameError
from dataprune_ray.io.shards import Sample, pixels

#: Constructor arguments per split of sets that name their splits in their own way.
_SPLITS: dict[str, dict[str, dict[str, Any]]] = {
    "CLEVRClassification": {"train": {"split": "train"}, "test": {"split": "val"}},
    "EMNIST": {
        "train": {"split": "balanced", "train": True},
        "test": {"split": "balanced", "train": False},
    },
    "FGVCAircraft": {"train": {"split": "trainval"}, "test": {"split": "test"}},
    "ImageNet": {"train": {"split": "train"}, "test": {"split": "val"}},
    "Imagenette": {"train": {"split": "train"}, "test": {"split": "val"}},
    "INaturalist": {"train": {"version": "2021_train"}, "test": {"version": "2021_valid"}},
    "Omniglot": {"train": {"background": True}},
    "OxfordIIITPet": {"train": {"split": "trainval"}, "test": {"split": "test"}},
    "Places365": {"train": {"split": "train-standard"}, "test": {"split": "val"}},
}


def open_torchvision(config: MakeCorpusConfig) -> Source:
    """The set named after ``torchvision:``.

    Raises:
        UnknownNameError: torchvision has no such set.
        ConfigError: the set's files are missing, or its rows are no images with one class each.
    """
    name = config.data.source.partition(":")[2]
    kinds = _sets()
    if name not in kinds:
        raise UnknownNameError("source", config.data.source, [f"torchvision:{n}" for n in kinds])
    arguments = _split_arguments(name, kinds[name])
    opened = {
        split: _open(config, kinds[name], arguments[split])
        for split in own_splits(config.data, list(arguments))
    }
    for rows in opened.values():
        _check(config.data.source, rows)
    return Source(
        "image",
        {split: partial(_samples, rows, Path(config.data.root)) for split, rows in opened.items()},
        {split: len(rows) for split, rows in opened.items()},
        class_names=_class_names(next(iter(opened.values()))),
    )


def _sets() -> dict[str, Callable[..., Any]]:
    """Sets that have class targets and need no argument beyond those given here."""
    from torchvision import datasets  # noqa: PLC0415 - slow to import, needed here alone

    found: dict[str, Callable[..., Any]] = {}
    for name in datasets.__all__:
        kind = getattr(datasets, name)
        parameters = inspect.signature(kind).parameters.values()
        needed = {
            p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
        }
        given = {"root", *_SPLITS.get(name, {}).get("train", {})}
        targets = any(p.name == "target_transform" or p.kind is p.VAR_KEYWORD for p in parameters)
        if needed <= given and targets and name not in _GENERIC:
            found[name] = kind
    return found


#: Not sets, but the classes other sets are made of.
_GENERIC = frozenset({"ImageFolder", "DatasetFolder", "VisionDataset"})


def _split_arguments(name: str, kind: Callable[..., Any]) -> dict[str, dict[str, Any]]:
    if name in _SPLITS:
        return _SPLITS[name]
    parameters = inspect.signature(kind).parameters
    if "train" in parameters:
        return {"train": {"train": True}, "test": {"train": False}}
    if "split" in parameters:
        return {"train": {"split": "train"}, "test": {"split": "test"}}
    return {"train": {}}


def _open(config: MakeCorpusConfig, kind: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    parameters = inspect.signature(kind).parameters
    offered = {"root": config.data.root, "download": config.data.download, "loader": _read_file}
    passed = {key: value for key, value in offered.items() if key in parameters}
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()) and config.data.download:
        passed["download"] = True
    try:
        return kind(**passed, **arguments)
    except (RuntimeError, OSError, ValueError, ImportError, TypeError) as error:
        field, value = ("download", True) if config.data.download else ("root", config.data.root)
        advice = (
            f"torchvision cannot open {kind.__name__} {arguments or ''}: {error}. Pass --download, "
            f"or as --root the folder that torchvision's {kind.__name__} lies in"
        )
        raise ConfigError(field, value, " ".join(advice.split())) from None


def _read_file(path: str | Path) -> Sample:
    return Sample(Path(path).read_bytes(), None, str(path))


def _check(source: str, rows: Any) -> None:
    image, label = (*rows[0], None)[:2] if len(rows) else (None, None)
    is_class = isinstance(label, int | np.integer)
    if not isinstance(image, Image.Image | Sample) or not is_class:
        found = f"({type(image).__name__}, {type(label).__name__})"
        raise ConfigError("source", source, f"is no image classification set: its rows are {found}")


def _samples(rows: Any, root: Path) -> Iterator[Sample]:
    for index in range(len(rows)):
        image, label = rows[index]
        if isinstance(image, Sample):
            yield Sample(image.content, int(label), _relative(str(image.path), root))
        else:
            yield Sample(pixels(image), int(label))


def _relative(path: str, root: Path) -> str:
    try:
        return Path(path).absolute().relative_to(root.absolute()).as_posix()
    except ValueError:
        return Path(path).name


def _class_names(rows: Any) -> tuple[str, ...] | None:
    """The set's own names, else numbers if it knows how many classes there are, else None."""
    names = getattr(rows, "classes", None)
    if isinstance(names, list | tuple) and names:
        return tuple(n if isinstance(n, str) else ", ".join(map(str, n)) for n in names)
    count = getattr(rows, "num_classes", None)
    for attribute in ("targets", "labels", "_labels"):
        targets = getattr(rows, attribute, None)
        if count is None and targets is not None and len(targets):
            count = int(np.max(np.asarray(targets))) + 1
    return tuple(str(label) for label in range(count)) if isinstance(count, int) else None
