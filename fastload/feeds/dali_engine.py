"""The DALI engine: decode, resize and augment a batch with one DALI pipeline, on the CPU or a GPU.

The pipeline has no reader, no randomness and no epochs: samples and parameters are fed, one batch a run.
For encoded images on the CPU it only decodes, and a kernel of ours does the rest. Of one processor, a photograph of
ImageNet, made 224², took 1.0 ms to decode; DALI's resize took 0.6 more where the kernel takes 0.3, and its operators
after the crop, each a pass over a batch that no cache holds, 0.6 to 1.1 where the kernel takes 0.1.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from fastload.augment import Augment, Parameters
from fastload.common.processors import default_threads
from fastload.errors import ClosedError, UsageError
from fastload.feeds.crop_room import misfit
from fastload.feeds.dali_errors import DecodingCheck
from fastload.feeds.dali_graph import DaliGraph, Samples
from fastload.feeds.decoded_finish import DecodedFinish

_of_parents: list[Any] = []
"""Pipelines that a forked child has inherited and cannot free."""


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
        device_id: int | None = None
        if device.type == "cuda":
            device_id = torch.cuda.current_device() if device.index is None else device.index
        threads = threads or default_threads()
        self._closed, self._process = False, os.getpid()
        decodes_only = shape is None and device_id is None
        self._finish = DecodedFinish(augment, threads) if decodes_only else None
        self._check = DecodingCheck(augment, threads, device_id) if shape is None else None
        self._graph = DaliGraph(
            augment,
            shape=shape,
            batch_size=batch_size,
            device_id=device_id,
            channels_last=memory_format == torch.channels_last,
            threads=threads,
            decodes_only=decodes_only,
        )
        self._pipeline = self._graph.build()

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
        check, device_id = self._check, self._graph.device_id
        if check is not None:
            check.check_last_part(samples)  # type: ignore[arg-type]  # where there is no shape, it is files
        # Whatever interrupts a run, Ctrl-C too, may leave inputs queued for the next one, and an error ends a
        # pipeline: it is put back only after success, else the next call builds another.
        pipeline, self._pipeline = self._pipeline or self._graph.build(), None
        stream = None if device_id is None else torch.cuda.current_stream(device_id)
        try:
            for name, values in self._graph.inputs(samples, parameters).items():
                pipeline.feed_input(name, values, cuda_stream=stream)
            (result,) = pipeline.run()
        except RuntimeError as error:
            del pipeline
            if check is not None:
                check.explain(samples, error)  # type: ignore[arg-type]
            raise
        if self._finish is not None:
            self._finish(result, parameters, out)
        else:
            images = torch.from_dlpack(result.as_tensor())
            out.copy_(images.permute(0, 3, 1, 2) if self._graph.channels_last else images)
        if stream is not None:
            stream.synchronize()  # DALI may reuse the result's memory
        self._pipeline = None if self._closed else pipeline

    def close(self) -> None:
        """Free the pipelines, with their threads and memory. Safe to call twice."""
        self._closed = True
        if os.getpid() != self._process:  # a fork has none of the threads, and freeing them would wait for them
            _of_parents.extend([self._pipeline, self._check])
        elif self._check is not None:
            self._check.close()
        self._pipeline = None
