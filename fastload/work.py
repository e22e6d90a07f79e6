"""The work folder OUT.h5.work/: its lock, and a JSON state of what each step depended on and gave."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastload.errors import DataError, UsageError

FORMAT = 1


class WorkFolder:
    """Everything that a run of build-subset keeps for the next, locked against a second process.

    with WorkFolder(out) as work:
        facts = work.finished("embed", settings)          # None: not done, or done with other settings
        work.finish("embed", settings, seconds, facts)

    Arguments:
        out: the subset's final name; the folder is `out` + ".work".
        fresh: begin with an empty folder.

    `notes` says, for people, what was found damaged. Leaving the block gives the lock back; a folder that holds
    nothing by then goes. Raises UsageError where another process holds it, DataError where it cannot be made.
    """

    def __init__(self, out: Path, *, fresh: bool = False) -> None:
        self.out = out
        self.path = out.with_name(out.name + ".work")
        self.notes: list[str] = []
        self._fresh = fresh
        self._lock = -1
        self._steps: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> WorkFolder:
        try:
            self._take_lock()
        except BlockingIOError as error:
            raise UsageError(
                f"{self.path}: another build-subset ({self._holder()}) is at work on {self.out}; wait for it, or "
                "choose another name"
            ) from error
        except OSError as error:
            raise DataError(f"{self.path}: cannot be made ({error.strerror}); choose another place") from error
        if self._fresh:
            self._empty()
        self._steps = self._read()
        return self

    def _take_lock(self) -> None:
        while True:
            self.path.mkdir(exist_ok=True)
            try:
                self._lock = os.open(self.file("lock"), os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:
                continue  # its last owner removed the folder just now
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(self._lock).st_ino == os.stat(self.file("lock")).st_ino:
                    os.ftruncate(self._lock, 0)
                    os.pwrite(self._lock, f"process {os.getpid()}".encode(), 0)
                    return
            except FileNotFoundError:
                pass  # locked a file that its last owner had removed: take the new one
            except BaseException:
                os.close(self._lock)
                self._lock = -1
                raise
            os.close(self._lock)
            self._lock = -1

    def _holder(self) -> str:
        try:
            return self.file("lock").read_text()[:40] or "another process"
        except OSError:
            return "another process"

    def file(self, name: str) -> Path:
        """Return the path of a file in the folder."""
        return self.path / name

    # -- state -------------------------------------------------------------------------------------

    def _read(self) -> dict[str, dict[str, Any]]:
        path = self.file("state.json")
        if not path.exists():
            return {}
        try:
            state = json.loads(path.read_text())
            steps = state["steps"]
            if state["format"] != FORMAT or not all(
                isinstance(step["settings"], dict) and isinstance(step["facts"], dict) and step["seconds"] >= 0
                for step in steps.values()
            ):
                raise ValueError("not this format")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            self.notes.append(f"{path} cannot be read, so every step is done again")
            return {}
        return steps

    def _save(self) -> None:
        partial = self.file("state.json.partial")
        try:
            partial.write_text(json.dumps({"format": FORMAT, "steps": self._steps}, indent=1, sort_keys=True) + "\n")
            os.replace(partial, self.file("state.json"))
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
            "settings": _plain(settings), "seconds": seconds, "facts": _plain(facts), "done": done,
        }  # fmt: skip
        self._save()

    # -- leaving -----------------------------------------------------------------------------------

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _empty(self) -> None:
        for entry in self.path.iterdir():
            if entry.name != "lock":
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(OSError):
            if [entry.name for entry in self.path.iterdir()] == ["lock"]:
                self.remove()
        os.close(self._lock)
        self._lock = -1


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(values))
