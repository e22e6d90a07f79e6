"""A part of `gpu_check`: what the device and what the host take for one batch, and for one update of top-k.

A benchmark of a whole batch shows the larger of the two only. The device's times are those that CUDA's own tracing
gives for each kernel (by torch.profiler), all its launches of a call together; the host's are the time to queue the
work while the device is not waited for.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

from fastload.augment import Augment
from fastload.bench import data
from fastload.bench.measure import Result, result_of, synchronize
from fastload.bench.parts import Missing, Setting, packed_data
from fastload.feeds.batch import Output
from fastload.feeds.feed import open_feed
from fastload.order import FAST, Order
from fastload.packed.file import PackedFile
from fastload.selection.topk import TopK


def gpu_times(setting: Setting) -> list[Result]:
    """Times of the resident feed's batch at both sizes, and of top-k's update, on the device and on the host."""
    if setting.device.type != "cuda":
        raise Missing("kernels are timed by CUDA's tracing: there is no GPU")
    with ExitStack() as stack:
        found: list[Result] = []
        for name, side, crop, batch, count, dtype in (
            ("resident 24², float32, 1,024", 32, 24, 1024, 4320, torch.float32),
            ("resident 224², float16, 256", 256, 224, 256, 1024, torch.float16),
        ):
            path = stack.enter_context(packed_data(setting, partial(_noise, setting.pick(count, 64), side)))
            file = stack.enter_context(PackedFile(path))
            output = Output(setting.pick(batch, 16), setting.device, dtype)
            feed = open_feed(file, Augment.paper(crop), Order(len(file), 0, FAST), output, resident=True)
            stack.callback(feed.close)
            found += _times(name, partial(_make, feed, output.batch_size), setting)
        rows = setting.pick(1_000_000, 2000)
        matrix = torch.randn((rows, 216), device=setting.device).relu_()
        found += _times(f"top-20 of {rows:,}×216", partial(_update, matrix), setting)
    return found


def _noise(count: int, side: int, path: Any) -> Any:
    return data.write_noise(path, count, side)


def _make(feed: Any, batch: int, step: int) -> None:
    feed.make(step * batch, batch)


def _update(matrix: torch.Tensor, step: int) -> None:
    TopK(matrix.shape[1], 20, device=str(matrix.device)).update(matrix, range(len(matrix)))


def _times(name: str, call: Callable[[int], None], setting: Setting, calls: int = 50) -> list[Result]:
    for step in range(5):  # compiles, and fills caches
        call(step)
    host = []
    for step in range(calls):
        synchronize(setting.device)  # or a full queue would be waited for
        began = time.perf_counter()
        call(step)
        host.append(1e6 * (time.perf_counter() - began))
    synchronize(setting.device)
    found = [result_of(f"{name}: host", "µs", host)]
    for kernel, times in _traced(call, calls, setting.device).items():
        launches = len(times) // calls  # of one call; the tracer may lose some of the last
        if launches:
            sums = [math.fsum(times[one : one + launches]) for one in range(0, launches * calls, launches)]
            found.append(result_of(f"{name}: {kernel}", "µs", sums, details={"launches": launches}))
    return found


def _traced(call: Callable[[int], None], calls: int, device: torch.device) -> dict[str, list[float]]:
    """Return the µs of each launch, in order, by the kernel's short name, the longest in all first."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as traced:
        for step in range(calls):
            call(step)
        synchronize(device)
    times: dict[str, list[float]] = defaultdict(list)
    for event in traced.events() or ():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            times[_short(event.name)].append(float(event.time_range.elapsed_us()))
    return dict(sorted(times.items(), key=lambda one: -math.fsum(one[1])))


def _short(name: str) -> str:
    """Return a kernel's name without Numba's package prefix and types, and torch's without its arguments."""
    short = name.split("(")[0].split("<")[0].split("[")[0].rpartition("::")[2].strip()
    return (short or name)[:60]
