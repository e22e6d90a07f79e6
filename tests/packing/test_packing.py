"""`pack`: decoding, order, sizes, broken images, and the same bytes from the same input."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from places import ROOT
from samples import cifar_files, class_files, encode, noise, put, tar

import fastload
from fastload.errors import DataError, UsageError
from fastload.packed.file import PackedFile, damaged_rows, fingerprint
from fastload.packing import chunks as chunk_threads
from fastload.packing.decoding import BrokenImage, decode
from fastload.packing.fit import Fit


def pixels_of(path: Path) -> np.ndarray:
    with PackedFile(path) as file:
        assert damaged_rows(file) == [] and fingerprint(file) == file.fingerprint
        return np.stack([file.read_image(row) for row in range(len(file))])


def refuse(error: type[Exception], words: str, *arguments, **options) -> None:
    """Packing fails with this one-line message, and leaves nothing behind."""
    folder = Path(arguments[1]).parent
    before = sorted(os.listdir(folder))
    with pytest.raises(error, match=words) as caught:
        fastload.pack(*arguments, **options)
    assert "\n" not in str(caught.value) and sorted(os.listdir(folder)) == before


# -- decoding -------------------------------------------------------------------------------------

GRADIENT = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (48, 1))  # [48, 64], bright to the right
COLOUR = np.stack([GRADIENT, GRADIENT[:, ::-1], np.full_like(GRADIENT, 90)], axis=2)


def test_every_mode_becomes_upright_rgb() -> None:
    colour, grey = Image.fromarray(COLOUR), Image.fromarray(GRADIENT)
    deep = Image.fromarray(GRADIENT.astype(np.uint16) * 257)
    grey_rgb = np.repeat(GRADIENT[:, :, None], 3, axis=2)
    alpha = colour.copy()
    alpha.putalpha(10)
    for name, image, kind, expected, tolerance in (
        ("rgb", colour, "PNG", COLOUR, 0),
        ("grey", grey, "PNG", grey_rgb, 0),
        ("grey with alpha", grey.convert("LA"), "PNG", grey_rgb, 0),
        ("16 bit", deep, "PNG", grey_rgb, 0),
        ("16 bit", deep, "TIFF", grey_rgb, 0),
        ("palette", grey.convert("P"), "PNG", grey_rgb, 0),
        ("alpha", alpha, "PNG", COLOUR, 0),
        ("cmyk", colour.convert("CMYK"), "TIFF", COLOUR, 1),
        ("cmyk", colour.convert("CMYK"), "JPEG", COLOUR, 24),
        ("jpeg", colour, "JPEG", COLOUR, 24),
        ("one bit", Image.fromarray(GRADIENT > 99), "PNG", (grey_rgb > 99) * np.uint8(255), 0),
    ):
        found = decode(encode(image, kind, **({"quality": 95} if kind == "JPEG" else {})))
        assert found.shape == (48, 64, 3) and found.dtype == np.uint8, name
        assert np.abs(found.astype(int) - expected.astype(int)).max() <= tolerance, name


@pytest.mark.parametrize(
    "orientation, turn", [(1, lambda a: a), (3, lambda a: a[::-1, ::-1]), (6, lambda a: np.rot90(a, -1))]
)
def test_exif_orientation_is_applied(orientation: int, turn) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decode(encode(COLOUR, "PNG", exif=exif)), turn(COLOUR))


@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 1), (9, 7, 2), (9, 7, 3), (9, 7, 4)])
def test_arrays_of_every_channel_count_become_rgb(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    found = decode(array)
    first = array if array.ndim == 2 else array[:, :, 0]
    assert found.shape == (9, 7, 3) and np.array_equal(found[:, :, 0], first)
    assert (
        np.array_equal(found, array[:, :, :3]) if shape[2:] in ((3,), (4,)) else np.array_equal(found[:, :, 2], first)
    )


def area_resize(image: np.ndarray, high: int, wide: int) -> np.ndarray:
    """Antialiased bilinear resizing by its definition, in float64: a triangle filter as wide as the scale."""

    def weights(source: int, target: int) -> np.ndarray:
        scale = source / target
        support = max(scale, 1.0)
        centres = (np.arange(target) + 0.5) * scale
        distance = np.abs(np.arange(source)[None] + 0.5 - centres[:, None]) / support
        found = np.clip(1 - distance, 0, None)
        return found / found.sum(axis=1, keepdims=True)

    rows, columns = weights(image.shape[0], high), weights(image.shape[1], wide)
    return np.einsum("ij,jkc,lk->ilc", rows, image.astype(np.float64), columns)


@pytest.mark.parametrize("height, width", [(48, 64), (64, 48), (61, 50), (24, 24), (10, 13)])
def test_resize_brings_the_shorter_side_to_s_and_cuts_the_centre(height: int, width: int) -> None:
    smooth = np.asarray(Image.fromarray(noise(12, 12)).resize((width, height), Image.Resampling.BICUBIC))
    size = 24
    high, wide = (max(size, round(side * size / min(height, width))) for side in (height, width))
    reference = area_resize(smooth, high, wide)
    top, left = (high - size) // 2, (wide - size) // 2
    found = decode(encode(smooth), Fit("resize", size))
    assert found.shape == (size, size, 3)
    assert np.abs(found - reference[top : top + size, left : left + size]).max() <= 2


def test_bombs_splinters_and_strange_pixels_are_broken_images(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BrokenImage, match="32-bit pixels"):
        decode(encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))
    for data, words in ((b"", "is empty"), (b"no image", "not an image"), (encode(COLOUR)[:-60], "cannot be decoded")):
        with pytest.raises(BrokenImage, match=words):
            decode(data)
    with pytest.raises(BrokenImage, match="too narrow"):
        decode(np.zeros((1, 20000, 3), np.uint8), Fit("resize", 256))


def test_a_decompression_bomb_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    source = put(tmp_path / "s", {"c/bomb.png": encode(noise(11, 11)), "d/0.png": encode(noise())})
    refuse(DataError, "s: 'c/bomb.png' cannot be decoded .*decompression bomb", source, tmp_path / "o.h5")


# -- the file -------------------------------------------------------------------------------------


def test_folder_tar_and_any_number_of_workers_give_the_same_bytes(tmp_path: Path) -> None:
    files = class_files(5, 60)
    folder, out = put(tmp_path / "s", files), tmp_path / "o.h5"
    archive = tar(tmp_path / "t.tar.gz", {f"data/{name}": data for name, data in reversed(files.items())}, "w:gz")
    for options in (
        {},
        {"order": "shuffled"},
        {"resize": 5},
        {"encoded": True},
        {"encoded": True, "order": "shuffled"},
    ):
        found = set()
        for source, workers in ((folder, 1), (folder, 5), (archive, 2)):
            fastload.pack(source, out, workers=workers, **options)
            found.add(hashlib.sha256(out.read_bytes()).hexdigest())
        assert len(found) == 1, options
    assert b"data" not in out.read_bytes()[-4096:] and str(tmp_path).encode() not in out.read_bytes()


def test_rows_labels_ids_and_names_go_together_in_both_orders(tmp_path: Path) -> None:
    files = class_files(3, 20)
    folder, out = put(tmp_path / "s", files), tmp_path / "o.h5"
    images = sorted(name for name in files if name.endswith(".png") and "._" not in name)
    truth = [np.asarray(Image.open(io.BytesIO(files[name]))) for name in images]
    orders = {}
    for order, seed in (("source", 0), ("shuffled", 0), ("shuffled", 1)):
        summary = fastload.pack(folder, out, order=order, seed=seed)
        with PackedFile(out) as file:
            assert sorted(file.ids) == list(range(60)) and file.classes == ["c0", "c1", "c2"]
            for row, identity in enumerate(file.ids):
                assert np.array_equal(file.image(row), truth[identity])
                assert file.classes[file.labels[row]] == images[identity].split("/")[0]
            orders[order, seed] = file.ids.tolist()
        assert summary.counts == {"c0": 20, "c1": 20, "c2": 20} and summary.ignored == 3
    assert orders["source", 0] == list(range(60))
    assert len({tuple(ids) for ids in orders.values()}) == 3


def test_packing_a_packed_file_again_keeps_ids_and_gives_the_originals_bytes_back(tmp_path: Path) -> None:
    folder = put(tmp_path / "s", class_files(3, 20))
    for options in ({}, {"encoded": True}):
        fastload.pack(folder, tmp_path / "a.h5", **options)
        fastload.pack(tmp_path / "a.h5", tmp_path / "b.h5", order="shuffled", **options)
        fastload.pack(tmp_path / "b.h5", tmp_path / "c.h5", **options)
        assert (tmp_path / "c.h5").read_bytes() == (tmp_path / "a.h5").read_bytes() != (tmp_path / "b.h5").read_bytes()
    fastload.pack(tmp_path / "b.h5", tmp_path / "d.h5")  # encoded to raw
    fastload.pack(folder, tmp_path / "a.h5")
    assert np.array_equal(pixels_of(tmp_path / "d.h5"), pixels_of(tmp_path / "a.h5"))


def test_large_files_wait_for_their_turn_however_many_workers_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_threads, "_WAITING_BYTES", 3000)
    taken = 0

    def chunks():
        nonlocal taken
        for index in range(20):
            taken += 1
            yield [(index, bytes(1000))]

    for done, _ in enumerate(chunk_threads.map_in_threads(len, chunks(), workers=8)):
        assert taken - done <= 4
    assert done == 19


def test_large_results_wait_for_their_turn_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_threads, "_WAITING_BYTES", 3000)
    made, fifth, sixth = threading.Semaphore(0), threading.Event(), threading.Event()
    went_on = []

    def work(chunk: list) -> int:
        if chunk[0][0] == 0:  # the first takes long: what is made meanwhile is large, and no more is taken
            assert fifth.wait(30)
            went_on.append(sixth.wait(0.5))
        else:
            made.release()
        return 4000 if chunk[0][0] == 4 else 10

    def few_chunks():
        for index in range(20):
            if 1 < index < 7:
                assert made.acquire(timeout=30)
            if index == 5:
                time.sleep(0.1)  # what was made comes back from its thread
                fifth.set()
            if index == 6:
                sixth.set()
            yield [(index, b"")]

    assert (
        list(chunk_threads.map_in_threads(work, few_chunks(), 8, lambda result: result))
        == [10] * 4 + [4000] + [10] * 15
    )
    assert went_on == [False]


def test_one_image_is_enough(tmp_path: Path) -> None:
    source = put(tmp_path / "s", {"c/0.png": encode(noise())})
    summary = fastload.pack(source, tmp_path / "o.h5", order="shuffled", class_level=1)
    assert summary.images == 1 and pixels_of(tmp_path / "o.h5").shape == (1, 8, 8, 3)


@pytest.mark.parametrize("encoded", [False, True])
def test_images_without_labels_become_a_file_without_labels(tmp_path: Path, encoded: bool) -> None:
    source = put(tmp_path / "s", {f"x/{index}.png": encode(noise()) for index in range(4)} | {"notes.txt": b""})
    summary = fastload.pack(source, tmp_path / "o.h5", unlabelled=True, encoded=encoded)
    with PackedFile(tmp_path / "o.h5") as file:
        assert file.labels is None and list(file.classes) == [] and len(file) == 4
    assert summary.counts == {} and "none: the images have no labels" in str(summary)
    assert "ignored  1 other file: 1 .txt" in str(summary)


def test_encoded_keeps_every_byte_of_files_of_any_size(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        "c/0.png": encode(noise(5, 9)),
        "c/1.jpg": encode(noise(30, 20), "JPEG", exif=exif),
        "d/0.jpg": encode(noise(8, 8), "JPEG"),
    }
    fastload.pack(put(tmp_path / "s", files), tmp_path / "o.h5", encoded=True, as_is=True)
    with PackedFile(tmp_path / "o.h5") as file:
        assert [file.read(row) for row in range(3)] == [files[name] for name in sorted(files)]


def test_images_of_several_sizes_are_named_with_both_sizes_and_the_mend(tmp_path: Path) -> None:
    source = put(
        tmp_path / "s", {"a/0.png": encode(noise(8, 9)), "b/0.png": encode(noise(8, 9)), "b/1.png": encode(noise(7, 9))}
    )
    words = r"s: 'b/1.png' is 7×9 \(height × width\), but 'a/0.png' before it is 8×9; .*resize=S, .*encoded=True"
    refuse(DataError, words, source, tmp_path / "o.h5")
    assert fastload.pack(source, tmp_path / "o.h5", resize=4).shape == (4, 4, 3)


@pytest.mark.parametrize("encoded", [False, True])
def test_broken_images_stop_it_by_name_or_are_skipped_and_listed(tmp_path: Path, encoded: bool) -> None:
    files = {f"c{i % 2}/{i:02}.png": encode(noise()) for i in range(40)}
    names = sorted(files)
    for index in (0, 7, 39):
        files[names[index]] = b"broken" if index else files[names[0]][:100]
    out = tmp_path / "o.h5"
    for source in (put(tmp_path / "s", files), tar(tmp_path / "s.tar", files)):
        refuse(
            DataError,
            f"'{names[0]}' cannot be decoded .*mend or remove it, or pack with skip_broken=True",
            source,
            out,
            encoded=encoded,
        )
        summary = fastload.pack(source, out, encoded=encoded, skip_broken=True, workers=3)
        assert [text.split(": ")[0] for text in summary.skipped] == [names[0], names[7], names[39]]
        assert (
            summary.images == 37 and sum(summary.counts.values()) == 37 and "skipped  3 broken images" in str(summary)
        )
        with PackedFile(out) as file:
            assert file.ids.tolist() == [i for i in range(40) if i not in (0, 7, 39)]
            assert all(
                file.classes[label] == names[i].split("/")[0] for label, i in zip(file.labels, file.ids, strict=True)
            )
            assert damaged_rows(file) == [] and fingerprint(file) == file.fingerprint
        out.unlink()
    only = put(tmp_path / "all", {"c/0.png": b"broken", "d/0.png": b"broken"})
    refuse(DataError, "not one", only, out, encoded=encoded, skip_broken=True)


def test_dataset_items_that_raise_can_be_skipped(tmp_path: Path) -> None:
    class Half:
        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: int):
            if index % 2:
                raise OSError("no such picture")
            return np.full((4, 4, 3), index, np.uint8), index

    refuse(DataError, "dataset: 'item 1' cannot be read .OSError: no such picture", Half(), tmp_path / "o.h5")
    assert len(fastload.pack(Half(), tmp_path / "o.h5", skip_broken=True).skipped) == 3
    with PackedFile(tmp_path / "o.h5") as file:
        assert file.ids.tolist() == file.labels.tolist() == [0, 2, 4]


@pytest.mark.parametrize("order", ["source", "shuffled"])
def test_dataset_is_read_once_and_shuffled_like_files(tmp_path: Path, order: str) -> None:
    class Counting:
        classes = ("even", "odd")
        reads = 0

        def __len__(self) -> int:
            return 200

        def __getitem__(self, index: int):
            self.reads += 1
            return Image.fromarray(np.full((4, 4, 3), index, np.uint8)), index % 2

    dataset = Counting()
    fastload.pack(dataset, tmp_path / "o.h5", order=order)
    assert dataset.reads == 200
    with PackedFile(tmp_path / "o.h5") as file:
        assert all(file.image(row)[0, 0, 0] == file.ids[row] for row in range(200))
        assert np.array_equal(file.labels, file.ids % 2) and file.classes == ["even", "odd"]
        assert (file.ids.tolist() == list(range(200))) == (order == "source")


def test_arrays_cifar_and_own_hdf5_become_the_same_images(tmp_path: Path) -> None:
    files, truth = cifar_files("10bin")
    images, labels = truth["train"]
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    with h5py.File(tmp_path / "u.h5", "w") as file:
        file.create_dataset("x", data=images, chunks=(4, 32, 32, 3), compression="gzip")
        file["y"] = labels
    out = tmp_path / "o.h5"
    for source, options in (
        (put(tmp_path / "c", files), {}),
        (tmp_path / "a.npz", {}),
        (tmp_path / "u.h5", {"images": "x", "labels": "y"}),
    ):
        fastload.pack(source, out, **options)
        assert np.array_equal(pixels_of(out), images) and PackedFile(out).labels.tolist() == labels
        refuse(
            UsageError,
            "holds pixels, not image files; pack it without encoded=True",
            source,
            out,
            encoded=True,
            **options,
        )


@pytest.mark.parametrize(
    "options, words",
    [
        ({"order": "random"}, "order='random' is neither"),
        ({"seed": -1}, "seed=-1"),
        ({"resize": 0}, "resize=0"),
        ({"resize": 4, "encoded": True}, "encoded=True keeps the files as they are"),
        ({"workers": 0}, "workers=0"),
        ({"images": "x", "labels": "y"}, "leave them out here"),
        ({"images": "x"}, "give both"),
    ],
)
def test_options_that_cannot_be_served_are_usage_errors(tmp_path: Path, options: dict, words: str) -> None:
    refuse(UsageError, words, put(tmp_path / "s", class_files()), tmp_path / "o.h5", **options)


def test_source_that_changes_while_it_is_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = put(tmp_path / "s", {f"c{index % 2}/{index}.png": encode(noise()) for index in range(3)})
    original = fastload.packing.pack.PackJob.run

    def meddle(job, *arguments):
        (source / "c1" / "1.png").unlink()
        return original(job, *arguments)

    monkeypatch.setattr(fastload.packing.pack.PackJob, "run", meddle)
    refuse(DataError, r"changed while it was read \(2 of 3 images found again\)", source, tmp_path / "o.h5")


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_damage_to_an_image_is_a_broken_image_or_pixels(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"]))
    content = bytearray(encode(COLOUR[:8, :8], kind))
    for _ in range(3):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert decode(bytes(content), Fit("resize", 4)).shape == (4, 4, 3)
    except BrokenImage as error:
        assert "\n" not in str(error)


# -- real photographs -----------------------------------------------------------------------------


def members(path: Path, prefix: str) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive if m.isfile() and m.name.startswith(prefix)}  # type: ignore[union-attr]


def test_real_cifar_test_images_pack_to_pillows_pixels(cifar_tar: Path, tmp_path: Path) -> None:
    summary = fastload.pack(cifar_tar, tmp_path / "o.h5", split="test", order="shuffled")
    assert (
        summary.images == 10_000 and set(summary.counts.values()) == {1000} and next(iter(summary.counts)) == "airplane"
    )
    files = members(cifar_tar, "test/")
    names = sorted(files)
    with PackedFile(tmp_path / "o.h5") as file:
        for row in range(0, 10_000, 97):
            expected = np.asarray(Image.open(io.BytesIO(files[names[file.ids[row]]])).convert("RGB"))
            assert np.array_equal(file.image(row), expected)
            assert file.classes[file.labels[row]] == names[file.ids[row]].split("/")[1]


def test_real_photographs_pack_resized_and_encoded(imagenet_tar: Path, tmp_path: Path) -> None:
    files = members(imagenet_tar, "train/")
    assert fastload.pack(imagenet_tar, tmp_path / "r.h5", resize=32).shape == (32, 32, 3)
    summary = fastload.pack(imagenet_tar, tmp_path / "e.h5", encoded=True, as_is=True)
    assert summary.images == len(summary.counts) == 250
    with PackedFile(tmp_path / "e.h5") as file:
        assert [file.read(row) for row in range(250)] == [files[name] for name in sorted(files)]
    refuse(
        DataError,
        "resize=S, keep whole pictures with short_side=S, or the files with encoded=True",
        imagenet_tar,
        tmp_path / "x.h5",
    )


# -- stopped in the middle ------------------------------------------------------------------------


@pytest.mark.parametrize("sent, code", [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_stopping_it_keeps_the_old_file(tmp_path: Path, sent: signal.Signals, code: int) -> None:
    files = {f"c{i % 2}/{i}.png": data for i, data in enumerate([encode(noise(300, 300))] * 600)}
    source, out = tar(tmp_path / "s.tar", files), tmp_path / "o.h5"
    fastload.pack(put(tmp_path / "old", class_files()), out)
    before = out.read_bytes()
    command = [sys.executable, "-m", "fastload.command.cli", "pack", str(source), str(out), "--workers", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        deadline = time.monotonic() + 30
        while not list(tmp_path.glob(".o.h5.*.partial")) and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.05)
        process.send_signal(sent)
        _, stderr = process.communicate()
    assert process.returncode == code and out.read_bytes() == before
    if sent == signal.SIGINT:
        assert stderr == b"interrupted\n" and not list(tmp_path.glob(".o.h5.*"))
    else:
        assert len(list(tmp_path.glob(".o.h5.*"))) == 1
        fastload.pack(tmp_path / "old", out)
        assert not list(tmp_path.glob(".o.h5.*")) and out.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "name"),
    [({"seed": 1.5}, "seed=1.5"), ({"resize": 16.0}, "resize=16.0"), ({"workers": "2"}, "workers='2'")],
)
def test_arguments_of_another_kind_are_usage_errors_by_name(tmp_path, change, name):
    with pytest.raises(UsageError, match=name):
        fastload.pack([(np.zeros((8, 8, 3), np.uint8), 0)], tmp_path / "out.h5", progress=False, **change)
    with pytest.raises(UsageError, match="out=3"):
        fastload.pack([(np.zeros((8, 8, 3), np.uint8), 0)], 3, progress=False)


def test_numbers_of_numpy_give_the_same_file_as_plain_ones(tmp_path):
    items = [(np.full((8, 8, 3), i, np.uint8), i) for i in range(5)]
    for name, number in (("plain", int), ("numpy", np.int64)):
        fastload.pack(
            items,
            tmp_path / name,
            order="shuffled",
            seed=number(3),
            resize=number(6),
            workers=number(1),
            progress=False,
        )
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "numpy").read_bytes()
