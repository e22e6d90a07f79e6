"""Archives of strangers: joined, cut, made to mislead. Each is read in full or refused, soon and in little memory."""

from __future__ import annotations

import bz2
import gzip
import itertools
import lzma
import os
import random
import re
import resource
import stat
import subprocess
import sys
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import zstandard
from samples import cifar_files, class_files, encode, noise, put, tar, zipped

import fastload
from fastload.errors import DataError, FastloadError, UsageError
from fastload.sources import members, open_source, tars
from fastload.sources.members import LARGEST_FILE
from fastload.sources.patterns import expand
from fastload.sources.tars import walk_tar

PACKERS = {
    "plain": bytes,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.compress,
}


def read_all(path: Path) -> dict[str, bytes]:
    return {member.name: load() for member, load in walk_tar(path) if member.kind == "file"}


def refused(words: str, path: object, error: type[FastloadError] = DataError, **options: int) -> None:
    with pytest.raises(error, match=words) as caught:
        source = open_source(path, **options)
        for index, sample in source.read():
            if isinstance(sample, DataError):
                raise DataError(f"'{source.names[index]}' {sample}")
    assert "\n" not in str(caught.value)


def set_size(header: bytearray, size: int) -> None:
    """Write a size into a tar's header in base 256, and mend its checksum."""
    header[124:136] = b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)


# -- tars joined, cut, and not tars at all --------------------------------------------------------


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
@pytest.mark.parametrize("together", [True, False], ids=["joined then packed", "packed then joined"])
def test_joined_tars_are_read_to_the_last(tmp_path: Path, pack, together: bool) -> None:
    parts = [tar(tmp_path / f"{name}.tar", {f"{name}/{i}": b"%d" % i for i in range(3)}).read_bytes() for name in "abc"]
    whole = tmp_path / "whole.tar"
    whole.write_bytes(pack(b"".join(parts)) if together else b"".join(map(pack, parts)))
    assert read_all(whole) == {f"{name}/{i}": b"%d" % i for name in "abc" for i in range(3)}


def test_what_follows_a_tar_and_is_none_is_refused_with_its_place(tmp_path: Path) -> None:
    path = tar(tmp_path / "t.tar", class_files(2, 1))
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"no tar" * 200)
    refused(f"something that is no tar follows its closing mark at byte {size:,}", path)
    path.write_bytes(path.read_bytes()[:size] + b"no")
    refused(f"follows its closing mark at byte {size:,}", path)


def test_joined_tars_may_not_hold_a_name_twice(tmp_path: Path) -> None:
    path = tar(tmp_path / "t.tar", class_files(2, 1))
    path.write_bytes(path.read_bytes() * 2)
    refused("twice", path)


def test_a_frame_with_a_long_window_is_read(tmp_path: Path) -> None:
    plain = tar(tmp_path / "t.tar", class_files(2, 2)).read_bytes()
    parameters = zstandard.ZstdCompressionParameters(window_log=31, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    (tmp_path / "t.tar.zst").write_bytes(packer.compress(plain) + packer.flush())
    assert len(open_source(tmp_path / "t.tar.zst")) == 4


# -- lengths that lie -----------------------------------------------------------------------------


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
@pytest.mark.parametrize("name", ["c/last.png", "c/last.bin"])
def test_a_member_of_2_to_the_62_bytes_is_refused_at_once(tmp_path: Path, pack, name: str) -> None:
    path = tar(tmp_path / "t.tar", {"b/0.png": encode(noise()), name: b"x" * 600})
    data = bytearray(path.read_bytes())
    start = data.index(name.encode())
    header = data[start : start + 512]
    set_size(header, 1 << 62)
    data[start : start + 512] = header
    path.write_bytes(pack(bytes(data)))
    refused("has 4,611,686,018,427,387,904 bytes|unexpected end of data|negative", path)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
@pytest.mark.parametrize("size", [1 << 62, 300 << 20])
def test_headers_that_ask_for_more_than_headers_may_take_are_refused_unread(tmp_path: Path, kind, size: int) -> None:
    info = tarfile.TarInfo("x")
    info.type = kind
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    set_size(header, size)
    path = tmp_path / "t.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(bytes(header) + bytes(1 << 20))
    refused("a header of more than 1,048,576 bytes", path)


def test_a_sparse_map_that_the_file_s_end_cuts_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("c/0.png")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "c/0.png"}
    info.size = 512
    for content in (b"7\n0\n", b"7\n" + b"0\n" * 5, b"x" * 512, b"999999999999\n"):
        path = tmp_path / "t.tar"
        path.write_bytes(info.tobuf(tarfile.PAX_FORMAT) + content)
        refused("damaged or truncated tar", path)


def test_a_header_of_digits_does_not_keep_python_s_search_busy(tmp_path: Path) -> None:
    info = tarfile.TarInfo("c/0.png")
    info.pax_headers = {"comment": "1" * 300_000}
    path = tmp_path / "t.tar"
    path.write_bytes(info.tobuf(tarfile.PAX_FORMAT) + bytes(1024))
    refused("hundreds of digits", path)


def test_a_picture_too_large_to_be_one_is_refused_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "f" / "c").mkdir(parents=True)
    with open(tmp_path / "f" / "c" / "0.png", "wb") as file:
        file.truncate(LARGEST_FILE + 1)
    refused(
        r"'c/0\.png' has 268,435,457 bytes, more than the 268,435,456 that one file may have",
        tmp_path / "f",
        class_level=1,
    )


@pytest.mark.parametrize("kind", ["gz", "xz", "zst"])
def test_an_archive_that_is_a_bomb_is_refused(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "_FREE", 1 << 20)
    monkeypatch.setattr(members, "_RATIO", 100)
    path = tar(tmp_path / "t.tar", {"c/0.bin": bytes(20 << 20), "c/0.png": encode(noise())})
    path.write_bytes(PACKERS[kind](path.read_bytes()))
    refused("unpacks to more than 100 times its size", path)


def test_a_picture_of_zeros_takes_at_most_twice_its_bytes_in_memory(tmp_path: Path) -> None:
    size = 120 << 20
    path = tmp_path / "t.tar.xz"
    info = tarfile.TarInfo("c/0.png")
    info.size = size
    with lzma.open(path, "wb", preset=0) as file:
        file.write(info.tobuf())
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))
        file.write(bytes(1024))
    program = (
        "import resource, sys; from pathlib import Path; from fastload.sources.tars import walk_tar\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for member, load in walk_tar(Path(sys.argv[1])): data = load()\n"
        "print(len(data), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    read, taken = map(int, done.stdout.split())
    assert read == size and taken < 2.3 * size


# -- zips -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("prefix", ["", "tree/"])
def test_folder_tar_and_zip_of_one_tree_give_the_same_bytes(tmp_path: Path, method: int, prefix: str) -> None:
    files = class_files() | {
        "c3/": b"",
        "@eaDir/0.png": b"x",
        "c0/é ü.png": encode(noise()),
        "c0/no_suffix": encode(noise()),
    }
    inside = {prefix + name: data for name, data in files.items()}
    packed = set()
    for source in (
        put(tmp_path / "f", files),
        tar(tmp_path / "t.tar.gz", dict(reversed(inside.items())), "w:gz"),
        zipped(tmp_path / "z.zip", inside, method),
    ):
        summary = fastload.pack(source, tmp_path / "out.h5", progress=False)
        packed.add((tmp_path / "out.h5").read_bytes())
        assert summary.counts == {"c0": 6, "c1": 4, "c2": 4, "c3": 0}
    assert len(packed) == 1


def test_cifar_and_webdataset_are_read_from_zips_too(tmp_path: Path) -> None:
    files, truth = cifar_files("10py")
    assert open_source(zipped(tmp_path / "c.zip", files)).labels.tolist() == truth["train"][1]
    samples = {
        name: data for key in "ab" for name, data in ((f"{key}.jpg", encode(noise(), "JPEG")), (f"{key}.cls", b"1"))
    }
    assert open_source(zipped(tmp_path / "w.zip", samples)).labels.tolist() == [1, 1]


def test_a_zip_is_read_and_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zipped(tmp_path / "z.zip", class_files())
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    assert sum(1 for _ in open_source(path).read()) == 12 and os.listdir(tmp_path) == ["z.zip"]


@pytest.mark.parametrize(
    "name, error",
    [("c/../../x.png", "points outside the archive"), ("../x.png", "points outside"), ("..\\x.png", "points outside")],
)
def test_zip_names_that_lead_out_are_refused(tmp_path: Path, name: str, error: str) -> None:
    path = zipped(tmp_path / "z.zip", {"c/0.png": b"", "c/y.png": b""})
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo(name)
        info.create_system = 0 if "\\" in name else 3
        archive.writestr(info, b"")
    refused(error, path)


def test_zip_names_of_other_systems_become_paths(tmp_path: Path) -> None:
    path = tmp_path / "z.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for system, name in ((0, "a\\0.png"), (3, "a/1\\2.png"), (0, "/b/0.png"), (3, "./b/1.png"), (0, "c\\")):
            info = zipfile.ZipInfo("x")
            info.filename, info.create_system = name, system
            archive.writestr(info, b"x" if not name.endswith("\\") else b"")
    source = open_source(path)
    assert list(source.names) == ["a/0.png", "a/1\\2.png", "b/0.png", "b/1.png"] and source.classes == ["a", "b", "c"]


@pytest.mark.parametrize(
    "raw, name",
    [("é".encode(), "é"), ("é".encode("cp437"), "é"), (b"\xff", "\xa0"), ("犬".encode(), "犬")],
)
def test_zip_names_without_the_utf_8_mark_are_read_as_what_they_are(tmp_path: Path, raw: bytes, name: str) -> None:
    path = zipped(tmp_path / "z.zip", {"a/0.png": b"", f"{'Q' * len(raw)}/0.png": b""})
    path.write_bytes(path.read_bytes().replace(b"Q" * len(raw), raw))
    assert sorted(open_source(path).classes) == sorted(["a", name])


def test_zip_members_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    def changed(at_local: int, at_central: int, value: bytes) -> Path:
        path = zipped(tmp_path / "z.zip", {"c/0.png": encode(noise()), "d/0.png": encode(noise())})
        data = bytearray(path.read_bytes())
        for start, offset in ((0, at_local), (data.index(b"PK\x01\x02"), at_central)):
            data[start + offset : start + offset + len(value)] = value
        path.write_bytes(data)
        return path

    refused("'c/0.png' is encrypted; unpack the zip with its password", changed(6, 8, b"\x01"))
    refused("'c/0.png' is compressed by Deflate64, which Python cannot read", changed(8, 10, b"\x09"))
    refused("'c/0.png' is compressed by method 77", changed(8, 10, b"\x4d"))
    refused("'c/0.png' has 318,767,104 bytes, more than", changed(22, 24, b"\x00\x00\x00\x13"))
    refused("'c/0.png' is damaged in the zip .*CRC", changed(14, 16, b"\x00\x00\x00\x00"))


def test_links_and_double_names_in_zips_are_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("c/0.png", b"")
        archive.writestr("c/0.png", b"")
    refused("holds 'c/0.png' twice; make the zip again", tmp_path / "z.zip")
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        info = zipfile.ZipInfo("c/0.png")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    refused("'c/0.png' is a link", tmp_path / "z.zip", class_level=1)


def test_a_zip_that_is_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "_FREE", 1 << 20)
    refused(
        "unpacks to more than 1,000 times its size",
        zipped(tmp_path / "z.zip", {f"c/{i}": bytes(9 << 20) for i in range(9)}),
    )


def test_a_zip_of_arrays_is_an_npz_and_one_of_neither_says_what_it_holds(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 4, 3), np.uint8), labels=np.arange(2))
    os.rename(tmp_path / "a.npz", tmp_path / "a.zip")
    assert open_source(tmp_path / "a.zip").kind == "npz"
    refused("no image.*among 1 file .1 of .py", zipped(tmp_path / "n.zip", {"x.py": b""}))
    refused("is empty", zipped(tmp_path / "e.zip", {}))


@pytest.mark.parametrize("seed", range(2))
def test_no_damage_to_a_zip_raises_anything_but_an_error_of_one_line(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    whole = zipped(
        tmp_path / "z.zip", {f"{label}/{i}.png": encode(noise()) for label in "ab" for i in range(3)}
    ).read_bytes()
    headers = [found.start() for found in re.finditer(b"PK", whole)]
    path = tmp_path / "d.zip"
    refusals = 0
    for _ in range(400):
        content = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            at = (
                chance.choice(headers) + chance.randrange(4, 46)
                if chance.random() < 0.8
                else chance.randrange(len(whole))
            )
            content[min(at, len(content) - 1)] ^= chance.randint(1, 255)
        path.write_bytes(content[: chance.randrange(4, len(content))] if chance.random() < 0.1 else content)
        try:
            broken = [sample for _, sample in open_source(path).read() if isinstance(sample, DataError)]
        except FastloadError as error:
            broken = [error]
        assert not any("\n" in str(error) for error in broken)
        refusals += bool(broken)
    assert refusals > 100


# -- links ----------------------------------------------------------------------------------------


def test_folders_that_links_lead_to_twice_are_named_and_not_walked_for_ever(tmp_path: Path) -> None:
    """22 levels, each with two links to the next, are 4 million paths to one picture."""
    levels = [tmp_path / f"level{number}" for number in range(23)]
    for level, following in itertools.pairwise(levels):
        level.mkdir()
        for name in "ab":
            (level / name).symlink_to(following)
    put(levels[-1], {"0.png": encode(noise())})
    refused("'a/[a/]*/a' and 'a/[a/]*/b' are one and the same by a link", levels[0])


@pytest.mark.parametrize("first, second", [("real", "z"), ("a", "real")])
def test_a_folder_and_a_link_to_it_do_not_count_twice(tmp_path: Path, first: str, second: str) -> None:
    folder = put(tmp_path / "s", {"real/0.png": encode(noise()), "other/0.png": encode(noise())})
    link = first if second == "real" else second
    (folder / link).symlink_to(folder / "real")
    refused(f"folders '{first}' and '{second}' are one and the same", folder)


def test_links_in_a_circle_and_special_files_are_named(tmp_path: Path) -> None:
    folder = put(tmp_path / "s", {"a/0.png": encode(noise()), "b/0.png": encode(noise())})
    (folder / "b" / "1.png").symlink_to("2.png")
    (folder / "b" / "2.png").symlink_to("1.png")
    refused("'b/1.png' is a link that cannot be followed", folder)
    for name in ("1.png", "2.png"):
        (folder / "b" / name).unlink()
    os.mkfifo(folder / "b" / "1.png")
    refused("'b/1.png' is neither a file nor a folder", folder)


def test_a_link_in_an_archive_that_may_lead_to_a_class_s_folder_is_named(tmp_path: Path) -> None:
    folder = put(tmp_path / "s", {f"{name}/{number}.png": encode(noise()) for name in "ab" for number in range(3)})
    (folder / "c").symlink_to("../elsewhere/c")
    refused("'c' is a link that cannot be followed", folder)
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        archive.add(folder, ".")
    refused("'c' is a link that cannot be followed .*make it with -h", tmp_path / "s.tar")
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as zipped:
        for file in sorted(folder.glob("*/*.png")):
            zipped.write(file, str(file.relative_to(folder)))
        info = zipfile.ZipInfo("c")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        zipped.writestr(info, "../elsewhere/c")
    refused("'c' is a link that cannot be followed", tmp_path / "s.zip")
    (folder / "c").rename(folder / "notes.txt")
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        archive.add(folder, ".")
    assert sorted(open_source(tmp_path / "s.tar").classes) == ["a", "b"], "a link to a text leads to no pictures"


# -- paths that are none --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, words",
    [
        ("s3://bucket/train", "s3://bucket/train: is an address, .*fetch it first .aws s3 sync."),
        ("https://x.y/z.tar", "https://x.y/z.tar: is an address"),
        ("pipe:aws s3 cp s3://b/x.tar -", "pipe:.*: is an address"),
        ("file:///data/x", "give the path alone"),
    ],
)
def test_addresses_are_no_paths(text: str, words: str) -> None:
    refused(words, text, UsageError)


def test_a_command_for_packed_files_names_no_file_of_the_user_s_as_output(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "real.zip", class_files())
    with pytest.raises(DataError, match=r"is not an HDF5 file; `fastload pack real\.zip OUT\.h5` makes one"):
        fastload.PackedFile(archive)
    with pytest.raises(DataError, match="is an address, and only files on this machine are read"):
        fastload.PackedFile("s3://bucket/full.h5")


@pytest.mark.parametrize("pattern", ["{0000000000..9999999999}.tar", "{1..999999999999999999}{1..999999999999999999}"])
def test_patterns_of_more_names_than_anybody_has_are_refused_at_once(pattern: str) -> None:
    refused("stands for .* names, more than 1,000,000", pattern, UsageError)


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("x.safetensors", b"\x08\0\0\0\0\0\0\0{}      ", "holds tensors by name; .*numpy.savez"),
        ("x.csv", b"name,label\n" * 99, "is a table, not images"),
        ("x.npy", b"\x93NUMPY\x01\0" + bytes(600), "holds one array; save images and labels together"),
        ("x", b"PAR1" + bytes(600), "is a table; open it with datasets.load_dataset"),
        ("x.7z", b"7z\xbc\xaf\x27\x1c" + bytes(600), "is a 7-Zip archive; unpack it"),
        ("0.png", encode(noise()), "is one file of one image; give the folder"),
        ("x.pkl", b"\x80\x04." * 300, "is a pickle, which may run code and is not loaded"),
        ("x.gz", gzip.compress(b"text" * 999), "is compressed, but what is in it is no tar"),
        ("x", b"text" * 999, "is no source that fastload knows .*; give one of these"),
        ("x", b"", "damaged or truncated tar .empty file.|is no source"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else None,
)
def test_what_is_no_source_is_named_for_what_it_is(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    refused(words, tmp_path / name)


def test_ranges_are_as_in_a_shell(tmp_path: Path) -> None:
    for name in ("8", "9", "10", "08", "09"):
        (tmp_path / name).touch()
    assert [path.name for path in expand(f"{tmp_path}/{{8..10}}")] == ["8", "9", "10"]
    assert [path.name for path in expand(f"{tmp_path}/{{10..8}}")] == ["10", "9", "8"]
    assert [path.name for path in expand(f"{tmp_path}/{{08..10}}")] == ["08", "09", "10"]


def test_a_path_that_the_system_refuses_comes_with_the_system_s_reason() -> None:
    refused("cannot be read .File name too long", "/" + "x" * 300)
    refused("cannot be read .*null", "a\0b")


# -- fuzz -----------------------------------------------------------------------------------------


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Flip bits, mostly in headers, cut, double and blank pieces."""
    content = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(content)) if chance.random() < 0.3 else 512 * chance.randrange(len(content) // 512)
        kind = chance.randrange(5)
        if kind == 0:
            content[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            where = at + chance.choice([0, 100, 124, 148, 156, 157, 257, 345])
            content[where : where + 8] = chance.randbytes(8)
        elif kind == 2:
            del content[at : at + chance.choice([1, 512, 4096])]
        elif kind == 3:
            content[at:at] = content[at : at + 1024]
        else:
            content[at : at + 512] = bytes(512)
        if len(content) < 512:
            break
    return bytes(content)


def mended(content: bytes) -> bytes:
    """Give each header its right checksum, so that the damage behind it is seen."""
    data = bytearray(content)
    for start in range(0, len(data) - 511, 512):
        if data[start + 257 : start + 262] == b"ustar":
            header = data[start : start + 512]
            header[148:156] = b" " * 8
            data[start + 148 : start + 156] = b"%06o\0 " % sum(header)
    return bytes(data)


@pytest.mark.parametrize("seed", range(3))
def test_no_damage_to_a_tar_raises_anything_but_an_error_of_one_line(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    files = {f"{label}/{'x' * 110}{i}.png": encode(noise()) for label in "ab" for i in range(2)}
    whole = tar(tmp_path / "t.tar", files, format=tarfile.GNU_FORMAT if seed == 1 else tarfile.PAX_FORMAT).read_bytes()
    path = tmp_path / "d.tar"
    refusals = 0
    limit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + 400_000
    for _ in range(250):
        broken = damaged(whole, chance)
        path.write_bytes(mended(broken) if chance.random() < 0.7 else broken)
        try:
            for _ in open_source(path).read():
                pass
        except FastloadError as error:
            assert "\n" not in str(error)
            refusals += 1
    assert refusals > 50 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < limit


def test_a_tar_on_a_file_that_is_cut_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tar(tmp_path / "t.tar", class_files(2, 8, (64, 64)))
    source = open_source(path)
    stream = source.read()
    index, data = next(stream)
    assert isinstance(data, bytes) and np.asarray(source.sizes)[index] == len(data)
    os.truncate(path, 6000)
    with pytest.raises(DataError, match=r"t\.tar: "):
        list(stream)


def test_seeking_in_a_plain_tar_reads_its_headers_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing of 100 GB on a network is a matter of seconds then."""
    path = tar(tmp_path / "t.tar", {f"c/{i}.png": bytes(1 << 20) for i in range(4)} | {"d/0.png": b""})
    read = 0
    original = tars._Stream.read

    def counted(stream, size: int) -> bytes:
        nonlocal read
        data = original(stream, size)
        read += len(data)
        return data

    monkeypatch.setattr(tars._Stream, "read", counted)
    assert len(open_source(path)) == 5 and read < 20_000
