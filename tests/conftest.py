"""Shared by all tests: where the real images are, and small packed files made from them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def data_file(name: str) -> Path:
    """Return a real data file from $FASTLOAD_DATA or ../shared/data; skip the test, saying so, without it."""
    for folder in (os.environ.get("FASTLOAD_DATA"), ROOT.parent / "shared" / "data"):
        if folder and (Path(folder) / name).is_file():
            return Path(folder) / name
    pytest.skip(f"real data {name} is neither in $FASTLOAD_DATA nor in ../shared/data")


@pytest.fixture(scope="session")
def cifar_tar() -> Path:
    return data_file("cifar10-jpeg.tar.xz")


@pytest.fixture(scope="session")
def imagenet_tar() -> Path:
    return data_file("imagenet-250.tar")


@pytest.fixture(scope="session")
def cifar_full(cifar_tar: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 50,000 real CIFAR-10 training images, packed once for the whole session."""
    import fastload

    path = tmp_path_factory.mktemp("cifar") / "full.h5"
    fastload.pack(cifar_tar, path, split="train")
    return path
