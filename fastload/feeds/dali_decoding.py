"""From a batch of encoded files to upright images, by DALI: their sides are known then, on which parameters hang."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from fastload.feeds.dali_errors import DecodingCheck, Misfit, SampleError
from fastload.feeds.dali_pipeline import DaliPipeline, decoding_pipeline
from fastload.feeds.jpeg_cuts import OTHER_INDEX, EncodedBatch


class FileDecoder:
    """Decodes batches with a pipeline that is built once; engines of several recipes may share it.

    Arguments:
        batch_size: the largest batch.
        threads: DALI's CPU threads.
        device_id: the CUDA device that decodes; None for the CPU.
    """

    def __init__(self, batch_size: int, threads: int, device_id: int | None) -> None:
        self._check = DecodingCheck(threads, device_id)
        self._pipeline = DaliPipeline(partial(decoding_pipeline, batch_size, threads, device_id), device_id)

    @contextlib.contextmanager
    def decoded(self, batch: EncodedBatch, misfit: Misfit) -> Iterator[tuple[Any, EncodedBatch]]:
        """Give images, a DALI list of uint8 [h, w, 3] that is valid in the `with` block, and the batch with all sides.

        Arguments:
            batch: whole files, or parts of them.
            misfit: of each image, as a whole.

        Raises SampleError for the first file that cannot be decoded or does not fit; the decoder stays usable.
        """
        files = batch.files
        self._check.check_last_part(files, misfit)
        with contextlib.ExitStack() as run:
            try:
                images = run.enter_context(self._pipeline.run({"samples": files}))
            except RuntimeError as error:
                self._check.explain(files, misfit, error)
                raise
            shown = np.array(images.shape(), np.int64)[:, :2]
            whole = np.where(batch.whole > 0, batch.whole, shown)
            for position, (height, width) in enumerate(whole.tolist()):
                problem = misfit((height, width))
                if problem:
                    raise SampleError(position, f"is {problem}")
            other = np.flatnonzero(((batch.shown > 0) & (batch.shown != shown)).any(axis=1))
            if len(other):
                raise SampleError(int(other[0]), OTHER_INDEX)
            yield images, replace(batch, shown=shown, whole=whole)

    def close(self) -> None:
        """Free the pipelines, with their threads and memory. Safe to call twice."""
        self._pipeline.close()
        self._check.close()
