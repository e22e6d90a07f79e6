"""Run by tests/kernels/test_simulator.py in a process of its own with NUMBA_ENABLE_CUDASIM=1, which is read at import.

The kernels run by themselves over awkward images, then through the feeds that a GPU uses, on packed files.
"""

import sys
import tempfile
import weakref
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import cuda_stand_ins
import reference
from packs import noise_images, write_raw
from recipes import paper_like
from walled import walled

from fastload.augment import Augment, CenterCrop, PaperColor
from fastload.augment.parameters import kernel_numbers, kernel_recipe
from fastload.augment.schedule import Staged
from fastload.feeds.batch import Output, label_tensor
from fastload.feeds.fused_feeds import FusedResidentFeed, FusedStreamFeed
from fastload.feeds.inputs import FeedInputs
from fastload.feeds.read_ahead import ReadAhead
from fastload.kernels import augment as kernel
from fastload.kernels import augment_cuda, augment_plan
from fastload.kernels.cuda_target import cuda
from fastload.order import FAST, FINE_TUNE, Order
from fastload.packed.file import PackedFile
from fastload.packed.reader import SampleReader

SEED = 2**63 + 12_345
KINDS = {"float32": kernel.FLOAT32, "float16": kernel.FLOAT16, "bfloat16": kernel.BFLOAT16}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
resident, gathered = cuda.jit(augment_cuda.augment_resident), cuda.jit(augment_cuda.augment_gathered)

rng = np.random.default_rng(0)
noise = rng.integers(0, 256, (10, 9, 3), dtype=np.uint8)
nearly_flat = np.full((10, 9, 3), 128, np.uint8)
nearly_flat[4, 4] = 129
IMAGES = np.stack([noise, np.full((10, 9, 3), 200, np.uint8), nearly_flat, 255 - noise, noise[::-1]])
IDS = np.array([7, 2**33 + 5, 0, 99, 2**40], np.int64)
LABELS = np.array([[4], [3], [2], [1], [0]], np.int64)


def stored(images, planar):
    """The images' bytes, which nobody may read beyond, and the strides (image, row, column, channel)."""
    _, height, width, channels = images.shape
    size = height * width * channels
    if planar:
        return walled(images.transpose(0, 3, 1, 2).reshape(-1)), (size, width, 1, height * width)
    return walled(images.reshape(-1)), (size, width * channels, channels, 1)


def address(array):
    return array.ctypes.data


def aligned(size, dtype):
    """Memory as torch gives it on a GPU, where wide stores need it so: from a multiple of 16 bytes."""
    room = np.empty(size * np.dtype(dtype).itemsize + 16, np.uint8)
    skipped = -room.ctypes.data % 16
    return room[skipped:][: len(room) - 16].view(dtype)


def as_hwc(out, dtype, channels_last, augment, channels):
    """Kernel output [b, h·w·c], values or bits, as float64 [b, h, w, c]."""
    values = torch.from_numpy(out)
    values = values if dtype == "float32" else values.view(DTYPES[dtype])
    height, width = augment.sides
    if channels_last:
        return values.double().reshape(-1, height, width, channels).numpy()
    return values.double().reshape(-1, channels, height, width).permute(0, 2, 3, 1).numpy()


def settings_of(augment, channels, dtype):
    """What the paper's kernels are told of an augmentation."""
    recipe = kernel_recipe(augment, channels=channels, dtype=DTYPES[dtype], channels_last=False, resample=False)
    return augment_plan.settings_of(recipe, kernel_numbers(augment))


def compare(got, image, sample, epoch, phase, augment, dtype):
    color = augment.color or PaperColor(0.0, (1.0, 1.0))
    drawn = reference.parameters(sample, epoch, SEED, phase, color.brightness, color.contrast, augment.flip)
    centre, divides_by = isinstance(augment.crop, CenterCrop), augment.normalize.divisor
    want, divisor = reference.pixels(
        image, drawn, augment.sides, clamp=color.clamp, standardize=divides_by, centre=centre
    )
    reference.assert_close(got, want, divisor, dtype)


GUARD = 64
"""Values beyond the batch that a place without an image must leave alone."""


def launch(kernel_in_simulator, plan, count, threads, images, *numbers):
    """Run a kernel with blocks of `images` images of `threads` threads each, as `launch_shape` says it."""
    blocks = -(-count // images)
    shape = (threads, images)
    kernel_in_simulator[blocks, shape, 0, 32 * threads * images](address(plan), count, *numbers)


def guarded(count, size, dtype):
    """Room for a batch's output, and what lies behind it."""
    room = aligned(count * size + GUARD, np.float32 if dtype == "float32" else np.int16)
    room[count * size :] = 77
    return room


def batch_of(room, count):
    """The batch in what `guarded` gave, of which nothing behind the batch was written."""
    assert (room[-GUARD:] == 77).all()
    return room[:-GUARD].reshape(count, -1)


def run_resident(augment, images, *, start, count, dtype, last, planar, shuffled=True, threads=8, places=1):
    """The resident kernel's (output, labels, ids)."""
    data, strides = stored(images, planar)
    height, width = augment.sides
    out = guarded(count, height * width * images.shape[3], dtype)
    out_labels, out_ids = np.full((count + places, 1), -5, np.int64), np.full(count + places, -5, np.int64)
    plan = augment_plan.plan(
        settings_of(augment, images.shape[3], dtype),
        strides,
        images.shape[1:],
        SEED,
        FINE_TUNE,
        last,
        KINDS[dtype],
        images=address(data),
        ids=address(IDS),
        labels=address(LABELS),
        label_bytes=8,
        n=len(images),
        shuffled=shuffled,
    )
    launch(resident, plan, count, threads, places, start, address(out), address(out_labels), address(out_ids))
    assert (out_labels[count:] == -5).all() and (out_ids[count:] == -5).all()
    return batch_of(out, count), out_labels[:count], out_ids[:count]


def run_gathered(augment, images, ids, epochs, *, phase=FAST, dtype, last, planar, threads=8, places=1):
    """The gathered kernel's output."""
    data, strides = stored(images, planar)
    ids, epochs = walled(ids), walled(epochs)
    height, width = augment.sides
    out = guarded(len(images), height * width * images.shape[3], dtype)
    settings = settings_of(augment, images.shape[3], dtype)
    plan = augment_plan.plan(settings, strides, images.shape[1:], SEED, phase, last, KINDS[dtype])
    launch(gathered, plan, len(images), threads, places, address(data), address(ids), address(epochs), address(out))
    return batch_of(out, len(images))


def check_resident(
    augment,
    *,
    start=3,
    count=4,
    dtype="float32",
    last=False,
    planar=False,
    shuffled=True,
    threads=8,
    places=1,
    images=IMAGES,
):
    n, channels = len(images), images.shape[3]
    out, out_labels, out_ids = run_resident(
        augment,
        images,
        start=start,
        count=count,
        dtype=dtype,
        last=last,
        planar=planar,
        shuffled=shuffled,
        threads=threads,
        places=places,
    )
    values = as_hwc(out, dtype, last, augment, channels)
    for i in range(count):
        epoch, row = divmod(start + i, n)
        if shuffled:
            row, epoch = reference.row_at(start + i, n, SEED, FINE_TUNE)
        assert out_ids[i] == IDS[row] and out_labels[i, 0] == LABELS[row, 0]
        compare(values[i], images[row], int(IDS[row]), epoch, FINE_TUNE, augment, dtype)


def check_gathered(augment, *, dtype="float32", last=False, planar=False, threads=8, places=1, images=IMAGES):
    ids, epochs = IDS[: len(images)], np.array([0, 1, 2, 2**31, 2**32 - 1], np.int64)[: len(images)]
    out = run_gathered(
        augment, images, ids, epochs, dtype=dtype, last=last, planar=planar, threads=threads, places=places
    )
    values = as_hwc(out, dtype, last, augment, images.shape[3])
    for i, image in enumerate(images):
        compare(values[i], image, int(ids[i]), int(epochs[i]), FAST, augment, dtype)


def check_both_give_the_same_bits(augment, dtype, last, planar):
    """From both kernels, however many images a block has."""
    layout = {"dtype": dtype, "last": last, "planar": planar}
    out, _, ids = run_resident(augment, IMAGES, start=6, count=5, **layout)
    places = [reference.row_at(6 + i, len(IMAGES), SEED, FINE_TUNE) for i in range(5)]
    rows, epochs = (np.array(column, np.int64) for column in zip(*places, strict=True))
    for images in (1, 2, 5):
        again = run_gathered(augment, IMAGES[rows], ids, epochs, phase=FINE_TUNE, places=images, **layout)
        assert np.array_equal(out, again)


def check_feed(kind, path, augment, order, *, start, count, dtype, last):
    """The feed's batch against the file and the reference: ids, labels and pixels."""
    layout = torch.channels_last if last else torch.contiguous_format
    output = Output(count, torch.device("cpu"), DTYPES[dtype], layout)
    with PackedFile(path) as file:
        resident, reader = kind is FusedResidentFeed, SampleReader(file)
        read_ahead = None if resident else ReadAhead(reader, order, reader.sample_bytes, 1 << 20)
        labels = label_tensor(file.labels)
        always = Staged.always(augment)
        feed = kind(FeedInputs(file, always, 1, order, output, labels, reader, read_ahead, resident, workers=1))
        images, labels, ids = feed.make(start, count)
        assert images.shape == (count, 3, *augment.sides) and images.dtype == DTYPES[dtype]
        assert images.is_contiguous(memory_format=layout)
        values = images.double().permute(0, 2, 3, 1).numpy()
        for i in range(count):
            epoch, row = divmod(start + i, order.n)
            if order.shuffle:
                row, epoch = reference.row_at(start + i, order.n, order.seed, order.phase)
            assert ids[i] == file.ids[row]
            assert torch.equal(labels[i], torch.from_numpy(np.asarray(file.labels[row])))
            compare(values[i], file.image(row), int(ids[i]), epoch, order.phase, augment, dtype)
        dropped = weakref.ref(feed._set) if kind is FusedResidentFeed else lambda: None
        feed.close()
        assert dropped() is None  # its memory is given back, though the feed is still there


whole, cropped = Augment.paper((10, 9)), Augment.paper((7, 6))

# Orders: across epoch boundaries, in file order, far along; 5 rows leave cycles to walk, 1 row none.
check_resident(cropped, start=3, count=9)
check_resident(cropped, start=2**33 + 1, count=2)
check_resident(cropped, start=4, count=3, shuffled=False)
check_resident(cropped, start=0, count=2, images=IMAGES[:1])

# Output types, layouts and storage, each with each once in one of the two kernels.
check_resident(cropped, dtype="float16", last=True)
check_resident(cropped, dtype="bfloat16", planar=True, threads=16)
check_resident(cropped, dtype="float32", last=True, planar=True)
check_gathered(cropped, dtype="float16", planar=True, threads=16)
check_gathered(cropped, dtype="bfloat16", last=True)
check_gathered(cropped, dtype="float32", last=True, planar=True)

# Settings: crops as large as the image or one pixel, no clamp, each standardization, centre, no randomness.
check_gathered(whole)
check_gathered(Augment.paper(1))
for standardize in ("variance", "stddev"):
    check_gathered(paper_like(crop=(7, 6), clamp=False, standardize=standardize))
check_gathered(paper_like(crop=(7, 6), standardize="variance"))
check_gathered(cropped.evaluation())
check_resident(paper_like(crop=(7, 6), flip=1.0, contrast=(0.0, 3.0), brightness=200.0), count=2)

# One and four channels; more threads than pixels.
check_gathered(cropped, images=np.ascontiguousarray(IMAGES[..., :1]))
four = np.concatenate([IMAGES, IMAGES[..., :1]], axis=3)
check_gathered(Augment.paper((2, 3)), images=four[:2], threads=16, last=True)

# Four pixels at a time: from any byte, mirrored or not, in every output type, layout and storage, with one to four
# channels; where channels lie between each other and are not three, one at a time.
wide = Augment.paper((6, 4))
for dtype in KINDS:
    for last in (False, True):
        for planar in (False, True):
            check_gathered(wide, dtype=dtype, last=last, planar=planar)
check_gathered(paper_like(crop=(2, 8), flip=1.0))
check_gathered(paper_like(crop=(2, 8), flip=0.0), dtype="float16", last=True)
check_resident(wide, dtype="bfloat16", last=True)
for channels in (1, 2, 4):
    for planar, last in ((True, False), (False, False), (True, True)):
        check_gathered(wide, images=np.ascontiguousarray(four[:2, ..., :channels]), planar=planar, last=last)

# The last word of the last image is the last that may be read.
for planar in (False, True):
    check_gathered(Augment.paper((4, 8)), images=np.ascontiguousarray(IMAGES[:2, :4, :8]), planar=planar)

# Many items a thread: sums in several runs, on noise and where the divisor's floor magnifies every rounding.
large = np.stack([rng.integers(0, 256, (30, 45, 3)), np.full((30, 45, 3), 77)]).astype(np.uint8)
check_gathered(Augment.paper((29, 43)), images=large, threads=4)
check_gathered(Augment.paper((30, 44)), images=large, threads=2, dtype="float16")

# Several images a block: full blocks, a last one with places to spare, more places than images; fewer threads an image
# than groups of sums, or more, and no multiple of a warp; each kind of item, output and layout.
check_resident(wide, start=3, count=6, threads=3, places=3)
check_resident(wide, start=4, count=4, threads=3, places=3, dtype="float16", last=True)
check_resident(cropped, start=2, count=2, threads=5, places=8, planar=True)
check_resident(cropped, start=4, count=5, threads=21, places=2, shuffled=False, dtype="bfloat16", last=True)
check_gathered(wide, threads=2, places=4, planar=True)
check_gathered(paper_like(crop=(6, 4)), threads=7, places=2, dtype="bfloat16", planar=True)
check_gathered(paper_like(crop=(6, 4), standardize="variance"), threads=1, places=8, last=True)
check_gathered(Augment.paper(1), threads=1, places=8)
check_gathered(cropped, threads=17, places=2, images=four)

# A sample's bits are the same from both kernels.
check_both_give_the_same_bits(wide, "float32", False, False)
check_both_give_the_same_bits(cropped, "float16", True, True)

# The host's side: packed files → the feeds that a GPU uses.
cuda_stand_ins.install(threads=8)
with tempfile.TemporaryDirectory() as folder:
    images = noise_images(6, 10, 9)
    single = write_raw(Path(folder) / "one.h5", images, np.arange(6) % 4, ids=np.arange(6) * 2**33 + 3)
    several = write_raw(Path(folder) / "two.h5", images, rng.random((6, 2), np.float32), ids=np.arange(6)[::-1].copy())
    order, in_turn = Order(6, SEED, FAST), Order(6, SEED, FINE_TUNE, shuffle=False)
    for kind in (FusedResidentFeed, FusedStreamFeed):
        check_feed(kind, single, cropped, order, start=4, count=4, dtype="float32", last=False)
        check_feed(kind, several, cropped, in_turn, start=5, count=2, dtype="bfloat16", last=True)
        check_feed(kind, several, cropped.evaluation(), order, start=0, count=1, dtype="float16", last=False)
print("as the reference in the simulator")
