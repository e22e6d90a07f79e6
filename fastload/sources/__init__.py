"""The kinds of source that `pack` reads, one file each, and `open_source`, which finds out which it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fastload.errors import DataError
from fastload.sources.base import Channels, Sample, Source, SourceOptions
from fastload.sources.patterns import expand, is_pattern, refuse_address
from fastload.sources.zips import holds_arrays

__all__ = ["Sample", "Source", "open_source"]


def open_source(
    source: Any,
    *,
    split: str | None = None,
    images: str | None = None,
    labels: str | None = None,
    class_level: int | None = None,
    unlabelled: bool = False,
    channels: Channels = None,
) -> Source:
    """Find out what a source is and list what it holds.

    Arguments:
        source: a path, a pattern of WebDataset shards (`shard-{000..010}.tar`, `*.tar`), or a map-style dataset.
        split: the part to take, where there are several.
        images: name of the array or dataset (.npz, HDF5), or key of the dicts of a map-style dataset.
        labels: the same for the labels.
        class_level: how many levels below the source the class folders stand, where that does not follow from it.
        unlabelled: leave labels and classes out.
        channels: as `pack` is given them: where an array's are, if they are not 1 to 4.

    Raises DataError for a source that is damaged or that fastload does not know, UsageError for options that
    do not suit it.
    """
    options = SourceOptions(split, images, labels, class_level, unlabelled, channels)
    if not isinstance(source, str | os.PathLike):
        from fastload.sources.dataset import MapDataset

        options.refuse_class_level("the dataset")
        return MapDataset(source, split, images, labels, channels, unlabelled)
    refuse_address(os.fspath(source))
    path = Path(source)
    if not _exists(path) and is_pattern(str(path)):
        return _open_pattern(str(path), options)
    if not _exists(path):
        raise DataError(f"{path}: no such file or folder")
    return _open_path(path, options)


def _exists(path: Path) -> bool:
    """Whether anything is there; a path that the system itself refuses is named with the system's reason."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:  # a name too long, a loop of links, no permission; a NUL in it
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    return True


def _open_path(path: Path, options: SourceOptions) -> Source:
    if path.is_file():
        try:
            with open(path, "rb") as handle:
                magic = handle.read(8)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        if magic == b"\x89HDF\r\n\x1a\n" or path.suffix.lower() in (".h5", ".hdf5"):
            from fastload.sources.hdf5 import open_hdf5_source

            options.refuse_class_level(path)
            return open_hdf5_source(
                path, options.split, options.images, options.labels, options.channels, options.unlabelled
            )
        if magic[:2] == b"PK" and holds_arrays(path):
            from fastload.sources.npz import Npz

            options.refuse_class_level(path)
            return Npz(path, options.split, options.images, options.labels, options.channels, options.unlabelled)
    elif not path.is_dir():
        raise DataError(f"{path}: is neither a file nor a folder")
    from fastload.sources.opening import open_files

    options.refuse_array_names(path)
    return open_files(path, options)


def _open_pattern(pattern: str, options: SourceOptions) -> Source:
    paths = expand(pattern)
    if len(paths) == 1:
        return _open_path(paths[0], options)
    from fastload.sources.opening import open_archives

    options.refuse_array_names(pattern)
    return open_archives(pattern, {path.name: path for path in paths}, options)
