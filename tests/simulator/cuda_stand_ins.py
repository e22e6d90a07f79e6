"""Stand-ins for the parts of torch.cuda that the host's side of the fused engine calls, for the simulator.

With them the very code that a GPU runs (`FusedResidentFeed`, `FusedStreamFeed`, `FusedEngine.on_cuda_…`) runs on CPU
tensors and simulated kernels. What they cannot show is what streams and events do: tests/kernels/test_gpu.py does.
"""

from contextlib import nullcontext

import torch

from fastload.kernels import augment_plan, recipe_plan
from fastload.kernels.cuda_target import SIMULATED

assert SIMULATED, "NUMBA_ENABLE_CUDASIM=1 must be set before the first import"


class Stream:
    cuda_stream = 0

    def __init__(self, device=None):
        pass

    def synchronize(self):
        pass


class Event:
    def __init__(self, blocking=False):
        pass

    def record(self, stream=None):
        pass

    def synchronize(self):
        pass


def install(threads):
    """Replace torch.cuda's streams, events and pinned memory, and give a block `threads` threads, or twice as many."""
    only = Stream()
    plain_empty = torch.empty

    def empty(*sizes, pin_memory=False, **options):
        return plain_empty(*sizes, **options)

    torch.empty = empty
    torch.Tensor.pin_memory = lambda self: self
    torch.Tensor.record_stream = lambda self, stream: None
    torch.cuda.Stream, torch.cuda.Event = Stream, Event
    torch.cuda.current_stream = lambda device=None: only
    torch.cuda.stream = torch.cuda.device = lambda which: nullcontext()
    augment_plan.THREADS, augment_plan.SMALL, augment_plan.ITEMS = threads, threads // 2, 1000
    recipe_plan.THREADS = threads
