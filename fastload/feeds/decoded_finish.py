"""What a kernel does, on the CPU, with decoded images of any sizes: all of an augmentation's steps."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from fastload.augment import Augment
from fastload.augment.parameters import SampleKeys, kernel_norm, kernel_numbers, kernel_recipe
from fastload.feeds.jpeg_cuts import EncodedBatch
from fastload.kernels.augment_decoded import decoded_kernel


class DecodedFinish:
    """Finishes batches of decoded images, each of its own height and width.

    Arguments:
        augment: what happens to each image.
        channels: of the images.
        threads: as many as DALI's, which are idle meanwhile.
        dtype: of the batches.
        channels_last: whether they are in NHWC order.
    """

    def __init__(self, augment: Augment, channels: int, threads: int, dtype: torch.dtype, channels_last: bool) -> None:
        self._threads, self._channels_last = threads, channels_last
        self._numbers, self._norm = kernel_numbers(augment), kernel_norm(augment, channels, dtype)
        # Images of any sizes come: those that need no resizing are resized by 1, which changes nothing.
        recipe = kernel_recipe(
            augment, channels=channels, dtype=dtype, channels_last=channels_last, resample=augment.may_resize
        )
        self._kernel = decoded_kernel(recipe)
        none, nothing = np.empty((0, 2), np.int64), np.empty(0, np.int64)
        stored = np.int16 if dtype in (torch.float16, torch.bfloat16) else torch.empty(0, dtype=dtype).numpy().dtype
        keys = SampleKeys(0, 0, nothing, nothing)
        self._finish(nothing, EncodedBatch([], none, none, none), slice(0, 0), keys, np.empty((0, 1), stored))

    def __call__(self, images: Any, batch: EncodedBatch, keys: SampleKeys, out: torch.Tensor) -> None:
        """Finish decoded images, uint8 [h, w, C] each, contiguous, into `out` [b, C, h, w].

        Arguments:
            images: a DALI list, or a list of NumPy's arrays or torch's tensors: the whole ones, into which the crop
                fits, or parts of them that hold it.
            batch: where the parts are, and all sides.
            keys: of the samples.
            out: contiguous in its memory format.
        """
        addresses = np.array([_address(images[i]) for i in range(len(images))], np.int64)
        stored = out.permute(0, 2, 3, 1) if self._channels_last else out
        bits = stored.view(torch.int16) if out.dtype in (torch.float16, torch.bfloat16) else stored
        values = bits.reshape(len(out), -1).numpy()

        def finish_some() -> None:
            for first in firsts:
                part = slice(first, first + step)
                self._finish(addresses, batch, part, keys, values)

        # Each thread takes the next images when it is done with some. They are begun for each batch (0.4 ms each, at
        # most), so that none of them goes on whatever interrupts it.
        threads = min(self._threads, len(out))
        step = max(1, len(out) // (8 * threads))
        firsts = iter(range(0, len(out), step))
        with ThreadPoolExecutor(threads, thread_name_prefix="fastload-finish") as pool:
            for done in [pool.submit(finish_some) for _ in range(threads)]:
                done.result()

    def _finish(
        self, addresses: np.ndarray, batch: EncodedBatch, part: slice, keys: SampleKeys, values: np.ndarray
    ) -> None:
        self._kernel(
            addresses[part],
            batch.whole[part],
            batch.origins[part],
            batch.shown[part],
            part.start,
            keys.ids[part],
            keys.epochs[part],
            np.uint64(keys.seed),
            np.uint64(keys.stream),
            self._numbers,
            self._norm,
            values,
        )


def _address(image: Any) -> int:
    return image.ctypes.data if isinstance(image, np.ndarray) else image.data_ptr()
