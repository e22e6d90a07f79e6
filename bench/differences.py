"""`python -m fastload.bench differences`: how far our pixels are from other libraries', of the same crops and factors.

    python -m fastload.bench differences [--data FOLDER.tar]

Photographs are packed at 256² and cropped by our loader; each crop is then made by Pillow, torch and, where it is
installed, OpenCV, from the same part of the image. For each: the mean difference in levels of 0…255, and which share of
the values differs by more than one level. docs/recipes.md holds the table.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance

from fastload.augment import Augment, Jitter, RandomResizedCrop
from fastload.augment.parameters import Parameters, SampleKeys, draw_parameters, stream_number
from fastload.bench import data
from fastload.common.terminal import tell
from fastload.errors import UsageError
from fastload.loop.loader import TwoPhaseLoader
from fastload.order import FINE_TUNE
from fastload.packed.file import PackedFile
from fastload.packing.pack import pack

SIDE = 224
Resizing = Callable[[np.ndarray], np.ndarray]
Row = tuple[str, np.ndarray, np.ndarray]


def main(arguments: list[str]) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m fastload.bench differences", description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, help=f"photographs, as `fastload pack` takes them; {data.PHOTOGRAPHS}")
    options = parser.parse_args(arguments)
    source = options.data or data.photographs()
    if source is None:
        raise UsageError(f"{data.PHOTOGRAPHS} is not at hand ($FASTLOAD_DATA); give photographs with --data")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "photographs.h5"
        pack(source, path, resize=256, progress=False, unlabelled=True)
        rows = resizing(path) + coloring(path)
    tell(f"{'against':56}  levels  more than one")
    for name, ours, theirs in rows:
        away = np.abs(ours.astype(np.int16) - theirs)
        tell(f"{name:56}  {away.mean():6.2f}  {np.mean(away > 1):13.1%}")
    return 0


def _ours(path: Path, augment: Augment) -> tuple[np.ndarray, Parameters, list[np.ndarray]]:
    """Return our images, uint8 [n, H, W, 3], what was drawn for them, and the packed images."""
    with PackedFile(path) as file:
        images = [np.array(file.read_image(row)) for row in range(len(file))]
    count = len(images)
    with TwoPhaseLoader(
        path,
        batch_size=count,
        steps=1,
        swap=0,
        augment=augment,
        device="cpu",
        dtype=torch.uint8,
        shuffle=False,
        with_ids=True,
    ) as loader:
        pixels, *_, ids = next(iter(loader))
    keys = SampleKeys(0, stream_number(FINE_TUNE), ids.numpy(), np.zeros(count, np.int64))
    drawn = draw_parameters(augment, keys, images[0].shape[:2])
    return pixels.permute(0, 2, 3, 1).numpy(), drawn, images


# -- resizing ------------------------------------------------------------------------------------------------------


def resizing(path: Path) -> list[Row]:
    """Return (against what, our pixels, theirs) for RandomResizedCrop."""
    ours, drawn, images = _ours(path, Augment(SIDE, crop=RandomResizedCrop()))
    parts = [
        image[top : top + rows, left : left + columns]
        for image, (top, left, rows, columns) in zip(images, drawn.places[:, :4], strict=True)
    ]
    ways: dict[str, Resizing] = {
        "Pillow, bilinear (torchvision of PIL images)": _pillow(Image.Resampling.BILINEAR),
        "torch, bilinear, antialias=True (torchvision of tensors)": _torch("bilinear", antialias=True),
        "torch, bilinear, antialias=False": _torch("bilinear", antialias=False),
        "Pillow, bicubic (timm)": _pillow(Image.Resampling.BICUBIC),
    }
    try:
        import cv2
    except ImportError:
        tell("OpenCV is not installed: its area filter, which FFCV takes, is left out")
    else:
        ways["OpenCV, area (FFCV)"] = lambda part: cv2.resize(part, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return [(name, ours, np.stack([resize(part) for part in parts])) for name, resize in ways.items()]


def _pillow(filter: Image.Resampling) -> Resizing:
    return lambda part: np.asarray(Image.fromarray(part).resize((SIDE, SIDE), filter))


def _torch(mode: str, *, antialias: bool) -> Resizing:
    def resize(part: np.ndarray) -> np.ndarray:
        planes = torch.from_numpy(np.array(part)).permute(2, 0, 1)[None]
        found = torch.nn.functional.interpolate(
            planes.float(), (SIDE, SIDE), mode=mode, antialias=antialias, align_corners=False
        )
        return found.round().clamp(0, 255).byte()[0].permute(1, 2, 0).numpy()

    return resize


# -- colours -------------------------------------------------------------------------------------------------------


def coloring(path: Path) -> list[Row]:
    """Return (against what, our pixels, theirs) for ColorJitter, step by step and all together."""
    ours, rng = range(4), np.random.default_rng(0)
    rows = [
        _jittered(path, Jitter(**{name: most}), f"ColorJitter({name}={most}) of PIL images", lambda: ours)
        for name, most in (("brightness", 0.4), ("contrast", 0.4), ("saturation", 0.4), ("hue", 0.1))
    ]
    jitter, name = Jitter(0.4, 0.4, 0.4, 0.1), "ColorJitter(0.4, 0.4, 0.4, 0.1)"
    rows.append(_jittered(path, jitter, f"{name}, in our order", lambda: ours))
    rows.append(_jittered(path, jitter, f"{name}, in random orders", lambda: rng.permutation(4)))
    return rows


def _jittered(
    path: Path, jitter: Jitter, name: str, order: Callable[[], Iterable[int]]
) -> tuple[str, np.ndarray, np.ndarray]:
    with PackedFile(path) as file:
        assert file.shape is not None
        sides = file.shape[:2]
    ours, drawn, images = _ours(path, Augment(sides, color=jitter))
    theirs = []
    for i, image in enumerate(images):
        picture = Image.fromarray(image)
        for step in order():
            picture = _colored(picture, int(step), drawn, i)
        theirs.append(np.asarray(picture))
    return name, ours, np.stack(theirs)


def _colored(picture: Image.Image, step: int, drawn: Parameters, i: int) -> Image.Image:
    """Take one of ColorJitter's steps as torchvision does of PIL images."""
    if step < 3:
        kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        factor = (drawn.brightness, drawn.contrast, drawn.saturation)[step][i]
        return kinds[step](picture).enhance(float(factor))
    hue, *rest = picture.convert("HSV").split()
    turned = (np.asarray(hue, np.int64) + int(float(drawn.hue[i]) * 255)) % 256
    return Image.merge("HSV", (Image.fromarray(turned.astype(np.uint8)), *rest)).convert("RGB")
