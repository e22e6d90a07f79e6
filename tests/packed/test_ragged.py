"""Samples of sizes that are known only as they come: appended, in any order, with shapes of their own."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from fastload.errors import DataError
from fastload.packed.file import PackedFile, PackedWriter, checksum, damaged_rows, fingerprint


def pictures(count: int = 7, channels: int = 3) -> list[np.ndarray]:
    random = np.random.default_rng(3)
    sides = random.integers(1, 40, (count, 2))
    return [random.integers(0, 256, (height, width, channels), np.uint8) for height, width in sides]


def write(path: Path, images: list[np.ndarray], order: list[int], skipped: tuple[int, ...] = ()) -> Path:
    labels = np.arange(len(images)) % 2
    with PackedWriter(path, count=len(images), storage="ragged", labels=labels, source={"kind": "test"}) as out:
        for row in skipped:
            out.skip(row)
        for row in order:
            out.append(row, images[row], shape=images[row].shape[:2])
    return path


def test_images_come_back_as_they_were_whatever_order_they_were_appended_in(tmp_path):
    images = pictures()
    inorder = write(tmp_path / "a.h5", images, list(range(7)))
    mixed = write(tmp_path / "b.h5", images, [3, 0, 6, 2, 5, 1, 4])
    assert inorder.read_bytes() == mixed.read_bytes()
    with PackedFile(inorder) as file:
        assert (file.storage, file.shape, file.channels, len(file)) == ("ragged", None, 3, 7)
        assert file.shapes.tolist() == [list(image.shape[:2]) for image in images]
        for row, image in enumerate(images):
            assert np.array_equal(file.read_image(row), image)
            assert np.array_equal(file.image(row), image)
        assert not damaged_rows(file)
        assert (fingerprint(file), checksum(file)) == (file.fingerprint, file.checksum)
    with h5py.File(inorder) as raw:  # as the format's page says
        start, stop = raw["offsets"][2:4]
        assert np.array_equal(raw["images"][start:stop].reshape(*raw["shapes"][2], 3), images[2])


def test_skipped_rows_are_left_out_of_an_appended_file(tmp_path):
    images = pictures()
    with PackedFile(write(tmp_path / "a.h5", images, [0, 1, 3, 4, 6], skipped=(2, 5))) as file:
        assert file.ids.tolist() == [0, 1, 3, 4, 6]
        assert np.array_equal(file.read_image(2), images[3])


def test_a_row_that_was_never_appended_is_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="1 rows were never written, the first is 6"):
        write(tmp_path / "a.h5", pictures(), list(range(6)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("channels", [1, 4])
def test_channels_follow_from_sizes_and_shapes(tmp_path, channels):
    with PackedFile(write(tmp_path / "a.h5", pictures(channels=channels), list(range(7)))) as file:
        assert file.channels == channels


@pytest.mark.parametrize("change", [(0, 1), (-1, 2)])
def test_shapes_that_do_not_fit_the_offsets_are_an_error(tmp_path, change):
    path = write(tmp_path / "a.h5", pictures(), list(range(7)))
    with h5py.File(path, "r+") as raw:
        raw["shapes"][change[0], 0] += change[1]
    with pytest.raises(DataError, match="than images of these 'shapes' take"):
        PackedFile(path)
