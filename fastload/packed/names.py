"""The names of a packed file's samples: UTF-8 end to end, and where each begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from fastload.common.text import storable


def stored_names(names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return names as they are stored: uint8 [bytes], and int64 [N + 1], where each begins and the last one ends."""
    encoded = [storable(name).encode() for name in names]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return np.frombuffer(b"".join(encoded), np.uint8), ends


class StoredNames(Sequence[str]):
    """Names that are read when they are asked for.

    Arguments:
        offsets: int64 [N + 1], rising from 0.
        read: gives the bytes from one place to another.
    """

    def __init__(self, offsets: np.ndarray, read: Callable[[int, int], bytes]) -> None:
        self.offsets, self._read = offsets, read

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        return self._read(int(self.offsets[place]), int(self.offsets[place + 1])).decode("utf-8", "backslashreplace")

    def __iter__(self) -> Iterator[str]:
        data, ends = self.stored()[0].tobytes(), self.offsets.tolist()
        for start, end in pairwise(ends):
            yield data[start:end].decode("utf-8", "backslashreplace")

    def stored(self) -> tuple[np.ndarray, np.ndarray]:
        """Return them all as they are stored, uint8 [bytes] and int64 [N + 1]."""
        return np.frombuffer(self._read(0, int(self.offsets[-1])), np.uint8), self.offsets


class JoinedNames(Sequence[str]):
    """The names of several files, one after the other."""

    def __init__(self, parts: Sequence[Sequence[str]]) -> None:
        self._parts = parts
        self._firsts = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        number = int(np.searchsorted(self._firsts, place, side="right")) - 1
        return self._parts[number][place - int(self._firsts[number])]

    def __iter__(self) -> Iterator[str]:
        for part in self._parts:
            yield from part
