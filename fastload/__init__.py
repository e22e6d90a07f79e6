"""fastload: two-phase training feeds. First a resident subset chosen from embeddings, then the full set."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastload.common.version import __version__ as __version__

_root = Path(__file__).resolve().parent.parent
if (_root / "kernels").is_dir() and (_root / "bench").is_dir() and (_root / "pyproject.toml").is_file():
    # In a source tree kernels/ and bench/ stand beside this folder; installed, they are inside it.
    __path__.append(str(_root))

_PUBLIC = {
    "Augment": "fastload.augment",
    "CenterCrop": "fastload.augment",
    "Erase": "fastload.augment",
    "Jitter": "fastload.augment",
    "MeanStd": "fastload.augment",
    "Mix": "fastload.augment",
    "PaperColor": "fastload.augment",
    "PerImage": "fastload.augment",
    "RandomCrop": "fastload.augment",
    "RandomResizedCrop": "fastload.augment",
    "Schedule": "fastload.augment",
    "DataError": "fastload.errors",
    "FastloadError": "fastload.errors",
    "PackedFile": "fastload.packed.file",
    "Selection": "fastload.selection",
    "Swap": "fastload.loop.swap",
    "TwoPhaseLoader": "fastload.loop.loader",
    "UsageError": "fastload.errors",
    "build_subset": "fastload.subset.build",
    "convert": "fastload.packing.convert",
    "pack": "fastload.packing.pack",
}

if TYPE_CHECKING:
    from fastload.augment import (
        Augment,
        CenterCrop,
        Erase,
        Jitter,
        MeanStd,
        Mix,
        PaperColor,
        PerImage,
        RandomCrop,
        RandomResizedCrop,
        Schedule,
    )
    from fastload.errors import DataError, FastloadError, UsageError
    from fastload.loop.loader import TwoPhaseLoader
    from fastload.loop.swap import Swap
    from fastload.packed.file import PackedFile
    from fastload.packing.convert import convert
    from fastload.packing.pack import pack
    from fastload.selection import Selection
    from fastload.subset.build import build_subset


def __getattr__(name: str) -> Any:
    # Lazy, so that `fastload --help` and `import fastload` do not load torch and numba.
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'fastload' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])


__all__ = [
    "Augment",
    "CenterCrop",
    "DataError",
    "Erase",
    "FastloadError",
    "Jitter",
    "MeanStd",
    "Mix",
    "PackedFile",
    "PaperColor",
    "PerImage",
    "RandomCrop",
    "RandomResizedCrop",
    "Schedule",
    "Selection",
    "Swap",
    "TwoPhaseLoader",
    "UsageError",
    "build_subset",
    "convert",
    "pack",
]
