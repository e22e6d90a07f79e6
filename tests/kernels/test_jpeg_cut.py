"""Crops that are cut out of JPEG files have the pixels of the whole file; what its index gets wrong is told."""

from __future__ import annotations

import io
import tarfile
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jpegs import FAST_UPSAMPLE, TURNS, cut, random_region, turbo, write_jpegs
from PIL import Image
from samples import encode
from strange_files import picture

from fastload.command.verify import verify_file
from fastload.errors import DataError
from fastload.kernels.jpeg_cut import MARGIN, OTHER_INDEX, cut_files, ranges_of_cuts
from fastload.packed.file import PackedFile, PackedWriter
from fastload.packed.reader import SampleReader
from fastload.packing.jpeg_transcode import cuttable

CROPS = 10_000


def shrunk(data: bytes, side: int, *, shorter: bool) -> bytes:
    """The picture with its shorter or longer side at most `side` pixels, saved as the smaller sets are."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    share = side / (min(image.size) if shorter else max(image.size))
    if share < 1:
        image = image.resize([max(1, round(share * length)) for length in image.size])
    return encode(image, "JPEG", quality=90)


@pytest.fixture(scope="module")
def photographs(imagenet_tar: Path) -> list[bytes]:
    with tarfile.open(imagenet_tar) as archive:
        return [archive.extractfile(member).read() for member in archive if member.isfile()]


def assert_same_pixels(path: Path, rows: np.ndarray, regions: np.ndarray, orientations: np.ndarray) -> None:
    """Each region's pixels are those of the whole file, smooth colours and plain ones."""
    with PackedFile(path) as file:
        reader = SampleReader(file)
        found = cut(reader, rows, regions)
        wholes: dict[tuple[int, int], np.ndarray] = {}
        for flags in (0, FAST_UPSAMPLE):
            for row, (top, left, bottom, right), (data, part) in zip(rows, regions.tolist(), found, strict=True):
                turn = TURNS[orientations[row]]
                if (row, flags) not in wholes:
                    wholes = {(row, flags): turn(turbo(file.read(row), flags))}
                y, x, height, width = part
                pixels = turn(turbo(data, flags))
                assert pixels.shape == (height, width, 3)
                assert y <= top and x <= left and bottom <= y + height and right <= x + width
                expected = wholes[row, flags][top:bottom, left:right]
                assert np.array_equal(pixels[top - y : bottom - y, left - x : right - x], expected), (row, top, left)
        reader.close()


def test_ten_thousand_crops_have_the_pixels_of_the_whole_file(
    photographs: list[bytes], few_cifar_files, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    files = [*photographs]
    files += [shrunk(data, 500, shorter=False) for data in photographs]
    files += [shrunk(data, 256, shorter=True) for data in photographs]
    files += few_cifar_files[0][:250]
    orientations = 1 + np.arange(len(files)) % 8
    path = write_jpegs(tmp_path / "x.h5", files, turned=orientations.tolist())
    rows = np.sort(np.arange(CROPS) % len(files))
    with PackedFile(path) as file:
        assert file.jpeg is not None and (file.jpeg.cuts[:, 0] > 0).all()
        regions = np.array([random_region(rng, *file.shapes[row].tolist()) for row in rows])
    assert_same_pixels(path, rows, regions, orientations)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_sides_and_any_region(tmp_path: Path, data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 150))
    options = {"subsampling": data.draw(st.sampled_from((0, 1, 2))), "quality": data.draw(st.integers(1, 100))}
    orientation, grey = data.draw(st.integers(1, 8)), data.draw(st.booleans())
    seed = data.draw(st.integers(0, 1 << 30))
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    path = write_jpegs(
        tmp_path / "x.h5", [encode(pixels[:, :, 0] if grey else pixels, "JPEG", **options)], turned=[orientation]
    )
    upright = (width, height) if orientation >= 5 else (height, width)
    regions = np.array([random_region(rng, *upright) for _ in range(8)])
    assert_same_pixels(path, np.zeros(8, np.int64), regions, np.array([orientation]))


@pytest.mark.parametrize("width", range(30, 52))
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_last_columns_that_are_few(tmp_path: Path, width: int, subsampling: int) -> None:
    """libjpeg does not smooth colours of up to four columns, so they cannot be a file by themselves."""
    pixels = np.random.default_rng(width).integers(0, 256, (20, width, 3), dtype=np.uint8)
    path = write_jpegs(tmp_path / "x.h5", [encode(pixels, "JPEG", subsampling=subsampling)])
    regions = np.array([(0, left, 20, width) for left in range(width)])
    assert_same_pixels(path, np.zeros(width, np.int64), regions, np.array([1]))


# -- an index that does not fit ---------------------------------------------------------------------------------------

INDEXED = [encode(picture(64, 64, seed), "JPEG", quality=85, subsampling=seed % 2) for seed in range(4)]


def tried(path: Path, truth: list[np.ndarray], reader: SampleReader, row: int, regions: np.ndarray) -> bool:
    """Whether regions of a file are refused; their pixels are true where they are not."""
    files = reader.jpeg_files
    assert files is not None
    for region in regions:
        size = int(files.offsets[row + 1] - files.offsets[row])
        out, parts = np.full(size + 64, 0xA5, np.uint8), np.zeros((1, 5), np.int64)
        code = cut_files(files, np.array([row]), region[None], MARGIN, out[:size], parts)
        assert (out[size:] == 0xA5).all()
        if code != (-1, 0):
            assert code == (0, OTHER_INDEX)
            return True
        (length, y, x, height, width), (top, left, bottom, right) = parts[0].tolist(), region.tolist()
        pixels = turbo(out[:length].tobytes())
        assert pixels.shape == (height, width, 3)
        assert np.array_equal(pixels[top - y : bottom - y, left - x : right - x], truth[row][top:bottom, left:right])
    return False


REGIONS = np.array([(0, 0, 64, 64), (20, 20, 40, 40), (3, 30, 20, 64), (40, 0, 64, 10), (0, 0, 1, 1), (63, 63, 64, 64)])

ENTRIES = {
    "shifted by a byte": lambda entries: entries + np.uint32(1),
    "shifted by a segment": lambda entries: np.append(entries[1:], entries[-1:]),
    "shifted by eight segments": lambda entries: np.append(entries[8:], np.repeat(entries[-1:], 8)),
    "zeros": lambda entries: entries * np.uint32(0),
    "too large": lambda entries: entries | np.uint32(0xFFFF0000),
    "backwards": lambda entries: entries[::-1].copy(),
    "two swapped": lambda entries: entries[[0, 2, 1, *range(3, len(entries))]],
    "all the first": lambda entries: np.repeat(entries[:1], len(entries)),
    "the same eight again and again": lambda entries: entries[
        np.append(np.arange(len(entries) - 1) % 8, len(entries) - 1)
    ],
}


@pytest.mark.parametrize("change", ENTRIES)
def test_entries_of_an_index_that_are_not_the_files_are_told(tmp_path: Path, change: str) -> None:
    path = write_jpegs(tmp_path / "x.h5", INDEXED)
    truth = [turbo(data) for data in INDEXED]
    with PackedFile(path) as file:
        assert file.jpeg is not None
        offset, bounds = file.jpeg.places[0][0], file.jpeg.segment_offsets.tolist()
    for row in range(len(INDEXED)):
        with path.open("r+b") as raw:
            raw.seek(offset + 4 * bounds[row])
            entries = np.frombuffer(raw.read(4 * (bounds[row + 1] - bounds[row])), np.uint32)
            raw.seek(offset + 4 * bounds[row])
            raw.write(ENTRIES[change](entries).astype(np.uint32).tobytes())
    with PackedFile(path) as file:
        reader = SampleReader(file)
        for row in range(len(INDEXED)):
            assert tried(path, truth, reader, row, REGIONS)
        reader.close()
    with pytest.raises(DataError, match="'jpeg' and 'segments' do not say how 4 files can be cut"):
        verify_file(path, progress=False).raise_if_damaged()


def test_another_files_entries_are_told(tmp_path: Path) -> None:
    path, other = (
        tmp_path / "x.h5",
        [encode(picture(64, 64, 9 + k), "JPEG", quality=85, subsampling=k % 2) for k in range(4)],
    )
    truth = [turbo(data) for data in INDEXED]
    made, others = [cuttable(data, 1) for data in INDEXED], [cuttable(data, 1) for data in other]
    with PackedWriter(path, count=4, labels=np.arange(4), source={"kind": "test"}) as out:
        for row, (one, two) in enumerate(zip(made, others, strict=True)):
            assert one is not None and two is not None
            out.append(row, one.data, shape=(64, 64), cut=one.cut, segments=two.segments)
    with PackedFile(path) as file:
        reader = SampleReader(file)
        assert all(tried(path, truth, reader, row, REGIONS) for row in range(4))
        reader.close()
    report = verify_file(path, progress=False)
    assert not report.ok and report.checksum_matches and not report.damaged


TABLES = {
    "MCUs swapped": lambda cut: cut._replace(mcu_height=cut.mcu_width, mcu_width=cut.mcu_height),
    "MCUs of 8": lambda cut: cut._replace(mcu_height=8, mcu_width=8),
    "MCUs of 16": lambda cut: cut._replace(mcu_height=16, mcu_width=16),
    "segments of one MCU": lambda cut: cut._replace(interval=1),
    "segments of a whole row": lambda cut: cut._replace(interval=64 // cut.mcu_width),
    "a header that is shorter": lambda cut: cut._replace(header=cut.header - 1),
    "a header that is longer": lambda cut: cut._replace(header=cut.header + 1),
    "the sides elsewhere": lambda cut: cut._replace(frame=cut.frame + 1),
    "turned by 180°": lambda cut: cut._replace(orientation=3),
    "turned by 90°": lambda cut: cut._replace(orientation=6),
}


@pytest.mark.parametrize("change", TABLES)
def test_an_index_that_is_sound_by_itself_and_lies_is_told(tmp_path: Path, change: str) -> None:
    """With as many entries as it says, so that the file can be opened."""
    told = 0
    for number, data in enumerate([*INDEXED[:2], encode(picture(64, 64, 5), "JPEG", subsampling=2)]):
        made = cuttable(data, 1)
        assert made is not None
        lie = TABLES[change](made.cut)
        if lie == made.cut:
            continue
        count = 64 // lie.mcu_height * (64 // (lie.mcu_width * lie.interval)) + 1
        segments = np.resize(made.segments[:-1], count)
        segments[-1] = made.segments[-1]
        path = tmp_path / f"{number}.h5"
        with PackedWriter(path, count=1, labels=np.zeros(1, np.int64), source={"kind": "test"}) as out:
            out.append(0, made.data, shape=(64, 64), cut=lie, segments=segments)
        with PackedFile(path) as file:
            reader = SampleReader(file)
            assert tried(path, [turbo(data)], reader, 0, REGIONS)
            reader.close()
        assert not verify_file(path, progress=False).ok
        told += 1
    assert told >= 1


@pytest.mark.parametrize(
    "change",
    [
        {"header": -1},
        {"frame": 0},
        {"frame": 6},
        {"frame": 1 << 20},
        {"header": 1 << 20},
        {"mcu_height": 0},
        {"mcu_width": 40},
        {"interval": 0},
        {"interval": 3},
        {"orientation": 0},
        {"orientation": 9},
        {"header": 0},
    ],
    ids=str,
)
def test_an_index_that_no_file_can_have_is_told_when_it_is_opened(tmp_path: Path, change: dict[str, int]) -> None:
    path = tmp_path / "x.h5"
    made = cuttable(INDEXED[0], 1)
    assert made is not None
    with PackedWriter(path, count=1, labels=np.zeros(1, np.int64), source={"kind": "test"}) as out:
        out.append(0, made.data, shape=(64, 64), cut=made.cut, segments=made.segments)
    with h5py.File(path, "r+") as file:
        file["jpeg"][0] = made.cut._replace(**change)
    with pytest.raises(DataError, match="'jpeg' does not say how files of these shapes can be cut"):
        PackedFile(path)


def test_markers_or_an_interval_that_were_changed_are_told(tmp_path: Path) -> None:
    path = write_jpegs(tmp_path / "x.h5", INDEXED)
    with PackedFile(path) as file:
        assert file.jpeg is not None
        offset, cut_of, entries = file.data_offset, file.jpeg.cuts[0], file.jpeg.segments(0).tolist()
        truth = [turbo(file.read(0))]
    content = path.read_bytes()
    interval = int(cut_of[0]) - 8 - 6 - 1
    for place in (interval, entries[1] - 1, entries[1] - 2, entries[5] - 1, entries[-1] - 1, 0, int(cut_of[1])):
        changed = bytearray(content)
        changed[offset + place] ^= 0x21
        path.write_bytes(changed)
        with PackedFile(path) as file:
            reader = SampleReader(file)
            assert tried(path, truth, reader, 0, REGIONS[:1])
            reader.close()


def test_what_is_asked_for_ahead_is_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an index in plain Python: the header, and from the first segment that a crop touches to the last."""
    files = [encode(picture(240 + 40 * k, 320, k), "JPEG", quality=98, subsampling=k % 3) for k in range(6)]
    orientations = [1, 6, 3, 8, 5, 2]
    path, rng = write_jpegs(tmp_path / "x.h5", files, turned=orientations), np.random.default_rng(1)
    with PackedFile(path) as file:
        assert file.jpeg is not None and file.offsets is not None and file.shapes is not None
        reader = SampleReader(file)
        rows = np.arange(60) % 6
        regions = np.array([random_region(rng, *file.shapes[row].tolist()) for row in rows])
        ranges = np.zeros((60, 2, 2), np.int64)
        assert reader.jpeg_files is not None
        ranges_of_cuts(reader.jpeg_files, rows, regions, MARGIN, ranges)
        found = cut(reader, rows, regions)
        content, twice = file.read_bytes(0, file.nbytes), 0
        for row, (data, _), asked in zip(rows.tolist(), found, ranges.tolist(), strict=True):
            begin, header = int(file.offsets[row]), int(file.jpeg.cuts[row, 0])
            entries = file.jpeg.segments(row).tolist()
            taken = [
                k for k, (a, b) in enumerate(pairwise(entries)) if content[begin + a : begin + b - 2] in data[header:]
            ]
            span = entries[taken[0]], entries[taken[-1] + 1]
            expected = {*range(begin, begin + header), *range(begin + span[0], begin + span[1])}
            covered = {place for start, size in asked for place in range(start, start + size)}
            assert expected <= covered and len(covered) < len(expected) + 4096 + 2
            twice += asked[1][1] > 0
        reader.close()
    assert twice > 5
