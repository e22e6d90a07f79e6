"""Which sample of a batch DALI cannot decode, and that no such sample ends the process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from fastload.errors import DataError
from fastload.feeds.dali_pipeline import DaliPipeline, decoding_pipeline
from fastload.feeds.file_heads import head_is_sound

_DAMAGED = "cannot be decoded: it is damaged, or no image; `fastload verify` lists damaged samples"

Misfit = Callable[[tuple[int, int]], str | None]
"""Tells of an image's height and width why it does not fit, as `Augment.misfit` does; None where it does."""


class SampleError(DataError):
    """A sample that cannot be decoded, or is smaller than the crop; `position` is its index in the batch."""

    def __init__(self, position: int, problem: str) -> None:
        super().__init__(f"sample {position} of the batch {problem}")
        self.position, self.problem = position, problem


class DecodingCheck:
    """Finds samples that cannot be decoded, with pipelines that only decode.

    Arguments:
        threads: DALI's CPU threads, as many as those of the pipeline that makes the batches.
        device_id: the CUDA device that decodes; None for the CPU.
    """

    def __init__(self, threads: int, device_id: int | None) -> None:
        self._threads, self._device_id = threads, device_id
        self._decoding: DaliPipeline | None = None

    def check_last_part(self, samples: Sequence[np.ndarray], misfit: Misfit) -> None:
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
            if self._decoding is None:
                self._decoding = self._pipeline(4 * parts)
            try:
                with self._decoding.run({"samples": [samples[place] for place in some]}):
                    pass
            except RuntimeError as error:
                self.explain(samples, misfit, error, some)
                raise

    def explain(
        self, samples: Sequence[np.ndarray], misfit: Misfit, error: RuntimeError, positions: Sequence[int] = ()
    ) -> None:
        """Find the sample that stopped a batch, by decoding them one at a time, and raise SampleError for it.

        Arguments:
            samples: the batch.
            misfit: of each image.
            error: what DALI said.
            positions: where in the batch the sample is looked for; everywhere by default.
        """
        decoding = self._pipeline(1)
        for position in positions or range(len(samples)):
            try:
                with decoding.run({"samples": [samples[position]]}) as images:
                    height, width, _ = images.shape()[0]
            except RuntimeError as reason:
                raise SampleError(position, _DAMAGED) from reason
            problem = misfit((height, width))
            if problem:
                raise SampleError(position, f"is {problem}") from error

    def _pipeline(self, batch_size: int) -> DaliPipeline:
        build = partial(decoding_pipeline, batch_size, self._threads, self._device_id)
        return DaliPipeline(build, self._device_id)

    def close(self) -> None:
        """Free the pipeline, with its threads and memory. Safe to call twice."""
        if self._decoding is not None:
            self._decoding.close()
