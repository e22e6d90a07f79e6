"""Read untrusted HDF5: only data stored in the file itself, and no more than the file can hold."""

from __future__ import annotations

import errno
import math
import os
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fastload.errors import DataError
from fastload.packed.labels import as_labels, check_label_size

MOST_CHANNELS = 32
"""Channels that an image may have."""

_LARGEST_ATTRIBUTE = 1 << 20
_ADDRESS = re.compile("(s3|gs|az|abfs|hf|https?|ftp|file):/")  # a Path has made one slash of two


def read_attribute(path: Path, holder: h5py.HLObject, name: str) -> Any:
    """Return an attribute as a plain number, text or array; None where there is none.

    Raises DataError for text of variable length, which reading from a damaged file may never end.
    """
    if name not in holder.attrs:
        return None
    found = holder.attrs.get_id(name)
    if found.dtype.hasobject:
        raise DataError(f"{path}: attribute '{name}' is not of fixed length, as a packed file's are; pack it again")
    claimed = math.prod(found.shape) * found.dtype.itemsize
    if claimed > _LARGEST_ATTRIBUTE:
        raise DataError(f"{path}: attribute '{name}' says {claimed:,} bytes; it is damaged, pack it again")
    value = holder.attrs[name]
    value = value.item() if isinstance(value, np.generic) else value
    return value.decode() if isinstance(value, bytes) else value


def open_hdf5(path: Path) -> h5py.File:
    """Open an HDF5 file for reading, without locks; DataError says what is there instead."""
    try:
        path.stat()
    except FileNotFoundError as error:
        if _ADDRESS.match(str(path)):
            raise DataError(
                f"{path}: is an address, and only files on this machine are read; fetch it first"
            ) from error
        if any(mark in path.name for mark in "*?["):
            raise DataError(f"{path}: no such file, and no pattern is taken here; name one file") from error
        raise DataError(f"{path}: no such file; make it with `fastload pack SOURCE {path.name}`") from error
    except (OSError, ValueError) as error:  # a name too long, a folder that may not be entered, a null byte
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be opened ({reason}); check the path and the permissions") from error
    if path.is_dir():
        raise DataError(f"{path}: is a folder, not an HDF5 file; `fastload pack {path.name} OUT.h5` packs a folder")
    if not path.is_file():
        raise DataError(f"{path}: is not a regular file")
    try:
        with open(path, "rb") as handle:
            handle.read(1)
        if not h5py.is_hdf5(path):
            raise DataError(f"{path}: is not an HDF5 file; `fastload pack {path.name} OUT.h5` makes one of a source")
        return h5py.File(path, "r", locking=False)
    except PermissionError as error:
        raise DataError(f"{path}: may not be read; check its permissions") from error
    except (OSError, MemoryError) as error:
        raise damaged(path, error) from error


_MENDS = {
    errno.EMFILE: "this process has too many files open; close some, or raise `ulimit -n`",
    errno.ENFILE: "the system has too many files open; close some",
    errno.ENOMEM: "there is not enough memory; free some, and try again",
    errno.EIO: "check the disk, and restore the file from another copy",
    errno.ESTALE: "the network file system has lost it; open it again",
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its permissions",
}


def damaged(path: Path, error: BaseException) -> DataError:
    """Return the DataError for a file that could not be read: the system's reason and its mend, or else damage.

    HDF5 reports what the system refused in the midst of its own text.
    """
    found = re.search(r"errno = (\d+)", str(error))
    number = int(found[1]) if found else getattr(error, "errno", None)
    number = errno.ENOMEM if isinstance(error, MemoryError) else number
    if number in _MENDS:
        return DataError(f"{path}: cannot be read ({os.strerror(number)}): {_MENDS[number]}")
    if "truncated" in str(error):
        return DataError(f"{path}: is truncated; pack it again")
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return DataError(f"{path}: is damaged ({reason}); pack it again")


def checked_dataset(path: Path, group: h5py.Group, name: str, dtype: Any = None) -> h5py.Dataset:
    """Return a dataset that lies in this very file, has this dtype, and claims no more than the file can hold.

    Arguments:
        path: the file's name, for messages.
        group: where to look.
        name: may hold slashes.
        dtype: what it must be; anything when None.

    Raises DataError for links, external or virtual storage, another dtype, an impossible size.
    """
    where = f"dataset '{(group.name.strip('/') + '/' + name).strip('/')}'"
    parent = group
    for part in name.strip("/").split("/"):
        link = parent.get(part, getlink=True) if isinstance(parent, h5py.Group) else None
        if link is None:
            raise DataError(f"{path}: has no {where}; pack it again, or name the right one")
        if not isinstance(link, h5py.HardLink):
            raise DataError(f"{path}: {where} is a link; fastload does not follow links, copy the data instead")
        parent = parent[part]
    dataset = parent
    if not isinstance(dataset, h5py.Dataset):
        raise DataError(f"{path}: {where} is a group, not a dataset")
    if dataset.external or dataset.is_virtual:
        raise DataError(f"{path}: {where} is stored outside the file; copy the data into it")
    if dataset.shape is None:
        raise DataError(f"{path}: {where} holds nothing; pack it again")
    if dtype is not None and dataset.dtype != np.dtype(dtype):
        raise DataError(f"{path}: {where} has dtype {dataset.dtype}, not {np.dtype(dtype)}; convert it first")
    claimed = math.prod(dataset.shape) * dataset.dtype.itemsize
    # Compression seldom goes beyond 1:1000; chunks never written would make any size out of nothing.
    room = dataset.file.id.get_filesize() if dataset.chunks is None else 2000 * dataset.id.get_storage_size()
    if claimed > room:
        raise DataError(
            f"{path}: {where} says {claimed:,} bytes, more than the file can hold; it is damaged, pack it again"
        )
    return dataset


def read_labels(path: Path, dataset: h5py.Dataset, images: str, count: int) -> np.ndarray:
    """Return labels, [count, ...], as `as_labels` makes them; DataError where there are not so many, or no numbers."""
    name = dataset.name.strip("/")
    if dataset.dtype.kind not in "iufb" or dataset.dtype.itemsize > 8:
        raise DataError(
            f"{path}: dataset '{name}' has dtype {dataset.dtype}; labels are an array of numbers, so save them as "
            "integers (numpy.unique(labels, return_inverse=True) numbers names)"
        )
    if not dataset.ndim:
        as_labels(dataset[()], f"{path}: dataset '{name}'")
    if dataset.shape[0] != count:
        raise DataError(
            f"{path}: dataset '{name}' has {dataset.shape[0]:,} rows but '{images}' has {count:,}; was the file "
            "truncated? Pack it again"
        )
    check_label_size(dataset.shape, dataset.dtype, f"{path}: dataset '{name}'")
    return as_labels(dataset[()], f"{path}: dataset '{name}'")


def image_layout(
    where: object, name: str, shape: tuple[int, ...], channels: int | str | None = None
) -> tuple[int, int, int, bool]:
    """Return height, width, channels and whether channels come first, of images [N, H, W(, C)] or [N, C, H, W].

    Arguments:
        where, name: the file and its dataset, for messages.
        shape: the dataset's.
        channels: how many there are, where they are not 1 to 4; "as-is" for up to 32.
    """
    if 0 in shape[1:]:
        raise DataError(f"{where}: '{name}' has shape {shape}: its images hold not one pixel")
    if len(shape) == 3:
        return shape[1], shape[2], 1, False
    if len(shape) == 4:
        for possible in ((channels,), (1, 2, 3, 4)):
            if shape[3] in possible:
                return shape[1], shape[2], shape[3], False
            if shape[1] in possible:
                return shape[2], shape[3], shape[1], True
        if channels == "as-is" and min(shape[1], shape[3]) <= MOST_CHANNELS:
            first = _likely_channels(shape) == shape[1]
            return (shape[2], shape[3], shape[1], True) if first else (shape[1], shape[2], shape[3], False)
    likely = _likely_channels(shape) if len(shape) == 4 else MOST_CHANNELS + 1
    mend = f"; if {likely} are its channels, pack it with channels={likely}"
    raise DataError(
        f"{where}: '{name}' has shape {shape}; images are [N, H, W, C], [N, C, H, W] with 1 to 4 channels or [N, H, W]"
        + (mend if likely <= MOST_CHANNELS else "")
    )


def _likely_channels(shape: tuple[int, ...]) -> int:
    """Return which of the second and the last length is more likely that of channels: images are often square."""
    return shape[1] if shape[3] > MOST_CHANNELS or (shape[2] == shape[3] and shape[1] <= MOST_CHANNELS) else shape[3]
