"""Augmentation: frozen settings, and the random parameters that (seed, phase, epoch, sample id) give a sample."""

from fastload.augment.colors import Erase, Jitter, PaperColor
from fastload.augment.crops import CenterCrop, RandomCrop, RandomResizedCrop
from fastload.augment.mixing import Mix
from fastload.augment.normalizing import MeanStd, PerImage
from fastload.augment.recipe import Augment, checked
from fastload.augment.schedule import Schedule

__all__ = [
    "Augment",
    "CenterCrop",
    "Erase",
    "Jitter",
    "MeanStd",
    "Mix",
    "PaperColor",
    "PerImage",
    "RandomCrop",
    "RandomResizedCrop",
    "Schedule",
    "checked",
]
