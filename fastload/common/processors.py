"""How many processors there are for this process."""

from __future__ import annotations

import os


def processors() -> int:
    """Return the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_threads() -> int:
    """Return how many threads to start where the caller names no number: one a processor, 8 at most."""
    return min(8, processors())
