"""What a rank other than 0 does in build-subset: embed the chunks that are its share, as rank 0 says."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any, Protocol

import xxhash

from fastload.common.device import resolve_device
from fastload.common.reproducible import torch_threads
from fastload.common.version import __version__
from fastload.embedding.autoencoder import model_of
from fastload.embedding.embed import embed_chunks
from fastload.embedding.encoder import Encoder, autoencoder_encoder, chunk_rows
from fastload.embedding.ranks import Follower
from fastload.errors import DataError, UsageError
from fastload.packed.set import Packed


def rank_device(device: str, world_size: int) -> str:
    """Return the device of this rank: "cuda" is, of several ranks, the GPU of the launcher's LOCAL_RANK."""
    local = os.environ.get("LOCAL_RANK")
    return str(resolve_device(f"cuda:{local}" if device == "cuda" and world_size > 1 and local else device))


def data_state(file: Packed) -> dict[str, Any]:
    """Return what identifies the data and the code that embeds them, as JSON-able plain values."""
    return {
        "fastload": __version__,
        "fingerprint": file.fingerprint,
        "samples": len(file),
        "ids": xxhash.xxh3_128_hexdigest(file.ids.data),
    }


class ShareSettings(Protocol):
    """What a rank's share depends on, beside what rank 0 sends."""

    @property
    def device(self) -> str: ...

    @property
    def engine(self) -> str: ...

    def open_full(self) -> Packed:
        """Open the full set."""
        ...

    def load_encoder(self) -> Encoder | None:
        """Return the user's own encoder, or None for the autoencoder."""
        ...


def embed_shares(ranks: Follower, settings: Callable[[], ShareSettings]) -> dict[str, Any]:
    """Embed this rank's share in each of rank 0's passes; return the state of its report.

    Arguments:
        ranks: this rank's part.
        settings: called when rank 0, which has the same ones, has begun.

    Raises RankFailure where another rank failed, DataError for another full set than rank 0's, UsageError for another
    encoder.
    """
    header, payload = ranks.receive()
    if "report" in header:  # nothing was to be embedded
        return header["report"]
    own = settings()
    device = rank_device(own.device, ranks.world_size)
    with own.open_full() as file:
        _check_same(file, header["data"])
        while "report" not in header:
            with torch_threads(header["threads"]):
                encoder = _encoder(header, bytes(payload), own)
                _embed_share(ranks, file, encoder, header["first"], device=device, engine=own.engine)
            header, payload = ranks.receive()
    return header["report"]


def _embed_share(ranks: Follower, file: Packed, encoder: Encoder, first: int, *, device: str, engine: str) -> None:
    """Send the chunks of a pass from row `first` on whose turn is this rank's."""
    rows, every = chunk_rows(encoder.view), ranks.world_size
    row = first + ranks.rank * rows
    chunks = embed_chunks(file, encoder, device=device, engine=engine, first_row=row, every=every)
    with contextlib.closing(chunks):
        for values in chunks:
            ranks.send({"row": row, "shape": values.shape}, values.astype("<f4", copy=False))
            ranks.check()
            row += every * rows


def _check_same(file: Packed, data: dict[str, Any]) -> None:
    found = data_state(file)
    other = [name for name in data if found.get(name) != data[name]]
    if other:
        told = ", ".join(f"{name} {found.get(name)} instead of {data[name]}" for name in other)
        raise DataError(f"{file.path}: is not the full set that rank 0 has ({told}); give all ranks the same one")


def _encoder(header: dict[str, Any], weights: bytes, own: ShareSettings) -> Encoder:
    """Return rank 0's encoder: the autoencoder by its weights, one of the user's own by its name."""
    if weights:
        return autoencoder_encoder(model_of(weights, header["channels"], header["embedding_size"]))
    found = own.load_encoder()
    if found is None:
        raise UsageError("rank 0 was given encoder=, and this rank was not; give all ranks the same arguments")
    if found.identity != header["encoder"] or found.view.state() != header["view"]:
        raise UsageError(
            f"encoder={found.name!r}: has other weights, code or input_size= than rank 0's, so the ranks' embeddings "
            "would not belong together; let it load its weights from a file, or draw them from the seed"
        )
    return found
