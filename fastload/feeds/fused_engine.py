"""The fused engine: one kernel a batch, from stored bytes to standardized tensors."""

from __future__ import annotations

import weakref

import numpy as np
import torch

from fastload.augment import Augment
from fastload.augment.parameters import kernel_norm, kernel_numbers, kernel_recipe, stream_number
from fastload.feeds.cuda_kernels import CudaKernels, Launcher
from fastload.feeds.resident_set import ResidentSet
from fastload.kernels.augment_cpu import Images, batch_kernel, images_in_files, images_in_map, images_in_memory
from fastload.kernels.image_layout import Layout, ragged_layout
from fastload.order import Order
from fastload.packed.guarded_map import GuardedMap
from fastload.packed.reader import ImageLocation

_STREAMED_BYTES = 8 << 20
"""Batches from this size on are stored past the caches: they are larger than what a core has of them."""


def passes_caches(augment: Augment, channels: int, dtype: torch.dtype, batch_size: int) -> bool:
    """Whether batches of so many images are stored past the processor's caches; see `Recipe.streamed`."""
    height, width = augment.sides
    size = batch_size * height * width * channels * dtype.itemsize
    return size >= _STREAMED_BYTES and width * dtype.itemsize % 32 == 0


class FusedEngine:
    """Augments raw or ragged images under fixed settings.

    Arguments:
        augment: what happens to each image.
        seed: of the random parameters, 64-bit.
        phase: of the random parameters.
        view: of each sample, where it has several.
        layout: how the images lie in their set.
        sides: every (H, W) that they have.
        dtype: torch.float32, float16, bfloat16 or uint8.
        channels_last: whether pixels are written in NHWC order.
        batch_size: the largest batch.
    """

    def __init__(
        self,
        augment: Augment,
        *,
        seed: int,
        phase: int,
        layout: Layout,
        sides: list[tuple[int, int]],
        dtype: torch.dtype,
        channels_last: bool,
        batch_size: int,
        view: int = 0,
    ) -> None:
        self._augment, self._numbers = augment, kernel_numbers(augment)
        self._seed, self._phase, self._stream = np.uint64(seed), phase, np.uint64(stream_number(phase, view))
        self._layout, self._sides, self._channels = layout, sides, layout.shape[2]
        self._dtype, self._channels_last = dtype, channels_last
        self._norm = kernel_norm(augment, self._channels, dtype)
        self._recipe = kernel_recipe(
            augment,
            channels=self._channels,
            dtype=dtype,
            channels_last=channels_last,
            resample=any(augment.resizes(one) for one in sides),
            streamed=passes_caches(augment, self._channels, dtype, batch_size),
        )
        self._gathered: Launcher | None = None
        self._resident: tuple[weakref.ref[ResidentSet], Order, Launcher] | None = None

    def on_cpu(self, data: np.ndarray, rows: np.ndarray, ids: np.ndarray, epochs: np.ndarray, out: np.ndarray) -> None:
        """Augment images `rows` of uint8 `data` into `out` [b, C·h·w], without the GIL."""
        self._augment_on_cpu(images_in_memory(data, self._layout), rows, ids, epochs, out)

    def compile_on_cpu(self, out: np.ndarray) -> None:
        """Have the kernel for images in memory compiled, by one of zeros, made into `out` [1, C·h·w]."""
        height, width = self._sides[0]
        layout, one = self._layout, np.zeros(1, np.int64)
        size = layout.strides[0] or height * width * self._channels
        if layout.is_ragged:
            layout = ragged_layout(self._channels, np.array([0, size]), np.array([[height, width]], np.int32))
        self._augment_on_cpu(images_in_memory(np.zeros(size, np.uint8), layout), one, one, one, out)

    def on_cpu_stream(
        self, place: ImageLocation, rows: np.ndarray, ids: np.ndarray, epochs: np.ndarray, out: np.ndarray
    ) -> int:
        """Augment images read from files, a `SampleReader`'s `place`; return the first unreadable one, or -1."""
        return self._augment_on_cpu(images_in_files(place, self._layout), rows, ids, epochs, out)

    def on_cpu_map(
        self, mapped: GuardedMap, rows: np.ndarray, ids: np.ndarray, epochs: np.ndarray, out: np.ndarray
    ) -> bool:
        """Augment images out of mapped files; return whether they are right, or `on_cpu_stream` must do it."""

        def from_map(*place_and_data: np.ndarray) -> bool:
            *place, data = place_and_data
            images = images_in_map(tuple(place), data, self._layout)
            return self._augment_on_cpu(images, rows, ids, epochs, out) < 0

        return mapped.gather(from_map)

    def _augment_on_cpu(
        self, images: Images, rows: np.ndarray, ids: np.ndarray, epochs: np.ndarray, out: np.ndarray
    ) -> int:
        kernel = batch_kernel(self._recipe)
        return kernel(images, rows, ids, epochs, self._seed, self._stream, self._numbers, self._norm, out)

    def on_cuda_gathered(
        self, images: torch.Tensor, ids: torch.Tensor, epochs: torch.Tensor, out: torch.Tensor
    ) -> None:
        """Augment a batch that lies gathered on the device into `out`, on the current stream.

        Arguments:
            images: uint8 [at least `whole_words` of the batch's bytes], one image after the other, from its first byte;
                of a ragged set int64 [b, 3], the address, height and width of each.
            ids: of the samples, int64 [b].
            epochs: of the samples, int64 [b].
            out: [b, C, h, w], of the engine's dtype and layout.
        """
        if self._gathered is None:
            self._gathered = self._kernels().launcher("gathered", out.device)
        self._gathered(len(ids), images.data_ptr(), ids.data_ptr(), epochs.data_ptr(), out.data_ptr())

    def on_cuda_resident(
        self,
        resident: ResidentSet,
        order: Order,
        start: int,
        out: torch.Tensor,
        labels: torch.Tensor,
        ids: torch.Tensor,
    ) -> None:
        """Find, augment and write the batch at position `start` of `order`, on the current stream, in one launch."""
        if self._resident is None or self._resident[0]() is not resident or self._resident[1] is not order:
            ragged = {}
            if self._layout.is_ragged:
                ragged = {"offsets": resident.offsets.data_ptr(), "shapes": resident.shapes.data_ptr()}
            launcher = self._kernels().launcher(
                "resident",
                out.device,
                images=resident.images.data_ptr(),
                ids=resident.ids.data_ptr(),
                labels=resident.labels.data_ptr(),
                label_bytes=resident.labels.shape[1] * resident.labels.element_size(),
                n=order.n,
                shuffled=order.shuffle is not False,
                **ragged,
            )
            # The set is its feed's to drop: a reference here would keep it in device memory.
            self._resident = weakref.ref(resident), order, launcher
        self._resident[2](len(ids), start, out.data_ptr(), labels.data_ptr(), ids.data_ptr())

    def _kernels(self) -> CudaKernels:
        return CudaKernels(self._recipe, self._numbers, self._norm, self._layout, self._sides, self._seed, self._stream)
