"""A transcoded JPEG file has the same pixels, and restart markers where its index says; or there is none."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from jpegs import file_sides, pillow, segments_of
from PIL import Image
from samples import encode
from strange_files import picture

from fastload.kernels.jpeg_restarts import add_restarts
from fastload.packing import jpeg_transcode
from fastload.packing.jpeg_transcode import Cuttable, cuttable, fits_index

PIXELS = picture(60, 84)


def segment(kind: int, body: bytes) -> bytes:
    return bytes((0xFF, kind)) + (len(body) + 2).to_bytes(2, "big") + body


def edited(data: bytes, edit) -> bytes:
    """A file whose segments before the pixels are what `edit` makes of each (kind, body): bytes."""
    parts, end = [data[:2]], 2
    for kind, place, end in segments_of(data):
        parts.append(edit(kind, data[place + 4 : end]))
    return b"".join(parts) + data[end:]


def before(data: bytes, kind: int, more: bytes) -> bytes:
    """A file with bytes more before its first segment of a kind."""
    done = []

    def edit(found: int, body: bytes) -> bytes:
        first = found == kind and not done
        done.extend([None] * first)
        return (more if first else b"") + segment(found, body)

    return edited(data, edit)


def libjpeg(pixels: np.ndarray, *words: str) -> bytes:
    """What libjpeg's own `cjpeg` makes of an image; the test is skipped without it."""
    program = shutil.which("cjpeg")
    if program is None:
        pytest.skip("cjpeg (Debian: libjpeg-turbo-progs) is not installed")
    return subprocess.run([program, *words], input=encode(pixels, "PPM"), capture_output=True, check=True).stdout


def markers(data: bytes, start: int) -> list[int]:
    """Where each marker among the coded pixels ends, found byte by byte."""
    return [k + 2 for k in range(start, len(data) - 1) if data[k] == 0xFF and data[k + 1] != 0]


def assert_cuttable(data: bytes, orientation: int = 1) -> Cuttable:
    made = cuttable(data, orientation)
    assert made is not None
    assert np.array_equal(pillow(made.data), pillow(data))
    again = cuttable(made.data, orientation)
    assert again is not None and again.data == made.data and again.cut == made.cut
    assert np.array_equal(again.segments, made.segments)
    cut, sides = made.cut, file_sides(made.data)
    columns, rows = -(-sides[1] // cut.mcu_width), -(-sides[0] // cut.mcu_height)
    assert columns % cut.interval == 0 and len(made.segments) == rows * (columns // cut.interval) + 1
    assert made.segments.tolist() == [cut.header, *markers(made.data, cut.header)]
    kinds = [made.data[place - 1] for place in made.segments[1:].tolist()]
    assert kinds == [0xD0 + k % 8 for k in range(len(kinds) - 1)] + [0xD9]
    assert int(made.segments[-1]) == len(made.data)
    assert fits_index(made.data, cut, sides, made.segments)
    return made


def test_photographs_keep_their_pixels_and_grow_by_a_few_hundredths(imagenet_tar: Path) -> None:
    before_all = after = 0
    with tarfile.open(imagenet_tar) as archive:
        for number, member in enumerate(archive):
            if member.isfile():
                data = archive.extractfile(member).read()
                if number % 5 == 0:
                    before_all, after = before_all + len(data), after + len(assert_cuttable(data).data)
                else:
                    made = cuttable(data, 1)
                    assert made is not None and np.array_equal(pillow(made.data), pillow(data))
    assert after < 1.05 * before_all


SAVED = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "optimized": {"optimize": True},
    "quality 1": {"quality": 1},
    "quality 1, 4:4:4": {"quality": 1, "subsampling": 0},
    "quality 30": {"quality": 30},
    "quality 100": {"quality": 100},
    "quality 100, 4:4:4, optimized": {"quality": 100, "subsampling": 0, "optimize": True},
    "restart every MCU": {"restart_marker_blocks": 1},
    "restart every 3 MCUs": {"restart_marker_blocks": 3},
    "restart every row": {"restart_marker_rows": 1},
    "restart every 3 rows": {"restart_marker_rows": 3},
    "RGB": {"keep_rgb": True},
    "metadata": {"comment": b"x" * 300, "icc_profile": b"y" * 70_000, "dpi": (72, 72)},
}


@pytest.mark.parametrize("name", SAVED)
@pytest.mark.parametrize("sides", [(60, 84), (1, 1), (1, 84), (60, 1), (17, 33), (8, 8)])
def test_what_pillow_writes_keeps_its_pixels(name: str, sides: tuple[int, int]) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (*sides, 3), dtype=np.uint8)
    for pixels in (np.ascontiguousarray(PIXELS[: sides[0], : sides[1]]), noise):
        for orientation in (1, 6):
            assert_cuttable(encode(pixels, "JPEG", **SAVED[name]), orientation)


CJPEG = {
    "4:1:1": ["-sample", "4x1"],
    "4:4:0": ["-sample", "1x2"],
    "4:1:0": ["-sample", "4x2"],
    "1x4": ["-sample", "1x4"],
    "colours finer across": ["-sample", "1x2,1x1,1x2"],
    "grey": ["-grayscale"],
    "grey, sampled 2x2": ["-grayscale", "-sample", "2x2"],
    "several tables": ["-qslots", "0,1,1", "-optimize"],
    "16-bit quantization": ["-quality", "1"],
    "no smoothing tables": ["-quality", "100", "-dct", "float"],
    "restart in blocks": ["-restart", "2B"],
}


@pytest.mark.parametrize("name", CJPEG)
def test_what_libjpeg_writes_keeps_its_pixels(name: str) -> None:
    assert_cuttable(libjpeg(PIXELS, *CJPEG[name]))


WHOLE = {
    "progressive": ["-progressive"],
    "arithmetic": ["-arithmetic"],
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_cannot_be_cut_stays_whole(name: str) -> None:
    assert cuttable(libjpeg(PIXELS, *WHOLE[name]), 1) is None


def test_several_scans_stay_whole(tmp_path: Path) -> None:
    (tmp_path / "scans").write_text("0;\n1;\n2;\n")
    assert cuttable(libjpeg(PIXELS, "-scans", str(tmp_path / "scans")), 1) is None


@pytest.mark.parametrize("mode", ["CMYK", "L"])
def test_one_or_three_components_are_cut_and_four_are_not(mode: str) -> None:
    data = encode(Image.fromarray(PIXELS).convert(mode), "JPEG")
    if mode == "L":
        assert_cuttable(data)
    else:
        assert cuttable(data, 1) is None


@pytest.mark.parametrize("sides", [(65_500, 8), (8, 65_500), (65_500, 1), (3, 65_500)])
def test_the_longest_sides(sides: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*sides, 3), dtype=np.uint8)
    made = cuttable(encode(pixels, "JPEG", quality=20), 1)
    assert made is not None and np.array_equal(pillow(made.data), pillow(encode(pixels, "JPEG", quality=20)))


SOUND = encode(PIXELS, "JPEG", quality=80)


def without(left_out: int) -> bytes:
    """The sound file without its segments of a kind."""
    return edited(SOUND, lambda kind, body: b"" if kind == left_out else segment(kind, body))


TABLES = [SOUND[place + 4 : end] for kind, place, end in segments_of(SOUND) if kind == 0xDB]
UNUSUAL = {
    "bytes behind the end": SOUND + b"\xff\xd9\xff\xd8 more",
    "fill bytes before markers": edited(SOUND, lambda kind, body: b"\xff\xff\xff" + segment(kind, body)),
    "fill bytes before the end": SOUND[:-2] + b"\xff\xff\xff\xd9",
    "an interval of 0": before(SOUND, 0xDA, segment(0xDD, b"\0\0")),
    "an interval, and none": before(SOUND, 0xDA, segment(0xDD, b"\0\5") + segment(0xDD, b"\0\0")),
    "an interval that is longer than the file": before(SOUND, 0xDA, segment(0xDD, b"\xff\xff")),
    "tables given twice": before(SOUND, 0xDB, segment(0xDB, bytes((0, *[9] * 64)))),
    "16-bit tables": edited(
        SOUND,
        lambda kind, body: (
            segment(0xDB, bytes((0x10 + body[0],)) + b"".join(bytes((0, one)) for one in body[1:]))
            if kind == 0xDB and len(body) == 65
            else segment(kind, body)
        ),
    ),
    "tables in one segment": before(
        without(0xDB),
        0xC0,
        segment(0xDB, b"".join(TABLES)),
    ),
    "comments and metadata before all": before(SOUND, 0xE0, segment(0xFE, b"x" * 60_000) + segment(0xED, b"8BIM")),
    "no JFIF": without(0xE0),
    "a JFIF that is too short to count": edited(
        SOUND, lambda kind, body: segment(kind, b"JFIF\0\1\1\0") if kind == 0xE0 else segment(kind, body)
    ),
    "Adobe's marker that is too short to count": before(SOUND, 0xDB, segment(0xEE, b"Adobe\0\x64\0\0")),
    "Adobe's marker, RGB": before(
        without(0xE0),
        0xDB,
        segment(0xEE, b"Adobe\0\x64\0\0\0\0\0"),
    ),
    "components called R, G, B": edited(
        without(0xE0),
        lambda kind, body: segment(
            kind,
            body[:6] + b"R" + body[7:9] + b"G" + body[10:12] + b"B" + body[13:]
            if kind == 0xC0
            else bytes((3, 82, body[2], 71, body[4], 66, body[6])) + body[7:]
            if kind == 0xDA
            else body,
        ),
    ),
    "extended sequential": edited(SOUND, lambda kind, body: segment(0xC1 if kind == 0xC0 else kind, body)),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_files_keep_their_pixels(name: str) -> None:
    assert_cuttable(UNUSUAL[name])


NOT_CUT = {
    "nothing": b"",
    "two bytes": b"\xff\xd8",
    "a PNG": encode(PIXELS, "PNG"),
    "12 bits": edited(SOUND, lambda kind, body: segment(kind, b"\x0c" + body[1:] if kind == 0xC0 else body)),
    "lossless": edited(SOUND, lambda kind, body: segment(0xC3 if kind == 0xC0 else kind, body)),
    "a height that comes behind": edited(
        SOUND, lambda kind, body: segment(kind, body[:1] + b"\0\0" + body[3:] if kind == 0xC0 else body)
    ),
    "no end": SOUND[:-2],
    "a restart where none is due": SOUND[:-2] + b"\xff\xd0\xff\xd9",
    "restarts that were announced and are not there": before(SOUND, 0xDA, segment(0xDD, b"\0\3")),
    "components in another order": edited(
        SOUND, lambda kind, body: segment(kind, body[:1] + body[3:5] + body[1:3] + body[5:] if kind == 0xDA else body)
    ),
    "factors that do not divide each other": edited(
        SOUND,
        lambda kind, body: (
            segment(kind, body[:7] + b"\x31" + body[8:10] + b"\x21" + body[11:])
            if kind == 0xC0
            else segment(kind, body)
        ),
    ),
    "tables of a megabyte": before(SOUND, 0xC0, segment(0xDB, bytes((0, *[9] * 64)) * 1000) * 16),
    "sides for which the pixels cannot suffice": edited(
        SOUND, lambda kind, body: segment(kind, body[:1] + b"\xff\xdc\xff\xdc" + body[5:] if kind == 0xC0 else body)
    ),
}


@pytest.mark.parametrize("name", NOT_CUT)
def test_other_files_stay_as_they_are(name: str) -> None:
    assert cuttable(NOT_CUT[name], 1) is None


SMALL = encode(picture(16, 24), "JPEG", quality=40, optimize=True)
RESTARTED = encode(picture(20, 36), "JPEG", quality=60, restart_marker_blocks=1)


def assert_same_or_none(data: bytes) -> bool:
    """What comes of a damaged file has its pixels; files that Pillow refuses are never packed, whatever comes."""
    made = cuttable(data, 1)
    if made is None:
        return False
    try:
        expected = pillow(data)
    except Exception:
        return False
    assert np.array_equal(pillow(made.data), expected)
    return True


@pytest.fixture(autouse=True)
def guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written behind what `cuttable` gives for the new pixels."""

    def guard(*words):
        out = words[-2]
        room = np.full(out.size + 65_536, 0x5A, np.uint8)
        size = add_restarts(*words[:-2], room, words[-1])
        assert (room[out.size :] == 0x5A).all() and size <= out.size
        out[:] = room[: out.size]
        return size

    monkeypatch.setattr(jpeg_transcode, "add_restarts", guard)


@pytest.mark.parametrize("data", [SMALL, RESTARTED], ids=["plain", "with restarts"])
def test_files_that_end_anywhere(data: bytes) -> None:
    for end in range(len(data)):
        assert not assert_same_or_none(data[:end])
        assert_same_or_none(data[:end] + b"\xff\xd9")


@pytest.mark.parametrize("data", [SMALL, RESTARTED], ids=["plain", "with restarts"])
def test_files_of_which_a_byte_is_another(data: bytes) -> None:
    same = 0
    for place in range(len(data)):
        for value in {0, 0xFF, data[place] ^ 1, data[place] ^ 0x80, (data[place] * 7 + place) & 255} - {data[place]}:
            same += assert_same_or_none(data[:place] + bytes((value,)) + data[place + 1 :])
    assert same > 50


def test_what_ends_within_its_first_mcu_does_not_write_beyond_its_room() -> None:
    """Codes of 16 bits and 10 more, all out of the zeros that follow the end."""
    counts = bytes((*[0] * 15, 1))
    long_codes = segment(0xC4, b"\x10" + counts + b"\x0a") + segment(0xC4, b"\x11" + counts + b"\x0a")
    data = before(encode(picture(16, 16), "JPEG"), 0xDA, long_codes)
    start = list(segments_of(data))[-1][2]
    for count in range(40):
        assert cuttable(data[: start + count], 1) is None


def test_an_index_of_another_file_does_not_fit() -> None:
    one, other = assert_cuttable(SOUND), assert_cuttable(encode(picture(60, 84, seed=1), "JPEG", quality=80))
    sides = (60, 84)
    assert fits_index(one.data, one.cut, sides, one.segments)
    assert not fits_index(one.data, one.cut, sides, other.segments)
    assert not fits_index(one.data, one.cut, sides, one.segments + np.uint32(1))
    assert not fits_index(one.data, one.cut, sides, one.segments[:-1])
    assert not fits_index(one.data, one.cut, sides[::-1], one.segments)
    assert not fits_index(one.data + b"\0", one.cut, sides, one.segments)
    assert not fits_index(SOUND, one.cut, sides, one.segments)
    assert not fits_index(b"", one.cut, sides, one.segments)
    for field in one.cut._fields:
        changed = one.cut._replace(**{field: getattr(one.cut, field) + 1})
        assert not fits_index(one.data, changed, sides, one.segments)
