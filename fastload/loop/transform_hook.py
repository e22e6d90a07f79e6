"""The user's own transform of batches, whose random numbers are the same after a resume."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastload.augment.parameters import stream_number
from fastload.errors import UsageError
from fastload.feeds.batch import Batch

_MULTIPLIER = 0x9E3779B97F4A7C15


class TransformHook:
    """Calls `transform(images)` on the device, on the current stream, in training's own thread, as a batch is taken.

    torch's own generators are what Kornia, torchvision and modules draw from, so they are set for the call to a state
    that hangs on (seed, phase, view, position) alone, and set back after it: training's own draws do not notice. A
    transform sees its rank's batch: with another batch size, or number of ranks, it draws for other images.

    Arguments:
        transform: a module or function of images [B, C, h, w], which returns as many of the same shape and type.
        seed: of the run.
        device: of the batches.
    """

    def __init__(self, transform: Callable[[torch.Tensor], Any], seed: int, device: torch.device) -> None:
        if not callable(transform) or isinstance(transform, type):
            raise UsageError(f"transform={transform!r}; it must be a module or a function of the images of a batch")
        self._transform, self._seed, self._device = transform, seed, device

    def __call__(self, phase: int, batch: Batch, position: int) -> Batch:
        """Return a batch with its images transformed.

        Arguments:
            phase: of the run.
            batch: as the feed made it.
            position: of the batch's first sample in the phase.
        """
        views = batch.images if isinstance(batch.images, tuple) else (batch.images,)
        made = tuple(self._call(images, stream_number(phase, view), position) for view, images in enumerate(views))
        return batch._replace(images=made if isinstance(batch.images, tuple) else made[0])

    def _call(self, images: torch.Tensor, stream: int, position: int) -> torch.Tensor:
        key = (self._seed ^ ((stream + 1) * _MULTIPLIER)) + position * 0xD1B54A32D192ED03
        cuda = self._device.type == "cuda"
        index = self._device.index if self._device.index is not None else (torch.cuda.current_device() if cuda else 0)
        with torch.random.fork_rng(devices=[index] if cuda else []), torch.no_grad():
            torch.random.default_generator.manual_seed(_mixed(key))
            if cuda:
                torch.cuda.default_generators[index].manual_seed(_mixed(key))
            made = self._transform(images)
        if not isinstance(made, torch.Tensor) or _kind(made) != _kind(images):
            found = _kind(made) if isinstance(made, torch.Tensor) else type(made).__name__
            raise UsageError(
                f"transform= returned {found} for images of {_kind(images)}; it must keep shape, type and device"
            )
        return made


def _kind(images: torch.Tensor) -> str:
    return f"{tuple(images.shape)} {str(images.dtype).removeprefix('torch.')} on {images.device}"


def _mixed(key: int) -> int:
    """Return a number whose every bit hangs on every bit of a key: the finalizer of SplitMix64."""
    value = key & (2**64 - 1)
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & (2**64 - 1)
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & (2**64 - 1)
    return (value ^ (value >> 31)) & (2**63 - 1)
