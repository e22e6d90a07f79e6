"""The work folder OUT.h5.work/: its mark and lock, and a JSON state of what each step depended on and gave."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastload.common.folder_files import FolderFile, OpenFolder
from fastload.errors import DataError, UsageError

FORMAT = 1
MARK = "made-by-fastload"
"""The file by which a work folder is known as ours: only what has it is written to, and emptied."""

_MARK_TEXT = b"A work folder of `fastload build-subset`, which removes it when the subset is done.\n"
NOT_FINITE = "not-finite.txt"
"""The ids of samples that `exclude` leaves out, one a line, where there are too many for a command line."""

_KEPT = (
    "state.json",
    "training.safetensors",
    "autoencoder.safetensors",
    "embeddings.npy",
    "lists.safetensors",
    "selection.safetensors",
    NOT_FINITE,
)
"""The files of the steps. Nothing else in the folder is ever touched, except MARK and "lock"."""


def work_path(out: Path) -> Path:
    """Return the work folder of a subset of this name."""
    return out.with_name(out.name + ".work")


class WorkFolder:
    """Everything that a run of build-subset keeps for the next, locked against a second process.

        with WorkFolder(out) as work:
            facts = work.finished("embed", settings)          # None: not done, or done with other settings
            work.record("embed", settings, seconds, facts)

    Arguments:
        out: the subset's final name; the folder is `out` + ".work".
        fresh: begin without the files of an earlier run.

    `notes` says, for people, what was found damaged. Leaving the block gives the lock back; a folder that holds
    no step's file by then goes. Raises UsageError where another process holds it and for a folder, file or link of
    that name which fastload did not make, DataError where it cannot be made.
    """

    def __init__(self, out: Path, *, fresh: bool = False) -> None:
        self.out = out
        self.path = work_path(out)
        self.notes: list[str] = []
        self._fresh = fresh
        self._lock = -1
        self._steps: dict[str, dict[str, Any]] = {}
        self._folder: OpenFolder

    def __enter__(self) -> WorkFolder:
        try:
            self._take_lock()
        except OSError as error:
            raise DataError(f"{self.path}: cannot be made ({error.strerror}); choose another place") from error
        if self._fresh:
            self._empty()
        self._steps = self._read()
        return self

    # -- making it, and knowing it again ---------------------------------------------------------------

    def _take_lock(self) -> None:
        while True:
            if not os.path.lexists(self.path):
                self._make()
            try:
                self._folder = OpenFolder(self.path)
                self._check_mark()
                self._lock = self.file("lock").open_or_create()
            except FileNotFoundError:
                continue  # its last owner removed the folder just now
            except NotADirectoryError as error:
                what = "a link" if self.path.is_symlink() else "no folder"
                raise self._foreign(f"is {what}") from error
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.EPERM):
                    raise
                raise self._foreign("holds a 'lock' that is a link or no plain file") from error
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._still_there():
                    os.ftruncate(self._lock, 0)
                    os.pwrite(self._lock, f"process {os.getpid()}".encode(), 0)
                    return
            except BlockingIOError as error:
                holder = self._holder()
                self._leave()
                raise UsageError(
                    f"{self.path}: another build-subset ({holder}) is at work on {self.out}; wait for it, or choose "
                    "another name"
                ) from error
            except BaseException:
                self._leave()
                raise
            self._leave()  # locked a folder that its last owner had removed: make a new one

    def _make(self) -> None:
        """Make the folder with its mark in it at once: one that was killed halfway has another name."""
        made = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", dir=self.path.parent))
        try:
            folder = OpenFolder(made)
            mark = folder.file(MARK)
            mark.write(_MARK_TEXT)
            try:
                os.fchmod(folder.descriptor, 0o777 & ~_umask())
                os.rename(made, self.path)
            except OSError as error:
                mark.remove()
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):  # else somebody was faster
                    raise
            finally:
                folder.close()
        finally:
            with contextlib.suppress(OSError):
                os.rmdir(made)

    def _check_mark(self) -> None:
        try:
            marked = self.file(MARK).read(len(_MARK_TEXT) + 1) == _MARK_TEXT
        except OSError:
            marked = False
        if not marked:
            if not os.path.lexists(self.path):
                raise FileNotFoundError
            raise self._foreign("was not made by fastload")

    def _foreign(self, what: str) -> UsageError:
        return UsageError(
            f"{self.path}: {what}, so it is left alone, but build-subset keeps its state under that name; move it away "
            "or choose another name for the subset"
        )

    def _still_there(self) -> bool:
        """Whether the lock that was taken is the one that others will find."""
        try:
            found = os.stat("lock", dir_fd=self._folder.descriptor, follow_symlinks=False)
            here, named = os.fstat(self._folder.descriptor), os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(found, os.fstat(self._lock)) and os.path.samestat(here, named)

    def _holder(self) -> str:
        with contextlib.suppress(OSError):
            text = self.file("lock").read(40).decode(errors="replace")
            if text.isprintable() and text:
                return text
        return "another process"

    def file(self, name: str) -> FolderFile:
        """Return a file in the folder."""
        return self._folder.file(name)

    # -- state -------------------------------------------------------------------------------------

    def _read(self) -> dict[str, dict[str, Any]]:
        path = self.file("state.json")
        if not path.exists():
            return {}
        try:
            state = json.loads(path.read())
            steps = state["steps"]
            if state["format"] != FORMAT or not all(
                isinstance(step["settings"], dict) and isinstance(step["facts"], dict) and step["seconds"] >= 0
                for step in steps.values()
            ):
                raise ValueError("not this format")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self.notes.append(f"{path} cannot be read, so every step is done again")
            return {}
        return steps

    def _save(self) -> None:
        text = json.dumps({"format": FORMAT, "steps": self._steps}, indent=1, sort_keys=True) + "\n"
        self.write("state.json", text.encode())

    def write(self, name: str, data: bytes) -> None:
        """Write a file of the folder, whole or not at all. Raises DataError where it cannot be written."""
        try:
            self.file(name).write(data)
        except OSError as error:
            raise DataError(
                f"{self.path}: cannot be written ({error.strerror}); make room there, and the same command goes on"
            ) from error

    def finished(self, step: str, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the facts of a step that is done with these very settings, or None."""
        known = self._steps.get(step)
        return known["facts"] if known and known["done"] and known["settings"] == _plain(settings) else None

    def unfinished(self, step: str, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the facts of a step that was begun, not done, with these very settings, or None."""
        known = self._steps.get(step)
        return known["facts"] if known and not known["done"] and known["settings"] == _plain(settings) else None

    def seconds(self, step: str) -> float:
        """Return the time that a step has taken so far, over all runs."""
        return float(self._steps.get(step, {}).get("seconds", 0.0))

    def changed(self, step: str, settings: Mapping[str, Any]) -> list[str]:
        """Return what differs from the settings that the step was last done with, as "name old → new"."""
        known, new = self._steps.get(step), _plain(settings)
        if not known:
            return []
        old = known["settings"]
        names = sorted(old.keys() | new.keys())
        return [f"{name} {old.get(name)} → {new.get(name)}" for name in names if old.get(name) != new.get(name)]

    def record(
        self, step: str, settings: Mapping[str, Any], seconds: float, facts: Mapping[str, Any], *, done: bool = True
    ) -> None:
        """Note on disk that a step is done (or how far it is)."""
        self._steps[step] = {
            "settings": _plain(settings),
            "seconds": seconds,
            "facts": _plain(facts),
            "done": done,
        }
        self._save()

    # -- leaving -----------------------------------------------------------------------------------

    def remove(self) -> None:
        """Remove our files, and the folder where it holds nothing else; else `notes` says what stays."""
        self._empty()
        others = self._others()
        if others:
            listed = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
            self.notes.append(f"{self.path} holds what is not fastload's ({listed}), so it stays")
            return
        # Under another name first: who looks for the folder now finds none, rather than one without its mark.
        gone = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            if self._still_there():
                os.rename(self.path, gone)
                for name in (MARK, "lock"):
                    self.file(name).remove()
                os.rmdir(gone)

    def _others(self) -> list[str]:
        return [name for name in self._folder.names() if name not in (MARK, "lock")]

    def _empty(self) -> None:
        for name in _KEPT:
            for file in (self.file(name), self.file(name + ".partial")):
                with contextlib.suppress(IsADirectoryError, PermissionError):  # a folder of that name is not ours
                    file.remove()

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(OSError):
            if not self._others():
                self.remove()
        self._leave()

    def _leave(self) -> None:
        os.close(self._lock)
        self._lock = -1
        self._folder.close()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(values))
