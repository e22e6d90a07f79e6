"""What a kernel makes of images of any sizes that another library decoded, against a float64 reference."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from recipes import paper_like

from fastload.augment import Augment, CenterCrop, Erase, Jitter, RandomCrop, RandomResizedCrop
from fastload.augment.parameters import kernel_norm, kernel_numbers, kernel_recipe
from fastload.kernels.augment_decoded import decoded_kernel

SIDES = [(30, 37), (41, 38), (33, 90), (64, 37), (30, 40), (31, 37)]


def noise(channels=3, sides=SIDES):
    rng = np.random.default_rng(channels)
    images = [rng.integers(0, 256, (*side, channels), dtype=np.uint8) for side in sides]
    images[1][:] = 200  # flat: the divisor's floor
    return images


def finished(augment, images, *, first=0, size=None, last=False, dtype=torch.float32, epoch=0):
    """Run the kernel on images that are samples first, first + 1, …; return float64 [b, h, w, C]."""
    channels, (height, width) = images[0].shape[2], augment.sides
    recipe = kernel_recipe(augment, channels=channels, dtype=dtype, channels_last=last, resample=augment.may_resize)
    stored = {torch.float32: np.float32, torch.uint8: np.uint8}.get(dtype, np.int16)
    out = np.zeros((size or len(images), height * width * channels), stored)
    count = len(images)
    decoded_kernel(recipe)(
        np.array([image.ctypes.data for image in images], np.int64),
        np.array([image.shape[:2] for image in images], np.int64),
        np.zeros((count, 2), np.int64),
        np.array([image.shape[:2] for image in images], np.int64),
        first,
        np.arange(first, first + count),
        np.full(count, epoch),
        np.uint64(7),
        np.uint64(1),
        kernel_numbers(augment),
        kernel_norm(augment, channels, dtype),
        out,
    )
    values = torch.from_numpy(out)
    values = (values.view(dtype) if stored == np.int16 else values).double().numpy()
    if last:
        return values.reshape(-1, height, width, channels)
    return values.reshape(-1, channels, height, width).transpose(0, 2, 3, 1)


# Each row is a kernel of its own, which takes seconds to compile: each type meets two layouts, and two ways to end.
@pytest.mark.parametrize(
    ("channels", "last", "dtype", "clamp", "standardize"),
    [
        (3, False, torch.float32, True, "stddev"),
        (4, True, torch.float32, False, "variance"),
        (3, True, torch.float16, True, "stddev"),
        (3, False, torch.float16, True, None),
        (1, False, torch.bfloat16, False, "variance"),
        (3, True, torch.bfloat16, True, None),
    ],
)
def test_a_batch_meets_the_reference(channels, last, dtype, clamp, standardize):
    images = noise(channels)
    augment = paper_like(crop=(30, 37), clamp=clamp, standardize=standardize)
    found = finished(augment, images, last=last, dtype=dtype, epoch=2)
    for row, (image, got) in enumerate(zip(images, found, strict=True)):
        drawn = reference.parameters(row, 2, 7, 1)
        expected, divisor = reference.pixels(image, drawn, (30, 37), clamp=clamp, standardize=standardize)
        reference.assert_close(got, expected, divisor, str(dtype).removeprefix("torch."))


def test_a_part_of_a_batch_goes_to_its_own_place_and_nowhere_else():
    augment, images = Augment.paper((30, 37)), noise()
    whole = finished(augment, images)
    part = finished(augment, images[2:4], first=2, size=6)
    assert (part[2:4] == whole[2:4]).all()
    assert not part[:2].any() and not part[4:].any()


@pytest.mark.parametrize(
    "augment",
    [
        Augment(30, RandomResizedCrop(), flip=0.5),
        Augment(30, CenterCrop(resize=35)),
        Augment(30, RandomResizedCrop(), color=Jitter(0.4, 0.4, 0.4, 0.1), grayscale=0.3, erase=Erase(0.5)),
        Augment((38, 45), RandomCrop(pad=4)),
    ],
)
def test_each_image_is_finished_as_if_it_were_alone(augment):
    images = noise()
    together = finished(augment, images, dtype=torch.uint8)
    for i, image in enumerate(images):
        alone = finished(augment, [image], first=i, size=len(images), dtype=torch.uint8)
        assert (alone[i] == together[i]).all()
    assert len(np.unique(together)) > 100
