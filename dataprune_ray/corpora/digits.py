"""The digits set that scikit-learn ships: 1,797 grey images of 8 x 8 pixels, ten classes.

For a first try without any data. It has no splits of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dataprune_ray.corpora.config import MakeCorpusConfig
from dataprune_ray.corpora.source import Source, only_split
from dataprune_ray.io.shards import Sample

_LEVELS = 16


def open_digits(config: MakeCorpusConfig) -> Source:
    """Digits as uint8 images (8, 8): level v of 0..16 becomes the pixel value round(v·255/16)."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 - slow to import, needed here alone

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / _LEVELS)).astype(np.uint8)  # (N, 8, 8)

    def rows() -> Iterator[Sample]:
        for image, label in zip(images, bunch.target, strict=True):
            yield Sample(image, int(label))

    split = only_split(config.data)
    names = tuple(str(name) for name in bunch.target_names)
    return Source("image", {split: rows}, {split: len(images)}, class_names=names)
