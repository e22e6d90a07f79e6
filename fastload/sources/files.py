"""Walking the files of a folder or a tar as one stream: nothing is extracted, no name is ever written to."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import stat
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, Self

import zstandard

from fastload.errors import DataError
from fastload.sources.base import IMAGE_SUFFIXES, Sample, Source
from fastload.text import storable

LARGEST_FILE = 1 << 30
_BROKEN = (
    tarfile.TarError,
    EOFError,
    OSError,
    zlib.error,
    lzma.LZMAError,
    zstandard.ZstdError,
    OverflowError,
)


class Member(NamedTuple):
    """A file or folder: its path within the source, and its size in bytes."""

    name: str
    size: int
    kind: Literal["file", "folder", "link"]


Load = Callable[[], bytes]


def walk(path: Path) -> Iterator[tuple[Member, Load]]:
    """Yield every file and folder of a folder or tar with a function that reads it, valid until the next one."""
    return _walk_folder(path) if path.is_dir() else _walk_tar(path)


def hidden(name: str) -> bool:
    """Whether a file is one that systems leave behind (.DS_Store, ._x, __MACOSX)."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def is_image(path: Path, member: Member) -> bool:
    """Whether a member is an image by its name. Raises DataError for one that is a link or absurdly large."""
    if hidden(member.name) or os.path.splitext(member.name)[1].lower() not in IMAGE_SUFFIXES:
        return False
    if member.kind == "link":
        raise DataError(
            f"{path}: '{member.name}' is a link that cannot be followed here; put a copy in its place "
            "(for a tar: make it with -h --hard-dereference)"
        )
    if member.size > LARGEST_FILE:
        raise DataError(f"{path}: '{member.name}' has {member.size:,} bytes, too many for an image; remove it")
    return member.kind == "file"


class FileSource(Source):
    """Images that are files: the part that class folders and WebDataset shards share."""

    def __init__(self, shards: Mapping[Path, Mapping[str, int]]) -> None:
        """`shards` gives, for each folder or tar, the index of each file that is a sample."""
        super().__init__()
        self._shards = shards

    def read(self) -> Iterator[tuple[int, Sample]]:
        for path, index in self._shards.items():
            remaining = len(index)
            for member, load in walk(path):
                number = index.get(member.name) if member.kind == "file" else None
                if number is not None:
                    yield number, load()
                    remaining -= 1
                if not remaining:
                    break  # the listing has been through the rest, and found it sound


# -- folders -----------------------------------------------------------------------------------


def _walk_folder(root: Path) -> Iterator[tuple[Member, Load]]:
    def visit(folder: str, prefix: str, ancestors: tuple[tuple[int, int], ...]) -> Iterator[tuple[Member, Load]]:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        for entry in entries:
            name = prefix + storable(entry.name)
            try:
                status = entry.stat()
            except OSError:
                yield Member(name, 0, "link"), bytes
                continue
            if stat.S_ISDIR(status.st_mode):
                place = (status.st_dev, status.st_ino)
                if place in ancestors:
                    raise DataError(f"{root}: folder '{name}' is a link to a folder that holds it; remove the link")
                yield Member(name, 0, "folder"), bytes
                yield from visit(entry.path, name + "/", (*ancestors, place))
            elif stat.S_ISREG(status.st_mode):
                yield Member(name, status.st_size, "file"), Path(entry.path).read_bytes

    try:
        status = root.stat()
        yield from visit(str(root), "", ((status.st_dev, status.st_ino),))
    except OSError as error:
        raise DataError(f"{error.filename or root}: cannot be read ({error.strerror})") from error


# -- tars --------------------------------------------------------------------------------------


class _StrictInfo(tarfile.TarInfo):
    """Lets no damage pass for the archive's end, as tarfile does."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            tar.ended = True  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {tar.offset:,}") from error


def _walk_tar(path: Path) -> Iterator[tuple[Member, Load]]:
    try:
        with open(path, "rb") as raw:
            stream = _decompressed(raw)
            yield from _members(path, stream)
            while stream is not raw and stream.read(1 << 20):
                pass  # to the end, for the checksum
    except DataError:
        raise
    except _BROKEN as error:
        raise _tar_error(path, error) from error


def _members(path: Path, stream: Any) -> Iterator[tuple[Member, Load]]:
    seen: set[str] = set()
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=_StrictInfo) as tar:
        while (info := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # or it would keep a kilobyte for each file
            name = _clean(path, info.name)
            if info.isfile():
                if name in seen:
                    raise DataError(f"{path}: holds '{name}' twice; make the tar again")
                seen.add(name)
                yield Member(name, info.size, "file"), _loader(path, tar, info)
            elif info.isdir() and name:
                yield Member(name, 0, "folder"), bytes
            elif info.issym() or info.islnk():
                yield Member(name, 0, "link"), bytes
        if not getattr(tar, "ended", False):
            raise DataError(f"{path}: ends without a tar's closing mark: it is truncated; fetch or make it again")


def _loader(path: Path, tar: tarfile.TarFile, info: tarfile.TarInfo) -> Load:
    def load() -> bytes:
        try:
            file = tar.extractfile(info)
            assert file is not None
            data = file.read()
            if len(data) != info.size:
                raise tarfile.ReadError("unexpected end of data")
            return data
        except _BROKEN as error:
            raise _tar_error(path, error) from error

    return load


def _tar_error(path: Path, error: Exception) -> DataError:
    if isinstance(error, OSError) and error.errno is not None:
        return DataError(f"{path}: cannot be read ({error.strerror})")
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    if "at byte 0" in text:
        return DataError(f"{path}: is no source that fastload knows (not a tar, .npz or HDF5 file, nor a folder)")
    return DataError(f"{path}: is a damaged or truncated tar ({text}); fetch or make it again")


def _decompressed(raw: IO[bytes]) -> Any:
    magic = raw.read(6)
    raw.seek(0)
    if magic[:2] == b"\x1f\x8b":
        return gzip.GzipFile(fileobj=raw)
    if magic == b"\xfd7zXZ\0":
        return lzma.LZMAFile(raw)
    if magic[:3] == b"BZh":
        return bz2.BZ2File(raw)
    if magic[:4] == b"\x28\xb5\x2f\xfd":
        return zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
    return raw


def _clean(path: Path, name: str) -> str:
    parts = [part for part in storable(name).split("/") if part not in ("", ".")]
    if ".." in parts:
        raise DataError(f"{path}: member '{storable(name)}' points outside the archive; make the tar again")
    return "/".join(parts)
