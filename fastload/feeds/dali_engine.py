"""The DALI engine: decode, resize and augment a batch with one DALI pipeline, on the CPU or a GPU.

The pipeline has no reader, no randomness and no epochs: samples and parameters are fed, one batch a run.
Its steps are those of `fastload.augment.Augment`; what the settings make constant is left out of the graph. For encoded
images on the CPU it only decodes, and a kernel of ours does the rest. Of one processor, a photograph of ImageNet, made
224², took 1.0 ms to decode; DALI's resize took 0.6 more where the kernel takes 0.3, and its operators after the crop,
each a pass over a batch that no cache holds, 0.6 to 1.1 where the kernel takes 0.1.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from fastload.augment import Augment, Parameters, kernel_settings
from fastload.common.dali_decoder import dali as _dali
from fastload.common.dali_decoder import decoded_files
from fastload.common.dali_decoder import graph_input as _input
from fastload.common.processors import makers
from fastload.errors import ClosedError, DataError, UsageError
from fastload.feeds.file_heads import head_is_sound
from fastload.kernels import augment as kernel
from fastload.kernels import finish

_of_parents: list[Any] = []
"""Pipelines that a forked child has inherited and cannot free."""

_DAMAGED = "cannot be decoded: it is damaged, or no image; `fastload verify` lists damaged samples"

Samples = np.ndarray | torch.Tensor | Sequence[np.ndarray]

_STORED = {torch.float32: kernel.FLOAT32, torch.float16: kernel.FLOAT16, torch.bfloat16: kernel.BFLOAT16}


def resized(augment: Augment, sides: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) after `augment.resize`: the shorter side is just that, the longer rounded half up."""
    height, width = _resized(augment, np.array(sides, np.int64)).tolist()
    return height, width


def _resized(augment: Augment, sides: np.ndarray) -> np.ndarray:
    """Return the sides after `augment.resize`, int64 [..., 2]."""
    if augment.resize is None:
        return sides
    short = sides.min(axis=-1, keepdims=True)
    return (2 * sides * augment.resize + short) // (2 * short)


def misfit(augment: Augment, sides: tuple[int, int]) -> str | None:
    """Return what is wrong with images of (height, width) pixels that the crop does not fit into, or None."""
    room = resized(augment, sides)
    height, width = augment.size
    if height <= room[0] and width <= room[1]:
        return None
    before = "" if room == sides else f" resized from {sides[0]}×{sides[1]}"
    return (
        f"{room[0]}×{room[1]} pixels{before}, too small for crop={height}×{width}; "
        f"choose a smaller crop, or resize={max(augment.size)} to enlarge"
    )


class SampleError(DataError):
    """A sample that cannot be decoded, or is smaller than the crop; `position` is its index in the batch."""

    def __init__(self, position: int, problem: str) -> None:
        super().__init__(f"sample {position} of the batch {problem}")
        self.position, self.problem = position, problem


class DaliEngine:
    """Makes batches with a DALI pipeline that is built once; one call at a time, from any thread.

    Arguments:
        augment: what happens to each image.
        shape: (H, W, C) of raw images; None for encoded ones (JPEG, PNG), which come out as RGB, upright.
        batch_size: the largest batch.
        device: "cpu", or the CUDA device that decodes and augments.
        memory_format: of `out`; another one costs a transposing copy.
        threads: DALI's CPU threads; the processors, at most 8, by default.

    Raises UsageError if DALI is missing, or the crop is larger than raw images once resized.
    """

    def __init__(
        self,
        augment: Augment,
        *,
        shape: tuple[int, int, int] | None,
        batch_size: int,
        device: torch.device,
        memory_format: torch.memory_format = torch.contiguous_format,
        threads: int | None = None,
    ) -> None:
        problem = misfit(augment, shape[:2]) if shape is not None else None
        if problem:
            raise UsageError(f"the images are {problem}")
        self._augment, self._shape, self._batch_size = augment, shape, batch_size
        self._channels_last = memory_format == torch.channels_last
        self._device_id: int | None = None
        if device.type == "cuda":
            self._device_id = torch.cuda.current_device() if device.index is None else device.index
        self._threads = threads or makers()
        self._closed, self._process = False, os.getpid()
        self._finishes = shape is None and self._device_id is None
        if self._finishes:
            self._settings = kernel_settings(augment)
            for kind in _STORED.values():  # compiles the kernel
                nothing = np.empty((0, 1), np.float32 if kind == kernel.FLOAT32 else np.int16)
                where, none = (np.empty(0, np.int64), np.empty((0, 6), np.int64)), np.empty(0, np.float32)
                self._finish_part((*where, np.empty(0, np.bool_), none, none, nothing), False, kind)
        self._pipeline = self._build()
        self._probe: Any = None

    def __call__(self, samples: Samples, parameters: Parameters, out: torch.Tensor) -> None:
        """Augment b ≤ batch_size samples into `out`, which is complete on return (on CUDA for the host too).

        Arguments:
            samples: raw: uint8 [b, H, W, C], NumPy or torch, on any device; encoded: b uint8 [bytes].
            parameters: of the b samples, drawn with the same `augment`.
            out: [b, C, h, w] on the engine's device, float32, float16 or bfloat16, in any memory format; all is
                computed in float32 and rounded once.

        Raises SampleError for a sample that cannot be decoded or is too small; the engine stays usable.
        """
        if self._closed:
            raise ClosedError()
        if not len(samples):
            return
        if self._shape is None:
            self._check_last_part(samples)  # type: ignore[arg-type]  # where there is no shape, it is files
        # Whatever interrupts a run, Ctrl-C too, may leave inputs queued for the next one, and an error ends a
        # pipeline: it is put back only after success, else the next call builds another.
        pipeline, self._pipeline = self._pipeline or self._build(), None
        stream = None if self._device_id is None else torch.cuda.current_stream(self._device_id)
        try:
            for name, values in self._inputs(samples, parameters).items():
                pipeline.feed_input(name, values, cuda_stream=stream)
            (result,) = pipeline.run()
        except RuntimeError as error:
            del pipeline
            if self._shape is None:
                self._explain(samples, error)
            raise
        if self._finishes:
            self._finish(out, result, parameters)
        else:
            images = torch.from_dlpack(result.as_tensor())
            out.copy_(images.permute(0, 3, 1, 2) if self._channels_last else images)
        if stream is not None:
            stream.synchronize()  # DALI may reuse the result's memory
        self._pipeline = None if self._closed else pipeline

    def close(self) -> None:
        """Free the pipeline, with its threads and memory. Safe to call twice."""
        self._closed = True
        if os.getpid() != self._process:  # a fork has none of its threads, and freeing it would wait for them
            _of_parents.extend([self._pipeline, self._probe])
        self._pipeline = self._probe = None

    def _finish(self, out: torch.Tensor, images: Any, parameters: Parameters) -> None:
        """Resize, crop, flip, recolour and standardize decoded images, a DALI list of uint8 [H, W, 3], into `out`."""
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

        # As many threads as DALI's, which are idle now; each takes the next images when it is done with some. They are
        # begun for each batch (0.4 ms each, at most), so that none of them goes on whatever interrupts it.
        threads = min(self._threads, len(out))
        step = max(1, len(out) // (8 * threads))
        firsts = iter(range(0, len(out), step))
        with ThreadPoolExecutor(threads, thread_name_prefix="fastload-finish") as pool:
            for done in [pool.submit(finish_some) for _ in range(threads)]:
                done.result()
        if target is not out:
            out.copy_(target)

    def _finish_part(self, part: tuple[np.ndarray, ...], channels_last: bool, kind: int) -> None:
        addresses, places, flip, brightness, contrast, values = part
        finish.finish_decoded(
            addresses, places, self._augment.size, flip, brightness, contrast, *self._settings[-2:], values,
            channels_last, kind,
        )  # fmt: skip

    def _places(self, sides: np.ndarray, parameters: Parameters) -> np.ndarray:
        """Return images' sides, their sides once resized, and their crops' corners, int64 [b, 6]; refuse a misfit."""
        sizes = _resized(self._augment, sides)
        rooms = np.subtract(sizes, self._augment.size)
        if (rooms < 0).any():
            position = int((rooms < 0).any(axis=1).argmax())
            height, width = sides[position].tolist()
            raise SampleError(position, f"is {misfit(self._augment, (height, width))}")
        words = np.stack([parameters.top, parameters.left], axis=1).astype(np.int64)
        return np.hstack([sides, sizes, rooms // 2 if self._augment.centre else (words * (rooms + 1)) >> 32])

    # -- what is fed: only what varies, as a value costs about a microsecond ------------------------------------

    @property
    def _recolours(self) -> bool:
        return self._augment.brightness != 0 or self._augment.contrast != (1.0, 1.0)

    def _inputs(self, samples: Samples, parameters: Parameters) -> dict[str, Any]:
        """Return the values of the graph's inputs for a batch, by name."""
        inputs: dict[str, Any] = {"samples": samples}
        if self._finishes:
            return inputs
        if self._shape is not None:
            if self._device_id is None:
                inputs["samples"] = np.ascontiguousarray(samples)  # for a torch tensor DALI would start CUDA
            else:
                inputs["samples"] = torch.as_tensor(samples, device=f"cuda:{self._device_id}").contiguous()
        if not self._augment.centre:
            words = np.stack([parameters.top, parameters.left], axis=1).astype(np.int64)
            inputs["corner"] = words if self._shape is None else self._corners(words)
        if self._augment.flip:
            inputs["flip"] = parameters.flip.astype(np.int32)
        if self._recolours:
            inputs["brightness"], inputs["contrast"] = parameters.brightness, parameters.contrast
        return inputs

    def _corners(self, words: np.ndarray) -> np.ndarray:
        """Return (top, left) of the crops of raw images, int32 [b, 2], for words int64 [b, 2]."""
        assert self._shape is not None
        rooms = np.subtract(resized(self._augment, self._shape[:2]), self._augment.size)
        return ((words * (rooms + 1)) >> 32).astype(np.int32)

    # -- the graph ----------------------------------------------------------------------------------------------

    def _build(self) -> Any:
        # With a depth of more than 1 a pipeline runs ahead and asks for batches that have not been fed.
        pipeline = _dali().Pipeline(
            self._batch_size,
            self._threads,
            self._device_id,
            seed=0,
            prefetch_queue_depth=1,
            exec_dynamic=True,
        )
        with pipeline:
            if self._finishes:
                pipeline.set_outputs(decoded_files(self._device_id))
            else:
                crops = self._encoded_crops() if self._shape is None else self._raw_crops(self._shape)
                pipeline.set_outputs(self._pixels(crops))
        pipeline.build()
        return pipeline

    def _raw_crops(self, shape: tuple[int, int, int]) -> Any:
        """Raw samples → resized where needed → cropped, uint8 HWC."""
        dali = _dali()
        if self._device_id is None:
            images = _input("samples", dali.types.UINT8, 3, layout="HWC")
        else:
            # Copied, on torch's current stream: only for a copy does DALI promise to wait for that stream.
            images = _input("samples", dali.types.UINT8, 3, layout="HWC", device="gpu", no_copy=False)
        size, crop = resized(self._augment, shape[:2]), self._augment.size
        room = [side - crop_side for side, crop_side in zip(size, crop, strict=True)]
        start: Any = [space // 2 for space in room]
        if not self._augment.centre:
            start = _input("corner", dali.types.INT32, 1)
        if not self._augment.needs_resize(shape):
            return dali.fn.slice(images, start=start, shape=crop, axes=(0, 1))
        constants = (dali.types.Constant(np.array(values, np.int32), device="cpu") for values in (size, room))
        if self._augment.centre:
            start = dali.types.Constant(np.array(start, np.int32), device="cpu")
        return self._resized_crops(images, start, *constants)

    def _encoded_crops(self) -> Any:
        """Encoded samples → decoded → resized where needed → cropped, uint8 HWC; on CUDA only, see `_finish`."""
        dali, fn, crop = _dali(), _dali().fn, self._augment.size
        images = decoded_files(self._device_id)
        size = images.shape(dtype=dali.types.INT64)[:2]
        if self._augment.resize is not None:
            short = fn.reductions.min(size)
            size = (size * (2 * self._augment.resize) + short) // (short * 2)  # as `resized`
        room = size - dali.types.Constant(np.array(crop, np.int64), device="cpu")
        words = None if self._augment.centre else _input("corner", dali.types.INT64, 1)
        start = room // 2 if words is None else (words * (room + 1)) >> 32
        if self._augment.resize is not None:
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
            crop=self._augment.size,
            crop_pos_y=share[0],
            crop_pos_x=share[1],
        )

    def _pixels(self, crops: Any) -> Any:
        """Crops → brightness, contrast, clamp, standardize, flip; float32 CHW, or HWC for channels_last.

        Each operator is a pass over a batch that no cache holds, so the last one subtracts, divides, flips (the same
        as flipping first) and transposes at once. It wants what is by sample on the CPU, where DALI copies it.
        """
        dali, fn, augment = _dali(), _dali().fn, self._augment
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
            count = math.prod(augment.size) * (3 if self._shape is None else self._shape[2])
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
            output_layout="HWC" if self._channels_last else "CHW",
        )

    # -- errors -------------------------------------------------------------------------------------------------

    def _check_last_part(self, samples: Sequence[np.ndarray]) -> None:
        """Raise SampleError for a file that DALI refuses, where that could end the process.

        Of more than 4 · (threads + 1) files, DALI (2.4) has each thread look at the heads of a part and looks
        at the last part itself. What it refuses there it raises at once, and frees what the threads still look at:
        SIGSEGV. So the files of that part whose heads are not plainly sound are decoded beforehand, in runs so small
        that DALI looks at all of them itself. (Damage behind the heads is found later, and safely.)
        """
        parts = self._threads + 1
        if len(samples) <= 4 * parts:
            return
        first = len(samples) * self._threads // parts
        doubtful = [place for place in range(first, len(samples)) if not head_is_sound(samples[place])]
        for begin in range(0, len(doubtful), 4 * parts):
            some = doubtful[begin : begin + 4 * parts]
            probe, self._probe = self._probe or self._build_probe(4 * parts), None
            try:
                probe.feed_input("samples", [samples[place] for place in some])
                probe.run()
            except RuntimeError as error:
                self._explain(samples, error, some)
                raise
            self._probe = None if self._closed else probe

    def _build_probe(self, batch_size: int) -> Any:
        """Return a pipeline that finds the sides of encoded images."""
        dali = _dali()
        probe = dali.Pipeline(batch_size, self._threads, self._device_id, prefetch_queue_depth=1, exec_dynamic=True)
        with probe:
            probe.set_outputs(decoded_files(self._device_id).shape(dtype=dali.types.INT64))
        probe.build()
        return probe

    def _explain(self, samples: Samples, error: RuntimeError, positions: Sequence[int] | None = None) -> None:
        """Find the sample that stopped a batch, by decoding them one at a time, and raise SampleError for it.

        Arguments:
            positions: where it is looked for; everywhere by default.
        """
        probe = self._build_probe(1)
        for position in range(len(samples)) if positions is None else positions:
            try:
                probe.feed_input("samples", [samples[position]])
                (result,) = probe.run()
            except RuntimeError as reason:
                raise SampleError(position, _DAMAGED) from reason
            height, width, _ = np.asarray(result.as_tensor())[0].tolist()
            misfits = misfit(self._augment, (height, width))
            if misfits:
                raise SampleError(position, f"is {misfits}") from error
