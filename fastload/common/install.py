"""The one place that knows what this distribution is called and how a part of it that is missing is installed."""

from __future__ import annotations

import json
import shlex
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

DISTRIBUTION = "torch-fastload"
"""Its name on PyPI, where `fastload` is somebody else's program; it is imported as `fastload`."""

_TREE = Path(__file__).resolve().parents[2]


def install_command(extra: str = "") -> str:
    """Return the shell command that installs fastload with an extra, from where this fastload came.

    In a source tree it is the command for the tree; after an installation from a folder or a repository, for that one.

    Arguments:
        extra: a name under `[project.optional-dependencies]`, such as "cuda13"; "" for none.
    """
    suffix = f"[{extra}]" if extra else ""
    if _is_tree(_TREE):
        return f"pip install -e {shlex.quote(f'{_TREE}{suffix}')}"
    return f"pip install {shlex.quote(_origin(suffix) or DISTRIBUTION + suffix)}"


def cuda_install_command() -> str:
    """Return the command for DALI and numba-cuda that goes with the torch that is installed.

    Up to torch 2.10 the wheels on PyPI are built for CUDA 12, from 2.11 on for CUDA 13; the extras hold to that. Newer
    torches built for CUDA 12, from PyTorch's own index, would be replaced by an extra: there the packages are named.
    """
    import torch

    release = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if release < (2, 11):
        return install_command("cuda12")
    if (torch.version.cuda or "").startswith("12."):
        return "pip install nvidia-dali-cuda120 'numba-cuda[cu12]'"
    return install_command("cuda13")


def _is_tree(folder: Path) -> bool:
    try:
        return f'name = "{DISTRIBUTION}"' in (folder / "pyproject.toml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def _origin(suffix: str) -> str | None:
    """Return what pip was given for this distribution, with an extra; None where that was a package index."""
    try:
        found = json.loads(metadata.distribution(DISTRIBUTION).read_text("direct_url.json") or "")
    except (metadata.PackageNotFoundError, ValueError):
        return None
    if "vcs_info" in found:
        return f"{DISTRIBUTION}{suffix} @ {found['vcs_info']['vcs']}+{found['url']}"
    folder = unquote(urlsplit(found["url"]).path)
    return folder + suffix if "dir_info" in found and _is_tree(Path(folder)) else None
