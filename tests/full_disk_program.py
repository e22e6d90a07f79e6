"""Run by test_full_disk.py in a mount namespace of its own: a tmpfs that fills at every 4 KB step.

Prints, a line a case, how many of the steps failed and how many gave a file; exits 0 where each left the old file or a
whole new one.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
from pathlib import Path

import numpy as np
from packs import noise_images

from fastload import build_subset
from fastload.command.verify import verify_file
from fastload.common.replacing import replace_file
from fastload.errors import FastloadError
from fastload.packed.file import PackedWriter
from fastload.subset.estimate import Estimate

COUNT, STEP, REMOUNT = 400, 4096, 32
_libc = ctypes.CDLL(None, use_errno=True)


def mount(folder: Path, size: int, flags: int = REMOUNT) -> None:
    if _libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", flags, f"size={size}".encode()):
        raise OSError(ctypes.get_errno(), "mount failed")


def leave_free(folder: Path, free: int) -> None:
    found = os.statvfs(folder)
    mount(folder, max(STEP, (found.f_blocks - found.f_bfree) * found.f_frsize + free))  # 0 would be without limit


def fill(writer: PackedWriter, images: np.ndarray, skipped: int = 0) -> None:
    with writer as out:
        for row, image in enumerate(images):
            if row < skipped:
                out.skip(row)
            else:
                out.write(row, image.tobytes())


def settings(images: np.ndarray) -> dict:
    return {
        "labels": np.arange(len(images)) % 2,
        "classes": ["a", "b"],
        "source": {},
        "names": [f"a/{i}" for i in images],
    }


def write_raw(out: Path, scratch: Path) -> None:
    images = noise_images(COUNT, 2, 2)
    fill(PackedWriter(out, shape=images.shape, **settings(images[:, 0, 0, 0])), images)


def write_encoded(out: Path, scratch: Path) -> None:
    images = noise_images(COUNT, 2, 2)
    more = settings(images[:, 0, 0, 0]) | {"shapes": np.full((COUNT, 2), 2)}
    fill(PackedWriter(out, sizes=np.full(COUNT, images[0].size), **more), images)


def write_skipping(out: Path, scratch: Path) -> None:
    images = noise_images(COUNT, 2, 2)
    fill(PackedWriter(out, shape=images.shape, **settings(images[:, 0, 0, 0])), images, skipped=COUNT // 10)


def write_subset(out: Path, scratch: Path) -> None:
    full = scratch / "full.h5"
    if not full.exists():
        write_raw(full, scratch)
    Estimate.check = lambda *_: None  # it would refuse what its forecast finds no room for
    build_subset(full, out, strategy="random", size=COUNT - 1)


def write_plain(out: Path, scratch: Path) -> None:
    replace_file(out, bytes(range(256)) * 100)


CASES = {case.__name__: case for case in (write_raw, write_encoded, write_skipping, write_subset, write_plain)}


def state_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def refuse(*_: object) -> None:
    raise OSError(errno.EOPNOTSUPP, "Operation not supported")


def run(case: str, folder: Path, scratch: Path) -> None:
    write = CASES[case]
    out = folder / "out.h5"
    write(out, scratch)
    whole = out.read_bytes()
    old_file = scratch / "old.h5"
    if write is write_subset:
        build_subset(scratch / "full.h5", old_file, strategy="random", size=3)
    elif write is write_plain:
        old_file.write_bytes(b"old")
    else:
        fill(PackedWriter(old_file, shape=(3, 1, 1, 1), source={}), noise_images(3, 1, 1, 1))
    reserve = os.posix_fallocate
    failed = done = 0
    for old in (None, old_file.read_bytes()):
        for posix_fallocate in (reserve, refuse):  # where the system keeps no room, each `pwrite` may fail
            os.posix_fallocate = posix_fallocate
            for free in range(0, 2 * len(whole) + STEP, STEP):
                mount(folder, 1 << 24)
                shutil.rmtree(folder, ignore_errors=True)  # all but itself: it is mounted on
                if old is not None:
                    out.write_bytes(old)
                leave_free(folder, free)
                try:
                    write(out, scratch)
                except (FastloadError, OSError) as error:
                    if isinstance(error, OSError) and write is not write_plain:
                        raise
                    failed += 1
                    assert state_of(folder) == ({} if old is None else {"out.h5": old}), (free, error)
                else:
                    done += 1
                    assert state_of(folder) == {"out.h5": whole}, free
    os.posix_fallocate = reserve
    mount(folder, 1 << 24)
    if write is not write_plain:
        assert verify_file(out, progress=False).ok
    old_file.unlink()
    out.unlink()
    print(case, failed, done)


if __name__ == "__main__":
    mount(Path(sys.argv[1]), 1 << 24, flags=0)
    for case in CASES:
        run(case, Path(sys.argv[1]), Path(sys.argv[2]))
