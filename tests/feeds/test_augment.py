"""The fused engine against the float64 reference: every step, output type, layout and size, and flat images."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packs import noise_images, write_raw
from places import ROOT
from recipes import paper_like

from fastload.augment import Augment, CenterCrop, PaperColor, PerImage
from fastload.augment.parameters import SampleKeys, draw_parameters, stream_number
from fastload.feeds.batch import Output
from fastload.feeds.feed import open_feed
from fastload.feeds.fused_engine import FusedEngine
from fastload.kernels.augment import bfloat16_bits, float16_bits
from fastload.kernels.image_layout import uniform_layout
from fastload.order import FAST, FINE_TUNE, Order
from fastload.packed.file import PackedFile

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def fused(images, augment, ids, epochs, *, seed=7, phase=FAST, dtype="float32", channels_last=False, planar=False):
    """Run the CPU twin over uint8 [b, H, W, C] and return float64 [b, h, w, C]."""
    count, height, width, channels = images.shape
    size = height * width * channels
    stored = np.ascontiguousarray(images.transpose(0, 3, 1, 2) if planar else images)
    strides = (size, width, 1, height * width) if planar else (size, width * channels, channels, 1)
    engine = FusedEngine(
        augment,
        seed=seed,
        phase=phase,
        layout=uniform_layout((height, width, channels), strides),
        sides=[(height, width)],
        dtype=DTYPES[dtype],
        channels_last=channels_last,
        batch_size=max(1, count),
    )
    h, w = augment.sides
    out = np.empty((count, h * w * channels), np.float32 if dtype == "float32" else np.int16)
    engine.on_cpu(stored.reshape(-1), np.arange(count), np.asarray(ids), np.asarray(epochs), out)
    got = torch.from_numpy(out)
    if dtype != "float32":
        got = got.view(DTYPES[dtype])
    shape = (count, h, w, channels) if channels_last else (count, channels, h, w)
    values = got.double().reshape(shape).numpy()
    return values if channels_last else values.transpose(0, 2, 3, 1)


def drawn_parameters(augment, seed, phase, ids, epochs, sides):
    keys = SampleKeys(seed, stream_number(phase), np.asarray(ids), np.asarray(epochs))
    return draw_parameters(augment, keys, sides)


def expected(image, augment, sample, epoch, *, seed=7, phase=FAST):
    color = augment.color or PaperColor(0.0, (1.0, 1.0), clamp=False)
    drawn = reference.parameters(sample, epoch, seed, phase, color.brightness, color.contrast, augment.flip)
    return reference.pixels(
        image,
        drawn,
        augment.sides,
        clamp=color.clamp,
        standardize=augment.normalize.divisor if isinstance(augment.normalize, PerImage) else None,
        centre=isinstance(augment.crop, CenterCrop),
    )


def awkward_images(height=32, width=32, channels=3):
    """Noise, gradients, and the flat images on which the divisor's floor magnifies every rounding."""
    rng = np.random.default_rng(0)
    shape = (height, width, channels)
    ramp = np.broadcast_to(np.linspace(0, 255, width)[None, :, None], shape)
    flat = [np.full(shape, value) for value in (0, 1, 100, 200, 255)]
    nearly = np.full(shape, 128)
    nearly[height // 2, width // 2] = 129
    colours = np.broadcast_to(np.arange(1, channels + 1) * 60, shape)
    return np.stack(
        [rng.integers(0, 256, shape), ramp, *flat, nearly, colours, rng.integers(0, 2, shape) * 255]
    ).astype(np.uint8)


def check(images, augment, *, ids=None, epochs=None, seed=7, phase=FAST, dtype="float32", **layout):
    ids = np.arange(len(images)) + 2**33 + 5 if ids is None else ids
    epochs = np.full(len(images), 3) if epochs is None else epochs
    got = fused(images, augment, ids, epochs, seed=seed, phase=phase, dtype=dtype, **layout)
    for i, image in enumerate(images):
        want, divisor = expected(image, augment, int(ids[i]), int(epochs[i]), seed=seed, phase=phase)
        reference.assert_close(got[i], want, divisor, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("planar", [False, True])
def test_every_output_type_and_layout_meets_the_reference(dtype, channels_last, planar):
    check(awkward_images(), Augment.paper(24), dtype=dtype, channels_last=channels_last, planar=planar)


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize(("channels", "channels_last"), [(1, False), (3, False), (3, True)])
def test_half_precision_outputs_are_the_float32_output_rounded_to_the_nearest(channels, planar, channels_last):
    images = np.random.default_rng(5).integers(0, 256, (20, 32, 32, channels)).astype(np.uint8)
    ids, epochs = np.arange(len(images)), np.zeros(len(images), np.int64)
    layout = {"planar": planar, "channels_last": channels_last}
    exact = torch.from_numpy(fused(images, Augment.paper((24, 21)), ids, epochs, **layout)).float()
    for name in ("float16", "bfloat16"):
        rounded = fused(images, Augment.paper((24, 21)), ids, epochs, dtype=name, **layout)
        # Compiled for another output, a sum may differ in its last bit, and a value by a tie go the other way.
        assert (torch.from_numpy(rounded) == exact.to(DTYPES[name]).double()).double().mean() > 0.999


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("crop", [24, (24, 21), (32, 8)])
def test_a_sample_has_the_same_bits_from_memory_and_from_a_file_in_any_batch(tmp_path, dtype, crop):
    images = np.random.default_rng(6).integers(0, 256, (300, 32, 32, 3)).astype(np.uint8)
    with PackedFile(write_raw(tmp_path / "noise.h5", images, np.arange(300))) as file:
        order, output = Order(300, 7, FAST), Output(200, torch.device("cpu"), DTYPES[dtype])
        feeds = [open_feed(file, Augment.paper(crop), order, output, resident=one) for one in (True, False)]
        resident, streamed = (feed.make(250, 200).images for feed in feeds)
        assert torch.equal(resident, streamed)
        assert torch.equal(feeds[0].make(300, 9).images, resident[50:59])
        for feed in feeds:
            feed.close()


@pytest.mark.parametrize("width", [1, 5, 15, 16, 17, 21, 22, 31, 64, 65, 100])
def test_rows_of_any_length_are_copied_whole_and_no_further(width):
    # The last row of the last image ends the array; every block that is copied too far would show in the pixels.
    images = np.random.default_rng(3).integers(0, 256, (3, 6, width, 3)).astype(np.uint8)
    for planar in (False, True):
        for flip in (0.0, 1.0):
            augment = paper_like(crop=(6, width), flip=flip, brightness=0.0, contrast=(1.0, 1.0), standardize=None)
            got = fused(images, augment, np.arange(3), np.zeros(3, np.int64), planar=planar)
            assert np.array_equal(got, images[:, :, ::-1] if flip else images)


def test_an_empty_batch_is_left_alone():
    none = np.zeros(0, np.int64)
    assert fused(awkward_images()[:0], Augment.paper(24), none, none).shape == (0, 24, 24, 3)


# Each row is a kernel of its own, which takes seconds to compile: any two values meet in one.
@pytest.mark.parametrize(
    ("standardize", "clamp", "centre"),
    [
        ("stddev", True, True),
        ("stddev", False, False),
        ("variance", True, False),
        ("variance", False, True),
        (None, True, False),
        (None, False, True),
    ],
)
def test_every_setting_meets_the_reference(standardize, clamp, centre):
    check(awkward_images(), paper_like(crop=(20, 27), clamp=clamp, standardize=standardize, centre=centre))


@pytest.mark.parametrize(
    ("shape", "crop"), [((40, 31, 1), (8, 9)), ((9, 64, 4), (9, 64)), ((33, 70, 2), 33), ((8, 8, 3), 1)]
)
def test_other_shapes_meet_the_reference(shape, crop):
    check(awkward_images(*shape), Augment.paper(crop))


def test_large_flat_images_meet_the_reference():
    images = awkward_images(520, 520)[[0, 3, 5, 7]]
    check(images, Augment.paper(512))
    check(images, paper_like(crop=512, standardize="variance"))


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**64 - 1),
    sample=st.integers(0, 2**62),
    epoch=st.integers(0, 2**32 - 1),
    phase=st.sampled_from([FAST, FINE_TUNE]),
    flip=st.floats(0, 1),
    brightness=st.floats(0, 200, width=32),
    contrast=st.tuples(st.floats(0, 3, width=32), st.floats(0, 3, width=32)).map(lambda pair: tuple(sorted(pair))),
)
def test_any_settings_and_counters_meet_the_reference(seed, sample, epoch, phase, flip, brightness, contrast):
    augment = paper_like(crop=10, flip=flip, brightness=brightness, contrast=contrast)
    drawn = drawn_parameters(augment, seed, phase, [sample], [epoch], (16, 16))
    want = reference.parameters(sample, epoch, seed, phase, brightness, contrast, flip)
    top, left = ((int(word) * 7) >> 32 for word in want[:2])
    found = (drawn.top[0], drawn.left[0], drawn.flip[0], drawn.brightness[0], drawn.contrast[0])
    if augment.color is None:
        assert found[:3] == (top, left, want[2])
    else:
        assert found == (top, left, *want[2:])
    check(
        awkward_images(16, 16)[:3],
        augment,
        ids=np.full(3, sample),
        epochs=np.full(3, epoch),
        seed=seed,
        phase=phase,
    )


@pytest.mark.parametrize(
    "without",
    [
        {"centre": True},
        {"flip": 0.0},
        {"brightness": 0.0},
        {"contrast": (1.0, 1.0)},
        {"clamp": False},
        {"standardize": None},
        {"standardize": "variance"},
    ],
)
def test_each_step_changes_the_result(without):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (16, 32, 32, 3)).astype(np.uint8)
    ids, epochs = np.arange(16), np.zeros(16, np.int64)
    plain = fused(images, Augment.paper(24), ids, epochs)
    other = fused(images, paper_like(crop=24, **without), ids, epochs)
    changed = np.abs(plain - other).reshape(16, -1).max(axis=1) > 1e-2
    assert changed.sum() >= 4  # a flip, say, is drawn for half of the images


def test_parameters_spread_over_their_whole_ranges():
    augment = Augment.paper(24)
    drawn = drawn_parameters(augment, 0, FAST, np.arange(20_000), np.zeros(20_000, np.int64), (32, 32))
    counts = np.bincount(drawn.top, minlength=9)
    # Each of the nine corners: a binomial with mean 2,222 and deviation 44.
    assert len(counts) == 9 and counts.min() > 2000 and counts.max() < 2450
    assert abs(drawn.flip.mean() - 0.5) < 0.02
    assert drawn.brightness.min() < -62.5 and drawn.brightness.max() > 62.5 and abs(drawn.brightness.mean()) < 1.5
    assert drawn.contrast.min() < 0.21 and drawn.contrast.max() > 1.79 and abs(drawn.contrast.mean() - 1) < 0.02


def test_flip_probabilities_at_the_ends_are_certain():
    ids, epochs = np.arange(1000), np.zeros(1000, np.int64)
    assert not drawn_parameters(paper_like(crop=1, flip=0.0), 0, FAST, ids, epochs, (1, 1)).flip.any()
    assert drawn_parameters(paper_like(crop=1, flip=1.0), 0, FAST, ids, epochs, (1, 1)).flip.all()


def test_half_precision_bits_round_as_torch_does():
    rng = np.random.default_rng(2)
    values = np.concatenate(
        [
            rng.standard_normal(4000) * 10.0 ** rng.uniform(-9, 4.8, 4000),
            [65504, 65519, 65520, 1e9, 6e-8, 2.98e-8, 2.981e-8, 0.0, -0.0, 1 + 2**-11, 1 + 3 * 2**-11],
        ]
    ).astype(np.float32)
    for bits, dtype in ((float16_bits, torch.float16), (bfloat16_bits, torch.bfloat16)):
        got = np.array([bits(value) for value in values], np.uint16)
        want = torch.from_numpy(values).to(dtype).view(torch.int16).numpy().view(np.uint16)
        assert np.array_equal(got, want)


def test_evaluation_takes_the_centre_and_nothing_random():
    augment = Augment.paper(24).evaluation()
    images = awkward_images()[:2]
    first = fused(images, augment, [1, 2], [0, 0], seed=1)
    second = fused(images, augment, [5, 6], [9, 9], seed=2)
    assert np.array_equal(first, second)
    centre = images[:, 4:28, 4:28].astype(np.float64)
    centred = centre - centre.mean(axis=(1, 2, 3), keepdims=True)
    assert np.allclose(first, centred / centred.std(axis=(1, 2, 3), keepdims=True), atol=1e-5)


BATCHES = """
import sys, zlib
import numpy as np
from fastload import Augment, PackedFile
from fastload.feeds.feed import stream

with PackedFile(sys.argv[1]) as file:
    for images, *_ in stream(file, Augment.paper(24), batch_size=32, steps=40, phase=0):
        print(zlib.crc32(images.numpy().tobytes()))
"""


def test_kernels_from_a_cold_cache_and_from_a_warm_one_give_the_same_bits(tmp_path):
    path = write_raw(tmp_path / "full.h5", noise_images(400), np.arange(400) % 10)
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    cold, warm = (
        subprocess.run(
            [sys.executable, "-c", BATCHES, str(path)], env=environment, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    )
    assert len(cold.split()) == 40 and cold == warm
