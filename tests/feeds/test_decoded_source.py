"""Whole decoded images: those that stream feeds show, bit for bit, in the caller's memory and nowhere else in it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from batches import same
from jpegs import TURNS, pillow, turbo, write_jpegs
from packs import noise_images, write_encoded, write_format_1, write_ragged, write_raw
from PIL import Image
from samples import encode
from strange_files import picture

from fastload.augment import Augment, Erase, Jitter, RandomCrop, RandomResizedCrop
from fastload.errors import ClosedError, DataError, UsageError
from fastload.feeds.batch import Output
from fastload.feeds.decoded_source import DecodedSource
from fastload.feeds.feed import open_feed
from fastload.kernels import turbojpeg
from fastload.order import Order
from fastload.packed.file import PackedFile
from fastload.packed.reader import SampleReader
from fastload.packed.set import Packed, open_packed
from fastload.packing.decoding import upright_sides

CANARY = 0xA5
GAP = 64
RECIPE = Augment(
    64,
    crop=RandomResizedCrop(),
    flip=0.5,
    color=Jitter(0.4, 0.4, 0.4, 0.1, probability=0.8),
    grayscale=0.2,
    erase=Erase(0.3),
    normalize=Augment.imagenet(64).normalize,
)


@pytest.fixture(params=["fused", "dali"])
def engine(request: pytest.FixtureRequest) -> str:
    if request.param == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    elif not turbojpeg.load():
        pytest.skip("libturbojpeg is not installed")
    return request.param


@contextmanager
def opened(paths, engine: str = "fused", **foreign: str) -> Iterator[tuple[Packed, DecodedSource]]:
    with open_packed(paths, **foreign) as file:
        source = DecodedSource(file, SampleReader(file), engine=engine, threads=2)
        yield file, source
        source.close()


def fetched(source: DecodedSource, rows: np.ndarray) -> list[np.ndarray]:
    """The bytes of images that were written in another order than asked for, with gaps that nothing touches."""
    sizes = source.sizes[rows]
    order = np.random.default_rng(1).permutation(len(rows))
    starts = np.empty(len(rows), np.int64)
    starts[order] = np.cumsum(sizes[order] + GAP + 1) - sizes[order]  # aligned to nothing
    out = np.full(int((sizes + GAP + 1).sum()) + GAP, CANARY, np.uint8)
    source.fetch(rows, out, starts)
    images = [out[start : start + size].copy() for start, size in zip(starts, sizes, strict=True)]
    for start, size in zip(starts, sizes, strict=True):
        out[start : start + size] = CANARY
    assert (out == CANARY).all()
    return images


def pictures(source: DecodedSource, rows: np.ndarray) -> list[np.ndarray]:
    """Images of sources whose pixels lie HWC."""
    sides = source.shapes[rows].tolist()
    return [one.reshape(*pair, source.channels) for one, pair in zip(fetched(source, rows), sides, strict=True)]


ROWS = np.array([3, 0, 11, 3, 7, 10])


def test_raw_images_are_given_as_they_are_stored(few_cifar: Path) -> None:
    rows = np.array([399, 0, 17, 399])
    with opened(few_cifar) as (file, source):
        assert (source.shape, source.channels) == ((32, 32, 3), 3)
        assert source.shapes.shape == (400, 2) and (source.shapes == 32).all() and source.shapes.dtype == np.int32
        assert source.sizes.shape == (400,) and (source.sizes == 3072).all() and source.sizes.dtype == np.int64
        for row, image in zip(rows.tolist(), pictures(source, rows), strict=True):
            assert np.array_equal(image, file.read_image(row))


def test_planar_images_keep_their_layout(tmp_path: Path) -> None:
    planes = np.ascontiguousarray(noise_images(12, 5, 7).transpose(0, 3, 1, 2))
    with h5py.File(tmp_path / "own.h5", "w") as file:
        file["x"], file["y"] = planes, np.arange(12)
    with opened(tmp_path / "own.h5", images="x", labels="y") as (_, source):
        assert source.shape == (5, 7, 3) and source.shapes[0].tolist() == [5, 7] and source.sizes[0] == 105
        for row, image in zip(ROWS.tolist(), fetched(source, ROWS), strict=True):
            assert np.array_equal(image, planes[row].reshape(-1))


@pytest.mark.parametrize("channels", [1, 3])
def test_ragged_images_of_several_files(tmp_path: Path, channels: int) -> None:
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (*random.integers(1, 30, 2), channels), dtype=np.uint8) for _ in range(12)]
    paths = [
        write_ragged(tmp_path / f"{k}.h5", images[k : k + 4], np.arange(4), ids=np.arange(k, k + 4)) for k in (0, 4, 8)
    ]
    with opened(paths) as (_, source):
        assert source.shape is None and source.channels == channels
        assert source.shapes.tolist() == [[*image.shape[:2]] for image in images]
        assert source.sizes.tolist() == [image.size for image in images]
        for row, image in zip(ROWS.tolist(), pictures(source, ROWS), strict=True):
            assert np.array_equal(image, images[row])


def strange_set() -> tuple[list[bytes], list[np.ndarray]]:
    """Files of every orientation, and those that are never cut, with their upright pixels by other decoders."""
    files, upright = [], []
    for k in range(16):
        turned = Image.Exif()
        turned[0x0112] = k % 8 + 1
        image = picture(36 + 4 * (k % 3), 60 - 4 * (k % 2), k)
        files.append(encode(image, "JPEG", quality=80, subsampling=k % 3, exif=turned))
        upright.append(TURNS[k % 8 + 1](turbo(files[-1])))
    files.append(encode(Image.fromarray(picture(40, 44, 16)).convert("L"), "JPEG"))
    upright.append(turbo(files[-1]))
    for file in (encode(picture(28, 36, 17), "PNG"), encode(picture(84, 104, 18), "JPEG", progressive=True)):
        files.append(file)
        upright.append(pillow(file))
    return files, upright


def test_encoded_images_are_upright_whatever_their_files(tmp_path: Path, engine: str) -> None:
    files, upright = strange_set()
    path = write_jpegs(tmp_path / "x.h5", files)
    rows = np.random.default_rng(2).permutation(np.arange(2 * len(files)) % len(files))
    with opened(path, engine) as (file, source):
        assert file.jpeg is not None and np.flatnonzero(file.jpeg.cuts[:, 0] == 0).tolist() == [17, 18]
        assert (source.shape, source.channels) == (None, 3)
        assert source.sizes.tolist() == [pixels.size for pixels in upright]
        for row, image in zip(rows.tolist(), pictures(source, rows), strict=True):
            assert np.array_equal(image, upright[row]), row
        assert fetched(source, rows[:0]) == []


def test_dali_decodes_sets_of_files_that_were_never_cut(tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    files, upright = strange_set()
    shapes = np.array([upright_sides(data) for data in files], np.int32)
    path = write_encoded(tmp_path / "x.h5", files, np.arange(len(files)), shapes=shapes)
    with opened(path, "dali") as (_, source):
        for image, wanted in zip(pictures(source, np.arange(len(files))), upright, strict=True):
            assert np.array_equal(image, wanted)


def test_augmented_whole_images_are_the_batches_of_the_stream(imagenet_encoded: Path, tmp_path: Path, engine: str):
    def batches(path: Path, chosen: str) -> list:
        with PackedFile(path) as file:
            feed = open_feed(file, RECIPE, Order(250, 5, phase=4), Output(50, torch.device("cpu")), engine=chosen)
        made = []
        for start in range(0, 500, 50):
            batch = feed.make(start, 50)
            made.append((batch.images.clone(), batch.labels.clone(), batch.ids.clone()))
        feed.close()
        return made

    with opened(imagenet_encoded, engine) as (file, source):
        images, labels, ids = pictures(source, np.arange(250)), file.labels, file.ids
    pool = write_ragged(tmp_path / "pool.h5", images, labels, ids=ids)
    assert same(batches(pool, "fused"), batches(imagenet_encoded, engine))


def test_several_threads_fetch_into_one_array(imagenet_encoded: Path, engine: str) -> None:
    with opened(imagenet_encoded, engine) as (_, source):
        rows = np.arange(120)
        starts = np.cumsum(source.sizes[rows]) - source.sizes[rows]
        one, many = np.zeros((2, int(source.sizes[rows].sum())), np.uint8)
        source.fetch(rows, one, starts)
        parts = [slice(k, None, 6) for k in range(6)]
        threads = [threading.Thread(target=source.fetch, args=(rows[part], many, starts[part])) for part in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert one.any() and np.array_equal(one, many)


def stream_error(path: Path, engine: str, count: int) -> str:
    """What the stream feed says of a set, where it needs all of each image."""
    with PackedFile(path) as file:
        augment, order = Augment(24, crop=RandomCrop(pad=12)), Order(count, 5, 1, False)
        feed = open_feed(file, augment, order, Output(count, torch.device("cpu")), engine=engine, workers=1)
        with pytest.raises(DataError) as found:
            feed.make(0, count)
        feed.close()
    return str(found.value)


def source_error(path: Path, engine: str, count: int) -> str:
    with opened(path, engine) as (_, source):
        out = np.empty(int(source.sizes.sum()), np.uint8)
        starts = np.cumsum(source.sizes) - source.sizes
        with pytest.raises(DataError) as found:
            source.fetch(np.arange(count), out, starts)
        sound = np.delete(np.arange(count), 3)
        source.fetch(sound, out, starts[sound])  # it goes on
    return str(found.value)


def changed_bytes(path: Path, first: float, last: float, value: int) -> None:
    """Set the bytes of sample 3 from one share of it to another."""
    with PackedFile(path) as file:
        assert file.offsets is not None
        start, stop = (file.data_offset + place for place in file.span(3))
    with path.open("r+b") as raw:
        raw.seek(start + int(first * (stop - start)))
        raw.write(bytes([value]) * int((last - first) * (stop - start)))


DAMAGES = {
    "its entropy-coded pixels": (encode(picture(48, 64, 3), "JPEG"), (0.6, 0.7, 0xFF)),
    "its header": (encode(picture(48, 64, 3), "JPEG"), (0.0, 0.2, 0x00)),
    "a PNG": (encode(picture(48, 64, 3), "PNG"), (0.0, 0.3, 0x00)),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_file_is_named_as_the_stream_names_it(tmp_path: Path, engine: str, what: str) -> None:
    file, damage = DAMAGES[what]
    files = [encode(picture(48, 64, k), "JPEG") for k in range(12)]
    files[3] = file
    path = write_jpegs(tmp_path / "x.h5", files, names=[f"c/{k}.jpg" for k in range(12)])
    changed_bytes(path, *damage)
    found = source_error(path, engine, 12)
    assert found == stream_error(path, engine, 12) and found.startswith(f"{path}: c/3.jpg ")


def test_sides_that_are_not_the_sets_are_told(tmp_path: Path, engine: str) -> None:
    """A file that cannot be cut, whose sides only its decoder knows."""
    files = [encode(picture(48, 64, k), "JPEG") for k in range(12)]
    files[3] = encode(picture(48, 64, 3), "PNG")
    path = write_jpegs(tmp_path / "x.h5", files)
    with h5py.File(path, "r+") as file:
        file["shapes"][3] = 64, 48
    assert "row 3 (id 3) does not fit what the file's index says of it" in source_error(path, engine, 12)


def test_sizes_that_nobody_knows_are_asked_for_before_training(tmp_path: Path, engine: str) -> None:
    files = [encode(picture(24, 32, k), "JPEG") for k in range(3)]
    today = write_encoded(tmp_path / "today.h5", files, np.arange(3))
    offsets = np.cumsum([0, *map(len, files)])
    content = np.frombuffer(b"".join(files), np.uint8)
    older = write_format_1(tmp_path / "older.h5", content, np.arange(3), offsets=offsets)
    for path in (today, older):
        wanted = rf"{path.name} holds encoded images .*pack it again, or .*convert"
        with pytest.raises(UsageError, match=wanted), opened(path, engine):
            pass


def test_a_file_that_was_truncated_is_named(tmp_path: Path, engine: str) -> None:
    raw = write_raw(tmp_path / "raw.h5", noise_images(12), np.arange(12))
    encoded = write_jpegs(tmp_path / "x.h5", [encode(picture(48, 64, k), "JPEG") for k in range(12)])
    for path in (raw, encoded):
        with opened(path, engine) as (file, source):
            out, starts = np.empty(int(source.sizes.sum()), np.uint8), np.cumsum(source.sizes) - source.sizes
            source.fetch(np.arange(12), out, starts)
            os.truncate(path, file.data_offset + file.span(7)[0] + 5)
            with pytest.raises(DataError, match=r"can no longer be read; the file was truncated|changed"):
                source.fetch(np.arange(12), out, starts)


def test_after_it_was_closed_nothing_is_fetched(tmp_path: Path, engine: str) -> None:
    raw = write_raw(tmp_path / "raw.h5", noise_images(12), np.arange(12))
    encoded = write_jpegs(tmp_path / "x.h5", [encode(picture(48, 64, k), "JPEG") for k in range(12)])
    for path in (raw, encoded):
        with opened(path, engine) as (file, source):
            file.close()
            assert len(fetched(source, ROWS)) == len(ROWS)  # the set itself need not be open
            source.close()
            source.close()
            with pytest.raises(ClosedError):
                fetched(source, ROWS)
