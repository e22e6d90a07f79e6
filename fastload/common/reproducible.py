"""torch's settings under which the same input gives the same bits each time."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils import deterministic


@contextlib.contextmanager
def reproducible(device: str) -> Iterator[None]:
    """Let torch use only algorithms that give the same bits each time; what was set before comes back after.

    On the CPU they all do, given the number of threads. On CUDA, cuDNN's choice by timing, TF32 and atomic
    additions are kept out; new tensors are not filled, though torch's strict mode does so unless it is told.
    """
    if not device.startswith("cuda"):
        yield
        return
    strict = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with contextlib.ExitStack() as changed:
        changed.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message=".*deterministic.*")
        changed.callback(lambda: torch.use_deterministic_algorithms(strict[0], warn_only=strict[1]))
        torch.use_deterministic_algorithms(True, warn_only=True)
        _set(changed, deterministic, "fill_uninitialized_memory", False)
        cudnn = torch.backends.cudnn
        for name, value in (("enabled", True), ("benchmark", False), ("deterministic", True)):
            _set(changed, cudnn, name, value)
        _keep_out_tf32(changed)
        yield


def _keep_out_tf32(changed: contextlib.ExitStack) -> None:
    """Turn TF32 off by the settings that the program uses: after the newer ones (torch 2.9) the older ones raise.

    The newer ones are inherited, from all to cuDNN's and to each operation's. What is "ieee" once those above it are
    was not set by itself, and is not set here either: so it goes on inheriting afterwards.
    """
    backends: Any = torch.backends
    try:
        before = torch.get_float32_matmul_precision()
        _set(changed, backends.cudnn, "allow_tf32", False)
    except RuntimeError:
        for place in (backends, backends.cudnn, backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul):
            _set(changed, place, "fp32_precision", "ieee")
        return
    if before != "highest":
        changed.callback(lambda: torch.set_float32_matmul_precision(before))
        torch.set_float32_matmul_precision("highest")


def _set(changed: contextlib.ExitStack, place: Any, name: str, value: Any) -> None:
    before = getattr(place, name)
    if before != value:
        changed.callback(setattr, place, name, before)
        setattr(place, name, value)


@contextlib.contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Let torch use so many threads; what was set before comes back after.

    On the CPU its rounding may depend on their number, which is why all ranks take rank 0's.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
