"""The steps after the crop, with given parameters, against a float64 reference."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch

from fastload.kernels import augment as kernel
from fastload.kernels import augment_decoded as finish

KINDS = {"float32": kernel.FLOAT32, "float16": kernel.FLOAT16, "bfloat16": kernel.BFLOAT16}
STANDARDIZE = {"stddev": kernel.STDDEV, "variance": kernel.VARIANCE, None: kernel.KEEP}


def finished(images, drawn, *, clamp=True, standardize="stddev", last=False, dtype="float32") -> np.ndarray:
    """Run the kernel; return float64 [b, h, w, C]."""
    count, height, width, channels = images.shape
    out = np.empty((count, height * width * channels), np.float32 if dtype == "float32" else np.int16)
    flip, brightness, contrast = (np.array(values) for values in zip(*drawn, strict=True))
    finish.finish_batch(
        images.reshape(count, -1),
        images.shape[1:],
        flip,
        brightness.astype(np.float32),
        contrast.astype(np.float32),
        int(clamp),
        STANDARDIZE[standardize],
        out,
        last,
        KINDS[dtype],
    )
    values = torch.from_numpy(out).view(getattr(torch, dtype)).to(torch.float64).numpy()
    if last:
        return values.reshape(images.shape)
    return values.reshape(count, channels, height, width).transpose(0, 2, 3, 1)


@pytest.mark.parametrize("dtype", list(KINDS))
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(("clamp", "standardize"), [(True, "stddev"), (False, "variance"), (True, None)])
def test_a_batch_meets_the_reference(channels, last, dtype, clamp, standardize):
    rng = np.random.default_rng(channels)
    images = rng.integers(0, 256, (6, 30, 37, channels), dtype=np.uint8)
    images[1] = 200  # flat: the divisor's floor
    drawn = [(bool(row % 2), np.float32(rng.uniform(-63, 63)), np.float32(rng.uniform(0.2, 1.8))) for row in range(6)]
    found = finished(images, drawn, clamp=clamp, standardize=standardize, last=last, dtype=dtype)
    for image, row, got in zip(images, drawn, found, strict=True):
        flip, brightness, contrast = row
        given = (0, 0, flip, float(brightness), float(contrast))
        expected, divisor = reference.pixels(image, given, (30, 37), clamp=clamp, standardize=standardize)
        reference.assert_close(got, expected, divisor, dtype)


def test_each_step_changes_the_result():
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 9, 3), dtype=np.uint8)
    plain = finished(image, [(False, 20.0, 1.5)])
    assert not np.allclose(plain, finished(image, [(True, 20.0, 1.5)]))
    assert not np.allclose(plain, finished(image, [(False, -20.0, 1.5)]))
    assert not np.allclose(plain, finished(image, [(False, 20.0, 0.5)]))
    assert not np.allclose(plain, finished(image, [(False, 20.0, 1.5)], clamp=False))
    assert not np.allclose(plain, finished(image, [(False, 20.0, 1.5)], standardize=None))
