"""The DALI engine: decode and augment a batch with DALI pipelines, on the CPU or a GPU.

A pipeline has no reader, no randomness and no epochs: samples and parameters are fed, one batch a run.
Encoded images are decoded by a pipeline of its own, after which their sides are known, on which the parameters hang.
On the CPU a kernel of ours does the rest. Of one processor, a photograph of ImageNet, made 224², took 1.0 ms to decode;
DALI's resize took 0.6 more where the kernel takes 0.3, and its operators after the crop, each a pass over a batch that
no cache holds, 0.6 to 1.1 where the kernel takes 0.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fastload.augment import Augment
from fastload.augment.parameters import Parameters, SampleKeys, draw_parameters
from fastload.common.processors import default_threads
from fastload.errors import ClosedError, UsageError
from fastload.feeds.dali_decoding import FileDecoder
from fastload.feeds.dali_graph import DaliGraph
from fastload.feeds.dali_pipeline import DaliPipeline
from fastload.feeds.decoded_finish import DecodedFinish
from fastload.feeds.jpeg_cuts import EncodedBatch

Samples = np.ndarray | torch.Tensor | Sequence[np.ndarray] | EncodedBatch


class DaliEngine:
    """Makes batches with DALI pipelines that are built once; one call at a time, from any thread.

    Arguments:
        augment: what happens to each image.
        shape: (H, W, C) of images that come decoded, (0, 0, C) where each has its own height and width; None for
            encoded ones (JPEG, PNG), which come out as RGB, upright.
        batch_size: the largest batch.
        device: "cpu", or the CUDA device that decodes and augments.
        dtype: of `out`: torch.float32, float16, bfloat16 or uint8.
        memory_format: of `out`; another one costs a transposing copy.
        threads: DALI's CPU threads; the processors, at most 8, by default.
        decoder: of encoded files, which the caller closes; one of the engine's own by default.

    Raises UsageError if DALI is missing, the images cannot be augmented so, or a normalized output is asked for as
    torch.uint8.
    """

    def __init__(
        self,
        augment: Augment,
        *,
        shape: tuple[int, int, int] | None,
        batch_size: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
        threads: int | None = None,
        decoder: FileDecoder | None = None,
    ) -> None:
        channels = 3 if shape is None else shape[2]
        sides = None if shape is None or not shape[0] else shape[:2]
        problem = None if sides is None else augment.misfit(sides)
        if problem:
            raise UsageError(f"the images are {problem}")
        device_id, threads = cuda_number(device), threads or default_threads()
        channels_last = memory_format == torch.channels_last
        self._augment, self._sides, self._memory_format = augment, sides, memory_format
        self._closed, self._device_id = False, device_id
        self._own_decoder: FileDecoder | None = None
        if shape is None and decoder is None:
            decoder = self._own_decoder = FileDecoder(batch_size, threads, device_id)
        self._decoder = decoder
        self._finish: DecodedFinish | None = None
        self._steps: DaliPipeline | None = None
        if sides is None and device_id is None:
            self._finish = DecodedFinish(augment, channels, threads, dtype, channels_last)
        self._graph = DaliGraph(
            augment,
            sides=sides,
            channels=channels,
            batch_size=batch_size,
            device_id=device_id,
            levels=dtype == torch.uint8,
            channels_last=channels_last,
            threads=threads,
        )
        if self._finish is None:
            self._steps = DaliPipeline(self._graph.build, device_id)

    def __call__(self, samples: Samples, keys: SampleKeys, out: torch.Tensor) -> None:
        """Augment b ≤ batch_size samples into `out`, which is complete on return (on CUDA for the host too).

        Arguments:
            samples: decoded: uint8 [b, H, W, C], NumPy or torch, on any device, or b of [H, W, C] where their sides
                differ, on the engine's device, which the crop fits into; encoded: b uint8 [bytes], or parts of files.
            keys: what the parameters of the b samples hang on.
            out: [b, C, h, w] on the engine's device, of its dtype, in any memory format; all is computed in float32
                and rounded once.

        Raises SampleError for a sample that cannot be decoded or is too small; the engine stays usable.
        """
        self.make_views(samples, [(keys, out)])

    def make_views(self, samples: Samples, views: Sequence[tuple[SampleKeys, torch.Tensor]]) -> None:
        """Augment samples, which are decoded once, for each view into its tensor; see `__call__`."""
        if self._closed:
            raise ClosedError()
        if not len(views[0][0].ids):
            return
        if self._decoder is None:
            if self._sides is None:
                sides = np.array([image.shape[:2] for image in samples], np.int64)  # type: ignore[union-attr]
            else:
                sides = np.tile(np.array(self._sides, np.int64), (len(views[0][0].ids), 1))
            self._make(samples, EncodedBatch([], np.zeros_like(sides), sides, sides), views)
            return
        batch = samples if isinstance(samples, EncodedBatch) else EncodedBatch.of_whole(samples)  # type: ignore[arg-type]
        with self._decoder.decoded(batch, self._augment.misfit) as (images, there):
            self._make(images, there, views)

    def _make(self, images: Any, batch: EncodedBatch, views: Sequence[tuple[SampleKeys, torch.Tensor]]) -> None:
        for keys, out in views:
            if self._finish is None:
                parameters = draw_parameters(self._augment, keys, batch.whole).moved(batch.origins)
                self._run_steps(images, parameters, batch.shown, out)
                continue
            fits = out.is_contiguous(memory_format=self._memory_format)
            target = out if fits else torch.empty_like(out, memory_format=self._memory_format)
            self._finish(images, batch, keys, target)
            if not fits:
                out.copy_(target)

    def _run_steps(self, images: Any, parameters: Parameters, sides: np.ndarray, out: torch.Tensor) -> None:
        assert self._steps is not None
        inputs = self._graph.inputs(images, parameters, sides)
        with self._steps.run(inputs) as result:
            made = torch.from_dlpack(result.as_tensor())
            out.copy_(made.permute(0, 3, 1, 2) if self._graph.channels_last else made)
            if self._device_id is not None:
                torch.cuda.current_stream(self._device_id).synchronize()  # DALI may reuse the result's memory

    def close(self) -> None:
        """Free the pipelines, with their threads and memory. Safe to call twice."""
        self._closed = True
        for one in (self._steps, self._own_decoder):
            if one is not None:
                one.close()


def cuda_number(device: torch.device) -> int | None:
    """Return the number of a CUDA device; None for the CPU."""
    if device.type != "cuda":
        return None
    return torch.cuda.current_device() if device.index is None else device.index
