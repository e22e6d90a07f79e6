"""How functions are compiled, and where machine code is kept for the next process.

Numba keeps a function's code as long as the function's own file is the same; an edit of a helper in another file is
not seen. And it fails where it may write nowhere. So each file's code lies in a folder of its own, which is named by a
hash of the file and of the kernels' files that it imports, in the first of these places that can be written to:

    $NUMBA_CACHE_DIR; __pycache__ beside the kernels; the user's cache folder; a folder of the user's among the
    temporary files

Without any, or with a cache that is damaged or on a full disk, functions are compiled anew in each process. Numba's
settings are as they were for all other functions of the program.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import inspect
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core import config as numba_config

config: Any = numba_config  # Numba makes its attributes when it is loaded
_KERNELS = Path(__file__).resolve().parent
_IMPORT = re.compile(r"^[ \t]*from (fastload\.kernels\.|\.)(\w+) import", re.MULTILINE)
_UNUSED_SECONDS = 30 * 86_400
"""Code of other sources that was not used for so long is removed."""


def njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorate as `numba.njit` does, and keep the code for the next process where it can be kept."""
    return lambda function: _kept(function, lambda **more: numba.njit(**options, **more)(function))


def cfunc(signature: Any, function: Callable[..., Any]) -> Any:
    """Compile as `numba.cfunc` does, with the code of an earlier process where there is one."""
    return _kept(function, lambda **more: numba.cfunc(signature, **more)(function))


def cuda_jit(function: Callable[..., Any], **options: Any) -> Any:
    """Return a CUDA kernel that is compiled when it is first launched, or loaded as an earlier process kept it."""
    from .cuda_target import SIMULATED, cuda  # not above: most of those who compile need no CUDA

    if SIMULATED:
        return cuda.jit(function)
    return _kept(function, lambda **more: cuda.jit(**options, **more)(function))


def _kept(function: Callable[..., Any], compiled: Callable[..., Any]) -> Any:
    folder = _folder(Path(inspect.getfile(function)).resolve())
    if folder is not None:
        with contextlib.suppress(Exception), _cache_in(folder):  # whatever is wrong with the cache, there is a way on
            return _forgiving(compiled(cache=True), folder)
    return compiled()


@contextlib.contextmanager
def _cache_in(folder: Path) -> Iterator[None]:
    """Let Numba choose `folder` for the functions that are decorated meanwhile."""
    settings: list[Any] = [
        one for one in (config, sys.modules.get("numba.cuda.core.config")) if hasattr(one, "CACHE_DIR")
    ]
    before = [one.CACHE_DIR for one in settings]
    for one in settings:
        one.CACHE_DIR = str(folder)
    try:
        yield
    finally:
        for one, value in zip(settings, before, strict=True):
            one.CACHE_DIR = value


def _forgiving(function: Any, folder: Path) -> Any:
    """Let a function's cache fail without a word: it may be damaged, which empties it, or its disk be full."""
    kept = getattr(function, "_cache", None)
    if kept is not None:
        kept.load_overload = _or_none(kept.load_overload, kept.flush)
        kept.save_overload = _or_none(_one_at_a_time(kept.save_overload, folder))
    return function


def _one_at_a_time(save: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """Let no other process save meanwhile: Numba's index could name one recipe, and its file hold another's code."""

    def saved(*arguments: Any) -> None:
        with (folder / "lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            save(*arguments)

    return saved


def _or_none(call: Callable[..., Any], otherwise: Callable[[], Any] = lambda: None) -> Callable[..., Any]:
    def tried(*arguments: Any) -> Any:
        try:
            return call(*arguments)
        except Exception:
            with contextlib.suppress(Exception):
                otherwise()

    return tried


# -- where ---------------------------------------------------------------------------------------------------------


@cache
def _folder(source: Path) -> Path | None:
    """Return the folder for the code of a file's functions; None where nothing can be kept."""
    root = _root()
    if root is None:
        return None
    prefix = f"fastload-{source.stem}-"
    folder = root / (prefix + source_hash(source))
    try:
        folder.mkdir(exist_ok=True)
        os.utime(folder)
        for other in root.glob(prefix + "?" * 16):
            if time.time() - other.stat().st_mtime > _UNUSED_SECONDS:
                shutil.rmtree(other, ignore_errors=True)
    except OSError:
        return None
    return folder


@cache
def _root() -> Path | None:
    places: tuple[Callable[[], Path | None], ...] = (_named, _beside, _of_user, _temporary)
    for place in places:
        with contextlib.suppress(OSError):
            root = place()
            if root is not None:
                root.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=root).close()
                return root
    return None


def _named() -> Path | None:
    return Path(config.CACHE_DIR) if config.CACHE_DIR else None


def _beside() -> Path:
    return _KERNELS / "__pycache__"


def _of_user() -> Path | None:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return folder / "fastload" if folder.is_absolute() else None


def _temporary() -> Path | None:
    """Return this user's folder among the temporary files: what is loaded from it is run, so nobody else may write."""
    folder = Path(tempfile.gettempdir()) / f"fastload-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return folder if private else None


def source_hash(source: Path) -> str:
    """Return 16 hexadecimal digits that differ where the file, or a kernels' file that it imports, does."""
    seen: dict[Path, bytes] = {}
    left = [source]
    while left:
        path = left.pop()
        if path not in seen:
            seen[path] = path.read_bytes()
            left += imported_kernels(path, seen[path].decode("utf-8"))
    whole = hashlib.blake2b(digest_size=8)
    for path in sorted(seen, key=lambda path: path.name):
        whole.update(hashlib.blake2b(path.name.encode() + b"\0" + seen[path]).digest())
    return whole.hexdigest()


def imported_kernels(path: Path, text: str) -> list[Path]:
    """Return the kernels' files that the text of a file imports from."""
    folders = {"fastload.kernels.": _KERNELS} | ({".": _KERNELS} if path.parent == _KERNELS else {})
    names = [(folders.get(package), name) for package, name in _IMPORT.findall(text)]
    paths = [folder / f"{name}.py" for folder, name in names if folder is not None]
    return [path for path in paths if path.is_file()]
