"""How `fastload build-subset` talks: what it needs, a bar for each step, notes, and the report."""

from __future__ import annotations

import contextlib
import json as json_text
from collections.abc import Callable

from fastload.common.progress import progress_bar
from fastload.common.terminal import tell
from fastload.common.text import duration_text, size_text
from fastload.subset.estimate import Estimate
from fastload.subset.listener import Listener
from fastload.subset.report import STEP_TITLES, StepReport, SubsetReport

_UNITS = {"train": "steps", "embed": "images", "analyse": "images", "filter": "images", "write": "images"}


class TerminalListener(Listener):
    """Tells a person on stderr how build-subset gets on.

    Arguments:
        quiet: tell nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar = contextlib.ExitStack()
        self._count: Callable[[int], None] = lambda count: None
        self._done = 0

    def __enter__(self) -> TerminalListener:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def needs(self, needs: Estimate) -> None:
        """Print what will be needed."""
        steps = ", ".join(f"{STEP_TITLES[step]} {duration_text(seconds)}" for step, seconds in needs.seconds.items())
        reused = "".join(f", {STEP_TITLES[step]}: reused" for step in needs.reused)
        self._tell(f"needs: time about {duration_text(sum(needs.seconds.values()))} ({steps}{reused})")
        memory = f"memory {_amount(needs.memory, needs.memory_available, 'available')}"
        if needs.device_memory_free is not None:
            memory += f", on the device {_amount(needs.device_memory, needs.device_memory_free, 'free')}"
        self._tell(f"       {memory}, disk {_amount(needs.disk, needs.disk_free, 'free')}")

    def note(self, text: str) -> None:
        """Print a note."""
        self._tell(f"note: {text}")

    def begin(self, step: str, total: int, done: int = 0) -> None:
        """Show the step's bar."""
        self._bar.close()
        self._done = 0
        self._count = self._bar.enter_context(
            progress_bar(STEP_TITLES[step], total, unit=_UNITS[step], quiet=self._quiet)
        )
        self.advance(done)

    def advance(self, done: int, detail: str = "") -> None:
        """Move the bar on; a pass that starts over leaves it where it is."""
        if done > self._done:
            self._count(done - self._done)
            self._done = done

    def end(self, report: StepReport) -> None:
        """Take the bar away and print the step's line."""
        self._bar.close()
        if report.how != "not needed":
            detail = f", {report.detail}" if report.detail else ""
            self._tell(f"{STEP_TITLES[report.step]}: {report.how}, {duration_text(report.seconds)}{detail}")

    def _tell(self, text: str) -> None:
        if not self._quiet:
            tell(text, error=True)


def _amount(needed: int, there: int | None, word: str) -> str:
    return f"about {size_text(needed)}" + ("" if there is None else f" of {size_text(there)} {word}")


def print_report(report: SubsetReport, *, json: bool, quiet: bool) -> None:
    """Print the report on stdout.

    Arguments:
        report: what was done.
        json: print JSON in place of lines.
        quiet: print no lines.
    """
    if json:
        print(json_text.dumps(report.state(), indent=1))
    elif not quiet:
        tell(str(report))
