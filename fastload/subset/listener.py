"""What hears how a run of build-subset gets on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastload.subset.estimate import Estimate
    from fastload.subset.report import StepReport

STEPS = ("train", "embed", "analyse", "filter", "write")


class Listener:
    """Hears how `build_subset` gets on; all methods may be left as they are, which is silence."""

    def needs(self, needs: Estimate) -> None:
        """Hear, before the first step, what time, memory and disk are needed."""

    def note(self, text: str) -> None:
        """Hear what a person should know: a changed setting, a damaged state."""

    def begin(self, step: str, total: int, done: int = 0) -> None:
        """Hear that a step begins.

        Arguments:
            step: one of STEPS.
            total: units that the step has.
            done: units that an earlier run has done.
        """

    def advance(self, done: int, detail: str = "") -> None:
        """Hear how many units of the step are done, and what it is at."""

    def end(self, report: StepReport) -> None:
        """Hear that a step is done, or was found done."""
