"""The fused engine: one kernel a batch, from stored bytes to standardized tensors."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import torch

from fastload.augment import Augment, kernel_settings
from fastload.feeds.resident_set import ResidentSet
from fastload.kernels import augment_cpu, augment_cuda, augment_plan
from fastload.kernels.augment import BFLOAT16, FLOAT16, FLOAT32
from fastload.kernels.compiling import cuda_jit
from fastload.kernels.cuda_target import launch_stream
from fastload.order import Order
from fastload.packed.guarded_map import GuardedMap
from fastload.packed.reader import ImageLocation

_KINDS = {torch.float32: FLOAT32, torch.float16: FLOAT16, torch.bfloat16: BFLOAT16}
_compiled: dict[str, Any] = {}


class FusedEngine:
    """Augments raw images under fixed settings.

    Arguments:
        augment: what happens to each image.
        seed: of the random parameters, 64-bit.
        phase: of the random parameters.
        shape: (H, W, C) of the images.
        strides: bytes from one image, row, column and channel to the next.
        dtype: torch.float32, float16 or bfloat16.
        channels_last: whether pixels are written in NHWC order.
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
        self._gathered: _Launcher | None = None
        self._resident: tuple[weakref.ref[ResidentSet], Order, _Launcher] | None = None

    def on_cpu(self, data: np.ndarray, rows: np.ndarray, ids: np.ndarray, epochs: np.ndarray, out: np.ndarray) -> None:
        """Augment images `rows` of uint8 `data` into `out` [b, C·h·w], without the GIL."""
        augment_cpu.augment_batch(data, rows, *self._arguments(ids, epochs, out))

    def on_cpu_stream(
        self, place: ImageLocation, rows: np.ndarray, ids: np.ndarray, epochs: np.ndarray, out: np.ndarray
    ) -> int:
        """Augment images read from files, a `SampleReader`'s `place`; return the first unreadable one, or -1."""
        return augment_cpu.augment_stream(*place, rows, *self._arguments(ids, epochs, out))

    def on_cpu_map(
        self, mapped: GuardedMap, rows: np.ndarray, ids: np.ndarray, epochs: np.ndarray, out: np.ndarray
    ) -> bool:
        """Augment images out of mapped files; return whether they are right, or `on_cpu_stream` must do it."""
        return mapped.gather(augment_cpu.augment_parts, rows, *self._arguments(ids, epochs, out))

    def _arguments(self, ids: np.ndarray, epochs: np.ndarray, out: np.ndarray) -> tuple[object, ...]:
        return (
            self._strides,
            self._shape,
            ids,
            epochs,
            self._seed,
            self._phase,
            self._settings,
            out,
            self._channels_last,
            self._kind,
        )

    def on_cuda_gathered(
        self, images: torch.Tensor, ids: torch.Tensor, epochs: torch.Tensor, out: torch.Tensor
    ) -> None:
        """Augment a batch that lies gathered on the device into `out`, on the current stream.

        Arguments:
            images: uint8 [at least `whole_words` of the batch's bytes], one image after the other, from its first byte.
            ids: of the samples, int64 [b].
            epochs: of the samples, int64 [b].
            out: [b, C, h, w], of the engine's dtype and layout.
        """
        if self._gathered is None:
            self._gathered = _Launcher("augment_gathered", self._plan(), out.device)
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
            plan = self._plan(
                images=resident.images.data_ptr(),
                ids=resident.ids.data_ptr(),
                labels=resident.labels.data_ptr(),
                label_bytes=resident.labels.shape[1] * resident.labels.element_size(),
                n=order.n,
                shuffled=order.shuffle is not False,
            )
            # The set is its feed's to drop: a reference here would keep it in device memory.
            self._resident = weakref.ref(resident), order, _Launcher("augment_resident", plan, out.device)
        self._resident[2](len(ids), start, out.data_ptr(), labels.data_ptr(), ids.data_ptr())

    def _plan(self, **resident: int) -> np.ndarray:
        return augment_plan.plan(
            self._settings,
            self._strides,
            self._shape,
            self._seed,
            self._phase,
            self._channels_last,
            self._kind,
            **resident,
        )


class _Launcher:
    """A kernel with its plan on a device; what a launch needs beyond its numbers is made once a stream.

    A launch costs the host more than the kernel takes. With arrays and settings as arguments, and a view made of each
    tensor, Numba's Python took 97 µs where it takes 6 with numbers (AMD EPYC; the driver's own call left out).
    """

    def __init__(self, name: str, plan: np.ndarray, device: torch.device) -> None:
        self._name, self._device = name, device
        self._host_plan = plan
        self._plan = torch.from_numpy(plan).to(device)
        self._address = self._plan.data_ptr()
        torch.cuda.current_stream(device).synchronize()  # other streams will read the plan
        self._configured: dict[tuple[int, int], Any] = {}

    def __call__(self, count: int, *numbers: int) -> None:
        """Launch for a batch of `count` images."""
        with torch.cuda.device(self._device):  # numba launches in the current device's context
            stream = torch.cuda.current_stream()
            launch = self._configured.get((count, stream.cuda_stream))
            if launch is None:
                launch = self._configure(count, stream)
            launch(self._address, count, *numbers)

    def _configure(self, count: int, stream: torch.cuda.Stream) -> Any:
        self._plan.record_stream(stream)  # or its memory could be reused, once dropped, before that stream is done
        blocks, threads, shared_bytes = augment_plan.launch_shape(self._host_plan, count)
        launch = _kernel(self._name)[blocks, threads, launch_stream(stream), shared_bytes]
        self._configured[count, stream.cuda_stream] = launch
        return launch


def _kernel(name: str) -> Any:
    if name not in _compiled:
        _compiled[name] = cuda_jit(getattr(augment_cuda, name))
    return _compiled[name]
