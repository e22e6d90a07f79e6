"""`python -m fastload.bench recipe --encoded`: the recipe that most people train ImageNet with, out of JPEG files.

RandomResizedCrop to 224², flip, mean and deviation to float32, as a training loop gets it: our loader with each engine
that takes encoded files, FFCV's JPEG mode, and DALI's own operators, of the same pictures. The 250 photographs of
ImageNet as they are, brought to a longest side of 500 pixels, and to a shorter side of 256; or a file that is given.
"""

from __future__ import annotations

import io
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from fastload.augment import Augment
from fastload.bench import data, parts
from fastload.bench.measure import Contestant, race, with_cpu_time
from fastload.bench.peers.install import Peer
from fastload.bench.rivals import Outcome, Rival, feed_threads
from fastload.bench.streams import against, export_files, in_order, normalized
from fastload.errors import UsageError
from fastload.packed.file import PackedFile
from fastload.packing.pack import pack

OF_FFCV, OF_DALI, LARGE_OF_FFCV = 2.0, 2.2, 1.8
"""The least ratios that the project promises, of ours to the other's speed; the last of photographs as they are."""

BROUGHT_TO_SIZE = 500
"""No shorter side is longer where pictures were brought to a size; of photographs as they are, some are."""

EPOCH = 2000
"""The least pictures in an epoch of a rival's; fewer are repeated."""

CASES: dict[str, dict[str, int]] = {
    "photographs as they are": {},
    "longest side 500": {"longest": 500},
    "shorter side 256": {"shorter": 256},
}


@dataclass(frozen=True)
class Pictures:
    """Pictures in a packed file, which our loader reads, and in files of their own, uint8 [bytes], for the rivals."""

    name: str
    packed: Path
    files: list[np.ndarray]

    @cached_property
    def sides(self) -> np.ndarray:
        """The shorter and the longer side of each, [N, 2]."""
        from PIL import Image

        return np.array([sorted(Image.open(io.BytesIO(file.tobytes())).size) for file in self.files])

    def details(self, bytes_per_file: float) -> dict[str, Any]:
        """Return what is written beside each result of these pictures."""
        sides = [int(side) for side in np.median(self.sides, 0)]
        return {"images": len(self.files), "median_sides": sides, "bytes_per_file": round(bytes_per_file)}

    @property
    def wanted(self) -> dict[str, float]:
        """What ours is to be, times as fast as whom; DALI is no measure of photographs as they are."""
        if self.sides[:, 0].max() > BROUGHT_TO_SIZE:
            return {"recipe, encoded, ffcv": LARGE_OF_FFCV}
        return {"recipe, encoded, ffcv": OF_FFCV, "recipe, encoded, DALI's own": OF_DALI}


def recipe_encoded(
    setting: parts.Setting, engines: Sequence[str], peers: Sequence[Peer], originals: Path | None = None
) -> Outcome:
    """Race in each case, or of the file that was given; see `fastload.bench.recipe.recipe`."""
    if setting.file is not None:
        pictures = Pictures(setting.file.name, setting.file, files_of(setting.file, originals))
        notes = [] if originals else ["recipe, encoded: the rivals take the files as they are packed (--originals)"]
        return _race(setting, pictures, engines, peers) + Outcome(notes=notes)
    archive = None if setting.quick else data.photographs()
    outcome = Outcome()
    for name, sides in CASES.items() if archive is not None else [("generated", {})]:
        with tempfile.TemporaryDirectory() as folder:
            originals, packed = Path(folder) / "files", Path(folder) / "files.h5"
            if archive is not None:
                data.unpack_photographs(originals, archive, **sides)
            else:
                data.write_jpegs(originals, setting.pick(250, 8), setting.pick(375, 40))
            pack(originals, packed, encoded=True)
            pictures = Pictures(name, packed, files_of(packed, originals))
            outcome += _race(setting, pictures, engines, peers)
    if archive is None and not setting.quick:
        outcome.notes.append(
            f"recipe, encoded: generated images, as {data.PHOTOGRAPHS} is not at hand ($FASTLOAD_DATA)"
        )
    return outcome


def files_of(path: Path, originals: Path | None) -> list[np.ndarray]:
    """Return the bytes of each picture's file, from the folder that the packed file was made from or as it is packed.

    A packed JPEG can be another file of the same pixels than its source: one with restart markers, which decoders take
    more time for.
    """
    with PackedFile(path) as file:
        if originals is None:
            return [np.array(np.frombuffer(file.read(row), np.uint8)) for row in range(len(file))]
        names = [originals / file.name_of(row) for row in range(len(file))]
    try:
        return [np.fromfile(name, np.uint8) for name in names]
    except OSError as error:
        found = f"{error.filename} cannot be read ({error.strerror})"
        raise UsageError(f"--originals {originals}: {found}; name the folder that {path} was packed from") from error


def _race(setting: parts.Setting, pictures: Pictures, engines: Sequence[str], peers: Sequence[Peer]) -> Outcome:
    # Two whole batches and more of a few pictures, so that no rival drops any.
    batch = min(setting.pick(128, 4), max(1, len(pictures.files) // 2))
    outcome = Outcome()
    with ExitStack() as stack:
        ours = []
        for engine in ("fused", "dali"):
            if engine == "fused" or engine in engines:
                try:
                    ours.append(stack.enter_context(_ours(setting, pictures, batch, engine)))
                except UsageError as error:
                    outcome.notes.append(f"recipe, encoded, {engine}: left out: {error}")
        if not ours:
            raise UsageError(outcome.notes[-1])
        running = [*ours, *([stack.enter_context(dali_rival(setting, pictures, batch))] if "dali" in engines else [])]
        running = [with_cpu_time(one) for one in running]
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        request = rival_request(setting, pictures, batch, folder)
        rivals = {
            f"recipe, encoded, {peer.name}, {pictures.name}": stack.enter_context(Rival(peer, request, setting))
            for peer in peers
        }
        running += [rival.contestant(name) for name, rival in rivals.items() if rival.failure is None]
        results = race(running, setting.device, rounds=setting.rounds, deadline=setting.deadline)
        for one in results:
            if one.name in rivals:
                # FFCV reads a file of its own.
                written = sum(path.stat().st_size for path in folder.glob("*.beton")) / request["rows"]
                one.details |= pictures.details(written) | {"threads": feed_threads()}
                one.details["cpu_ms_per_image"] = rivals[one.name].cpu_ms_per_image
        outcome.notes += [note for rival in rivals.values() for note in rival.notes()]
        spent = [f"{one.name.split(', ')[2]} {one.details['cpu_ms_per_image']:.3g}" for one in results]
        outcome.notes.append(f"recipe, encoded, {pictures.name}: CPU-ms an image: {', '.join(spent)}")
        outcome.notes += against(results, ours[0].name, pictures.wanted)
        outcome.results = parts.with_batch_time(results)
        return outcome


def rival_request(setting: parts.Setting, pictures: Pictures, batch: int, folder: Path) -> dict[str, Any]:
    # As many times as make a longer epoch: FFCV takes some 70 ms to begin one, a tenth of an epoch of 250 pictures.
    files = pictures.files * -(-setting.pick(EPOCH, 1) // len(pictures.files))
    exported = export_files(files, np.zeros(len(files), np.int64), folder)
    work = {"name": "recipe-jpeg", "crop": side_of(setting), "batch": batch, "dtype": "float32"}
    return exported | work | {"device": setting.device.type, "threads": feed_threads()}


def side_of(setting: parts.Setting) -> int:
    return setting.pick(224, 32)


@contextmanager
def _ours(
    setting: parts.Setting, pictures: Pictures, batch: int, engine: Literal["fused", "dali"]
) -> Iterator[Contestant]:
    """Our loader; raises UsageError where the engine does not take these pictures."""
    with PackedFile(pictures.packed) as file:
        stored = statistics.fmean(stop - start for start, stop in map(file.span, range(len(file))))
    with parts.loader_contestant(
        setting,
        pictures.packed,
        Augment.imagenet(side_of(setting)),
        batch,
        setting.pick(24, 2),
        name=f"recipe, encoded, {engine}, {pictures.name}",
        engine=engine,
        details=pictures.details(stored) | {"engine": engine},
    ) as contestant:
        yield contestant


@contextmanager
def dali_rival(setting: parts.Setting, pictures: Pictures, batch: int) -> Iterator[Contestant]:
    """DALI's decoder of random crops, resize and crop_mirror_normalize, as its ResNet-50 example has them, and no more.

    Areas and ratios are those of our recipe. The files lie in memory, and are handed over without a copy, in order; a
    batch is gone when the next one is taken.
    """
    import nvidia.dali.fn as fn
    from nvidia.dali import Pipeline, types

    side, on_gpu = side_of(setting), setting.device.type == "cuda"
    pipeline = Pipeline(batch, feed_threads(), setting.device.index if on_gpu else None, seed=0, prefetch_queue_depth=2)
    with pipeline:
        source = in_order(pictures.files, batch)
        files = fn.external_source(source, dtype=types.DALIDataType.UINT8, ndim=1, no_copy=True)
        images: Any = fn.decoders.image_random_crop(
            files,
            device="mixed" if on_gpu else "cpu",
            output_type=types.DALIImageType.RGB,
            random_area=[0.08, 1.0],
            random_aspect_ratio=[3 / 4, 4 / 3],
            num_attempts=10,
        )
        images = fn.resize(images, resize_x=side, resize_y=side, interp_type=types.DALIInterpType.INTERP_TRIANGULAR)
        pixels = normalized(
            images,
            mirror=fn.random.coin_flip(),
        )
        pipeline.set_outputs(pixels)
    pipeline.build()
    details = pictures.details(statistics.fmean(map(len, pictures.files))) | {
        "batch": batch,
        "batches": setting.pick(12, 2),
        "threads": feed_threads(),
        "prefetch_queue_depth": 2,
        "does": "random crop decoded, resized, mirrored, normalized; files in memory, in order; no copy out",
    }
    name = f"recipe, encoded, DALI's own, {pictures.name}"
    output = torch.zeros((batch, 3, side, side), device=setting.device)
    yield parts.batch_contestant(name, pipeline.run, details["batches"], output, ahead=3, details=details)
