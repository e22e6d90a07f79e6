"""The sets of data that the evidence is gathered on: CIFAR-10, Fashion-MNIST, and three that are made from CIFAR-10.

Each is two packed files, training and test, made once: which images, which labels and in which order is decided by
keyed permutations, so that every machine makes the same. `long-tail`, `near-copies` and `wrong-labels` change the
training images only; their test set is CIFAR-10's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from fastload.bench.evidence.idx import read_labelled
from fastload.bench.evidence.near_copies import near_copies
from fastload.errors import DataError, UsageError
from fastload.order import permutation
from fastload.packed.file import PackedFile, PackedWriter

NAMES = ("cifar10", "fashion-mnist", "long-tail", "near-copies", "wrong-labels")

IMBALANCE = 100
"""`long-tail`: images of the first class for one of the last."""

QUALITIES = (95, 85, 75, 60, 45)
"""`near-copies`: the JPEG quality of each copy. Of CIFAR-10's 50,000 copies no two are equal."""

WRONG_SHARE = 0.2
"""`wrong-labels`: of all training labels."""

# Of Fashion-MNIST's own README, labels 0 to 9.
_GARMENTS = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class Sources:
    """What the sets are made from.

    Arguments:
        full: CIFAR-10's packed training set, or another one of raw images, one label each, and class names.
        test: its packed test set.
        fashion: a folder with Fashion-MNIST's four IDX files, gzipped or not; None where there is none.
        limit: no more training images than this, as many of each class, and a fifth of it of test images; None for
            all. At least five for each class.
    """

    full: Path
    test: Path
    fashion: Path | None
    limit: int | None = None


@dataclass(frozen=True)
class ImageSet:
    """A set of data: its name, its packed training and test set.

    Arguments:
        copies: rows whose ids are equal after `// copies` are copies of one image; 1 where none are.
    """

    name: str
    full: Path
    test: Path
    copies: int = 1


def fashion_folder() -> Path | None:
    """Return where Debian's package dataset-fashion-mnist puts its files; None where it is not installed."""
    return _DEBIAN if _DEBIAN.is_dir() else None


def make_set(name: str, sources: Sources, folder: Path) -> ImageSet:
    """Return a set of data, made in `folder` unless it is there, whole and of the same sources.

    Arguments:
        name: one of `NAMES`.
        sources: what it is made from.
        folder: where its files go, named by set and limit; made where it is missing.

    Raises UsageError for another name and for a limit too small, DataError for sources that cannot be used.
    """
    if name not in NAMES:
        raise UsageError(f"{name!r} is none of the evidence's sets of data; choose one of {', '.join(NAMES)}")
    folder.mkdir(parents=True, exist_ok=True)
    limit, base, full, test = sources.limit, "cifar10", sources.full, sources.test
    if name == "fashion-mnist":
        base, (full, test) = name, _fashion_files(sources.fashion, folder)
    suffix = "" if limit is None else f"-{limit}"
    target = folder / f"{name}{suffix}-train.h5"
    with PackedFile(full) as train, PackedFile(test) as held_out:
        classes = len(train.classes)
        if limit is not None and limit < 5 * classes:
            raise UsageError(
                f"limit={limit} leaves some of {classes} classes without images; give {5 * classes} or more"
            )
        rows, labels = _spread_rows(train, limit), _labels(train)
        if limit is not None:
            kept = _spread_rows(held_out, limit // 5)
            test = _write_rows(folder / f"{base}{suffix}-test.h5", f"{base} test", held_out, kept)
        if name == "near-copies":
            chosen = rows[_choice(labels[rows], [len(rows) // len(QUALITIES) // classes] * classes, name)]
            return ImageSet(name, _write_copies(target, train, chosen), test, copies=len(QUALITIES))
        if name == "long-tail":
            counts = long_tail_counts(int(np.bincount(labels[rows]).max()), classes)
            full = _write_rows(target, name, train, rows[_choice(labels[rows], counts, name)])
        elif name == "wrong-labels":
            full = _write_rows(target, name, train, rows, mislabelled(labels[rows], classes))
        elif limit is not None:
            full = _write_rows(target, name, train, rows)
    return ImageSet(name, full, test)


def long_tail_counts(most: int, classes: int) -> list[int]:
    """Return how many images each class of `long-tail` keeps: the exponential profile of Cui et al. (2019), 100:1.

    They are rounded, where others truncate: 12,408 images of CIFAR-10, not 12,406.

    Arguments:
        most: images of the first class.
        classes: how many there are; none is left empty.
    """
    return [max(1, round(most * IMBALANCE ** (-number / (classes - 1)))) for number in range(classes)]


def wrong_rows(n: int) -> np.ndarray:
    """Return which of n rows of `wrong-labels` have another class's label, int64 [n / 5, rounded], in a keyed order."""
    return permutation(n, _key("wrong-labels"))[: round(n * WRONG_SHARE)]


def mislabelled(labels: np.ndarray, classes: int) -> np.ndarray:
    """Return labels [n], those of `wrong_rows` replaced: in their order, by each of the other classes in turn.

    As that order is drawn regardless of labels, every other class is as likely.
    """
    rows = wrong_rows(len(labels))
    found = labels.copy()
    found[rows] = (labels[rows] + 1 + np.arange(len(rows)) % (classes - 1)) % classes
    return found


def _key(purpose: str) -> int:
    """Return the key of a permutation.

    Small seeds would not do: the random selection of seed s is a beginning of the permutation of key s, and would be
    of wrong labels only.
    """
    return xxhash.xxh3_64_intdigest(f"fastload evidence: {purpose}".encode())


def _choice(labels: np.ndarray, counts: list[int], purpose: str) -> np.ndarray:
    """Return `counts[c]` rows of each class c, int64, ascending; which ones is decided by the key."""
    order = permutation(len(labels), _key(purpose))
    chosen = [order[labels[order] == number][:count] for number, count in enumerate(counts)]
    return np.sort(np.concatenate(chosen))


def _spread_rows(file: PackedFile, limit: int | None) -> np.ndarray:
    """Return all rows, or at most `limit`, as many of each class; int64, ascending."""
    labels, classes = _labels(file), len(file.classes)
    return np.arange(len(file)) if limit is None else _choice(labels, [limit // classes] * classes, "limit")


def _labels(file: PackedFile) -> np.ndarray:
    """Return a file's labels, int [N]; raise DataError for one that the sets cannot be made from."""
    labels, numbers = file.labels, range(len(file.classes))
    if file.storage != "raw" or labels is None or labels.ndim != 1 or set(labels.tolist()) != set(numbers):
        raise DataError(
            f"{file.path}: the evidence's sets are made from raw images of one size with one label each, of all "
            "classes that the file names; pack CIFAR-10's class folders, without encoded=True"
        )
    return labels


def _write_rows(path: Path, kind: str, file: PackedFile, rows: np.ndarray, labels: np.ndarray | None = None) -> Path:
    """Write some rows of a packed file, with their ids and their labels, or others."""
    found = _labels(file)[rows] if labels is None else labels
    pixels = (file.read_image(row) for row in rows.tolist())
    return _write(path, {"kind": kind, "of": file.fingerprint}, pixels, file.shape, found, file.ids[rows], file.classes)


def _write_copies(path: Path, file: PackedFile, rows: np.ndarray) -> Path:
    """Write five copies of each row of a packed file, all mixed.

    A copy's id is its image's, times five, plus its number. The file's source tells the qualities, and
    `other_qualities`: see `near_copies`.
    """
    copies = len(QUALITIES)
    numbers = permutation(len(rows) * copies, _key("order of near-copies"))
    rows, number = rows[numbers // copies], numbers % copies
    others: list[tuple[int, int]] = []  # filled while images are made, before the writer ends with the source
    source = {"kind": "near-copies", "of": file.fingerprint, "qualities": list(QUALITIES)}
    pixels = near_copies(file, rows, [QUALITIES[one] for one in number.tolist()], others)
    ids, told = file.ids[rows] * copies + number, {"other_qualities": others}
    return _write(path, source, pixels, file.shape, _labels(file)[rows], ids, file.classes, told)


def _fashion_files(idx: Path | None, folder: Path) -> tuple[Path, Path]:
    """Return Fashion-MNIST's packed training and test set, made from its IDX files unless they are there."""
    paths = []
    for split, prefix in (("train", "train"), ("test", "t10k")):
        path, source = folder / f"fashion-mnist-{split}.h5", {"kind": f"fashion-mnist {split}"}
        if not _is_there(path, source):
            if idx is None:
                raise DataError(
                    "Fashion-MNIST is not here; install Debian's package dataset-fashion-mnist, or name a folder with "
                    "its IDX files"
                )
            pixels, labels = read_labelled(idx, prefix)
            shape, ids = (*pixels.shape[1:], 1), np.arange(len(labels))
            _write(path, source, pixels[..., None], shape, labels.astype(np.int64), ids, _GARMENTS)
        paths.append(path)
    return paths[0], paths[1]


def _is_there(path: Path, source: Mapping[str, Any]) -> bool:
    """Whether a packed file is whole and was made from `source`; the writer publishes whole ones only."""
    try:
        with PackedFile(path) as file:
            return source.items() <= file.source.items()
    except DataError:
        return False


def _write(
    path: Path,
    source: Mapping[str, Any],
    images: Iterable[np.ndarray],
    shape: tuple[int, int, int] | None,
    labels: np.ndarray,
    ids: np.ndarray,
    classes: Sequence[str],
    told: Mapping[str, Any] | None = None,
) -> Path:
    """Write a raw packed file, unless there is one of the same source; `told` is added to what the file says of it."""
    if not _is_there(path, source):
        assert shape is not None
        whole = {**source, **(told or {})}
        with PackedWriter(
            path, shape=(len(labels), *shape), labels=labels, ids=ids, classes=classes, source=whole
        ) as out:
            for row, pixels in enumerate(images):
                out.write(row, pixels)
    return path
