"""The DALI engine against references in float64 and Pillow, its errors, and what it leaves behind.

The steps of all recipes are compared with the fused engine's in test_dali_steps.py.
"""

from __future__ import annotations

import gc
import io
import re
import sys
import tarfile
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from recipes import paper_like
from reference import parameters as words_of

from fastload.augment import Augment, PaperColor, PerImage
from fastload.augment.parameters import SampleKeys, draw_parameters, stream_number
from fastload.augment.recipe import resized
from fastload.common.install import cuda_install_command
from fastload.errors import UsageError

pytest.importorskip("nvidia.dali", reason="DALI is not installed (extra cuda13)")
from fastload.common.dali_decoder import decoded_files
from fastload.feeds.dali_engine import DaliEngine
from fastload.feeds.dali_errors import SampleError
from fastload.feeds.file_heads import head_is_sound

CPU = torch.device("cpu")
PLAIN = {"flip": 0.0, "brightness": 0.0, "contrast": (1.0, 1.0), "standardize": None}
UNIT = {torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}


def reference(image, parameters, i, augment):
    """The pixels of sample i of what is not resized, float64 [C, h, w], and what they were divided by."""
    top, left = int(parameters.top[i]), int(parameters.left[i])
    values = image[top : top + augment.sides[0], left : left + augment.sides[1]].astype(np.float64)
    if parameters.flip[i]:
        values = values[:, ::-1]
    color, divisor = augment.color, 1.0
    if isinstance(color, PaperColor):
        values = values + np.float64(parameters.brightness[i])
        mean = values.mean(axis=(0, 1))
        values = (values - mean) * np.float64(parameters.contrast[i]) + mean
        values = np.minimum(np.maximum(values, 0), 255) if color.clamp else values
    if isinstance(augment.normalize, PerImage):
        if augment.normalize.divisor == "stddev":
            divisor = max(np.sqrt(((values - values.mean()) ** 2).mean()), 1 / np.sqrt(values.size))
        else:
            divisor = max(((values - values.mean()) ** 2).mean(), 1 / values.size)
        values = (values - values.mean()) / divisor
    return values.transpose(2, 0, 1), divisor


def assert_meets_reference(out, images, augment, keys=None):
    keys = keys or keys_of(len(images))
    parameters = draw_parameters(augment, keys, np.array([image.shape[:2] for image in images]).reshape(-1, 2))
    for i, image in enumerate(images):
        expected, divisor = reference(image, parameters, i, augment)
        bound = 1e-4 * np.maximum(max(1, 1 / divisor), abs(expected))
        bound += UNIT[out.dtype] * (abs(expected) + bound) + 2**-24  # float16's subnormals are 2**-24 apart
        error = abs(out[i].to(torch.float64).numpy() - expected)
        assert (error <= bound).all(), f"image {i}: {error.max()} where {bound.flat[error.argmax()]} is allowed"


def keys_of(count, seed=3):
    return SampleKeys(seed, stream_number(0), np.arange(count), np.zeros(count, np.int64))


def some_of(keys, chosen):
    return SampleKeys(keys.seed, keys.stream, keys.ids[chosen], keys.epochs[chosen])


def difficult_images(shape):
    """Noise, flat, black, white, nearly black, and two that contrast saturates."""
    random = np.random.default_rng(1)
    noise = random.integers(0, 256, (4, *shape), dtype=np.uint8)
    flat = np.full((1, *shape), 137, np.uint8)
    dark = np.zeros((1, *shape), np.uint8)
    dark[0, shape[0] // 2, shape[1] // 2] = 1
    halves = np.zeros((2, *shape), np.uint8)
    halves[:, :, shape[1] // 2 :] = 255
    return np.concatenate([noise, flat, flat * 0, flat * 0 + 255, dark, halves])


def augmented(augment, samples, shape, keys=None, engine=None, **output):
    keys = keys or keys_of(len(samples))
    dtype = output.get("dtype", torch.float32)
    channels = 3 if shape is None else shape[2]
    out = torch.full((len(samples), channels, *augment.sides), torch.nan, dtype=dtype)
    out = out.to(memory_format=output.get("memory_format", torch.contiguous_format))
    made = engine or DaliEngine(augment, shape=shape, batch_size=16, device=CPU, threads=2, **output)
    made(samples, keys, out)
    if engine is None:
        made.close()
    return out


def encoded(image, kind="PNG", **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return np.frombuffer(file.getvalue(), np.uint8)


# -- the steps -----------------------------------------------------------------------------------------------------

SETTINGS = {
    "default": {},
    "no clamp": {"clamp": False},
    "variance": {"standardize": "variance"},
    "variance, no clamp": {"standardize": "variance", "clamp": False},
    "pixel values": {"standardize": None},
    "no flip": {"flip": 0.0},
    "brightness only": {"contrast": (1.0, 1.0), "standardize": None},
    "contrast only": {"brightness": 0.0, "standardize": None},
    "contrast to nothing": {"contrast": (0.0, 0.0), "standardize": None},
    "strong": {"brightness": 255.0, "contrast": (0.0, 8.0)},
    "standardize only": {**PLAIN, "standardize": "stddev"},
    "crop only": PLAIN,
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_raw_images_meet_the_float64_reference(settings, channels):
    shape = (20, 27, channels)
    images = difficult_images(shape)
    for augment in (paper_like(crop=(12, 9), **settings), paper_like(crop=(12, 9), **settings).evaluation()):
        out = augmented(augment, images, shape)
        assert_meets_reference(out, images, augment)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("standardize", ["stddev", None])
def test_output_is_rounded_once_to_any_dtype_and_memory_format(dtype, memory_format, standardize):
    augment = paper_like(crop=(12, 9), standardize=standardize)
    images = difficult_images((20, 27, 3))
    out = augmented(augment, images, (20, 27, 3), dtype=dtype, memory_format=memory_format)
    assert out.is_contiguous(memory_format=memory_format)
    assert_meets_reference(out, images, augment)


@pytest.mark.parametrize("form", ["raw", "encoded"])
@pytest.mark.parametrize("built", [torch.contiguous_format, torch.channels_last])
def test_out_may_have_another_memory_format_than_the_engine_was_built_for(form, built):
    augment, images = Augment.paper((12, 9)), difficult_images((20, 27, 3))
    shape = (20, 27, 3) if form == "raw" else None
    engine = DaliEngine(augment, shape=shape, batch_size=16, device=CPU, memory_format=built)
    samples = images if form == "raw" else [encoded(image) for image in images]
    for wanted in (torch.contiguous_format, torch.channels_last):
        out = torch.full((len(images), 3, 12, 9), torch.nan).to(memory_format=wanted)
        engine(samples, keys_of(len(images)), out)
        assert_meets_reference(out, images, augment)


def test_large_crops_meet_the_reference_where_float32_sums_are_long():
    smooth = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((256, 240))
    images = np.stack([np.array(smooth), np.full((240, 256, 3), 201, np.uint8)])
    for settings in ({}, {"standardize": "variance"}, {"brightness": 0.0, "contrast": (1.0, 1.0)}):
        augment = paper_like(crop=224, **settings)
        assert_meets_reference(augmented(augment, images, (240, 256, 3)), images, augment)


@pytest.mark.parametrize("form", ["raw", "encoded"])
def test_what_happens_to_an_image_hangs_on_its_own_key_only(form):
    augment = Augment.paper((12, 9))
    images = np.random.default_rng(2).integers(0, 256, (3, 20, 27, 3), dtype=np.uint8)
    samples, shape = (images, (20, 27, 3)) if form == "raw" else ([encoded(image) for image in images], None)
    engine = DaliEngine(augment, shape=shape, batch_size=3, device=CPU)
    before = keys_of(3)
    first = augmented(augment, samples, shape, before, engine)
    for changed in (
        before._replace(ids=np.array([0, 77, 2])),
        before._replace(epochs=np.array([0, 1, 0])),
    ):
        second = augmented(augment, samples, shape, changed, engine)
        assert (first[1] - second[1]).abs().max() > 0.1
        assert torch.equal(first[0], second[0]) and torch.equal(first[2], second[2])
    for changed in (before._replace(seed=4), before._replace(stream=stream_number(1))):
        second = augmented(augment, samples, shape, changed, engine)
        assert all((a - b).abs().max() > 0.1 for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("setting", [{"clamp": False}, {"standardize": None}, {"standardize": "variance"}])
def test_each_setting_changes_the_result(setting):
    images = difficult_images((20, 27, 3))[:4]
    usual = augmented(paper_like(crop=(12, 9), contrast=(1.8, 1.8)), images, (20, 27, 3))
    changed = augmented(paper_like(crop=(12, 9), contrast=(1.8, 1.8), **setting), images, (20, 27, 3))
    assert (changed - usual).abs().max() > 0.01


# -- encoded images ------------------------------------------------------------------------------------------------


def picture(height=60, width=80):
    """A smooth colour picture, as JPEG likes them."""
    noise = np.random.default_rng(4).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def test_every_kind_of_file_becomes_upright_rgb():
    image = picture()
    alpha = image.copy()
    alpha.putalpha(Image.fromarray(np.arange(4800, dtype=np.uint8).reshape(60, 80)))
    deep = np.array(image)[..., 0].astype(np.uint16) * 257
    files = {
        "jpeg": encoded(image, "JPEG", quality=95),
        "progressive": encoded(image, "JPEG", progressive=True),
        "4:4:4": encoded(image, "JPEG", subsampling=0),
        "greyscale jpeg": encoded(image.convert("L"), "JPEG"),
        "cmyk": encoded(image.convert("CMYK"), "JPEG"),
        "png": encoded(image),
        "greyscale png": encoded(image.convert("L")),
        "palette": encoded(image.quantize(64)),
        "bilevel": encoded(image.convert("1")),
        "alpha": encoded(alpha),
        "grey alpha": encoded(alpha.convert("LA")),
        "16 bit": encoded(Image.fromarray(deep)),
    }
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x112] = orientation
        files[f"orientation {orientation}"] = encoded(image, "JPEG", exif=exif.tobytes())
    files["orientation 6, png"] = encoded(image, exif=exif.tobytes())
    augment = paper_like(crop=60, **PLAIN).evaluation()
    engine = DaliEngine(augment, shape=None, batch_size=len(files), device=CPU)
    out = augmented(augment, list(files.values()), None, engine=engine)
    for values, (kind, file) in zip(out, files.items(), strict=True):
        decoded = ImageOps.exif_transpose(Image.open(io.BytesIO(file.tobytes())))
        rgb = np.stack([deep >> 8] * 3, axis=-1) if kind == "16 bit" else np.array(decoded.convert("RGB"))
        top, left = (rgb.shape[0] - 60) // 2, (rgb.shape[1] - 60) // 2
        expected = rgb[top : top + 60, left : left + 60].transpose(2, 0, 1).astype(int)
        assert abs(values.numpy() - expected).max() <= 2, kind  # JPEG decoders may round otherwise


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("resize", [None, 30])
def test_encoded_images_of_many_sizes_meet_the_reference_and_those_of_the_size_are_not_resized(resize, centre):
    random = np.random.default_rng(5)
    sides = [(30, 30), (30, 47), (41, 30), (30, 300), (30, 31), (1000, 30)]
    images = [random.integers(0, 256, (*side, 3), dtype=np.uint8) for side in sides] * 4
    augment = Augment.paper((30, 22), resize=resize)
    augment = augment.evaluation() if centre else augment
    engine = DaliEngine(augment, shape=None, batch_size=len(images), device=CPU)
    out = augmented(augment, [encoded(image) for image in images], None, engine=engine)
    assert_meets_reference(out, images, augment)


@pytest.mark.parametrize("resize", [None, 40])
def test_every_corner_is_the_word_times_the_positions_shifted(resize):
    side, crop, count = 40, 33, 200
    image = np.stack(np.meshgrid(np.arange(97), np.arange(side), [0], indexing="xy"), -1)[:, :, 0].astype(np.uint8)
    augment = paper_like(crop=crop, resize=resize, **PLAIN)
    engine = DaliEngine(augment, shape=None, batch_size=count, device=CPU)
    out = augmented(augment, [encoded(image)] * count, None, engine=engine)
    words = [words_of(i, 0, 3, 0)[:2] for i in range(count)]
    assert out[:, 0, 0, 0].tolist() == [(left * (97 - crop + 1)) >> 32 for _, left in words]
    assert out[:, 1, 0, 0].tolist() == [(top * (side - crop + 1)) >> 32 for top, _ in words]


# -- resizing ------------------------------------------------------------------------------------------------------


def bilinear(before, after):
    """Antialiased bilinear weights, float64 [after, before]: a triangle as wide as the scale, cut off at the edges."""
    scale = before / after
    weights = np.zeros((after, before))
    for i in range(after):
        for t in range(before):
            weights[i, t] = max(0.0, 1 - abs(t + 0.5 - (i + 0.5) * scale) / max(scale, 1.0))
    return weights / weights.sum(axis=1, keepdims=True)


def shrunk(image, augment):
    height, width = resized(image.shape[:2], augment.resize)
    rows = np.tensordot(bilinear(image.shape[0], height), image.astype(np.float64), axes=(1, 0))
    return np.tensordot(bilinear(image.shape[1], width), rows, axes=(1, 1)).transpose(1, 0, 2)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 1000))
def test_the_shorter_side_becomes_resize_and_the_longer_keeps_the_aspect(height, width, resize):
    sides = resized((height, width), resize)
    assert min(sides) == resize
    for before, after in zip((height, width), sides, strict=True):
        assert abs(after - before * resize / min(height, width)) <= 0.5


ROUNDED = {"raw": 0.501, "encoded": 1.1}
"""How far levels may be from unrounded ones: DALI rounds once, our kernel after each axis."""


@pytest.mark.parametrize("form", ["raw", "encoded"])
@pytest.mark.parametrize("sides", [(60, 80), (91, 50), (20, 33)])
@pytest.mark.parametrize("centre", [False, True])
def test_resizing_is_antialiased_bilinear_and_the_crop_is_of_the_resized_image(form, sides, centre):
    image = np.array(picture(*sides))
    image[::2] //= 2  # stripes, which alias without the filter
    augment = paper_like(crop=(32, 30), resize=32, centre=centre, **PLAIN)
    samples, shape = (np.stack([image] * 8), image.shape) if form == "raw" else ([encoded(image)] * 8, None)
    out = augmented(augment, samples, shape).numpy()
    small, parameters = shrunk(image, augment), draw_parameters(augment, keys_of(8), sides)
    for i in range(8):
        assert abs(out[i] - reference(small, parameters, i, augment)[0]).max() <= ROUNDED[form]


def test_raw_images_of_the_right_size_are_the_same_with_resize_and_without():
    images = difficult_images((20, 27, 3))
    plain, with_resize = Augment.paper((12, 9)), Augment.paper((12, 9), resize=20)
    assert torch.equal(augmented(plain, images, (20, 27, 3)), augmented(with_resize, images, (20, 27, 3)))


def test_real_photographs_are_decoded_as_by_pillow_resized_and_cropped(imagenet_tar):
    files = []
    with tarfile.open(imagenet_tar) as tar:
        for member in tar:
            if member.isfile() and member.name.lower().endswith((".jpg", ".jpeg", ".png")):
                files.append(np.frombuffer(tar.extractfile(member).read(), np.uint8))
            if len(files) == 12:
                break
    augment = paper_like(crop=224, resize=256, **PLAIN | {"flip": 0.5})
    out = augmented(augment, files, None).numpy()
    for i, file in enumerate(files):
        photograph = ImageOps.exif_transpose(Image.open(io.BytesIO(file.tobytes()))).convert("RGB")
        small = shrunk(np.array(photograph), augment)
        parameters = draw_parameters(augment, keys_of(12), photograph.size[::-1])
        cropped = reference(small, parameters, i, augment)
        assert abs(out[i] - cropped[0]).max() <= ROUNDED["encoded"] + 1  # one more for the decoders


@pytest.mark.parametrize(
    "sides", [(1, 1), (1, 37), (2, 3), (31, 2), (33, 700), (900, 32), (64, 64), (31, 33), (32, 40)]
)
def test_encoded_images_are_resized_from_any_size_and_cropped_up_to_the_edges(sides):
    image = np.random.default_rng(6).integers(0, 256, (*sides, 3), dtype=np.uint8)
    augment = paper_like(crop=(32, 30), resize=32, **PLAIN)
    out = augmented(augment, [encoded(image)] * 16, None).numpy()
    small, parameters = shrunk(image, augment), draw_parameters(augment, keys_of(16), sides)
    for i in range(16):
        expected = reference(small, parameters, i, augment)[0]
        assert abs(out[i] - expected).max() <= (0 if sides == (32, 40) else ROUNDED["encoded"])


def test_encoded_images_are_the_same_whatever_the_number_of_threads_and_the_rest_of_the_batch():
    files = [encoded(picture(40 + 7 * i, 90 - 3 * i)) for i in range(20)]
    augment, keys = Augment.paper(30, resize=33), keys_of(20)
    whole, alone = torch.empty(20, 3, 30, 30), torch.empty(20, 3, 30, 30)
    DaliEngine(augment, shape=None, batch_size=20, device=CPU, threads=4)(files, keys, whole)
    single = DaliEngine(augment, shape=None, batch_size=1, device=CPU, threads=1)
    for i in range(20):
        single(files[i : i + 1], some_of(keys, [i]), alone[i : i + 1])
    assert torch.equal(whole, alone)


# -- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["text", "empty header", "cut jpeg", "cut png"])
@pytest.mark.parametrize("resize", [None, 32])
def test_an_undecodable_sample_is_named_by_its_position_and_the_engine_goes_on(bad, resize):
    good = encoded(picture())
    broken = {
        "text": np.frombuffer(b"<html>404</html>", np.uint8),
        "empty header": encoded(picture(), "JPEG")[:3],
        "cut jpeg": encoded(picture(), "JPEG")[:-400],
        "cut png": good[: len(good) // 2],
    }[bad]
    augment = Augment.paper(30, resize=resize)
    engine = DaliEngine(augment, shape=None, batch_size=4, device=CPU)
    before = augmented(augment, [good] * 4, None, engine=engine)
    with pytest.raises(SampleError, match="sample 2 of the batch cannot be decoded") as caught:
        augmented(augment, [good, good, broken, good], None, engine=engine)
    assert caught.value.position == 2 and "\n" not in str(caught.value)
    assert torch.equal(augmented(augment, [good] * 4, None, engine=engine), before)


@pytest.mark.parametrize(
    ("augment", "small", "says"),
    [
        (Augment.paper((50, 50)), (40, 70), "is 40×70 pixels, too small for size=50×50; .*resize=50"),
        (
            Augment.paper((30, 50), resize=32),
            (64, 64),
            "is 32×32 pixels resized from 64×64, .*size=30×50.*resize=50",
        ),
    ],
)
def test_an_image_smaller_than_the_crop_is_named_with_what_to_do(augment, small, says):
    samples = [encoded(picture(60, 120)), encoded(picture(*small))]
    for changed in (augment, augment.evaluation()):
        engine = DaliEngine(changed, shape=None, batch_size=2, device=CPU)
        with pytest.raises(SampleError, match=f"sample 1 of the batch {says}"):
            augmented(changed, samples, None, engine=engine)
        assert augmented(changed, samples[:1], None, engine=engine).isfinite().all()


def test_of_a_small_image_and_a_damaged_one_the_first_is_named():
    good, small, damaged = (encoded(picture(*sides), "JPEG") for sides in ((60, 60), (20, 60), (60, 60)))
    engine = DaliEngine(Augment.paper(30), shape=None, batch_size=3, device=CPU)
    for samples, says in (((good, small, damaged[:-400]), "too small"), ((good, damaged[:-400], small), "be decoded")):
        with pytest.raises(SampleError, match=f"sample 1 of the batch .*{says}"):
            augmented(Augment.paper(30), samples, None, engine=engine)


def test_a_crop_larger_than_the_raw_images_is_refused_at_construction():
    for augment, shape in ((Augment.paper(33), (32, 40, 3)), (Augment.paper((8, 40), resize=32), (64, 64, 1))):
        with pytest.raises(UsageError, match=r"too small for size=.*resize="):
            DaliEngine(augment, shape=shape, batch_size=4, device=CPU)


def test_without_dali_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(UsageError, match=re.escape(cuda_install_command())):
        DaliEngine(Augment.paper(24), shape=(32, 32, 3), batch_size=4, device=CPU)


# -- buffers, threads, interruptions -------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["raw", "encoded"])
def test_partial_batches_of_any_size_follow_each_other_and_earlier_outputs_stay_intact(form):
    augment, images = (
        Augment.paper((12, 9)),
        np.random.default_rng(6).integers(0, 256, (16, 20, 27, 3), dtype=np.uint8),
    )
    shape = (20, 27, 3) if form == "raw" else None
    engine = DaliEngine(augment, shape=shape, batch_size=16, device=CPU)
    made = []
    for count in (16, 1, 7, 16, 0, 3):
        chosen = np.random.default_rng(count).permutation(16)[:count]
        samples = images[chosen] if form == "raw" else [encoded(image) for image in images[chosen]]
        made.append((chosen, augmented(augment, samples, shape, engine=engine)))
        if form == "raw":
            samples[:] = 0  # the caller's buffer is its own again
    for chosen, out in made:
        assert_meets_reference(out, images[chosen], augment)


def test_samples_may_be_a_torch_tensor_strided_or_read_only():
    augment, images = Augment.paper((12, 9)), difficult_images((20, 27, 3))
    expected = augmented(augment, images, (20, 27, 3))
    frozen = images.copy()
    frozen.flags.writeable = False
    mirrored_planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    for samples in (torch.from_numpy(images), frozen, mirrored_planes):
        assert torch.equal(augmented(augment, samples, (20, 27, 3)), expected)


def test_the_result_does_not_depend_on_the_number_of_threads_or_the_rest_of_the_batch():
    augment, images = (
        Augment.paper(24),
        np.random.default_rng(7).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8),
    )
    keys = keys_of(64)
    whole, alone = torch.empty(64, 3, 24, 24), torch.empty(64, 3, 24, 24)
    DaliEngine(augment, shape=(32, 32, 3), batch_size=64, device=CPU, threads=4)(images, keys, whole)
    single = DaliEngine(augment, shape=(32, 32, 3), batch_size=1, device=CPU, threads=1)
    for i in range(64):
        single(images[i : i + 1], some_of(keys, [i]), alone[i : i + 1])
    assert torch.equal(whole, alone)


def test_after_an_interruption_between_inputs_no_stale_input_is_used(monkeypatch):
    augment, images = Augment.paper((12, 9)), difficult_images((20, 27, 3))
    engine = DaliEngine(augment, shape=(20, 27, 3), batch_size=16, device=CPU)
    feed = engine._steps._pipeline.feed_input

    def interrupted(name, values, **options):
        if name == "brightness":
            raise KeyboardInterrupt
        feed(name, values, **options)

    monkeypatch.setattr(engine._steps._pipeline, "feed_input", interrupted)
    with pytest.raises(KeyboardInterrupt):
        augmented(augment, images[::-1], (20, 27, 3), engine=engine)
    out = augmented(augment, images, (20, 27, 3), engine=engine)
    assert_meets_reference(out, images, augment)


def test_other_python_threads_run_while_a_batch_is_made():
    images = np.random.default_rng(8).integers(0, 256, (64, 256, 256, 3), dtype=np.uint8)
    augment, out = Augment.paper(224), torch.empty(64, 3, 224, 224)
    engine = DaliEngine(augment, shape=(256, 256, 3), batch_size=64, device=CPU, threads=1)
    pipeline_run, inside = engine._steps._pipeline.run, []

    def run():
        started, ticks = time.perf_counter(), []
        stop = threading.Event()

        def tick():
            while not stop.is_set():
                ticks.append(time.perf_counter())

        thread = threading.Thread(target=tick)
        thread.start()
        result = pipeline_run()
        ended = time.perf_counter()
        stop.set()
        thread.join()
        inside.append(sum(started + (ended - started) / 4 < t < ended - (ended - started) / 4 for t in ticks))
        return result

    engine._steps._pipeline.run = run
    engine(images, keys_of(64), out)
    assert inside[0] > 100


def test_close_ends_the_pipelines_threads_and_may_be_called_twice():
    def threads():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("Threads:"))

    gc.collect()  # an engine of the test before, held by a cycle, would end its threads while these are counted
    DaliEngine(Augment.paper(24), shape=None, batch_size=4, device=CPU, threads=1).close()  # what DALI starts once
    before = threads()
    engine = DaliEngine(Augment.paper(24), shape=None, batch_size=4, device=CPU, threads=5)
    augmented(Augment.paper(24), [encoded(picture())] * 4, None, engine=engine)
    assert threads() >= before + 5
    engine.close()
    engine.close()
    assert threads() <= before
    with pytest.raises(UsageError, match="closed"):
        augmented(Augment.paper(24), [encoded(picture())], None, engine=engine)


# -- CUDA ----------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("form", ["raw", "raw on the GPU", "png"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_on_cuda_the_same_pixels_meet_the_reference_on_a_stream_of_the_callers(form, settings):
    images, device = difficult_images((20, 27, 3)), torch.device("cuda", 0)
    shape = None if form == "png" else (20, 27, 3)
    for dtype, memory_format in (
        (torch.float32, torch.contiguous_format),
        (torch.bfloat16, torch.channels_last),
    ):
        augment = paper_like(crop=(12, 9), **settings)
        engine = DaliEngine(
            augment, shape=shape, batch_size=16, device=device, dtype=dtype, memory_format=memory_format
        )
        out = torch.empty(len(images), 3, 12, 9, dtype=dtype, device=device).to(memory_format=memory_format)
        with torch.cuda.stream(torch.cuda.Stream(device)):
            for _ in range(3):
                out.fill_(torch.nan)
                samples = [encoded(image) for image in images] if shape is None else images
                if form == "raw on the GPU":
                    samples = torch.from_numpy(images).to(device, non_blocking=True)
                engine(samples, keys_of(len(images)), out)
                assert_meets_reference(out.cpu(), images, augment)
        engine.close()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda_photographs_are_as_on_the_cpu_but_for_the_decoders_rounding():
    files = [encoded(picture(300 + 10 * i, 400), "JPEG", quality=95, subsampling=0) for i in range(6)]
    augment = paper_like(crop=224, resize=256, **PLAIN | {"flip": 0.5})
    engine = DaliEngine(augment, shape=None, batch_size=16, device=torch.device("cuda", 0))
    out = torch.empty(6, 3, 224, 224, device="cuda:0")
    engine(files, keys_of(6), out)
    assert (out.cpu() - augmented(augment, files, None)).abs().max() <= 4
    with pytest.raises(SampleError, match="sample 1 of the batch cannot be decoded"):
        engine([files[0], files[1][:300]], keys_of(2), out[:2])


def encoded_as(kind: str, image: Image.Image) -> np.ndarray:
    file = io.BytesIO()
    image.save(file, kind)
    return np.frombuffer(file.getvalue(), np.uint8)


class NoPipeline:
    """Stands for the pipeline of whole batches where nothing is to reach it."""

    def feed_input(self, name, files, cuda_stream=None):
        raise AssertionError("a batch with this file was given to DALI")


@pytest.mark.parametrize("refused", ["no image", "PNG, cut", "TIFF of 1 bit", "GIF"])
def test_a_file_that_dali_refuses_where_it_would_not_wait_for_its_threads_is_found_before_the_batch(refused) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    data = {
        "no image": np.arange(999, dtype=np.uint8),
        "PNG, cut": encoded_as("PNG", picture)[:20],
        "TIFF of 1 bit": encoded_as("TIFF", picture.convert("1")),
        "GIF": encoded_as("GIF", picture),
    }[refused]
    augment, count, threads = Augment.paper(8), 30, 2
    engine = DaliEngine(augment, shape=None, batch_size=count, device=torch.device("cpu"), threads=threads)
    keys, out = keys_of(count), torch.empty(count, 3, 8, 8)
    kept = engine._decoder._pipeline._pipeline
    for position in (20, 29):  # of three parts, the last is the caller's own
        files = [encoded_as("JPEG", picture)] * count
        files[position] = data
        engine._decoder._pipeline._pipeline = NoPipeline()
        with pytest.raises(SampleError, match=f"sample {position} of the batch cannot be decoded"):
            engine(files, keys, out)
    engine._decoder._pipeline._pipeline = kept
    engine([encoded_as(kind, picture) for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF")] * 6, keys, out)
    assert torch.isfinite(out).all()


def test_a_file_with_a_sound_head_is_refused_by_dali_at_its_pixels_if_at_all() -> None:
    dali = pytest.importorskip("nvidia.dali")
    draw = np.random.default_rng(0)
    picture = Image.fromarray(draw.integers(0, 256, (24, 24, 3), np.uint8))
    whole = [encoded_as("JPEG", picture), encoded_as("PNG", picture)]

    def build():
        pipeline = dali.Pipeline(1, 1, None, prefetch_queue_depth=1, exec_dynamic=True)
        with pipeline:
            pipeline.set_outputs(decoded_files(None))
        pipeline.build()
        return pipeline

    pipeline, sound = build(), 0
    for number in range(400):
        file = whole[number % 2].copy()
        for _ in range(draw.integers(1, 3)):
            file[draw.integers(0, min(len(file), 400))] = draw.integers(0, 256)
        if draw.random() < 0.15:
            file = file[: draw.integers(1, len(file))]
        if not head_is_sound(file):
            continue
        sound += 1
        try:
            pipeline.feed_input("samples", [file])
            pipeline.run()
        except RuntimeError as error:
            told = str(error)
            assert "Failed to decode sample" in told, (told, bytes(file[:60]))
            pipeline = build()
    assert sound > 40
    assert all(head_is_sound(file) for file in whole)
    assert not any(head_is_sound(file[:30]) for file in whole)
