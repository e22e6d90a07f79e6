"""The parts of a benchmark: each takes a device and a size and returns results beside their limits.

`python -m fastload.bench` and `python -m fastload.bench.gpu_check` both run these.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch

from fastload.augment import Augment
from fastload.bench import data
from fastload.bench.measure import Contestant, Deadline, Result, race, synchronize
from fastload.common.processors import default_threads
from fastload.feeds.batch import Output
from fastload.feeds.feed import open_feed, run_feed
from fastload.order import FAST, FINE_TUNE, Order
from fastload.packed.file import PackedFile


@dataclass(frozen=True)
class Setting:
    """Where and how long: the device, tiny sizes (`quick`), a file to use in place of generated data, the deadline."""

    device: torch.device
    quick: bool
    deadline: Deadline
    file: Path | None = None

    @property
    def rounds(self) -> int:
        return 5

    def pick(self, usual: int, quick: int, on_cpu: int | None = None) -> int:
        """Return a size: `quick` for a rehearsal, else what the device can do in a fraction of a second."""
        if self.quick:
            return quick
        return on_cpu if on_cpu is not None and self.device.type == "cpu" else usual


class Missing(Exception):
    """A part cannot run here, for want of a package."""


def has_dali() -> bool:
    """Whether DALI can be imported."""
    try:
        import nvidia.dali  # noqa: F401
    except ImportError:
        return False
    return True


@contextmanager
def packed_data(setting: Setting, write: Callable[[Path], Path]) -> Iterator[Path]:
    """Give the file that was brought, or one that is written now and removed afterwards."""
    if setting.file is not None:
        yield setting.file
        return
    with tempfile.TemporaryDirectory() as folder:
        yield write(Path(folder) / "data.h5")


@contextmanager
def feed_contestant(
    setting: Setting,
    path: Path,
    augment: Augment,
    batch: int,
    batches: int,
    *,
    name: str,
    engine: str,
    resident: bool,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Contestant]:
    """A contestant that takes `batches` batches of a feed at each call; its limit copies as many outputs."""
    device = setting.device
    with PackedFile(path) as file:
        order = Order(len(file), seed=0, phase=FAST if resident else FINE_TUNE)
        feed = open_feed(file, augment, order, Output(batch, device, dtype), engine=engine, resident=resident)
        stream = run_feed(feed, lambda step: (step * batch, batch), 0, 2**40, device)
        channels = file.channels
        stored = file.storage if file.shape is None else "×".join(map(str, file.shape))
        details = {
            "engine": engine,
            "batch": batch,
            "batches": batches,
            "stored": stored,
            "crop": list(augment.sides),
            "dtype": str(dtype).rpartition(".")[2],
            "images": len(file),
        }
        output = torch.zeros((batch, channels, *augment.sides), dtype=dtype, device=device)
        ahead = feed.workers + 2 if feed.workers else 0
        try:
            yield batch_contestant(name, lambda: next(stream), batches, output, ahead=ahead, details=details)
        finally:
            stream.close()


@contextmanager
def loader_contestant(
    setting: Setting,
    path: Path | None,
    augment: Augment,
    batch: int,
    batches: int,
    *,
    name: str,
    engine: Literal["auto", "fused", "dali"] = "auto",
    dtype: torch.dtype = torch.float32,
    details: dict[str, Any] | None = None,
    loading: Mapping[str, Any] | None = None,
    ahead: int = 0,
    warm: int = 0,
) -> Iterator[Contestant]:
    """A contestant that takes batches of our loader as a training loop has it, by default streamed from the cache.

    Arguments:
        setting: where and how long.
        path: of the full set, or None where `loading` names a subset alone.
        augment: what happens to each image.
        batch: images a batch.
        batches: how many a round takes.
        name: of the contestant.
        engine: of the loader.
        dtype: of the images.
        details: what is written beside the result.
        loading: further arguments of the loader, in place of those that stream the set.
        ahead: batches whose data may have been made ready while others ran, beside those that threads made ahead.
        warm: batches that are taken before the first round.
    """
    from fastload.loop.loader import TwoPhaseLoader

    threads = default_threads()
    output = torch.zeros((batch, 3, *augment.sides), dtype=dtype, device=setting.device)
    told = {"batch": batch, "batches": batches, "crop": list(augment.sides), "dtype": str(dtype).rpartition(".")[2]}
    told |= {"threads": threads} | (details or {})
    with TwoPhaseLoader(
        path,
        batch_size=batch,
        steps=2**40,
        augment=augment,
        device=setting.device,
        dtype=dtype,
        engine=engine,
        **({"swap": 0} if loading is None else loading),
    ) as loader:
        stream = iter(loader)
        for _ in range(warm):
            next(stream)
        ahead += 2 * threads + 2
        yield batch_contestant(name, lambda: next(stream), batches, output, ahead=ahead, details=told)


def batch_contestant(
    name: str, take: Callable[[], Any], batches: int, output: torch.Tensor, *, ahead: int, details: dict[str, Any]
) -> Contestant:
    """Return a contestant that calls `take` for each of `batches` batches; its limit copies as many of its outputs.

    Arguments:
        name: of the contestant.
        take: gives a batch; what it returns is dropped.
        batches: how many a round takes.
        output: of a batch's shape and type, on its device.
        ahead: batches that may be made while others run, and are taken untimed before each round.
        details: what is written beside the result.
    """
    target = torch.empty_like(output)

    def run() -> None:
        for _ in range(batches):
            take()

    def drain() -> None:
        for _ in range(ahead):
            take()

    def copy() -> None:
        for _ in range(batches):
            target.copy_(output)

    work = len(output) * batches
    return Contestant(name, "images/s", work, run, copy, "copy of the output", drain, details)


def _noise(count: int, side: int, path: Path) -> Path:
    return data.write_noise(path, count, side)


def with_batch_time(results: list[Result]) -> list[Result]:
    """Add to the details how long a batch took, and the copy of as many bytes."""
    for one in results:
        one.details["us_per_batch"] = round(1e6 * one.details["batch"] / one.median, 2)
        if one.limit:
            one.details["us_per_copy"] = round(1e6 * one.details["batch"] / one.limit, 2)
    return results


def resident(setting: Setting, engines: tuple[str, ...] = ("fused", "dali")) -> list[Result]:
    """The resident feed, CIFAR's shape: 32×32×3 → 24×24×3, float32, batches of 1,024."""
    batch = setting.pick(1024, 16)
    with (
        packed_data(setting, lambda path: data.write_noise(path, setting.pick(4320, 64), 32)) as path,
        ExitStack() as stack,
    ):
        augment = Augment.paper(fitting_crop(path, 24))
        running = [
            stack.enter_context(
                feed_contestant(
                    setting,
                    path,
                    augment,
                    batch,
                    setting.pick(1000 if engine == "fused" else 100, 3, on_cpu=20 if engine == "fused" else 4),
                    name=f"resident, {engine}",
                    engine=engine,
                    resident=True,
                )
            )
            for engine in engines
        ]
        return with_batch_time(race(running, setting.device, rounds=setting.rounds, deadline=setting.deadline))


def resident_large(setting: Setting) -> list[Result]:
    """The resident feed, ImageNet's shape: 256×256×3 → 224×224×3, float16, batches of 256."""
    batch, side, crop = setting.pick(256, 4, 64), setting.pick(256, 40), setting.pick(224, 32)
    with packed_data(setting, lambda path: data.write_noise(path, setting.pick(1024, 8, 256), side)) as path:
        feeding = feed_contestant(
            setting,
            path,
            Augment.paper(fitting_crop(path, crop)),
            batch,
            setting.pick(200, 2, 4),
            name=f"resident, fused, {crop}², float16",
            engine="fused",
            resident=True,
            dtype=torch.float16,
        )
        with feeding as contestant:
            return with_batch_time(race([contestant], setting.device, rounds=setting.rounds, deadline=setting.deadline))


def stream_raw(setting: Setting, engines: tuple[str, ...] = ("fused", "dali")) -> list[Result]:
    """The stream feed from a raw packed file: CIFAR's shape, and 256×256×3 → 224×224×3."""
    results = []
    for count, side, crop, batch, batches in (
        (setting.pick(50_000, 100), 32, 24, setting.pick(1024, 16), setting.pick(300, 3, 20)),
        (
            setting.pick(2000, 12, 400),
            setting.pick(256, 40),
            setting.pick(224, 32),
            setting.pick(256, 4, 64),
            setting.pick(30, 2, 3),
        ),
    ):
        with (
            packed_data(setting, partial(_noise, count, side)) as path,
            ExitStack() as stack,
        ):
            augment = Augment.paper(fitting_crop(path, crop))
            running = [
                stack.enter_context(
                    feed_contestant(
                        setting,
                        path,
                        augment,
                        batch,
                        batches if engine == "fused" else max(2, batches // 5),
                        name=f"stream, raw, {engine}, {augment.sides[0]}²",
                        engine=engine,
                        resident=False,
                    )
                )
                for engine in engines
            ]
            results += with_batch_time(race(running, setting.device, rounds=setting.rounds, deadline=setting.deadline))
        if setting.file is not None:
            break
    return results


def stream_encoded(setting: Setting) -> list[Result]:
    """The stream feed from JPEG files through DALI: decode, resize to 256, crop 224."""
    _need_dali()
    batch = setting.pick(128, 4, 32)
    small, crop = setting.pick(256, 40), setting.pick(224, 32)
    with packed_data(setting, lambda path: data.write_encoded(path, setting.pick(1000, 8, 200), small + 40)) as path:
        feeding = feed_contestant(
            setting,
            path,
            Augment.paper(crop, resize=small),
            batch,
            setting.pick(40, 2, 3),
            name=f"stream, encoded, dali, {crop}²",
            engine="dali",
            resident=False,
        )
        with feeding as contestant:
            return with_batch_time(race([contestant], setting.device, rounds=setting.rounds, deadline=setting.deadline))


def select(setting: Setting) -> list[Result]:
    """Top-k down the columns of embeddings that lie on the device; the limit reads the matrix once (a sum)."""
    from fastload.selection.topk import TopK

    rows, dims, k = setting.pick(1_000_000, 2000, 200_000), 216, 20
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn((rows, dims), generator=generator).relu_()
    matrix = matrix.to(setting.device)
    running = []
    for dtype in (torch.float32, torch.float16):
        x = matrix.to(dtype)

        def run(x: torch.Tensor = x) -> None:
            lists = TopK(dims, k, device=str(setting.device))
            lists.update(x, range(rows))
            lists.result()

        def read(x: torch.Tensor = x) -> None:
            x.sum(dtype=torch.float32)

        kind = str(dtype).rpartition(".")[2]
        details = {"rows": rows, "dims": dims, "k": k, "dtype": kind}
        size = x.numel() * x.element_size() / 1e9
        running.append(
            Contestant(f"select, top-{k}, {kind}", "GB/s", size, run, read, "sum of the matrix", None, details)
        )
    return race(running, setting.device, rounds=setting.rounds, deadline=setting.deadline)


def two_phase(setting: Setting) -> list[Result]:
    """A whole two-phase run with a small network training on it, and the longest step at the swap."""
    from fastload.loop.loader import TwoPhaseLoader

    batch = setting.pick(512, 8, 64)
    steps = setting.pick(400, 12, 60)
    swap = steps // 2
    device = setting.device
    with tempfile.TemporaryDirectory() as folder:
        full = data.write_noise(Path(folder) / "full.h5", setting.pick(20_000, 64), 32)
        subset = data.write_subset(Path(folder) / "subset.h5", full, setting.pick(2000, 32))
        model = torch.nn.Sequential(
            torch.nn.Conv2d(3, 32, 5, padding=2),
            torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool2d(4),
            torch.nn.Flatten(),
            torch.nn.Linear(512, 10),
        ).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        taken = []
        with TwoPhaseLoader(
            full, subset, batch_size=batch, steps=steps, swap=swap, augment=Augment.paper(24), device=device
        ) as loader:
            synchronize(device)
            before = time.perf_counter()
            for images, labels in loader:
                loss = torch.nn.functional.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                synchronize(device)
                now = time.perf_counter()
                taken.append(now - before)
                before = now
            stats = loader.stats()
    warm = max(1, steps // 10)  # the first steps choose algorithms
    fast, fine = taken[warm:swap], taken[swap:]
    usual = statistics.median(fast + fine)
    near = max(taken[swap - 1 : swap + 2])
    details = {
        "batch": batch,
        "steps": steps,
        "swap": swap,
        "median_step_ms": round(1e3 * usual, 3),
        "fast_step_ms": round(1e3 * statistics.median(fast), 3),
        "fine_step_ms": round(1e3 * statistics.median(fine), 3),
        "longest_step_at_swap_ms": round(1e3 * near, 3),
        "gap_at_swap_ms": round(1e3 * (near - usual), 3),
        "waited": {phase: round(values["waited"], 4) for phase, values in stats.items()},
    }
    speed = batch / usual
    return [Result("two-phase loop", "images/s", speed, 0.0, [speed], details=details)]


def autoencoder(setting: Setting) -> list[Result]:
    """Steps a second of the paper's autoencoder, batches of 1,024, fed by the stream feed."""
    from fastload.embedding.training import TrainingSettings, train

    batch = setting.pick(1024, 8, 128)
    block = setting.pick(20, 1, 2)
    stamps: list[float] = []
    with packed_data(setting, lambda path: data.write_noise(path, setting.pick(10_000, 32, 2000), 32)) as path:
        steps = block * (setting.rounds + 1)

        def on_step(done: int, loss: float | None) -> None:
            if done % block == 0:
                synchronize(setting.device)
                stamps.append(time.perf_counter())

        with PackedFile(path) as file:
            train(
                file,
                TrainingSettings(steps, batch_size=batch, learning_rate=0.01),
                device=str(setting.device),
                on_step=on_step,
            )
    speeds = [block / (after - before) for before, after in pairwise(stamps)]
    median = statistics.median(speeds)
    spread = (max(speeds) - min(speeds)) / median
    return [Result("autoencoder", "steps/s", median, spread, speeds, details={"batch": batch})]


def fitting_crop(path: Path, wanted: int) -> int:
    """Return the crop's side: what is wanted, or less where the file's images are smaller."""
    with PackedFile(path) as file:
        if file.storage == "ragged" and file.shapes is not None:
            return min(wanted, int(file.shapes.min()))
        return wanted if file.shape is None else min(wanted, *file.shape[:2])


def _need_dali() -> None:
    if not has_dali():
        raise Missing("DALI is not installed")


def resident_fused(setting: Setting) -> list[Result]:
    """`resident`, the fused engine alone."""
    return resident(setting, ("fused",))


def resident_dali(setting: Setting) -> list[Result]:
    """`resident`, DALI alone."""
    _need_dali()
    return resident(setting, ("dali",))


def stream_fused(setting: Setting) -> list[Result]:
    """`stream_raw`, the fused engine alone."""
    return stream_raw(setting, ("fused",))


def stream_dali(setting: Setting) -> list[Result]:
    """`stream_raw`, DALI alone."""
    _need_dali()
    return stream_raw(setting, ("dali",))


def gpu_times(setting: Setting) -> list[Result]:
    """`gpu_times.gpu_times`: what the device and what the host take, apart."""
    from fastload.bench.gpu_times import gpu_times

    return gpu_times(setting)


PARTS: dict[str, Callable[[Setting], list[Result]]] = {
    "resident-fused": resident_fused,
    "resident-224": resident_large,
    "select": select,
    "stream-fused": stream_fused,
    "two-phase": two_phase,
    "autoencoder": autoencoder,
    "times": gpu_times,
    "resident-dali": resident_dali,
    "stream-dali": stream_dali,
    "stream-encoded": stream_encoded,
}
"""The parts of `gpu_check`, the most wanted first."""


def run_part(name: str, setting: Setting) -> list[dict[str, Any]]:
    """Run a part and return its results as plain values."""
    return [result.as_dict() for result in PARTS[name](setting)]
