"""The one place that imports Numba's CUDA target: the package numba-cuda, or its simulator.

Everything else says `from .cuda_target import cuda`. `cuda` is None where numba-cuda is not installed, or cannot be
imported; `PROBLEM` says why.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")


def _name_toolkit() -> None:
    """Set CUDA_HOME to the system's CUDA toolkit where nothing names one.

    numba-cuda takes NVVM from its own wheel, from CUDA_HOME, or from the loader's path, on which a toolkit does not put
    it. torch's wheels bring NVRTC but no NVVM, so that beside them a toolkit that is there is not found otherwise.
    """
    if os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        return
    compiler = shutil.which("nvcc")
    for folder in ([Path(compiler).resolve().parents[1]] if compiler else []) + [Path("/usr/local/cuda")]:
        if (folder / "nvvm" / "libdevice").is_dir():
            os.environ["CUDA_HOME"] = str(folder)
            return


def _import_cuda() -> Any:
    # Sends `numba.cuda` to numba-cuda. Its .pth file does so where it is installed, but not under a bare PYTHONPATH.
    import _numba_cuda_redirector  # noqa: F401
    import numba_cuda  # noqa: F401
    from numba import cuda

    if SIMULATED:
        return cuda
    if not hasattr(np, "row_stack"):
        # numba-cuda up to 0.30.4 at least asks for it when it first compiles, and NumPy 2.5 has it no more.
        vars(np)["row_stack"] = np.vstack
        try:
            import numba.cuda.np.arrayobj  # noqa: F401
        finally:
            del vars(np)["row_stack"]
    if "NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS" not in os.environ:
        # A batch of fewer than 128 images is no mistake, and would be warned of at every launch.
        from numba.cuda import dispatcher

        config: Any = dispatcher.config
        config.CUDA_LOW_OCCUPANCY_WARNINGS = 0
    return cuda


cuda: Any = None
PROBLEM: str | None = None
try:
    _name_toolkit()
    cuda = _import_cuda()
except ImportError as error:
    PROBLEM = f"{error}"
except Exception as error:  # a numba-cuda that does not go with what is installed must not stop the CPU's work
    PROBLEM = f"{type(error).__name__}: {error}"


def device_array(tensor: Any) -> Any:
    """Return a Numba view of a CUDA torch tensor, without a copy and without a synchronization.

    bfloat16 and float16 tensors have to be viewed as int16 first (`tensor.view(torch.int16)`), since the
    array interface has no bfloat16. In the simulator the tensor is a CPU tensor and its NumPy view is returned.
    """
    if SIMULATED:
        return tensor.numpy()
    return cuda.as_cuda_array(tensor, sync=False)


def launch_stream(torch_stream: Any) -> Any:
    """Return the Numba stream that stands for a torch CUDA stream (0, the default one, in the simulator)."""
    if SIMULATED:
        return 0
    return cuda.external_stream(torch_stream.cuda_stream)
