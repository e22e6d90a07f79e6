"""The one place that imports Numba's CUDA target: the package numba-cuda, or its simulator.

Everything else says `from .cuda_target import cuda`. `cuda` is None where numba-cuda is not installed.
"""

import os
from typing import Any

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")

cuda: Any
try:
    # Sends `numba.cuda` to numba-cuda. Its .pth file does so where it is installed, but not under a bare PYTHONPATH.
    import _numba_cuda_redirector  # noqa: F401
    import numba_cuda  # noqa: F401
    from numba import cuda as _cuda

    cuda = _cuda
    if not SIMULATED and "NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS" not in os.environ:
        # A batch of fewer than 128 images is no mistake, and would be warned of at every launch.
        from numba.cuda import dispatcher

        dispatcher.config.CUDA_LOW_OCCUPANCY_WARNINGS = 0
except ImportError:
    cuda = None


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
