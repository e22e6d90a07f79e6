"""`fastload pack`: any source of labelled images becomes one packed file."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from pathlib import Path
from typing import Any, Literal

from fastload.common.arguments import flag, integer, path_of, seed64, text
from fastload.common.progress import progress_bar
from fastload.errors import DataError, UsageError
from fastload.packed.file import PackedFile
from fastload.packed.writer import check_target
from fastload.packing.decoding import default_max_pixels, strict_pillow
from fastload.packing.encoded_check import EncodedCheck
from fastload.packing.fit import fit_of
from fastload.packing.job import PackJob
from fastload.packing.options import QUALITY, PackOptions
from fastload.packing.summary import PackSummary
from fastload.sources import open_source
from fastload.sources.base import Channels


class LeftOutWarning(UserWarning):
    """Says what of the samples was not stored: other keys of a dataset's items, channels of the images."""


def pack(
    source: Any,
    out: str | os.PathLike[str],
    *,
    split: str | None = None,
    order: Literal["source", "shuffled"] = "source",
    seed: int = 0,
    resize: int | None = None,
    short_side: int | None = None,
    max_side: int | None = None,
    channels: Channels = None,
    encoded: bool = False,
    as_is: bool = False,
    jpeg: bool = False,
    quality: int | None = None,
    max_pixels: int | None = None,
    workers: int | None = None,
    skip_broken: bool = False,
    classes_from: str | os.PathLike[str] | None = None,
    images: str | None = None,
    labels: str | None = None,
    class_level: int | None = None,
    unlabelled: bool = False,
    progress: bool = True,
) -> PackSummary:
    """Write a source's images and labels into one packed file, which appears when it is complete.

    Arguments:
        source: a folder of class folders, or a tar or zip of one, a CIFAR archive, an .npz, WebDataset tars, an HDF5
            file (all by path or pattern), or a map-style dataset (torch, Hugging Face). docs/sources.md says what each
            becomes.
        out: the file to write; a packed file of that name is replaced, unless it is the source.
        split: the part of the source to take, such as "train".
        order: "source" keeps the sorted order, "shuffled" writes rows in a permutation drawn from `seed`; `ids`
            tell the sorted index either way.
        seed: what the shuffled order is drawn from, 0 to 2^64 - 1.
        resize: S brings the shorter side to S, antialiased, and cuts the centre square.
        short_side: S brings the shorter side to S (smaller pictures are enlarged) and keeps the whole picture: images
            of several sizes, ragged storage.
        max_side: M shrinks pictures whose longer side is above M, and keeps them whole, likewise. Of these three, one.
        channels: 3 (the default) stores RGB, 1 grey, 4 RGB with alpha; up to 32 for arrays that have as many;
            "as-is" keeps what the images have, which must be the same in all.
        encoded: keep the files instead of their pixels, once Pillow and DALI have decoded them alike. JPEG files are
            written anew with the same coefficients, so that crops can be cut from them before they are decoded.
        as_is: with `encoded`: keep the files' own bytes.
        jpeg: store a new JPEG file of each picture, RGB or grey as the picture is, of the size that one of the three
            arguments gives, or its own.
        quality: of these files, 1 to 100; 90 when None.
        max_pixels: the most pixels that an image may have; Pillow's limit, 89,478,485, when None. A JPEG may have four
            times as many where it is brought to a size.
        workers: decoding threads; one for each CPU when None. The file does not depend on it.
        skip_broken: leave samples that cannot be stored out, and list them with their reasons in the summary.
        classes_from: a packed file whose class names number the labels, so that a test set's mean what training's do.
        images: name of the images' array or dataset in an .npz or your own HDF5 file, or key of a dataset's items.
        labels: the same for the labels.
        class_level: how many levels below the source the class folders stand, where that does not follow from what
            is there: of "train/cats/0.jpg", 2 makes "cats" the class.
        unlabelled: leave labels and classes out, and take all images of the source (or split), wherever they stand.
        progress: show a bar where stderr is a terminal.

    Warns (LeftOutWarning) where stored samples lose something: channels of images, other keys of a dataset's items.
    Raises UsageError for options that cannot be served, DataError for a source that is damaged, images of
    several sizes that raw storage cannot hold, a full disk. Nothing is left behind then.
    """
    started, out = time.perf_counter(), path_of("out", out)
    workers = None if workers is None else integer("workers", workers, 1)
    class_level = None if class_level is None else integer("class_level", class_level)
    split = None if split is None else text("split", split)
    unlabelled, progress = flag("unlabelled", unlabelled), flag("progress", progress)
    options = PackOptions(
        order=text("order", order),
        seed=seed64(seed),
        fit=fit_of(resize, short_side, max_side),
        channels=channels if channels is None or isinstance(channels, str) else integer("channels", channels),
        encoded=flag("encoded", encoded),
        as_is=flag("as_is", as_is),
        quality=_quality(flag("jpeg", jpeg), quality),
        max_pixels=default_max_pixels() if max_pixels is None else integer("max_pixels", max_pixels, 1),
        skip_broken=flag("skip_broken", skip_broken),
    )
    if isinstance(source, str) and not source:  # Path would take it for the folder that one stands in
        raise UsageError("source='': an empty text; name a folder, an archive or a file")
    check_target(out)
    if isinstance(source, str | os.PathLike) and out.exists() and Path(source).exists() and out.samefile(source):
        raise UsageError(f"{out}: is the source itself, which would be lost; give the new file another name")
    wanted = None if classes_from is None else _classes_of(path_of("classes_from", classes_from))
    keeps_files = options.encoded or options.jpeg
    check = EncodedCheck(options.max_pixels, as_is=options.as_is) if keeps_files else None
    with progress_bar("listing", None, quiet=not progress):
        opened = open_source(
            source,
            split=split,
            images=images,
            labels=labels,
            class_level=class_level,
            unlabelled=unlabelled,
            channels=options.channels,
        )
    if not len(opened):
        raise DataError(f"{_named(source)}: holds not one image")
    if options.encoded and opened.sizes is None:
        raise UsageError(
            f"{_named(source)}: holds pixels, not image files; pack it without encoded=True, or make files of "
            "them with jpeg=True"
        )
    with strict_pillow(), check or contextlib.nullcontext():
        summary = PackJob(opened, _named(source), out, options, check, wanted).run(workers, progress, started)
    for what in summary.left_out:
        warnings.warn(f"{_named(source)}: left out {what}", LeftOutWarning, stacklevel=2)
    return summary


def _quality(jpeg: bool, quality: int | None) -> int | None:
    """Return the quality of the JPEG files that are made, None where none are."""
    if quality is not None and not jpeg:
        raise UsageError("quality= is for the files that jpeg=True makes; give both")
    return None if not jpeg else QUALITY if quality is None else integer("quality", quality)


def _classes_of(path: Path) -> list[str]:
    with PackedFile(path) as file:
        if not file.classes:
            raise UsageError(f'classes_from="{path}": has no class names; name a file that has, or leave it out')
        return file.classes


def _named(source: Any) -> str:
    return str(source) if isinstance(source, str | os.PathLike) else "dataset"
