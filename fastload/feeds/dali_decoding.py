"""From a batch of encoded files to upright images, by DALI: their sides are known then, on which parameters hang."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from fastload.augment import Augment
from fastload.feeds.dali_errors import DecodingCheck, SampleError
from fastload.feeds.dali_pipeline import DaliPipeline, decoding_pipeline


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
    def decoded(self, files: Sequence[np.ndarray], augment: Augment) -> Iterator[tuple[Any, np.ndarray]]:
        """Give images, a DALI list of uint8 [H, W, 3] that is valid in the `with` block, and their sides, int64 [b, 2].

        Arguments:
            files: uint8 [bytes] each.
            augment: the crop of which must fit into each image.

        Raises SampleError for the first file that cannot be decoded or is too small; the decoder stays usable.
        """
        self._check.check_last_part(files, augment)
        with contextlib.ExitStack() as run:
            try:
                images = run.enter_context(self._pipeline.run({"samples": files}))
            except RuntimeError as error:
                self._check.explain(files, augment, error)
                raise
            sides = np.array(images.shape(), np.int64)[:, :2]
            for position, (height, width) in enumerate(sides.tolist()):
                problem = augment.misfit((height, width))
                if problem:
                    raise SampleError(position, f"is {problem}")
            yield images, sides

    def close(self) -> None:
        """Free the pipelines, with their threads and memory. Safe to call twice."""
        self._pipeline.close()
        self._check.close()
