"""Which sample of a batch DALI cannot decode, and that no such sample ends the process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastload.augment import Augment
from fastload.common.dali_decoder import dali as _dali
from fastload.common.dali_decoder import decoded_files
from fastload.errors import DataError
from fastload.feeds.crop_room import misfit
from fastload.feeds.file_heads import head_is_sound

_DAMAGED = "cannot be decoded: it is damaged, or no image; `fastload verify` lists damaged samples"


class SampleError(DataError):
    """A sample that cannot be decoded, or is smaller than the crop; `position` is its index in the batch."""

    def __init__(self, position: int, problem: str) -> None:
        super().__init__(f"sample {position} of the batch {problem}")
        self.position, self.problem = position, problem


class DecodingCheck:
    """Finds samples that cannot be decoded, with pipelines that only decode.

    Arguments:
        augment: the crop of which must fit into each image.
        threads: DALI's CPU threads, as many as those of the pipeline that makes the batches.
        device_id: the CUDA device that decodes; None for the CPU.
    """

    def __init__(self, augment: Augment, threads: int, device_id: int | None) -> None:
        self._augment, self._threads, self._device_id = augment, threads, device_id
        self._pipeline: Any = None
        self._closed = False

    def check_last_part(self, samples: Sequence[np.ndarray]) -> None:
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
            pipeline, self._pipeline = self._pipeline or self._build(4 * parts), None
            try:
                pipeline.feed_input("samples", [samples[place] for place in some])
                pipeline.run()
            except RuntimeError as error:
                self.explain(samples, error, some)
                raise
            self._pipeline = None if self._closed else pipeline

    def explain(self, samples: Sequence[np.ndarray], error: RuntimeError, positions: Sequence[int] = ()) -> None:
        """Find the sample that stopped a batch, by decoding them one at a time, and raise SampleError for it.

        Arguments:
            samples: the batch.
            error: what DALI said.
            positions: where in the batch the sample is looked for; everywhere by default.
        """
        pipeline = self._build(1)
        for position in positions or range(len(samples)):
            try:
                pipeline.feed_input("samples", [samples[position]])
                (result,) = pipeline.run()
            except RuntimeError as reason:
                raise SampleError(position, _DAMAGED) from reason
            height, width, _ = np.asarray(result.as_tensor())[0].tolist()
            misfits = misfit(self._augment, (height, width))
            if misfits:
                raise SampleError(position, f"is {misfits}") from error

    def _build(self, batch_size: int) -> Any:
        """Return a pipeline that finds the sides of encoded images."""
        dali = _dali()
        pipeline = dali.Pipeline(batch_size, self._threads, self._device_id, prefetch_queue_depth=1, exec_dynamic=True)
        with pipeline:
            pipeline.set_outputs(decoded_files(self._device_id).shape(dtype=dali.types.INT64))
        pipeline.build()
        return pipeline

    def close(self) -> None:
        """Free the pipeline, with its threads and memory. Safe to call twice."""
        self._closed = True
        self._pipeline = None
