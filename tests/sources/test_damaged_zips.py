"""A zip of which the directory is sound: a damaged member is one broken sample, as an unreadable file is."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from samples import encode, noise, zipped

import fastload
from fastload.errors import DataError
from fastload.sources import open_source

METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


def damaged(path: Path, name: str, *, header: bool = False) -> Path:
    """Change a byte amid a member's content, or of the mark with which its own header begins."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(name)
    content = bytearray(path.read_bytes())
    content[info.header_offset + (2 if header else 30 + len(name) + info.compress_size // 2)] ^= 0xFF
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("header", [False, True], ids=["content", "header"])
@pytest.mark.parametrize("method", METHODS)
def test_a_damaged_member_stops_by_name_and_is_left_out_on_demand(tmp_path: Path, method: int, header: bool) -> None:
    names = ["a/0.png", "a/1.png", "b/0.png", "b/1.png"]
    path, out = zipped(tmp_path / "z.zip", {name: encode(noise()) for name in names}, method), tmp_path / "o.h5"
    damaged(path, "a/1.png", header=header)
    with pytest.raises(DataError, match=r"z\.zip: 'a/1.png' is damaged in the zip \(.*, or pack with skip_broken=True"):
        fastload.pack(path, out)
    assert not out.exists()
    fastload.pack(path, out, skip_broken=True)
    with fastload.PackedFile(out) as file:
        assert [file.name_of(row) for row in range(len(file))] == ["a/0.png", "b/0.png", "b/1.png"]


def test_one_whose_kind_only_its_content_could_tell_is_not_passed_over(tmp_path: Path) -> None:
    path = zipped(tmp_path / "z.zip", {f"{label}/{i}": encode(noise()) for label in "ab" for i in range(2)})
    source = open_source(damaged(path, "a/1", header=True))
    assert [source.names[index] for index, sample in source.read() if isinstance(sample, DataError)] == ["a/1"]
    assert len(source) == 4


def test_a_damaged_label_file_is_named(tmp_path: Path) -> None:
    files = {f"{i}{suffix}": data for i in range(2) for suffix, data in ((".png", encode(noise())), (".cls", b"12345"))}
    path = damaged(zipped(tmp_path / "z.zip", files, zipfile.ZIP_STORED), "1.cls")
    with pytest.raises(DataError, match=r"z\.zip: '1.cls' is damaged in the zip .*CRC.*; make or fetch it again"):
        open_source(path)


def test_a_damaged_directory_stays_an_error(tmp_path: Path) -> None:
    path = zipped(tmp_path / "z.zip", {f"{label}/0.png": encode(noise()) for label in "ab"})
    content = path.read_bytes()
    path.write_bytes(content.replace(b"PK\x01\x02", b"PK\x01\xff", 1))
    with pytest.raises(DataError, match=r"z\.zip: is a damaged or truncated zip"):
        fastload.pack(path, tmp_path / "o.h5", skip_broken=True)
