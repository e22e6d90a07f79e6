"""The loader's progress bar: a thread of its own shows where the run stands, so that no bar can hold up a batch."""

from __future__ import annotations

import queue
import threading
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from fastload.common.dropping import when_dropped
from fastload.common.terminal import bar_console
from fastload.common.threads import Signal, Started
from fastload.errors import UsageError

BARS = ("rich", "tqdm")

_EVERY = 0.1  # seconds between two looks at the run
_PATIENCE = 2.0  # seconds that a loop waits for its bar to appear, or to end


class Shown(NamedTuple):
    """What a bar shows: batches delivered, the phase's name, and images a second."""

    step: int
    phase: str
    rate: float


def bar_kind(progress: Any) -> str | None:
    """Return "rich", "tqdm" or None for the argument `progress`; UsageError for anything else, or without tqdm."""
    if progress is None or progress is False:
        return None
    if progress is True:
        return "rich"
    if progress not in BARS:
        raise UsageError(f'progress={progress!r}; it is True, False, "rich" or "tqdm"')
    if progress == "tqdm":
        try:
            import tqdm  # noqa: F401
        except ImportError as error:
            raise UsageError('progress="tqdm" needs tqdm: pip install tqdm; progress=True does without') from error
    return progress


class Bar:
    """A bar that goes on until `end` is called or `loop` is dropped, whatever it runs into itself.

    Arguments:
        kind: "rich" or "tqdm".
        total: steps of the run, None where that is open.
        look: returns what to show; called by the bar's thread.
        loop: what is shown; it must not be held by `look`.
    """

    def __init__(self, kind: str, total: int | None, look: Callable[[], Shown], loop: object) -> None:
        self._ends: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._began, self._over = Signal(), Signal()
        when_dropped(loop, partial(self._ends.put, None))
        once = threading.Lock()
        self._show: Callable[[], None] | None = partial(
            _show, kind, total, look, self._ends, self._began, self._over, once
        )

    def start(self) -> None:
        """Show the bar, unless that was done: it is there when this returns, or late."""
        show = self._show
        if show is not None:
            Started(lambda: [threading.Thread(target=show, name="fastload-bar", daemon=True)], _failed)
            self._began.wait(_PATIENCE)
            self._show = None  # nor may this hold what `look` holds

    def end(self) -> None:
        """Leave the bar as it stands, showing the last batch. Safe to call twice."""
        self._ends.put(None)
        if self._began.given:
            self._over.wait(_PATIENCE)


def _show(
    kind: str,
    total: int | None,
    look: Callable[[], Shown],
    ends: queue.SimpleQueue[None],
    began: Signal,
    over: Signal,
    once: threading.Lock,
) -> None:
    if not once.acquire(blocking=False):  # started twice, where an interrupt came in between
        return
    try:
        shown = look()
        bar: _Tqdm | _Rich = (_Tqdm if kind == "tqdm" else _Rich)(total, shown.step)
        try:
            began.give()
            while True:
                bar.show(shown)
                try:
                    ends.get(timeout=_EVERY)
                    break
                except queue.Empty:
                    shown = look()
            bar.show(look())
        finally:
            bar.close()
    except Exception as error:
        _failed(error)
    finally:
        began.give()
        over.give()


def _failed(error: BaseException) -> None:
    warnings.warn(
        f"the progress bar has failed ({error}), and the run goes on without it", RuntimeWarning, stacklevel=2
    )


class _Tqdm:
    def __init__(self, total: int | None, done: int) -> None:
        from tqdm.auto import tqdm

        self._bar = tqdm(total=total, initial=done, unit="batch")

    def show(self, shown: Shown) -> None:
        self._bar.set_description_str(shown.phase, refresh=False)
        self._bar.set_postfix_str(f"{shown.rate:,.0f} images/s", refresh=False)
        self._bar.update(shown.step - self._bar.n)

    def close(self) -> None:
        self._bar.close()


class _Rich:
    def __init__(self, total: int | None, done: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        phase, rate = TextColumn("{task.description}"), TextColumn("{task.fields[rate]}")
        columns = phase, BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn()
        self._bar = Progress(*columns, console=bar_console())
        self._task = self._bar.add_task("", total=total, completed=done, rate="")
        self._bar.start()

    def show(self, shown: Shown) -> None:
        self._bar.update(self._task, completed=shown.step, description=shown.phase, rate=f"{shown.rate:,.0f} images/s")

    def close(self) -> None:
        self._bar.stop()
