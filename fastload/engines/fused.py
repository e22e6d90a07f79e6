"""The fused engine: one kernel a batch, from stored bytes to standardized tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fastload.augment import Augment, kernel_settings
from fastload.kernels import augment as kernel
from fastload.kernels.cuda_target import cuda, device_array, launch_stream
from fastload.order import Order
from fastload.reading import Place

_KINDS = {torch.float32: kernel.FLOAT32, torch.float16: kernel.FLOAT16, torch.bfloat16: kernel.BFLOAT16}
_compiled: dict[str, Any] = {}


class FusedEngine:
    """Augments raw images under fixed settings.

    Arguments:
        augment: the settings. seed, phase: of the random parameters.
        shape: (H, W, C) of the images. strides: bytes from one image, row, column and channel to the next.
        dtype: float32, float16 or bfloat16. channels_last: whether pixels are written in NHWC order.
    """

    def __init__(
        self,
        augment: Augment,
        *,
        seed: int,
        phase: int,
        shape: tuple[int, int, int],
        strides: tuple[int, int, int, int],
        dtype: torch.dtype,
        channels_last: bool,
    ) -> None:
        self._settings = kernel_settings(augment)
        self._seed, self._phase = np.uint64(seed), np.uint64(phase)
        self._shape, self._strides = shape, strides
        self._channels_last, self._kind = channels_last, _KINDS[dtype]

    def on_cpu(self, data: np.ndarray, rows: np.ndarray, ids: np.ndarray, epochs: np.ndarray, out: np.ndarray) -> None:
        """Augment images `rows` of uint8 `data` into `out` [b, C·h·w], without the GIL."""
        kernel.augment_batch(data, rows, *self._arguments(ids, epochs, out))

    def on_cpu_stream(
        self, place: Place, rows: np.ndarray, ids: np.ndarray, epochs: np.ndarray, out: np.ndarray
    ) -> int:
        """Augment images read from files, a `SampleReader`'s `place`; return the first unreadable one, or -1."""
        return kernel.augment_stream(*place, rows, *self._arguments(ids, epochs, out))

    def _arguments(self, ids: np.ndarray, epochs: np.ndarray, out: np.ndarray) -> tuple[object, ...]:
        return (
            self._strides, self._shape, ids, epochs, self._seed, self._phase, self._settings, out,
            self._channels_last, self._kind,
        )  # fmt: skip

    def on_cuda_gathered(
        self, images: torch.Tensor, ids: torch.Tensor, epochs: torch.Tensor, out: torch.Tensor
    ) -> None:
        """Augment a batch that lies gathered on the device (uint8 [b·bytes]) into `out`, on the current stream."""
        with torch.cuda.device(out.device):  # numba launches in the current device's context
            stream = launch_stream(torch.cuda.current_stream())
            _kernel("augment_gathered")[len(ids), kernel.THREADS, stream](
                device_array(images), self._strides, self._shape, device_array(ids), device_array(epochs),
                self._seed, self._phase, self._settings, _bits(out), self._channels_last, self._kind,
            )  # fmt: skip

    def on_cuda_resident(
        self,
        store: ResidentStore,
        order: Order,
        start: int,
        out: torch.Tensor,
        labels: torch.Tensor,
        ids: torch.Tensor,
    ) -> None:
        """Find, augment and write the batch at position `start` of `order`, on the current stream, in one launch."""
        with torch.cuda.device(out.device):  # numba launches in the current device's context
            stream = launch_stream(torch.cuda.current_stream())
            _kernel("augment_resident")[len(ids), kernel.THREADS, stream](
                store.images_view, self._strides, self._shape, store.ids_view, store.labels_view,
                np.uint64(start), np.uint64(order.n), self._seed, self._phase, order.shuffle is not False,
                self._settings, _bits(out), device_array(labels), device_array(ids), self._channels_last, self._kind,
            )  # fmt: skip


class ResidentStore:
    """A whole set in device memory, uploaded once: images uint8 [bytes], labels [n, L], ids int64 [n]."""

    def __init__(self, images: np.ndarray, labels: torch.Tensor, ids: np.ndarray, device: torch.device) -> None:
        self.images = torch.empty(len(images), dtype=torch.uint8, device=device)
        self.images.copy_(torch.from_numpy(images))
        self.ids = torch.from_numpy(ids).to(device)
        self.labels = labels.reshape(len(ids), -1).to(device)
        # Converted once: `as_cuda_array` costs microseconds on each launch.
        self.images_view = device_array(self.images)
        self.ids_view = device_array(self.ids)
        self.labels_view = device_array(self.labels)

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory from being reused, once the store is dropped, before what `stream` has queued is done."""
        for tensor in (self.images, self.labels, self.ids):
            tensor.record_stream(stream)


def _bits(out: torch.Tensor) -> object:
    flat = out if out.is_contiguous() else out.permute(0, 2, 3, 1)
    flat = flat.reshape(len(out), -1)
    return device_array(flat if out.dtype == torch.float32 else flat.view(torch.int16))


def _kernel(name: str) -> Any:
    if name not in _compiled:
        _compiled[name] = cuda.jit(getattr(kernel, name))
    return _compiled[name]
