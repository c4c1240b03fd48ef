"""Settings of the corpus job: what is read, what is changed, and what pieces are written."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from dataprune_ray.config import Job, Stage

#: Settings that say how a corpus is made, not what comes out of it.
OPERATIONAL = frozenset({"output", "download", "overwrite"})


class SourceConfig(Stage):
    """Where the rows come from."""

    source: str = Field(
        "digits",
        min_length=1,
        description="digits, torchvision:NAME, images:DIR (one sub-folder per class), "
        "table:FILE.csv or .tsv (or a glob), npy:DIR (or X.npy beside y.npy)",
    )
    root: str = Field("data", description="folder in which torchvision finds its data sets")
    download: bool = Field(
        default=False, description="let torchvision download a set that is missing"
    )
    split: Literal["train", "test", "all"] = Field(
        "all",
        description="splits that are made; a source without splits of its own becomes the one "
        "named, 'all' meaning train",
    )
    limit: int | None = Field(None, ge=1, description="rows per split, for tries; default: all")


class NoiseConfig(Stage):
    """Deliberate mistakes, for trials of metrics that should find them."""

    label_noise: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the train rows that get another label, the true one kept in "
        "'clean_label'",
    )
    label: str = Field("label", min_length=1, description="label column of a table, or none")
    seed: int = Field(0, ge=0, lt=2**63, description="of the label noise")


class ShardConfig(Stage):
    """Where the corpus goes and in what pieces."""

    output: str = Field("", description="output directory; default: corpus/NAME")
    layout: str = Field(
        "auto",
        description="image (encoded, as Hugging Face stores images), tensor (Arrow fixed-shape "
        "tensors), raw (the array's bytes), webdataset (tar) or table (plain columns); auto: "
        "image for images, raw for arrays, table for tables",
    )
    shard_rows: int = Field(10_000, ge=1, description="rows per file")
    row_group_rows: int = Field(1_000, ge=1, description="rows per Parquet row group, at most")
    overwrite: bool = Field(default=False, description="replace an earlier corpus's files")


class MakeCorpusConfig(Job):
    """Everything one corpus depends on."""

    data: SourceConfig = SourceConfig()
    noise: NoiseConfig = NoiseConfig()
    shards: ShardConfig = ShardConfig()

    def decisive(self) -> dict[str, Any]:
        """The settings that decide what the corpus holds, JSON-ready.

        ``root`` counts only where torchvision reads from it, ``seed`` and ``label`` always: the
        label column's name is part of what a corpus says about itself.
        """
        unused = OPERATIONAL
        if not self.data.source.startswith("torchvision:"):
            unused |= {"root"}
        return {name: value for name, value in self.flat().items() if name not in unused}
