"""`python -m fastload.bench stream`: our stream feed beside our resident feed, the rivals, the disk and DALI's decoder.

Three cases here, the swap in `fastload.bench.swapping`: raw images in the system's cache, raw images on the disk, and
JPEG files. What the project promises of them is compared with what was found in the notes.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastload.augment import Augment
from fastload.bench import data, parts
from fastload.bench.measure import Contestant, Result, compare, race, synchronize, verdict
from fastload.bench.peers.install import Peer
from fastload.bench.rivals import Outcome, Rival, export, feed_threads
from fastload.bench.storage import evict, read_through, write_tiled_noise
from fastload.bench.swapping import swapping
from fastload.feeds.batch import Output
from fastload.feeds.feed import open_feed, run_feed
from fastload.order import FINE_TUNE, Order, Shuffle
from fastload.packed.file import PackedFile

OF_RESIDENT, OF_RIVALS, OF_DISK, OF_DECODER, OF_FFCV_JPEG = 0.8, 5.0, 0.9, 0.9, 1.0
"""The least ratios that the project promises, of ours to the other's speed."""

COLD_IMAGES = 1_333_334
"""Of 32×32×3: 4.1 GB."""


def stream(
    setting: parts.Setting, engines: Sequence[str], peers: Sequence[Peer], scratch: Path | None = None
) -> Outcome:
    """Measure all cases; of a file that was brought, the one that it serves. `scratch` is where files are written."""
    ready = [peer for peer in peers if peer.python() is not None]
    outcome = Outcome(notes=[f"{peer.name}: {peer.state()}" for peer in peers if peer.python() is None])
    threads = torch.get_num_threads()
    # Copies, and the rivals, get as many threads as our feed takes.
    torch.set_num_threads(feed_threads())
    try:
        encoded = setting.file is not None and is_encoded(setting.file)
        if not encoded:
            outcome += cached(setting, engines, [peer for peer in ready if "stream" in peer.cases])
        if setting.file is None:
            outcome += cold(setting, scratch)
            outcome += swapping(setting)
        if "dali" in engines and (encoded or setting.file is None):
            outcome += decoded(setting, [peer for peer in ready if "encoded" in peer.cases])
    finally:
        torch.set_num_threads(threads)
    return outcome


def is_encoded(path: Path) -> bool:
    """Whether a packed file holds encoded images."""
    with PackedFile(path) as file:
        return file.storage == "encoded"


def against(results: Sequence[Result], ours: str, wanted: dict[str, float]) -> list[str]:
    """Compare `ours` with the other results, and say whether it is as many times as fast as is wanted of it."""
    compare(results, ours)
    notes = []
    for one in results:
        least = next((least for name, least in wanted.items() if one.name.startswith(name)), None)
        if one.ratio is not None and least is not None:
            notes.append(verdict(f"{ours}, times as fast as {one.name}", one.ratio, least=least))
    return notes


# -- raw, in the system's cache ------------------------------------------------------------------------------------


def cached(setting: parts.Setting, engines: Sequence[str], peers: Sequence[Peer]) -> Outcome:
    """CIFAR's shape, 32×32×3 → 24×24×3, batches of 1,024: streamed, resident, and by the rivals, of the same bytes."""
    batch = setting.pick(1024, 16)
    # Half a second a round or more: over a tenth of it, what else the machine does decides.
    batches = {"fused": setting.pick(1500, 3), "dali": setting.pick(60, 3, 6)}
    with ExitStack() as stack:
        # Whole batches, so that no rival drops any.
        count = batch * setting.pick(50, 4)
        path = stack.enter_context(parts.packed_data(setting, lambda path: data.write_noise(path, count, 32)))
        augment = Augment.paper(parts.fitting_crop(path, 24))
        suffix = f", {augment.sides[0]}²"

        def ours(engine: str, resident: bool) -> Contestant:
            name = f"{'resident' if resident else 'stream, raw'}, {engine}{suffix}"
            feeding = parts.feed_contestant(
                setting, path, augment, batch, batches[engine], name=name, engine=engine, resident=resident
            )
            return stack.enter_context(feeding)

        # The resident feed beside the fused stream, as their ratio is asked for.
        running = [ours("fused", True)] + [ours(engine, False) for engine in engines]
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        request = export(path, folder) | _request(setting, "cifar", augment, batch)
        rivals = [stack.enter_context(Rival(peer, request, setting)) for peer in peers]
        running += [rival.contestant(f"stream, raw, {rival.name}") for rival in rivals if rival.failure is None]
        results = race(running, setting.device, rounds=setting.rounds, deadline=setting.deadline)
        wanted = {"resident, fused": OF_RESIDENT}
        wanted |= {f"stream, raw, {rival.name}": OF_RIVALS for rival in rivals}
        notes = against(results, f"stream, raw, fused{suffix}", wanted)
        return Outcome(parts.with_batch_time(results), [note for rival in rivals for note in rival.notes()] + notes)


def _request(setting: parts.Setting, name: str, augment: Augment, batch: int) -> dict[str, Any]:
    return {
        "name": name,
        "crop": augment.sides[0],
        "batch": batch,
        "device": setting.device.type,
        "dtype": "float32",
        "threads": feed_threads(),
    }


# -- raw, on the disk ----------------------------------------------------------------------------------------------


def cold(setting: parts.Setting, scratch: Path | None) -> Outcome:
    """A file that no cache holds, in blocks from start to end, and for information in random order: reading is all."""
    batch, count = setting.pick(1024, 16), setting.pick(COLD_IMAGES, 200)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        needed, free = count * 32 * 32 * 3, shutil.disk_usage(folder).free
        if needed > 0.9 * free:
            found = f"it takes {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there"
            return Outcome(notes=[f"stream, raw, cold: not measured: {found}; --scratch names another folder"])
        path = write_tiled_noise(Path(folder) / "cold.h5", count, 32)
        in_blocks, block_reads = _cold(setting, path, "block", batch, count // batch)
        shuffled, _ = _cold(setting, path, True, batch, setting.pick(20, 3))
        results = race([in_blocks, shuffled], setting.device, rounds=setting.rounds, deadline=setting.deadline)
    blocks = results[0]
    # Of the rounds, as what disturbs the disk disturbs both; the first is the one that does not count.
    gigabytes = in_blocks.work
    shares = [speed * seconds / gigabytes for speed, seconds in zip(blocks.rounds, block_reads[1:], strict=False)]
    blocks.details["of_read_by_round"] = [round(share, 3) for share in shares]
    notes = [verdict(f"{blocks.name}, of a sequential read", statistics.median(shares), least=OF_DISK)]
    if any(one.details["cached_before"] for one in results):
        notes.append("stream, raw, cold: the system kept some of the file in its cache: see cached_before")
    return Outcome(results, notes)


def _cold(
    setting: parts.Setting, path: Path, shuffle: Shuffle, batch: int, batches: int
) -> tuple[Contestant, list[float]]:
    """Return a pass over `batches` batches beside a sequential read of as many bytes, and the list of its seconds."""
    size = batch * batches * 32 * 32 * 3
    details: dict[str, Any] = {"batch": batch, "batches": batches, "shuffle": shuffle, "cached_before": 0.0}
    reads: list[float] = []

    def read() -> float:
        evict(path)
        began = time.perf_counter()
        read_through(path, size)
        reads.append(time.perf_counter() - began)
        return reads[-1]

    def run() -> float:
        augment, device = Augment.paper(24), setting.device
        with PackedFile(path, images="x", labels="y") as file:
            feed = open_feed(
                file, augment, Order(len(file), 0, FINE_TUNE, shuffle), Output(batch, device), resident=False
            )
            stream = run_feed(feed, lambda step: (step * batch, batch), 0, batches, device)
            details["cached_before"] = max(details["cached_before"], evict(path))
            began = time.perf_counter()
            for _ in stream:
                pass
            synchronize(device)
            return time.perf_counter() - began

    name = f"stream, raw, cold, {'blocks' if shuffle == 'block' else 'shuffled'}"
    found = Contestant(name, "GB/s", size / 1e9, run, read, "sequential read", details=details, inside=True)
    return found, reads


# -- encoded -------------------------------------------------------------------------------------------------------


def decoded(setting: parts.Setting, peers: Sequence[Peer]) -> Outcome:
    """JPEG files, resized to 256, cropped to 224: our feed, DALI's decoder with next to nothing around it, FFCV."""
    batch, batches = setting.pick(128, 4, 50), setting.pick(40, 2, 5)
    small, crop = setting.pick(256, 40), setting.pick(224, 32)
    augment = Augment.paper(crop, resize=small)
    archive = None if setting.quick or setting.file is not None else data.photographs()

    def write(path: Path) -> Path:
        if archive is not None:
            return data.write_photographs(path, archive)
        return data.write_encoded(path, setting.pick(1000, 8, 250), small + 40)

    with ExitStack() as stack:
        path = stack.enter_context(parts.packed_data(setting, write))
        ours = f"stream, encoded, dali, {crop}²"
        feeding = parts.feed_contestant(
            setting, path, augment, batch, batches, name=ours, engine="dali", resident=False
        )
        bare = stack.enter_context(bare_decoder(setting, path, small, crop, batch, batches))
        running = [stack.enter_context(feeding), bare]
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        request = export_encoded(path, folder) | _request(setting, "jpeg", augment, batch) | {"resize": small}
        rivals = [stack.enter_context(Rival(peer, request, setting)) for peer in peers]
        running += [rival.contestant(f"stream, encoded, {rival.name}") for rival in rivals if rival.failure is None]
        results = race(running, setting.device, rounds=setting.rounds, deadline=setting.deadline)
        wanted = {bare.name: OF_DECODER, "stream, encoded, ffcv": OF_FFCV_JPEG}
        notes = [note for rival in rivals for note in rival.notes()] + against(results, ours, wanted)
        if archive is None and setting.file is None and not setting.quick:
            notes.append(f"stream, encoded: generated images, as {data.PHOTOGRAPHS} is not at hand ($FASTLOAD_DATA)")
        return Outcome(parts.with_batch_time(results), notes)


@contextmanager
def bare_decoder(
    setting: parts.Setting, path: Path, small: int, crop: int, batch: int, batches: int
) -> Iterator[Contestant]:
    """DALI's decode, resize, crop and mirror, normalize by constants, as its own examples have it, and no more.

    The files lie in memory, and are handed over without a copy; nothing is read, shuffled, recoloured, measured or
    copied out, and a batch is gone when the next one is taken.
    """
    import nvidia.dali.fn as fn
    from nvidia.dali import Pipeline, types

    on_gpu = setting.device.type == "cuda"
    with PackedFile(path) as file:
        samples = [np.array(np.frombuffer(file.read(row), np.uint8)) for row in range(len(file))]
    pipeline = Pipeline(batch, feed_threads(), setting.device.index if on_gpu else None, seed=0, prefetch_queue_depth=2)
    with pipeline:
        files = fn.external_source(in_order(samples, batch), dtype=types.DALIDataType.UINT8, ndim=1, no_copy=True)
        images: Any = fn.decoders.image(files, device="mixed" if on_gpu else "cpu", output_type=types.DALIImageType.RGB)
        images = fn.resize(images, resize_shorter=small)
        pixels = normalized(
            images,
            crop=(crop, crop),
            crop_pos_x=fn.random.uniform(range=(0, 1)),
            mirror=fn.random.coin_flip(),
            crop_pos_y=fn.random.uniform(range=(0, 1)),
        )
        pipeline.set_outputs(pixels)
    pipeline.build()
    does = "decode, resize, random crop and mirror, normalize by constants; files in memory, in order; no copy out"
    details = {
        "batch": batch,
        "batches": batches,
        "images": len(samples),
        "threads": feed_threads(),
        "prefetch_queue_depth": 2,
        "does": does,
    }
    name = f"stream, encoded, DALI's bare decoder, {crop}²"
    output = torch.zeros((batch, 3, crop, crop), device=setting.device)
    yield parts.batch_contestant(name, pipeline.run, batches, output, ahead=3, details=details)


def normalized(images: Any, **options: Any) -> Any:
    """Return DALI's crop_mirror_normalize of images by ImageNet's mean and deviation: float32, CHW."""
    import nvidia.dali.fn as fn
    from nvidia.dali import types

    return fn.crop_mirror_normalize(
        images,
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        dtype=types.DALIDataType.FLOAT,
        output_layout="CHW",
        **options,
    )


def in_order(samples: Sequence[np.ndarray], batch: int) -> Callable[[], list[np.ndarray]]:
    """Return what gives DALI the samples that lie in memory, batch by batch and over again."""
    place = 0

    def source() -> list[np.ndarray]:
        nonlocal place
        place += batch
        return [samples[row % len(samples)] for row in range(place - batch, place)]

    return source


def export_encoded(path: Path, folder: Path) -> dict[str, Any]:
    """Write an encoded packed file's bytes, where each image begins, and labels as .npy files, and say where."""
    with PackedFile(path) as file:
        files = [np.frombuffer(file.read(row), np.uint8) for row in range(len(file))]
        return export_files(files, np.asarray(file.labels), folder)


def export_files(files: Sequence[np.ndarray], labels: np.ndarray, folder: Path) -> dict[str, Any]:
    """Write image files' bytes, where each begins, and labels as .npy files, and say where."""
    np.save(folder / "labels.npy", labels)
    np.save(folder / "images.npy", np.concatenate(files))
    np.save(folder / "offsets.npy", np.cumsum([0, *map(len, files)]))
    named = {name: str(folder / f"{name}.npy") for name in ("images", "offsets", "labels")}
    return named | {"folder": str(folder), "rows": len(files), "channels": 3}
