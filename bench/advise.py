"""`python -m fastload.bench advise`: which feed to train with, measured on your file and with your step's time.

    python -m fastload.bench advise --full FULL.h5 --step-ms T [--pool 16GB] [--batch-size B] …

The rule is `fastload.loop.advice.regime`; docs/when-it-helps.md explains it.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fastload.augment import Augment
from fastload.bench import data
from fastload.bench.measure import Deadline, synchronize
from fastload.bench.storage import cached_share, evict
from fastload.common.device import resolve_device
from fastload.common.memory import available_memory, free_memory
from fastload.common.processors import default_threads
from fastload.common.terminal import tell
from fastload.common.text import duration_text, size_text
from fastload.errors import UsageError
from fastload.feeds.batch import Output
from fastload.feeds.decoded_source import DecodedSource
from fastload.feeds.engine_choice import choose_engine
from fastload.feeds.feed import open_feed, run_feed
from fastload.feeds.pool_plan import planned_pool
from fastload.feeds.rolling_feed import pool_images
from fastload.loop.advice import MARGIN, Regime, regime
from fastload.order import ARRIVALS, FAST, FINE_TUNE, Order
from fastload.packed.file import PackedFile
from fastload.packed.reader import SampleReader
from fastload.packed.set import Packed, open_packed

ROUNDS = 5
ROUND_SECONDS = 1.0
ALL_CACHED = 0.99
"""The share of a file's pages in the system's cache from which on it is read from memory."""

STAND_IN_BYTES = 128 << 20
"""Of decoded images, from which the pool's batches are timed: more than processors' caches hold."""

USUAL_CROP = 224

PIECE = 16
"""Images that a thread fetches at a time."""


@dataclass(frozen=True)
class SetSize:
    """How large a full set is.

    Attributes:
        storage: "raw", "ragged" or "encoded".
        samples: in it.
        stored: bytes of its files.
        decoded: bytes of all its images as pixels.
    """

    storage: str
    samples: int
    stored: int
    decoded: int


@dataclass(frozen=True)
class Measured:
    """Rates that were found, images/s.

    Attributes:
        stream: of the stream feed, reading and decoding included.
        arrivals: of whole images, decoded, as a pool gets them.
        pool: of batches whose images lie decoded on the device.
        source: where the stream's bytes came from, in words.
    """

    stream: float
    arrivals: float
    pool: float
    source: str


@dataclass(frozen=True)
class Advice:
    """What to do, from what was measured.

    Arguments:
        full: the set, as the user named it.
        size: of the set.
        measured: on this machine.
        step: seconds of a training step, its batch at hand.
        batch: images a step.
        pool: as the loader takes it: memory for images, such as "16GB", or a number of samples.
        held: samples that it holds.
    """

    full: str
    size: SetSize
    measured: Measured
    step: float
    batch: int
    pool: int | str
    held: int

    @property
    def trainer(self) -> float:
        """Images/s that training can take: no more than augmentation gives, whatever it is fed from.

        A little less counts as all of it: a pool that saves a tenth of a stream's time would cost as much.
        """
        return min(self.batch / self.step, MARGIN * self.measured.pool)

    @property
    def _given(self) -> str:
        """The pool as it is typed."""
        return f'"{self.pool}"' if isinstance(self.pool, str) else f"{self.pool}"

    @property
    def regime(self) -> Regime:
        """The rule's choice."""
        fits = self.held >= self.size.samples
        rates = self.measured.stream, self.trainer
        return regime(*rates, fits=fits, global_batch_size=self.batch, arrival_rate=self.measured.arrivals)

    def text(self) -> str:
        """Return the advice, line by line, with the loader's arguments to copy."""
        size, measured, chosen = self.size, self.measured, self.regime
        pixels = "" if size.stored == size.decoded else f", {size_text(size.decoded)} decoded"
        lines = [
            f"{self.full}: {size.samples:,} {size.storage} images, {size_text(size.stored)}{pixels}",
            f"measured: the stream gives {measured.stream:,.0f} images/s ({measured.source}), whole images come at "
            f"{measured.arrivals:,.0f}, and images that lie decoded on the device at {measured.pool:,.0f}",
            f"training takes {self.batch / self.step:,.0f} images/s: {self.batch:,} each {1e3 * self.step:.3g} ms",
        ]
        if measured.pool < self.batch / self.step:
            lines.append("augmentation is slower than that, so training waits for it with any feed")
        lines.append(f"{ADVICE[chosen.feed]}: {chosen.reason}")
        lines += {"resident": self._resident, "stream": self._stream, "rolling": self._rolling}[chosen.feed](chosen)
        return "\n".join(lines)

    def _resident(self, chosen: Regime) -> list[str]:
        if self.size.storage != "encoded":
            return [f'    TwoPhaseLoader(None, "{self.full}", swap=1.0, batch_size={self.batch}, …)']
        return [
            f'    TwoPhaseLoader("{self.full}", pool={self._given}, refill="auto", batch_size={self.batch}, …)',
            "a pool that holds the whole set decodes each image once; nothing arrives after that",
        ]

    def _stream(self, chosen: Regime) -> list[str]:
        return [
            f'    TwoPhaseLoader("{self.full}", swap=0, batch_size={self.batch}, …)',
            "a subset or a pool would save no time, and show the model less",
        ]

    def _rolling(self, chosen: Regime) -> list[str]:
        arriving = chosen.refill * self.trainer
        slower = self.trainer / self.measured.stream
        lines = [
            f"pool={self._given} holds {self.held:,} samples, {self.held / self.size.samples:.1%} of the set, and is "
            f"full after {duration_text(self.held / arriving)}; training begins after the first batch",
            f'    TwoPhaseLoader("{self.full}", pool={self._given}, refill={chosen.refill:.4g}, '
            f"batch_size={self.batch}, …)",
            f"do not swap to the stream: a step would take {slower:.2g} times as long there, and in equal time even a "
            "pool that is never renewed trains better (docs/rolling.md)",
        ]
        return [*lines, f"warning: {chosen.warning}"] if chosen.warning else lines


ADVICE = {"resident": "keep the set on the device", "stream": "stream the set", "rolling": "roll"}


def main(arguments: list[str]) -> int:
    """Run the command; return its exit code."""
    options = _parser().parse_args(arguments)
    _check(options)
    device = resolve_device(options.device)
    with open_packed(options.full) as file:
        size = size_of(file)
        given = options.pool or default_pool(device)
        pool = int(given) if given.isdecimal() else given
        held = samples_held(pool, file, options.batch_size)
        tell(f"timing the stream and the resident feed in turn, for {options.seconds:g} s at most …", error=True)
        measured = measure(
            file, options.batch_size, options.crop, device, seconds=options.seconds, from_disk=options.from_disk
        )
    tell(Advice(options.full, size, measured, options.step_ms / 1e3, options.batch_size, pool, held).text())
    if device.type == "cpu":
        tell(
            "on a CPU the feed takes processors from training, which was not running here: both may be slower together"
        )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fastload.bench advise", description=__doc__.split("\n\n")[0])
    parser.add_argument("--full", required=True, metavar="FULL.h5", help="the packed full set, or a pattern of files")
    parser.add_argument(
        "--step-ms",
        type=float,
        required=True,
        metavar="T",
        help="your training step, with its batch on the device already",
    )
    parser.add_argument(
        "--pool",
        metavar="16GB",
        help="the device's memory for images, or a number of samples; half of what is free by default",
    )
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument(
        "--crop",
        type=int,
        help="the side that you train on; of raw images 7/8 of the shorter side by default, of others 224",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--seconds", type=float, default=60.0, help="measure no longer than this")
    parser.add_argument(
        "--from-disk",
        action="store_true",
        help="drop the file from the system's cache while measuring, as is done where it is not wholly in there",
    )
    return parser


def _check(options: argparse.Namespace) -> None:
    for name in ("step_ms", "batch_size", "seconds", "crop"):
        if getattr(options, name) is not None and not 0 < getattr(options, name) < float("inf"):
            raise UsageError(f"--{name.replace('_', '-')} {getattr(options, name):g}: it must be positive")


# -- sizes ---------------------------------------------------------------------------------------------------------


def size_of(file: Packed) -> SetSize:
    """Return a set's sizes; raise UsageError for an encoded one that does not tell its images'."""
    stored = sum(path.stat().st_size for path in file.paths)
    return SetSize(file.storage, len(file), stored, int(pool_images([file]).sizes.sum()))


def default_pool(device: torch.device) -> str:
    """Return half of the device's free memory, in words that the loader takes."""
    free = free_memory(device)
    if free is None:
        raise UsageError(f"--pool: how much memory {device} has free cannot be found out; give the pool's, as 16GB")
    return f"{free // 2 // 10**9}GB" if free >= 2 * 10**9 else f"{max(1, free // 2 // 10**6)}MB"


def samples_held(pool: int | str, file: Packed, batch: int) -> int:
    """Return how many samples a pool of that size holds: at most all. Raises UsageError for one that holds no batch."""
    shape, _ = planned_pool(
        pool,
        "auto",
        full=len(file),
        subset=0,
        images=pool_images([file]),
        batch_size=batch,
        world_size=1,
        shuffle=True,
    )
    return min(shape.samples, len(file))


# -- rates ---------------------------------------------------------------------------------------------------------


def measure(
    file: Packed, batch: int, crop: int | None, device: torch.device, *, seconds: float, from_disk: bool = False
) -> Measured:
    """Time the stream feed on `file`, whole images of it, and the resident feed on some, decoded; one after the other.

    A file that is larger than memory, or not wholly in the system's cache, is dropped from there before each round: it
    would be read from the disk in training too.

    Arguments:
        file: the set.
        batch: images a batch.
        crop: the output's side, or None for the usual one.
        device: where batches come out.
        seconds: after which no new round begins.
        from_disk: drop it in any case.
    """
    deadline = Deadline(seconds)
    found = statistics.fmean(map(cached_share, file.paths))
    memory = available_memory()
    larger = memory is not None and sum(path.stat().st_size for path in file.paths) > memory
    from_disk = from_disk or larger or found < ALL_CACHED
    rates: dict[str, list[float]] = {"stream": [], "arrivals": [], "pool": []}
    stayed = 0.0
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        some = stack.enter_context(PackedFile(data.write_decoded(folder / "some.h5", file, STAND_IN_BYTES)))
        augment = _augment(file, crop)
        take = {
            "stream": stack.enter_context(_batches(file, augment, batch, device, resident=False)),
            "arrivals": stack.enter_context(_arrivals(file, device)),
            "pool": stack.enter_context(_batches(some, augment, batch, device, resident=True)),
        }
        for number in range(-1, ROUNDS):
            for name in rates:
                if name != "pool" and from_disk:
                    stayed = max(stayed, *map(evict, file.paths))
                rate = take[name]()
                if number >= 0 or deadline.left == 0:
                    rates[name].append(rate)
            if deadline.left == 0:
                break
    stream, arrivals, pool = (statistics.median(rates[name]) for name in ("stream", "arrivals", "pool"))
    return Measured(stream, arrivals, pool, _source(from_disk, stayed))


def _source(from_disk: bool, stayed: float) -> str:
    if not from_disk:
        return "from the system's cache, which holds the whole file"
    if stayed >= ALL_CACHED:
        return "from the system's cache, which does not let go of the file"
    return "from the disk" if stayed < 1 - ALL_CACHED else f"from the disk, but for {stayed:.0%} that stayed in memory"


def _augment(file: Packed, crop: int | None) -> Augment:
    """Return the paper's recipe for raw images, ImageNet's for those of several sizes."""
    if file.shape is None:
        return Augment.imagenet(crop or USUAL_CROP)
    return Augment.paper(crop or max(1, min(file.shape[:2]) * 7 // 8))


@contextmanager
def _arrivals(file: Packed, device: torch.device) -> Iterator[Callable[[], float]]:
    """Give what fetches whole images, as a rolling pool does, for ROUND_SECONDS, and returns the images/s that came."""
    engine = choose_engine("auto", file, _augment(file, None), on_cuda=False)
    source, threads = DecodedSource(file, SampleReader(file), engine=engine), default_threads()
    order, positions = Order(len(file), seed=1, phase=ARRIVALS), itertools.count(0, PIECE)

    def fetch(until: float) -> int:
        fetched = 0
        while not fetched or time.perf_counter() < until:
            rows = np.sort(order.rows(next(positions), PIECE)[0])
            sizes = source.sizes[rows]
            source.ask(rows)
            source.fetch(rows, np.empty(int(sizes.sum()), np.uint8), np.cumsum(sizes) - sizes)
            fetched += PIECE
        return fetched

    with ThreadPoolExecutor(threads) as pool:

        def rate() -> float:
            began = time.perf_counter()
            fetched = sum(pool.map(fetch, [began + ROUND_SECONDS] * threads))
            return fetched / (time.perf_counter() - began)

        try:
            yield rate
        finally:
            source.close()


@contextmanager
def _batches(
    file: Packed, augment: Augment, batch: int, device: torch.device, *, resident: bool
) -> Iterator[Callable[[], float]]:
    """Give what takes batches of a feed for ROUND_SECONDS, and returns the images/s that came."""
    order = Order(len(file), seed=0, phase=FAST if resident else FINE_TUNE)
    feed = open_feed(file, augment, order, Output(batch, device), resident=resident)
    ahead = feed.workers + 2 if feed.workers else 0
    stream = run_feed(feed, lambda step: (step * batch, batch), 0, 2**40, device)

    def rate() -> float:
        for _ in range(ahead):  # were made while nobody asked
            next(stream)
        synchronize(device)
        taken, began = 0, time.perf_counter()
        while taken < 2 or time.perf_counter() - began < ROUND_SECONDS:
            next(stream)
            taken += 1
        synchronize(device)
        return taken * batch / (time.perf_counter() - began)

    try:
        yield rate
    finally:
        stream.close()
