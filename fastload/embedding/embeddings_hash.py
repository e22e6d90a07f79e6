"""The hash of embeddings, which says whether two sets of them are the same: equal however their rows come in."""

from __future__ import annotations

from typing import Any

import numpy as np
import xxhash

from fastload.embedding.chunks import Embeddings, as_embeddings

_ROWS = 64
"""Rows of a chunk: what an interrupted pass must keep of one that is not whole is half a megabyte of 2,048 columns."""

HASH_RULE = f"xxh3-128 of the digests of {_ROWS} rows each"
"""What embeddings kept on disk were hashed by: another rule is another hash of the same embeddings."""


class EmbeddingsHash:
    """The hash of embeddings that come in pieces, in the order of rows; it can be kept on disk in between.

    xxh3-128 of the shape, as Python writes it, and the digests (xxh3-128, 16 bytes) of each 64 rows of little-endian
    float32, the last fewer. A hash of digests, since the state of the library's own hash cannot leave the process.

    Arguments:
        shape: rows and columns of all the embeddings.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self._shape = (int(shape[0]), int(shape[1]))
        self._digests = b""
        self._rest = np.empty((0, self._shape[1]), "<f4")

    def update(self, rows: np.ndarray) -> None:
        """Take in the next rows, [b, columns]."""
        rows = np.ascontiguousarray(rows, "<f4")
        digests = [self._digests]
        taken = 0
        if len(self._rest):
            taken = min(len(rows), _ROWS - len(self._rest))
            self._rest = np.concatenate([self._rest, rows[:taken]])
            if len(self._rest) < _ROWS:
                return
            digests.append(xxhash.xxh3_128_digest(self._rest.data))
        for start in range(taken, len(rows) - _ROWS + 1, _ROWS):
            digests.append(xxhash.xxh3_128_digest(rows[start : start + _ROWS].data))
        self._digests = b"".join(digests)
        self._rest = rows[len(rows) - (len(rows) - taken) % _ROWS :].copy()

    def hexdigest(self) -> str:
        """Return the hash, 32 hex digits, of a matrix that has come in whole."""
        rest = xxhash.xxh3_128_digest(self._rest.data) if len(self._rest) else b""
        return xxhash.xxh3_128_hexdigest(repr(self._shape).encode() + self._digests + rest)

    def state(self) -> dict[str, np.ndarray]:
        """Return what is to be kept: `digests`, uint8, and `rest`, float32 [below 64, columns]."""
        return {"digests": np.frombuffer(self._digests, np.uint8).copy(), "rest": self._rest.copy()}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Go on from a state."""
        self._digests, self._rest = state["digests"].tobytes(), state["rest"].astype("<f4")


def hash_rows(embeddings: Embeddings | Any) -> str:
    """Return the hash of embeddings [N, D] as float32, shape and values, 32 hex digits."""
    source = as_embeddings(embeddings)
    found = EmbeddingsHash(source.shape)
    for _, rows in source.chunks():
        found.update(np.asarray(rows))
    return found.hexdigest()
