"""torch's DataLoader over arrays or files in memory: the work done a sample at a time, as its users write it, in two
processes. JPEG files are decoded, cropped and resized by Pillow, as torchvision's transforms do.

Settings after its documentation and the performance tuning guide: workers that persist, more than one batch ahead of
each, pinned memory and non-blocking copies on CUDA.
"""

import io
import math
import random

import numpy as np
import torch
from peer_loading import MADE_AHEAD, endless, loader_settings
from PIL import Image
from torch.utils.data import DataLoader, Dataset

CASES = ("resident", "rolling")
AHEAD = MADE_AHEAD
LEAVES_OUT: dict[str, str] = {}

FLIP, BRIGHTNESS, CONTRAST = 0.5, 63.0, (0.2, 1.8)


class Images(Dataset):
    """uint8 [N, H, W, C] as augmented (image [C, crop, crop], label)."""

    def __init__(self, images, labels, crop, dtype):
        self.images, self.labels, self.crop, self.dtype = images, labels, crop, dtype

    def __len__(self):
        return len(self.images)

    def __getitem__(self, row):
        image = self.images[row]
        top = random.randrange(image.shape[0] - self.crop + 1)
        left = random.randrange(image.shape[1] - self.crop + 1)
        image = torch.from_numpy(image[top : top + self.crop, left : left + self.crop])
        pixels = image.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format)
        pixels = augment(
            pixels, random.random() < FLIP, random.uniform(-BRIGHTNESS, BRIGHTNESS), random.uniform(*CONTRAST)
        )
        return pixels.to(self.dtype), self.labels[row]


def augment(pixels, flip, brightness, contrast):
    """Flip, brighten, change the contrast of, clamp and standardize a cropped image, float32 [C, h, w]."""
    if flip:
        pixels = pixels.flip(-1)
    pixels = pixels + brightness
    mean = pixels.mean((1, 2), keepdim=True)
    pixels = pixels.sub_(mean).mul_(contrast).add_(mean).clamp_(0.0, 255.0)
    pixels.sub_(pixels.mean())
    root = pixels.numel() ** 0.5
    # A norm of the centred pixels: torch.std takes several times as long on a CPU.
    return pixels.div_(max(float(pixels.norm()), 1.0) / root)


SCALE, RATIO, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10
MEAN = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
DEVIATION = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)


class Files(Dataset):
    """JPEG files, uint8 [bytes] end to end, as (RandomResizedCrop, flipped, normalized [3, crop, crop], label)."""

    def __init__(self, stored, offsets, labels, crop, dtype):
        self.stored, self.offsets, self.labels, self.crop, self.dtype = stored, offsets, labels, crop, dtype

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        file = self.stored[self.offsets[row] : self.offsets[row + 1]]
        image = Image.open(io.BytesIO(file.tobytes())).convert("RGB")
        image = image.crop(region(*image.size)).resize((self.crop, self.crop), Image.Resampling.BILINEAR)
        if random.random() < FLIP:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).to(torch.float32)
        return pixels.sub_(MEAN).div_(DEVIATION).to(self.dtype).contiguous(), self.labels[row]


def region(width, height):
    """Return a box (left, top, right, bottom) as torchvision's RandomResizedCrop draws it."""
    for _ in range(TRIES):
        area = width * height * random.uniform(*SCALE)
        ratio = math.exp(random.uniform(*map(math.log, RATIO)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            return left, top, left + w, top + h
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def open_batches(case):
    """Yield (images, labels), epoch after epoch."""
    labels = torch.from_numpy(np.load(case["labels"]).astype(np.int64))
    dtype = getattr(torch, case["dtype"])
    dataset: Files | Images
    if "offsets" in case:
        dataset = Files(np.load(case["images"]), np.load(case["offsets"]), labels, case["crop"], dtype)
    else:
        dataset = Images(np.load(case["images"]), labels, case["crop"], dtype)
    loader = DataLoader(dataset, batch_size=case["batch"], shuffle=True, drop_last=True, **loader_settings(case))
    return endless(loader, case)
