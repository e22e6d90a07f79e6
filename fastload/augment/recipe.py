"""`Augment`: all that happens to each image, as frozen settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fastload.augment.colors import Erase, Jitter, PaperColor, share
from fastload.augment.crops import LARGEST_REDUCTION, CenterCrop, Crop, RandomCrop, RandomResizedCrop
from fastload.augment.normalizing import CIFAR10, IMAGENET, LEVELS, MeanStd, PerImage
from fastload.common.arguments import integer
from fastload.errors import UsageError
from fastload.kernels.resampling import resized_side

EVALUATION_SHARE = 0.875
"""The output's share of the side that images are resized to before the centre is cropped: 224 of 256 pixels."""

_CENTRE = CenterCrop()


@dataclass(frozen=True)
class Augment:
    """What happens to each image, in this order; each step is off unless it is named, and nothing else is random.

    Arguments:
        size: side, or (height, width), of the output in pixels.
        crop: what is cut out: `CenterCrop`, `RandomCrop` or `RandomResizedCrop`.
        flip: probability of mirroring left–right; or "alternating": at random in the first epoch, and in each
            epoch after it the other way round than in the one before (airbench).
        color: `Jitter` or `PaperColor`.
        grayscale: probability of becoming grey, in three equal channels; images of three channels only.
        erase: `Erase`, a random rectangle that is set to one value, after normalizing.
        normalize: `MeanStd`, `PerImage`, or None: floats are then 0…1, and `dtype=torch.uint8` gives 0…255.

    Raises UsageError for settings out of range, with the offending value. docs/determinism.md, docs/recipes.md.
    """

    size: int | tuple[int, int]
    crop: Crop = _CENTRE
    flip: float | Literal["alternating"] = 0.0
    color: Jitter | PaperColor | None = None
    grayscale: float = 0.0
    erase: Erase | None = None
    normalize: MeanStd | PerImage | None = None

    def __post_init__(self) -> None:
        # Plain numbers, whatever NumPy or a configuration gave: they go into checkpoints.
        object.__setattr__(self, "size", _size(self.size))
        for name, kinds, what in (
            ("crop", (CenterCrop, RandomCrop, RandomResizedCrop), "a CenterCrop, RandomCrop or RandomResizedCrop"),
            ("color", (Jitter, PaperColor, type(None)), "a Jitter, a PaperColor or None"),
            ("erase", (Erase, type(None)), "an Erase or None"),
            ("normalize", (MeanStd, PerImage, type(None)), "a MeanStd, a PerImage or None"),
        ):
            if not isinstance(getattr(self, name), kinds):
                raise UsageError(f"{name}={getattr(self, name)!r}; it must be {what}")
        if self.flip != "alternating":
            object.__setattr__(self, "flip", share("flip", self.flip))
        object.__setattr__(self, "grayscale", share("grayscale", self.grayscale))
        if self.resize is not None and self.resize < min(self.sides):
            raise UsageError(f"resize={self.resize}; it must be at least the output's {min(self.sides)} pixels")

    @property
    def sides(self) -> tuple[int, int]:
        """(height, width) of the output in pixels."""
        return self.size  # type: ignore[return-value]  # __post_init__ made it a pair

    @property
    def resize(self) -> int | None:
        """What the shorter side of images is brought to before they are cropped; None where they come as they are."""
        return None if isinstance(self.crop, RandomResizedCrop) else self.crop.resize

    @property
    def may_resize(self) -> bool:
        """Whether there are images that must be resized."""
        return isinstance(self.crop, RandomResizedCrop) or self.resize is not None

    # -- recipes ---------------------------------------------------------------------------------------------------

    @classmethod
    def paper(
        cls,
        size: int | tuple[int, int],
        *,
        resize: int | None = None,
        flip: float = 0.5,
        divisor: Literal["stddev", "variance"] = "stddev",
    ) -> Augment:
        """Return the paper's augmentation (section 3): crop, flip, brightness, contrast, per-image standardization.

        Arguments:
            size: of the output; the paper crops 24 of 32 pixels.
            resize: bring the shorter side to so many pixels first.
            flip: probability of mirroring; 0 for digits, say.
            divisor: of the standardization, "stddev" or "variance".
        """
        crop = RandomCrop(resize=resize)
        return cls(size, crop=crop, flip=flip, color=PaperColor(), normalize=PerImage(divisor))

    @classmethod
    def imagenet(cls, size: int | tuple[int, int] = 224, *, scale: tuple[float, float] = (0.08, 1.0)) -> Augment:
        """Return ImageNet's usual one: RandomResizedCrop, flip, ImageNet's mean and deviation.

        Arguments:
            size: of the output.
            scale: of the crop's area; ffcv-imagenet and torchvision take (0.08, 1), others (0.25, 1) or (0.35, 1).
        """
        return cls(size, crop=RandomResizedCrop(scale), flip=0.5, normalize=IMAGENET)

    @classmethod
    def cifar10(cls, size: int | tuple[int, int] = 32, *, pad: int = 4) -> Augment:
        """Return CIFAR-10's usual one: four pixels of padding, random crop, flip, CIFAR-10's mean and deviation.

        Arguments:
            size: of the output.
            pad: pixels added at each edge, by reflection.
        """
        return cls(size, crop=RandomCrop(pad=pad), flip=0.5, normalize=CIFAR10)

    def at(self, size: int | tuple[int, int]) -> Augment:
        """Return the same for another output size, as progressive resizing wants it.

        A `resize` follows in proportion to the shorter sides; it is at least the longer side of an output that is no
        square.
        """
        height, width = _size(size)
        crop = self.crop
        if not isinstance(crop, RandomResizedCrop) and crop.resize is not None:
            side = round(crop.resize * min(height, width) / min(self.sides))
            crop = dataclasses.replace(crop, resize=max(side, height, width) if height != width else side)
        return dataclasses.replace(self, size=(height, width), crop=crop)

    def evaluation(self) -> Augment:
        """Return what test data get: the centre at the same size, normalized alike, nothing random.

        For `RandomResizedCrop` the shorter side is first brought to 8/7 of the output's: 256 pixels for 224.
        """
        resize = self.resize
        if isinstance(self.crop, RandomResizedCrop):
            resize = round(min(self.sides) / EVALUATION_SHARE)
        return Augment(self.sides, crop=CenterCrop(resize), normalize=self.normalize)

    # -- checks ----------------------------------------------------------------------------------------------------

    def check(self, shape: tuple[int, int, int], name: str) -> None:
        """Raise UsageError unless images of `shape` (H, W, C) in the file `name` can be augmented so."""
        self.check_channels(shape[2], name)
        problem = self.misfit(shape[:2])
        if problem:
            raise UsageError(f"the images of {name} are {problem}")

    def check_channels(self, channels: int, name: str) -> None:
        """Raise UsageError unless images of so many channels in the file `name` can be augmented so."""
        color, normalize = self.color, self.normalize
        wants_three = self.grayscale > 0 or (isinstance(color, Jitter) and color.needs_three_channels)
        if wants_three and channels != 3:
            what = "grayscale=" if self.grayscale > 0 else "Jitter's saturation= and hue="
            raise UsageError(f"{what} is for images of 3 channels; those of {name} have {channels}")
        if isinstance(color, Jitter) and channels not in (1, 3):
            raise UsageError(f"Jitter is for images of 1 or 3 channels; those of {name} have {channels}")
        if isinstance(normalize, MeanStd) and normalize.channels not in (None, channels):
            raise UsageError(
                f"MeanStd has numbers for {normalize.channels} channels; the images of {name} have {channels}"
            )

    def misfit(self, sides: tuple[int, int]) -> str | None:
        """Return what is wrong with images of (height, width) pixels that the crop does not fit into, or None."""
        height, width = self.sides
        crop = self.crop
        if isinstance(crop, RandomResizedCrop):
            if max(sides[0] / height, sides[1] / width) <= LARGEST_REDUCTION:
                return None
            return (
                f"{sides[0]}×{sides[1]} pixels, more than {LARGEST_REDUCTION} times size={height}×{width}; "
                "choose a larger size"
            )
        room = resized(sides, crop.resize)
        before = "" if room == sides else f" resized from {sides[0]}×{sides[1]}"
        found = f"{room[0]}×{room[1]} pixels{before}"
        pad = crop.pad if isinstance(crop, RandomCrop) else 0
        if pad and crop.mode == "reflect" and pad >= min(room):  # type: ignore[union-attr]  # only RandomCrop pads
            return f'{found}, too small to reflect pad={pad} pixels; choose a smaller pad, or mode="constant"'
        if height > room[0] + 2 * pad or width > room[1] + 2 * pad:
            padded = f" with pad={pad}" if pad else ""
            larger = "a larger pad" if pad else f"resize={max(height, width)} to enlarge"
            return f"{found}{padded}, too small for size={height}×{width}; choose a smaller size, or {larger}"
        if min(sides) > LARGEST_REDUCTION * min(room):
            return f"{found}, reduced more than {LARGEST_REDUCTION} times; choose a larger resize"
        return None

    def resizes(self, sides: tuple[int, int]) -> bool:
        """Whether images of (height, width) pixels must be resized."""
        if isinstance(self.crop, RandomResizedCrop):
            return True
        return resized(sides, self.crop.resize) != tuple(sides)

    def state(self) -> dict[str, Any]:
        """Return the settings as JSON-able plain values, for checkpoints."""
        return {"size": list(self.sides), **{name: _plain(getattr(self, name)) for name in _STEPS}}


_STEPS = ("crop", "flip", "color", "grayscale", "erase", "normalize")


def resized(sides: tuple[int, int], resize: int | None) -> tuple[int, int]:
    """Return (height, width) once the shorter side is `resize` pixels: the longer one is rounded half up."""
    if resize is None:
        return sides[0], sides[1]
    height, width = (resized_side(side, min(sides), resize) for side in sides)
    return height, width


def first_edition(values: Mapping[str, Any]) -> Augment:
    """Return the augmentation that a state of format 1 holds.

    Raises KeyError, TypeError or UsageError for one that is damaged.
    """
    centre, resize = values["centre"], values["resize"]
    brightness, contrast = values["brightness"], tuple(values["contrast"])
    standardize = values["standardize"]
    return Augment(
        tuple(values["crop"]),
        crop=CenterCrop(resize) if centre else RandomCrop(resize=resize),
        flip=values["flip"],
        color=PaperColor(brightness, contrast, values["clamp"]),
        normalize=LEVELS if standardize is None else PerImage(standardize),
    )


def checked(augment: object) -> Augment:
    """Return what callers gave as `augment=`; raise UsageError, saying what it must be, unless it is an Augment."""
    if not isinstance(augment, Augment):
        raise UsageError(f"augment={augment!r}; it must be an Augment, such as Augment.paper(24)")
    return augment


def _size(value: Any) -> tuple[int, int]:
    """Return (height, width) as plain ints; raise UsageError unless it is a side or a pair of them."""
    pair = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value, value)
    try:
        sides = tuple(integer("size", side, 1) for side in pair)
    except UsageError:
        sides = ()
    if len(sides) != 2:
        raise UsageError(f"size={value!r}; it is a side or (height, width) in pixels, at least 1")
    return sides


def _plain(step: Any) -> Any:
    """Return a step as a dict with its name, or a plain value as it is."""
    if not dataclasses.is_dataclass(step):
        return step
    values = dataclasses.asdict(step)  # type: ignore[arg-type]  # an instance
    return {"name": type(step).__name__} | {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
