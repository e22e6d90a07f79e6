"""What is done already: one JSON file for each finished piece of work, and the states of trainings under way."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash

from fastload.common.replacing import replace_file


class State:
    """A folder that remembers results by their settings, so that the same command goes on where it stopped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("runs", "checkpoints", "files"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def find(self, kind: str, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the result recorded under exactly these settings; None where there is none, or a damaged one."""
        try:
            found = json.loads(self._path(kind, settings).read_text("utf-8"))
            same = found["settings"] == json.loads(json.dumps(settings))
            return found["result"] if same else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def record(self, kind: str, settings: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Keep a result: whole, or not at all."""
        text = json.dumps({"kind": kind, "settings": settings, "result": result}, indent=1)
        replace_file(self._path(kind, settings), (text + "\n").encode())

    def _path(self, kind: str, settings: Mapping[str, Any]) -> Path:
        return self.folder / "runs" / f"{kind}-{key_of(settings)}.json"

    def file(self, name: str) -> Path:
        """Return where a file that results refer to is kept."""
        return self.folder / "files" / name

    def save(self, key: str, tensors: Mapping[str, Any]) -> None:
        """Keep a training's state."""
        stored = io.BytesIO()
        torch.save(dict(tensors), stored)
        replace_file(self._checkpoint(key), stored.getvalue())

    def load(self, key: str) -> dict[str, Any] | None:
        """Return a training's state; None where there is none, or a damaged one."""
        try:
            return torch.load(self._checkpoint(key), map_location="cpu", weights_only=True)
        except Exception:  # whatever torch makes of a damaged file: the training is begun anew
            return None

    def forget(self, key: str) -> None:
        """Remove a training's state."""
        self._checkpoint(key).unlink(missing_ok=True)

    def forget_all(self) -> None:
        """Remove all trainings' states: of no use where nothing is left to do."""
        for path in (self.folder / "checkpoints").glob("*.pt"):
            path.unlink(missing_ok=True)

    def _checkpoint(self, key: str) -> Path:
        return self.folder / "checkpoints" / f"{key}.pt"


def key_of(settings: Mapping[str, Any]) -> str:
    """Return a short name that changes with any of the settings."""
    return xxhash.xxh3_64_hexdigest(json.dumps(settings, sort_keys=True).encode())
