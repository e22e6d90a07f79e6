"""Batches out of JPEG files that are cut: both engines give the same bits, and those of whole files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from jpegs import write_jpegs
from packs import write_encoded
from PIL import Image
from samples import encode
from strange_files import picture

from fastload import Augment, CenterCrop, RandomCrop, TwoPhaseLoader, UsageError
from fastload.feeds.batch import Output
from fastload.feeds.engine_choice import choose_engine
from fastload.feeds.feed import open_feed
from fastload.kernels import turbojpeg
from fastload.order import Order
from fastload.packed.set import open_packed
from fastload.packing.decoding import upright_sides

if not turbojpeg.load():
    pytest.skip("libturbojpeg is not installed", allow_module_level=True)
pytest.importorskip("nvidia.dali", reason="DALI is not installed")

CPU = torch.device("cpu")
RECIPES = {
    "resized crops": Augment.imagenet(48),
    "centre": Augment(40, crop=CenterCrop(56)),
    "crops": Augment((40, 56), crop=RandomCrop(), flip=0.5),
    "reflected": Augment(64, crop=RandomCrop(pad=20), flip=0.5),
    "padded": Augment(64, crop=RandomCrop(pad=20, mode="constant")),
}


def pictures(count: int) -> list[bytes]:
    return [
        encode(picture(80 + 4 * (k % 7), 120 - 4 * (k % 5), k), "JPEG", quality=80 + k % 20, subsampling=k % 3)
        for k in range(count)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of the same upright pictures: cuttable with one in eight decoded whole, and all as they were."""
    folder = tmp_path_factory.mktemp("encoded")
    files = pictures(40)
    files[5] = encode(picture(84, 100, 5), "PNG")
    files[13] = encode(picture(84, 104, 13), "JPEG", progressive=True)
    files[21] = encode(Image.fromarray(picture(88, 96, 21)).convert("L"), "JPEG")
    for k in range(24, 40):
        turned = Image.Exif()
        turned[0x0112] = k % 8 + 1
        files[k] = encode(picture(80, 120, k), "JPEG", exif=turned)
    write_jpegs(folder / "cut.h5", files)
    shapes = np.array([upright_sides(data) for data in files], np.int32)
    write_encoded(folder / "whole.h5", files, np.arange(40) % 7, shapes=shapes)
    return folder


def made(paths, augment: Augment, engine: str, positions=((0, 16), (30, 20)), views: int = 1, **output):
    """Batches at these positions of one order."""
    with open_packed(paths) as file:
        order = Order(len(file), 5, phase=1)
        feed = open_feed(file, augment, order, Output(32, CPU, **output), engine=engine, views=views, workers=1)
    batches = []
    for start, count in positions:
        batch = feed.make(start, count)
        images = batch.images if isinstance(batch.images, tuple) else (batch.images,)
        batches.append(([one.clone() for one in images], batch.labels.clone(), batch.ids.clone()))
    feed.close()
    return batches


def assert_equal(one, two) -> None:
    for (images, labels, ids), (others, other_labels, other_ids) in zip(one, two, strict=True):
        assert torch.equal(ids, other_ids) and torch.equal(labels, other_labels)
        for a, b in zip(images, others, strict=True):
            assert a.stride() == b.stride() and torch.equal(a, b)


@pytest.mark.parametrize("name", RECIPES)
def test_both_engines_give_the_bits_of_whole_files(folder: Path, name: str) -> None:
    fused = made(folder / "cut.h5", RECIPES[name], "fused")
    assert_equal(fused, made(folder / "cut.h5", RECIPES[name], "dali"))
    assert_equal(fused, made(folder / "whole.h5", RECIPES[name], "dali"))


@pytest.mark.parametrize(
    "output",
    [{"dtype": torch.float16}, {"dtype": torch.uint8}, {"memory_format": torch.channels_last}],
    ids=["float16", "uint8", "channels_last"],
)
def test_both_engines_give_the_same_bits_of_every_kind_and_view(folder: Path, output) -> None:
    augment = Augment(48, crop=RECIPES["resized crops"].crop, flip=0.5)
    fused = made(folder / "cut.h5", augment, "fused", views=2, **output)
    assert len(fused[0][0]) == 2 and not torch.equal(*fused[0][0])
    assert_equal(fused, made(folder / "cut.h5", augment, "dali", views=2, **output))


def test_a_set_of_files_of_which_one_has_no_index(folder: Path) -> None:
    paths = [folder / "whole.h5", folder / "cut.h5"]
    fused = made(paths, RECIPES["resized crops"], "fused", positions=((0, 32), (64, 16)))
    assert_equal(fused, made(paths, RECIPES["resized crops"], "dali", positions=((0, 32), (64, 16))))


def test_a_batch_hangs_on_its_positions_alone(folder: Path) -> None:
    """So a run that goes on in mid-epoch, and each of several ranks, sees what one run sees."""
    (whole,) = made(folder / "cut.h5", RECIPES["resized crops"], "fused", positions=((16, 16),))
    halves = made(folder / "cut.h5", RECIPES["resized crops"], "fused", positions=((24, 8), (16, 8)))
    assert torch.equal(whole[0][0][8:], halves[0][0][0]) and torch.equal(whole[0][0][:8], halves[1][0][0])


@pytest.mark.parametrize("engine", ["fused", "dali"])
def test_an_image_that_the_crop_does_not_fit_is_named_before_training(tmp_path: Path, engine: str) -> None:
    files = [*pictures(3), encode(picture(32, 100), "JPEG")]
    path = write_jpegs(tmp_path / "x.h5", files, names=[f"c/{k}.jpg" for k in range(4)])
    with pytest.raises(UsageError, match=r"c/3.jpg is 32×100 pixels, too small for size=40×56"):
        made(path, RECIPES["crops"], engine)


def test_without_libturbojpeg_dali_decodes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    augment = RECIPES["resized crops"]
    with open_packed(folder / "cut.h5") as file:
        assert choose_engine("auto", file, augment) == "fused"
        monkeypatch.setattr(turbojpeg, "load", lambda: False)
        assert choose_engine("auto", file, augment) == "dali"
        with pytest.raises(UsageError, match=r'apt install libturbojpeg0.*engine="dali"'):
            choose_engine("fused", file, augment)


def scaled_difference(path: Path, augment: Augment) -> torch.Tensor:
    """By how many levels scaled decoding differs, [8, 3, h, w]."""
    exact = made(path, augment, "fused", positions=((0, 8),), dtype=torch.uint8)[0][0][0]
    with open_packed(path) as file:
        order, output = Order(8, 5, phase=1), Output(32, CPU, dtype=torch.uint8)
        feed = open_feed(file, augment, order, output, engine="fused", scaled_decoding=True, workers=1)
        found = feed.make(0, 8).images.clone()
        feed.close()
    return (found.int() - exact.int()).abs().float()


def test_scaled_decoding_shifts_no_picture_whatever_its_orientation(tmp_path: Path) -> None:
    """Sides that no reduction divides: the last row and column of pixels stand for less than the others."""
    y, x = np.mgrid[0:481, 0:641]
    ramp = np.stack([x * 255 // 640, y * 255 // 480, (x + y) * 255 // 1120], axis=2).astype(np.uint8)
    path = write_jpegs(tmp_path / "x.h5", [encode(ramp, "JPEG", quality=95)] * 8, turned=list(range(1, 9)))
    difference = scaled_difference(path, Augment(64, crop=RECIPES["resized crops"].crop))
    assert (difference.amax(dim=(1, 2, 3)) > 0).all() and (difference.mean(dim=(1, 2, 3)) < 0.6).all()


def test_scaled_decoding_is_near_the_exact_pixels_and_for_the_fused_engine_alone(tmp_path: Path) -> None:
    smooth = [Image.fromarray(picture(64, 80, k)).resize((640, 512), Image.Resampling.BICUBIC) for k in range(8)]
    files = [encode(image, "JPEG", quality=90, subsampling=2) for image in smooth]
    path = write_jpegs(tmp_path / "x.h5", files, turned=list(range(1, 9)))
    augment = Augment(64, crop=RECIPES["resized crops"].crop)
    difference = scaled_difference(path, augment)
    with open_packed(path) as file:
        order, output = Order(8, 5, phase=1), Output(32, CPU, dtype=torch.uint8)
        with pytest.raises(UsageError, match="decodes by DALI; leave it out"):
            open_feed(file, augment, order, output, engine="dali", scaled_decoding=True)
    # Photographs differ by 1.4 levels in the mean; with crops that begin at the nearest of the larger pixels, 3.5.
    assert 0 < difference.mean() < 2


def test_runs_with_scaled_decoding_and_without_do_not_resume_each_other(folder: Path) -> None:
    def loader(scaled: bool) -> TwoPhaseLoader:
        settings = {"batch_size": 4, "steps": 4, "swap": 0, "augment": RECIPES["resized crops"], "device": "cpu"}
        return TwoPhaseLoader(folder / "cut.h5", scaled_decoding=scaled, **settings)

    for saved in (False, True):
        with loader(saved) as one, loader(saved) as same, loader(not saved) as other:
            state = one.state_dict()
            same.load_state_dict(state)
            with pytest.raises(UsageError, match=f"saved with scaled_decoding={saved}, this loader has {not saved}"):
                other.load_state_dict(state)
    del state["scaled_decoding"]  # as older states are
    with loader(False) as exact, loader(True) as scaled:
        exact.load_state_dict(state)
        with pytest.raises(UsageError, match="saved with scaled_decoding=False"):
            scaled.load_state_dict(state)
