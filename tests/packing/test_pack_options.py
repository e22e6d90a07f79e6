"""What a picture becomes when packed: channels, limits, names, and what is left out, which is always said."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from samples import class_files, encode, noise, put, tar
from strange_files import cut_jpeg, picture, short_png

import fastload
from fastload.command.cli import main
from fastload.errors import DataError, UsageError
from fastload.packed.file import PackedFile
from fastload.packing.decoding import BrokenImage, decode
from fastload.packing.fit import Fit
from fastload.packing.pack import LeftOutWarning
from fastload.subset.build import build_subset

PIXELS = picture()
OPAQUE = np.dstack([PIXELS, np.full(PIXELS.shape[:2], 255, np.uint8)])
CLEAR = np.dstack([PIXELS, np.tile(np.arange(32, dtype=np.uint8), (24, 1))])


def pack(source: object, out: Path, **options):
    """Pack; in a folder every folder is a class, though there may be one alone."""
    one = {"class_level": 1} if isinstance(source, Path) and source.is_dir() else {}
    return fastload.pack(source, out, **one, **options)  # type: ignore[arg-type]


def images_of(path: Path) -> np.ndarray:
    with PackedFile(path) as file:
        return np.stack([file.read_image(row) for row in range(len(file))])


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.h5"


# -- channels -------------------------------------------------------------------------------------


def sources(tmp_path: Path, arrays: np.ndarray) -> list[tuple[object, dict]]:
    """The same arrays [N, H, W, C] as an .npz, an HDF5 file and a dataset, channels last and first."""
    first = arrays.transpose(0, 3, 1, 2)
    labels = np.zeros(len(arrays), np.int64)
    np.savez(tmp_path / "last.npz", images=arrays, labels=labels)
    np.savez(tmp_path / "first.npz", images=first, labels=labels)
    with h5py.File(tmp_path / "own.h5", "w") as file:
        file["x"], file["y"] = first, labels
    return [
        (tmp_path / "last.npz", {}),
        (tmp_path / "first.npz", {}),
        (tmp_path / "own.h5", {"images": "x", "labels": "y"}),
        ([(array, 0) for array in arrays], {}),
        ([(torch.from_numpy(array.copy()), 0) for array in first], {}),
    ]


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 13, 32])
def test_arrays_keep_their_channels_where_asked(tmp_path: Path, out: Path, channels: int) -> None:
    arrays = np.random.default_rng(0).integers(0, 256, (3, 40, 36, channels), dtype=np.uint8)
    for source, options in sources(tmp_path, arrays):
        for asked in (channels, "as-is"):
            assert pack(source, out, channels=asked, **options).shape == (40, 36, channels)
            assert np.array_equal(images_of(out), arrays)
    with PackedFile(out) as file:
        assert file.source["channels"] == "as-is"


@pytest.mark.parametrize("channels", [5, 13, 32])
def test_more_than_four_channels_are_refused_by_name_unless_asked_for(tmp_path: Path, out: Path, channels: int) -> None:
    for source, options in sources(tmp_path, np.zeros((3, 40, 36, channels), np.uint8)):
        with pytest.raises(DataError, match=rf"{channels} are its channels, .*channels[ =]{channels}"):
            pack(source, out, **options)
        with pytest.raises(DataError, match=r"has shape|has an image that is|of which nothing makes"):
            pack(source, out, channels=channels - 1, **options)


def test_channels_that_are_left_out_are_said(tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for channels, words in (
        (4, "channel 4 of 4 of 3 images (channels=4 keeps it)"),
        (2, "channel 2 of 2 of 3 images"),
    ):
        arrays = rng.integers(0, 255, (3, 8, 8, channels), dtype=np.uint8)
        for source, options in sources(tmp_path, arrays):
            with pytest.warns(LeftOutWarning, match="left out channel"):
                summary = pack(source, out, **options)
            assert summary.left_out[0].startswith(words) and f"left out {words}" in str(summary)
            assert summary.shape == (8, 8, 3) and np.array_equal(images_of(out)[..., 0], arrays[..., 0])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not pack(source, out, channels=channels, **options).left_out
            assert main(["pack", str(tmp_path / "last.npz"), str(out)]) == 0
            assert words.replace("channels=4", "--channels 4") in capsys.readouterr().out
            assert main(["pack", str(tmp_path / "last.npz"), str(out), "-q"]) == 0
            assert capsys.readouterr() == (
                "",
                f"note: left out channel {channels} of {channels} of 3 images (--channels {channels} keeps it)\n",
            )


@pytest.mark.filterwarnings("ignore::fastload.packing.pack.LeftOutWarning")
def test_alpha_is_said_to_be_left_out_only_where_it_shows_something(tmp_path: Path, out: Path) -> None:
    transparent = Image.fromarray(PIXELS).convert("P")
    for encoded in (False, True):
        for number, (data, lost) in enumerate(
            (
                (encode(OPAQUE), False),
                (encode(CLEAR), True),
                (encode(transparent, transparency=int(np.asarray(transparent)[0, 0])), True),
                (encode(Image.fromarray(CLEAR).convert("LA")), True),
            )
        ):
            source = put(tmp_path / f"{number}", {"c/0.png": data})
            assert [text.split(" of ")[0] for text in pack(source, out, encoded=encoded).left_out] == ["alpha"] * lost


def test_files_become_grey_or_keep_alpha_where_asked(tmp_path: Path, out: Path) -> None:
    source = put(tmp_path / "s", {"c/0.png": encode(CLEAR), "c/1.png": encode(OPAQUE)})
    assert pack(source, out, channels=4).shape == (24, 32, 4)
    assert np.array_equal(images_of(out), [CLEAR, OPAQUE])
    assert pack(source, out, channels="as-is").shape == (24, 32, 4)
    with pytest.warns(LeftOutWarning):
        assert pack(source, out, channels=1).shape == (24, 32, 1)
    grey = np.asarray(Image.fromarray(PIXELS).convert("L"))
    assert np.array_equal(images_of(out)[0, :, :, 0], grey)
    source = put(tmp_path / "grey", {"c/0.png": encode(grey), "c/1.png": encode(grey)})
    assert pack(source, out, channels="as-is").shape == (24, 32, 1)
    with pytest.raises(DataError, match="an image in L, of which nothing makes 7 channels"):
        pack(source, out, channels=7)
    source = put(tmp_path / "mixed", {"c/0.png": encode(grey), "c/1.png": encode(PIXELS)})
    with pytest.raises(DataError, match=r"'c/1.png' has 3 channels, but 'c/0.png' before it has 1; make them alike"):
        pack(source, out, channels="as-is")
    assert len(pack(source, out, channels="as-is", skip_broken=True).skipped) == 1


def test_channels_are_resized_each_by_itself(out: Path) -> None:
    planes = np.random.default_rng(1).integers(0, 256, (9, 12, 5), dtype=np.uint8)
    pack([(planes, 0)], out, channels=5, resize=6)
    alone = [np.asarray(decode(plane, Fit("resize", 6)))[:, :, 0] for plane in planes.transpose(2, 0, 1)]
    assert np.array_equal(images_of(out)[0], np.stack(alone, axis=2))


@pytest.mark.parametrize("channels", [0, 33, "rgb", 1.5, True])
def test_other_channels_are_usage_errors(out: Path, channels: object) -> None:
    with pytest.raises(UsageError, match="channels"):
        pack([(PIXELS, 0)], out, channels=channels)  # type: ignore[arg-type]


def test_encoded_files_keep_what_they_have(tmp_path: Path, out: Path) -> None:
    with pytest.raises(UsageError, match="so channels= cannot go with it"):
        pack(put(tmp_path / "s", {"c/0.png": encode(PIXELS)}), out, channels=1, encoded=True)


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.uint16, bool])
def test_arrays_of_other_types_are_refused_saying_what_was_found(tmp_path: Path, out: Path, dtype) -> None:
    arrays = np.zeros((2, 8, 8, 3), dtype)
    for source, options in sources(tmp_path, arrays)[:4]:
        with pytest.raises(DataError, match=np.dtype(dtype).name):
            pack(source, out, **options)


# -- other things that items hold -----------------------------------------------------------------


def test_other_keys_of_items_are_said_to_be_left_out(out: Path) -> None:
    items = [{"image": PIXELS, "label": 0, "caption": "a"}, {"image": PIXELS, "label": 1, "mask": PIXELS, "\x1b[1m": 0}]
    with pytest.warns(LeftOutWarning, match=r"dataset: left out 'caption', 'mask', .* of the items"):
        summary = pack(items, out)
    assert "left out 'caption', 'mask'" in str(summary) and "\x1b" not in str(summary)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pack([{"image": PIXELS, "label": 0}], out).left_out == []


# -- size -----------------------------------------------------------------------------------------


def large(height: int, width: int) -> bytes:
    return encode(picture(height, width), "JPEG", quality=95)


def test_images_beyond_the_limit_are_refused_and_taken_with_max_pixels(tmp_path: Path, out: Path) -> None:
    source = put(tmp_path / "s", {"c/0.jpg": large(120, 160), "c/1.png": encode(picture(120, 160))})
    for name in ("0.jpg", "1.png"):
        with pytest.raises(DataError, match=rf"'c/{name}' .*19,200 pixels.*bomb.*max_pixels=19200, or remove"):
            pack(put(tmp_path / name, {f"c/{name}": (source / "c" / name).read_bytes()}), out, max_pixels=19199)
    assert pack(source, out, max_pixels=19200).images == 2
    assert pack(source, out, max_pixels=19200, encoded=True).images == 2
    build_subset(out, tmp_path / "subset.h5", strategy="random", size=1)  # the file says how large its images are


def test_a_large_jpeg_is_resized_at_a_reduced_scale_and_looks_the_same(tmp_path: Path, out: Path) -> None:
    source = put(tmp_path / "s", {"c/0.jpg": large(400, 600)})
    assert pack(source, tmp_path / "exact.h5", resize=16).images == 1
    with pytest.raises(DataError, match="240,000 pixels, more than 59,999"):
        pack(source, out, resize=16, max_pixels=59_999)
    assert pack(source, out, resize=16, max_pixels=60_000).images == 1
    exact, reduced = images_of(tmp_path / "exact.h5").astype(int), images_of(out).astype(int)
    assert 0 < np.abs(exact - reduced).mean() < 1


def test_pillows_settings_are_as_they_were_afterwards(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
    before = Image.MAX_IMAGE_PIXELS
    source = put(tmp_path / "s", {"c/0.png": encode(PIXELS), "c/1.jpg": encode(PIXELS, "JPEG")[:-200]})
    with pytest.raises(DataError, match=r"'c/1.jpg' cannot be decoded .*truncated"):
        pack(source, out)
    assert before == Image.MAX_IMAGE_PIXELS and __import__("PIL.ImageFile").ImageFile.LOAD_TRUNCATED_IMAGES is True


# -- names and sizes in the file ------------------------------------------------------------------


def test_samples_keep_their_names_in_every_order(tmp_path: Path, out: Path) -> None:
    files = {**class_files(3, 5), "c0/broken.png": b""}
    names = sorted(name for name in files if name.endswith(".png") and "._" not in name and "broken" not in name)
    folder = put(tmp_path / "s", files)
    for source in (folder, tar(tmp_path / "t.tar", {f"data/{name}": data for name, data in files.items()})):
        pack(source, out, order="shuffled", skip_broken=True)
        pack(out, tmp_path / "again.h5")
        for path in (out, tmp_path / "again.h5"):
            with PackedFile(path) as file:
                rows = np.argsort(file.ids)
                assert [file.name_of(row) for row in rows] == names
    pack([(PIXELS, 0)], out)
    with PackedFile(out) as file:
        assert file.names is None


def test_encoded_files_say_how_large_their_upright_images_are(tmp_path: Path, out: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {"c/0.jpg": encode(PIXELS, "JPEG", exif=exif), "c/1.png": encode(PIXELS[:9, :7]), "c/2.png": b""}
    for order in ("source", "shuffled"):
        pack(put(tmp_path / "s", files), out, encoded=True, order=order, skip_broken=True)
        with PackedFile(out) as file:
            assert file.shapes[np.argsort(file.ids)].tolist() == [[32, 24], [9, 7]]
    with pytest.raises(UsageError, match=r"\(c/0.jpg is 32×24, c/1.png is 9×7\)|\(c/1.png is 9×7, c/0.jpg is 32×24\)"):
        build_subset(out, tmp_path / "subset.h5", strategy="random", size=1)


# -- broken samples -------------------------------------------------------------------------------


def test_every_kind_of_broken_sample_is_skipped_and_listed_in_one_run(tmp_path: Path, out: Path) -> None:
    sound = {f"a/{i}.png": encode(picture(seed=i)) for i in range(3)}
    broken = {
        "b/cut.jpg": cut_jpeg(PIXELS, 0.5, quality=95),
        "b/short.png": short_png(PIXELS, 12),
        "b/empty.jpg": b"",
        "b/size.png": encode(noise(8, 8)),
        "b/text.png": b"<html>",
        "b/deep.tif": encode(Image.new("F", (32, 24)), "TIFF"),
        "b/heic.jpg": b"\0\0\0\x20ftypheic" + bytes(40),
        "b/unreadable.png": encode(PIXELS),
    }
    folder = put(tmp_path / "s", {**sound, **broken})
    if os.geteuid():
        (folder / "b/unreadable.png").chmod(0)
    else:
        del broken["b/unreadable.png"]
        (folder / "b/unreadable.png").unlink()
    (folder / "b/lost.png").symlink_to("nowhere.png")
    summary = pack(folder, out, skip_broken=True)
    assert [text.split(": ")[0] for text in summary.skipped] == sorted([*broken, "b/lost.png"])
    assert summary.images == 3 and "b/lost.png: is a link that cannot be followed" in str(summary)
    assert np.array_equal(images_of(out), [picture(seed=i) for i in range(3)])


def test_items_of_a_dataset_that_cannot_be_had_are_skipped_and_listed(out: Path) -> None:
    class Items(list):
        def __getitem__(self, index):
            if index == 7:
                raise OSError("gone")
            return super().__getitem__(index)

    items = Items(
        [
            {"image": None, "label": 0},
            {"image": PIXELS, "label": 1},
            {"label": 0},
            {"image": PIXELS, "label": None},
            {"image": PIXELS / 255, "label": 0},
            {"image": encode(PIXELS)[:-50], "label": 0},
            3,
            None,
            {"image": PIXELS[:9], "label": 0},
            {"image": PIXELS, "label": [1, 2]},
            {"image": {"bytes": encode(PIXELS)}, "label": 2},
        ]
    )
    summary = pack(items, out, skip_broken=True)
    assert [text.split(":")[0] for text in summary.skipped] == [f"item {i}" for i in (0, 2, 3, 4, 5, 6, 7, 8, 9)]
    with PackedFile(out) as file:
        assert file.ids.tolist() == [1, 10] and file.labels.tolist() == [1, 2]
    with pytest.raises(
        DataError, match=r"'item 0' has no image .it is None.; mend or remove it, or pack with skip_broken=True"
    ):
        pack(items, out)


def test_where_all_are_broken_the_first_reason_is_told(tmp_path: Path, out: Path) -> None:
    for encoded in (False, True):
        with pytest.raises(
            DataError, match=r"not one of its 2 images can be decoded and stored; the first, 'c/0.png', is empty"
        ):
            pack(put(tmp_path / "s", {"c/0.png": b"", "c/1.png": b"x"}), out, skip_broken=True, encoded=encoded)
    assert not out.exists()


@pytest.mark.parametrize("rows", [0, 1, 12, 23])
@pytest.mark.parametrize("kind", ["plain", "interlaced"])
def test_a_png_of_which_rows_are_missing_is_broken(rows: int, kind: str) -> None:
    for pixels in (PIXELS, PIXELS[:, :, 0], np.dstack([PIXELS, PIXELS[:, :, :1]])):
        data = short_png(np.ascontiguousarray(pixels), rows, interlaced=kind == "interlaced")
        with pytest.raises(BrokenImage, match=r"bytes of pixels are there|cannot be decoded"):
            decode(data)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "I;16"])
def test_a_whole_png_of_any_mode_is_not_broken(mode: str) -> None:
    for height, width in ((24, 32), (1, 1), (3, 5)):
        image = Image.fromarray(PIXELS[:height, :width])
        image = (
            Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16)) if mode == "I;16" else image.convert(mode)
        )
        assert decode(encode(image)).shape == (height, width, 3)
    assert decode(encode(Image.fromarray(PIXELS).quantize(4), bits=2)).shape == (24, 32, 3)


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"restart_marker_rows": 1}])
def test_a_jpeg_whose_pixels_end_early_is_broken_and_a_grey_one_is_not(options: dict) -> None:
    for share in (0.1, 0.3, 0.5, 0.8):
        with pytest.raises(BrokenImage, match=r"end early|cannot be decoded"):
            decode(cut_jpeg(picture(96, 128), share, quality=90, **options))
    for shade in (127, 128):
        assert (decode(encode(Image.new("RGB", (40, 40), (shade,) * 3), "JPEG", **options)) == shade).all()
    for mode in ("L", "CMYK"):
        assert decode(encode(Image.new(mode, (40, 40), 128 if mode == "L" else (127,) * 4), "JPEG")).shape == (
            40,
            40,
            3,
        )


def test_the_codecs_own_reason_is_told() -> None:
    text = encode(PIXELS, pnginfo=None)
    start = text.index(b"IDAT") - 4
    bad = b"\0\0\0\x03tEXta\0b" + b"\0\0\0\0"
    for data, words in (
        (text[:start] + bad + text[start:], r"PNG: broken PNG file .*tEXt"),
        (encode(PIXELS, "WEBP")[:60], "WEBP: |cannot be decoded"),
        (b"\0\0\0\x20ftypheic" + bytes(40), "'heic'"),
        (b"  <!DOCTYPE html>", "failed download"),
        (b"GIF89a", "GIF: |cannot be decoded"),
        (b"what is this", "not an image of a known format"),
    ):
        with pytest.raises(BrokenImage, match=words):
            decode(data)


# -- classes of another file ----------------------------------------------------------------------


def test_labels_are_numbered_by_another_files_classes(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = put(tmp_path / "train", {f"{name}/0.png": encode(PIXELS) for name in ("ant", "bee", "cat")})
    test = put(tmp_path / "test", {f"{name}/0.png": encode(PIXELS) for name in ("bee", "cat")})
    pack(train, tmp_path / "train.h5")
    summary = pack(test, out, classes_from=tmp_path / "train.h5")
    assert summary.counts == {"ant": 0, "bee": 1, "cat": 1}
    with PackedFile(out) as file:
        assert file.labels.tolist() == [1, 2] and file.classes == ["ant", "bee", "cat"]

    class Named(list):
        classes = ("cat", "bee")

    pack(Named([(PIXELS, 0), (PIXELS, 1)]), out, classes_from=tmp_path / "train.h5")
    with PackedFile(out) as file:
        assert file.labels.tolist() == [2, 1]
    assert main(["pack", str(test), str(out), "--classes-from", str(tmp_path / "train.h5"), "-q"]) == 0
    assert capsys.readouterr() == ("", "")
    put(test, {"dog/0.png": encode(PIXELS)})
    with pytest.raises(DataError, match="'dog'"):
        pack(test, out, classes_from=tmp_path / "train.h5")
    with pytest.raises(UsageError, match="does not name its classes, so classes_from= cannot number them"):
        pack([(PIXELS, 0)], out, classes_from=tmp_path / "train.h5")
    pack([(PIXELS, 0)], tmp_path / "nameless.h5")
    with pytest.raises(UsageError, match=r'nameless.h5": has no class names'):
        pack(test, out, classes_from=tmp_path / "nameless.h5")


def test_class_names_come_from_features_of_the_label_and_from_what_a_view_shows(out: Path) -> None:
    class Named(torch.utils.data.Dataset):
        classes = (("tench", "Tinca tinca"), "goldfish")

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int):
            return PIXELS, index % 2

    class Features(list):
        features = {"label": object(), "target": type("ClassLabel", (), {"names": ["x"]})()}  # noqa: RUF012

    inner = torch.utils.data.Subset(torch.utils.data.Subset(Named(), [0, 1, 2]), [1, 2])
    names = ["tench, Tinca tinca", "goldfish"]
    for dataset, classes in (
        (inner, names),
        (torch.utils.data.ConcatDataset([inner, Named()]), names),
        (Features([{"image": PIXELS, "label": 5, "target": 0}]), []),  # the names of what is not the label
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LeftOutWarning)
            pack(dataset, out)
        with PackedFile(out) as file:
            assert file.classes == classes


def test_a_listed_name_cannot_command_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"a\x1b[2J/\x1b]0;x\x07.png": b"", "a\x1b[2J/1.png": encode(PIXELS)}
    assert (
        main(["pack", str(put(tmp_path / "s", files)), str(tmp_path / "o.h5"), "--class-level", "1", "--skip-broken"])
        == 0
    )
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "\x07" not in printed and r"\x1b]0;x\x07.png: is empty" in printed
    assert all(len(line) <= 300 for line in printed.splitlines())
