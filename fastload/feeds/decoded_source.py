"""Whole decoded images of a packed set, of any storage, written where a pool keeps them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from fastload.common.processors import default_threads
from fastload.errors import UsageError
from fastload.feeds.dali_decoding import FileDecoder
from fastload.feeds.dali_errors import SampleError
from fastload.feeds.encoded_samples import MESSAGE_BYTES, check_decoded, decode_uncut
from fastload.feeds.jpeg_cuts import read_whole
from fastload.kernels.decode_encoded import decode_files
from fastload.packed.reader import SampleReader
from fastload.packed.set import Packed

_DALI_BATCH = 64
"""Files that DALI decodes in one run: enough for all of its threads, and some 30 MB of pixels at 500×375."""


class DecodedSource:
    """Gives whole images: raw ones as they are stored, ragged ones HWC, encoded ones decoded, RGB, HWC and upright.

    Their pixels are those that the stream feed of the same engine shows, bit for bit.

    Arguments:
        file: the packed set; it may be closed once this is made.
        reader: of its samples; this closes it.
        engine: "fused" or "dali", as `choose_engine` says; encoded files are decoded by it, on the CPU.
        threads: DALI's; the processors, at most 8, by default.

    Attributes:
        channels: of every image.
        shape: (H, W, C) of raw images; None where each has its own height and width.
        shapes: int32 [N, 2], height and width of each image.
        sizes: int64 [N], bytes of each decoded image.

    Raises UsageError for encoded images whose sizes the set does not tell.
    """

    def __init__(self, file: Packed, reader: SampleReader, *, engine: str, threads: int | None = None) -> None:
        self.channels, self.shape = file.channels, file.shape
        self._reader, self._decoder = reader, None
        self._fetch: Callable[[np.ndarray, np.ndarray, np.ndarray], None] = reader.read
        if file.shape is not None:
            self.shapes = np.broadcast_to(np.array(file.shape[:2], np.int32), (len(file), 2))
            self.sizes = np.broadcast_to(np.int64(reader.sample_bytes), len(file))
            return
        if file.shapes is None:
            raise UsageError(
                f"{file.path} holds encoded images and does not tell their sizes (an older file), by which memory for "
                "decoded images is planned; pack it again, or convert it with `fastload convert`"
            )
        self.shapes = file.shapes
        self.sizes = file.shapes.prod(axis=1, dtype=np.int64) * file.channels
        if file.storage == "encoded":
            self._decoder = _FusedDecoder(reader) if engine == "fused" else _DaliDecoder(reader, file.shapes, threads)
            self._fetch = self._decoder.fetch

    def ask(self, rows: np.ndarray) -> None:
        """Have the system begin to read images from the disk, which `fetch` will want soon."""
        self._reader.ask(rows)

    def fetch(self, rows: np.ndarray, out: np.ndarray, starts: np.ndarray) -> None:
        """Write images to the caller's memory, without the GIL; from any number of threads.

        Arguments:
            rows: int64 [b].
            out: uint8 [bytes], contiguous; filled.
            starts: int64 [b]; image `rows[k]` is written to `out[starts[k] : starts[k] + sizes[rows[k]]]`.

        Raises DataError, naming the sample, for one that cannot be read or decoded (what `out` holds then is
        undefined), ClosedError once this is closed.
        """
        self._fetch(rows, out, starts)

    def close(self) -> None:
        """Let go of the files and of decoders. Safe to call twice, and while others fetch."""
        self._reader.close()
        if self._decoder is not None:
            self._decoder.close()


class _FusedDecoder:
    """Decodes by libturbojpeg, and what cannot be cut by Pillow."""

    def __init__(self, reader: SampleReader) -> None:
        self._reader = reader
        nothing = np.empty(0, np.int64)
        self.fetch(nothing, np.empty(0, np.uint8), nothing)  # compiles the kernel

    def fetch(self, rows: np.ndarray, out: np.ndarray, starts: np.ndarray) -> None:
        reader = self._reader
        place, files = reader.place, reader.jpeg_files  # held until all is decoded, whoever closes this meanwhile
        assert files is not None  # or the engine is DALI
        for k, pixels in decode_uncut(reader, files, rows).items():
            _write(pixels, out, int(starts[k]))
        message = np.zeros(MESSAGE_BYTES, np.uint8)
        failed, reason = decode_files(files, rows, out, starts, message)
        check_decoded(reader, rows, int(failed), int(reason), message)
        del place

    def close(self) -> None:
        pass


class _DaliDecoder:
    """Decodes by DALI, whose pipelines are for one thread at a time."""

    def __init__(self, reader: SampleReader, shapes: np.ndarray, threads: int | None) -> None:
        self._reader, self._shapes = reader, shapes
        self._decoder = FileDecoder(_DALI_BATCH, threads or default_threads(), None)
        self._one_at_a_time = threading.Lock()

    def fetch(self, rows: np.ndarray, out: np.ndarray, starts: np.ndarray) -> None:
        for first in range(0, len(rows), _DALI_BATCH):
            part = slice(first, first + _DALI_BATCH)
            self._fetch_some(rows[part], out, starts[part])

    def _fetch_some(self, rows: np.ndarray, out: np.ndarray, starts: np.ndarray) -> None:
        try:
            files = replace(read_whole(self._reader, rows), shown=self._shapes[rows].astype(np.int64))
            with self._one_at_a_time, self._decoder.decoded(files, lambda sides: None) as (images, _):
                for k, start in enumerate(starts.tolist()):
                    _write(np.asarray(images[k]), out, start)
        except SampleError as error:
            raise self._reader.error(int(rows[error.position]), error.problem) from error

    def close(self) -> None:
        self._decoder.close()


def _write(pixels: np.ndarray, out: np.ndarray, start: int) -> None:
    """Copy an image to a place of `out`; NumPy does so without the GIL."""
    out[start : start + pixels.size] = pixels.reshape(-1)
