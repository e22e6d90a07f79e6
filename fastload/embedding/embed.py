"""The encoder's pass over a full set: one row of float32 for each sample, into a file or into whatever takes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fastload.common.folder_files import FolderFile
from fastload.common.reproducible import reproducible
from fastload.embedding.encoder import Encoder, chunk_rows
from fastload.embedding.ranks import Leader, RankFailure
from fastload.embedding.stored import RowWriter
from fastload.errors import UsageError
from fastload.feeds.evaluation import EvaluationLoader
from fastload.packed.set import Packed


@torch.inference_mode()
def embed_chunk(encoder: Encoder, images: Tensor) -> np.ndarray:
    """Return the embeddings, float32 [B, D], of images [B, C, h, w]; raise UsageError where the model cannot."""
    try:
        outputs = encoder.model(images)
        return outputs.float().flatten(1).cpu().contiguous().numpy()
    except torch.OutOfMemoryError as error:
        raise UsageError(
            f"encoder={encoder.name!r}: {images.device} has not enough memory for {len(images):,} images of "
            f'{tuple(images.shape[1:])}; choose a smaller input_size=, or device="cpu"'
        ) from error
    except Exception as error:
        text = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UsageError(
            f"encoder={encoder.name!r}: failed on float32 images {list(images.shape)}: {text}; it takes "
            "[B, C, h, w] and returns [B, D] (see input_size=)"
        ) from error


def embed(
    file: Packed,
    encoder: Encoder,
    out: FolderFile | Path | Sink,
    *,
    device: str = "cpu",
    engine: str = "auto",
    first_row: int = 0,
    leader: Leader | None = None,
    seconds_between: float = 10.0,
    on_chunk: Callable[[int], None] | None = None,
    on_saved: Callable[[int], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Pass the embeddings of a whole packed file on, or write them as float32 [N, D] in NumPy's format.

    Images are centre-cropped and standardized, and pass in chunks of `chunk_rows` counted from row 0. Row i of the
    embeddings belongs to row i of the file.

    Arguments:
        file: the full set.
        encoder: see `Encoder`.
        out: the .npy file, or what takes the chunks; it is not closed.
        device: "cpu" or "cuda:N".
        engine: as for EvaluationLoader.
        first_row: rows that an interrupted call has passed on already, a multiple of the chunk.
        leader: of other ranks, which make their share of the chunks; see `fastload.embedding.follower`.
        seconds_between: two times that the rows are made safe.
        on_chunk: called after each chunk with the rows that are passed on.
        on_saved: called each `seconds_between` seconds with the rows that are safe on disk.
        should_stop: asked after each chunk; True saves, calls `on_saved` and raises KeyboardInterrupt.

    Raises UsageError where the model fails, DataError where the disk is full, RankFailure (having saved) where
    another rank failed.
    """
    world_size = 1 if leader is None else leader.world_size
    mine = embed_chunks(file, encoder, device=device, engine=engine, first_row=first_row, every=world_size)
    row, saved = first_row, time.monotonic()
    sink: Sink | None = None if isinstance(out, FolderFile | Path) else out
    writer: RowWriter | None = None

    def save() -> None:
        nonlocal saved
        if sink is not None and row > first_row:
            sink.sync()
            if on_saved is not None:
                on_saved(row)
        saved = time.monotonic()

    try:
        for number in range(-(-(len(file) - first_row) // chunk_rows(encoder.view))):
            embeddings = _next_chunk(number % world_size, row, mine, leader)
            if isinstance(out, FolderFile | Path) and sink is None:
                sink = writer = RowWriter(out, len(file), embeddings.shape[1], keep=first_row > 0)
            assert sink is not None
            sink.write(row, embeddings)
            row += len(embeddings)
            if on_chunk is not None:
                on_chunk(row)
            stop = should_stop()
            if stop or time.monotonic() - saved >= seconds_between:
                save()
            if stop and row < len(file):
                raise KeyboardInterrupt
    except RankFailure:
        save()
        raise
    finally:
        mine.close()
        if writer is not None:
            writer.close()


def embed_chunks(
    file: Packed, encoder: Encoder, *, device: str, engine: str, first_row: int, every: int
) -> Generator[np.ndarray]:
    """Yield the embeddings of some of the chunks, float32 [b, D].

    Arguments:
        file: the full set.
        encoder: see `Encoder`.
        device: "cpu" or "cuda:N".
        engine: as for EvaluationLoader.
        first_row: of the first chunk.
        every: how many chunks on the next one is: each `every`-th is made here.
    """
    if isinstance(encoder.model, nn.Module):
        encoder.model.to(device)
    loader = EvaluationLoader(
        file,
        encoder.view,
        batch_size=chunk_rows(encoder.view),
        device=device,
        engine=engine,
        first_row=first_row,
        every=every,
    )
    batches = iter(loader)
    try:
        with reproducible(device):
            for images, *_ in batches:
                yield embed_chunk(encoder, images)
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()


def _next_chunk(rank: int, row: int, mine: Iterator[np.ndarray], leader: Leader | None) -> np.ndarray:
    """Return the chunk at `row`, which is `rank`'s to make: this process's own, or what another sends."""
    if leader is None:
        return next(mine)
    leader.check()
    return next(mine) if rank == 0 else leader.chunk(rank, row)


class Sink(Protocol):
    """Takes embeddings chunk by chunk."""

    def write(self, row: int, values: np.ndarray) -> None:
        """Take float32 [b, D], of the rows from `row` on."""
        ...

    def sync(self) -> None:
        """Make safe on disk what was taken."""
        ...
