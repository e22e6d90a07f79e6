"""Feeds of ragged sets, whose images have each their own height and width: resident and streamed, by both engines."""

from __future__ import annotations

import io
import os
import tarfile

import numpy as np
import pytest
import recipe_reference
import torch
from batches import same
from packs import noise_images, write_ragged, write_raw
from PIL import Image

from fastload import DataError, TwoPhaseLoader, UsageError
from fastload.augment import Augment, CenterCrop, MeanStd, RandomCrop, RandomResizedCrop
from fastload.feeds import fused_feeds
from fastload.feeds.batch import Output
from fastload.feeds.evaluation import EvaluationLoader
from fastload.feeds.feed import open_feed
from fastload.order import FAST, Order
from fastload.packed.file import PackedFile
from fastload.packed.set import open_packed

SEED = 2**63 + 12345
CPU = torch.device("cpu")
STATISTICS = MeanStd((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PARTS = Augment(96, crop=RandomResizedCrop(), flip=0.5)


@pytest.fixture(scope="module")
def photographs(imagenet_tar):
    """24 photographs, RGB, whose shorter sides are 64 … 256 pixels."""
    with tarfile.open(imagenet_tar) as tar:
        names = [member for member in tar.getmembers() if member.isfile()][:24]
        files = [tar.extractfile(member).read() for member in names]
    found = []
    for short, file in zip(np.linspace(64, 256, 24).astype(int), files, strict=True):
        image = Image.open(io.BytesIO(file)).convert("RGB")
        sides = [round(side * short / min(image.size)) for side in image.size]
        found.append(np.asarray(image.resize(sides, Image.BICUBIC)))
    assert len({image.shape for image in found}) > 20
    return found


@pytest.fixture(scope="module")
def full(photographs, tmp_path_factory):
    path = tmp_path_factory.mktemp("ragged") / "full.h5"
    names = [f"class/{row}.jpg" for row in range(len(photographs))]
    return write_ragged(path, photographs, np.arange(len(photographs)) % 5, names=names)


def noise(count: int = 12, channels: int = 3, low: int = 16, high: int = 40) -> list[np.ndarray]:
    random = np.random.default_rng(channels)
    sides = random.integers(low, high, (count, 2))
    return [random.integers(0, 256, (height, width, channels)).astype(np.uint8) for height, width in sides]


def batches(source, augment, *, batch=10, start=0, steps=5, resident=False, dtype=torch.float32, **options):
    """The first batches of a feed over an open set, or the file at a path."""
    output = Output(batch, CPU, dtype, options.pop("memory_format", torch.contiguous_format))
    file = open_packed(source)
    with file:
        feed = open_feed(file, augment, Order(len(file), SEED, FAST), output, resident=resident, **options)
        made = [feed.make(batch * step, batch) for step in range(start, steps)]
        feed.close()
    return [(*(one if isinstance(one, tuple) else (one,)), labels, ids) for one, labels, ids in made]


def all_ways(source, augment, monkeypatch, **options):
    """The batches out of memory, out of the map and read image by image, which are equal bit for bit."""
    resident = batches(source, augment, resident=True, **options)
    mapped = batches(source, augment, **options)
    with monkeypatch.context() as patched:
        patched.setattr(fused_feeds.GuardedMap, "open", lambda files: None)
        read = batches(source, augment, **options)
    assert same(resident, mapped) and same(resident, read)
    return resident


def wanted(images, augment, made, **options):
    """What the reference makes of a batch: the values, and the divisors that magnify errors."""
    epoch = {}
    for images_of_batch, _, ids in made:
        pairs = []
        for sample in ids.tolist():
            now = epoch.get(sample, 0)
            epoch[sample] = now + 1
            pairs.append(
                recipe_reference.augmented(images[sample], augment, sample, now, seed=SEED, phase=FAST, **options)
            )
        for have, (values, divisor) in zip(images_of_batch, pairs, strict=True):
            yield have.double().permute(1, 2, 0).numpy(), values, divisor


def assert_levels(images, augment, made, **options):
    """Resized levels are Pillow's but for a few, which are one away, or hardly ever two where an image is enlarged."""
    for have, values, _ in wanted(images, augment, made, levels=True, **options):
        away = np.abs(have - values)
        assert away.max() <= 2 and (away > 1).mean() <= 1e-3 and (away > 0).mean() <= 0.1


@pytest.mark.parametrize("crop", [RandomResizedCrop(), CenterCrop(112), RandomCrop(resize=100)])
def test_photographs_of_any_sizes_are_resized_as_pillow_does(photographs, full, monkeypatch, crop):
    augment = Augment(96, crop=crop, flip=0.5)
    assert_levels(photographs, augment, all_ways(full, augment, monkeypatch, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("crop", "channels"),
    [(RandomCrop(), 3), (RandomCrop(pad=3), 3), (RandomCrop(pad=9, mode="constant"), 4), (CenterCrop(), 1)],
)
def test_crops_that_are_not_resized_are_those_of_each_image(tmp_path, monkeypatch, crop, channels):
    images = noise(channels=channels)
    path = write_ragged(tmp_path / "full.h5", images, np.arange(12))
    augment = Augment((16, 14), crop=crop, flip=0.5)
    made = all_ways(path, augment, monkeypatch, dtype=torch.uint8)
    for have, values, _ in wanted(images, augment, made, levels=True):
        assert np.array_equal(have, values)


def test_normalized_values_meet_the_reference(tmp_path, monkeypatch):
    images = noise()
    augment = Augment.paper(16)
    made = all_ways(write_ragged(tmp_path / "full.h5", images, np.arange(12)), augment, monkeypatch)
    for have, values, divisor in wanted(images, augment, made):
        assert (np.abs(have - values) <= 1e-4 * np.maximum(max(1, 1 / divisor), np.abs(values))).all()


@pytest.mark.parametrize(
    "augment", [Augment.paper(24), Augment.imagenet(24), Augment.cifar10(), Augment.imagenet(28).evaluation()]
)
def test_images_of_one_size_have_the_same_bits_ragged_and_raw(tmp_path, monkeypatch, augment):
    images, labels = noise_images(40), np.arange(40)
    ragged = write_ragged(tmp_path / "ragged.h5", list(images), labels)
    raw = write_raw(tmp_path / "raw.h5", images, labels)
    assert same(all_ways(ragged, augment, monkeypatch), all_ways(raw, augment, monkeypatch))


@pytest.mark.parametrize(
    ("dtype", "memory_format"),
    [
        (torch.float16, torch.contiguous_format),
        (torch.bfloat16, torch.channels_last),
        (torch.uint8, torch.channels_last),
    ],
)
def test_types_and_layouts_hold_the_same_values(full, monkeypatch, dtype, memory_format):
    augment = PARTS if dtype == torch.uint8 else Augment.imagenet(96)
    exact = batches(full, augment, resident=True)
    made = all_ways(full, augment, monkeypatch, dtype=dtype, memory_format=memory_format)
    for one, other in zip(made, exact, strict=True):
        assert one[0].is_contiguous(memory_format=memory_format)
        rounded = (255 * other[0]).round() if dtype == torch.uint8 else other[0]
        assert torch.equal(one[0], rounded.to(dtype))


def test_views_are_those_of_an_augmentation_with_other_random_words(photographs, full, monkeypatch):
    made = all_ways(full, PARTS, monkeypatch, views=2, dtype=torch.uint8, steps=2)
    first, second = ([(batch[view], None, batch[-1]) for batch in made] for view in (0, 1))
    for view, one in enumerate((first, second)):
        assert_levels(photographs, PARTS, one, view=view)


def test_several_files_are_one_set(photographs, full, tmp_path, monkeypatch):
    parts = []
    for begin, end in ((0, 5), (5, 6), (6, 24)):
        rows = np.arange(begin, end)
        parts.append(write_ragged(tmp_path / f"{begin}.h5", photographs[begin:end], rows % 5, ids=rows))
    whole = all_ways(full, PARTS, monkeypatch, dtype=torch.uint8)
    assert same(whole, all_ways(parts, PARTS, monkeypatch, dtype=torch.uint8))


def test_a_batch_holds_images_of_very_different_sizes(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    sides = [(1, 1), (900, 7), (3, 500), (400, 401), (64, 64), (1, 90)]
    images = [random.integers(0, 256, (*pair, 3)).astype(np.uint8) for pair in sides]
    augment = Augment(16, crop=RandomResizedCrop((0.3, 1.0)), flip=0.5)
    path = write_ragged(tmp_path / "full.h5", images, np.arange(6))
    assert_levels(images, augment, all_ways(path, augment, monkeypatch, dtype=torch.uint8))


# -- dali ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("crop", [RandomResizedCrop(), CenterCrop(112), RandomCrop(pad=2)])
def test_both_engines_make_the_same_pixels(full, resident, crop):
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    augment = Augment(64 if isinstance(crop, RandomCrop) else 96, crop=crop, flip=0.5, normalize=STATISTICS)
    fused = batches(full, augment, steps=2, resident=resident)
    dali = batches(full, augment, steps=2, resident=resident, engine="dali")
    for one, other in zip(fused, dali, strict=True):
        assert torch.equal(one[-1], other[-1]) and torch.equal(one[1], other[1])
        assert ((one[0] - other[0]).abs() <= 1e-4 * one[0].abs().clamp(min=1)).all()


# -- what does not fit -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["fused", "dali"])
@pytest.mark.parametrize("resident", [True, False])
def test_an_image_that_is_too_small_is_named_before_training(full, engine, resident):
    with pytest.raises(UsageError, match=r"full.h5: class/0.jpg is 64×\d+ pixels, too small for size=96×96.*4 of 24"):
        batches(full, Augment(96, crop=RandomCrop()), resident=resident, engine=engine)


def test_an_image_that_is_too_large_for_its_output_is_named(tmp_path):
    images = [*noise(3), np.zeros((40, 200, 3), np.uint8)]
    path = write_ragged(tmp_path / "full.h5", images, np.zeros(4))
    with pytest.raises(UsageError, match=r"row 3 \(id 3\) is 40×200 pixels, more than 64 times size=8×3;"):
        batches(path, Augment((8, 3), crop=RandomResizedCrop()))


def test_an_evaluation_names_it_too_and_resizes_all_that_can_be(photographs, full):
    with (
        EvaluationLoader(full, Augment(96), batch_size=7) as loader,
        pytest.raises(UsageError, match=r"class/0.jpg is .* too small"),
    ):
        next(iter(loader))
    augment = Augment(96, crop=CenterCrop(110), normalize=None)
    with EvaluationLoader(full, augment, batch_size=7, dtype=torch.uint8, with_ids=True) as loader:
        made = list(loader)
    assert [len(images) for images, _, _ in made] == [7, 7, 7, 3]
    assert torch.cat([ids for _, _, ids in made]).tolist() == list(range(24))
    assert_levels(photographs, augment, made)


def test_channels_of_ragged_files_are_checked(tmp_path):
    path = write_ragged(tmp_path / "full.h5", noise(channels=1), None)
    with pytest.raises(UsageError, match="numbers for 3 channels"):
        batches(path, Augment.imagenet(16))


def test_a_truncated_file_names_the_row_that_cannot_be_read(photographs, tmp_path):
    path = write_ragged(tmp_path / "full.h5", photographs, None)
    with PackedFile(path) as file:
        order = Order(24, SEED, FAST, False)
        feed = open_feed(file, PARTS, order, Output(24, CPU))
        os.truncate(path, file.data_offset + int(file.offsets[20]) + 5)
        with pytest.raises(DataError, match=r"row 2\d \(id 2\d\) can no longer be read"):
            feed.make(0, 24)
        feed.close()


# -- loaders ---------------------------------------------------------------------------------------------------------


def test_a_run_over_ragged_files_swaps_and_goes_on_from_its_state(photographs, full, tmp_path):
    rows = np.arange(0, 24, 3)
    subset = write_ragged(tmp_path / "subset.h5", [photographs[row] for row in rows], rows % 5, ids=rows)

    def run(**more):
        return TwoPhaseLoader(
            full, subset, augment=PARTS, batch_size=4, steps=10, swap=0.5, seed=3, device="cpu", with_ids=True, **more
        )

    with run(resident_budget=0) as loader:
        whole = list(loader)
        assert loader.stats()["fast"]["feed"] == "resident" and loader.stats()["fine-tune"]["feed"] == "stream"
    assert set(torch.cat([batch[2] for batch in whole[:5]]).tolist()) <= set(rows.tolist())
    with run() as loader:
        batches_of = iter(loader)
        resident = [next(batches_of) for _ in range(7)]
        state = loader.state_dict()
        assert loader.stats()["fine-tune"]["feed"] == "resident"
    assert same(resident, whole[:7])
    with run() as loader:
        loader.load_state_dict(state)
        assert same(list(loader), whole[7:])


def test_a_ragged_subset_goes_with_a_raw_full_set(tmp_path):
    images = noise_images(20, 40, 44)
    full = write_raw(tmp_path / "full.h5", images, np.arange(20))
    subset = write_ragged(tmp_path / "subset.h5", noise(8), np.arange(8))
    with TwoPhaseLoader(full, subset, augment=Augment(16), batch_size=4, steps=4, swap=0.5, device="cpu") as loader:
        assert len(list(loader)) == 4
    grey = write_ragged(tmp_path / "grey.h5", noise(8, channels=1), np.arange(8))
    with pytest.raises(DataError, match="has 1 channels"):
        TwoPhaseLoader(full, grey, augment=Augment(16), batch_size=4, steps=4, swap=0.5, device="cpu")
