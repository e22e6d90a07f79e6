"""Batched torch operations on a resident uint8 set, in the way of KellerJordan/cifar10-airbench, here for more steps.

Its ways: the whole set lives on the device; images are flipped by a mask; crops are taken by looping over the possible
shifts, rows first and columns then, and moving all images with that shift at once; an epoch is augmented at once and
batches are gathered from it by a random permutation. These are ways for a GPU. Where others may be faster (a batch at
a time, as an epoch does not fit a CPU's caches; a slice an image, where images are large), both are tried at the start
and the faster one is kept.
"""

import time
from functools import partial

import numpy as np
import torch
from peer_augmentation import draw, recolour

AHEAD = 0
LEAVES_OUT: dict[str, str] = {}

MOST_BYTES = 1 << 30
"""An epoch whose float32 pixels take more is augmented a batch at a time."""


def flip_some(images, flips):
    """Mirror, in place, the images [B, C, H, W] where `flips` [B] is true; returns them."""
    chosen = flips.nonzero()[:, 0]
    return images.index_copy_(0, chosen, images.index_select(0, chosen).flip(-1))


def crop_by_shift(images, crop, tops, lefts):
    """Cut crop × crop pixels from every image [B, C, H, W], at `tops` and `lefts` [B]; a new tensor."""
    count, channels, height, width = images.shape
    rows = images.new_empty((count, channels, crop, width))
    for top in range(height - crop + 1):
        here = (tops == top).nonzero()[:, 0]
        rows.index_copy_(0, here, images[:, :, top : top + crop].index_select(0, here))
    cut = images.new_empty((count, channels, crop, crop))
    for left in range(width - crop + 1):
        here = (lefts == left).nonzero()[:, 0]
        cut.index_copy_(0, here, rows[..., left : left + crop].index_select(0, here))
    return cut


def crop_by_image(images, crop, tops, lefts):
    """`crop_by_shift` by a slice for each image."""
    places = zip(images, tops.tolist(), lefts.tolist(), strict=True)
    return torch.stack([image[:, top : top + crop, left : left + crop] for image, top, left in places])


def augment(images, crop, tops, lefts, flips, brightness, contrast, dtype, cut=crop_by_shift):
    """Return the augmented images [B, C, crop, crop] of uint8 images [B, C, H, W]; the parameters are tensors [B]."""
    pixels = flip_some(cut(images, crop, tops, lefts), flips).to(torch.float32)
    return recolour(pixels, brightness, contrast, dtype)


def augment_randomly(images, crop, dtype, cut):
    """`augment` with parameters drawn for every image."""
    rooms = images.shape[2] - crop, images.shape[3] - crop
    tops, lefts, flips, brightness, contrast = draw(len(images), rooms, images.device)
    return augment(images, crop, tops, lefts, flips, brightness, contrast, dtype, cut)


def open_batches(case):
    """Yield (images, labels), epoch after epoch."""
    torch.set_num_threads(case["threads"])
    device, dtype = torch.device(case["device"]), getattr(torch, case["dtype"])
    images = torch.from_numpy(np.load(case["images"])).permute(0, 3, 1, 2).contiguous().to(device)
    labels = torch.from_numpy(np.load(case["labels"]).astype(np.int64)).to(device)
    batch, crop = case["batch"], case["crop"]
    ways = [partial(_by_batch, images, labels, batch, crop, dtype, cut) for cut in (crop_by_shift, crop_by_image)]
    if 4 * len(images) * images.shape[1] * crop**2 <= MOST_BYTES:
        ways.append(partial(_by_epoch, images, labels, batch, crop, dtype, crop_by_shift))
    return _endless(min(ways, key=lambda way: _seconds_of_epoch(way, device)))


def _by_epoch(images, labels, batch, crop, dtype, cut):
    augmented = augment_randomly(images, crop, dtype, cut)
    for rows in _orders(images, batch):
        yield augmented[rows], labels[rows]


def _by_batch(images, labels, batch, crop, dtype, cut):
    for rows in _orders(images, batch):
        yield augment_randomly(images[rows], crop, dtype, cut), labels[rows]


def _orders(images, batch):
    order = torch.randperm(len(images), device=images.device)
    return order[: len(order) // batch * batch].split(batch)


def _endless(way):
    while True:
        yield from way()


def _seconds_of_epoch(start, device):
    for _ in start():  # allocations and first calls do not count
        pass
    began = time.perf_counter()
    for _ in start():
        pass
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
