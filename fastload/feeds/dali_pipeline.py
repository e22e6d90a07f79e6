"""A DALI pipeline that is run batch by batch, and built anew after a run that did not end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch

from fastload.common.dali_decoder import dali, decoded_files

_of_parents: list[Any] = []
"""Pipelines that a forked child has inherited and cannot free."""


class DaliPipeline:
    """Runs a pipeline of one output; one call at a time, from any thread.

    Arguments:
        build: returns the pipeline.
        device_id: the CUDA device of its inputs; None for the CPU.
    """

    def __init__(self, build: Callable[[], Any], device_id: int | None) -> None:
        self._build, self._device_id = build, device_id
        self._closed, self._process = False, os.getpid()
        self._pipeline = build()

    @contextlib.contextmanager
    def run(self, inputs: dict[str, Any]) -> Iterator[Any]:
        """Give the output for a batch, a DALI list, complete for the host; it is valid in the `with` block.

        Arguments:
            inputs: by their names; on CUDA written on torch's current stream.
        """
        # Whatever interrupts a run, Ctrl-C too, may leave inputs queued for the next one, and an error ends a
        # pipeline: it is put back only after success, else the next call builds another. Meanwhile it is held here,
        # whoever closes this.
        pipeline, self._pipeline = self._pipeline or self._build(), None
        stream = None if self._device_id is None else torch.cuda.current_stream(self._device_id)
        for name, values in inputs.items():
            pipeline.feed_input(name, values, cuda_stream=stream)
        (result,) = pipeline.run()
        try:
            yield result
        finally:
            self._pipeline = None if self._closed else pipeline

    def close(self) -> None:
        """Free the pipeline, with its threads and memory. Safe to call twice."""
        self._closed = True
        if os.getpid() != self._process:  # a fork has none of the threads, and freeing them would wait for them
            _of_parents.append(self._pipeline)
        self._pipeline = None


def new_pipeline(batch_size: int, threads: int, device_id: int | None) -> Any:
    """Return an empty pipeline of DALI's for `DaliPipeline`; `device_id` is that of CUDA, None for the CPU."""
    # With a depth of more than 1 a pipeline runs ahead and asks for batches that have not been fed.
    return dali().Pipeline(batch_size, threads, device_id, seed=0, prefetch_queue_depth=1, exec_dynamic=True)


def decoding_pipeline(batch_size: int, threads: int, device_id: int | None) -> Any:
    """Return a pipeline that decodes the files "samples" to upright RGB, uint8 HWC, on its device."""
    pipeline = new_pipeline(batch_size, threads, device_id)
    with pipeline:
        pipeline.set_outputs(decoded_files(device_id))
    pipeline.build()
    return pipeline
