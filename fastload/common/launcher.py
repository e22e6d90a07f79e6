"""Which rank this process is, of how many: as it is said, by torch.distributed, or by a launcher's variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from fastload.common.arguments import integer
from fastload.errors import FastloadError, UsageError

_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
"""Where launchers say how many processes they have started: torchrun and its like, Open MPI, MPICH, MVAPICH."""


def ranks_of(rank: Any, world_size: Any) -> tuple[int, int]:
    """Return (rank, world size): the two that are given, or else those of torch.distributed; (0, 1) without any.

    Raises UsageError where neither is there, and a launcher has started several processes: every one of them would
    train on the same batches, and nothing would show it.
    """
    if (rank is None) != (world_size is None):
        raise UsageError(f"rank={rank} and world_size={world_size}: give both, or neither")
    if rank is None:
        group = torch.distributed
        if group.is_available() and group.is_initialized():
            return group.get_rank(), group.get_world_size()
        several = started_together(os.environ)
        if several:
            raise UsageError(
                f"a launcher has started several ranks ({several}), but torch.distributed is not initialized: make the "
                "loader after torch.distributed.init_process_group(), or give rank= and world_size= (rank=0, "
                "world_size=1 where this process is on its own)"
            )
        return 0, 1
    rank, world_size = integer("rank", rank), integer("world_size", world_size)
    if not 0 <= rank < world_size:
        raise UsageError(f"rank={rank} is not below world_size={world_size}")
    return rank, world_size


def check_still_alone() -> None:
    """Raise UsageError where there are several ranks by now, for a loader that was made as if there were one."""
    rank, world_size = ranks_of(None, None)
    if world_size > 1:
        raise UsageError(
            f"this loader was made for one rank, before torch.distributed was initialized, and this is rank {rank} of "
            f"{world_size:,} now, so all would train on the same batches: make the loader after init_process_group(), "
            "or give rank= and world_size="
        )


def started_together(environment: Mapping[str, str]) -> str:
    """Return the variable by which a launcher tells that it has started several processes, "NAME=VALUE", or ""."""
    for name in _SIZES:
        if _number(environment, name) > 1:
            return f"{name}={environment[name]}"
    # A batch script and a shell on a node have SLURM_NTASKS too, and are one process; a step has a number of its own.
    name = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
    in_script = environment.get("ENVIRONMENT") == "BATCH" and "SLURM_STEP_ID" not in environment
    if "SLURM_PROCID" in environment and not in_script and _number(environment, name) > 1:
        return f"{name}={environment[name]}"
    return ""


def _number(environment: Mapping[str, str], name: str) -> int:
    found = environment.get(name, "")
    return int(found) if found.isdecimal() else 0


class RankError(FastloadError):
    """Rank 0 did not say how to go on."""


def launched() -> tuple[int, int]:
    """Return the rank and world size that a launcher such as torchrun has given this process; (0, 1) without one."""
    if "LOCAL_RANK" not in os.environ:
        return 0, 1
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def default_store(world_size: int) -> Any:
    """Return the store of torch.distributed's default group, where there is one of this size, or None."""
    group = torch.distributed
    if not (group.is_available() and group.is_initialized()) or group.get_world_size() != world_size:
        return None
    return group.distributed_c10d._get_default_store()
