"""Fashion-MNIST's four IDX files, small and of noise, for tests."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
from packs import noise_images


def idx_bytes(values: np.ndarray) -> bytes:
    return bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def write_fashion(folder: Path, train: int = 60, test: int = 20, side: int = 28) -> dict[str, np.ndarray]:
    """Four IDX files of noise, the training set's gzipped; return what they hold."""
    folder.mkdir()
    held = {}
    for prefix, count in (("train", train), ("t10k", test)):
        held[f"{prefix}-images-idx3-ubyte"] = noise_images(count, side, side, 1, seed=count)[..., 0]
        held[f"{prefix}-labels-idx1-ubyte"] = (np.arange(count) % 10).astype(np.uint8)
    for name, values in held.items():
        if name.startswith("train"):
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(values)))
        else:
            (folder / name).write_bytes(idx_bytes(values))
    return held
