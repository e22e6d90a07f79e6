"""Tensors and facts in one safetensors file: written whole or not at all, and refused if changed afterwards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fastload.common.folder_files import FolderFile
from fastload.errors import DataError


def save_tensors(place: FolderFile | Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors and JSON-able facts as one safetensors file: whole, or not at all."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(facts, sort_keys=True)
    try:
        FolderFile.of(place).write(save(plain, metadata={"fastload": text, "digest": _digest(plain, text)}))
    except OSError as error:
        raise DataError(
            f"{place}: cannot be written ({error.strerror or error}); make room there, and the same command goes on"
        ) from error


def load_tensors(place: FolderFile | Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return what `save_tensors` wrote, or None for a file that is missing, damaged or another's."""
    try:
        data = FolderFile.of(place).read()  # not mapped: a file that is cut meanwhile would end the process
        tensors = load(data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        text = metadata["fastload"]
        return (tensors, json.loads(text)) if _digest(tensors, text) == metadata["digest"] else None
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RecursionError):
        return None


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    hasher = xxhash.xxh3_128(text.encode())
    for name in sorted(tensors):
        hasher.update(f"{name}{tuple(tensors[name].shape)}".encode())
        if tensors[name].numel():  # torch gives an empty array a stride of 0, which cannot be viewed as bytes
            hasher.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()
