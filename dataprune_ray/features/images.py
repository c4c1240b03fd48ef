"""Encoded images and stored pixels to uint8 planes."""

from __future__ import annotations

import io
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageOps

from dataprune_ray.features.columns import column, is_text
from dataprune_ray.features.encoded import Array, Encoded, Transform, collect
from dataprune_ray.features.spec import FeatureSpec
from dataprune_ray.features.tensors import (
    NPY_MAGIC,
    encode_tensors,
    load_array,
    raw_layout,
    stored_shape,
)

# Large images are refused by their pixels, below. Set once: filters are not safe among threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

#: Formats that are decoded. Pillow knows more, some of which start other programs.
_FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF",
    "WEBP",
)  # fmt: skip


@cache
def formats() -> tuple[str, ...]:
    """Names of the formats that are decoded, of those that this Pillow was built with."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def encode_images(
    spec: FeatureSpec, batch: pa.RecordBatch, transform: Transform | None, threads: int = 1
) -> Encoded:
    """The feature column's images as uint8 (m, C, H, W), or as the transform leaves them.

    Images are decoded by ``threads`` at a time; what comes out does not depend on them.
    """
    values = column(batch, spec.columns[0])
    layout = raw_layout(spec.columns[0], batch.schema)
    if layout is not None or not (is_text(values.type) or pa.types.is_struct(values.type)):
        shape = layout[1] if layout is not None else stored_shape(values.type) or spec.shape
        return _pixel_tensors(
            spec, encode_tensors(spec, batch, shape, np.dtype(np.uint8)), transform
        )
    if pa.types.is_struct(values.type):
        values = pc.struct_field(values, "bytes")
    if spec.any_size and transform is None:  # whoever needs no transform needs one shape alone
        spec = replace(spec, any_size=False, fit=True)
    images: list[Array] = []
    errors: dict[int, str] = {}
    decode = partial(_decoded, spec, transform)
    if threads > 1 and len(values) > 1:
        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(decode, values))
    else:
        found = list(map(decode, values))
    for position, image in enumerate(found):
        if isinstance(image, str):
            errors[position] = image
        else:
            images.append(image)
    return collect(images, errors, len(values), spec.shape, np.dtype(np.uint8))


def _decoded(spec: FeatureSpec, transform: Transform | None, payload: pa.Scalar) -> Array | str:
    """An image, or the reason why it is none."""
    buffer = payload.as_buffer() if payload.is_valid else None
    if buffer is None or buffer.size == 0:
        return "image is null" if buffer is None else "image has no bytes"
    try:
        image = decode_image(memoryview(buffer), spec)
        return image if transform is None else np.asarray(transform(image))
    except Exception as error:  # noqa: BLE001 - decoders raise anything on broken bytes
        return f"image cannot be decoded: {error}"


def decode_image(payload: bytes | memoryview, spec: FeatureSpec) -> npt.NDArray[np.uint8]:
    """Decode one encoded image (or ``.npy`` array) to uint8 (C, H, W) as the spec says.

    Raises:
        ValueError: more pixels than ``spec.max_pixels``, or a shape other than ``spec.shape``.
        OSError: not an image, or a truncated one.
    """
    with _open(payload) as opened:
        if opened.width * opened.height > spec.max_pixels:
            raise ValueError(f"{opened.width} x {opened.height} pixels exceed {spec.max_pixels}")
        opened.load()
        image = _eight_bits(opened).convert("L" if spec.shape[0] == 1 else "RGB")
    if spec.any_size:
        return np.ascontiguousarray(_planes(image))
    height, width = (spec.image_size, spec.image_size) if spec.image_size else spec.shape[1:]
    if (spec.fit or spec.image_size) and image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    pixels = _planes(image)
    if pixels.shape != spec.shape:
        raise ValueError(f"shape {pixels.shape} is not {spec.shape}; --image-size resizes")
    return pixels


def _open(payload: bytes | memoryview) -> Image.Image:
    if bytes(payload[:6]) != NPY_MAGIC:
        return Image.open(io.BytesIO(payload), formats=formats())
    array = load_array(payload)
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise ValueError(f"array of {array.dtype} {array.shape} is not a uint8 image")
    pixels = to_planes(array[None], array.shape)[0]  # (C, H, W)
    if len(pixels) not in (1, 3):
        raise ValueError(f"array of shape {array.shape} has neither 1 nor 3 channels")
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image; of 16 bits per pixel the upper 8, where Pillow would clip."""
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))


def _planes(image: Image.Image) -> npt.NDArray[np.uint8]:
    pixels = np.asarray(image, np.uint8)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)  # noqa: PLR2004


def to_chw(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Channels, height and width of a pixel array (H, W), (H, W, C) or (C, H, W)."""
    if len(shape) == 2:  # noqa: PLR2004
        return (1, shape[0], shape[1])
    if shape[-1] in (1, 3):
        return (shape[2], shape[0], shape[1])
    return (shape[0], shape[1], shape[2])


def to_planes(pixels: Array, shape: tuple[int, ...]) -> Array:
    """Pixel arrays (N, *shape) as (N, C, H, W)."""
    if len(shape) == 3 and shape[-1] in (1, 3):  # noqa: PLR2004
        return pixels.transpose(0, 3, 1, 2)
    return pixels.reshape(-1, *to_chw(shape))


def _pixel_tensors(spec: FeatureSpec, encoded: Encoded, transform: Transform | None) -> Encoded:
    pixels = to_planes(encoded.values, encoded.values.shape[1:])
    if pixels.shape[1] == 1 and spec.shape[0] > 1:  # grey pixels for a model of colours
        pixels = pixels.repeat(spec.shape[0], axis=1)
    pixels = np.ascontiguousarray(pixels)
    if transform is None or not len(pixels):
        return Encoded(pixels, encoded.good, encoded.errors)
    rows = [np.asarray(transform(image)) for image in pixels]
    return collect(rows, encoded.errors, len(encoded.good), rows[0].shape, rows[0].dtype)
