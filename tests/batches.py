"""What tests ask of batches, and of the threads that make them."""

from __future__ import annotations

import threading

import torch


def same(one, other) -> bool:
    """Whether two runs are equal bit for bit: as many batches, and in each as many equal tensors."""
    return len(one) == len(other) and all(
        all(torch.equal(x, y) for x, y in zip(a, b, strict=True)) for a, b in zip(one, other, strict=True)
    )


def feed_threads() -> list[threading.Thread]:
    """The threads of ours that run."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("fastload")]
