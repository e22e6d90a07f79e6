"""Options that several commands have."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any

import typer


class Order(StrEnum):
    """How rows stand in a packed file."""

    source = "source"
    shuffled = "shuffled"


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar and no summary.")]
Images = Annotated[str | None, typer.Option("--images", help="The images' name in your own HDF5 or .npz file.")]
Labels = Annotated[str | None, typer.Option("--labels", help="The labels' name in your own HDF5 or .npz file.")]
Resize = Annotated[int | None, typer.Option(metavar="S", help="Bring the shorter side to S and cut the centre square.")]
ShortSide = Annotated[
    int | None, typer.Option(metavar="S", help="Bring the shorter side to S and keep the whole picture.")
]
MaxSide = Annotated[int | None, typer.Option(metavar="M", help="Shrink pictures to a longer side of M; kept whole.")]
ChannelCount = Annotated[
    str | None, typer.Option(metavar="C", help="3 for RGB, the default; 1 for grey; as-is; up to 32 for arrays.")
]
Jpeg = Annotated[bool, typer.Option("--jpeg", help="Store each picture as a new JPEG file.")]
Quality = Annotated[int | None, typer.Option(metavar="Q", help="Of --jpeg, 1 to 100; 90 by default.")]
MaxPixels = Annotated[int | None, typer.Option(metavar="N", help="The most an image may have; 89,478,485 by default.")]
Workers = Annotated[int | None, typer.Option(help="Decoding threads; one for each CPU by default.")]
SkipBroken = Annotated[bool, typer.Option("--skip-broken", help="Leave broken images out, and list them.")]


def whole_number(text: str | None) -> Any:
    """Return what is written as a whole number as one, and anything else as it is: the library judges it."""
    return int(text) if text and re.fullmatch(r"[0-9]{1,9}", text) else text
