"""The second edition of the augmentation written a second time, step by step, in plain Python, Pillow and float64."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image
from reference import M32, philox

from fastload.augment import Augment, CenterCrop, Jitter, MeanStd, PaperColor, PerImage, RandomCrop, RandomResizedCrop

GREY = np.array([0.299, 0.587, 0.114])
YIQ = np.array([GREY, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


def words(sample: int, epoch: int, seed: int, phase: int, block: int, view: int = 0) -> list[int]:
    """The four words of a block of a sample's parameters."""
    last = view * 2**20 + block // 16 * 2**8 + phase * 16 + block % 16
    return philox((sample & M32, sample >> 32, epoch, last), (seed & M32, seed >> 32))


def unit(word: int) -> float:
    return (word >> 8) * 2.0**-24


def uniform(word: int, low: float, high: float) -> float:
    return low + unit(word) * (high - low)


def random_part(height, width, scale, ratio, tries):
    """(top, left, h, w) by torchvision's RandomResizedCrop.get_params, with the words of ten tries."""
    for area_word, ratio_word, top, left in tries:
        area = height * width * uniform(area_word, *scale)
        aspect = math.exp(uniform(ratio_word, math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return top * (height - h + 1) >> 32, left * (width - w + 1) >> 32, h, w
    w, h = width, height
    if width / height < ratio[0]:
        h = round(w / ratio[0])
    elif width / height > ratio[1]:
        w = round(h * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """By Pillow: across and down, each rounded to levels; which comes first is Pillow 13's own choice."""
    planes = [Image.fromarray(image[:, :, c]).resize((width, height), Image.BILINEAR) for c in range(image.shape[2])]
    return np.stack([np.asarray(plane) for plane in planes], axis=2)


def cut(image: np.ndarray, augment: Augment, drawn) -> np.ndarray:
    """The crop of an image, uint8 [h, w, C], not yet mirrored; `drawn(block)` gives words."""
    crop, (h, w) = augment.crop, augment.sides
    if isinstance(crop, RandomResizedCrop):
        tries = [drawn(block) for block in range(16, 26)]
        top, left, rows, columns = random_part(*image.shape[:2], crop.scale, crop.ratio, tries)
        return resized(image[top : top + rows, left : left + columns], h, w)
    if crop.resize is not None:
        short = min(image.shape[:2])
        image = resized(image, *((2 * side * crop.resize + short) // (2 * short) for side in image.shape[:2]))
    if isinstance(crop, RandomCrop) and crop.pad:
        image = np.pad(image, ((crop.pad,) * 2, (crop.pad,) * 2, (0, 0)), mode=crop.mode)
    room = image.shape[0] - h, image.shape[1] - w
    top, left = room[0] // 2, room[1] // 2
    if not isinstance(crop, CenterCrop):
        top, left = (word * (space + 1) >> 32 for word, space in zip(drawn(0)[:2], room, strict=True))
    return image[top : top + h, left : left + w]


def float32_uniform(word, low, high):
    low, high = np.float32(low), np.float32(high)
    return float(np.float32(float(low) + unit(word) * float(np.float32(high - low))))


def jittered(values: np.ndarray, jitter: Jitter, drawn) -> np.ndarray:
    """Brightness, contrast, saturation, hue, one after the other; values brought back to 0…255 at the end."""
    if unit(drawn(2)[3]) >= jitter.probability:
        return values

    def factor(word, x):
        return float32_uniform(word, max(0.0, 1 - x), 1 + x)

    grey = GREY if values.shape[2] == 3 else np.ones(1)
    values = values * factor(drawn(0)[3], jitter.brightness)
    contrast = factor(drawn(1)[0], jitter.contrast)
    values = values * contrast + (values @ grey).mean() * (1 - contrast)
    if values.shape[2] == 3:
        saturation = factor(drawn(1)[1], jitter.saturation)
        values = values * saturation + (values @ grey)[..., None] * (1 - saturation)
        turn = 2 * math.pi * float32_uniform(drawn(1)[2], -jitter.hue, jitter.hue)
        spun = np.array([[1, 0, 0], [0, math.cos(turn), math.sin(turn)], [0, -math.sin(turn), math.cos(turn)]])
        values = values @ (np.linalg.inv(YIQ) @ spun @ YIQ).T
    return np.clip(values, 0, 255)


def erased_box(augment: Augment, drawn):
    erase, (height, width) = augment.erase, augment.sides
    chance, y, x, _ = drawn(2)
    if unit(chance) >= erase.probability:
        return None
    a0, r0, a1, r1 = drawn(3)
    for a, r in ((a0, r0), (a1, r1)):
        area = height * width * uniform(a, *erase.scale)
        ratio = math.exp(uniform(r, math.log(erase.ratio[0]), math.log(erase.ratio[1])))
        h, w = max(1, round(math.sqrt(area * ratio))), max(1, round(math.sqrt(area / ratio)))
        if h <= height and w <= width:
            break
    h, w = min(h, height), min(w, width)
    return y * (height - h + 1) >> 32, x * (width - w + 1) >> 32, h, w


def augmented(image, augment: Augment, sample, epoch, *, seed, phase, view=0, levels=False):
    """(values float64 [h, w, C], the divisor that magnifies errors) of an image; `levels` for torch.uint8."""

    def drawn(block):
        return words(sample, epoch, seed, phase, block, view)

    values = cut(image, augment, drawn).astype(np.float64)
    mirrored = False
    if augment.flip == "alternating":
        first = unit(words(sample, 0, seed, phase, 0, view)[2]) < 0.5
        mirrored = first != bool(epoch % 2)
    elif augment.flip:
        mirrored = unit(drawn(0)[2]) < augment.flip
    if mirrored:
        values = values[:, ::-1]
    color = augment.color
    if isinstance(color, PaperColor):
        k = float32_uniform(drawn(1)[0], *color.contrast)
        means = values.mean(axis=(0, 1))
        half = np.float32(color.brightness)
        values = (values - means) * k + means + float32_uniform(drawn(0)[3], -half, half)
        if color.clamp:
            values = np.clip(values, 0, 255)
    elif isinstance(color, Jitter):
        values = jittered(values, color, drawn)
    if augment.grayscale and unit(drawn(1)[3]) < augment.grayscale:
        values = np.repeat((values @ GREY)[..., None], 3, axis=2)
    divisor = 1.0
    normalize = augment.normalize
    if isinstance(normalize, PerImage):
        spread, count = values.std(), values.size
        divisor = max(spread, count**-0.5) if normalize.divisor == "stddev" else max(spread**2, 1 / count)
        values = (values - values.mean()) / divisor
    elif isinstance(normalize, MeanStd):
        divisor = 255 * min(normalize.std)
        values = (values / 255 - np.array(normalize.mean)) / np.array(normalize.std)
    elif levels:
        values = np.floor(np.clip(values, 0, 255) + 0.5)
    else:
        divisor = 255.0
        values = values / 255
    if augment.erase:
        box = erased_box(augment, drawn)
        if box:
            top, left, h, w = box
            value = augment.erase.value
            values[top : top + h, left : left + w] = math.floor(value + 0.5) if levels else value
    return values, divisor
