"""Image bytes to what an ``img`` element needs, without trusting them."""

from __future__ import annotations

import base64
import io
import warnings
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

MAX_BYTES = 300_000
MAX_PIXELS = 4_000_000
TINY = 64  # pixels: up to this, an image is enlarged by whole factors and drawn pixelated
SHOWN = 128  # pixels that a tiny image is enlarged to, at most

_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}


@dataclass(frozen=True)
class Thumbnail:
    """A data URI and the size to show it in."""

    uri: str
    width: int
    height: int
    tiny: bool


def thumbnail(content: bytes) -> Thumbnail | str:
    """The thumbnail in ``content``, or a sentence on why it cannot be shown.

    Only the header is read; the browser decodes the pixels.
    """
    if len(content) > MAX_BYTES:
        return f"Image not embedded: {len(content):,} bytes is no thumbnail."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=tuple(_TYPES))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError):
        return "Image not embedded: not a readable PNG, JPEG or WebP."
    width, height = image.size
    if width * height > MAX_PIXELS:
        return f"Image not embedded: {width:,} by {height:,} pixels is no thumbnail."
    tiny = max(width, height) <= TINY
    factor = max(1, SHOWN // max(width, height, 1)) if tiny else 1
    encoded = base64.b64encode(content).decode("ascii")
    return Thumbnail(
        f"data:{_TYPES[str(image.format)]};base64,{encoded}", width * factor, height * factor, tiny
    )
