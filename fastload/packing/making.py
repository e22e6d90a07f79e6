"""From a sample to what is stored of it: its pixels, its file's own bytes, or a JPEG file made of it."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from fastload.packing.decoding import BrokenImage, Decoded, decode_sample
from fastload.packing.encoded_check import EncodedCheck, Kept
from fastload.packing.fit import MOST
from fastload.packing.options import PackOptions
from fastload.sources import Sample


class Maker:
    """Makes what is stored of samples; may be called in any number of threads.

    Arguments:
        options: how samples are stored.
        check: for encoded storage, what every file goes through; None stores pixels.
    """

    def __init__(self, options: PackOptions, check: EncodedCheck | None) -> None:
        self._options, self._check = options, check

    def __call__(self, sample: Sample) -> Decoded | Kept | BrokenImage:
        """Return what is stored of a sample, or why it cannot be stored."""
        if self._check is None:
            return self.decoded(sample)
        if not self._options.jpeg:
            assert isinstance(sample, bytes)
            return self._kept(self._check, sample)
        found = self.decoded(sample)
        if isinstance(found, BrokenImage):
            return found
        try:
            kept = self._kept(self._check, jpeg_file(found.pixels, self._options.quality or 0))
        except BrokenImage as error:
            return error
        return kept if isinstance(kept, BrokenImage) else kept._replace(left_out=found.left_out)

    def decoded(self, sample: Sample) -> Decoded | BrokenImage:
        """Return a sample's pixels, brought to the size that was asked for."""
        options = self._options
        try:
            return decode_sample(sample, options.fit, channels=options.decoded_channels, max_pixels=options.max_pixels)
        except BrokenImage as error:
            return error

    @staticmethod
    def _kept(check: EncodedCheck, data: bytes) -> Kept | BrokenImage:
        (found,) = check([data])
        return found


def jpeg_file(pixels: np.ndarray, quality: int) -> bytes:
    """Return an image as a baseline JPEG file, its colours at half the resolution (4:2:0), as OpenCV writes it.

    Arguments:
        pixels: uint8 [H, W, C] of 1 or 3 channels.
        quality: 1 to 100.

    Raises BrokenImage for a side that JPEG cannot have.
    """
    height, width, channels = pixels.shape
    if max(height, width) > MOST["max_side"]:
        mend = f"shrink it with max_side=S, at most {MOST['max_side']}"
        raise BrokenImage(f"is {height}×{width}, and a JPEG's sides are at most {MOST['max_side']:,}", mend)
    image = Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if channels == 1 else pixels))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, subsampling="4:2:0", optimize=False, progressive=False)
    return file.getvalue()
