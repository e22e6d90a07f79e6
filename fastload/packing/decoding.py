"""From an encoded file, an opened image or an array to upright uint8 pixels, by Pillow."""

from __future__ import annotations

import contextlib
import io
import threading
import warnings
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageFile

from fastload.errors import DataError
from fastload.packing.file_faults import PNG, jpeg_is_cut, png_fault
from fastload.packing.fit import Fit
from fastload.packing.orientation import SIDEWAYS, orientation, upright
from fastload.sources.base import Sample

# Only formats whose decoders read pixels and nothing else; Pillow would also run Ghostscript on EPS.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "AVIF")
_REDUCING_GAP = 3.0  # Pillow's figure for a result that cannot be told from a direct resize
_LARGEST_RESIZED = 1 << 27
Wanted = int | Literal["no alpha"] | None
"""How many channels: None for those that a sample has, "no alpha" for grey or RGB, whichever it is."""

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
ALPHA = "alpha"
_DRAFT = 4
"""How many times the target's side a JPEG has at least that is decoded at a reduced scale, and how many times as many
pixels as others it may have then: libjpeg keeps 3 bytes for each of a progressive one."""
_MEND = "mend or remove it"


class BrokenImage(DataError):
    """A sample that cannot be had or not be stored, and why: `skip_broken` leaves these out, and nothing else.

    Arguments:
        reason: what is wrong with it.
        mend: what to do about it; "" where `reason` says it.
    """

    def __init__(self, reason: str, mend: str = _MEND) -> None:
        super().__init__(reason)
        self.mend = mend


class Decoded(NamedTuple):
    """A sample's pixels, uint8 [H, W, C], and the channel not among them: `ALPHA`, "channel 4 of 4", "" for none."""

    pixels: np.ndarray
    left_out: str


_strict = threading.Lock()
_strict_users = 0
_kept: tuple[int | None, bool] = (None, False)


@contextlib.contextmanager
def strict_pillow() -> Iterator[None]:
    """Have Pillow load no truncated files and keep its warnings to itself; `decode` limits the pixels.

    For one thread at a time: Python's list of warnings that are ignored is one for all.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        with own_limits():
            yield


@contextlib.contextmanager
def own_limits() -> Iterator[None]:
    """Have Pillow load no truncated files, and leave it to `decode` to limit the pixels; for any number of threads."""
    global _strict_users, _kept
    with _strict:
        if not _strict_users:
            _kept = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = None, False
        _strict_users += 1
    try:
        yield
    finally:
        with _strict:
            _strict_users -= 1
            if not _strict_users:
                Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = _kept


def default_max_pixels() -> int | None:
    """Return Pillow's limit against decompression bombs, 89,478,485 pixels unless a program has set another."""
    return _kept[0] if _strict_users else Image.MAX_IMAGE_PIXELS


def decode(
    sample: Sample, fit: Fit | None = None, *, channels: Wanted = 3, max_pixels: int | None = None
) -> np.ndarray:
    """Return a sample's pixels, uint8 [H, W, C]; arguments and errors are those of `decode_sample`."""
    return decode_sample(sample, fit, channels=channels, max_pixels=max_pixels).pixels


def decode_sample(
    sample: Sample, fit: Fit | None = None, *, channels: Wanted = 3, max_pixels: int | None = None
) -> Decoded:
    """Return a sample's pixels, upright by its orientation, and which channels were left out.

    Arguments:
        sample: an encoded file, an opened image, or uint8 [H, W] or [H, W, C].
        fit: to what size it is brought, antialiased bilinear.
        channels: 3 for RGB, 1 for grey, 2 for grey with alpha, 4 for RGB with alpha, any other number for arrays that
            have as many; None keeps what a sample has (a palette or CMYK becomes RGB), "no alpha" all of it but alpha.
        max_pixels: of an image file; None for no limit. A JPEG with `fit` may have four times as many: beyond the
            limit it is decoded at the smallest scale (1/2, 1/4, 1/8) that is four times the target.

    Raises BrokenImage, saying why, for what cannot be decoded.
    """
    if isinstance(sample, DataError):
        if isinstance(sample, BrokenImage):
            raise sample
        reason = str(sample)
        raise BrokenImage(reason, "" if "; " in reason else _MEND)  # errors of sources say "what is wrong; what to do"
    with _broken():
        if isinstance(sample, np.ndarray):
            return _decoded_array(sample, fit, channels)
        image = _loaded(sample, fit, max_pixels) if isinstance(sample, bytes) else sample
        image.load()
        return _decoded(upright(_eight_bits(image), orientation(image)), fit, channels, ALPHA)


def describe_file(data: bytes) -> tuple[str, int]:
    """Return the format of an image file that Pillow decodes ("JPEG", "PNG", "WEBP", …), and its orientation."""
    with Image.open(io.BytesIO(data), formats=_known_formats()) as image:
        image.load()
        return "JPEG" if image.format == "MPO" else str(image.format), orientation(image)


def jpeg_orientation(data: bytes) -> int:
    """Return the orientation of a JPEG file; 1 for another one."""
    if not data.startswith(b"\xff\xd8"):
        return 1
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        return orientation(image)


def upright_sides(data: bytes) -> tuple[int, int]:
    """Return (height, width) of the upright image in a file. Raises BrokenImage for one that cannot be decoded."""
    with _broken(), Image.open(io.BytesIO(data), formats=_known_formats()) as image:
        if image.format in ("PNG", "TIFF"):
            image.load()  # a PNG's orientation may follow its pixels; a TIFF is turned by being loaded
        width, height = image.size
        return (width, height) if orientation(image) in SIDEWAYS else (height, width)


def resized(pixels: np.ndarray, fit: Fit) -> np.ndarray:
    """Return uint8 [H, W, C] brought to a size, antialiased bilinear. Raises BrokenImage where that is too large."""
    if (fit.output(np.array(pixels.shape[:2])) == pixels.shape[:2]).all():
        return pixels
    if pixels.shape[2] == 3:
        return np.asarray(_fitted(Image.fromarray(np.ascontiguousarray(pixels)), fit))
    # Plane by plane: Pillow would weigh colours by an alpha that may be another band.
    planes = (Image.fromarray(np.ascontiguousarray(pixels[:, :, c])) for c in range(pixels.shape[2]))
    return np.stack([np.asarray(_fitted(plane, fit)) for plane in planes], axis=2)


@contextlib.contextmanager
def _broken() -> Iterator[None]:
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise anything from SyntaxError to struct.error
        raise BrokenImage(f"cannot be decoded ({_reason(error)})") from error


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def _known_formats() -> tuple[str, ...]:
    if not all(name in Image.OPEN for name in _FORMATS):
        Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _loaded(data: bytes, fit: Fit | None, max_pixels: int | None) -> Image.Image:
    if not data:
        raise BrokenImage("is empty")
    fault = png_fault(data) if data.startswith(PNG) else None
    if fault:
        raise BrokenImage(f"cannot be decoded ({fault})")
    try:
        image = Image.open(io.BytesIO(data), formats=_known_formats())
    except Image.UnidentifiedImageError as error:
        raise BrokenImage(_why_unknown(data)) from error
    pixels = image.width * image.height
    if max_pixels is not None and pixels > max_pixels:
        if image.format in ("JPEG", "MPO") and fit is not None and pixels <= _DRAFT * max_pixels:
            least = _DRAFT * int(fit.scaled(np.array(image.size)).min())
            image.draft(None, (least, least))
        if image.width * image.height > max_pixels:
            reason = f"cannot be decoded ({pixels:,} pixels, more than {max_pixels:,}, may be a decompression bomb)"
            raise BrokenImage(reason, f"take it with max_pixels={pixels}, or remove it")
    image.load()
    if image.format == "JPEG" and jpeg_is_cut(data, image):
        raise BrokenImage("cannot be decoded (its pixels end early)")
    return image


def _why_unknown(data: bytes) -> str:
    """Return why Pillow, which does not say it, made nothing of a file."""
    for name in _known_formats():
        factory, accept = Image.OPEN[name]
        if accept is not None and accept(data[:16]):
            try:
                factory(io.BytesIO(data), "")
            except Exception as error:
                return f"cannot be decoded ({name}: {_reason(error)})"
    if data[4:8] == b"ftyp":
        return f"is an image or film that Pillow cannot read ({data[8:12].decode('ascii', 'replace')!r})"
    if data.lstrip()[:1] == b"<":
        return "is not an image of a known format (a text in HTML or XML: a failed download?)"
    return "is not an image of a known format"


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise BrokenImage(f"has 32-bit pixels (mode {image.mode}); images are 8 or 16 bits a channel")
    return image


def _decoded_array(pixels: np.ndarray, fit: Fit | None, channels: Wanted) -> Decoded:
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    found = pixels.shape[2]
    if channels == "no alpha":
        channels = {1: 1, 2: 1}.get(found, 3)
    if channels is None or channels == found:
        pixels = np.ascontiguousarray(pixels)
        return Decoded(pixels if fit is None else resized(pixels, fit), "")
    if found not in _MODES or channels not in _MODES:
        reason = f"has {found} channels, of which nothing makes {channels}"
        raise BrokenImage(reason, f"keep all of them, as pixels, with channels={found}")
    image = Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if found == 1 else pixels), _MODES[found])
    return _decoded(image, fit, channels, f"channel {found} of {found}")


def _decoded(image: Image.Image, fit: Fit | None, channels: Wanted, alpha: str) -> Decoded:
    """Return an image's pixels in so many channels, and what its alpha channel is called if it is lost."""
    has_alpha = image.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in image.info
    if channels is None or channels == "no alpha":
        colours = 1 if image.mode in ("1", "L", "LA", "La") else 3
        channels = colours + (has_alpha and channels is None)
    if channels not in _MODES:
        raise BrokenImage(f"is an image in {image.mode}, of which nothing makes {channels} channels")
    lost = ""
    if has_alpha and channels in (1, 3):
        opacity = (image if image.mode in ("LA", "RGBA") else image.convert("RGBA")).getchannel("A").getextrema()
        lost = alpha if opacity != (255, 255) else ""
    image = image if image.mode == _MODES[channels] else image.convert(_MODES[channels])
    if fit is not None and channels in (1, 3):
        image, fit = _fitted(image, fit), None
    pixels = np.asarray(image)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    return Decoded(pixels if fit is None else resized(pixels, fit), lost)


def _fitted(image: Image.Image, fit: Fit) -> Image.Image:
    """Scale an image, then take what is kept of it from its centre."""
    width, height = image.size
    high, wide = fit.scaled(np.array((height, width))).tolist()
    if (high, wide) != (height, width):
        if wide * high > _LARGEST_RESIZED:
            raise BrokenImage(f"is {height}×{width}, too narrow to bring its shorter side to {fit.side}")
        image = image.resize((wide, high), Image.Resampling.BILINEAR, reducing_gap=_REDUCING_GAP)
    rows, columns = fit.output(np.array((height, width))).tolist()
    left, top = (wide - columns) // 2, (high - rows) // 2
    return image if (rows, columns) == (high, wide) else image.crop((left, top, left + columns, top + rows))
