"""The fused engine's recipes: each step against its reference, on photographs and noise."""

from __future__ import annotations

import colorsys
import io
import math
import os
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import recipe_reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from places import ROOT

from fastload.augment import (
    Augment,
    CenterCrop,
    Erase,
    Jitter,
    MeanStd,
    PaperColor,
    PerImage,
    RandomCrop,
    RandomResizedCrop,
)
from fastload.augment.parameters import SampleKeys, draw_parameters, stream_number
from fastload.errors import UsageError
from fastload.feeds.fused_engine import FusedEngine
from fastload.kernels.color_matrix import color_matrix
from fastload.kernels.image_layout import uniform_layout

SEED, PHASE = 2**63 + 12345, 1
STORED = {torch.float32: np.float32, torch.float16: np.int16, torch.bfloat16: np.int16, torch.uint8: np.uint8}
IMAGENET = MeanStd((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def fused(images, augment, *, ids=None, epochs=None, dtype=torch.float32, channels_last=False, planar=False, view=0):
    """Run the CPU engine over uint8 [b, H, W, C] and return float64 [b, h, w, C]."""
    count, height, width, channels = images.shape
    size = height * width * channels
    data = np.ascontiguousarray(images.transpose(0, 3, 1, 2) if planar else images).reshape(-1)
    strides = (size, width, 1, height * width) if planar else (size, width * channels, channels, 1)
    engine = FusedEngine(
        augment,
        seed=SEED,
        phase=PHASE,
        view=view,
        layout=uniform_layout((height, width, channels), strides),
        sides=[(height, width)],
        dtype=dtype,
        channels_last=channels_last,
        batch_size=count,
    )
    h, w = augment.sides
    memory = np.zeros(count * h * w * channels * dtype.itemsize + 128, np.uint8)
    begin = -memory.ctypes.data % 64
    out = memory[begin : begin + memory.size - 128].view(STORED[dtype]).reshape(count, -1)
    memory[begin + memory.size - 128 :] = 77
    ids = np.arange(count) if ids is None else ids
    engine.on_cpu(data, np.arange(count), ids, np.zeros(count, np.int64) if epochs is None else epochs, out)
    assert (memory[begin + memory.size - 128 :] == 77).all(), "written beyond the output"
    values = torch.from_numpy(out)
    values = values.view(dtype) if values.dtype != dtype else values
    shape = (count, h, w, channels) if channels_last else (count, channels, h, w)
    result = values.double().reshape(shape).numpy()
    return result if channels_last else result.transpose(0, 2, 3, 1)


def expected(images, augment, epochs=None, **options):
    pairs = [
        recipe_reference.augmented(
            image, augment, i, 0 if epochs is None else int(epochs[i]), seed=SEED, phase=PHASE, **options
        )
        for i, image in enumerate(images)
    ]
    return np.stack([values for values, _ in pairs]), [divisor for _, divisor in pairs]


def assert_meets(images, augment, *, epochs=None, dtype=torch.float32, **layout):
    """Without resizing: 1e-4 · max(1, 1/divisor, |reference|) and a rounding of the type."""
    want, divisors = expected(images, augment, epochs, levels=dtype == torch.uint8)
    got = fused(images, augment, epochs=epochs, dtype=dtype, **layout)
    rounding = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.uint8: 0.0}[dtype]
    for have, value, divisor in zip(got, want, divisors, strict=True):
        limit = 1e-4 * np.maximum(max(1.0, 1 / divisor), np.abs(value)) + rounding * np.abs(value)
        if dtype == torch.uint8:
            assert np.abs(have - value).max() <= 1 and (have != value).mean() < 4e-3  # halves: either way
        else:
            assert (np.abs(have - value) <= limit).all(), np.abs(have - value).max()


def noise(count=6, height=40, width=37, channels=3):
    rng = np.random.default_rng(height * width + channels)
    images = rng.integers(0, 256, (count, height, width, channels)).astype(np.uint8)
    images[0] = np.linspace(0, 255, width).astype(np.uint8)[None, :, None]
    images[1] = 200
    return images


@pytest.fixture(scope="session")
def photographs(imagenet_tar):
    """Twelve photographs, RGB, of their own sizes."""
    with tarfile.open(imagenet_tar) as tar:
        names = [member for member in tar.getmembers() if member.isfile()][:12]
        files = [tar.extractfile(member).read() for member in names]
    return [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]


# -- geometry --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.35, 1.0), (0.001, 0.01)])
def test_resized_parts_of_photographs_are_pillows_within_a_level(photographs, scale):
    for image in photographs:
        batch = np.repeat(image[None], 4, axis=0)
        for augment in (
            Augment(224, crop=RandomResizedCrop(scale), flip=0.5),
            Augment((96, 131), crop=RandomResizedCrop(scale), flip=0.5),
        ):
            want, _ = expected(batch, augment, levels=True)
            away = np.abs(fused(batch, augment, dtype=torch.uint8) - want)
            assert away.max() <= 1
            assert (away > 0).mean() <= 0.02


@pytest.mark.parametrize("crop", [CenterCrop(64), RandomCrop(resize=70)])
def test_whole_images_are_resized_before_they_are_cropped(photographs, crop):
    augment = Augment((60, 64), crop=crop, flip=0.5)
    for image in photographs[:6]:
        want, _ = expected(image[None], augment, levels=True)
        away = np.abs(fused(image[None], augment, dtype=torch.uint8) - want)
        assert away.max() <= 1 and (away > 0).mean() <= 0.02


SIZES = [
    ((1, 1), 5),
    ((1, 40), (7, 3)),
    ((40, 1), 16),
    ((3, 3), 48),
    ((512, 400), 32),
    ((17, 300), (16, 18)),
    ((64, 64), 64),
]


@pytest.mark.parametrize(("sides", "size"), SIZES)
@pytest.mark.parametrize("channels", [1, 3, 8])
def test_sizes_at_the_ends_are_pillows(sides, size, channels):
    images = noise(3, *sides, channels)
    for planar in (False, True):
        augment = Augment(size, crop=RandomResizedCrop((0.5, 1.0), (0.5, 2.0)), flip=0.5)
        want, _ = expected(images, augment, levels=True)
        away = np.abs(fused(images, augment, dtype=torch.uint8, planar=planar) - want)
        assert away.max() <= 2 and (away > 1).mean() < 1e-3  # noise: both passes may be off by one
        assert (away > 0).mean() <= 0.04


def test_extreme_ratios_take_the_centre_of_the_nearest_ratio():
    for sides in ((200, 10), (10, 200)):
        images = noise(4, *sides)
        augment = Augment(24, crop=RandomResizedCrop((0.9, 1.0), (3 / 4, 4 / 3)), flip=0.5)
        want, _ = expected(images, augment, levels=True)
        assert np.abs(fused(images, augment, dtype=torch.uint8) - want).max() <= 1
        keys = SampleKeys(SEED, stream_number(PHASE), np.arange(4), np.zeros(4, np.int64))
        place = draw_parameters(augment, keys, sides).places[0, :4].tolist()
        assert place == ([93, 0, 13, 10] if sides[0] > sides[1] else [0, 93, 10, 13])


def chi_square(found, expected_counts):
    return ((found - expected_counts) ** 2 / expected_counts).sum()


def test_parts_are_spread_as_torchvisions_are():
    # Its published algorithm with a generator of NumPy's, 10⁵ draws each; quantiles of a χ² of 19 degrees of freedom.
    count, height, width, bins = 100_000, 256, 341, 20
    augment = Augment(224, crop=RandomResizedCrop())
    keys = SampleKeys(SEED, stream_number(PHASE), np.arange(count), np.zeros(count, np.int64))
    ours = draw_parameters(augment, keys, (height, width)).places[:, :4].astype(np.float64)
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 2**32, (count, 10, 4)).tolist()
    theirs = np.array(
        [recipe_reference.random_part(height, width, (0.08, 1.0), (3 / 4, 4 / 3), tries) for tries in drawn]
    )

    def features(parts):
        top, left, h, w = parts.T
        yield h * w / (height * width)
        yield np.log(w / h)
        yield (top + 0.5) / (height - h + 1)
        yield (left + 0.5) / (width - w + 1)

    for one, other in zip(features(ours), features(theirs), strict=True):
        edges = np.quantile(other, np.linspace(0, 1, bins + 1)[1:-1])
        edges = np.unique(edges)
        a = np.bincount(np.searchsorted(edges, one), minlength=len(edges) + 1)
        b = np.bincount(np.searchsorted(edges, other), minlength=len(edges) + 1)
        # Two samples: Σ (a - b)² / (a + b) is a χ² of the bins less one; 99.99 % of 19 is 50.8.
        assert ((a - b) ** 2 / np.maximum(a + b, 1)).sum() < 51


@settings(deadline=None, max_examples=150)
@given(
    sample=st.integers(0, 2**62),
    epoch=st.integers(0, 2**32 - 1),
    sides=st.tuples(st.integers(1, 900), st.integers(1, 900)),
    low=st.floats(0.01, 1.0),
)
def test_any_part_is_the_published_algorithms(sample, epoch, sides, low):
    augment = Augment(64, crop=RandomResizedCrop((low, 1.0)))
    keys = SampleKeys(SEED, stream_number(PHASE), np.array([sample]), np.array([epoch]))
    found = draw_parameters(augment, keys, sides).places[0, :4].tolist()
    tries = [recipe_reference.words(sample, epoch, SEED, PHASE, block) for block in range(16, 26)]
    assert tuple(found) == recipe_reference.random_part(*sides, (low, 1.0), (3 / 4, 4 / 3), tries)


@pytest.mark.parametrize(("mode", "channels"), [("reflect", 3), ("constant", 4)])
@pytest.mark.parametrize("planar", [False, True])
def test_padded_crops_are_those_of_numpys_padded_images(mode, channels, planar):
    images = noise(12, 16, 19, channels)
    augment = Augment((16, 19), crop=RandomCrop(pad=5, mode=mode), flip=0.5)
    want, _ = expected(images, augment, levels=True)
    assert np.array_equal(fused(images, augment, dtype=torch.uint8, planar=planar), want)


def test_alternating_flips_mirror_each_sample_in_every_other_epoch():
    images = noise(40, 8, 8)
    augment = Augment(8, flip="alternating")
    first, second, third = (fused(images, augment, epochs=np.full(40, epoch), dtype=torch.uint8) for epoch in (0, 1, 2))
    assert np.array_equal(first, second[:, :, ::-1]) and np.array_equal(first, third)
    mirrored = sum(not np.array_equal(a, b) for a, b in zip(first, images, strict=True))
    assert 8 <= mirrored <= 32
    want, _ = expected(images, augment, np.full(40, 3), levels=True)
    assert np.array_equal(fused(images, augment, epochs=np.full(40, 3), dtype=torch.uint8), want)


# -- colours, normalizing, erasing -------------------------------------------------------------------------------------

STEPS = {
    "nothing": {},
    "mean and std": {"normalize": IMAGENET},
    "per image": {"normalize": PerImage()},
    "jitter": {"color": Jitter(0.4, 0.4, 0.4, 0.1)},
    "jitter, normalized": {"color": Jitter(0.4, 0.3, 0.2, 0.5, probability=0.6), "normalize": IMAGENET},
    "jitter, per image": {"color": Jitter(contrast=0.9, hue=0.2), "normalize": PerImage("variance")},
    "grey": {"grayscale": 0.5, "normalize": IMAGENET},
    "paper, grey, per image": {"color": PaperColor(), "grayscale": 0.5, "normalize": PerImage()},
    "paper, by channel": {"color": PaperColor(clamp=False), "normalize": IMAGENET},
    "erased": {"erase": Erase(0.7, value=3.5), "normalize": IMAGENET},
    "all": {
        "color": Jitter(0.4, 0.4, 0.4, 0.1, 0.8),
        "grayscale": 0.2,
        "erase": Erase(0.5, (0.02, 0.9), (0.1, 10.0)),
        "normalize": IMAGENET,
    },
}


@pytest.mark.parametrize("turn", [0.1, -0.1])
@pytest.mark.parametrize("colour", [(200, 60, 60), (60, 180, 90), (70, 90, 190)])
def test_hue_turns_the_way_that_everybodys_does(turn, colour):
    # By YIQ, so not to the same colour; but red goes towards yellow, green towards blue, blue towards red.
    turned = np.array(color_matrix(1, 1, 1, turn), np.float64).reshape(3, 3) @ colour
    hue, saturation, value = colorsys.rgb_to_hsv(*(level / 255 for level in colour))
    theirs, back = (255 * np.array(colorsys.hsv_to_rgb((hue + t) % 1, saturation, value)) for t in (turn, -turn))
    assert np.abs(turned - theirs).sum() < 0.8 * np.abs(turned - back).sum()


# Each combination is a kernel of its own, which takes seconds to compile: the other steps are met in other types below.
@pytest.mark.parametrize(
    "steps, channels_last",
    [
        ("mean and std", False),
        ("per image", False),
        ("jitter, normalized", False),
        ("jitter, per image", False),
        ("jitter, per image", True),
        ("paper, grey, per image", False),
        ("paper, by channel", False),
        ("all", False),
        ("all", True),
    ],
)
def test_every_step_meets_its_reference(steps, channels_last):
    augment = Augment((20, 21), crop=RandomCrop(), flip=0.5, **STEPS[steps])
    assert_meets(noise(16), augment, channels_last=channels_last)


# Each type in each layout, with other steps.
@pytest.mark.parametrize(
    "dtype, steps, channels_last",
    [
        (torch.float16, "mean and std", False),
        (torch.float16, "jitter, normalized", True),
        (torch.bfloat16, "erased", False),
        (torch.bfloat16, "nothing", True),
        (torch.uint8, "jitter", False),
        (torch.uint8, "grey", True),
    ],
)
def test_other_types_hold_the_same_values_rounded(dtype, steps, channels_last):
    made = STEPS[steps] | ({"normalize": None} if dtype == torch.uint8 else {})
    augment = Augment((24, 32), crop=RandomCrop(), flip=0.5, **made)
    assert_meets(noise(16), augment, dtype=dtype, channels_last=channels_last)


@pytest.mark.parametrize(("channels", "channels_last"), [(1, False), (2, True), (8, False)])
def test_other_numbers_of_channels_meet_the_reference(channels, channels_last):
    normalize = MeanStd(tuple(np.linspace(0.3, 0.6, channels)), tuple(np.linspace(0.1, 0.3, channels)))
    color = Jitter(0.4, 0.4) if channels == 1 else None
    augment = Augment(24, crop=RandomCrop(), color=color, normalize=normalize)
    assert_meets(noise(8, channels=channels), augment, channels_last=channels_last)


# Those that are taken row by row, and those that need all pixels first.
@pytest.mark.parametrize("steps", ["mean and std", "grey", "jitter, per image", "all"])
def test_steps_after_resizing_are_those_of_the_resized_pixels(steps):
    # What is stored as levels, taken as an image of its own, goes through the same steps.
    images = noise(16, 60, 50)
    crop = RandomResizedCrop()
    levels = fused(images, Augment(32, crop=crop, flip=0.5), dtype=torch.uint8).astype(np.uint8)
    augment = Augment(32, crop=crop, flip=0.5, **STEPS[steps])
    want, divisors = expected(levels, Augment(32, **STEPS[steps]))
    for have, value, divisor in zip(fused(images, augment), want, divisors, strict=True):
        assert (np.abs(have - value) <= 1e-4 * np.maximum(max(1.0, 1 / divisor), np.abs(value))).all()


@pytest.mark.parametrize(
    "dtype, channels_last",
    [(torch.float32, True), (torch.float16, False), (torch.bfloat16, True)],
)
def test_types_and_layouts_of_resized_images_agree(dtype, channels_last):
    images = noise(8, 90, 80)
    for size in (32, 37):
        augment = Augment(size, crop=RandomResizedCrop(), flip=0.5, normalize=IMAGENET)
        exact = fused(images, augment)
        other = fused(images, augment, dtype=dtype, channels_last=channels_last)
        assert np.array_equal(other, torch.from_numpy(exact).to(dtype).double().numpy())


def test_batches_larger_than_the_caches_have_the_same_bits():
    images = noise(40, 256, 256)
    augment = Augment(256, crop=RandomResizedCrop(), flip=0.5, normalize=IMAGENET)
    for dtype in (torch.float32, torch.float16):
        large = fused(images, augment, dtype=dtype)
        small = np.concatenate(
            [fused(images[k : k + 4], augment, ids=np.arange(k, k + 4), dtype=dtype) for k in range(0, 40, 4)]
        )
        assert np.array_equal(large, small)


def test_views_differ_and_the_first_is_the_one_without_views():
    images = noise(8, 60, 60)
    augment = Augment(24, crop=RandomResizedCrop(), flip=0.5)
    first, second = (fused(images, augment, view=view, dtype=torch.uint8) for view in (0, 1))
    want, _ = expected(images, augment, view=1, levels=True)
    assert np.abs(second - want).max() <= 2 and not np.array_equal(first, second)


PLAIN = """
import sys, zlib
import numpy as np
sys.path.insert(0, sys.argv[1])
from feeds.test_recipes import noise, fused
from fastload.augment import Augment, RandomResizedCrop
from fastload.kernels.resample_vectors import HAS_VECTORS
import torch
print(HAS_VECTORS)
for sides, size in (((60, 50), 32), ((200, 300), (17, 33)), ((512, 90), 16)):
    for channels in (1, 3):
        made = fused(noise(4, *sides, channels), Augment(size, crop=RandomResizedCrop(), flip=0.5), dtype=torch.uint8)
        print(zlib.crc32(made.astype(np.uint8).tobytes()))
"""


def test_processors_without_vectors_make_the_same_levels(tmp_path):
    def run(**extra):
        environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"} | extra
        ran = subprocess.run(
            [sys.executable, "-c", PLAIN, str(ROOT / "tests")],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return ran.stdout.split()

    plain, here = run(NUMBA_CPU_NAME="generic", NUMBA_CACHE_DIR=str(tmp_path)), run()
    assert plain[0] == "False"
    assert plain[1:] == here[1:] and len(here) == 7


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: RandomResizedCrop((1, 0.08)), r"scale=\(1, 0.08\)"),
        (lambda: RandomResizedCrop((0, 1)), r"scale=\(0, 1\)"),
        (lambda: RandomResizedCrop((0.1, 1.5)), r"scale=\(0.1, 1.5\)"),
        (lambda: RandomResizedCrop(ratio=(2, 1)), r"ratio=\(2, 1\)"),
        (lambda: RandomResizedCrop(ratio=(1, math.inf)), r"ratio=\(1, inf\)"),
        (lambda: RandomResizedCrop("all"), "scale='all'"),
        (lambda: RandomCrop(pad=-1), "pad=-1"),
        (lambda: RandomCrop(mode="wrap"), "mode='wrap'"),
        (lambda: RandomCrop(pad=4, resize=40), "pad= and resize="),
        (lambda: CenterCrop(0), "resize=0"),
        (lambda: MeanStd(0.5, 0), "std="),
        (lambda: MeanStd((0.1, 0.2), (1, 1, 1)), "2 numbers"),
        (lambda: MeanStd("imagenet", 1), "mean="),
        (lambda: MeanStd((), ()), "mean="),
        (lambda: MeanStd(float("nan"), 1), "mean="),
        (lambda: MeanStd(0.5, 1e-39), "std="),
        (lambda: MeanStd(1e300, 1), "mean="),
        (lambda: PerImage("std"), "divisor='std'"),
        (lambda: Jitter(brightness=-1), "brightness=-1"),
        (lambda: Jitter(hue=0.6), "hue=0.6"),
        (lambda: Jitter(probability=2), "probability=2"),
        (lambda: Erase(scale=(0.5, 0.1)), "scale="),
        (lambda: Erase(value=math.inf), "value=inf"),
        (lambda: PaperColor(-1.0), "brightness=-1.0"),
        (lambda: PaperColor(contrast=(1.8, 0.2)), r"contrast=\(1.8, 0.2\)"),
        (lambda: PaperColor(contrast=0.5), "contrast=0.5"),
        (lambda: PaperColor(clamp="no"), "clamp='no'"),
        (lambda: Augment(0), "size=0"),
        (lambda: Augment((24,)), r"size=\(24,\)"),
        (lambda: Augment(24.0), "size=24.0"),
        (lambda: Augment(True), "size=True"),
        (lambda: Augment(24, crop=CenterCrop(8)), "resize=8"),
        (lambda: Augment(24, crop="center"), "crop='center'"),
        (lambda: Augment(24, flip=1.5), "flip=1.5"),
        (lambda: Augment(24, flip="always"), "flip='always'"),
        (lambda: Augment(24, color=PerImage()), "color="),
        (lambda: Augment(24, normalize="imagenet"), "normalize='imagenet'"),
    ],
)
def test_settings_out_of_range_are_named(make, says):
    with pytest.raises(UsageError, match=says):
        make()


@pytest.mark.parametrize(
    ("augment", "shape", "says"),
    [
        (Augment(40), (32, 32, 3), "too small for size=40×40"),
        (Augment(42, crop=RandomCrop(pad=4)), (32, 32, 3), "with pad=4, too small"),
        (Augment(32, crop=RandomCrop(pad=32)), (32, 32, 3), "too small to reflect pad=32"),
        (Augment(24, grayscale=0.1), (32, 32, 1), "grayscale= is for images of 3 channels"),
        (Augment(24, color=Jitter(hue=0.1)), (32, 32, 4), "3 channels; those of full.h5 have 4"),
        (Augment(24, color=Jitter(0.1)), (32, 32, 2), "1 or 3 channels"),
        (Augment(24, normalize=IMAGENET), (32, 32, 1), "numbers for 3 channels"),
        (Augment(2, crop=RandomResizedCrop()), (200, 200, 3), "more than 64 times"),
    ],
)
def test_files_that_a_recipe_does_not_fit_are_named(augment, shape, says):
    with pytest.raises(UsageError, match=says):
        augment.check(shape, "full.h5")


def test_recipes_are_what_they_say():
    assert Augment.imagenet().sides == (224, 224) and Augment.imagenet().normalize == IMAGENET
    assert Augment.imagenet(160).at(128) == Augment.imagenet(128)
    assert Augment.imagenet().evaluation() == Augment(224, crop=CenterCrop(256), normalize=IMAGENET)
    assert Augment(112, crop=CenterCrop(128)).at(224).crop == CenterCrop(256)
    assert Augment.cifar10().evaluation().crop == CenterCrop()
    assert Augment(24) == Augment((24, 24), crop=CenterCrop(), flip=0.0)
    paper = Augment.paper(24, resize=32, divisor="variance")
    assert paper.crop == RandomCrop(resize=32) and paper.normalize == PerImage("variance")


def test_settings_from_numpy_or_a_configuration_equal_plain_ones():
    given = Augment(
        [np.int64(24), 20],
        crop=RandomCrop(np.int32(4)),
        flip=np.float64(0.25),
        normalize=MeanStd(np.array(0.5), torch.tensor([0.1], dtype=torch.float64)),
    )
    plain = Augment((24, 20), crop=RandomCrop(4), flip=0.25, normalize=MeanStd(0.5, 0.1))
    assert (
        given == plain and hash(given) == hash(plain) and repr(given) == repr(plain) and given.state() == plain.state()
    )
