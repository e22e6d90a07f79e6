"""`fastload pack` and `fastload convert`: they parse their arguments, call the library and print its summary."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from fastload.command.shared_options import (
    ChannelCount,
    Images,
    Jpeg,
    Labels,
    MaxPixels,
    MaxSide,
    Order,
    Quality,
    Quiet,
    Resize,
    ShortSide,
    SkipBroken,
    Workers,
    whole_number,
)
from fastload.common import terminal


def pack(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(help="Folder, tar, zip, CIFAR, .npz, WebDataset tars or HDF5 file.", metavar="SOURCE")
    ],
    out: Annotated[Path, typer.Argument(help="The packed file to write.", metavar="OUT.h5")],
    split: Annotated[str | None, typer.Option(help="The part of the source to take, such as train.")] = None,
    order: Annotated[Order, typer.Option(help="How rows stand in the file.")] = Order.source,
    seed: Annotated[int, typer.Option(help="What the shuffled order is drawn from.")] = 0,
    resize: Resize = None,
    short_side: ShortSide = None,
    max_side: MaxSide = None,
    channels: ChannelCount = None,
    encoded: Annotated[bool, typer.Option("--encoded", help="Keep image files, not pixels.")] = False,
    as_is: Annotated[bool, typer.Option("--as-is", help="With --encoded: their own bytes, not to be cut.")] = False,
    jpeg: Jpeg = False,
    quality: Quality = None,
    max_pixels: MaxPixels = None,
    workers: Workers = None,
    skip_broken: SkipBroken = False,
    classes_from: Annotated[
        Path | None,
        typer.Option(metavar="TRAIN.h5", help="Number labels by this packed file's class names: for test sets."),
    ] = None,
    images: Images = None,
    labels: Labels = None,
    class_level: Annotated[
        int | None,
        typer.Option(metavar="N", help="The class folders stand N levels below SOURCE; found by themselves otherwise."),
    ] = None,
    unlabelled: Annotated[bool, typer.Option("--unlabelled", help="Take all images, without labels.")] = False,
    quiet: Quiet = False,
) -> None:
    """Pack a source of labelled images into one file that training can map into memory."""
    from fastload.packing.pack import pack as run

    with _without_noise():
        summary = run(
            source,
            out,
            split=split,
            order="shuffled" if order is Order.shuffled else "source",
            seed=seed,
            resize=resize,
            short_side=short_side,
            max_side=max_side,
            channels=whole_number(channels),
            encoded=encoded,
            as_is=as_is,
            jpeg=jpeg,
            quality=quality,
            max_pixels=max_pixels,
            workers=workers,
            skip_broken=skip_broken,
            classes_from=classes_from,
            images=images,
            labels=labels,
            class_level=class_level,
            unlabelled=unlabelled,
            progress=not quiet,
        )
    _tell(context, summary, quiet)


def convert(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(help="A packed file.", metavar="IN.h5")],
    out: Annotated[Path, typer.Argument(help="The packed file to write.", metavar="OUT.h5")],
    resize: Resize = None,
    short_side: ShortSide = None,
    max_side: MaxSide = None,
    channels: ChannelCount = None,
    jpeg: Jpeg = False,
    quality: Quality = None,
    as_is: Annotated[bool, typer.Option("--as-is", help="Keep encoded files' own bytes.")] = False,
    order: Annotated[Order | None, typer.Option(help="How rows stand in OUT.h5; as in IN.h5 by default.")] = None,
    seed: Annotated[int | None, typer.Option(help="What the shuffled order is drawn from.")] = None,
    max_pixels: MaxPixels = None,
    workers: Workers = None,
    skip_broken: SkipBroken = False,
    quiet: Quiet = False,
) -> None:
    """Make another packed file of one: of other sizes, as JPEG files, in another order. What is not named stays."""
    from fastload.packing.convert import convert as run

    with _without_noise():
        summary = run(
            source,
            out,
            resize=resize,
            short_side=short_side,
            max_side=max_side,
            channels=whole_number(channels),
            jpeg=jpeg,
            quality=quality,
            as_is=as_is,
            order=None if order is None else "shuffled" if order is Order.shuffled else "source",
            seed=seed,
            max_pixels=max_pixels,
            workers=workers,
            skip_broken=skip_broken,
            progress=not quiet,
        )
    _tell(context, summary, quiet)


@contextlib.contextmanager
def _without_noise() -> Iterator[None]:
    from fastload.common.library_noise import silent_libraries
    from fastload.packing.pack import LeftOutWarning

    with warnings.catch_warnings(), silent_libraries():
        warnings.simplefilter("ignore", LeftOutWarning)  # the summary says it
        yield


def _tell(context: typer.Context, summary: Any, quiet: bool) -> None:
    in_options = context.obj
    if not quiet:
        terminal.tell(in_options(str(summary)))
    for text in summary.left_out if quiet else ():
        terminal.tell(in_options(f"note: left out {text}"), error=True)
