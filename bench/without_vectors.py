"""Our own loader as a contestant in a process of its own, as it is on a processor without AVX2 and F16C.

Numba is told the processor's name and features, less one, so that kernels ask for no instruction by its name; LLVM
still uses what it finds fit. With the same features Numba would load the code that it keeps for this processor.
"""

import os

from llvmlite.binding import get_host_cpu_features, get_host_cpu_name

os.environ["NUMBA_CPU_NAME"] = get_host_cpu_name()
os.environ["NUMBA_CPU_FEATURES"] = get_host_cpu_features().flatten().replace("+f16c", "-f16c")

import torch

from fastload import Augment, TwoPhaseLoader
from fastload.common.processors import default_threads

AHEAD = 2 * default_threads() + 2
LEAVES_OUT: dict[str, str] = {}


def open_batches(case):
    """Yield (images, labels), epoch after epoch, from the packed file."""
    settings = {"batch_size": case["batch"], "steps": 2**40, "swap": 0, "dtype": getattr(torch, case["dtype"])}
    return iter(
        TwoPhaseLoader(case["packed"], augment=Augment.imagenet(case["crop"]), device=case["device"], **settings)
    )
