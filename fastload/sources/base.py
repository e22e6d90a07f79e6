"""What `pack` reads from: every kind of source shows the same few things."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from fastload.errors import DataError

Sample = bytes | np.ndarray | Image.Image | DataError
"""An encoded file, uint8 [H, W(, C)] pixels, an opened image, or why this sample could not be had."""

SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval")


class Source:
    """A set of labelled images with a sorted order, read once, in whatever order streams best.

    Attributes:
        kind: what it is, in words.
        classes: names, maybe empty.
        labels: [N, ...] in sorted order; None until `read` has ended where only that finds them.
        names: N names for messages.
        sizes: int64 [N], the encoded files' bytes; None where the source holds pixels.
        ids: int64 [N] where the samples bring ids of their own; None for 0…N-1.
        ignored: how many files were passed over because they are no images.
        left_out: what of the samples is not stored, in words; complete when `read` has ended.
        details: what else belongs into the packed file's `source`, JSON-able, without paths.
    """

    kind: str
    classes: Sequence[str] = ()
    labels: np.ndarray | None = None
    names: Sequence[str] = ()
    sizes: np.ndarray | None = None
    ids: np.ndarray | None = None
    ignored: int = 0
    left_out: Sequence[str] = ()

    def __init__(self) -> None:
        self.details: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.names)

    def read(self) -> Iterator[tuple[int, Sample]]:
        """Yield (index in sorted order, sample), each index once."""
        raise NotImplementedError


class NumberedNames(Sequence[str]):
    """Names made from numbers when asked for: `name(i)` for i in 0…count-1."""

    def __init__(self, count: int, name: Callable[[int], str]) -> None:
        self._count, self._name = count, name

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        return self._name(index)
