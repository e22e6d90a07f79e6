"""How much memory there is to be had, on the host and on a device."""

from __future__ import annotations

from pathlib import Path

import torch

from fastload.errors import DataError

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
    """Return the bytes that can still be had on a device, the host for "cpu"; None where unknown."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()


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


def check_fits(size: int, device: torch.device, name: str) -> None:
    """Raise DataError unless `size` bytes of the set `name` can be kept on the device: by how much, and what fits."""
    free = free_memory(device)
    if free is not None and size > free:
        raise DataError(
            f"{name}: needs {size / 1e6:,.0f} MB of {device} memory, {(size - free) / 1e6:,.0f} MB more than the "
            f"{free / 1e6:,.0f} MB that are free; about {free / size:.0%} of it fits: build a smaller one "
            "(build-subset --size)"
        )
