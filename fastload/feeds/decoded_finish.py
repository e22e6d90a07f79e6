"""What a kernel does, on the CPU, with images that DALI has decoded: resize, crop, flip, recolour, standardize."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from fastload.augment import Augment, Parameters, kernel_settings
from fastload.feeds.crop_room import misfit, resized_sides
from fastload.feeds.dali_errors import SampleError
from fastload.kernels.augment import BFLOAT16, FLOAT16, FLOAT32
from fastload.kernels.augment_decoded import finish_decoded

_STORED = {torch.float32: FLOAT32, torch.float16: FLOAT16, torch.bfloat16: BFLOAT16}


class DecodedFinish:
    """Finishes batches of decoded images.

    Arguments:
        augment: what happens to each image.
        threads: as many as DALI's, which are idle meanwhile.
    """

    def __init__(self, augment: Augment, threads: int) -> None:
        self._augment, self._threads = augment, threads
        self._settings = kernel_settings(augment)
        for kind in _STORED.values():  # compiles the kernel
            nothing = np.empty((0, 1), np.float32 if kind == FLOAT32 else np.int16)
            where, none = (np.empty(0, np.int64), np.empty((0, 6), np.int64)), np.empty(0, np.float32)
            self._finish_part((*where, np.empty(0, np.bool_), none, none, nothing), False, kind)

    def __call__(self, images: Any, parameters: Parameters, out: torch.Tensor) -> None:
        """Finish decoded images, a DALI list of uint8 [H, W, 3], into `out` [b, 3, h, w].

        Raises SampleError for an image that is smaller than the crop.
        """
        places = self._places(np.array(images.shape(), np.int64)[:, :2], parameters)
        addresses = np.array([images[i].data_ptr() for i in range(len(images))], np.int64)
        last = not out.is_contiguous() and out.is_contiguous(memory_format=torch.channels_last)
        target = out if last or out.is_contiguous() else torch.empty_like(out, memory_format=torch.contiguous_format)
        stored = target.permute(0, 2, 3, 1) if last else target
        bits = stored if out.dtype == torch.float32 else stored.view(torch.int16)
        drawn = parameters.flip, parameters.brightness, parameters.contrast
        by_image = addresses, places, *drawn, bits.reshape(len(out), -1).numpy()

        def finish_some() -> None:
            for first in firsts:
                part = tuple(array[first : first + step] for array in by_image)
                self._finish_part(part, last, _STORED[out.dtype])

        # Each thread takes the next images when it is done with some. They are begun for each batch (0.4 ms each, at
        # most), so that none of them goes on whatever interrupts it.
        threads = min(self._threads, len(out))
        step = max(1, len(out) // (8 * threads))
        firsts = iter(range(0, len(out), step))
        with ThreadPoolExecutor(threads, thread_name_prefix="fastload-finish") as pool:
            for done in [pool.submit(finish_some) for _ in range(threads)]:
                done.result()
        if target is not out:
            out.copy_(target)

    def _finish_part(self, part: tuple[np.ndarray, ...], channels_last: bool, kind: int) -> None:
        *by_image, values = part
        addresses, places, *drawn = by_image
        steps = self._settings.clamp, self._settings.standardize
        finish_decoded(addresses, places, self._augment.size, *drawn, *steps, values, channels_last, kind)

    def _places(self, sides: np.ndarray, parameters: Parameters) -> np.ndarray:
        """Return images' sides, their sides once resized, and their crops' corners, int64 [b, 6]; refuse a misfit."""
        sizes = resized_sides(self._augment, sides)
        rooms = np.subtract(sizes, self._augment.size)
        if (rooms < 0).any():
            position = int((rooms < 0).any(axis=1).argmax())
            height, width = sides[position].tolist()
            raise SampleError(position, f"is {misfit(self._augment, (height, width))}")
        words = np.stack([parameters.top, parameters.left], axis=1).astype(np.int64)
        return np.hstack([sides, sizes, rooms // 2 if self._augment.centre else (words * (rooms + 1)) >> 32])
