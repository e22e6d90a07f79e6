"""Paths as people write them: patterns of several files, and addresses that are no paths."""

from __future__ import annotations

import glob
import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastload.errors import DataError, UsageError

MOST_PATHS = 1_000_000
_MAGIC = re.compile(r"[*?\[{]")
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://|pipe:")
_FETCH = {
    "s3": "aws s3 sync",
    "gs": "gcloud storage cp -r",
    "az": "azcopy copy",
    "hf": "hf download, or give pack() the dataset of datasets.load_dataset",
    "http": "curl or wget",
    "https": "curl or wget",
}


def refuse_address(text: str) -> None:
    """Raise UsageError for an address (s3://…, https://…, pipe:…), which is not read, naming what fetches it."""
    found = _ADDRESS.match(text)
    if found is None:
        return
    scheme = (found[1] or "").lower()
    if scheme == "file":
        raise UsageError(f"{text}: is an address; give the path alone, without file://")
    with_what = f" ({_FETCH[scheme]})" if scheme in _FETCH else ""
    raise UsageError(f"{text}: is an address, and only files on this machine are read; fetch it first{with_what}")


def is_pattern(text: str) -> bool:
    """Whether a text holds any of the wildcards and braces that `expand` knows."""
    return _MAGIC.search(text) is not None


def expand(pattern: str) -> list[Path]:
    """Return the files of a pattern: shells' wildcards, `{000..010}` and `{a,b}`, in the pattern's order.

    Raises DataError for a name that no file has, UsageError for a pattern of more than a million names.
    """
    paths: list[Path] = []
    for word in _braces(pattern):
        found = sorted(glob.glob(word)) if glob.has_magic(word) else [word]
        if not found or not Path(found[0]).exists():
            raise DataError(f"{word}: no such file")
        paths += [Path(name) for name in found]
    return paths


def _braces(pattern: str) -> list[str]:
    """Return the words that a shell would make of the braces; a range may count down, as a shell's may."""
    pieces = [_choices(piece) for piece in re.split(r"(\{[^{}]*\})", pattern)]
    count = math.prod(len(choices) for choices, _ in pieces)
    if count > MOST_PATHS:
        raise UsageError(
            f"{pattern}: stands for {count:,} names, more than {MOST_PATHS:,}; use * in place of the numbers"
        )
    words = [[f"{choice:0{width}d}" for choice in choices] if width else choices for choices, width in pieces]
    return ["".join(map(str, word)) for word in itertools.product(*words)]


def _choices(piece: str) -> tuple[Sequence[Any], int]:
    """Return what a piece of a pattern may be, and the digits to which its numbers are filled up (0: they are not)."""
    span = re.fullmatch(r"\{(\d{1,18})\.\.(\d{1,18})\}", piece)
    if span is None:
        return (piece[1:-1].split(",") if piece.startswith("{") and "," in piece else [piece]), 0
    first, last = int(span[1]), int(span[2])
    padded = any(len(end) > 1 and end.startswith("0") for end in span.groups())
    numbers = range(first, last + 1) if first <= last else range(first, last - 1, -1)
    return numbers, max(map(len, span.groups())) if padded else 0
