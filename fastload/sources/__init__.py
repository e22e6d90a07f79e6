"""The kinds of source that `pack` reads, one file each, and `open_source`, which finds out which it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fastload.errors import DataError, UsageError
from fastload.sources.base import Sample, Source
from fastload.sources.patterns import expand, is_pattern, refuse_address

__all__ = ["Sample", "Source", "open_source"]


def open_source(
    source: Any, *, split: str | None = None, images: str | None = None, labels: str | None = None
) -> Source:
    """Find out what a source is and list what it holds.

    Arguments:
        source: a path, a pattern of WebDataset shards (`shard-{000..010}.tar`, `*.tar`), or a map-style dataset.
        split: the part to take, where there are several.
        images, labels: names of arrays or datasets (.npz, HDF5) or keys (a map-style dataset of dicts).

    Raises DataError for a source that is damaged or that fastload does not know, UsageError for options that
    do not suit it.
    """
    if (images is None) != (labels is None):
        raise UsageError("--images and --labels (images=, labels=) go together: give both")
    if not isinstance(source, str | os.PathLike):
        from fastload.sources.dataset import MapDataset

        return MapDataset(source, split, images, labels)
    refuse_address(os.fspath(source))
    path = Path(source)
    if not _exists(path) and is_pattern(str(path)):
        return _open_pattern(str(path), split, images, labels)
    if not _exists(path):
        raise DataError(f"{path}: no such file or folder")
    return _open_path(path, split, images, labels)


def _exists(path: Path) -> bool:
    """Whether anything is there; a path that the system itself refuses is named with the system's reason."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:  # a name too long, a loop of links, no permission; a NUL in it
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    return True


def _open_path(path: Path, split: str | None, images: str | None, labels: str | None) -> Source:
    if path.is_file():
        try:
            with open(path, "rb") as handle:
                magic = handle.read(8)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        if magic == b"\x89HDF\r\n\x1a\n" or path.suffix.lower() in (".h5", ".hdf5"):
            from fastload.sources.hdf5 import open_hdf5_source

            return open_hdf5_source(path, split, images, labels)
        if magic[:2] == b"PK":
            from fastload.sources.npz import Npz

            return Npz(path, split, images, labels)
    elif not path.is_dir():
        raise DataError(f"{path}: is neither a file nor a folder")
    if images is not None:
        raise UsageError(f"{path}: --images and --labels name arrays of an .npz or HDF5 file; leave them out here")
    return _open_files(path, split)


def _open_files(path: Path, split: str | None) -> Source:
    """Tell CIFAR, WebDataset and class folders apart by their files' names."""
    from fastload.sources.cifar import Cifar, find_layout
    from fastload.sources.class_folders import ClassFolders
    from fastload.sources.tars import is_tar_name
    from fastload.sources.webdataset import scan

    members, contents = scan(path)
    found = find_layout(members)
    if found is not None:
        return Cifar(path, members, *found, split)
    if contents:
        return _webdataset([path], split)
    if path.is_dir() and not any(member.picture for member in members):
        tars = sorted(path / member.name for member in members if member.kind == "file" and is_tar_name(member.name))
        if tars:
            return _webdataset(tars, split)
    return ClassFolders(path, members, split)


def _open_pattern(pattern: str, split: str | None, images: str | None, labels: str | None) -> Source:
    paths = expand(pattern)
    if len(paths) == 1:
        return _open_path(paths[0], split, images, labels)
    if images is not None:
        raise UsageError(f"{pattern}: --images and --labels name arrays of one .npz or HDF5 file")
    return _webdataset(paths, split)


def _webdataset(paths: list[Path], split: str | None) -> Source:
    from fastload.sources.webdataset import WebDataset, scan

    if split is not None:
        raise UsageError("WebDataset tars have no splits; give the pattern of the split's tars instead of --split")
    return WebDataset({path: scan(path) for path in paths})
