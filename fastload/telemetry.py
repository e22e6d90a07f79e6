"""What a loader says of itself: a progress bar, scalars for a SummaryWriter, and what to change if training waits."""

from __future__ import annotations

import contextlib
from typing import Any, Protocol

from fastload.errors import UsageError

WAITS = 0.1
"""The share of time spent waiting above which `stats()` says what to change."""

BARS = ("rich", "tqdm")


def advice(stats: dict[str, Any], *, encoded: bool, engine: str, shuffle: object, size: int, free: int | None) -> str:
    """Return in a sentence what to change where training waits for data, or "".

    Arguments:
        stats: of one phase. encoded: whether its file holds encoded images. engine, shuffle: the loader's.
        size: of the file's images in bytes. free: memory that the device has to spare, None where unknown.
    """
    if stats["waited"] <= WAITS or not stats["batches"]:
        return ""
    waits = f"training waits for data {stats['waited']:.0%} of the time: "
    if stats["feed"] == "stream" and not encoded and shuffle != "block" and free is not None and size < free:
        return f"{waits}the set takes {size / 1e6:,.0f} MB and would fit the device; give resident_budget={size}"
    if encoded:
        return f"{waits}decoding sets the pace; pack the images raw, resized once (fastload pack --resize S)"
    if engine == "dali":
        return f'{waits}engine="fused" is faster for raw files'
    if stats["ring_fill"] > 0.5:
        return f"{waits}batches stand ready half of the time but not when they are needed; give a larger prefetch="
    if stats["feed"] == "stream" and shuffle is True:
        return (
            f'{waits}if the file is larger than memory, shuffle="block" reads nearly in sequence (pack it with '
            "`--order shuffled`); if it is not, more processors help, or fewer torch threads"
        )
    return f"{waits}more processors help, or fewer torch threads (torch.set_num_threads), or a smaller crop"


class Writer(Protocol):
    """What `log_to` needs of torch.utils.tensorboard.SummaryWriter."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any: ...


class ScalarLog:
    """Writes what changed since the last time, each `every` steps."""

    def __init__(self, writer: Writer, every: int, prefix: str) -> None:
        if not callable(getattr(writer, "add_scalar", None)):
            raise UsageError(f"log_to({writer!r}): it takes a SummaryWriter, or another object with add_scalar()")
        self._writer, self._every, self._prefix = writer, every, prefix
        self._before: dict[str, dict[str, Any]] = {}

    def step(self, step: int, phase: int, stats: dict[str, dict[str, Any]]) -> None:
        """Write the scalars at `step`; `stats` is the loader's, `phase` 0 for fast and 1 for fine-tune."""
        name = list(stats)[phase]
        now, before = stats[name], self._before.get(name, {"images": 0, "seconds": 0.0, "waited_seconds": 0.0})
        waited = now["waited"] * now["seconds"]
        seconds = now["seconds"] - before["seconds"]
        if seconds > 0:
            rate = (now["images"] - before["images"]) / seconds
            values = {
                "phase": phase,
                "images_per_second": rate,
                "waited": (waited - before["waited_seconds"]) / seconds,
                "ring_fill": now["ring_fill"],
            }
            if now["images_per_second"]:
                values["read_mb_per_second"] = now["read_bytes_per_second"] / now["images_per_second"] * rate / 1e6
            for tag, value in values.items():
                self._writer.add_scalar(f"{self._prefix}/{tag}", value, step)
        self._before[name] = {"images": now["images"], "seconds": now["seconds"], "waited_seconds": waited}

    def due(self, step: int) -> bool:
        return step % self._every == 0


class Bar:
    """A progress bar with the phase in it, by rich or tqdm."""

    def __init__(self, kind: str, total: int | None, done: int) -> None:
        self._rich: Any = None
        if kind == "tqdm":
            from tqdm.auto import tqdm

            self._tqdm = tqdm(total=total, initial=done, unit="batch")
        else:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._rich = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(), console=Console(stderr=True),
            )  # fmt: skip
            self._task = self._rich.add_task("", total=total, completed=done, rate="")
            self._rich.start()

    def show(self, step: int, phase: str, rate: float) -> None:
        """Move to `step`."""
        if self._rich is not None:
            self._rich.update(self._task, completed=step, description=phase, rate=f"{rate:,.0f} images/s")
            return
        self._tqdm.set_description_str(phase, refresh=False)
        self._tqdm.set_postfix_str(f"{rate:,.0f} images/s", refresh=False)
        self._tqdm.update(step - self._tqdm.n)

    def close(self) -> None:
        """Leave the bar as it stands. Safe to call twice."""
        with contextlib.suppress(Exception):
            (self._tqdm.close if self._rich is None else self._rich.stop)()


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
