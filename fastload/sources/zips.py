"""Walking a zip: its members in the order in which they lie, each unpacked into memory when asked for, none to disk."""

from __future__ import annotations

import contextlib
import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

from fastload.common.text import storable
from fastload.errors import DataError, FastloadError
from fastload.sources.kinds import PICTURE_SUFFIXES, suffix_of
from fastload.sources.members import LINK, DamagedMember, Load, Member, check_unpacked_size, member_name, no_content

_MAGIC = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")  # a first member, an empty zip, a part of a split one
_READABLE = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_METHODS = {9: "Deflate64", 93: "Zstandard", 95: "xz", 96: "JPEG", 98: "PPMd", 99: "AES encryption"}
_ENCRYPTED, _UTF8 = 0x1, 0x800
_MADE_ON_UNIX = 3


def is_zip(path: Path) -> bool:
    """Whether a file begins as a zip does (an .npz is one)."""
    with open(path, "rb") as file:
        return file.read(4) in _MAGIC


def holds_arrays(path: Path) -> bool:
    """Whether a zip is an .npz: by its name, or since it holds .npy files and no picture."""
    if path.suffix.lower() == ".npz":
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            suffixes = {suffix_of(name) for name in archive.namelist()}
    except Exception:
        return False  # `walk_zip` finds it again, and has the words
    return ".npy" in suffixes and not suffixes & PICTURE_SUFFIXES


def walk_zip(path: Path) -> Iterator[tuple[Member, Load]]:
    """Yield every member of a zip.

    Raises DataError for a damaged directory, for two members of one name, for names that lead out of it, and
    for one that unpacks to more than pictures ever do; a load raises DamagedMember for damage to its own member.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = sorted(archive.infolist(), key=lambda info: info.header_offset)
            check_unpacked_size(path, sum(info.file_size for info in members), os.path.getsize(path))
            seen: set[str] = set()
            for info in members:
                written = _name(info)
                name = member_name(path, written)
                if written.endswith("/"):
                    if name:
                        yield Member(name, 0, "folder"), no_content
                    continue
                if name in seen:
                    raise DataError(f"{path}: holds '{name}' twice; make the zip again")
                seen.add(name)
                yield Member(name, info.file_size, "file", _obstacle(info)), _loader(path, archive, info, name)
    except (FastloadError, MemoryError):
        raise
    except Exception as error:  # zipfile's parser lets anything through, from struct.error to UnicodeDecodeError
        raise _zip_error(path, error) from error


def _name(info: zipfile.ZipInfo) -> str:
    """Return a member's name with slashes, as UTF-8 where its bytes are, though they are not marked so."""
    name = info.filename
    if not info.flag_bits & _UTF8:
        with contextlib.suppress(UnicodeError):  # it is cp437 then, as the format has it
            name = name.encode("cp437").decode("utf-8")
    return name if info.create_system == _MADE_ON_UNIX else name.replace("\\", "/")


def _obstacle(info: zipfile.ZipInfo) -> str:
    if info.create_system == _MADE_ON_UNIX and stat.S_ISLNK(info.external_attr >> 16):
        return LINK
    if info.flag_bits & _ENCRYPTED:
        return "is encrypted; unpack the zip with its password, and pack the folder"
    if info.compress_type not in _READABLE:
        method = _METHODS.get(info.compress_type, f"method {info.compress_type}")
        return f"is compressed by {method}, which Python cannot read; unpack the zip, and pack the folder"
    return ""


def _loader(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> Load:
    def load(limit: int | None = None) -> bytes:
        try:
            with archive.open(info) as file:
                data = file.read(-1 if limit is None else limit)
            if limit is None and len(data) != info.file_size:
                raise zipfile.BadZipFile(f"{len(data):,} bytes of {info.file_size:,}")
            return data
        except MemoryError:
            raise
        except Exception as error:  # the directory was sound: the others may be read all the same
            if isinstance(error, OSError) and error.errno is not None:
                raise DamagedMember(path, name, f"cannot be read ({error.strerror})") from error
            raise DamagedMember(path, name, f"is damaged in the zip ({_words(error)})") from error

    return load


def _zip_error(path: Path, error: Exception) -> DataError:
    if isinstance(error, OSError) and error.errno is not None:
        return DataError(f"{path}: cannot be read ({error.strerror})")
    return DataError(f"{path}: is a damaged or truncated zip ({_words(error)}); fetch or make it again")


def _words(error: Exception) -> str:
    return storable(" ".join(str(error).split()).rstrip(".")) or type(error).__name__
