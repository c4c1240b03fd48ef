"""Corpora from what people have: the digits, torchvision's sets, image folders, tables, arrays.

``make_corpus`` streams a source into shards with one line per source kind in ``SOURCES``. It needs
no Ray, and memory does not grow with the set.
"""

from __future__ import annotations

import itertools
import logging
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataprune_ray.corpora.arrays import open_arrays
from dataprune_ray.corpora.config import MakeCorpusConfig
from dataprune_ray.corpora.digits import open_digits
from dataprune_ray.corpora.folder import open_folder
from dataprune_ray.corpora.output import CorpusFolder, claim, find_finished
from dataprune_ray.corpora.rows import Numbering, group_batches, group_samples
from dataprune_ray.corpora.source import Source
from dataprune_ray.corpora.table import open_table
from dataprune_ray.corpora.torchvision_sets import open_torchvision
from dataprune_ray.errors import BadDataError, ConfigError, DataPruneError, UnknownNameError
from dataprune_ray.io.shards import ID, ShardSpec, ShardWriter, get_shard_writer

log = logging.getLogger(__name__)

#: Source kind, the part of ``--source`` before the colon, to the function that opens it.
SOURCES: dict[str, Callable[[MakeCorpusConfig], Source]] = {
    "digits": open_digits,
    "images": open_folder,
    "npy": open_arrays,
    "table": open_table,
    "torchvision": open_torchvision,
}

_AUTO_LAYOUT = {"image": "image", "tensor": "raw", "table": "table"}


@dataclass(frozen=True)
class MadeCorpus:
    """Where a corpus lies and what it holds; ``made`` is false where it was there already."""

    output: str
    made: bool
    splits: dict[str, int]
    layout: str
    next_command: str
    notes: tuple[str, ...] = ()


def make_corpus(config: MakeCorpusConfig) -> MadeCorpus:
    """Make the corpus that ``config`` describes, unless it is there already.

    Raises:
        ConfigError: a setting is wrong, or the output holds something else.
        BadDataError: the source cannot be read.
    """
    root = Path(config.shards.output or f"corpus/{_default_name(config.data.source)}")
    settings = _check(config)
    finished = None if config.shards.overwrite else find_finished(root, settings)
    if finished is not None:
        return _summary(root, finished, made=False)
    source = SOURCES[config.data.source.partition(":")[0]](config)
    layout = _layout(config, source)
    column = "x" if source.kind == "tensor" else "img"
    writer = get_shard_writer(layout)(ShardSpec(column, source.class_names))
    numbering = Numbering.of(config, source)
    folder = claim(root, settings, overwrite=config.shards.overwrite)
    splits = {}
    try:
        for name in source.splits:
            splits[name] = _write_split(
                folder, name, source, config, writer=writer, numbering=numbering
            )
    except DataPruneError:
        folder.abandon()
        raise
    features = source.schema.names if source.schema is not None else [column]
    label = config.noise.label if source.kind == "table" else writer.label
    about = {
        "source": config.data.source,
        "kind": source.kind,
        "layout": layout,
        "splits": splits,
        "features": [name for name in features if name not in (label, ID)],
        "label": label,
        "class_names": source.class_names,
        "notes": source.notes,
    }
    return _summary(root, folder.finish(about), made=True)


def make_digits(output: str | Path) -> Path:
    """Make the digits corpus (1,797 PNG images, ten classes) and return the folder of its rows.

    All rows are in the train split, ``output/train``; nothing is done where it is there already.
    """
    values = {"source": "digits", "layout": "image", "output": str(output)}
    made = make_corpus(MakeCorpusConfig.from_flat(values))
    return Path(made.output) / "train"


def _check(config: MakeCorpusConfig) -> dict[str, Any]:
    """The settings that a corpus is known by, after what can be said before a source is opened."""
    kind, colon, rest = config.data.source.partition(":")
    if kind not in SOURCES:
        raise UnknownNameError("source", config.data.source, SOURCES)
    if (kind == "digits") == bool(colon) or (colon and not rest):
        usage = "digits takes no argument" if kind == "digits" else f"say which, as {kind}:…"
        raise ConfigError("source", config.data.source, usage)
    if config.shards.layout != "auto":
        get_shard_writer(config.shards.layout)
    if "://" in config.shards.output:
        raise ConfigError("output", config.shards.output, "must be a folder on this machine")
    if config.noise.label_noise and config.data.split == "test":
        raise ConfigError(
            "label_noise", config.noise.label_noise, "applies to the train split only"
        )
    return config.decisive()


def _layout(config: MakeCorpusConfig, source: Source) -> str:
    layout = config.shards.layout
    if layout == "auto":
        return _AUTO_LAYOUT[source.kind]
    if (layout == "table") != (source.kind == "table"):
        advice = f"does not fit {config.data.source}, which holds {source.kind} rows; leave it out"
        raise ConfigError("layout", layout, advice)
    return layout


def _write_split(
    folder: CorpusFolder,
    split: str,
    source: Source,
    config: MakeCorpusConfig,
    *,
    writer: ShardWriter,
    numbering: Numbering,
) -> int:
    """Write the shards of one split and return its number of rows."""
    limit, size = config.data.limit, config.shards.shard_rows
    expected = source.lengths[split]
    if expected is not None and limit is not None:
        expected = min(expected, limit)
    shards = None if expected is None else -(-expected // size)
    grouped = group_batches if source.kind == "table" else group_samples
    stream: Iterator[Any] = source.splits[split]()
    pieces = grouped(stream, limit, size, config.shards.row_group_rows)
    numbered = numbering.number(pieces, noisy=split == "train")
    total = 0
    for index, shard in itertools.groupby(numbered, key=lambda piece: piece.shard):
        of = "" if shards is None else f"-of-{shards:05d}"
        name = f"{split}/{split}-{index:05d}{of}{writer.suffix}"
        counted: list[int] = []
        path = folder.begin(name)
        writer.write_shard(path, (_count(piece.rows, len(piece), counted) for piece in shard))
        folder.end(name, sum(counted))
        total += sum(counted)
        log.info("%s: %d rows", path, sum(counted))
    if not total:
        raise BadDataError(f"{config.data.source}: the {split} split has no rows")
    if expected is not None and total != expected:
        found = f"{total} rows were read where {expected} were counted"
        raise BadDataError(f"{config.data.source}: {found}; it changed while it was read")
    return total


def _count(rows: Any, number: int, counted: list[int]) -> Any:
    counted.append(number)
    return rows


def _default_name(source: str) -> str:
    kind, _, rest = source.partition(":")
    if kind in ("digits", "torchvision"):
        name = (rest or kind).lower()
    else:
        path = Path(rest).absolute()
        stem = path.name.partition(".")[0]
        name = path.parent.name if stem in ("X", "") or re.search(r"[*?\[]", stem) else stem
    return re.sub(r"[^\w.-]+", "-", name).strip(".-") or kind


def _summary(root: Path, about: dict[str, Any], *, made: bool) -> MadeCorpus:
    first = next(iter(about["splits"]))
    command = ["python", "jobs/prune.py", "--input", str(root / first), "--label", about["label"]]
    if about["kind"] == "table":
        command += ["--features", ",".join(about["features"]), "--id-column", ID]
    return MadeCorpus(
        output=str(root),
        made=made,
        splits=about["splits"],
        layout=about["layout"],
        next_command=shlex.join(command),
        notes=tuple(about["notes"]),
    )
