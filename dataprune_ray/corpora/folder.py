"""A folder of images, one sub-folder per class; the files are copied byte for byte.

``DIR/CLASS/…`` becomes one split, ``DIR/train/CLASS/…`` with ``DIR/test/CLASS/…`` two (``val``,
``valid`` or ``validation`` stand in where there is no ``test``). Files are not opened, so one that
is corrupt reaches the corpus as it is, for pruning to find. One folder is listed at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from dataprune_ray.corpora.config import MakeCorpusConfig
from dataprune_ray.corpora.source import Source, only_split, own_splits
from dataprune_ray.errors import BadDataError, ConfigError
from dataprune_ray.io.shards import Sample

_TEST_FOLDERS = ("test", "val", "valid", "validation")
#: Formats that Pillow recognises but leaves to other programs, or that are no single image.
_NOT_IMAGES = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})


@dataclass(frozen=True)
class _Split:
    """The folder of one split, and which of its sub-folders is which class."""

    root: Path
    folder: Path
    classes: tuple[str, ...]
    suffixes: frozenset[str]


def open_folder(config: MakeCorpusConfig) -> Source:
    """The folder named after ``images:``.

    Raises:
        ConfigError: it is no folder of class folders.
    """
    source = config.data.source
    root = Path(source.partition(":")[2])
    if not root.is_dir():
        raise ConfigError("source", source, "is not a folder")
    folders = _split_folders(root, config)
    classes = tuple(sorted({name for folder in folders.values() for name in _folders(folder)}))
    if not classes:
        raise ConfigError("source", source, "needs one sub-folder of images per class")
    suffixes = image_suffixes()
    splits = {name: _Split(root, f, classes, suffixes) for name, f in folders.items()}
    lengths = {name: sum(1 for _ in _files(split)) for name, split in splits.items()}
    if not all(lengths.values()):
        empty = next(name for name, rows in lengths.items() if not rows)
        raise ConfigError("source", source, f"{folders[empty]} holds no image in a class folder")
    others = sum(_count(folder) for folder in folders.values()) - sum(lengths.values())
    return Source(
        "image",
        {name: partial(_samples, split) for name, split in splits.items()},
        lengths,
        class_names=tuple(map(_text, classes)),
        notes=(f"{others} files left out: no image by their ending",) if others else (),
    )


def image_suffixes() -> frozenset[str]:
    """Lower-case file endings of the image formats that Pillow itself decodes."""
    extensions = Image.registered_extensions()
    decodable = set(Image.OPEN) - _NOT_IMAGES
    return frozenset(ending for ending, kind in extensions.items() if kind in decodable)


def _split_folders(root: Path, config: MakeCorpusConfig) -> dict[str, Path]:
    names = _folders(root)
    if "train" not in names or not set(names) <= {"train", *_TEST_FOLDERS}:
        return {only_split(config.data): root}
    found = {"train": root / "train"}
    for name in _TEST_FOLDERS:
        if name in names:
            found.setdefault("test", root / name)
    return {name: found[name] for name in own_splits(config.data, list(found))}


def _folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _files(split: _Split) -> Iterator[tuple[int, str]]:
    """Label and path of every image, class by class, in the order of the names."""
    for label, name in enumerate(split.classes):
        folder = split.folder / name
        if folder.is_dir():
            for path in _walk(str(folder)):
                if os.path.splitext(path)[1].lower() in split.suffixes:  # noqa: PTH122
                    yield label, path


def _walk(folder: str) -> Iterator[str]:
    """Files below a folder, sorted; hidden ones and linked folders are left out."""
    with os.scandir(folder) as entries:
        found = sorted(
            (e.name, e.is_dir(follow_symlinks=False), e.is_file())
            for e in entries
            if not e.name.startswith(".")
        )
    for name, is_folder, is_file in found:
        path = f"{folder}{os.sep}{name}"
        if is_folder:
            yield from _walk(path)
        elif is_file:
            yield path


def _count(folder: Path) -> int:
    return sum(1 for _ in _walk(str(folder)))


def _samples(split: _Split) -> Iterator[Sample]:
    for label, path in _files(split):
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise BadDataError(f"{_text(path)}: cannot be read: {error.strerror}") from None
        yield Sample(content, label, _text(os.path.relpath(path, split.root)))


def _text(name: str) -> str:
    """A file name as valid text: bytes that are no UTF-8 appear as backslash, x and two digits."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
