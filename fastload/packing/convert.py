"""`fastload convert`: a packed file becomes another, of other sizes, another storage or another order."""

from __future__ import annotations

import os
from typing import Any, Literal

from fastload.common.arguments import flag, path_of
from fastload.errors import UsageError
from fastload.packed.file import PackedFile
from fastload.packing.pack import pack
from fastload.packing.summary import PackSummary
from fastload.sources.base import Channels


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    resize: int | None = None,
    short_side: int | None = None,
    max_side: int | None = None,
    channels: Channels = None,
    jpeg: bool = False,
    quality: int | None = None,
    as_is: bool = False,
    order: Literal["source", "shuffled"] | None = None,
    seed: int | None = None,
    max_pixels: int | None = None,
    workers: int | None = None,
    skip_broken: bool = False,
    progress: bool = True,
) -> PackSummary:
    """Write a packed file's samples into another packed file; ids, labels, class names and samples' names stay.

    What no argument changes stays too: the storage (JPEG files that cannot be cut yet are made so, as `pack` does it),
    sizes, channels, the order.
    A subset becomes an ordinary file, in the order of ids: why each sample was chosen is left behind.

    Arguments:
        source: a packed file: raw, ragged or encoded.
        out: the file to write; a packed file of that name is replaced, unless it is the source.
        resize: as for `pack`, and so are `short_side`, `max_side`, `jpeg` and `quality`. With one of the three sizes
            encoded images are decoded, and stored as pixels where there is no `jpeg`.
        short_side: the shorter side's new length, of whole pictures.
        max_side: the most that the longer side may have.
        channels: 3, 1, …, as for `pack`; of images that are stored as pixels those that they have when None.
        jpeg: store new JPEG files.
        quality: of these.
        as_is: keep encoded files' own bytes.
        order: "source" or "shuffled"; the one that the file says it has when None.
        seed: what the shuffled order is drawn from.
        max_pixels: as for `pack`.
        workers: threads; one for each CPU when None. The file does not depend on it.
        skip_broken: leave samples that cannot be stored out, and list them in the summary.
        progress: show a bar where stderr is a terminal.

    Raises UsageError and DataError as `pack` does, DataError for a file that is no packed one.
    """
    with PackedFile(path_of("source", source)) as file:
        storage, found, said = file.storage, file.channels, file.source
    changed = (resize, short_side, max_side, channels) != (None, None, None, None)
    encoded = storage == "encoded" and not flag("jpeg", jpeg) and not changed
    if flag("as_is", as_is) and not encoded:
        raise UsageError(
            f"{source}: as_is=True keeps image files' own bytes, so it goes with a file of encoded images only, and "
            "with no new size, channels= or jpeg=True; leave as_is=True out"
        )
    if channels is None and storage != "encoded" and not jpeg and found != 3:
        channels = found
    return pack(
        source,
        out,
        resize=resize,
        short_side=short_side,
        max_side=max_side,
        channels=channels,
        encoded=encoded,
        jpeg=jpeg,
        quality=quality,
        as_is=as_is,
        order=_order(said) if order is None else order,
        seed=_seed(said) if seed is None else seed,
        max_pixels=max_pixels,
        workers=workers,
        skip_broken=skip_broken,
        progress=progress,
    )


def _order(said: dict[str, Any]) -> Literal["source", "shuffled"]:
    return "shuffled" if said.get("order") == "shuffled" else "source"


def _seed(said: dict[str, Any]) -> int:
    seed = said.get("seed")
    return seed if isinstance(seed, int) and 0 <= seed < 2**64 else 0
