"""Walking a tar as one stream, plain or compressed: nothing is extracted, every length is checked before it is read."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import zstandard

from fastload.errors import DataError, FastloadError
from fastload.sources.members import LINK, Load, Member, check_unpacked_size, member_name, no_content
from fastload.sources.other_formats import what_instead

WINDOW = 1 << 31
"""The largest window of a zstd frame that is read, that of `zstd --long=31`; decompressing takes as much memory."""
HEADERS = 1 << 20
"""The most bytes that a member's headers may take: long names, attributes, sparse maps."""
_PIECE = 1 << 20
_LONG_NUMBER = re.compile(rb"\d{500}")
_TAR_NAME = re.compile(r"\.(tar|tgz|tbz2?|txz|tzst|tar\.(gz|bz2|xz|zst))$", re.IGNORECASE)
_LINK = f"{LINK} (for a tar: make it with -h --hard-dereference)"
_BROKEN = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError, ValueError)


def is_tar_name(name: str) -> bool:
    """Whether a file is a tar by its name."""
    return _TAR_NAME.search(name) is not None


def tar_stem(name: str) -> str:
    """Return a tar's name without what makes it one: "n01440764" of "n01440764.tar.gz"."""
    return _TAR_NAME.sub("", name)


def walk_tar(path: Path, *, inner: bool = False) -> Iterator[tuple[Member, Load]]:
    """Yield every member of a tar, and of those joined to it (`cat a.tar b.tar`), in the file's order.

    Arguments:
        path: the tar: plain, gz, bz2, xz or zst.
        inner: open the tars that it holds too: the members of `cat.tar` in it are then those of a folder `cat`.

    Raises DataError for damage, for two members of one name, and for names that lead out of it.
    """
    try:
        with open(path, "rb") as raw:
            yield from _Walk(path, inner).archives(_Stream(path, _File(raw)), "")
    except FastloadError:
        raise
    except _BROKEN as error:
        raise _tar_error(path, error) from error


class _Walk:
    """One pass through a tar and the tars in it, with the names that have been seen."""

    def __init__(self, path: Path, inner: bool) -> None:
        self.path, self.inner = path, inner
        self.seen: set[str] = set()

    def archives(self, stream: _Stream, prefix: str) -> Iterator[tuple[Member, Load]]:
        """Yield the members of all archives that stand one behind another in a stream."""
        yield from self._members(stream, prefix)
        while (start := stream.skip_zeros()) is not None:
            try:
                yield from self._members(stream, prefix)
            except tarfile.ReadError as error:
                if f"at byte {start:,}" not in str(error):
                    raise
                raise DataError(
                    f"{self.path}: something that is no tar follows its closing mark at byte {start:,}; were two files "
                    "joined? Make the archive again"
                ) from error

    def _members(self, stream: _Stream, prefix: str) -> Iterator[tuple[Member, Load]]:
        tar = None
        while True:
            with stream.headers():
                try:
                    tar = tar or tarfile.TarFile(fileobj=stream, tarinfo=_StrictInfo)  # type: ignore[arg-type]
                    info = tar.next()
                except (tarfile.TarError, OSError, FastloadError, MemoryError):
                    raise
                except Exception as error:  # tarfile's parser lets anything through, from IndexError to RecursionError
                    raise tarfile.ReadError(f"{type(error).__name__} in a header: {error}") from error
            if info is None:
                break
            tar.members.clear()  # type: ignore[attr-defined]  # or it would keep a kilobyte for each file
            yield from self._member(stream, tar, info, prefix)
        if not getattr(tar, "ended", False):
            raise DataError(f"{self.path}: ends without a tar's closing mark: it is truncated; fetch or make it again")

    def _member(self, stream: _Stream, tar: Any, info: tarfile.TarInfo, prefix: str) -> Iterator[tuple[Member, Load]]:
        name = prefix + member_name(self.path, info.name)
        if info.isfile():
            if name in self.seen:
                raise DataError(f"{self.path}: holds '{name}' twice; make the tar again")
            self.seen.add(name)
            if self.inner and not prefix and is_tar_name(name):
                yield from self.archives(_Stream(self.path, _Section(stream, info)), tar_stem(name) + "/")
            else:
                yield Member(name, info.size, "file"), _loader(self.path, stream, tar, info)
        elif info.isdir() and name:
            yield Member(name, 0, "folder"), no_content
        elif info.issym() or info.islnk():
            yield Member(name, 0, "file", _LINK), no_content


class _StrictInfo(tarfile.TarInfo):
    """Lets no damage pass for the archive's end, as tarfile does."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            found = super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            tar.ended = True  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {tar.offset:,}") from error
        if found.size < 0 or found.offset_data < 0:
            raise tarfile.ReadError(f"a member of {found.size:,} bytes at byte {tar.offset:,}")
        return found


class _File:
    """A file as the stream's bottom."""

    def __init__(self, file: Any) -> None:
        self._file, self._size = file, os.fstat(file.fileno()).st_size
        self.read = file.read

    def skip(self, count: int) -> int:
        """Move on by `count` bytes, or to the end; return by how many."""
        start = self._file.tell()
        return int(self._file.seek(min(start + count, self._size))) - start


class _Section:
    """A member that is an archive itself as a stream's bottom."""

    def __init__(self, stream: _Stream, info: tarfile.TarInfo) -> None:
        stream.seek(info.offset_data)
        self._stream, self._left = stream, info.size

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data

    def skip(self, count: int) -> int:
        moved = self._stream.skip(min(count, self._left))
        self._left -= moved
        return moved


class _Counted:
    """Counts what is read of a stream's bottom, whose first bytes have been looked at already."""

    def __init__(self, bottom: _File | _Section) -> None:
        self.head = self._ahead = bottom.read(6)
        self._bottom = bottom
        self.count = 0

    def read(self, size: int = -1) -> bytes:
        data, self._ahead = (self._ahead, b"") if size < 0 else (self._ahead[:size], self._ahead[size:])
        if not self._ahead and len(data) != size:
            data += self._bottom.read(size - len(data) if size >= 0 else -1)
        self.count += len(data)
        return data

    def skip(self, count: int) -> int:
        first = len(self.read(min(count, len(self._ahead))))
        moved = first + (self._bottom.skip(count - first) if count > first else 0)
        self.count += moved - first
        return moved


class _Stream:
    """A tar's unpacked bytes, read forward only and with limits: all that tarfile sees of the file.

    tarfile believes the lengths in headers: it would read a name of 2^62 bytes, and a sparse map beyond the file's
    end for ever. Within `headers` this stream gives no more than headers may take.
    """

    def __init__(self, path: Path, bottom: _File | _Section) -> None:
        self._path, self._raw = path, _Counted(bottom)
        self._source = _decompressed(self._raw)
        self._ahead = b""
        self._position = 0
        self._budget: int | None = None
        self._at_end = False

    def tell(self) -> int:
        return self._position

    def seek(self, target: int) -> int:
        """Move forward to a position, or to the end."""
        if target < self._position:
            raise tarfile.StreamError(f"a way back, from byte {self._position:,} to {target:,}")
        self.skip(target - self._position)
        return self._position

    def skip(self, count: int) -> int:
        """Move on by `count` bytes, or to the end; return by how many."""
        start = self._position
        if self._source is self._raw and not self._ahead:
            self._position += self._raw.skip(count)
            return self._position - start
        while count and (piece := self._read(min(count, _PIECE))):
            count -= len(piece)
        return self._position - start

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, fewer at the end."""
        if self._budget is not None:
            self._budget -= size
            if self._budget < 0:
                raise tarfile.ReadError(f"a header of more than {HEADERS:,} bytes")
        pieces = []
        while size and (piece := self._read(min(size, _PIECE))):
            pieces.append(piece)
            size -= len(piece)
        if self._budget is not None:
            self._check_header(pieces)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read(self, size: int) -> bytes:
        if self._ahead:
            piece, self._ahead = self._ahead[:size], self._ahead[size:]
        else:
            piece = self._source.read(size)
        self._position += len(piece)
        if self._source is not self._raw:
            check_unpacked_size(self._path, self._position, self._raw.count)
        return piece

    @contextlib.contextmanager
    def headers(self) -> Iterator[None]:
        """Keep what is read meanwhile within what a member's headers may take."""
        self._budget, self._at_end = HEADERS, False
        try:
            yield
        finally:
            self._budget = None

    def _check_header(self, pieces: list[bytes]) -> None:
        if not pieces and self._at_end:  # the second time: somebody waits for more
            raise tarfile.ReadError("the file ends within a header")
        self._at_end = not pieces
        if any(
            _LONG_NUMBER.search(piece) for piece in pieces
        ):  # Python's search in it would take minutes (CVE-2024-6232)
            raise tarfile.ReadError("a number of hundreds of digits in a header")

    def skip_zeros(self) -> int | None:
        """Move on to the next block that is not all zeros and return its position; None at the end."""
        while block := self.read(tarfile.BLOCKSIZE):
            if block.count(0) != len(block):
                self._ahead = block + self._ahead
                self._position -= len(block)
                return self._position
        return None


def _loader(path: Path, stream: _Stream, tar: tarfile.TarFile, info: tarfile.TarInfo) -> Load:
    def load(limit: int | None = None) -> bytes:
        size = info.size if limit is None else min(limit, info.size)
        try:
            if info.issparse():
                file = tar.extractfile(info)
                assert file is not None
                data = file.read(size)
            else:
                stream.seek(info.offset_data)
                data = stream.read(size)
            if len(data) != size:
                raise tarfile.ReadError("unexpected end of data")
            return data
        except FastloadError:
            raise
        except _BROKEN as error:
            raise _tar_error(path, error) from error

    return load


def _tar_error(path: Path, error: Exception) -> DataError:
    if isinstance(error, OSError) and error.errno is not None:
        return DataError(f"{path}: cannot be read ({error.strerror})")
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    if text.endswith("at byte 0"):
        return DataError(f"{path}: {what_instead(path)}")
    return DataError(f"{path}: is a damaged or truncated tar ({text}); fetch or make it again")


def _decompressed(raw: _Counted) -> Any:
    """Return what reads the unpacked bytes; `raw` itself where they are not packed."""
    file: Any = raw
    if raw.head[:2] == b"\x1f\x8b":
        return gzip.GzipFile(fileobj=file)
    if raw.head == b"\xfd7zXZ\0":
        return lzma.LZMAFile(file)
    if raw.head[:3] == b"BZh":
        return bz2.BZ2File(file)
    if raw.head[:4] == b"\x28\xb5\x2f\xfd":
        return zstandard.ZstdDecompressor(max_window_size=WINDOW).stream_reader(file, read_across_frames=True)
    return raw
