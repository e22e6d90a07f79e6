"""The packed format: its version numbers, digests and checksum, shared by writer and reader."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from fastload.packed.jpeg_index import JpegIndex

FORMAT = 2
"""What is written."""

READABLE = (1, 2)
"""Format 1 has no `checksum`, `names`, `shapes` and `jpeg`, no ragged images, and always labels."""

ALIGNMENT = 4096
CHUNK = 8 << 20


def digest(data: Any) -> int:
    """Return the xxh3-64 of a sample's stored bytes (any buffer)."""
    return xxhash.xxh3_64_intdigest(data)


@dataclass(frozen=True)
class SelectionTable:
    """Why each sample of a subset was chosen: `dimension` int32, `rank` int32, `score` float32, each [N]."""

    dimension: np.ndarray
    rank: np.ndarray
    score: np.ndarray
    attributes: Mapping[str, Any]


def checksum(
    *,
    storage: str,
    source: Mapping[str, Any],
    created_with: str,
    images: Sequence[int],
    labels: np.ndarray | None,
    classes: Sequence[str],
    ids: np.ndarray,
    offsets: np.ndarray | None,
    shapes: np.ndarray | None,
    names: tuple[np.ndarray, np.ndarray] | None,
    selection: SelectionTable | None,
    jpeg: JpegIndex | None = None,
) -> str:
    """Return the xxh3-128 (hex) over all of a packed file but what digests and fingerprint cover.

    That is over a JSON object of the short values, and then the datasets' bytes, as docs/format.md says.

    Arguments:
        images: the dataset's shape.
        labels: of which only type and shape count here.
        ids: int64 [N].
        offsets: int64 [N + 1].
        shapes: int32 [N, 2].
        names: uint8 [bytes] and int64 [N + 1].
        selection: why each sample was chosen.
        jpeg: where encoded images can be cut.
    """
    datasets: list[tuple[str, np.ndarray]] = [("ids", ids)]
    if offsets is not None:
        datasets.append(("offsets", offsets))
    if shapes is not None:
        datasets.append(("shapes", shapes))
    if names is not None:
        datasets += [("names", names[0]), ("name_offsets", names[1])]
    if jpeg is not None:
        datasets += jpeg.datasets()
    if selection is not None:
        datasets += [("selection/" + name, getattr(selection, name)) for name in ("dimension", "rank", "score")]
    header = {
        "storage": storage,
        "source": source,
        "created_with": created_with,
        "images": [int(extent) for extent in images],
        "labels": None if labels is None else _kind(labels),
        "classes": list(classes),
        "selection": None if selection is None else {key: _plain(value) for key, value in selection.attributes.items()},
        "datasets": [[name, *_kind(array)] for name, array in datasets],
    }
    hasher = xxhash.xxh3_128(json.dumps(header, sort_keys=True).encode())
    for piece in _bytes(array for _, array in datasets):
        hasher.update(piece)
    return hasher.hexdigest()


def _kind(array: np.ndarray) -> list[Any]:
    return [array.dtype.newbyteorder("<").str, list(array.shape)]


def _bytes(arrays: Iterable[np.ndarray]) -> Iterable[memoryview]:
    for array in arrays:
        little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        yield little.reshape(-1).view(np.uint8).data


def _plain(value: Any) -> Any:
    """Return an attribute as JSON can hold it."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
