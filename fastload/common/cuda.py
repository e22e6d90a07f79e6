"""Whether CUDA kernels can be compiled here, and what to say where they cannot."""

from __future__ import annotations

from fastload.common.install import cuda_install_command
from fastload.errors import UsageError
from fastload.kernels import cuda_target


def require_cuda_target() -> None:
    """Raise UsageError, with the reason and what to do, where numba-cuda cannot be imported."""
    if cuda_target.cuda is None:
        why = f"numba-cuda, which cannot be imported ({cuda_target.PROBLEM})"
        raise UsageError(f"device='cuda' needs {why}: {cuda_install_command()}")
