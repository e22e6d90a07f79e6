"""Decode what `pack` keeps as files once, by the decoders that will read it: both phases see the same pixels.

A training's stream decodes with DALI, or on the CPU with libturbojpeg, which is the same libjpeg-turbo, and what cannot
be cut with Pillow; `build-subset`, `verify` and `pack` itself decode with Pillow. DALI and Pillow refuse files that the
other takes, and where a file's data contradict themselves they make different images of it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastload.common.dali_decoder import dali, decoded_files
from fastload.packed.jpeg_index import WHOLE, Cut
from fastload.packing.decoding import BrokenImage, Decoded, decode_sample, describe_file, jpeg_orientation
from fastload.packing.jpeg_transcode import cuttable
from fastload.packing.orientation import with_orientation

TOLERANCE = 3
"""Levels by which a pixel may differ. All of 250 photographs of ImageNet, and every other sound file that was tried,
come out equal, since both decoders have libjpeg-turbo in them; 16-bit files differ by 1 where 16 bits are rounded to 8.
Another build of libjpeg may round Y, Cb and Cr by a level each, which is up to 3 in RGB. What is understood differently
(CMYK without Adobe's marker, damage, orientations) differs by tens or hundreds somewhere."""

READABLE = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")
"""Formats that DALI decodes."""

_OTHER_SIZE = 256


class Kept(NamedTuple):
    """A file to store.

    Attributes:
        data: its bytes.
        sides: (height, width) of its image, upright.
        left_out: what of its channels is lost.
        turned: whether its orientation was written anew, so that every decoder reads the same.
        cut: how it can be cut.
        segments: where its segments begin, uint32; None for a file that cannot be cut.
    """

    data: bytes
    sides: tuple[int, int]
    left_out: str
    turned: bool
    cut: Cut = WHOLE
    segments: np.ndarray | None = None


class EncodedCheck:
    """Decodes files with Pillow and with DALI (on the CPU), in any number of threads; keeps what comes out the same.

    JPEG files are written anew, with the same coefficients, so that they can be cut (see `jpeg_transcode`): DALI
    decodes the new file, Pillow the old one.

    Arguments:
        max_pixels: of an image; None for no limit.
        as_is: keep all files' own bytes.

    Raises UsageError where DALI is not installed: what nobody has checked may stop a training later.
    """

    def __init__(self, max_pixels: int | None = None, *, as_is: bool = False) -> None:
        dali("encoded=True or jpeg=True, which checks files with the decoder that will read them,")
        self._max_pixels, self._as_is = max_pixels, as_is
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._building = threading.Lock()

    def __call__(self, files: Sequence[bytes]) -> Iterator[Kept | BrokenImage]:
        """Yield for each file what is to be stored of it, or why it cannot be.

        Where only the orientations differ, it is written anew, in as many bytes, so that every decoder reads the same.
        """
        for data in files:
            try:
                image = decode_sample(data, max_pixels=self._max_pixels)
            except BrokenImage as error:
                yield error
            else:
                yield self._judged(data, image)

    def __enter__(self) -> EncodedCheck:
        return self

    def __exit__(self, *exception: object) -> None:
        """Free DALI's threads and memory."""
        while not self._idle.empty():
            self._idle.get()

    def _difference(self, data: bytes, image: Decoded) -> int | None:
        """Return by how many levels DALI's pixels differ at most, `_OTHER_SIZE` for other sides, None for no image.

        Each file is a run of its own: where DALI (2.x) cannot read one of several, it leaves the run while its thread
        is still at work on the others, and the process may end by SIGSEGV.
        """
        pipeline = self._pipeline()
        try:
            pipeline.feed_input("samples", [np.frombuffer(data, np.uint8)])
            (result,) = pipeline.run()
            found = _difference(np.asarray(result[0]), image.pixels)
        except RuntimeError:  # it ends the pipeline
            return None
        self._idle.put(pipeline)
        return found

    def _pipeline(self) -> Any:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            pass
        # The threads that check are as many as there should be; each waits while DALI's one thread works for it.
        with self._building:
            pipeline = dali().Pipeline(1, 1, None, prefetch_queue_depth=1, exec_dynamic=True)
            with pipeline:
                pipeline.set_outputs(decoded_files(None))
            pipeline.build()
        return pipeline

    def _judged(self, data: bytes, image: Decoded) -> Kept | BrokenImage:
        sides = (image.pixels.shape[0], image.pixels.shape[1])
        made = None if self._as_is else cuttable(data, jpeg_orientation(data))
        if made is not None:
            difference = self._difference(made.data, image)
            if difference is not None and difference <= TOLERANCE:
                return Kept(made.data, sides, image.left_out, False, made.cut, made.segments)
        difference = self._difference(data, image)
        if difference is not None and difference <= TOLERANCE:
            return Kept(data, sides, image.left_out, False)
        kind, orientation = describe_file(data)
        if kind not in READABLE:
            reason = f"is {kind}; encoded=True keeps {', '.join(READABLE)} files only"
            return BrokenImage(reason, "make new files with jpeg=True")
        turned = with_orientation(data, orientation)
        if turned is not None and describe_file(turned) == (kind, orientation):
            difference_turned = self._difference(turned, image)
            if difference_turned is not None and difference_turned <= TOLERANCE:
                return Kept(turned, sides, image.left_out, True)
        dali_reads = "DALI, which may read it in training,"
        if difference is None:
            reason = f"is a {kind} file that Pillow decodes but {dali_reads} does not"
        elif difference == _OTHER_SIZE:
            reason = f"has other sides for {dali_reads} than for Pillow"
        else:
            reason = f"has other pixels for {dali_reads} than for Pillow (by up to {difference} of 255 levels)"
        return BrokenImage(reason, "save it anew, make new files with jpeg=True")


def _difference(found: np.ndarray, expected: np.ndarray) -> int:
    if found.shape != expected.shape:
        return _OTHER_SIZE
    if np.array_equal(found, expected):
        return 0
    return int(np.abs(found.astype(np.int16) - expected).max())
