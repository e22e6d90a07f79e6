"""How much memory there is to be had, on the host and on a device."""

from __future__ import annotations

from pathlib import Path

import torch

from fastload.errors import DataError, UsageError

RESIDENT_BUDGET = 1 << 30
"""Up to this many bytes, and a quarter of the device's free memory, a full set is kept on the device by default."""


def available_memory() -> int | None:
    """Return the bytes that this process can still have, by the system and its control group; None where unknown."""
    found = []
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":", 1) for line in file)
        found.append(int(fields["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        pass
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        cached = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
        found.append(int(limit) - used + int(cached.get("inactive_file", 0)))
    except (OSError, ValueError):
        pass  # no control group, or "max"
    return max(0, min(found)) if found else None


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that can still be had on a device, the host for "cpu"; None where unknown.

    On CUDA: what the driver has free, and what torch keeps for tensors to come. Gaps between tensors in use do not
    count: they cannot be joined.
    """
    if device.type != "cuda":
        return available_memory()
    gaps = torch.cuda.memory_stats(device).get("inactive_split_bytes.all.current", 0)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device) - gaps
    return torch.cuda.mem_get_info(device)[0] + max(0, cached)


def pinned_bytes(size: int) -> int:
    """Return the bytes of host memory that torch takes for a pinned buffer of `size`: the next power of two."""
    return 1 << max(0, size - 1).bit_length()


def resident_room(device: torch.device, budget: int | None = None, *, beside: int = 0) -> int:
    """Return how many bytes of a full set may be kept on a device, `beside` bytes of other data that are to come.

    Arguments:
        budget: at most that; by default RESIDENT_BUDGET, and no more than a quarter of what is free.
    """
    free = free_memory(device)
    if free is None:
        return budget or 0
    free -= beside
    return min(RESIDENT_BUDGET, free // 4) if budget is None else min(budget, free)


def check_fits(size: int, device: torch.device, name: str, *, what: str = "set") -> None:
    """Raise DataError unless `size` bytes can be kept on the device: by how much, and what fits.

    Arguments:
        size: bytes.
        device: "cpu" is the host.
        name: of the set.
        what: "set", or "pool" where it is a part of the set that is renewed.
    """
    free = free_memory(device)
    if free is not None and size > free:
        mend = "build a smaller one, with a smaller size=" if what == "set" else "give a smaller pool="
        raise DataError(
            f"{name}: {'' if what == 'set' else f'its {what} '}needs {size / 1e6:,.0f} MB of {device} memory, "
            f"{(size - free) / 1e6:,.0f} MB more than the {free / 1e6:,.0f} MB that are free; about "
            f"{free / size:.0%} of it fits: {mend}"
        )


def check_pinned(size: int, workers: int, batch_size: int) -> None:
    """Raise UsageError unless the host has `size` bytes for the pinned buffers of `workers` threads' batches."""
    available = available_memory()
    if available is not None and size > available + _cached_pinned():
        raise UsageError(
            f"{workers} threads with a pinned buffer for a batch of {batch_size:,} each need {size / 1e6:,.0f} MB of "
            f"memory, but {available / 1e6:,.0f} MB are available; choose a smaller batch_size="
        )


def _cached_pinned() -> int:
    """Return the bytes of pinned memory that torch keeps for buffers to come."""
    stats = torch.cuda.host_memory_stats() if hasattr(torch.cuda, "host_memory_stats") else {}
    return max(0, stats.get("allocated_bytes.current", 0) - stats.get("active_bytes.current", 0))
