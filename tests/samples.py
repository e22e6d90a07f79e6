"""Small sources of every kind, built from noise: folders, tars, CIFAR archives, and files that lie."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

rng = np.random.default_rng(7)


def noise(height: int = 8, width: int = 8, channels: int | None = 3) -> np.ndarray:
    return rng.integers(0, 256, (height, width) if channels is None else (height, width, channels), dtype=np.uint8)


def encode(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options: object) -> bytes:
    image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def put(folder: Path, files: dict[str, bytes]) -> Path:
    """Write files into a folder; a name that ends in a slash becomes an empty folder."""
    for name, data in files.items():
        path = folder / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return folder


def tar(path: Path, files: dict[str, bytes], mode: str = "w", **options: object) -> Path:
    """Write files into a tar, in the order given."""
    with tarfile.open(path, mode, **options) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name.rstrip("/"))
            info.size = len(data)
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            archive.addfile(info, io.BytesIO(data))
    return path


def zipped(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    """Write files into a zip, in the order given."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def class_files(classes: int = 3, each: int = 4, size: tuple[int, int] = (8, 8)) -> dict[str, bytes]:
    """PNG files in class folders, and the noise systems leave beside them."""
    files = {f"c{label}/{index}.png": encode(noise(*size)) for label in range(classes) for index in range(each)}
    return {**files, "c0/.DS_Store": b"x", "c1/._0.png": b"x", "c2/notes.txt": b"x"}


def cifar_files(kind: str, each: int = 3) -> tuple[dict[str, bytes], dict[str, tuple[np.ndarray, list[int]]]]:
    """The files of a small CIFAR in its authors' layout, and by split the pixels [n, 32, 32, 3] and labels."""
    ten = kind.startswith("10")
    classes = 10 if ten else 100
    batches = {"train": [f"data_batch_{i}" for i in range(1, 6)] if ten else ["train"]}
    batches["test"] = ["test_batch"] if ten else ["test"]
    files: dict[str, bytes] = {}
    truth = {}
    for split, names in batches.items():
        pixels = rng.integers(0, 256, (len(names), each, 3, 32, 32), dtype=np.uint8)
        labels = rng.integers(0, classes, (len(names), each))
        truth[split] = (pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels.reshape(-1).tolist())
        for name, planes, marks in zip(names, pixels, labels.tolist(), strict=True):
            if kind.endswith("bin"):
                rows = [
                    bytes([mark] if ten else [0, mark]) + plane.tobytes()
                    for mark, plane in zip(marks, planes, strict=True)
                ]
                files[f"{name}.bin"] = b"".join(rows)
            else:
                key = b"labels" if ten else b"fine_labels"
                content = {b"data": planes.reshape(each, 3072), key: marks, b"filenames": [b"x.png"] * each}
                files[name] = pickle.dumps(content, protocol=2)
    names = [f"class {label}" for label in range(classes)]
    if kind.endswith("bin"):
        files["batches.meta.txt" if ten else "fine_label_names.txt"] = "\n".join(names).encode() + b"\n\n"
    else:
        key = b"label_names" if ten else b"fine_label_names"
        files["batches.meta" if ten else "meta"] = pickle.dumps({key: [name.encode() for name in names]}, protocol=2)
    folder = {"10py": "cifar-10-batches-py", "10bin": "cifar-10-batches-bin", "100py": "cifar-100-python"}
    prefix = folder.get(kind, "cifar-100-binary")
    return {f"{prefix}/{name}": data for name, data in files.items()}, truth
