"""`fastload inspect`: what a packed file holds."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastload.common.terminal import rows
from fastload.common.text import plural, printable, shortened
from fastload.packed.classes import class_counts
from fastload.packed.file import PackedFile

_FOLD = 20
_NAME = 48
"""The most characters of a class's name in the list."""


def inspect_file(
    path: str | os.PathLike[str], *, images: str | None = None, labels: str | None = None
) -> dict[str, Any]:
    """Return what a packed file (or, with `images` and `labels`, your own HDF5 file) holds, JSON-able.

    Raises DataError where it cannot be read. The samples themselves are not read: that is what `verify` does.
    """
    with PackedFile(path, images=images, labels=labels) as file:
        marks = file.labels
        facts: dict[str, Any] = {
            "path": str(file.path),
            "kind": "subset" if file.selection is not None else "packed file" if file.format else "HDF5 file",
            "images": len(file),
            "format": file.format or None,
            "storage": file.storage,
            "shape": None if file.shape is None else list(file.shape),
            "channels": file.channels,
            "image_bytes": file.nbytes,
            "file_bytes": file.path.stat().st_size,
            "classes": {} if marks is None else class_counts(marks, file.classes),
            "labels": None if marks is None else {"dtype": str(marks.dtype), "shape": list(marks.shape)},
            "names": file.names is not None,
            "ids": _ids(file.ids),
            "fingerprint": file.fingerprint,
            "source": file.source,
            "created_with": file.created_with,
        }
        if file.storage == "encoded" and file.offsets is not None:
            facts["encoded_bytes"] = _spread(np.diff(file.offsets))
        if file.jpeg is not None:
            facts["cut"] = int((file.jpeg.cuts[:, 0] != 0).sum())
        if file.shapes is not None:
            facts["height"], facts["width"] = _spread(file.shapes[:, 0]), _spread(file.shapes[:, 1])
        if file.selection is not None:
            table = file.selection
            facts["selection"] = {
                "settings": {key: _jsonable(value) for key, value in sorted(table.attributes.items())},
                "dimensions": _dimensions(table.dimension, table.score),
            }
        return facts


def _spread(values: np.ndarray) -> dict[str, float]:
    return {"min": int(values.min()), "mean": float(values.mean()), "max": int(values.max())}


def _ids(ids: np.ndarray) -> dict[str, Any]:
    steps = np.diff(ids)
    order = "ascending" if (steps > 0).all() else "shuffled"
    if order == "ascending" and ids[0] == 0 and ids[-1] == len(ids) - 1:
        order = "row numbers"
    return {"order": order, "min": int(ids.min()), "max": int(ids.max())}


def _dimensions(dimension: np.ndarray, score: np.ndarray) -> dict[str, Any]:
    """Return how many samples the embedding's dimensions gave (negative dimensions: chosen for no dimension)."""
    chosen = dimension[dimension >= 0]
    counts = np.unique(chosen, return_counts=True)[1]
    finite = score[np.isfinite(score)]
    return {
        "used": len(counts),
        "samples_min": int(counts.min()) if len(counts) else 0,
        "samples_median": float(np.median(counts)) if len(counts) else 0.0,
        "samples_max": int(counts.max()) if len(counts) else 0,
        "without_dimension": int((dimension < 0).sum()),
        "score_min": float(finite.min()) if len(finite) else None,
        "score_max": float(finite.max()) if len(finite) else None,
    }


def _jsonable(value: Any) -> Any:
    """Return an attribute as JSON can hold it; JSON inside a string is opened."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str) and value[:1] in "{[":
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def as_json(facts: Mapping[str, Any]) -> str:
    """Return what `inspect_file` found as indented JSON."""
    return json.dumps(facts, indent=2)  # ASCII: no terminal obeys a name in it, and every stream takes it


def as_text(facts: Mapping[str, Any]) -> str:
    """Return what `inspect_file` found as lines for the terminal."""
    return rows(f"{facts['path']}: {facts['kind']}", _lines(facts))


def _lines(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    labels, ids = facts["labels"], facts["ids"]
    lines = [
        ("images", f"{facts['images']:,}"),
        ("storage", f"{facts['storage']}, {_each(facts)}"),
        (
            "size",
            f"{facts['image_bytes'] / 1e6:,.1f} MB of images, {facts['file_bytes'] / 1e6:,.1f} MB on disk",
        ),
        ("classes", _class_lines(facts["classes"]) if labels else "none: the images have no labels"),
        ("labels", f"{labels['dtype']} [{', '.join(map(str, labels['shape']))}]" if labels else "none"),
        ("ids", f"{ids['order']}, {ids['min']:,} to {ids['max']:,}"),
        ("fingerprint", printable(facts["fingerprint"])),
        ("source", _pairs(facts["source"])),
    ]
    if facts["created_with"]:
        lines.append(("created with", printable(facts["created_with"])))
    if "selection" in facts:
        found = facts["selection"]["dimensions"]
        lines.append(("selection", _pairs(facts["selection"]["settings"])))
        text = (
            f"{found['used']:,} gave {found['samples_min']:,} to {found['samples_max']:,} samples each, "
            f"{found['samples_median']:,.0f} in the median"
        )
        if found["without_dimension"]:
            text += f"; {plural(found['without_dimension'], 'sample')} from none"
        lines.append(("dimensions", text if found["used"] else "none: samples were not chosen by dimension"))
        if found["score_min"] is not None:
            lines.append(("scores", f"{found['score_min']:.4g} to {found['score_max']:.4g}"))
    return lines


def _each(facts: Mapping[str, Any]) -> str:
    """Return the images' sizes: their one shape, or the least and most in pixels, and in bytes where they are files."""
    if facts["shape"]:
        return "×".join(map(str, facts["shape"]))
    lines = []
    if "encoded_bytes" in facts:
        lines.append("{min:,} to {max:,} bytes, {mean:,.0f} on average".format_map(facts["encoded_bytes"]))
    if "height" in facts:
        sides = (f"{name} {{min:,}} to {{max:,}}".format_map(facts[name]) for name in ("height", "width"))
        lines.append(f"{', '.join(sides)}, {plural(facts['channels'], 'channel')}")
    if "cut" in facts:
        lines.append(f"crops can be cut from {plural(facts['cut'], 'file')}")
    return "\n".join(lines)


def _class_lines(counts: Mapping[str, int]) -> str:
    if not counts:
        return "none: the labels are not class indices"
    low, high = min(counts.values()), max(counts.values())
    head = f"{len(counts):,}, {low:,} each" if low == high else f"{len(counts):,}, {low:,} to {high:,} each"
    shown = [(shortened(printable(name), _NAME), count) for name, count in list(counts.items())[:_FOLD]]
    width = max(len(name) for name, _ in shown)
    lines = [f"  {name:<{width}}  {count:>9,}" for name, count in shown]
    if len(counts) > _FOLD:
        lines.append(f"  … and {len(counts) - _FOLD:,} more (--json lists all)")
    return "\n".join([head, *lines])


def _pairs(values: Mapping[str, Any]) -> str:
    pairs = (printable(f"{key}: {_plain_text(value)}") for key, value in values.items())
    return "\n".join(map(shortened, pairs)) or "not recorded"


def _plain_text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain_text(inner)}" for key, inner in value.items())
    return "none" if value is None or value == "" else str(value)
