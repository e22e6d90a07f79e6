"""How `pack` stores samples: its options, checked, and the storage that follows from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from fastload.errors import UsageError
from fastload.packed.hdf5_reading import MOST_CHANNELS
from fastload.packing.fit import Fit
from fastload.sources.base import Channels, Source

QUALITY = 90
"""Of JPEG files that are made here: what FFCV's writer takes."""

Storage = Literal["raw", "ragged", "encoded"]


@dataclass(frozen=True)
class PackOptions:
    """How samples are stored; see `pack`.

    Arguments:
        quality: of new JPEG files, 1 to 100; None where none are made.
    """

    order: str
    seed: int
    fit: Fit | None
    channels: Channels
    encoded: bool
    as_is: bool
    quality: int | None
    max_pixels: int | None
    skip_broken: bool

    def __post_init__(self) -> None:
        if self.order not in ("source", "shuffled"):
            raise UsageError(f"order={self.order!r} is neither 'source' nor 'shuffled'")
        fits = (
            1 <= self.channels <= MOST_CHANNELS if isinstance(self.channels, int) else self.channels in (None, "as-is")
        )
        if not fits:
            raise UsageError(f"channels={self.channels!r} is neither 'as-is' nor between 1 and {MOST_CHANNELS}")
        if self.as_is and not self.encoded:
            raise UsageError("as_is=True keeps image files' own bytes; it goes with encoded=True only")
        if self.jpeg:
            self._check_jpeg()
        elif self.encoded:
            for name, given in ((f"{self.fit.rule if self.fit else ''}=", self.fit), ("channels=", self.channels)):
                if given is not None:
                    raise UsageError(
                        f"encoded=True keeps the files as they are, so {name} cannot go with it; leave one out, or "
                        "make new files with jpeg=True"
                    )

    def _check_jpeg(self) -> None:
        if self.encoded:
            raise UsageError("encoded=True keeps the files as they are and jpeg=True makes new ones; give one of them")
        if self.channels not in (None, 1, 3):
            raise UsageError(f"channels={self.channels!r}: a JPEG file holds 3 channels, or 1; leave jpeg=True out")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise UsageError(f"quality={self.quality} is not between 1 and 100")

    @property
    def jpeg(self) -> bool:
        """Whether new JPEG files are made."""
        return self.quality is not None

    def storage_of(self, source: Source) -> Storage:
        """Return how a source's samples are stored."""
        if self.encoded or self.jpeg:
            return "encoded"
        whole = source.ragged if self.fit is None else self.fit.whole
        return "ragged" if whole else "raw"

    @property
    def decoded_channels(self) -> int | Literal["no alpha"] | None:
        """The channels that `decode_sample` is asked for."""
        if self.channels is None:
            return "no alpha" if self.jpeg else 3
        return None if self.channels == "as-is" else self.channels

    def described(self) -> dict[str, Any]:
        """Return what a packed file says of them."""
        found: dict[str, Any] = {"order": self.order}
        found |= {"seed": self.seed} if self.order == "shuffled" else {}
        found |= {self.fit.rule: self.fit.side} if self.fit is not None else {}
        found |= {"jpeg": self.quality} if self.jpeg else {}
        return found | ({"channels": self.channels} if self.channels is not None else {})
