"""What `pack(encoded=True)` keeps: both decoders make the same upright pixels of it, or it is refused by name."""

from __future__ import annotations

import builtins
import contextlib
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from recipes import paper_like
from samples import encode, put
from strange_files import (
    cmyk_without_marker,
    cut_jpeg,
    damaged,
    exif,
    jpeg_with,
    jpeg_xmp,
    picture,
    png_with,
    raw_profile,
    short_png,
    xmp,
)

import fastload
from fastload.command.cli import main
from fastload.errors import DataError, UsageError
from fastload.feeds.evaluation import EvaluationLoader
from fastload.packed.file import PackedFile
from fastload.packing.decoding import decode, describe_file, upright_sides
from fastload.packing.encoded_check import TOLERANCE, EncodedCheck, Kept
from fastload.packing.orientation import with_orientation

PIXELS = picture()
JPEG, PNG = encode(PIXELS, "JPEG", quality=92), encode(PIXELS, "PNG")


def pack(source: object, out: Path, **options):
    """Pack; in a folder every folder is a class, though there may be one alone."""
    one = {"class_level": 1} if isinstance(source, Path) and source.is_dir() else {}
    return fastload.pack(source, out, **one, **options)  # type: ignore[arg-type]


def exif_of(value: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = value
    return found


def reference(data: bytes) -> np.ndarray:
    """Pillow's own upright RGB."""
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def streamed(path: Path, size: tuple[int, int]) -> np.ndarray:
    """What a training's stream reads: the pixels of all rows, uncropped, as DALI decodes them."""
    loader = EvaluationLoader(path, paper_like(crop=size, standardize=None), batch_size=32)
    batches = [images.numpy().transpose(0, 2, 3, 1) for images, *_ in loader]
    return np.concatenate(batches).round().astype(np.int64)


ORIENTED = {
    **{f"JPEG, EXIF {value}": encode(PIXELS, "JPEG", exif=exif_of(value)) for value in range(1, 9)},
    **{f"PNG, eXIf {value}": encode(PIXELS, "PNG", exif=exif_of(value)) for value in range(1, 9)},
    **{f"TIFF {value}": encode(PIXELS, "TIFF", exif=exif_of(value)) for value in (1, 3, 6)},
    **{f"JPEG, XMP {value}": jpeg_with(JPEG, jpeg_xmp(value)) for value in range(1, 9)},
    **{f"PNG, raw profile {value}": raw_profile(PIXELS, value) for value in range(1, 9)},
    "JPEG, XMP element": jpeg_with(JPEG, jpeg_xmp(8, attribute=False)),
    "JPEG, EXIF 1 then 6": jpeg_with(JPEG, exif(1), exif(6)),
    "JPEG, EXIF 6 then 1": jpeg_with(JPEG, exif(6), exif(1)),
    "JPEG, EXIF 3 before XMP 6": jpeg_with(JPEG, exif(3), jpeg_xmp(6)),
    "JPEG, XMP 6 before EXIF 3": jpeg_with(JPEG, jpeg_xmp(6), exif(3)),
    "JPEG, EXIF 9": jpeg_with(JPEG, exif(9)),
    "JPEG, unreadable EXIF": jpeg_with(JPEG, b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(30)),
    "PNG, APP1 profile": raw_profile(PIXELS, 6, "APP1"),
    "PNG, eXIf 3 and raw profile 6": png_with(raw_profile(PIXELS, 6), b"eXIf", exif(3)[6:]),
    "PNG, eXIf behind the pixels": png_with(PNG, b"eXIf", exif(6)[6:], before=b"IEND"),
    "PNG, XMP": png_with(PNG, b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(6)),
}


@pytest.mark.parametrize("as_is", [False, True])
@pytest.mark.parametrize("name", ORIENTED)
def test_every_orientation_is_the_same_for_both_decoders_and_for_pillow(tmp_path: Path, name: str, as_is: bool) -> None:
    data = ORIENTED[name]
    expected = reference(data)
    source, out = put(tmp_path / "s", {"c/0": data}), tmp_path / "o.h5"
    (source / "c" / "0").rename(source / "c" / f"0.{name[:3].lower()}".replace("jpe", "jpg").replace("tif", "tiff"))
    assert np.array_equal(decode(data), expected) and upright_sides(data) == expected.shape[:2]
    summary = pack(source, out, encoded=True, as_is=as_is)
    with PackedFile(out) as file:
        kept, index = file.read(0), file.jpeg
    assert (index is not None) == (name.startswith("JPEG") and not as_is)
    if index is None:
        assert len(kept) == len(data) and summary.turned == (kept != data)
    assert np.array_equal(reference(kept), expected)
    assert np.abs(streamed(out, expected.shape[:2])[0] - expected).max() <= TOLERANCE


def test_an_orientation_is_written_anew_without_touching_a_pixel() -> None:
    for data in (
        jpeg_with(JPEG, jpeg_xmp(6), exif(2)),
        raw_profile(PIXELS, 6),
        png_with(raw_profile(PIXELS, 5), b"eXIf", exif(3)[6:]),
    ):
        for value in range(1, 9):
            found = with_orientation(data, value)
            assert found is not None and len(found) == len(data) and describe_file(found)[1] == value
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(found))), np.asarray(Image.open(io.BytesIO(data))))
    for data in (JPEG, PNG, encode(PIXELS, "BMP"), jpeg_with(JPEG, b"Exif\0\0"), b"\xff\xd8", b"\x89PNG\r\n\x1a\n"):
        assert with_orientation(data, 6) is None


REFUSED = {
    "cmyk.jpg": (cmyk_without_marker(PIXELS), r"other pixels for DALI, which may read it in training, than for Pillow"),
    "short.png": (short_png(PIXELS, 12), "only 1,164 of 2,328 bytes of pixels are there"),
    "cut.jpg": (cut_jpeg(PIXELS, 0.5, quality=95), "cannot be decoded"),
    "checksum.png": (PNG.replace(b"IDAT", b"IDAT", 1)[:-20] + b"\0" + PNG[-19:], "chunk IDAT has a wrong checksum"),
    "endless.png": (PNG[:-12], "is a PNG file that Pillow decodes but DALI, which may read it in training, does not"),
    "film.gif": (encode(PIXELS, "GIF"), "is GIF; encoded=True keeps JPEG, PNG, WEBP, BMP, TIFF, PPM files only"),
    "gif.jpg": (encode(PIXELS, "GIF"), "is GIF; encoded=True keeps"),
    "empty.png": (b"", "is empty"),
    "page.jpg": (b"<html>404</html>", "a failed download"),
    "splinter.jpg": (JPEG[:-100], "cannot be decoded"),
}


def test_what_a_decoder_refuses_or_reads_otherwise_is_named_with_its_reason(tmp_path: Path) -> None:
    out = tmp_path / "o.h5"
    for name, (data, words) in REFUSED.items():
        source = put(tmp_path / name, {"c/0.png": PNG, f"d/{name}": data})
        with pytest.raises(DataError, match=f"'d/{name}' .*{words}.*or pack with skip_broken=True$") as caught:
            pack(source, out, encoded=True)
        assert "\n" not in str(caught.value) and not out.exists()


def test_all_that_is_refused_is_skipped_and_listed_in_one_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sound = {
        f"s/{i}.{kind.lower()}": encode(picture(seed=i), kind) for i, kind in enumerate(("JPEG", "PNG", "WEBP", "BMP"))
    }
    source = put(tmp_path / "s", {**sound, **{f"d/{name}": data for name, (data, _) in REFUSED.items()}})
    command = ["pack", str(source), str(tmp_path / "o.h5"), "--class-level", "1", "--encoded", "--as-is"]
    assert main([*command, "--skip-broken"]) == 0
    printed = capfd.readouterr()
    assert "skipped  10 broken images" in printed.out and printed.err == ""  # nor what libraries print by themselves
    for name in REFUSED:
        assert f"d/{name}: " in printed.out
    with PackedFile(tmp_path / "o.h5") as file:
        assert [file.read(row) for row in range(len(file))] == [sound[name] for name in sorted(sound)]


def in_modes(kind: str) -> dict[str, bytes]:
    """A picture in every mode that Pillow writes in this format, by mode."""
    deep = np.asarray(Image.fromarray(PIXELS).convert("L")).astype(np.uint16) * 257
    found = {}
    for mode in ("RGB", "L", "1", "P", "RGBA", "I;16", "CMYK"):
        image = Image.fromarray(deep) if mode == "I;16" else Image.fromarray(PIXELS).convert(mode)
        if mode == "RGBA":
            image.putalpha(image.convert("L"))
        with contextlib.suppress(OSError):
            found[mode] = encode(image, kind)
    return found


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM"])
def test_files_of_every_format_and_mode_come_out_alike_or_are_refused(kind: str) -> None:
    files = in_modes(kind)
    with EncodedCheck(as_is=True) as check, EncodedCheck() as cutting:
        both = check(list(files.values())), cutting(list(files.values()))
        for (mode, data), found, cut in zip(files.items(), *both, strict=True):
            assert type(found) is type(cut)
            if isinstance(cut, Kept) and isinstance(found, Kept):
                assert (cut.segments is not None) == (kind == "JPEG" and mode != "CMYK"), mode
                assert cut[1:4] == found[1:4] and np.array_equal(decode(cut.data), decode(data))
            assert isinstance(found, Kept) or (kind in ("TIFF", "PPM") and mode not in ("RGB", "L")), (mode, found)
            if isinstance(found, Kept):
                alpha = "alpha" if mode == "RGBA" and kind in ("PNG", "WEBP", "TIFF") else ""
                assert (found.data, found.sides, found.left_out) == (data, (24, 32), alpha), mode


CHECKED_THRICE = """
import sys
from pathlib import Path
from fastload.packing.encoded_check import EncodedCheck, Kept
files = [path.read_bytes() for path in sorted(Path(sys.argv[1]).iterdir())]
with EncodedCheck() as check:
    print([sum(isinstance(found, Kept) for found in check(files)) for _ in range(3)])
"""


def test_files_that_dali_cannot_read_among_others_do_not_end_the_process(tmp_path: Path) -> None:
    sound = [encode(picture(120 + i, 90), kind) for i in range(8) for kind in ("JPEG", "PNG", "WEBP", "TIFF")]
    refused = [encode(Image.fromarray(PIXELS).convert("1"), "TIFF")] * 8
    refused += [encode(picture(24, 32), "GIF")] * 4
    for place, data in enumerate([*refused, *sound]):
        (tmp_path / f"{place * 7 % 44:02}").write_bytes(data)
    command = [sys.executable, "-c", CHECKED_THRICE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, str([len(sound)] * 3))


@pytest.mark.parametrize("as_is", [False, True])
def test_photographs_that_were_packed_are_kept_byte_by_byte(imagenet_encoded: Path, as_is: bool) -> None:
    with PackedFile(imagenet_encoded) as file, EncodedCheck(as_is=as_is) as check:
        data = [file.read(row) for row in range(0, len(file), 10)]
        assert [kept.data for kept in check(data) if isinstance(kept, Kept) and not kept.turned] == data


def test_many_threads_give_what_one_file_alone_gives() -> None:
    from concurrent.futures import ThreadPoolExecutor

    files = [data for data, _ in REFUSED.values()] + [encode(picture(16 + i, 20), "PNG") for i in range(0, 40, 4)]
    with EncodedCheck() as check:
        alone = [next(check([data])) for data in files]
        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(lambda _: list(check(files)), range(8)):
                assert [str(one) for one in found] == [str(one) for one in alone]


def test_without_dali_it_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *arguments, **options):
        if name.startswith("nvidia.dali"):
            raise ImportError("No module named 'nvidia.dali'")
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    source = put(tmp_path / "s", {"c/0.png": PNG})
    for option in ("encoded", "jpeg"):
        with pytest.raises(UsageError, match=rf"{option}=True.*, which checks .* needs DALI.*pip install"):
            pack(source, tmp_path / "o.h5", **{option: True})
    assert pack(source, tmp_path / "o.h5").images == 1  # pixels need none


def test_whatever_is_kept_of_randomly_damaged_files_is_read_alike(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    sound = [
        JPEG,
        PNG,
        encode(PIXELS, "JPEG", progressive=True),
        encode(PIXELS, "JPEG", subsampling=0, quality=60),
        encode(PIXELS, "JPEG", restart_marker_rows=1),
        jpeg_with(JPEG, exif(6), jpeg_xmp(3)),
        raw_profile(PIXELS, 6),
        encode(Image.fromarray(PIXELS).convert("P"), "PNG"),
        encode(Image.fromarray(PIXELS).convert("L"), "PNG"),
    ]
    files = [damaged(sound[i % len(sound)], rng) for i in range(400)]
    with EncodedCheck() as check:
        found = list(check(files))
    kept = [(data, one) for data, one in zip(files, found, strict=True) if isinstance(one, Kept)]
    assert 40 < len(kept) < 360  # enough of both kinds
    for size in ((24, 32), (32, 24)):
        some = {f"c/{i:03}.png": data for i, (data, one) in enumerate(kept) if one.sides == size}
        source = put(tmp_path / f"s{size[0]}", some)
        assert not pack(source, tmp_path / "o.h5", encoded=True).skipped
        assert pack(source, tmp_path / "raw.h5").shape == (*size, 3)
        with PackedFile(tmp_path / "raw.h5") as raw:
            pixels = np.stack([raw.read_image(row) for row in range(len(raw))]).astype(np.int64)
        assert np.abs(streamed(tmp_path / "o.h5", size) - pixels).max() <= TOLERANCE
