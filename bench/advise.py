"""`python -m fastload.bench advise`: what two-phase training would save, from measured feeds and your step time.

    python -m fastload.bench advise --full FULL.h5 --step-ms T [--subset SUBSET.h5] [--split 0.5] …

The rule is in docs/when-it-helps.md.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from fastload.augment import Augment
from fastload.bench import data, parts
from fastload.bench.measure import Deadline, race
from fastload.common.device import resolve_device
from fastload.common.memory import resident_room
from fastload.common.terminal import tell
from fastload.errors import UsageError
from fastload.packed.file import PackedFile

_IMAGES = 2048
_ROUNDS = 5
_SHARE = 0.0864


@dataclass(frozen=True)
class Advice:
    """What the rule says.

    Arguments:
        step: seconds of the trainer's step, data at hand.
        batch: images a step.
        stream: rate of the stream feed, images/s.
        resident: rate of the resident feed, images/s.
        split: share of the steps on the subset.
        steps: of the run.
        selection: seconds, divided by the runs that share the subset.
    """

    step: float
    batch: int
    stream: float
    resident: float
    split: float
    steps: int
    selection: float

    @property
    def stream_step(self) -> float:
        """Seconds of a step on the stream: the slower of trainer and feed, which work at the same time."""
        return max(self.step, self.batch / self.stream)

    @property
    def resident_step(self) -> float:
        """Seconds of a step on the resident subset."""
        return max(self.step, self.batch / self.resident)

    @property
    def full_only(self) -> float:
        """Seconds of a run on the full set only."""
        return self.steps * self.stream_step

    @property
    def saved(self) -> float:
        """Seconds that two phases save; negative where they cost."""
        return self.split * self.steps * (self.stream_step - self.resident_step) - self.selection

    def text(self) -> str:
        """Return the rule with these numbers in it, and what follows."""
        waits = "the trainer waits for the stream" if self.stream_step > self.step else "the stream keeps up"
        lines = [
            f"stream {self.stream:,.0f} images/s, resident {self.resident:,.0f} images/s, the trainer takes "
            f"{self.batch / self.step:,.0f}: {waits}",
            f"a step takes max({1e3 * self.step:.1f} ms, {self.batch:,} / rate): {1e3 * self.stream_step:.1f} ms on "
            f"the stream, {1e3 * self.resident_step:.1f} ms on the subset",
            "saved = split × steps × (stream step - resident step) - selection / runs that share it",
            f"      = {self.split:g} × {self.steps:,} × {1e3 * (self.stream_step - self.resident_step):.1f} ms - "
            f"{self.selection:.1f} s = {self.saved:,.1f} s of {self.full_only:,.1f} s "
            f"({self.saved / self.full_only:.0%})",
        ]
        if self.saved <= 0 and self.stream_step <= self.resident_step:
            lines.append("so two phases save no time here: the stream feeds this trainer fast enough")
        elif self.saved <= 0:
            lines.append("so two phases save no time here: choosing the subset takes longer than it saves")
        else:
            lines.append("so two phases save time here; whether accuracy allows this split is in docs/results.md")
        return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Run the command; return its exit code."""
    options = _parser().parse_args(arguments)
    _check(options)
    device = resolve_device(options.device)
    with PackedFile(options.full) as file:
        if file.storage != "encoded" and file.nbytes <= resident_room(device):
            tell(
                f"note: {options.full} fits the memory of {device}, where the loader keeps it (resident_budget=): two "
                "phases save nothing then. What follows is for a set that must be streamed."
            )
    tell(f"timing the stream and the resident feed in turn, for {options.seconds:g} s at most …", error=True)
    stream, resident = measure(options.full, options.subset, options.batch_size, options.crop, device, options.seconds)
    advice = Advice(
        options.step_ms / 1e3,
        options.batch_size,
        stream,
        resident,
        options.split,
        options.steps,
        options.selection_seconds / options.runs,
    )
    tell(advice.text())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fastload.bench advise", description=__doc__.split("\n\n")[0])
    parser.add_argument("--full", type=Path, required=True, metavar="FULL.h5", help="the packed full set")
    parser.add_argument(
        "--subset", type=Path, metavar="SUBSET.h5", help="the subset; without one 8.64%% of a raw full set stand in"
    )
    parser.add_argument(
        "--step-ms",
        type=float,
        required=True,
        metavar="T",
        help="your trainer's step, with its batch on the device already",
    )
    parser.add_argument("--split", type=float, default=0.5, help="the share of the steps on the subset")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=10_000, help="of the run")
    parser.add_argument("--selection-seconds", type=float, default=0.0, help="what build-subset takes")
    parser.add_argument("--runs", type=int, default=1, help="trainings that share the subset")
    parser.add_argument("--crop", type=int, help="the side that you train on; 7/8 of the shorter side by default")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--seconds", type=float, default=60.0, help="measure no longer than this")
    return parser


def _check(options: argparse.Namespace) -> None:
    if not 0 < options.split <= 1:
        raise UsageError(f"--split {options.split:g}: it lies above 0, and 1 is all steps on the subset")
    for name in ("step_ms", "batch_size", "steps", "runs", "seconds", "crop"):
        if getattr(options, name) is not None and not 0 < getattr(options, name) < float("inf"):
            raise UsageError(f"--{name.replace('_', '-')} {getattr(options, name):g}: it must be positive")
    if not 0 <= options.selection_seconds < float("inf"):
        raise UsageError(f"--selection-seconds {options.selection_seconds:g}: it must not be negative")


def measure(
    full: Path, subset: Path | None, batch: int, crop: int | None, device: torch.device, seconds: float
) -> tuple[float, float]:
    """Return the images/s of the stream on `full` and of the resident feed on `subset`, raced in turn."""
    with ExitStack() as stack:
        if subset is None:
            subset = _stand_in(full, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        with PackedFile(subset) as file:
            if file.storage == "encoded":
                raise UsageError(f"--subset {subset}: holds encoded images; make it with `fastload build-subset`")
        side = crop if crop is not None else max(1, parts.fitting_crop(subset, 2**31) * 7 // 8)
        with PackedFile(full) as file:
            encoded = file.storage == "encoded"
        batches = max(2, _IMAGES // batch)
        contestants = [
            stack.enter_context(
                parts.feed_contestant(
                    parts.Setting(device, False, Deadline(seconds)),
                    path,
                    Augment.paper(side, resize=side if encoded and not resident else None),
                    batch,
                    batches,
                    name=name,
                    engine="auto",
                    resident=resident,
                )
            )
            for name, path, resident in (("stream", full, False), ("resident", subset, True))
        ]
        stream, resident = race(contestants, device, rounds=_ROUNDS, deadline=Deadline(seconds))
    return stream.median, resident.median


def _stand_in(full: Path, folder: Path) -> Path:
    with PackedFile(full) as file:
        if file.storage != "raw":
            raise UsageError(
                f"--full {full}: holds {file.storage} images, so give the --subset that build-subset makes of it"
            )
        count = max(1, round(_SHARE * len(file)))
    return data.write_subset(folder / "subset.h5", full, count)
