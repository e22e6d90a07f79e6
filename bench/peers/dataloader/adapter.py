"""torch's DataLoader over arrays in memory: the work done a sample at a time, as its users write it, in two processes.

Settings after its documentation and the performance tuning guide: workers that persist, more than one batch ahead of
each, pinned memory and non-blocking copies on CUDA.
"""

import random

import numpy as np
import torch
from peer_loading import MADE_AHEAD, endless, loader_settings
from torch.utils.data import DataLoader, Dataset

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


def open_batches(case):
    """Yield (images, labels), epoch after epoch."""
    labels = torch.from_numpy(np.load(case["labels"]).astype(np.int64))
    dataset = Images(np.load(case["images"]), labels, case["crop"], getattr(torch, case["dtype"]))
    loader = DataLoader(dataset, batch_size=case["batch"], shuffle=True, drop_last=True, **loader_settings(case))
    return endless(loader, case)
