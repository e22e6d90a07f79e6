"""Subsets of whole pictures: ragged, of every kind of full set; sizes, budgets, and what `verify` says."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from packs import noise_images, write_format_1, write_ragged, write_raw
from PIL import Image
from samples import encode, put

import fastload
from fastload.command.verify import verify_file
from fastload.errors import DataError, UsageError
from fastload.packed.file import PackedFile
from fastload.subset import trials

COUNT = 40


@pytest.fixture(autouse=True)
def short_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "TRIAL_SECONDS", 0.01)


@pytest.fixture(scope="module")
def full_sets(imagenet_tar: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """40 real photographs of many sizes: encoded, ragged, and as raw squares, each in a folder of its own."""
    folder = tmp_path_factory.mktemp("full")
    with tarfile.open(imagenet_tar) as archive:
        members = [member for member in archive if member.isfile()][::6][:COUNT]
        files = {f"{'ab'[i % 2]}/{i:02}.jpg": archive.extractfile(m).read() for i, m in enumerate(members)}  # type: ignore[union-attr]
    source = put(folder / "photographs", files)
    found = {}
    for name, options in (
        ("encoded", {"jpeg": True, "max_side": 160}),
        ("ragged", {"short_side": 96}),
        ("raw", {"resize": 64}),
    ):
        (folder / name).mkdir()
        found[name] = folder / name / "full.h5"
        fastload.pack(source, found[name], order="shuffled", **options)
    return found


def build(full: Path, out: Path, **settings) -> Path:
    fastload.build_subset(full, out, **{"strategy": "random", "size": 15, "threads": 1} | settings)
    return out


def whole(file: PackedFile, row: int) -> np.ndarray:
    if file.storage == "encoded":
        return np.asarray(Image.open(io.BytesIO(file.read(row))).convert("RGB"))
    return file.read_image(row)


@pytest.mark.parametrize("storage", ["encoded", "ragged", "raw"])
def test_a_subset_of_whole_pictures_holds_those_of_the_full_set_scaled(full_sets, tmp_path, storage):
    full = full_sets[storage]
    with PackedFile(build(full, tmp_path / "s.h5", short_side=48)) as subset, PackedFile(full) as file:
        assert (subset.storage, subset.shape, subset.channels) == ("ragged", None, 3)
        assert (subset.shapes.min(axis=1) == 48).all()
        assert (len(np.unique(subset.shapes, axis=0)) > 3) == (storage != "raw")
        for row in range(len(subset)):
            at = int(np.flatnonzero(file.ids == subset.ids[row])[0])
            height, width = subset.shapes[row].tolist()
            expected = Image.fromarray(whole(file, at)).resize((width, height), Image.Resampling.BILINEAR)
            assert np.array_equal(subset.read_image(row), np.asarray(expected))
            assert subset.labels[row] == file.labels[at] and subset.names[row] == file.names[at]
    report = verify_file(tmp_path / "s.h5", full=full)
    assert report.ok and "each sample is that of" in str(report)


def test_of_a_ragged_set_a_subset_stays_as_it_is_or_becomes_squares(full_sets, tmp_path):
    full = full_sets["ragged"]
    with PackedFile(build(full, tmp_path / "s.h5")) as subset, PackedFile(full) as file:
        assert subset.storage == "ragged"
        for row in range(len(subset)):
            at = int(np.flatnonzero(file.ids == subset.ids[row])[0])
            assert np.array_equal(subset.read_image(row), file.read_image(at))
    assert verify_file(tmp_path / "s.h5", full=full).ok
    with PackedFile(build(full, tmp_path / "squares.h5", resize=24)) as subset:
        assert subset.shape == (24, 24, 3)
    assert verify_file(tmp_path / "squares.h5", full=full).ok


def test_embeddings_are_made_of_a_ragged_set(full_sets, tmp_path):
    full = full_sets["ragged"]
    with PackedFile(build(full, tmp_path / "s.h5", strategy="top-activations", epochs=0.5, batch_size=16)) as subset:
        assert subset.storage == "ragged" and (subset.selection.dimension >= -1).all()
    assert verify_file(tmp_path / "s.h5", full=full).ok


@pytest.mark.parametrize("budget", [60_000, 200_000, 10**9])
def test_a_budget_holds_whichever_samples_are_chosen(full_sets, tmp_path, budget):
    for seed in range(3):
        path = build(full_sets["ragged"], tmp_path / "s.h5", size=f"{budget / 1000}KB", short_side=48, seed=seed)
        with PackedFile(path) as subset:
            assert subset.nbytes < budget and len(subset) >= min(COUNT, budget // 60_000)
            largest = int(subset.shapes.prod(axis=1).max()) * 3
            assert len(subset) == COUNT or subset.nbytes > budget // 4 > largest // 8
    with pytest.raises(UsageError, match="one sample takes"):
        build(full_sets["ragged"], tmp_path / "x.h5", size="1KB", short_side=48)


def test_the_same_bytes_in_another_shape_are_another_image(tmp_path):
    plain = [np.full((*sides, 3), 7, np.uint8) for sides in ((2, 6), (3, 4), (2, 6), (6, 2), (5, 5))]
    full = write_ragged(tmp_path / "full.h5", plain, np.arange(5))
    report = fastload.build_subset(full, tmp_path / "s.h5", strategy="random", size=4)
    assert sorted(report.ids) == [0, 1, 3, 4] and report.left_out["exact duplicates left out"] == 1


def test_images_of_other_sizes_are_named_with_both_mends(full_sets, tmp_path):
    with pytest.raises(UsageError, match=r"resize=S \(shorter side to S, centre square\) or short_side=S"):
        build(full_sets["encoded"], tmp_path / "s.h5")
    for options, words in (
        ({"resize": 8, "short_side": 8}, "resize= and short_side= are two sizes"),
        ({"short_side": 0}, "short_side=0 is not between 1 and 8192"),
    ):
        with pytest.raises(UsageError, match=words):
            build(full_sets["encoded"], tmp_path / "s.h5", **options)


def test_a_file_that_does_not_say_how_large_its_images_are_gives_squares_only(tmp_path):
    files = [encode(image, "JPEG") for image in noise_images(4, 16, 20)]
    joined = np.frombuffer(b"".join(files), np.uint8)
    offsets = np.cumsum([0, *map(len, files)])
    full = write_format_1(tmp_path / "full.h5", joined, np.arange(4), offsets=offsets)
    with pytest.raises(UsageError, match=r"does not hold the sizes of its images \(format 1\).*pack it again"):
        build(full, tmp_path / "s.h5", size=2, short_side=8)
    with PackedFile(build(full, tmp_path / "s.h5", size=2, resize=8)) as subset:
        assert subset.shape == (8, 8, 3)


def test_sizes_that_are_none_of_a_picture_s_are_an_error_that_names_it(full_sets, tmp_path):
    path = tmp_path / "full.h5"
    fastload.convert(full_sets["encoded"], path, as_is=True)  # an index of segments would not fit either
    with h5py.File(path, "r+") as file:
        file["shapes"][:, 1] += 7
    with pytest.raises(DataError, match=r"\.jpg .*shapes.*pack it again"):
        build(path, tmp_path / "s.h5", size=30, short_side=48)


# -- verify ---------------------------------------------------------------------------------------


def changed(path: Path, change) -> Path:
    """Write a subset anew with other images, as whole as the first."""
    from fastload.packed.file import PackedWriter

    with PackedFile(path) as file:
        images = [change(row, file.read_image(row)) for row in range(len(file))]
        out = PackedWriter(
            path.with_name("changed.h5"),
            count=len(file),
            storage="ragged",
            labels=file.labels,
            ids=file.ids,
            classes=file.classes,
            source=file.source,
            selection=file.selection,
        )
    with out:
        for row, image in enumerate(images):
            out.append(row, image, shape=image.shape[:2])
    return out.path


@pytest.mark.parametrize("storage", ["encoded", "ragged"])
def test_verify_names_images_and_sizes_that_are_none_of_the_full_set_s(full_sets, tmp_path, storage):
    full = full_sets[storage]
    path = build(full, tmp_path / "s.h5", short_side=48)
    one = changed(path, lambda row, image: image ^ 255 if row == 3 else image)
    assert verify_file(one, full=full).problems[0].startswith("1 image other than in")
    other = changed(path, lambda row, image: image[:, :-1] if row == 3 else image)
    assert "no --short-side makes of those of" in verify_file(other, full=full).problems[0]
    turned = changed(path, lambda row, image: image.transpose(1, 0, 2))
    assert "no --short-side makes of those of" in verify_file(turned, full=full).problems[0]
    grey = changed(path, lambda row, image: image[:, :, :1])
    assert "images of 1 channel, where those of" in verify_file(grey, full=full).problems[0]


def test_verify_compares_untouched_images_by_their_bytes(full_sets, tmp_path):
    path = build(full_sets["ragged"], tmp_path / "s.h5")
    one = changed(path, lambda row, image: image ^ np.uint8(row == 3))  # a level in every pixel
    assert verify_file(one, full=full_sets["ragged"]).problems[0].startswith("1 image other than in")


def test_a_ragged_subset_of_a_raw_set_of_one_size(tmp_path):
    full = write_raw(tmp_path / "full.h5", noise_images(20, 16, 24), np.arange(20) % 2)
    with PackedFile(build(full, tmp_path / "s.h5", size=5, short_side=8)) as subset:
        assert subset.shapes.tolist() == [[8, 12]] * 5
    assert verify_file(tmp_path / "s.h5").ok
