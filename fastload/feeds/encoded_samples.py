"""Encoded samples beside the kernels that decode them: those that cannot be cut, and what is said of one that fails."""

from __future__ import annotations

import numpy as np

from fastload.errors import DataError
from fastload.feeds.jpeg_cuts import OTHER_INDEX
from fastload.kernels import jpeg_cut
from fastload.kernels.decode_encoded import NO_DECODER, NOT_DECODED
from fastload.packed.reader import SampleReader
from fastload.packing.decoding import BrokenImage, decode, own_limits

MESSAGE_BYTES = 200
"""Room for the decoder's own reason, which kernels fill."""


def decode_uncut(reader: SampleReader, files: jpeg_cut.JpegFiles, rows: np.ndarray) -> dict[int, np.ndarray]:
    """Decode the files that cannot be cut (progressive, CMYK, PNG) by Pillow; return the pixels by place in `rows`.

    Raises DataError for a damaged file, and for one whose sides are not those that the set says.
    """
    return {k: _decode(reader, files, int(rows[k])) for k in np.flatnonzero(files.cuts[rows, 0] == 0).tolist()}


def _decode(reader: SampleReader, files: jpeg_cut.JpegFiles, row: int) -> np.ndarray:
    (data,) = reader.encoded(np.array([row]))
    try:
        with own_limits():
            pixels = np.ascontiguousarray(decode(data.tobytes()))
    except BrokenImage as error:
        raise reader.error(row, f"{error}; pack it again") from error
    if pixels.shape[:2] != tuple(files.shapes[row]):
        raise reader.error(row, OTHER_INDEX)
    return pixels


def check_decoded(reader: SampleReader, rows: np.ndarray, failed: int, reason: int, message: np.ndarray) -> None:
    """Raise DataError where a kernel could not decode a sample, or a file was written over.

    Arguments:
        reader: of the samples; whoever calls this still holds its `place`.
        rows: int64 [b], what the kernel decoded.
        failed: the first in `rows` that it could not; -1 for none.
        reason: why.
        message: uint8 [`MESSAGE_BYTES`], the decoder's own reason.
    """
    if failed < 0 or reason == jpeg_cut.UNREADABLE:
        reader.check(failed, rows)
        return
    reader.check(-1, rows)  # a file that was written over says so
    if reason == NO_DECODER:
        raise DataError("libturbojpeg has no memory for a decoder; close other programs, or use fewer workers")
    problem = OTHER_INDEX
    if reason == NOT_DECODED:
        text = " ".join(message.tobytes().partition(b"\0")[0].decode("ascii", "replace").split())
        problem = f"cannot be decoded (libturbojpeg: {text}); the file is damaged, pack it again"
    raise reader.error(int(rows[failed]), problem)
