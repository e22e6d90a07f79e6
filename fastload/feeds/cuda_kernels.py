"""The fused engine's CUDA kernels: which one a recipe has, what it is told of a feed, and its launches."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import numpy as np
import torch

from fastload.kernels import augment_cuda, augment_plan, recipe_cuda, recipe_plan
from fastload.kernels.compiling import cuda_jit
from fastload.kernels.cuda_target import launch_stream
from fastload.kernels.image_layout import Layout
from fastload.kernels.recipe import Numbers, Recipe

Kernel = Literal["gathered", "resident"]
Shape = tuple[int, Any, int]


class CudaKernels:
    """The kernels of a recipe: the paper's, which read four pixels at once, where they know all of its steps.

    The paper's are for images of one shape.

    Arguments:
        recipe: what they are compiled for.
        numbers: of its steps.
        norm: (means, scales), float32 [C] each, on values 0…255.
        layout: of the images.
        sides: every (H, W) that they have.
        seed: of the random parameters.
        stream: of the random parameters.
    """

    def __init__(
        self,
        recipe: Recipe,
        numbers: Numbers,
        norm: tuple[np.ndarray, np.ndarray],
        layout: Layout,
        sides: list[tuple[int, int]],
        seed: np.uint64,
        stream: np.uint64,
    ) -> None:
        self._recipe = recipe._replace(streamed=0)  # which is about a CPU's caches
        self._numbers, self._norm = numbers, norm
        self._layout, self._sides, self._words = layout, sides, (seed, stream)

    def launcher(self, kernel: Kernel, device: torch.device, **resident: int) -> Launcher:
        """Return what launches a kernel on a device; `resident`: the keywords of the plan that describe the set."""
        recipe, numbers, layout = self._recipe, self._numbers, self._layout
        settings = None if layout.is_ragged else augment_plan.settings_of(recipe, numbers)
        if settings is not None:
            images = layout.strides, layout.shape, *self._words
            plan = augment_plan.plan(settings, *images, recipe.channels_last, recipe.kind, **resident)
            return Launcher(_paper(kernel), plan, lambda count: augment_plan.launch_shape(plan, count), device)
        plan = recipe_plan.plan(recipe, numbers, self._norm, layout, self._sides, *self._words, **resident)
        compiled = _of_recipe(kernel, recipe, recipe_plan.has_tables(recipe, numbers, plan), layout.is_ragged)
        return Launcher(compiled, plan, lambda count: recipe_plan.launch_shape(recipe, numbers, plan, count), device)


@cache
def _paper(kernel: Kernel) -> Any:
    return cuda_jit(augment_cuda.augment_resident if kernel == "resident" else augment_cuda.augment_gathered)


@cache
def _of_recipe(kernel: Kernel, recipe: Recipe, tabled: bool, ragged: bool) -> Any:
    make = recipe_cuda.resident_kernel if kernel == "resident" else recipe_cuda.gathered_kernel
    return cuda_jit(make(recipe, tabled, ragged))


class Launcher:
    """A kernel with its plan on a device; what a launch needs beyond its numbers is made once a stream.

    A launch costs the host more than the kernel takes. With arrays and settings as arguments, and a view made of each
    tensor, Numba's Python took 97 µs where it takes 6 with numbers (AMD EPYC; the driver's own call left out).

    Arguments:
        kernel: compiled when it is first launched.
        plan: what it is told, int64.
        shape: of a batch of so many images, gives (blocks, threads, bytes of shared memory).
        device: where it runs.
    """

    def __init__(self, kernel: Any, plan: np.ndarray, shape: Callable[[int], Shape], device: torch.device) -> None:
        self._kernel, self._shape, self._device = kernel, shape, device
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
        blocks, threads, shared_bytes = self._shape(count)
        launch = self._kernel[blocks, threads, launch_stream(stream), shared_bytes]
        self._configured[count, stream.cuda_stream] = launch
        return launch
