"""Whole pictures of any aspect, ragged or as new JPEG files, from every source; and packed files made of others."""

from __future__ import annotations

import io
import tarfile
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from samples import encode, noise, put

import fastload
from fastload.command.cli import main
from fastload.command.inspect import inspect_file
from fastload.command.verify import verify_file
from fastload.errors import DataError, UsageError
from fastload.packed.file import PackedFile, checksum, damaged_rows, fingerprint
from fastload.packing.fit import Fit
from fastload.packing.pack import LeftOutWarning

SIDES = st.tuples(st.integers(1, 3000), st.integers(1, 3000))


@pytest.fixture(scope="module")
def photographs(imagenet_tar: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 real photographs of many sizes, in two classes, in a folder."""
    with tarfile.open(imagenet_tar) as archive:
        members = [member for member in archive if member.isfile()][::10][:24]
        files = {f"{'ab'[i % 2]}/{i:02}.jpg": archive.extractfile(m).read() for i, m in enumerate(members)}  # type: ignore[union-attr]
    return put(tmp_path_factory.mktemp("photographs"), files)


@pytest.fixture(scope="module")
def ragged(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ragged") / "full.h5"
    fastload.pack(photographs, path, short_side=96)
    return path


@pytest.fixture(scope="module")
def encoded(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoded") / "full.h5"
    fastload.pack(photographs, path, jpeg=True, max_side=200)
    return path


def opened(folder: Path) -> list[Image.Image]:
    """The pictures of a folder in the order of their names, upright, RGB."""
    return [ImageOps.exif_transpose(Image.open(path)).convert("RGB") for path in sorted(folder.rglob("*.jpg"))]


def images_of(path: Path) -> list[np.ndarray]:
    """All images of a file in the order of ids, which must be whole."""
    with PackedFile(path) as file:
        assert not damaged_rows(file) and fingerprint(file) == file.fingerprint and checksum(file) == file.checksum
        rows = np.argsort(file.ids).tolist()
        if file.storage == "encoded":
            return [np.asarray(Image.open(io.BytesIO(file.read(row)))) for row in rows]
        return [file.read_image(row) for row in rows]


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return len(one) == len(other) and all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def tables(path: Path) -> tuple:
    """What is stored beside images, in the order of ids."""
    with PackedFile(path) as file:
        rows = np.argsort(file.ids)
        names = None if file.names is None else [file.names[row] for row in rows.tolist()]
        labels = None if file.labels is None else file.labels[rows].tolist()
        return file.ids[rows].tolist(), labels, file.classes, names


# -- sizes ----------------------------------------------------------------------------------------


@given(sides=SIDES, size=st.integers(1, 600))
def test_the_shorter_side_becomes_s_and_the_aspect_stays_within_rounding(sides, size) -> None:
    found = Fit("short_side", size).output(np.array(sides)).tolist()
    exact = [Fraction(side * size, min(sides)) for side in sides]
    assert min(found) == size and all(abs(a - b) <= Fraction(1, 2) for a, b in zip(found, exact, strict=True))


@given(sides=SIDES, size=st.integers(1, 600))
def test_the_longer_side_becomes_m_where_it_was_longer_and_nothing_grows(sides, size) -> None:
    found = Fit("max_side", size).output(np.array(sides)).tolist()
    if max(sides) <= size:
        assert found == list(sides)
        return
    exact = [max(Fraction(1), Fraction(side * size, max(sides))) for side in sides]
    assert max(found) == size and all(abs(a - b) <= Fraction(1, 2) for a, b in zip(found, exact, strict=True))


@given(sides=st.lists(SIDES, min_size=1, max_size=5), fit=st.sampled_from(["resize", "short_side", "max_side"]))
def test_sizes_of_a_set_are_those_of_its_pictures_and_a_second_time_changes_nothing(sides, fit) -> None:
    rule = Fit(fit, 100)
    found = rule.output(np.array(sides))
    assert found.tolist() == [rule.output(np.array(one)).tolist() for one in sides]
    assert np.array_equal(rule.output(found), found)


# -- ragged files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["short_side", "max_side"])
def test_photographs_are_whole_and_as_pillow_resizes_them(photographs: Path, tmp_path: Path, option: str) -> None:
    summary = fastload.pack(photographs, tmp_path / "o.h5", **{option: 160})
    assert (summary.storage, summary.shape, summary.images) == ("ragged", None, 24)
    found = images_of(tmp_path / "o.h5")
    for image, picture in zip(found, opened(photographs), strict=True):
        size = (image.shape[1], image.shape[0])
        assert min(size) == 160 if option == "short_side" else max(size) == min(160, max(picture.size))
        assert np.array_equal(image, np.asarray(picture.resize(size, Image.Resampling.BILINEAR)))
    assert len({image.shape for image in found}) > 5
    with PackedFile(tmp_path / "o.h5") as file:
        assert file.shapes.tolist() == [list(image.shape[:2]) for image in found]
        assert file.source[option] == 160


def test_small_pictures_are_enlarged_to_the_short_side_and_left_by_the_longer(tmp_path: Path) -> None:
    source = put(tmp_path / "s", {"a/0.png": encode(noise(10, 30)), "b/0.png": encode(noise(40, 20))})
    fastload.pack(source, tmp_path / "short.h5", short_side=40)
    assert [image.shape for image in images_of(tmp_path / "short.h5")] == [(40, 120, 3), (80, 40, 3)]
    fastload.pack(source, tmp_path / "max.h5", max_side=40)
    assert [image.shape for image in images_of(tmp_path / "max.h5")] == [(10, 30, 3), (40, 20, 3)]


def test_the_file_does_not_depend_on_workers_and_a_shuffled_one_holds_the_same(photographs: Path, tmp_path: Path):
    for options in ({"short_side": 64}, {"jpeg": True, "max_side": 64}):
        for name, more in (("1", {"workers": 1}), ("5", {"workers": 5}), ("s", {"order": "shuffled", "seed": 3})):
            fastload.pack(photographs, tmp_path / name, **options, **more)
        assert (tmp_path / "1").read_bytes() == (tmp_path / "5").read_bytes()
        assert same(images_of(tmp_path / "s"), images_of(tmp_path / "1")) and tables(tmp_path / "s") == tables(
            tmp_path / "1"
        )
        with PackedFile(tmp_path / "s") as file:
            assert file.ids.tolist() != sorted(file.ids.tolist())


def test_broken_pictures_are_left_out_and_named(photographs: Path, tmp_path: Path) -> None:
    files = {str(path.relative_to(photographs)): path.read_bytes() for path in photographs.rglob("*.jpg")}
    source = put(tmp_path / "s", {**files, "a/broken.jpg": b"", "b/00.png": b"x"})
    for options in ({"short_side": 48}, {"jpeg": True, "short_side": 48}):
        with pytest.raises(DataError, match=r"'a/broken.jpg' is empty"):
            fastload.pack(source, tmp_path / "o.h5", **options)
        summary = fastload.pack(source, tmp_path / "o.h5", skip_broken=True, **options)
        fastload.pack(photographs, tmp_path / "sound.h5", **options)
        assert len(summary.skipped) == 2 and same(images_of(tmp_path / "o.h5"), images_of(tmp_path / "sound.h5"))


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_arrays_of_any_channels_are_ragged_too(tmp_path: Path, channels: int) -> None:
    arrays = [noise(12, 30, channels), noise(25, 10, channels)]
    fastload.pack([(array, i) for i, array in enumerate(arrays)], tmp_path / "o.h5", max_side=30, channels=channels)
    assert same(images_of(tmp_path / "o.h5"), arrays)
    with PackedFile(tmp_path / "o.h5") as file:
        assert file.channels == channels


# -- new JPEG files -------------------------------------------------------------------------------


def reference(picture: Image.Image, size: tuple[int, int], quality: int) -> np.ndarray:
    """A picture as Pillow shrinks it, writes it as JPEG, 4:2:0, and reads it again."""
    resized = picture.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(Image.open(io.BytesIO(encode(resized, "JPEG", quality=quality, subsampling=2))))


def test_new_files_are_baseline_jpeg_of_the_size_and_quality_asked_for(photographs: Path, tmp_path: Path) -> None:
    summary = fastload.pack(photographs, tmp_path / "o.h5", jpeg=True, max_side=200, quality=80)
    assert summary.storage == "encoded" and not summary.left_out
    fastload.pack(photographs, tmp_path / "90.h5", jpeg=True, max_side=200)
    fastload.pack(photographs, tmp_path / "also90.h5", jpeg=True, max_side=200, quality=90)
    assert (tmp_path / "90.h5").read_bytes() == (tmp_path / "also90.h5").read_bytes()
    for image, picture in zip(images_of(tmp_path / "o.h5"), opened(photographs), strict=True):
        assert max(image.shape[:2]) == min(200, max(picture.size))
        assert np.array_equal(image, reference(picture, (image.shape[1], image.shape[0]), 80))
    with PackedFile(tmp_path / "o.h5") as file, PackedFile(tmp_path / "90.h5") as better:
        assert file.nbytes < better.nbytes
        for row in range(len(file)):
            image = Image.open(io.BytesIO(file.read(row)))
            assert image.format == "JPEG" and "progressive" not in image.info
            assert [layer[1:3] for layer in image.layer] == [(2, 2), (1, 1), (1, 1)]
            assert image.size == tuple(file.shapes[row][::-1].tolist())


def test_every_source_gives_the_same_new_files(tmp_path: Path) -> None:
    arrays = np.stack([noise(40, 60), noise(40, 60)])
    labels = np.array([0, 1])
    np.savez(tmp_path / "s.npz", images=arrays, labels=labels)
    folder = put(tmp_path / "s", {f"{'ab'[i]}/{i}.png": encode(arrays[i]) for i in range(2)})
    fastload.pack(folder, tmp_path / "raw.h5")
    fastload.pack(folder, tmp_path / "ragged.h5", max_side=60)
    fastload.pack(folder, tmp_path / "encoded.h5", encoded=True)
    sources = [folder, tmp_path / "s.npz", [(arrays[i], i) for i in range(2)]]
    sources += [tmp_path / name for name in ("raw.h5", "ragged.h5", "encoded.h5")]
    first = None
    for source in sources:
        fastload.pack(source, tmp_path / "o.h5", jpeg=True, max_side=30)
        found = images_of(tmp_path / "o.h5")
        first = found if first is None else first
        assert same(found, first) and found[0].shape == (20, 30, 3)


def test_grey_pictures_stay_grey_and_alpha_is_said_to_be_left_out(tmp_path: Path) -> None:
    clear = np.dstack([noise(), np.arange(64, dtype=np.uint8).reshape(8, 8)])
    source = put(tmp_path / "s", {"a/0.png": encode(noise(8, 8, None)), "b/0.png": encode(clear)})
    with pytest.warns(LeftOutWarning, match="left out alpha of 1 image"):
        fastload.pack(source, tmp_path / "o.h5", jpeg=True)
    assert [image.shape for image in images_of(tmp_path / "o.h5")] == [(8, 8), (8, 8, 3)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LeftOutWarning)
        fastload.pack(source, tmp_path / "o.h5", jpeg=True, channels=3)
        assert [image.shape for image in images_of(tmp_path / "o.h5")] == [(8, 8, 3)] * 2
        fastload.pack([(np.dstack([noise()[..., :2]]), 0)], tmp_path / "o.h5", jpeg=True)
    assert images_of(tmp_path / "o.h5")[0].shape == (8, 8)


def test_new_files_of_squares(photographs: Path, tmp_path: Path) -> None:
    fastload.pack(photographs, tmp_path / "o.h5", jpeg=True, resize=32)
    assert {image.shape for image in images_of(tmp_path / "o.h5")} == {(32, 32, 3)}


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"short_side": 8, "max_side": 8}, "short_side= and max_side= are two sizes for one picture; give one"),
        ({"resize": 8, "short_side": 8}, "resize= and short_side= are two sizes"),
        ({"encoded": True, "short_side": 8}, "encoded=True keeps the files as they are, so short_side= cannot go"),
        ({"encoded": True, "max_side": 8}, "so max_side= cannot go with it; .* new files with jpeg=True"),
        ({"encoded": True, "jpeg": True}, "encoded=True keeps the files as they are and jpeg=True makes new ones"),
        ({"short_side": 0}, "short_side=0 is not between 1 and 8192"),
        ({"max_side": 65_501}, "max_side=65501 is not between 1 and 65500"),
        ({"max_side": 8.5}, "max_side=8.5"),
        ({"jpeg": "yes"}, "jpeg='yes'"),
        ({"quality": 80}, "quality= is for the files that jpeg=True makes"),
        ({"jpeg": True, "quality": 0}, "quality=0 is not between 1 and 100"),
        ({"jpeg": True, "quality": 101}, "quality=101 is not between 1 and 100"),
        ({"jpeg": True, "channels": 4}, "channels=4: a JPEG file holds 3 channels, or 1"),
        ({"jpeg": True, "channels": "as-is"}, "channels='as-is': a JPEG file holds 3 channels, or 1"),
    ],
)
def test_options_that_do_not_go_together_are_usage_errors(tmp_path: Path, options: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        fastload.pack([(noise(), 0)], tmp_path / "o.h5", **options)
    assert list(tmp_path.iterdir()) == []


def test_splinters_are_shrunk_enlarged_or_refused_by_name(tmp_path: Path) -> None:
    def pack(shape: tuple[int, int], **options) -> tuple[int, ...]:
        fastload.pack([(np.zeros((*shape, 3), np.uint8), 0)], tmp_path / "o.h5", **options)
        return images_of(tmp_path / "o.h5")[0].shape

    assert pack((1, 400), short_side=4) == (4, 1600, 3) and pack((400, 1), max_side=8) == (8, 1, 3)
    assert pack((1, 1), max_side=8) == (1, 1, 3) and pack((1, 1), short_side=8, jpeg=True) == (8, 8, 3)
    assert pack((3, 70_000), max_side=500, jpeg=True) == (1, 500, 3)
    with pytest.raises(DataError, match=r"'item 0' is 1×20000, too narrow to bring its shorter side to 256"):
        pack((1, 20_000), short_side=256)
    with pytest.raises(DataError, match=r"'item 0' is 3×70000, and a JPEG's sides are at most 65,500; shrink it"):
        pack((3, 70_000), jpeg=True)
    with pytest.raises(DataError, match=r"'item 0' has an image that is ndarray uint8 \[0, 4, 3\]"):
        pack((0, 4), short_side=8)


def test_bombs_are_refused_in_every_storage_and_large_jpegs_shrunk_at_a_reduced_scale(tmp_path: Path) -> None:
    smooth = Image.fromarray(noise(10, 15)).resize((600, 400), Image.Resampling.BICUBIC)
    source = put(tmp_path / "s", {"c/0.jpg": encode(smooth, "JPEG", quality=95)})
    for options in ({"short_side": 16}, {"max_side": 24}, {"jpeg": True, "max_side": 24}):
        with pytest.raises(DataError, match="240,000 pixels, more than 59,999"):
            fastload.pack(source, tmp_path / "o.h5", class_level=1, max_pixels=59_999, **options)
        fastload.pack(source, tmp_path / "o.h5", class_level=1, max_pixels=60_000, **options)
        fastload.pack(source, tmp_path / "exact.h5", class_level=1, **options)
        (reduced,), (exact,) = images_of(tmp_path / "o.h5"), images_of(tmp_path / "exact.h5")
        assert reduced.shape == exact.shape == (16, 24, 3) and np.abs(reduced.astype(int) - exact).mean() < 2
    with pytest.raises(DataError, match="may be a decompression bomb"):
        fastload.pack(source, tmp_path / "o.h5", class_level=1, max_pixels=60_000, jpeg=True)


# -- packed files of packed files -----------------------------------------------------------------


def test_a_packed_file_packed_again_is_the_same_file(ragged: Path, encoded: Path, tmp_path: Path) -> None:
    fastload.convert(ragged, tmp_path / "o.h5")
    assert (tmp_path / "o.h5").read_bytes() == ragged.read_bytes()
    fastload.convert(ragged, tmp_path / "o.h5", short_side=96)  # twice is once
    assert (tmp_path / "o.h5").read_bytes() == ragged.read_bytes()
    fastload.pack(ragged, tmp_path / "o.h5")
    assert (tmp_path / "o.h5").read_bytes() == ragged.read_bytes()
    fastload.convert(encoded, tmp_path / "o.h5")
    assert (tmp_path / "o.h5").read_bytes() == encoded.read_bytes()


def test_what_is_not_named_stays_in_every_conversion(photographs: Path, ragged: Path, tmp_path: Path) -> None:
    files = {str(path.relative_to(photographs)): path.read_bytes() for path in photographs.rglob("*.jpg")}
    source = put(tmp_path / "s", {**files, "a/00.jpg": b""})  # so that an id is missing
    fastload.pack(source, tmp_path / "first.h5", short_side=96, skip_broken=True, order="shuffled", seed=5)
    expected, images = tables(tmp_path / "first.h5"), images_of(tmp_path / "first.h5")
    assert 0 not in expected[0] and expected[3] is not None
    for number, options in enumerate(
        ({}, {"short_side": 32}, {"max_side": 64}, {"resize": 24}, {"jpeg": True}, {"jpeg": True, "quality": 50})
    ):
        fastload.convert(tmp_path / "first.h5", tmp_path / f"{number}.h5", **options)
        assert tables(tmp_path / f"{number}.h5") == expected
        fastload.convert(tmp_path / f"{number}.h5", tmp_path / "o.h5", order="source")
        with PackedFile(tmp_path / "o.h5") as file, PackedFile(tmp_path / f"{number}.h5") as before:
            assert file.ids.tolist() == expected[0] != before.ids.tolist()
            assert file.storage == before.storage
            assert before.storage == ("encoded" if "jpeg" in options else "raw" if "resize" in options else "ragged")
        assert same(images_of(tmp_path / "o.h5"), images_of(tmp_path / f"{number}.h5"))
    assert same(images_of(tmp_path / "0.h5"), images)


def test_encoded_files_become_pixels_where_a_size_is_asked_for(encoded: Path, tmp_path: Path) -> None:
    fastload.convert(encoded, tmp_path / "o.h5", max_side=100)
    with PackedFile(tmp_path / "o.h5") as file:
        assert (
            file.storage == "ragged"
            and (file.shapes.max(axis=1) == 100).all()
            and (file.shapes.min(axis=1) < 100).any()
        )
    for image, whole in zip(images_of(tmp_path / "o.h5"), images_of(encoded), strict=True):
        size = (image.shape[1], image.shape[0])
        assert np.array_equal(image, np.asarray(Image.fromarray(whole).resize(size, Image.Resampling.BILINEAR)))


def test_files_that_were_kept_as_they_are_stay_so_or_become_what_pack_makes_of_them(photographs, tmp_path):
    own, again, cut = (tmp_path / name for name in ("own.h5", "again.h5", "cut.h5"))
    fastload.pack(photographs, own, encoded=True, as_is=True)
    fastload.pack(photographs, cut, encoded=True)
    fastload.convert(own, again, as_is=True)
    assert again.read_bytes() == own.read_bytes() != cut.read_bytes()
    for source in (own, cut):
        fastload.convert(source, again)
        assert again.read_bytes() == cut.read_bytes()
    assert same(images_of(own), images_of(cut))
    with PackedFile(own) as file, PackedFile(cut) as other:
        assert file.jpeg is None and other.jpeg is not None
    assert "cut" not in inspect_file(own) and 0 < inspect_file(cut)["cut"] <= 24
    with pytest.raises(UsageError, match=r"cut.h5: as_is=True keeps image files' own bytes.*leave as_is=True out"):
        fastload.convert(cut, again, as_is=True, max_side=30)


@pytest.mark.parametrize("channels", [1, 4])
def test_converted_images_keep_their_channels(tmp_path: Path, channels: int) -> None:
    arrays = [noise(20, 24, channels) for _ in range(3)]
    fastload.pack([(array, 0) for array in arrays], tmp_path / "raw.h5", channels=channels)
    fastload.convert(tmp_path / "raw.h5", tmp_path / "ragged.h5", max_side=24)
    assert same(images_of(tmp_path / "ragged.h5"), arrays)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LeftOutWarning)
        fastload.convert(tmp_path / "ragged.h5", tmp_path / "jpeg.h5", jpeg=True)
    assert images_of(tmp_path / "jpeg.h5")[0].ndim == (2 if channels == 1 else 3)


def test_a_file_is_not_made_of_itself(ragged: Path, tmp_path: Path) -> None:
    path, link = tmp_path / "full.h5", tmp_path / "link.h5"
    path.write_bytes(ragged.read_bytes())
    link.symlink_to(path)
    for make in (fastload.convert, fastload.pack):
        for source, out in ((path, path), (path, link), (str(link), path)):
            with pytest.raises(UsageError, match="is the source itself, which would be lost; give the new file"):
                make(source, out, jpeg=True)
    assert path.read_bytes() == ragged.read_bytes()


def test_what_is_no_packed_file_is_not_converted(photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "x.h5").write_bytes(b"nothing")
    for source in (tmp_path / "x.h5", tmp_path / "none.h5", photographs):
        with pytest.raises((DataError, UsageError)):
            fastload.convert(source, tmp_path / "o.h5")
    with pytest.raises(DataError, match="no such file, and no pattern is taken here; name one file"):
        fastload.convert(tmp_path / "*.h5", tmp_path / "o.h5")
    assert not (tmp_path / "o.h5").exists()


# -- on the command line --------------------------------------------------------------------------


def test_commands_pack_convert_and_choose_whole_pictures(photographs: Path, tmp_path: Path, capsys) -> None:
    def run(*words: object) -> str:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return captured.out

    full, small, files = (tmp_path / name for name in ("full.h5", "small.h5", "files.h5"))
    assert "stored   ragged" in run("pack", photographs, full, "--short-side", 64)
    assert "24 images from packed" in run("convert", full, small, "--max-side", 48)
    assert "stored   encoded" in run("convert", full, files, "--jpeg", "--quality", 70, "--order", "shuffled")
    assert "ragged, height 64 to" in run("inspect", full)
    for path in (full, small, files):
        assert verify_file(path).ok
    for source in (full, small, files):
        run(
            "build-subset",
            source,
            tmp_path / "subset.h5",
            "--strategy",
            "random",
            "--size",
            9,
            "--short-side",
            32,
            "-q",
        )
        assert "each sample is that of" in run("verify", tmp_path / "subset.h5")
    assert main(["pack", str(photographs), str(tmp_path / "o.h5"), "--short-side", "8", "--resize", "8"]) == 2
    assert "--resize and --short-side are two sizes for one picture" in capsys.readouterr().err
