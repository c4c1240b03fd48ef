"""What the features and the label of a corpus are: decided once, then sent to every worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

Modality = Literal["image", "tensor", "tabular", "text"]

#: Buckets of one categorical column's one-hot code.
CATEGORY_BUCKETS = 64
#: Tokens kept of one text, and the size of the hashed vocabulary (token 0 is padding).
TEXT_TOKENS = 256
TEXT_BUCKETS = 1 << 16


@dataclass(frozen=True)
class TabularColumn:
    """A numeric column with the moments that standardise it, or a categorical one (hashed)."""

    name: str
    categorical: bool
    mean: float = 0.0
    std: float = 1.0

    @property
    def width(self) -> int:
        """Values the column contributes to a row."""
        return CATEGORY_BUCKETS if self.categorical else 1


@dataclass(frozen=True)
class FeatureSpec:
    """How a row becomes a model input of ``shape``.

    Images are uint8 (C, H, W), tensors float32 of their own shape, tabular rows float32 (D,) and
    texts int64 (L,) hashed tokens with L up to `TEXT_TOKENS`, 0 for padding.
    """

    modality: Modality
    columns: tuple[str, ...]
    shape: tuple[int, ...]
    image_size: int | None = None
    max_pixels: int = 64_000_000
    any_size: bool = False  # the model's own transform brings images to one shape
    fit: bool = False  # images of other sizes are scaled and cropped to `shape`
    tabular: tuple[TabularColumn, ...] = ()

    @property
    def row_bytes(self) -> int:
        """Bytes of one encoded row, at most."""
        size = {"image": 1, "text": 8}.get(self.modality, 4)
        for dimension in self.shape:
            size *= dimension
        return size


@dataclass(frozen=True)
class LabelSpec:
    """What the label is; ``column`` None for an unlabelled corpus.

    ``classes`` are the label values as text, in class order (class i is ``classes[i]``);
    ``names`` what people call them. For regression ``mean`` and ``std`` are the label's moments.
    """

    column: str | None
    task: Literal["classification", "regression"] = "classification"
    stored: str = "int64"  # type in the score table: int64, string or float64
    classes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    mean: float = 0.0
    std: float = 1.0

    @property
    def type(self) -> pa.DataType:
        """Arrow type of the label in the score table."""
        return {"int64": pa.int64(), "string": pa.string(), "float64": pa.float64()}[self.stored]

    @property
    def outputs(self) -> int:
        """Width of a model's output: the classes, or 1 for regression."""
        return 1 if self.task == "regression" else max(len(self.classes), 1)
