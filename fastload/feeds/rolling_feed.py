"""The feed of a rolling run: batches drawn from a pool in the device's memory, which the full set's stream renews."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from fastload.augment import Augment
from fastload.augment.schedule import Staged
from fastload.common.cuda import require_cuda_target
from fastload.common.dropping import when_dropped
from fastload.common.processors import default_threads
from fastload.errors import UsageError
from fastload.feeds.arrival_meter import ArrivalMeter
from fastload.feeds.batch import Feed, Output, label_tensor
from fastload.feeds.dali_feed import DaliFeed
from fastload.feeds.decoded_source import DecodedSource
from fastload.feeds.engine_choice import choose_engine
from fastload.feeds.fused_feeds import FusedCpuFeed
from fastload.feeds.fused_pool_feed import FusedPoolFeed
from fastload.feeds.image_sizes import check_sizes, distinct_shapes
from fastload.feeds.inputs import FeedInputs
from fastload.feeds.pool_memory import PoolImages, PoolMemory
from fastload.feeds.pool_plan import check_ranks, pool_bytes, ring_rounds
from fastload.feeds.pool_writers import CudaWriter, HostWriter, PoolSources, Writer
from fastload.feeds.rolling_order import RollingOrder
from fastload.feeds.rolling_pool import RollingPool
from fastload.packed.reader import SampleReader
from fastload.packed.set import Packed

_PIECE_BYTES = 1 << 20
"""Decoded bytes that a thread fetches at a time, about: few enough that several threads share a step's arrivals."""

_LEAST_PIECE, _MOST_PIECE, _DALI_PIECE = 8, 256, 64
"""Images that a thread fetches at a time, whatever their size. DALI shares those of a call among its own threads."""


@dataclass(frozen=True)
class PoolFiles:
    """What a rolling run draws from.

    Arguments:
        full: the full set.
        subset: the first that arrive, or None.
    """

    full: Packed
    subset: Packed | None = None

    @property
    def files(self) -> list[Packed]:
        """The subset, if there is one, and the full set."""
        return [self.full] if self.subset is None else [self.subset, self.full]

    @cached_property
    def ids(self) -> np.ndarray:
        """Of the subset's samples and then the full set's, int64 [N]."""
        return np.concatenate([file.ids for file in self.files])

    @property
    def labels(self) -> np.ndarray | None:
        """Likewise, [N, ...], as the files number them; None of unlabelled sets."""
        found = [file.labels for file in self.files if file.labels is not None]
        return np.concatenate(found) if found else None

    @cached_property
    def images(self) -> PoolImages:
        """What the images are like that a pool holds; see `pool_images`."""
        return pool_images(self.files)


def pool_images(files: Sequence[Packed]) -> PoolImages:
    """Return what the images are like that a pool of these sets holds: decoded, as they are.

    Raises UsageError for encoded images of unknown sizes, and for planar ones beside images of other shapes.
    """
    first = files[0]
    if all(file.storage == "raw" and (file.shape, file.strides) == (first.shape, first.strides) for file in files):
        assert first.shape is not None and first.strides is not None
        sizes = np.full(sum(len(file) for file in files), first.strides[0], np.int64)
        return PoolImages(first.channels, first.shape, first.strides, sizes, None)
    shapes = np.concatenate([_sides(file) for file in files])
    sizes = shapes.astype(np.int64).prod(axis=1) * first.channels
    return PoolImages(first.channels, None, None, sizes, shapes, sum(map(len, files[:-1])))


def _sides(file: Packed) -> np.ndarray:
    """Return the heights and widths of a set's images, int32 [N, 2]."""
    if file.shapes is not None:
        return file.shapes
    if file.shape is None or file.strides is None:
        raise UsageError(
            f"{file.path}: does not tell the sizes of its encoded images, and a rolling pool must know them; pack it "
            "again, or run `fastload convert`"
        )
    if file.strides[3] != 1:
        raise UsageError(f"{file.path}: holds planar images, which cannot share a pool with images of other shapes")
    return np.tile(np.array(file.shape[:2], np.int32), (len(file), 1))


def open_rolling_feed(
    files: PoolFiles,
    augment: Augment | Staged[Augment],
    order: RollingOrder,
    output: Output,
    *,
    rank: int = 0,
    world_size: int = 1,
    engine: str = "auto",
    workers: int | None = None,
    labels: np.ndarray | None = None,
    views: int = 1,
    meter: ArrivalMeter | None = None,
) -> Feed:
    """Return the feed of a rolling run; its batches are what a stream over `order` would give.

    Arguments:
        files: opened by the caller, who may close them once this has returned.
        augment: what happens to each image; `Staged` says from which position on.
        order: of the run, the same on all ranks.
        output: how batches come out, of this rank.
        rank: of this process; it serves the lanes that its part of each global batch is drawn from.
        world_size: how many ranks there are.
        engine: "auto", "fused" or "dali".
        workers: threads that make batches, and as many that fetch what arrives; the processors, at most 8, by default.
        labels: of the subset's samples and then the full set's, [N, ...], in place of the files' own.
        views: how many images are made of each sample.
        meter: notes how fast samples arrive.

    Raises UsageError for images that cannot be augmented so or held in a pool, and for ranks that do not divide the
    lanes; DataError unless the device has memory for the pool.
    """
    augments = augment if isinstance(augment, Staged) else Staged.always(augment)
    shape, on_cuda = order.shape, output.device.type == "cuda"
    check_ranks(shape.batch_size, world_size)
    engines = [_checked(engine, file, augments, on_cuda=on_cuda) for file in files.files]
    images, found = files.images, files.labels if labels is None else labels
    lanes, ring = shape.lanes // world_size, ring_rounds(shape.pool, shape.share)
    size = pool_bytes(images, shape.pool, shape.batch_size, world_size, order.shuffle)
    if on_cuda:
        require_cuda_target()
    memory = PoolMemory(images, ring * lanes, size, output.device, str(files.full.path))
    threads = default_threads() if workers is None else workers
    readers = [SampleReader(file) for file in files.files]
    sources = [
        DecodedSource(file, reader, engine=one, threads=threads)
        for file, reader, one in zip(files.files, readers, engines, strict=True)
    ]
    by_dali = any(one == "dali" and file.storage == "encoded" for one, file in zip(engines, files.files, strict=True))
    piece = _DALI_PIECE if by_dali else _PIECE_BYTES // max(1, int(images.sizes.mean()))
    piece = max(_LEAST_PIECE, min(_MOST_PIECE, piece))
    writer: Writer = HostWriter(PoolSources(sources), memory)
    if on_cuda:
        writer = CudaWriter(PoolSources(sources), memory, images.sizes, threads=threads, piece=piece)
    pool = RollingPool(
        order,
        memory,
        writer,
        ArrivalMeter() if meter is None else meter,
        files.ids,
        _distinct_sides(images),
        ring=ring,
        first_lane=rank * lanes,
        lanes=lanes,
        threads=threads,
        piece=piece,
    )
    inputs = FeedInputs(
        files.full,
        augments,
        views,
        order,
        output,
        labels=None if found is None else label_tensor(found),
        reader=readers[-1],
        read_ahead=None,
        resident=False,
        workers=threads,
        pool=pool,
    )
    decoded = [one for one, file in zip(engines, files.files, strict=True) if file.storage != "encoded"]
    feed: Feed
    if engine == "dali" or "dali" in decoded:
        feed = DaliFeed(inputs)
    else:
        feed = FusedPoolFeed(inputs) if on_cuda else FusedCpuFeed(inputs)
    when_dropped(feed, partial(setattr, pool, "dropped", True))  # threads fetch for nobody then
    return feed


def _checked(engine: str, file: Packed, augments: Staged[Augment], *, on_cuda: bool) -> str:
    """Return which engine serves a file, whose images fit all augmentations; see `choose_engine`, `check_sizes`.

    Files are decoded on the host, whatever the device.
    """
    on_cuda = on_cuda and file.storage != "encoded"
    (chosen,) = {choose_engine(engine, file, one, on_cuda=on_cuda) for one in augments.values}
    for one in augments.values:
        check_sizes(one, file)
    return chosen


def _distinct_sides(images: PoolImages) -> list[tuple[int, int]]:
    if images.shapes is None:
        assert images.shape is not None
        return [images.shape[:2]]
    return [(height, width) for height, width in distinct_shapes(images.shapes)[0].tolist()]
