"""`python -m fastload.bench recipe`: the recipe that most people train ImageNet with, out of raw images.

RandomResizedCrop to 224², flip, mean and deviation: our loader in float16 beside FFCV, and in float32 as it runs on a
processor without AVX2, and beside DALI's own operators on the CPU. Squares of 256 pixels, and pictures of 256×341. Out
of JPEG files, with `--encoded`: `fastload.bench.recipe_encoded`.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastload.augment import Augment
from fastload.bench import data, parts, recipe_encoded
from fastload.bench.measure import Contestant, race, ratio_of, verdict
from fastload.bench.peers.install import Peer
from fastload.bench.rivals import Outcome, Rival, export, feed_threads
from fastload.bench.streams import against, in_order, normalized
from fastload.packed.file import PackedFile

OF_FFCV, PLAIN_OF_FFCV, OF_DALI = 10.0, 3.5, 12.0
"""The least ratios that the project promises, of ours to the other's speed."""

WITHOUT_VECTORS = "fused without AVX2's instructions"


class _WithoutVectors(Peer):
    """Our own loader in a process of its own, with kernels compiled for a processor that is not this one."""

    @property
    def adapter(self) -> Path:
        return self.folder / "without_vectors.py"

    def python(self) -> Path:
        return Path(sys.executable)


def recipe(
    setting: parts.Setting,
    engines: Sequence[str],
    peers: Sequence[Peer],
    *,
    without_vectors: bool = True,
    encoded: bool = False,
    originals: Path | None = None,
) -> Outcome:
    """Race in both shapes, or of JPEG files.

    Arguments:
        setting: where and how long.
        engines: "fused", and "dali" where DALI is installed.
        peers: the rivals that are asked for.
        without_vectors: race our own loader as on a processor without AVX2 too; not of JPEG files.
        encoded: race of JPEG files.
        originals: the folder that the encoded file of `setting` was packed from.
    """
    outcome = Outcome(notes=[f"{peer.name}: {peer.state()}" for peer in peers if peer.python() is None])
    ready = [peer for peer in peers if peer.python() is not None]
    own = [_WithoutVectors(WITHOUT_VECTORS, Path(__file__).parent)] if without_vectors else []
    threads = torch.get_num_threads()
    torch.set_num_threads(feed_threads())
    try:
        if encoded:
            return outcome + recipe_encoded.recipe_encoded(setting, engines, ready, originals)
        for width in (None,) if setting.file is not None else (256, 341):
            write = partial(_write, setting, width or 0)
            with parts.packed_data(setting, write) as path:
                outcome += _halves(setting, path, [*ready, *own])
                outcome += _singles(setting, path, "dali" in engines and setting.device.type == "cpu")
    finally:
        torch.set_num_threads(threads)
    return outcome


def _write(setting: parts.Setting, width: int, path: Path) -> Path:
    side = setting.pick(256, 40)
    return data.write_noise(path, setting.pick(2048, 16), side, width=setting.pick(width, width // 6))


def _halves(setting: parts.Setting, path: Path, peers: Sequence[Peer]) -> Outcome:
    """Float16: ours and FFCV; and ours without vectors."""
    with ExitStack() as stack:
        ours = stack.enter_context(_loader(setting, path, torch.float16))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        request = export(path, folder) | _request(setting, path)
        rivals = [stack.enter_context(Rival(peer, request | _dtype_of(peer), setting)) for peer in peers]
        suffix = ours.name.partition(", fused")[2].removesuffix(", float16")
        running = [ours]
        running += [
            one.contestant(f"recipe, {one.name}{suffix}, {_dtype_of(peer)['dtype']}")
            for one, peer in zip(rivals, peers, strict=True)
            if one.failure is None
        ]
        results = race(running, setting.device, rounds=setting.rounds, deadline=setting.deadline)
        notes = [note for rival in rivals for note in rival.notes()]
        notes += against(results, ours.name, {"recipe, ffcv": OF_FFCV})
        ffcv = next((one for one in results if one.name.startswith("recipe, ffcv")), None)
        plain = next((one for one in results if WITHOUT_VECTORS in one.name), None)
        if ffcv is not None and plain is not None:
            what = f"{plain.name}, times as fast as {ffcv.name}"
            notes.append(verdict(what, ratio_of(plain, ffcv), least=PLAIN_OF_FFCV))
        return Outcome(parts.with_batch_time(results), notes)


def _singles(setting: parts.Setting, path: Path, with_dali: bool) -> Outcome:
    """Float32: ours, and DALI's graph."""
    with ExitStack() as stack:
        ours = stack.enter_context(_loader(setting, path, torch.float32))
        rivals = [stack.enter_context(_dali_rival(setting, path))] if with_dali else []
        results = race([ours, *rivals], setting.device, rounds=setting.rounds, deadline=setting.deadline)
        notes = against(results, ours.name, {one.name: OF_DALI for one in rivals})
        return Outcome(parts.with_batch_time(results), notes)


def _sizes(setting: parts.Setting) -> tuple[int, int]:
    """Return the batch and the output's side."""
    return setting.pick(256, 4), setting.pick(224, 32)


def _dtype_of(peer: Peer) -> dict[str, str]:
    """Without F16C float16 is made by arithmetic, which nobody would ask for."""
    return {"dtype": "float32" if isinstance(peer, _WithoutVectors) else "float16"}


def _request(setting: parts.Setting, path: Path) -> dict[str, Any]:
    batch, side = _sizes(setting)
    named = {"name": "recipe", "crop": side, "batch": batch, "packed": str(path)}
    return named | {"device": setting.device.type, "threads": feed_threads()}


def _shape(path: Path) -> str:
    with PackedFile(path) as file:
        return "×".join(map(str, file.shape[:2])) if file.shape is not None else "encoded"


def _loader(setting: parts.Setting, path: Path, dtype: torch.dtype) -> AbstractContextManager[Contestant]:
    """Our loader in a type."""
    batch, side = _sizes(setting)
    augment, stored = Augment.imagenet(side), _shape(path)
    name = f"recipe, fused, {stored} → {side}², {str(dtype).rpartition('.')[2]}"
    batches, details = setting.pick(240, 2, 120), {"stored": stored}
    return parts.loader_contestant(setting, path, augment, batch, batches, name=name, dtype=dtype, details=details)


@contextmanager
def _dali_rival(setting: parts.Setting, path: Path) -> Iterator[Contestant]:
    """DALI's random_resized_crop and crop_mirror_normalize on the CPU, as its own examples have them, and no more.

    The images lie in memory, and are handed over without a copy, in order; a batch is gone when the next is taken.
    """
    import nvidia.dali.fn as fn
    from nvidia.dali import Pipeline, types

    batch, side = _sizes(setting)
    batches = setting.pick(60, 2, 20)
    with PackedFile(path) as file:
        images = [np.array(file.read_image(row)) for row in range(len(file))]
    pipeline = Pipeline(batch, feed_threads(), None, seed=0, prefetch_queue_depth=2)
    with pipeline:
        pixels: Any = fn.external_source(
            in_order(images, batch), dtype=types.DALIDataType.UINT8, ndim=3, layout="HWC", no_copy=True
        )
        pixels = fn.random_resized_crop(pixels, size=[side, side])
        pixels = normalized(
            pixels,
            mirror=fn.random.coin_flip(),
        )
        pipeline.set_outputs(pixels)
    pipeline.build()
    does = "random resized crop, mirror, normalize by constants; images in memory, in order; no copy out"
    details = {"batch": batch, "batches": batches, "images": len(images), "threads": feed_threads(), "does": does}
    name = f"recipe, DALI's graph, {_shape(path)} → {side}², float32"
    output = torch.zeros((batch, 3, side, side))
    yield parts.batch_contestant(name, pipeline.run, batches, output, ahead=3, details=details)
