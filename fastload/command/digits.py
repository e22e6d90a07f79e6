"""Real images that come with an installed package: scikit-learn's handwritten digits, as PNG files in class folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from fastload.common.install import install_command
from fastload.errors import UsageError

SIDE = 32
TEST_EVERY = 5


def write_digits(folder: Path) -> tuple[int, int]:
    """Write train/<digit>/ and test/<digit>/ with the 1,797 digits, 8×8 greys enlarged to 32×32×3, as PNG files.

    Every fifth image of a digit, in scikit-learn's order, goes to the test set. Returns how many images each has.

    Raises UsageError where scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UsageError(
            f"the demo's digits come with scikit-learn, which is not installed: {install_command('demo')}, "
            "or give your own images with --data and --test"
        ) from error
    digits = load_digits()
    counts = {"train": 0, "test": 0}
    for digit in range(10):
        rows = np.flatnonzero(digits.target == digit)
        for number, row in enumerate(rows):
            split = "train" if number % TEST_EVERY else "test"
            place = folder / split / str(digit)
            place.mkdir(parents=True, exist_ok=True)
            _enlarged(digits.images[row]).save(place / f"{row:04d}.png")
            counts[split] += 1
    return counts["train"], counts["test"]


def _enlarged(grey: np.ndarray) -> Image.Image:
    """Return an image of 32×32×3 from greys 0…16, float [8, 8]."""
    pixels = Image.fromarray((grey * (255 / 16)).round().astype(np.uint8))
    return pixels.resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB")
