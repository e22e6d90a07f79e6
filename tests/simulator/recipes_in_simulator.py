"""Run by tests/kernels/test_simulator.py in a process of its own with NUMBA_ENABLE_CUDASIM=1, which is read at import.

The fused engine's calls for a GPU, of recipes that the paper's kernels do not know, against its calls for a CPU.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import cuda_stand_ins
from packs import write_ragged
from walled import walled

from fastload.augment import Augment, Erase, Jitter, MeanStd, RandomCrop, RandomResizedCrop
from fastload.augment.parameters import stream_number
from fastload.augment.schedule import Staged
from fastload.feeds import fused_feeds
from fastload.feeds.batch import Output, label_tensor
from fastload.feeds.fused_engine import FusedEngine
from fastload.feeds.fused_feeds import FusedCpuFeed, FusedResidentFeed, FusedStreamFeed
from fastload.feeds.inputs import FeedInputs
from fastload.kernels.image_layout import uniform_layout
from fastload.order import FAST, Order
from fastload.packed.file import PackedFile
from fastload.packed.reader import SampleReader

SEED = 2**63 + 12_345
STATISTICS = MeanStd((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
VIEW = 1
rng = np.random.default_rng(0)


class Resident:
    """What the engine takes of a resident set, in memory behind which nobody may read."""

    def __init__(self, images):
        self.images = torch.from_numpy(walled(images.reshape(-1)))
        self.ids = torch.from_numpy(walled(np.array([7, 2**33 + 5, 0, 99], np.int64)))
        self.labels = torch.from_numpy(walled(np.arange(12, dtype=np.int32).reshape(4, 3)))


def check(augment, shape, dtype, last=False, exact=False, count=5, start=3):
    images = rng.integers(0, 256, (4, *shape)).astype(np.uint8)
    height, width, channels = shape
    strides = (height * width * channels, width * channels, channels, 1)
    engine = FusedEngine(
        augment, seed=SEED, phase=FAST, view=VIEW, layout=uniform_layout(shape, strides), sides=[(height, width)],
        dtype=dtype, channels_last=last, batch_size=count,
    )  # fmt: skip
    layout = torch.channels_last if last else torch.contiguous_format
    held, order = Resident(images), Order(4, SEED, FAST, True)
    rows, epochs = order.rows(start, count)
    ids = held.ids[torch.from_numpy(rows)]
    made = [torch.zeros(count, channels, *augment.sides, dtype=dtype).to(memory_format=layout) for _ in range(3)]
    out_labels, out_ids = torch.zeros(count, 3, dtype=torch.int32), torch.zeros(count, dtype=torch.int64)
    engine.on_cuda_resident(held, order, start, made[0], out_labels, out_ids)
    assert torch.equal(out_ids, ids) and torch.equal(out_labels, held.labels[torch.from_numpy(rows)])
    gathered = torch.from_numpy(walled(images[rows].reshape(-1)))
    engine.on_cuda_gathered(gathered, ids, torch.from_numpy(epochs), made[1])
    assert torch.equal(made[0], made[1])
    flat = made[2].permute(0, 2, 3, 1) if last else made[2]
    bits = flat.reshape(count, -1)
    numpy_view = bits.view(torch.int16).numpy() if dtype.itemsize == 2 else bits.numpy()
    engine.on_cpu(images.reshape(-1).copy(), rows, ids.numpy(), epochs, numpy_view)
    got, want = made[0].double(), made[2].double()
    if exact:
        assert torch.equal(got, want)
    allowed = (1e-4 + (2.0**-10 if dtype == torch.float16 else 0.0)) * want.abs().clamp(min=1.0)
    assert bool(((got - want).abs() <= allowed).all()), (got - want).abs().max()


def check_ragged(augment, dtype, last=False, exact=False, views=1, start=4, count=3):
    """Both feeds of a GPU over images of their own sizes, against the feed of a CPU."""
    sides = [(9, 7), (5, 12), (8, 8), (13, 6), (7, 9)]
    pictures = [rng.integers(0, 256, (*pair, 3)).astype(np.uint8) for pair in sides]
    order = Order(5, SEED, FAST)
    layout = torch.channels_last if last else torch.contiguous_format
    output = Output(count, torch.device("cpu"), dtype, layout)
    made = []
    with tempfile.TemporaryDirectory() as folder:
        path = write_ragged(Path(folder) / "full.h5", pictures, np.arange(5) * 3, ids=np.arange(5) * 2**33 + 3)
        for kind in (FusedCpuFeed, FusedResidentFeed, FusedStreamFeed):
            with PackedFile(path) as file:
                resident, reader = kind is FusedResidentFeed, SampleReader(file)
                always, labels = Staged.always(augment), label_tensor(file.labels)
                feed = kind(FeedInputs(file, always, views, order, output, labels, reader, None, resident, workers=1))
                made.append(feed.make(start, count))
                feed.close()
    want = made[0]
    for got in made[1:]:
        assert torch.equal(got.ids, want.ids) and torch.equal(got.labels, want.labels)
        pairs = zip(got.images, want.images, strict=True) if views > 1 else [(got.images, want.images)]
        for have, value in pairs:
            assert have.is_contiguous(memory_format=layout)
            away = (have.double() - value.double()).abs()
            allowed = (1e-4 + (2.0**-10 if dtype == torch.float16 else 0.0)) * value.double().abs().clamp(min=1.0)
            assert bool((away <= (0 if exact else allowed)).all()), away.max()


assert stream_number(FAST, VIEW) >= 2**16
cuda_stand_ins.install(threads=8)
resized = Augment((4, 3), crop=RandomResizedCrop(), flip=0.5)
check(resized, (9, 7, 3), torch.uint8, exact=True)
check(Augment((2, 6), crop=RandomResizedCrop((0.5, 1.0)), flip=0.5), (30, 7, 3), torch.uint8, exact=True, count=2)
colors = Jitter(0.4, 0.4, 0.4, 0.1, probability=0.8)
check(
    Augment(
        (4, 3), crop=RandomResizedCrop(), flip=0.5, color=colors, grayscale=0.4, erase=Erase(0.5, value=0.25),
        normalize=STATISTICS,
    ),
    (9, 7, 3), torch.float16, last=True,
)  # fmt: skip
check(Augment(6, crop=RandomCrop(pad=2), flip="alternating", normalize=STATISTICS), (6, 6, 3), torch.float32)
check_ragged(resized, torch.uint8, views=2, exact=True)
check_ragged(Augment.paper((3, 2)), torch.float32)  # which the paper's own kernels do for images of one shape
fused_feeds.batch_bytes = lambda layout, count: 1  # so that buffers have to grow
check_ragged(Augment(6, crop=RandomCrop(pad=1), normalize=STATISTICS), torch.float16, last=True)
print("as the CPU engine in the simulator")
