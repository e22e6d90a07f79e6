"""The examples: short enough to copy, and they train from packed files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
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


@pytest.mark.parametrize("name", ["imagenet", "airbench"])
def test_the_recipes_have_under_120_lines(name: str) -> None:
    assert len((ROOT / "examples" / f"{name}.py").read_text().splitlines()) < 120


def run(name: str, *arguments: object, ranks: int = 1) -> str:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    words = [sys.executable, *launcher, str(ROOT / "examples" / f"{name}.py"), *map(str, arguments), "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_imagenet_recipe_trains_with_growing_sizes(tmp_path: Path, ranks: int) -> None:
    full, test = (tmp_path / f"{name}.h5" for name in ("full", "test"))
    write_stripes(full, 240, seed=0)
    write_stripes(test, 61, seed=1)
    options = f"--arch tiny --epochs 4 --batch-size {8 // ranks} --sizes 32 64 64 --lr 0.02 --save-every 50".split()
    words = ("imagenet", full, test, *options, "--checkpoint", tmp_path / "run.pt")
    said = run(*words, ranks=ranks)
    found = re.search(r"accuracy ([\d.]+) % of 61 after 120 steps, last loss 0\.\d{6}", said)
    assert found and float(found[1]) > 80
    assert run(*words, ranks=ranks) == said  # from the checkpoint of step 100, within an epoch


def test_the_airbench_recipe_trains_on_a_resident_set(tmp_path: Path) -> None:
    full, test = (tmp_path / f"{name}.h5" for name in ("full", "test"))
    write_stripes(full, 320, seed=0)
    write_stripes(test, 60, seed=1)
    said = run("airbench", full, test, "--epochs", 3, "--batch-size", 32, "--width", 8)
    found = re.search(r"accuracy ([\d.]+) % after 30 steps", said)
    assert found and float(found[1]) > 80
