"""FFCV 1.0.2 from a .beton in memory, set up as its tuning guide says for a small dataset.

That is: raw images, `os_cache=True`, `OrderOption.RANDOM`, as many workers as processors, only operations that it
compiles (its own NormalizeImage before ToTensor, in place of torchvision's), batches_ahead at its default of 3. Encoded
images are its JPEG mode: it cannot take files' own bytes, and encodes them again, at their size and the quality 90 of
its ImageNet examples.
"""

import io
from pathlib import Path

import numpy as np
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.basics import IntDecoder
from ffcv.fields.decoders import RandomResizedCropRGBImageDecoder, SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, RandomTranslate, Squeeze, ToTensor, ToTorchImage
from ffcv.writer import DatasetWriter
from PIL import Image, ImageOps

CASES = ("resident", "stream", "encoded", "recipe", "rolling")
AHEAD = 5
"""Its queue of three, one that waits to be queued, and one in the making."""

LEAVES_OUT = {
    "cifar": "brightness, contrast, clamp and per-image statistics; translates within 32², no 24² crop",
    "imagenet": "brightness, contrast, clamp and per-image statistics; random-size crop and resize",
    "jpeg": "brightness, contrast, clamp and per-image statistics; random-size crop of the whole image and resize",
}

MEAN = {"cifar": (125.307, 122.961, 113.8575), "imagenet": (123.675, 116.28, 103.53)}
DEVIATION = {"cifar": (51.5865, 50.847, 51.255), "imagenet": (58.395, 57.12, 57.375)}
JPEG_QUALITY = 90


class _Images:
    def __init__(self, images, labels):
        self.images, self.labels = np.load(images, mmap_mode="r"), np.load(labels)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, row):
        return np.array(self.images[row]), int(self.labels[row])


class _Files(_Images):
    def __init__(self, images, labels, offsets):
        super().__init__(images, labels)
        self.offsets = np.load(offsets)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        stored = self.images[self.offsets[row] : self.offsets[row + 1]].tobytes()
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(stored)))
        return np.asarray(upright.convert("RGB")), int(self.labels[row])


def open_batches(case):
    """Write the .beton, then yield (images, labels), epoch after epoch."""
    if case["device"] != "cpu":
        raise RuntimeError("on CUDA FFCV needs CuPy and torchvision, which its environment here does not hold")
    path = Path(case["folder"]) / f"{case['name']}.beton"
    if "offsets" in case:
        field = RGBImageField(write_mode="jpg", jpeg_quality=JPEG_QUALITY)
        images: _Files | _Images = _Files(case["images"], case["labels"], case["offsets"])
    else:
        field = RGBImageField(write_mode="raw")
        images = _Images(case["images"], case["labels"])
    writer = DatasetWriter(str(path), {"image": field, "label": IntField()}, num_workers=case["threads"])
    writer.from_indexed_dataset(images)
    loader = Loader(
        str(path),
        batch_size=case["batch"],
        num_workers=case["threads"],
        os_cache=True,
        order=OrderOption.RANDOM,
        drop_last=True,
        pipelines={"image": _pipeline(case), "label": [IntDecoder(), ToTensor(), Squeeze()]},
    )
    return _epochs(loader)


def _pipeline(case):
    # Mean and deviation as its own examples have them: their values do not change the speed.
    kind = "cifar" if case["name"] == "cifar" else "imagenet"
    mean, deviation = np.array(MEAN[kind]), np.array(DEVIATION[kind])
    dtype = np.dtype(case["dtype"])
    if kind == "imagenet":
        first = [RandomResizedCropRGBImageDecoder((case["crop"], case["crop"])), RandomHorizontalFlip()]
    else:
        side = np.load(case["images"], mmap_mode="r").shape[1]
        fill = tuple(int(value) for value in mean)
        first = [SimpleRGBImageDecoder(), RandomHorizontalFlip()]
        first += [RandomTranslate(padding=(side - case["crop"]) // 2, fill=fill)]
    last = ToTorchImage(convert_back_int16=dtype == np.float16)
    return [*first, NormalizeImage(mean, deviation, dtype.type), ToTensor(), last]


def _epochs(loader):
    while True:
        yield from loader
