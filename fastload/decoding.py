"""From an encoded file, an opened image or an array to upright uint8 RGB pixels, by Pillow."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageOps, features

from fastload.errors import DataError
from fastload.sources.base import Sample

# Only formats whose decoders read pixels and nothing else; Pillow would also run Ghostscript on EPS.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", *(("AVIF",) if features.check("avif") else ()))
_KEPT = ("JPEG", "MPO", "PNG")
_REDUCING_GAP = 3.0  # Pillow's figure for a result that cannot be told from a direct resize


class BrokenImage(DataError):
    """An image that cannot be decoded: `--skip-broken` leaves these out, and nothing else."""


@contextlib.contextmanager
def strict_pillow() -> Iterator[None]:
    """Make Pillow's warning about decompression bombs an error; keep its other warnings to itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def decode(sample: Sample, resize: int | None = None) -> np.ndarray:
    """Return a sample's pixels, uint8 [H, W, 3]: upright by its EXIF orientation, greyscale and CMYK as RGB.

    Arguments:
        sample: an encoded file, an opened image, or uint8 [H, W] or [H, W, C] with 1 to 4 channels.
        resize: S for the shorter side brought to S, antialiased bilinear, and the centre square S × S.

    Raises BrokenImage, saying why, for what cannot be decoded.
    """
    if isinstance(sample, np.ndarray):
        pixels = _array_to_rgb(sample)
        return pixels if resize is None else np.asarray(_centre_square(Image.fromarray(pixels), resize))
    if isinstance(sample, DataError):
        raise BrokenImage(str(sample))
    with _broken():
        image = _open(sample) if isinstance(sample, bytes) else sample
        image = _to_rgb(_upright(image))
        return np.asarray(image if resize is None else _centre_square(image, resize))


def check_encoded(data: bytes) -> None:
    """Check that a file is a JPEG or PNG that decodes. Raises BrokenImage, or DataError for another format."""
    with _broken():
        image = _open(data)
        if image.format in _KEPT:
            image.load()
            return
    raise DataError(f"is {image.format}; --encoded keeps JPEG and PNG files only, so pack without it")


@contextlib.contextmanager
def _broken() -> Iterator[None]:
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Image.UnidentifiedImageError as error:
        raise BrokenImage("is not an image of a known format") from error
    except Exception as error:  # Pillow's decoders raise anything from SyntaxError to struct.error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BrokenImage(f"cannot be decoded ({reason[:120]})") from error


def _open(data: bytes) -> Image.Image:
    if not data:
        raise BrokenImage("is empty")
    return Image.open(io.BytesIO(data), formats=_FORMATS)


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    if "exif" not in image.info and image.format not in ("TIFF", "PNG", "WEBP"):
        return image
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image  # unreadable EXIF says nothing about the orientation


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise BrokenImage(f"has 32-bit pixels (mode {image.mode}); images are 8 or 16 bits a channel")
    return image if image.mode == "RGB" else image.convert("RGB")


def _array_to_rgb(pixels: np.ndarray) -> np.ndarray:
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.shape[2] in (1, 2):  # grey, or grey with alpha
        pixels = np.repeat(pixels[:, :, :1], 3, axis=2)
    return np.ascontiguousarray(pixels[:, :, :3])


def _centre_square(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to `size`, then take the centre square."""
    width, height = image.size
    if (width, height) == (size, size):
        return image
    shorter = min(width, height)
    wide, high = (max(size, round(side * size / shorter)) for side in (width, height))
    if wide * high > (Image.MAX_IMAGE_PIXELS or float("inf")):
        raise BrokenImage(f"is {height}×{width}, too narrow to bring its shorter side to {size}")
    image = image.resize((wide, high), Image.Resampling.BILINEAR, reducing_gap=_REDUCING_GAP)
    left, top = (wide - size) // 2, (high - size) // 2
    return image.crop((left, top, left + size, top + size))
