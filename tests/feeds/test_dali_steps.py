"""All steps of a recipe: the DALI engine against the fused engine on the CPU, from the same keys.

The graph that CUDA runs on decoded files is run on the CPU, since that is where tests are.
"""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from fastload import UsageError
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
from fastload.feeds.fused_engine import FusedEngine
from fastload.kernels.image_layout import uniform_layout

pytest.importorskip("nvidia.dali", reason="DALI is not installed (extra cuda13)")
from fastload.feeds.dali_engine import DaliEngine
from fastload.feeds.dali_errors import SampleError
from fastload.feeds.dali_pipeline import DaliPipeline
from fastload.feeds.jpeg_cuts import EncodedBatch

CPU = torch.device("cpu")
LAST = torch.channels_last
ROUNDING = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.uint8: 0.0}
SEED, PHASE = 2**40 + 11, 1
LEVELS = MeanStd(0.0, 1 / 255)
"""Values 0…255 as they are, in float32."""


def keys_of(count):
    ids = np.arange(count) * 7 + 2**33
    return SampleKeys(SEED, stream_number(PHASE), ids, np.arange(count) % 3)


def fused(augment, image, keys, i, dtype, last):
    """Sample i by the fused engine, [C, h, w]."""
    _, width, channels = image.shape
    strides = (image.size, width * channels, channels, 1)
    engine = FusedEngine(
        augment,
        seed=SEED,
        phase=PHASE,
        layout=uniform_layout(image.shape, strides),
        sides=[image.shape[:2]],
        dtype=dtype,
        channels_last=last,
        batch_size=1,
    )
    halves = dtype in (torch.float16, torch.bfloat16)
    out = np.empty((1, channels * augment.sides[0] * augment.sides[1]), np.int16)
    if not halves:
        out = out.astype(torch.empty(0, dtype=dtype).numpy().dtype)
    pixels = np.ascontiguousarray(image).reshape(-1)
    engine.on_cpu(pixels, np.zeros(1, np.int64), keys.ids[i : i + 1], keys.epochs[i : i + 1], out)
    values = torch.from_numpy(out).view(dtype) if halves else torch.from_numpy(out)
    if last:
        return values.reshape(*augment.sides, channels).permute(2, 0, 1)
    return values.reshape(channels, *augment.sides)


def made_by_dali(engine, samples, augment, channels, dtype, memory_format):
    size = (len(samples), channels, *augment.sides)
    out = torch.empty(size, dtype=dtype, memory_format=memory_format)
    engine(samples, keys_of(len(samples)), out)
    return out


def with_graph(engine):
    """Return an engine of encoded files that finishes them as on CUDA: by the graph, not by a kernel."""
    engine._finish = None
    engine._steps = DaliPipeline(engine._graph.build, None)
    return engine


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return np.frombuffer(file.getvalue(), np.uint8)


def divisor_of(augment, image, keys, i):
    """What PerImage divides sample i by, of the crop in 0…255 as the fused engine makes it."""
    if not isinstance(augment.normalize, PerImage):
        return 1.0
    steps = Augment(augment.sides, augment.crop, augment.flip, augment.color, augment.grayscale, None, LEVELS)
    values = fused(steps, image, keys, i, torch.float32, False).double()
    variance, count = float(values.var(correction=0)), values.numel()
    if augment.normalize.divisor == "variance":
        return max(variance, 1 / count)
    return max(variance**0.5, count**-0.5)


def assert_near(found, images, augment, dtype, memory_format, level=0.0):
    """Within 1e-4·max(1, 1/divisor, |reference|) and a rounding of the output; resized, within `level` more."""
    keys = keys_of(len(images))
    assert found.dtype == dtype and found.is_contiguous(memory_format=memory_format)
    for i, image in enumerate(images):
        expected = fused(augment, image, keys, i, dtype, memory_format == LAST).double()
        bound = level + 1e-4 * expected.abs().clamp(min=max(1.0, 1 / divisor_of(augment, image, keys, i)))
        # Two values that are nearly the same may be rounded apart; float16's subnormals are 2**-24 apart.
        bound = bound + 2 * ROUNDING[dtype] * (expected.abs() + bound) + 2**-24
        error = (found[i].double() - expected).abs()
        assert (error <= bound).all(), f"image {i}: {float(error.max())} apart"


def of_all_kinds(height, width, channels, count=8):
    """Noise, smooth, flat, black, white and nearly black images."""
    random = np.random.default_rng(channels)
    shape = (height, width, channels)
    images = random.integers(0, 256, (count, *shape), dtype=np.uint8)
    slope = np.add.outer(np.arange(height) * 3, np.arange(width) * 5)[:, :, None] + 40 * np.arange(channels)
    images[1] = slope % 256
    images[2] = np.array([137, 20, 240, 90])[:channels] if channels <= 4 else 137
    images[3], images[4] = 0, 255
    images[5] = 0
    images[5, height // 2, width // 2] = 1
    return images


# -- without resizing ----------------------------------------------------------------------------------------------

JITTER = Jitter(0.4, 0.4, 0.4, 0.1)
IMAGENET = MeanStd((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

# Each combination of steps is a kernel of its own, which takes seconds to compile; others share one, so most flip.
RECIPES = {
    "random crop": Augment((12, 9), RandomCrop()),
    "centre": Augment((12, 9), CenterCrop(), flip=0.5),
    "flip": Augment((12, 9), RandomCrop(), flip=0.5),
    "alternating flip": Augment((12, 9), RandomCrop(), flip="alternating"),
    "pad, reflect": Augment((23, 29), RandomCrop(pad=4), flip=0.5),
    "pad, constant": Augment((23, 29), RandomCrop(pad=4, mode="constant"), flip=0.5),
    "pad, one side": Augment((5, 30), RandomCrop(pad=2), flip=0.5),
    "a mirror as large as the image": Augment((50, 55), RandomCrop(pad=20), flip=0.5),
    "much black": Augment((12, 9), RandomCrop(pad=40, mode="constant"), flip=0.5),
    "jitter": Augment((12, 9), RandomCrop(), flip=0.5, color=JITTER),
    "jitter, strong": Augment((12, 9), RandomCrop(), flip=0.5, color=Jitter(0.9, 2.0, 3.0, 0.5)),
    "jitter, sometimes": Augment((12, 9), RandomCrop(), flip=0.5, color=Jitter(0.4, 0.4, 0.2, 0.1, probability=0.5)),
    "jitter of brightness": Augment((12, 9), RandomCrop(), flip=0.5, color=Jitter(brightness=0.6)),
    "jitter of contrast": Augment((12, 9), RandomCrop(), flip=0.5, color=Jitter(contrast=0.6)),
    "jitter of saturation": Augment((12, 9), RandomCrop(), flip=0.5, color=Jitter(saturation=0.6)),
    "jitter of hue": Augment((12, 9), RandomCrop(), flip=0.5, color=Jitter(hue=0.3)),
    "jitter of nothing": Augment((12, 9), RandomCrop(), flip=0.5, color=Jitter()),
    "jitter, never": Augment((12, 9), RandomCrop(), flip=0.5, color=Jitter(0.4, 0.4, probability=0.0)),
    "grey": Augment((12, 9), RandomCrop(), flip=0.5, grayscale=0.5),
    "jitter, then grey": Augment((12, 9), RandomCrop(), flip=0.5, color=JITTER, grayscale=0.5),
    "paper, then grey": Augment((12, 9), RandomCrop(), flip=0.5, color=PaperColor(clamp=False), grayscale=0.5),
    "mean and deviation": Augment((12, 9), RandomCrop(), flip=0.5, normalize=IMAGENET),
    "one mean": Augment((12, 9), RandomCrop(), flip=0.5, normalize=MeanStd(0.5, (0.1, 0.2, 0.3))),
    "one mean and deviation": Augment((12, 9), RandomCrop(), flip=0.5, normalize=MeanStd(0.5, 0.2)),
    "per image": Augment((12, 9), RandomCrop(), flip=0.5, normalize=PerImage()),
    "jitter, grey, per image": Augment((12, 9), RandomCrop(), 0.5, JITTER, 0.5, None, PerImage()),
    "grey, variance": Augment((12, 9), RandomCrop(), flip=0.5, grayscale=0.5, normalize=PerImage("variance")),
    "erase": Augment((12, 9), RandomCrop(), flip=0.5, erase=Erase(0.7, value=0.3)),
    "erase all": Augment((12, 9), RandomCrop(), flip=0.5, erase=Erase(1.0, (0.9, 1.0), value=-2.0), normalize=IMAGENET),
    "erase, never": Augment((12, 9), RandomCrop(), flip=0.5, erase=Erase(0.0)),
    "paper": Augment.paper((12, 9)),
    "paper, erased": Augment((12, 9), RandomCrop(), 0.5, PaperColor(), 0.0, Erase(0.6, value=0.5), PerImage()),
    "all": Augment((23, 29), RandomCrop(pad=4), 0.5, JITTER, 0.3, Erase(0.6), IMAGENET),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("form", ["raw", "decoded"])
def test_each_step_gives_what_the_fused_engine_gives(recipe, form):
    images = of_all_kinds(21, 28, 3)
    shape = images.shape[1:] if form == "raw" else None
    engine = DaliEngine(recipe, shape=shape, batch_size=8, device=CPU, threads=2)
    samples = images
    if form == "decoded":
        engine, samples = with_graph(engine), [png(image) for image in images]
    found = made_by_dali(engine, samples, recipe, 3, torch.float32, torch.contiguous_format)
    assert_near(found, images, recipe, torch.float32, torch.contiguous_format)


@pytest.mark.parametrize(
    ("channels", "name", "memory_format"),
    [
        (1, "jitter of brightness", torch.contiguous_format),
        (1, "jitter of contrast", torch.contiguous_format),
        (1, "pad, constant", LAST),
        (4, "paper, erased", LAST),
        (4, "pad, reflect", torch.contiguous_format),
        (9, "paper, erased", torch.contiguous_format),
        (9, "one mean and deviation", LAST),
    ],
)
def test_images_of_any_number_of_channels(channels, name, memory_format):
    recipe, images = RECIPES[name], of_all_kinds(21, 28, channels)
    engine = DaliEngine(
        recipe, shape=images.shape[1:], batch_size=8, device=CPU, memory_format=memory_format, threads=2
    )
    found = made_by_dali(engine, images, recipe, channels, torch.float32, memory_format)
    assert_near(found, images, recipe, torch.float32, memory_format)


# float32 in NCHW: above.
@pytest.mark.parametrize(
    ("dtype", "memory_format", "form", "name"),
    [
        (dtype, memory_format, form, "all")
        for dtype, memory_format in (
            (torch.float16, torch.contiguous_format),
            (torch.bfloat16, LAST),
            (torch.float32, LAST),
        )
        for form in ("raw", "decoded", "encoded")
    ]
    + [
        (torch.float16, LAST, "raw", "paper, erased"),
        (torch.bfloat16, torch.contiguous_format, "raw", "paper, erased"),
    ],
)
def test_all_dtypes_and_layouts(dtype, memory_format, form, name):
    recipe, images = RECIPES[name], of_all_kinds(21, 28, 3)
    shape = images.shape[1:] if form == "raw" else None
    engine = DaliEngine(
        recipe, shape=shape, batch_size=8, device=CPU, dtype=dtype, memory_format=memory_format, threads=2
    )
    engine = with_graph(engine) if form == "decoded" else engine
    samples = images if form == "raw" else [png(image) for image in images]
    found = made_by_dali(engine, samples, recipe, 3, dtype, memory_format)
    assert_near(found, images, recipe, dtype, memory_format)


@pytest.mark.parametrize("form", ["raw", "decoded", "encoded"])
@pytest.mark.parametrize(
    ("recipe", "most", "memory_format"),
    [
        (Augment((12, 9), RandomCrop(), flip=0.5, erase=Erase(0.6, value=99.5)), 0, torch.contiguous_format),
        (Augment((12, 9), RandomCrop(), flip=0.5, erase=Erase(0.6, value=-3.0)), 0, torch.contiguous_format),
        (Augment((12, 9), RandomCrop(), color=PaperColor(clamp=False)), 1, LAST),
        (Augment((12, 9), RandomCrop(), color=JITTER, grayscale=0.5), 1, torch.contiguous_format),
        (Augment((12, 9), RandomResizedCrop(), flip=0.5), 1, LAST),
    ],
)
def test_levels_are_rounded_half_up_and_kept_in_their_range(recipe, most, form, memory_format):
    images = of_all_kinds(21, 28, 3)
    shape = images.shape[1:] if form == "raw" else None
    engine = DaliEngine(
        recipe, shape=shape, batch_size=8, device=CPU, dtype=torch.uint8, memory_format=memory_format, threads=2
    )
    engine = with_graph(engine) if form == "decoded" else engine
    samples = images if form == "raw" else [png(image) for image in images]
    found = made_by_dali(engine, samples, recipe, 3, torch.uint8, memory_format)
    assert_near(found, images, recipe, torch.uint8, memory_format, 0 if form == "encoded" else most)
    if most and not recipe.may_resize:  # a value that falls on a half may be rounded either way, and no other
        expected = torch.stack(
            [fused(recipe, images[i], keys_of(8), i, torch.uint8, memory_format == LAST) for i in range(8)]
        )
        assert (found != expected).double().mean() < 1e-3


# -- resizing ------------------------------------------------------------------------------------------------------

RESIZED = {
    "smaller": Augment((12, 9), RandomResizedCrop(), flip=0.5, normalize=LEVELS),
    "larger": Augment((64, 80), RandomResizedCrop(), flip=0.5, normalize=LEVELS),
    "much smaller": Augment((4, 3), RandomResizedCrop((0.9, 1.0)), flip=0.5, normalize=LEVELS),
    "two pixels": Augment(2, RandomResizedCrop(), flip=0.5, normalize=LEVELS),
    "narrow": Augment((20, 20), RandomResizedCrop((0.01, 0.1), (0.02, 50.0)), flip=0.5, normalize=LEVELS),
    "shorter side, random": Augment((12, 9), RandomCrop(resize=15), flip=0.5, normalize=LEVELS),
    "shorter side, centre": Augment((12, 9), CenterCrop(resize=12), flip=0.5, normalize=LEVELS),
    "enlarged, random": Augment((50, 47), RandomCrop(resize=53), flip=0.5, normalize=LEVELS),
    "enlarged, centre": Augment((50, 47), CenterCrop(resize=50), flip=0.5, normalize=LEVELS),
}
SIDES = [(45, 61), (61, 45), (33, 33), (31, 90), (97, 46), (53, 53), (120, 57), (46, 47)]


@pytest.mark.parametrize(
    ("name", "form", "channels"),
    [(name, form, 3) for form in ("raw", "decoded") for name in RESIZED]
    + [(name, "raw", 1) for name in ("smaller", "larger", "much smaller", "two pixels", "narrow")]
    + [(name, "raw", 4) for name in ("shorter side, random", "enlarged, random")],
)
def test_resized_levels_are_at_most_one_apart(name, form, channels):
    recipe, random = RESIZED[name], np.random.default_rng(9)
    if form == "raw":
        images = list(of_all_kinds(45, 61, channels))
        engine = DaliEngine(recipe, shape=(45, 61, channels), batch_size=8, device=CPU, threads=2)
        samples = np.stack(images)
    else:
        images = [random.integers(0, 256, (*sides, 3), dtype=np.uint8) for sides in SIDES]
        engine = with_graph(DaliEngine(recipe, shape=None, batch_size=8, device=CPU, threads=2))
        samples = [png(image) for image in images]
    found = made_by_dali(engine, samples, recipe, channels, torch.float32, torch.contiguous_format)
    assert (found == found.round()).all()
    assert_near(found, images, recipe, torch.float32, torch.contiguous_format, 1.0)


@pytest.mark.parametrize(("channels", "name"), [(3, "smaller"), (4, "shorter side, random"), (1, "narrow")])
def test_images_of_their_own_sides_that_come_decoded_are_resized(channels, name):
    random = np.random.default_rng(channels)
    images = [random.integers(0, 256, (*sides, channels), dtype=np.uint8) for sides in SIDES]
    engine = DaliEngine(RESIZED[name], shape=(0, 0, channels), batch_size=8, device=CPU, threads=2)
    for maker in (engine, with_graph(engine)):  # as on the CPU, and as on CUDA
        found = made_by_dali(maker, images, RESIZED[name], channels, torch.float32, torch.contiguous_format)
        assert_near(found, images, RESIZED[name], torch.float32, torch.contiguous_format, 1.0)


@pytest.mark.parametrize("name", ["pad, reflect", "jitter", "paper, erased"])
def test_images_of_their_own_sides_that_come_decoded_meet_every_other_step(name):
    images = [of_all_kinds(*sides, 3)[k] for k, sides in enumerate([(21, 28), (16, 30), (24, 22), (40, 25)])]
    engine = with_graph(DaliEngine(RECIPES[name], shape=(0, 0, 3), batch_size=4, device=CPU, threads=2))
    found = made_by_dali(engine, images, RECIPES[name], 3, torch.float32, torch.contiguous_format)
    assert_near(found, images, RECIPES[name], torch.float32, torch.contiguous_format)


@pytest.mark.parametrize(
    ("sides", "recipe"),
    [
        (sides, recipe)
        for sides in ((1, 1), (1, 37), (64, 1), (2, 3), (700, 31))
        for recipe in (
            Augment((32, 30), RandomResizedCrop(), flip=0.5, normalize=LEVELS),
            Augment(30, RandomCrop(resize=32), flip=0.5, normalize=LEVELS),
        )
    ]
    + [((64, 51), Augment(1, RandomResizedCrop(), flip=0.5, normalize=LEVELS))],
)
def test_images_of_extreme_sides_are_resized(sides, recipe):
    images = np.random.default_rng(6).integers(0, 256, (4, *sides, 3), dtype=np.uint8)
    engine = DaliEngine(recipe, shape=(*sides, 3), batch_size=4, device=CPU, threads=2)
    found = made_by_dali(engine, images, recipe, 3, torch.float32, torch.contiguous_format)
    assert_near(found, images, recipe, torch.float32, torch.contiguous_format, 1.0)


def test_what_has_its_size_already_comes_as_it_is():
    images = of_all_kinds(40, 31, 3)
    recipe = Augment((40, 31), RandomResizedCrop((1.0, 1.0), (31 / 40, 31 / 40)), normalize=LEVELS)
    engine = DaliEngine(recipe, shape=(40, 31, 3), batch_size=8, device=CPU, threads=2)
    found = made_by_dali(engine, images, recipe, 3, torch.float32, torch.contiguous_format)
    assert torch.equal(found, torch.from_numpy(images).permute(0, 3, 1, 2).float())


def test_a_batch_of_images_that_all_have_their_size_is_cropped_where_a_mixed_one_is():
    recipe = Augment((24, 22), RandomCrop(resize=30), flip=0.5, normalize=LEVELS)
    images = [np.random.default_rng(i).integers(0, 256, (30, 41, 3), dtype=np.uint8) for i in range(3)]
    other = np.random.default_rng(9).integers(0, 256, (60, 45, 3), dtype=np.uint8)
    engine = with_graph(DaliEngine(recipe, shape=None, batch_size=4, device=CPU, threads=2))
    alone = made_by_dali(engine, [png(image) for image in images], recipe, 3, torch.float32, torch.contiguous_format)
    mixed = [png(image) for image in [*images, other]]
    assert torch.equal(made_by_dali(engine, mixed, recipe, 3, torch.float32, torch.contiguous_format)[:3], alone)
    assert_near(alone, images, recipe, torch.float32, torch.contiguous_format)


def photographs(archive):
    with tarfile.open(archive) as tar:
        return [np.frombuffer(tar.extractfile(member).read(), np.uint8) for member in tar if member.isfile()]


def turned_and_grey():
    exif = Image.Exif()
    exif[0x112] = 6
    noise = np.random.default_rng(4).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((400, 300), Image.Resampling.BICUBIC)
    files = []
    for picture, options in ((image, {"exif": exif.tobytes()}), (image.convert("L"), {}), (image.convert("CMYK"), {})):
        file = io.BytesIO()
        picture.save(file, "JPEG", **options)
        files.append(np.frombuffer(file.getvalue(), np.uint8))
    return files


@pytest.mark.parametrize(
    ("recipe", "most"),
    [
        (Augment(60, RandomCrop(), flip=0.5, normalize=LEVELS), 0.0),
        (Augment(224, RandomCrop(resize=256), flip=0.5, normalize=LEVELS), 1.0),
        (Augment(224, RandomResizedCrop(), flip=0.5, normalize=LEVELS), 1.0),
    ],
)
def test_photographs_finished_by_the_graph_are_as_those_finished_by_the_kernel(imagenet_tar, recipe, most):
    files = [*photographs(imagenet_tar), *turned_and_grey()]
    engine = DaliEngine(recipe, shape=None, batch_size=len(files), device=CPU)
    by_kernel = made_by_dali(engine, files, recipe, 3, torch.float32, torch.contiguous_format)
    by_graph = made_by_dali(with_graph(engine), files, recipe, 3, torch.float32, torch.contiguous_format)
    error = (by_kernel - by_graph).abs()
    assert error.max() <= most
    if most:  # rounded once, and not after each axis
        assert 0 < (error > 0).double().mean() < 0.25


def test_photographs_finished_by_the_kernel_are_those_of_the_fused_engine_but_for_the_decoder(imagenet_tar):
    files = [*photographs(imagenet_tar)[:20], *turned_and_grey()[:2]]
    for recipe in (
        RECIPES["all"].at(96),
        Augment.imagenet(96),
        Augment(96, RandomCrop(resize=100), 0.5, normalize=LEVELS),
    ):
        engine = DaliEngine(recipe, shape=None, batch_size=len(files), device=CPU, threads=2)
        with engine._decoder.decoded(EncodedBatch.of_whole(files), recipe.misfit) as (upright, _):
            images = [np.array(upright[i]) for i in range(len(files))]
        found = made_by_dali(engine, files, recipe, 3, torch.float32, torch.contiguous_format)
        for i, image in enumerate(images):
            assert torch.equal(found[i], fused(recipe, image, keys_of(len(files)), i, torch.float32, False))
        turned = ImageOps.exif_transpose(Image.open(io.BytesIO(files[20].tobytes())))
        assert images[20].shape[:2] == turned.size[::-1] == (400, 300)


# -- bad input -----------------------------------------------------------------------------------------------------


def test_a_normalized_output_is_no_uint8():
    for shape in ((20, 27, 3), None):
        with pytest.raises(UsageError, match=r"dtype=torch\.uint8 .*normalize="):
            DaliEngine(Augment.paper(12), shape=shape, batch_size=4, device=CPU, dtype=torch.uint8, threads=2)


@pytest.mark.parametrize("form", ["decoded", "encoded"])
@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        (Augment(12, RandomCrop(pad=12)), "too small to reflect pad=12"),
        (Augment((40, 12), RandomCrop(pad=4, mode="constant")), "10×30 pixels with pad=4, too small for size=40×12"),
        (Augment((12, 1), RandomResizedCrop()), "more than 64 times size=12×1"),
    ],
)
def test_an_image_that_a_step_cannot_take_is_named(form, recipe, says):
    fitting, other = ((40, 50), (10, 300)) if "64 times" in says else ((40, 50), (10, 30))
    good, bad = (png(np.full((*sides, 3), 9, np.uint8)) for sides in (fitting, other))
    engine = DaliEngine(recipe, shape=None, batch_size=3, device=CPU, threads=2)
    engine = with_graph(engine) if form == "decoded" else engine
    with pytest.raises(SampleError, match=f"sample 1 of the batch is .*{says}"):
        made_by_dali(engine, [good, bad, good], recipe, 3, torch.float32, torch.contiguous_format)
    assert made_by_dali(engine, [good], recipe, 3, torch.float32, torch.contiguous_format).isfinite().all()


def test_the_parameters_are_those_of_the_samples_own_sides():
    recipe, keys = Augment(12, RandomResizedCrop()), keys_of(4)
    sides = np.array([(40, 50), (41, 50), (90, 20), (20, 90)])
    together = draw_parameters(recipe, keys, sides)
    for i, own in enumerate(sides):
        one = SampleKeys(keys.seed, keys.stream, keys.ids[i : i + 1], keys.epochs[i : i + 1])
        assert (draw_parameters(recipe, one, tuple(own)).places == together.places[i]).all()
