"""Shared by all tests: where the real images are, and small packed files made from them."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from places import ROOT

# Before torch is loaded: threads that spin while they wait take the processors from those that feed them.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# A shell that starts this in the background has it ignore Ctrl-C, and all processes that the tests interrupt too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


LONGEST = (
    "feeds/test_dali_steps.py",
    "kernels/ptx/test_recipes_on_cpu.py",
    "feeds/test_recipes.py",
    "kernels/test_ptx.py",
    "feeds/test_ragged_feeds.py",
    "loop/test_recipes_in_runs.py",
    "feeds/test_encoded_feed.py",
    "bench/test_paper.py",
    "loop/test_ranks.py",
    "kernels/test_jpeg_cut.py",
    "kernels/test_simulator.py",
    "loop/test_loader.py",
)
"""Files that compile much, or run other programs: in a fresh clone they take the longest."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several processes share the files, begin with the longest: none is left alone with one at the end."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = {(ROOT / "tests" / name).resolve(strict=True): number for number, name in enumerate(LONGEST)}
        items.sort(key=lambda item: place.get(item.path.resolve(), len(LONGEST)))


def data_file(name: str) -> Path:
    """Return a real data file from $FASTLOAD_DATA or ../shared/data; skip the test, saying so, without it."""
    for folder in (os.environ.get("FASTLOAD_DATA"), ROOT.parent / "shared" / "data"):
        if folder and (Path(folder) / name).is_file():
            return Path(folder) / name
    pytest.skip(f"real data {name} is neither in $FASTLOAD_DATA nor in ../shared/data")


@pytest.fixture(autouse=True, scope="module")
def nothing_left_for_the_next_module():
    """Loaders that a framework's cycles hold end here, or tests that count threads would see them."""
    yield
    gc.collect()
    end = time.monotonic() + 5
    while any(thread.name.startswith("fastload") for thread in threading.enumerate()) and time.monotonic() < end:
        time.sleep(0.01)


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


@pytest.fixture(scope="session")
def few_cifar_files(cifar_tar: Path) -> tuple[list[bytes], list[int], list[str]]:
    """400 real CIFAR-10 training images, 40 a class, as (JPEG files, labels, class names)."""
    import tarfile

    found: dict[str, list[tuple[str, bytes]]] = {}
    with tarfile.open(cifar_tar) as archive:
        for member in archive:
            split, _, rest = member.name.removeprefix("./").partition("/")
            of_class = found.setdefault(rest.partition("/")[0], []) if split == "train" and member.isfile() else None
            if of_class is not None and len(of_class) < 40:
                of_class.append((member.name, archive.extractfile(member).read()))
            if len(found) == 10 and all(len(files) == 40 for files in found.values()):
                break
    names = sorted(found)
    files = [data for name in names for _, data in sorted(found[name])]
    return files, [label for label in range(len(names)) for _ in range(40)], names


@pytest.fixture(scope="session")
def few_cifar(few_cifar_files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 400 images of `few_cifar_files` as a raw packed file."""
    import io

    import numpy as np
    from packs import write_raw
    from PIL import Image

    files, labels, names = few_cifar_files
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in files])
    return write_raw(tmp_path_factory.mktemp("few") / "full.h5", pixels, np.array(labels), classes=names)


@pytest.fixture(scope="session")
def imagenet_encoded(imagenet_tar: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 250 ImageNet photographs, of many sizes, packed with their files' own bytes."""
    import fastload

    path = tmp_path_factory.mktemp("imagenet") / "encoded.h5"
    fastload.pack(imagenet_tar, path, encoded=True)
    return path
