"""What only a GPU can show: the CUDA kernels, streams, pinned buffers and devices. Run by `make gpu-check`."""

from __future__ import annotations

import gc
import json
import threading

import h5py
import numpy as np
import pytest
import reference
import torch
from packs import noise_images, write_encoded, write_pair, write_ragged, write_raw
from recipes import paper_like
from rolling import order_of, pool_files

from fastload import DataError, TwoPhaseLoader, UsageError
from fastload.augment import (
    Augment,
    CenterCrop,
    Erase,
    Jitter,
    MeanStd,
    PaperColor,
    PerImage,
    RandomCrop,
    RandomResizedCrop,
)
from fastload.common.memory import free_memory
from fastload.feeds.batch import Output
from fastload.feeds.feed import open_feed, run_feed
from fastload.feeds.rolling_feed import open_rolling_feed
from fastload.order import FAST, FINE_TUNE, Order
from fastload.packed.file import PackedFile
from fastload.packed.set import open_packed
from fastload.selection.topk import TopK
from fastload.selection.topk_cuda import cuda_bytes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
SEED = 2**63 + 5
STEPS, SWAP, BATCH = 60, 25, 64
CUDA = "cuda:0"


def awkward_images(height=32, width=32):
    """Noise, a ramp, and flat images, on which the divisor's floor magnifies every rounding."""
    rng = np.random.default_rng(0)
    shape = (height, width, 3)
    ramp = np.broadcast_to(np.linspace(0, 255, width)[None, :, None], shape)
    nearly = np.full(shape, 128)
    nearly[height // 2, width // 2] = 129
    flat = [np.full(shape, value) for value in (0, 1, 200, 255)]
    return np.stack([rng.integers(0, 256, shape), ramp, *flat, nearly, rng.integers(0, 2, shape) * 255]).astype(
        np.uint8
    )


@pytest.fixture(scope="module")
def awkward(tmp_path_factory):
    images = awkward_images()
    ids = np.arange(len(images)) * 2**33 + 3
    return write_raw(tmp_path_factory.mktemp("awkward") / "awkward.h5", images, np.arange(len(images)) % 3, ids=ids)


@pytest.fixture(scope="module")
def planar(tmp_path_factory):
    """The same images in a user's own file, [N, C, H, W]."""
    path = tmp_path_factory.mktemp("planar") / "own.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.ascontiguousarray(awkward_images().transpose(0, 3, 1, 2))
        file["y"] = np.random.default_rng(0).random((len(awkward_images()), 2), np.float32)
    return path


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"), count=1500, chosen=200)


@pytest.fixture(scope="module")
def ragged(tmp_path_factory):
    """500 images of 36 to 90 pixels a side, each of its own."""
    random = np.random.default_rng(2)
    images = [random.integers(0, 256, (*sides, 3), dtype=np.uint8) for sides in random.integers(36, 91, (500, 2))]
    return write_ragged(tmp_path_factory.mktemp("ragged") / "full.h5", images, np.arange(500) % 7)


def batch_of(
    file,
    augment,
    order,
    *,
    start=0,
    count=None,
    device=CUDA,
    engine="fused",
    resident=True,
    dtype="float32",
    layout="nchw",
    stream=None,
):
    """One batch of a feed of its own, complete."""
    count = count or len(file)
    output = Output(count, torch.device(device), getattr(torch, dtype), LAYOUTS[layout])
    with torch.cuda.stream(stream):
        feed = open_feed(file, augment, order, output, engine=engine, resident=resident, workers=2)
        batch = feed.make(start, count)
    torch.cuda.synchronize()
    feed.close()
    return batch


def assert_meets_reference(batch, file, augment, order, start, dtype="float32"):
    """Ids, labels and pixels of a batch against the file, the order and the float64 reference."""
    values = batch.images.detach().double().cpu().permute(0, 2, 3, 1).numpy()
    for i in range(len(batch.ids)):
        epoch, row = divmod(start + i, order.n)
        if order.shuffle:
            row, epoch = reference.row_at(start + i, order.n, order.seed, order.phase)
        assert int(batch.ids[i]) == file.ids[row]
        assert np.array_equal(batch.labels[i].cpu().numpy(), file.labels[row])
        color, normalize = augment.color or PaperColor(0.0, (1.0, 1.0)), augment.normalize
        drawn = reference.parameters(
            int(file.ids[row]), epoch, order.seed, order.phase, color.brightness, color.contrast, augment.flip
        )
        want, divisor = reference.pixels(
            file.image(row),
            drawn,
            augment.sides,
            clamp=color.clamp,
            standardize=normalize.divisor if isinstance(normalize, PerImage) else None,
            centre=isinstance(augment.crop, CenterCrop),
        )
        reference.assert_close(values[i], want, divisor, dtype)


# -- pixels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resident", [True, False], ids=["resident", "stream"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_fused_meets_the_reference_in_every_type_and_layout(awkward, resident, layout, dtype):
    augment = Augment.paper(24)
    with PackedFile(awkward) as file:
        order = Order(len(file), SEED, FAST)
        batch = batch_of(file, augment, order, start=5, resident=resident, dtype=dtype, layout=layout)
        assert batch.images.dtype == DTYPES[dtype] and batch.images.device == torch.device(CUDA)
        assert batch.images.is_contiguous(memory_format=LAYOUTS[layout])
        assert batch.labels.dtype == batch.ids.dtype == torch.int64
        assert batch.labels.is_cuda and batch.ids.is_cuda
        assert_meets_reference(batch, file, augment, order, 5, dtype)


@pytest.mark.parametrize("resident", [True, False], ids=["resident", "stream"])
@pytest.mark.parametrize(
    "augment",
    [
        Augment.paper(32),
        paper_like(crop=(20, 27), clamp=False),
        paper_like(crop=(1, 3), standardize="variance"),
        paper_like(crop=24, standardize=None, flip=1.0, brightness=200.0, contrast=(0.0, 3.0)),
        Augment.paper(24).evaluation(),
    ],
    ids=["whole", "no clamp", "variance", "pixel values", "evaluation"],
)
def test_fused_meets_the_reference_in_every_setting(awkward, resident, augment):
    with PackedFile(awkward) as file:
        order = Order(len(file), SEED, FINE_TUNE, shuffle=False)
        batch = batch_of(file, augment, order, start=3, resident=resident)
        assert_meets_reference(batch, file, augment, order, 3)


@pytest.mark.parametrize("resident", [True, False], ids=["resident", "stream"])
def test_fused_takes_planar_storage_and_labels_of_several_floats(planar, resident):
    augment = Augment.paper(24)
    with PackedFile(planar, images="x", labels="y") as file:
        order = Order(len(file), SEED, FAST)
        batch = batch_of(file, augment, order, start=2**33, resident=resident)
        assert batch.labels.shape == (len(file), 2) and batch.labels.dtype == torch.float32
        assert_meets_reference(batch, file, augment, order, 2**33)


@pytest.mark.parametrize("crop", [(24, 24), (24, 21), (32, 8), (3, 2)], ids=["24", "24×21", "32×8", "3×2"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fused_gives_a_sample_the_same_bits_resident_and_streamed(pair, layout, crop):
    with PackedFile(pair[0]) as file:
        order = Order(len(file), SEED, FAST)
        settings = {"start": 1400, "count": 300, "dtype": "float32", "layout": layout}
        resident, streamed = (
            batch_of(file, Augment.paper(crop), order, resident=one, **settings) for one in (True, False)
        )
        again = batch_of(file, Augment.paper(crop), order, **(settings | {"start": 1500, "count": 7}))
    assert torch.equal(resident.images, streamed.images) and torch.equal(resident.ids, streamed.ids)
    assert torch.equal(resident.images[100:107], again.images)  # whatever batch it is in


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("first", [False, True], ids=["interleaved", "planar"])
@pytest.mark.parametrize("width", [24, 22])
def test_fused_takes_any_number_of_channels_and_any_width(tmp_path, channels, first, width):
    # Widths that divide by four are read and written four pixels at a time, from any byte of a row.
    images = np.random.default_rng(4).integers(0, 256, (40, 31, 33, channels)).astype(np.uint8)
    with h5py.File(tmp_path / "own.h5", "w") as out:
        out["x"] = np.ascontiguousarray(images.transpose(0, 3, 1, 2)) if first else images
        out["y"] = np.arange(40)
    augment = Augment.paper((17, width))
    with PackedFile(tmp_path / "own.h5", images="x", labels="y") as file:
        order = Order(40, SEED, FAST)
        for layout in LAYOUTS:
            for dtype in DTYPES:
                batch = batch_of(file, augment, order, dtype=dtype, layout=layout)
                assert_meets_reference(batch, file, augment, order, 0, dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_fused_rounds_half_precision_once(pair, dtype):
    with PackedFile(pair[0]) as file:
        order = Order(len(file), SEED, FAST)
        exact = batch_of(file, Augment.paper(24), order, count=300).images
        assert torch.equal(
            batch_of(file, Augment.paper(24), order, count=300, dtype=dtype).images, exact.to(DTYPES[dtype])
        )


def test_fused_takes_large_images(tmp_path):
    images = awkward_images(520, 510)[[0, 4, 6]]
    with PackedFile(write_raw(tmp_path / "large.h5", images, np.arange(3))) as file:
        order = Order(3, SEED, FAST)
        for augment in (Augment.paper(500), Augment.paper((511, 499))):
            assert_meets_reference(batch_of(file, augment, order), file, augment, order, 0)


@pytest.mark.parametrize("resident", [True, False], ids=["resident", "stream"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_cuda_gives_what_the_cpu_twin_gives(pair, resident, shuffle):
    with PackedFile(pair[0]) as file:
        order = Order(len(file), SEED, FAST, shuffle)
        settings = {"start": 1400, "count": 300, "resident": resident}
        on_gpu = batch_of(file, Augment.paper(24), order, **settings)
        on_cpu = batch_of(file, Augment.paper(24), order, device="cpu", **settings)
    assert torch.equal(on_gpu.ids.cpu(), on_cpu.ids) and torch.equal(on_gpu.labels.cpu(), on_cpu.labels)
    torch.testing.assert_close(on_gpu.images.cpu(), on_cpu.images, rtol=1e-4, atol=1e-4)


RECIPES = {
    "imagenet": Augment.imagenet(24),
    "cifar10": Augment.cifar10(32),
    "enlarged": Augment((70, 50), crop=RandomResizedCrop((0.01, 1.0)), normalize=PerImage()),
    "reduced": Augment((1, 2), crop=RandomResizedCrop()),
    "evaluation": Augment(20, crop=CenterCrop(23)),
    "all steps": Augment(
        (24, 20),
        crop=RandomResizedCrop(),
        flip="alternating",
        color=Jitter(0.4, 0.4, 0.4, 0.1, probability=0.8),
        grayscale=0.3,
        erase=Erase(0.5),
        normalize=MeanStd((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ),
    "paper, resized and grey": Augment(
        24, crop=RandomCrop(resize=40), flip=0.5, color=PaperColor(), grayscale=0.3, normalize=PerImage()
    ),
}


@pytest.mark.parametrize("resident", [True, False], ids=["resident", "stream"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_cuda_gives_of_every_recipe_what_the_cpu_gives(pair, resident, recipe):
    with PackedFile(pair[0]) as file:
        order = Order(len(file), SEED, FAST)
        settings = {"start": 1400, "count": 300, "resident": resident}
        on_gpu = batch_of(file, RECIPES[recipe], order, **settings)
        on_cpu = batch_of(file, RECIPES[recipe], order, device="cpu", **settings)
    assert torch.equal(on_gpu.ids.cpu(), on_cpu.ids)
    torch.testing.assert_close(on_gpu.images.cpu(), on_cpu.images, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("resident", [True, False], ids=["resident", "stream"])
@pytest.mark.parametrize("recipe", [*RECIPES, "paper"])
def test_cuda_gives_of_ragged_images_what_the_cpu_gives(ragged, resident, recipe):
    augment = RECIPES.get(recipe, Augment.paper(24))
    with PackedFile(ragged) as file:
        order = Order(len(file), SEED, FAST)
        settings = {"start": 450, "count": 300, "resident": resident}
        on_gpu = batch_of(file, augment, order, **settings)
        on_cpu = batch_of(file, augment, order, device="cpu", **settings)
    assert torch.equal(on_gpu.ids.cpu(), on_cpu.ids) and torch.equal(on_gpu.labels.cpu(), on_cpu.labels)
    torch.testing.assert_close(on_gpu.images.cpu(), on_cpu.images, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("resident", [True, False], ids=["resident", "stream"])
def test_dali_makes_of_ragged_images_on_the_gpu_what_the_fused_engine_makes(ragged, resident):
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    levels = MeanStd(0.0, 1 / 255)
    for crop, most in ((RandomCrop(), 0), (RandomCrop(pad=3), 0), (RandomResizedCrop(), 1), (CenterCrop(40), 1)):
        augment = Augment((24, 20), crop=crop, flip=0.5, normalize=levels)
        with PackedFile(ragged) as file:
            order = Order(len(file), SEED, FAST)
            made = [
                batch_of(file, augment, order, count=300, resident=resident, engine=engine)
                for engine in ("fused", "dali")
            ]
        assert torch.equal(made[0].ids, made[1].ids)
        assert float((made[0].images - made[1].images).abs().max()) <= most + 1e-3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cuda_resizes_to_the_very_levels_that_the_cpu_resizes_to(pair, layout):
    augment = Augment(24, crop=RandomResizedCrop(), flip=0.5)
    with PackedFile(pair[0]) as file:
        order = Order(len(file), SEED, FAST)
        on_gpu, on_cpu = (
            batch_of(file, augment, order, count=1500, dtype="uint8", layout=layout, device=device)
            for device in (CUDA, "cpu")
        )
    assert torch.equal(on_gpu.images.cpu(), on_cpu.images)


@pytest.mark.parametrize("resident", [True, False], ids=["resident", "stream"])
def test_dali_on_the_gpu_meets_the_reference(awkward, resident):
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    augment = Augment.paper(24)
    with PackedFile(awkward) as file:
        order = Order(len(file), SEED, FAST)
        for dtype, layout in (("float32", "nchw"), ("float32", "nhwc"), ("bfloat16", "nhwc"), ("float16", "nchw")):
            batch = batch_of(
                file, augment, order, start=5, engine="dali", resident=resident, dtype=dtype, layout=layout
            )
            assert batch.images.is_contiguous(memory_format=LAYOUTS[layout])
            assert_meets_reference(batch, file, augment, order, 5, dtype)


def test_dali_decodes_on_the_gpu_what_the_cpu_decodes(tmp_path):
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    import io

    from PIL import Image

    files = []
    for image in noise_images(12, 40, 48):
        out = io.BytesIO()
        Image.fromarray(image).save(out, "PNG")  # exact, whichever decoder
        files.append(out.getvalue())
    with PackedFile(write_encoded(tmp_path / "png.h5", files, np.arange(12))) as file:
        order = Order(12, SEED, FINE_TUNE)
        settings = {"start": 7, "engine": "dali", "resident": False}
        on_gpu = batch_of(file, Augment.paper(24), order, **settings)
        on_cpu = batch_of(file, Augment.paper(24), order, device="cpu", **settings)
    assert torch.equal(on_gpu.ids.cpu(), on_cpu.ids)
    torch.testing.assert_close(on_gpu.images.cpu(), on_cpu.images, rtol=1e-3, atol=1e-3)


# -- streams -------------------------------------------------------------------------------------------------------


def test_a_feed_follows_the_callers_stream(pair):
    with PackedFile(pair[0]) as file:
        order = Order(len(file), SEED, FAST)
        plain = batch_of(file, Augment.paper(24), order, count=500)
        side = batch_of(file, Augment.paper(24), order, count=500, stream=torch.cuda.Stream())
        other = []
        thread = threading.Thread(
            target=lambda: other.append(batch_of(file, Augment.paper(24), order, count=500, stream=torch.cuda.Stream()))
        )
        thread.start()
        thread.join()
    assert torch.equal(plain.images, side.images) and torch.equal(plain.ids, side.ids)
    assert other and torch.equal(plain.images, other[0].images)


def make(pair, **changes):
    settings = {
        "batch_size": BATCH,
        "steps": STEPS,
        "swap": SWAP,
        "augment": Augment.paper(24),
        "device": "cuda",
        "with_ids": True,
        "seed": 5,
    }
    return TwoPhaseLoader(pair[0], pair[1], **(settings | changes))


@pytest.fixture(scope="module")
def synchronous(pair):
    """Every batch of the run, made one at a time with nothing else under way."""
    found = []
    for path, phase, steps in ((pair[1], FAST, SWAP), (pair[0], FINE_TUNE, STEPS - SWAP)):
        with PackedFile(path) as file:
            order = Order(len(file), 5, phase)
            feed = open_feed(
                file, Augment.paper(24), order, Output(BATCH, torch.device(CUDA)), resident=phase == FAST, workers=1
            )
            for step in range(steps):
                batch = feed.make(step * BATCH, BATCH)
                torch.cuda.synchronize()
                found.append(tuple(tensor.cpu() for tensor in batch))
            feed.close()
    return found


def same(batch, expected):
    return all(torch.equal(got.cpu(), want) for got, want in zip(batch, expected, strict=True))


@pytest.mark.parametrize("prefetch", [1, None, 12])
def test_a_list_of_batches_is_distinct_and_intact(pair, synchronous, prefetch):
    with make(pair, prefetch=prefetch) as loader:
        batches = list(loader)
    assert len({batch[0].data_ptr() for batch in batches}) == STEPS == len(batches)
    assert all(same(*both) for both in zip(batches, synchronous, strict=True))


def test_batches_stay_intact_while_the_trainer_is_slow_and_memory_is_scarce(pair, synchronous):
    # The trainer's stream is kept busy, so that its reads come long after the batch was dropped by the host, and freed
    # memory is overwritten at once.
    busy = torch.randn(3000, 3000, device="cuda")
    side = torch.cuda.Stream()
    kept = []
    with make(pair) as loader, torch.cuda.stream(side):
        side.wait_stream(torch.cuda.default_stream())
        for step, (images, labels, ids) in enumerate(loader):
            busy = busy @ busy * 1e-4
            copies = [tensor.clone() for tensor in (images, labels, ids)]
            del images, labels, ids
            torch.empty(BATCH * 3 * 24 * 24, device="cuda").fill_(float("nan"))
            kept.append((step, copies))
    torch.cuda.synchronize()
    assert all(same(copies, synchronous[step]) for step, copies in kept) and len(kept) == STEPS


@pytest.mark.parametrize("step", [0, 1, SWAP - 1, SWAP, SWAP + 1, STEPS - 1])
def test_resume_equals_the_uninterrupted_run_bit_for_bit(pair, synchronous, step):
    with make(pair) as loader:
        batches = iter(loader)
        for _ in range(step):
            next(batches)
        state = json.loads(json.dumps(loader.state_dict()))
    with make(pair, prefetch=3) as loader:
        loader.load_state_dict(state)
        rest = list(loader)
    assert len(rest) == STEPS - step
    assert all(same(*both) for both in zip(rest, synchronous[step:], strict=True))


def test_a_two_phase_run_trains_in_bfloat16_and_channels_last(pair):
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 5),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 10),
    ).to("cuda", dtype=torch.bfloat16, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    phases, swapped = [], []
    with make(pair, with_ids=False, dtype=torch.bfloat16, memory_format=torch.channels_last) as loader:
        loader.on_swap(lambda one: swapped.append(one.step))
        for images, labels in loader:
            assert images.is_contiguous(memory_format=torch.channels_last) and images.dtype == torch.bfloat16
            phases.append(loader.phase)
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert torch.isfinite(loss).item()
    assert swapped == [SWAP] and phases == ["fast"] * SWAP + ["fine-tune"] * (STEPS - SWAP)


def test_engines_give_the_same_ids_and_nearly_the_same_pixels(pair, synchronous):
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    with make(pair, engine="dali") as loader:
        for (images, labels, ids), (want, want_labels, want_ids) in zip(loader, synchronous, strict=True):
            assert torch.equal(ids.cpu(), want_ids) and torch.equal(labels.cpu(), want_labels)
            torch.testing.assert_close(images.cpu(), want, rtol=1e-3, atol=1e-3)


def test_evaluation_serves_the_whole_set_with_a_partial_last_batch(pair):
    with make(pair) as loader, loader.evaluation(pair[0], batch_size=400) as on_gpu:
        batches = list(on_gpu)
    with make(pair, device="cpu") as loader, loader.evaluation(pair[0], batch_size=400) as on_cpu:
        expected = list(on_cpu)
    assert [len(batch[0]) for batch in batches] == [400, 400, 400, 300]
    for (images, labels, ids), (want, want_labels, want_ids) in zip(batches, expected, strict=True):
        assert torch.equal(ids.cpu(), want_ids) and torch.equal(labels.cpu(), want_labels)
        torch.testing.assert_close(images.cpu(), want, rtol=1e-4, atol=1e-4)


def test_close_gives_the_memory_back(pair):
    with make(pair) as loader:  # whatever is allocated once for all is allocated now
        assert len(list(loader)) == STEPS
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    loader = make(pair)
    batches = iter(loader)
    for _ in range(SWAP + 5):
        next(batches)
    assert torch.cuda.memory_allocated() > before
    loader.close()
    del batches
    gc.collect()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fastload")]


# -- selection -----------------------------------------------------------------------------------------------------


def test_top_k_of_embeddings_made_on_a_side_stream_equals_the_cpus():
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        x = torch.randn(30_000, 216, device="cuda").relu_()
        lists = TopK(216, 20, device="cuda")
        for start in range(0, 30_000, 7000):
            lists.update(x[start : start + 7000], range(start, min(30_000, start + 7000)))
        got = lists.result()
    on_cpu = TopK(216, 20)
    on_cpu.update(x.cpu(), range(30_000))
    want = on_cpu.result()
    for name in want.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name), err_msg=name)


@pytest.mark.parametrize(("dims", "k", "groups", "rows"), [(216, 20, 1, 200_000), (64, 300, 10, 50_000)])
def test_lists_take_the_device_memory_that_was_forecast(dims, k, groups, rows):
    x = np.random.default_rng(1).random((rows, dims), np.float32)
    group_of_row = np.random.default_rng(2).integers(0, groups, rows)
    TopK(dims, k, groups, device="cuda").update(x[:100], range(100), group_of_row[:100])  # compiles
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    lists = TopK(dims, k, groups, device="cuda")
    lists.update(x, range(rows), group_of_row)
    taken = torch.cuda.max_memory_allocated() - before
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    forecast = cuda_bytes(dims, [(k, groups)], rows, processors)
    assert taken <= forecast + (1 << 20) and taken >= forecast // 4


def test_free_memory_counts_what_torch_keeps():
    torch.cuda.empty_cache()
    free = free_memory(torch.device(CUDA))
    large = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    assert free_memory(torch.device(CUDA)) <= free - (1 << 30)
    del large
    assert free_memory(torch.device(CUDA)) >= free - (64 << 20)
    assert torch.cuda.mem_get_info()[0] <= free - (1 << 30)  # the driver does not know


def test_a_subset_is_built_on_the_gpu_and_the_same_twice(tmp_path):
    from fastload import build_subset

    images = noise_images(256)
    full = write_raw(tmp_path / "full.h5", images, np.arange(256) % 4)
    settings = {"strategy": "top-activations", "size": 24, "epochs": 1, "batch_size": 32, "device": "cuda", "seed": 3}
    for name in ("one.h5", "two.h5"):
        build_subset(full, tmp_path / name, **settings)
    with PackedFile(tmp_path / "one.h5") as one:
        assert len(one) == len(set(one.ids.tolist())) == 24
        assert np.array_equal(one.image(0), images[one.ids[0]])
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()


# -- devices -------------------------------------------------------------------------------------------------------


def test_a_device_that_is_not_there_is_named(pair):
    with pytest.raises(UsageError, match=f"cuda:99.*there are {torch.cuda.device_count()} CUDA devices"):
        make(pair, device="cuda:99")


def test_a_subset_that_does_not_fit_is_refused_before_it_is_uploaded(pair, monkeypatch):
    torch.cuda.empty_cache()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (1000, 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", torch.cuda.memory_allocated)
    with pytest.raises(DataError, match="build a smaller one"):
        make(pair)


def test_a_device_other_than_the_current_one_is_used(pair, synchronous):
    if torch.cuda.device_count() < 2:
        pytest.skip("there are not two GPUs")
    torch.cuda.set_device(0)
    with make(pair, device="cuda:1") as loader:
        batches = list(loader)
    assert all(batch[0].device == torch.device("cuda:1") for batch in batches)
    assert all(same(*both) for both in zip(batches, synchronous, strict=True))
    x = torch.randn(5000, 40, device="cuda:1")
    lists, on_cpu = TopK(40, 5, device="cuda:1"), TopK(40, 5)
    lists.update(x, range(5000))
    on_cpu.update(x.cpu(), range(5000))
    np.testing.assert_array_equal(lists.result().ids, on_cpu.result().ids)


def rolled(path, device, *, first=0, steps=40, refill=0.4, augment=None, engine="auto", meanwhile=None):
    """Batches of a rolling pool, which is renewed several times over, as they are drawn by two threads."""
    with open_packed(path) as file:
        order = order_of(file, pool=128, refill=refill, batch=32)
        output = Output(32, torch.device(device))
        feed = open_rolling_feed(
            pool_files(file), augment or Augment.paper(24), order, output, engine=engine, workers=2
        )
    run = run_feed(feed, lambda step: (step * 32, 32), first, first + steps, output.device)
    found = []
    for batch in run:
        if meanwhile is not None:
            meanwhile()
        found.append(batch)
    if device != "cpu":
        torch.cuda.synchronize()
    return found


@pytest.mark.parametrize("first", [0, 77])
@pytest.mark.parametrize("storage", ["raw", "ragged"])
def test_a_rolling_pool_on_the_gpu_gives_what_the_cpus_gives(pair, ragged, storage, first):
    path = {"raw": pair[0], "ragged": ragged}[storage]
    augment = Augment.paper(24) if storage == "raw" else Augment(32, crop=RandomResizedCrop(), flip=0.5)
    theirs = rolled(path, "cpu", first=first, augment=augment)
    for one, other in zip(rolled(path, CUDA, first=first, augment=augment), theirs, strict=True):
        assert torch.equal(one.ids.cpu(), other.ids) and torch.equal(one.labels.cpu(), other.labels)
        torch.testing.assert_close(one.images.cpu(), other.images, rtol=1e-4, atol=1e-4 if storage == "raw" else 0.02)


def test_a_slow_trainer_s_batches_are_not_written_over_by_arrivals(pair):
    """The trainer's kernels hold its stream up, so batches are queued long before they are read."""
    busy = torch.randn(2048, 2048, device=CUDA)

    def work():
        nonlocal busy
        for _ in range(20):
            busy = torch.nn.functional.normalize(busy @ busy)

    quick = [batch.images.clone() for batch in rolled(pair[0], CUDA, steps=120, refill=1.0)]
    slow = [batch.images for batch in rolled(pair[0], CUDA, steps=120, refill=1.0, meanwhile=work)]
    assert all(torch.equal(one, other) for one, other in zip(quick, slow, strict=True))


def test_a_rolling_loader_on_the_gpu_swaps_resumes_and_gives_its_memory_back(pair):
    def loader():
        return TwoPhaseLoader(
            *pair, pool=400, refill=0.3, swap=30, batch_size=32, steps=50, augment=Augment.paper(24), device=CUDA,
            resident_budget=0,
        )  # fmt: skip

    with loader() as one:
        whole = [images.cpu() for images, _ in one]
    with loader() as one:
        for _, _ in zip(range(17), one, strict=False):
            pass
        state = one.state_dict()
    with loader() as one:
        one.load_state_dict(state)
        rest = [images.cpu() for images, _ in one]
    assert all(torch.equal(a, b) for a, b in zip(rest, whole[17:], strict=True)) and len(rest) == 33
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    with loader() as one:
        next(iter(one))
        assert torch.cuda.memory_allocated() - before >= 400 * 32 * 32 * 3
    gc.collect()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before + 1_000_000
