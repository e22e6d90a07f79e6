"""The example: short enough to copy, and it trains in two phases from packed files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from places import ROOT

from fastload import build_subset
from fastload.packed.file import PackedWriter

EXAMPLE = ROOT / "examples" / "train_cifar10.py"


def write_stripes(path: Path, count: int, seed: int) -> None:
    """Write a packed file of two classes that a classifier learns in a few steps: vertical and horizontal stripes."""
    noise = np.random.default_rng(seed)
    labels = noise.integers(0, 2, count)
    images = noise.integers(0, 60, (count, 32, 32, 3)).astype(np.uint8)
    images[labels == 0, :, ::4] += 150
    images[labels == 1, ::4] += 150
    with PackedWriter(
        path, shape=images.shape, labels=labels, ids=np.arange(count), source={}, classes=["vertical", "horizontal"]
    ) as writer:
        for row, image in enumerate(images):
            writer.write(row, image)


def test_it_has_under_80_lines() -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 80


def test_it_trains_in_two_phases_and_learns(tmp_path: Path) -> None:
    full, subset, test = (tmp_path / f"{name}.h5" for name in ("full", "subset", "test"))
    write_stripes(full, 300, seed=0)
    write_stripes(test, 60, seed=1)
    build_subset(full, subset, strategy="random", size=40)
    done = subprocess.run(
        [
            sys.executable,
            str(EXAMPLE),
            str(full),
            str(subset),
            str(test),
            "--steps",
            "40",
            "--batch-size",
            "16",
            "--swap",
            "0.5",
            "--device",
            "cpu",
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "step 20: fast, loss" in done.stdout
    assert "step 20: swap to the full set" in done.stdout
    assert "step 40: fine-tune, loss" in done.stdout
    found = re.search(r"test accuracy of the averaged weights: ([\d.]+)%", done.stdout)
    assert found and float(found[1]) > 80
