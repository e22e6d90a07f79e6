"""Progress on the terminal: a bar with rate and remaining time, and nothing where stderr is no terminal."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

from fastload.common.terminal import bar_console, bar_on, is_live, is_terminal, tell

Advance = Callable[[int], None]

_EVERY = 10.0


@contextlib.contextmanager
def progress_bar(
    description: str, total: int | None, *, unit: str = "images", quiet: bool = False
) -> Iterator[Advance]:
    """Show a bar while the block runs; call what it yields with the number of units just done, from any thread.

    Arguments:
        description: what is going on.
        total: how many units there will be; None shows a moving bar and the elapsed time alone.
        unit: what is counted, for the rate ("images/s").
        quiet: show nothing, as where stderr is not a terminal. On one that cannot draw (TERM=dumb) a line comes now and
            then.
    """
    if quiet or not is_terminal(sys.stderr):
        yield lambda count: None
        return
    if not is_live(sys.stderr):
        yield _Lines(description, total, unit).advance
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        SpinnerColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:,.0f} {unit}/s")

    columns: list[ProgressColumn] = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn()]
    if total is None:
        columns.append(TimeElapsedColumn())
    else:
        columns += [MofNCompleteColumn(), Rate(), TextColumn("ETA"), TimeRemainingColumn(compact=True)]
    console = bar_console()
    with bar_on(console), Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda count: bar.advance(task, count)


class _Lines:
    """A bar for a terminal that only takes lines: one at the beginning, and one whenever `_EVERY` seconds have gone."""

    def __init__(self, description: str, total: int | None, unit: str) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._lock, self._done, self._told = threading.Lock(), 0, time.monotonic()
        tell(f"{description} …", error=True)

    def advance(self, count: int) -> None:
        with self._lock:
            self._done += count
            now = time.monotonic()
            if now - self._told < _EVERY:
                return
            self._told = now
            of = "" if self._total is None else f" of {self._total:,}"
            tell(f"{self._description}: {self._done:,}{of} {self._unit}", error=True)
