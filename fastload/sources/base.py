"""What `pack` reads from: every kind of source shows the same few things."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from fastload.errors import DataError, UsageError

Sample = bytes | np.ndarray | Image.Image | DataError
"""An encoded file, uint8 [H, W(, C)] pixels, an opened image, or why this sample could not be had."""

Channels = int | Literal["as-is"] | None
"""How many channels images shall have: None for RGB, made of 1 to 4; "as-is" for those that they have, up to 32."""

SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval")


@dataclass(frozen=True)
class SourceOptions:
    """What `open_source` was told beside the source; its docstring says what each means."""

    split: str | None = None
    images: str | None = None
    labels: str | None = None
    class_level: int | None = None
    unlabelled: bool = False
    channels: Channels = None

    def __post_init__(self) -> None:
        if self.unlabelled and self.labels is not None:
            raise UsageError("labels= names labels, and unlabelled=True leaves them out; give one of the two")
        if (self.images is None) != (self.labels is None) and not self.unlabelled:
            raise UsageError("images= and labels= go together: give both")
        if self.class_level is not None and self.unlabelled:
            raise UsageError("class_level= names classes, and unlabelled=True leaves them out; give one of the two")

    def refuse_array_names(self, where: object) -> None:
        """Refuse what only suits arrays."""
        if self.images is not None:
            raise UsageError(f"{where}: images= and labels= name arrays of an .npz or HDF5 file; leave them out here")

    def refuse_class_level(self, where: object) -> None:
        """Refuse what only suits files in folders."""
        if self.class_level is not None:
            raise UsageError(f"{where}: class_level= is for images in folders and archives; leave it out here")


class Source:
    """A set of labelled images with a sorted order, read once, in whatever order streams best.

    Attributes:
        kind: what it is, in words.
        classes: names, maybe empty.
        labels: [N, ...] in sorted order; None until `read` has ended where only that finds them.
        names: N names for messages.
        sizes: int64 [N], the encoded files' bytes; None where the source holds pixels.
        ragged: whether its images have sizes of their own, as in the ragged file that they stand in.
        ids: int64 [N] where the samples bring ids of their own; None for 0…N-1.
        passed_over: how many files are no samples, by kind, such as {".txt": 2, "system files": 1}.
        notes: what people should know of it, a sentence each.
        left_out: what of the samples is not stored, in words; complete when `read` has ended.
        details: what else belongs into the packed file's `source`, JSON-able, without paths.
    """

    kind: str
    classes: Sequence[str] = ()
    labels: np.ndarray | None = None
    names: Sequence[str] = ()
    sizes: np.ndarray | None = None
    ragged: bool = False
    ids: np.ndarray | None = None
    left_out: Sequence[str] = ()

    def __init__(self) -> None:
        self.passed_over: dict[str, int] = {}
        self.notes: list[str] = []
        self.details: dict[str, Any] = {}

    @property
    def ignored(self) -> int:
        """How many files are no samples."""
        return sum(self.passed_over.values())

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
