"""docs/format.md suffices to read a packed file: forty lines of plain Python do, and agree with fastload."""

from __future__ import annotations

import io
from pathlib import Path

import h5py
import numpy as np
import pytest
from jpegs import cut, random_region, write_jpegs
from packs import noise_images, write_raw
from PIL import Image, ImageOps
from samples import encode
from strange_files import picture

from fastload.packed.file import PackedFile, PackedWriter
from fastload.packed.reader import SampleReader

# -- the reader: nothing of fastload's ---------------------------------------------------------------------------------

MARGIN = 2


def read(path: Path, row: int) -> np.ndarray:
    """One image, uint8 [H, W, C], upright."""
    with h5py.File(path) as file:
        if file.attrs["storage"].decode() == "raw":
            return file["images"][row]
        start, stop = file["offsets"][row : row + 2]
        if file.attrs["storage"].decode() == "ragged":
            return file["images"][start:stop].reshape(*file["shapes"][row], -1)
        return upright(file["images"][start:stop].tobytes())


def upright(data: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def crop(path: Path, row: int, top: int, left: int, bottom: int, right: int) -> bytes:
    """A JPEG file that shows this part of a file's own pixels (before they are turned), and somewhat more."""
    with h5py.File(path) as file:
        begin = int(file["offsets"][row])
        header, frame, mcu_height, mcu_width, interval, orientation = file["jpeg"][row].tolist()
        height, width = file["shapes"][row].tolist()[:: -1 if orientation >= 5 else 1]
        first, last = file["segment_offsets"][row : row + 2]
        places = (begin + file["segments"][first:last].astype(np.int64)).tolist()
        across = mcu_width * interval
        rows = range(max(top - MARGIN, 0) // mcu_height, (min(bottom + MARGIN, height) - 1) // mcu_height + 1)
        columns = range(max(left - MARGIN, 0) // across, (min(right + MARGIN, width) - 1) // across + 1)
        if columns[0] > 0 and width - columns[0] * across <= 4:
            columns = range(columns[0] - 1, columns[-1] + 1)
        sides = (
            min(rows.stop * mcu_height, height) - rows[0] * mcu_height,
            min(columns.stop * across, width) - columns[0] * across,
        )
        made = bytearray(file["images"][begin : begin + header])
        made[frame : frame + 4] = sides[0].to_bytes(2, "big") + sides[1].to_bytes(2, "big")
        count = -(-width // across)
        taken = [y * count + x for y in rows for x in columns]
        for number, segment in enumerate(taken):
            made += file["images"][places[segment] : places[segment + 1]].tobytes()
            made[-1] = 0xD9 if number == len(taken) - 1 else 0xD0 + number % 8
        return bytes(made)


# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_of_raw_and_ragged_files(tmp_path: Path, channels: int) -> None:
    images = noise_images(5, 6, 9, channels)
    raw = write_raw(tmp_path / "raw.h5", images, np.arange(5))
    shapes = np.array([(2 + k, 9 - k) for k in range(5)], np.int32)
    sizes = shapes.prod(axis=1) * channels
    with PackedWriter(
        tmp_path / "ragged.h5",
        sizes=sizes,
        storage="ragged",
        shapes=shapes,
        labels=np.arange(5),
        source={"kind": "test"},
    ) as out:
        for row, (height, width) in enumerate(shapes):
            out.write(row, np.ascontiguousarray(images[row, :height, :width]))
    with PackedFile(tmp_path / "ragged.h5") as ragged:
        for row, (height, width) in enumerate(shapes):
            assert np.array_equal(read(raw, row), images[row])
            assert np.array_equal(read(tmp_path / "ragged.h5", row), images[row, :height, :width])
            assert np.array_equal(read(tmp_path / "ragged.h5", row), ragged.read_image(row))


def test_crops_of_jpeg_files_are_the_bytes_that_fastload_cuts(tmp_path: Path) -> None:
    files = [encode(picture(96 + 4 * k, 164 - 4 * k, k), "JPEG", subsampling=k % 3) for k in range(8)]
    path = write_jpegs(tmp_path / "x.h5", [*files, encode(picture(), "PNG")], turned=list(range(1, 10)))
    rng = np.random.default_rng(0)
    with PackedFile(path) as file:
        assert file.jpeg is not None and file.shapes is not None
        reader = SampleReader(file)
        for row in range(9):
            assert read(path, row).shape[:2] == tuple(file.shapes[row])
        # Turned files are compared whole: which part of their own pixels an upright region is, is not the format's.
        for row in range(8):
            height, width = file.shapes[row].tolist()
            for _ in range(6):
                region = random_region(rng, height, width) if row == 0 else (0, 0, height, width)
                own = region if row == 0 else (0, 0, *((width, height) if row >= 4 else (height, width)))
                ((expected, _),) = cut(reader, np.array([row]), np.array([region]))
                assert crop(path, row, *own) == expected
        reader.close()
