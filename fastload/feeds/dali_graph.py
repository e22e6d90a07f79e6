"""The graph of the DALI engine: what its pipeline computes under fixed settings, and what is fed to it.

Its steps are those of `fastload.augment.Augment`; what the settings make constant is left out of the graph.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastload.augment import Augment, Parameters
from fastload.common.dali_decoder import dali as _dali
from fastload.common.dali_decoder import decoded_files
from fastload.common.dali_decoder import graph_input as _input
from fastload.feeds.crop_room import resized

Samples = np.ndarray | torch.Tensor | Sequence[np.ndarray]


@dataclass(frozen=True)
class DaliGraph:
    """A DALI pipeline's settings.

    Arguments:
        augment: what happens to each image.
        shape: (H, W, C) of raw images; None for encoded ones.
        batch_size: the largest batch.
        device_id: the CUDA device that decodes and augments; None for the CPU.
        channels_last: whether images come out as HWC, rather than CHW.
        threads: DALI's CPU threads.
        decodes_only: leave everything after decoding to a kernel.
    """

    augment: Augment
    shape: tuple[int, int, int] | None
    batch_size: int
    device_id: int | None
    channels_last: bool
    threads: int
    decodes_only: bool

    def build(self) -> Any:
        """Return the pipeline, which takes the values of `inputs` and gives the images of a batch."""
        # With a depth of more than 1 a pipeline runs ahead and asks for batches that have not been fed.
        pipeline = _dali().Pipeline(
            self.batch_size, self.threads, self.device_id, seed=0, prefetch_queue_depth=1, exec_dynamic=True
        )
        with pipeline:
            if self.decodes_only:
                pipeline.set_outputs(decoded_files(self.device_id))
            else:
                crops = self._encoded_crops() if self.shape is None else self._raw_crops(self.shape)
                pipeline.set_outputs(self._pixels(crops))
        pipeline.build()
        return pipeline

    def _raw_crops(self, shape: tuple[int, int, int]) -> Any:
        """Raw samples → resized where needed → cropped, uint8 HWC."""
        dali = _dali()
        if self.device_id is None:
            images = _input("samples", dali.types.UINT8, 3, layout="HWC")
        else:
            # Copied, on torch's current stream: only for a copy does DALI promise to wait for that stream.
            images = _input("samples", dali.types.UINT8, 3, layout="HWC", device="gpu", no_copy=False)
        size, crop = resized(self.augment, shape[:2]), self.augment.size
        room = [side - crop_side for side, crop_side in zip(size, crop, strict=True)]
        start: Any = [space // 2 for space in room]
        if not self.augment.centre:
            start = _input("corner", dali.types.INT32, 1)
        if not self.augment.needs_resize(shape):
            return dali.fn.slice(images, start=start, shape=crop, axes=(0, 1))
        constants = (dali.types.Constant(np.array(values, np.int32), device="cpu") for values in (size, room))
        if self.augment.centre:
            start = dali.types.Constant(np.array(start, np.int32), device="cpu")
        return self._resized_crops(images, start, *constants)

    def _encoded_crops(self) -> Any:
        """Encoded samples → decoded → resized where needed → cropped, uint8 HWC; on CUDA only, see `DecodedFinish`."""
        dali, fn, crop = _dali(), _dali().fn, self.augment.size
        images = decoded_files(self.device_id)
        size = images.shape(dtype=dali.types.INT64)[:2]
        if self.augment.resize is not None:
            short = fn.reductions.min(size)
            size = (size * (2 * self.augment.resize) + short) // (short * 2)  # as `resized`
        room = size - dali.types.Constant(np.array(crop, np.int64), device="cpu")
        words = None if self.augment.centre else _input("corner", dali.types.INT64, 1)
        start = room // 2 if words is None else (words * (room + 1)) >> 32
        if self.augment.resize is not None:
            return self._resized_crops(images, start, size, room)
        return fn.slice(images, start=fn.cast(start, dtype=dali.types.INT32), shape=crop, axes=(0, 1))

    def _resized_crops(self, images: Any, start: Any, size: Any, room: Any) -> Any:
        """Crops at `start` of images resized to `size`; all integer [2], `room` the size less the crop.

        Only the crop is computed (a third faster on ImageNet), so its corner must go in as a share of the room, which
        DALI rounds back: exact for rooms below 2²². At scale 1 the filter is the identity.
        """
        dali, fn = _dali(), _dali().fn
        share = start / dali.math.max(room, 1)
        return fn.resize_crop_mirror(
            images,
            size=fn.cast(size, dtype=dali.types.FLOAT),
            subpixel_scale=False,
            antialias=True,
            crop=self.augment.size,
            crop_pos_y=share[0],
            crop_pos_x=share[1],
        )

    def _pixels(self, crops: Any) -> Any:
        """Crops → brightness, contrast, clamp, standardize, flip; float32 CHW, or HWC for channels_last.

        Each operator is a pass over a batch that no cache holds, so the last one subtracts, divides, flips (the same
        as flipping first) and transposes at once. It wants what is by sample on the CPU, where DALI copies it.
        """
        dali, fn, augment = _dali(), _dali().fn, self.augment
        values, mean, divisor = crops, 0.0, 1.0
        if self._recolours:
            brightness = _input("brightness", dali.types.FLOAT, 0)
            contrast = _input("contrast", dali.types.FLOAT, 0)
            means = fn.reductions.mean(crops, axes=(0, 1), keep_dims=True)
            # (v - m)·k + m + b with one pass less over whole images.
            values = values * contrast + (means * (1.0 - contrast) + brightness)
            if augment.clamp:  # a third faster than math.clamp on the CPU
                values = dali.math.min(dali.math.max(values, 0.0), 255.0)
        if augment.standardize is not None:
            count = math.prod(augment.size) * (3 if self.shape is None else self.shape[2])
            mean = fn.reductions.mean(values)
            if augment.standardize == "stddev":
                divisor = dali.math.max(fn.reductions.std_dev(values, mean), 1 / math.sqrt(count)).cpu()
            else:
                divisor = dali.math.max(fn.reductions.variance(values, mean), 1 / count).cpu()
            mean = mean.cpu()
        return fn.crop_mirror_normalize(
            values,
            mirror=_input("flip", dali.types.INT32, 0) if augment.flip else 0,
            mean=mean,
            std=divisor,
            dtype=dali.types.FLOAT,
            output_layout="HWC" if self.channels_last else "CHW",
        )

    # -- what is fed ---------------------------------------------------------------------------------------------

    @property
    def _recolours(self) -> bool:
        return self.augment.brightness != 0 or self.augment.contrast != (1.0, 1.0)

    def inputs(self, samples: Samples, parameters: Parameters) -> dict[str, Any]:
        """Return what is fed for a batch, by the inputs' names: only what varies, since each costs a microsecond."""
        inputs: dict[str, Any] = {"samples": samples}
        if self.decodes_only:
            return inputs
        if self.shape is not None:
            if self.device_id is None:
                inputs["samples"] = np.ascontiguousarray(samples)  # for a torch tensor DALI would start CUDA
            else:
                inputs["samples"] = torch.as_tensor(samples, device=f"cuda:{self.device_id}").contiguous()
        if not self.augment.centre:
            words = np.stack([parameters.top, parameters.left], axis=1).astype(np.int64)
            inputs["corner"] = words if self.shape is None else self._corners(words)
        if self.augment.flip:
            inputs["flip"] = parameters.flip.astype(np.int32)
        if self._recolours:
            inputs["brightness"], inputs["contrast"] = parameters.brightness, parameters.contrast
        return inputs

    def _corners(self, words: np.ndarray) -> np.ndarray:
        """Return (top, left) of the crops of raw images, int32 [b, 2], for words int64 [b, 2]."""
        assert self.shape is not None
        rooms = np.subtract(resized(self.augment, self.shape[:2]), self.augment.size)
        return ((words * (rooms + 1)) >> 32).astype(np.int32)
