"""Map-style datasets from Python: torch's (image, label) pairs or Hugging Face's dicts, read in one pass."""

from __future__ import annotations

import sys
from collections.abc import Container, Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image

from fastload.common.text import storable
from fastload.errors import DataError, UsageError
from fastload.packed.hdf5_reading import MOST_CHANNELS
from fastload.packed.labels import as_label, as_labels, label_faults
from fastload.sources.base import Channels, NumberedNames, Sample, Source

_IMAGE_KEYS = ("image", "img", "pixel_values", "pixels", "images", "x")
_LABEL_KEYS = ("label", "labels", "fine_label", "target", "targets", "class", "y")
_NO_LABEL = np.empty(0)


class MapDataset(Source):
    """Anything with `len()` and `[]` that yields an image and a label.

    Arguments:
        dataset: yields pairs, or dicts. An image is a PIL image, an encoded file's bytes, a uint8 array [H, W] or
            [H, W, C], or a torch tensor [H, W] or [C, H, W], uint8 or floating point in [0, 1]; a label is a number or
            an array of numbers.
        split: for a dict of datasets, which one.
        images, labels: the keys, for dicts with unusual ones.
        channels: as `pack` is given them.

    `labels` is there once `read` has ended, and so is `left_out`, the other keys of the dicts. An item that is anything
    else, or cannot be had, is yielded as a DataError that says why.
    """

    kind = "dataset"

    def __init__(
        self,
        dataset: Any,
        split: str | None,
        images: str | None,
        labels: str | None,
        channels: Channels = None,
        unlabelled: bool = False,
    ) -> None:
        super().__init__()
        self._channels = range(1, MOST_CHANNELS + 1) if channels == "as-is" else (1, 2, 3, 4, channels)
        if isinstance(dataset, Mapping):
            listed = ", ".join(map(str, dataset))
            if split is None:
                raise UsageError(f"the dataset has the splits {listed}; name one with split=")
            if split not in dataset:
                raise UsageError(f"the dataset has no split '{split}'; its splits: {listed}")
            dataset = dataset[split]
            self.details = {"split": split}
        elif split is not None:
            raise UsageError("split= is for a dict of datasets; give the dataset of that split itself")
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise UsageError(
                f"a {type(dataset).__name__} cannot be packed: give a path, or a map-style dataset (with len() and [])"
            )
        self._dataset, self._keys = dataset, (images, labels)
        self.names = NumberedNames(len(dataset), lambda index: f"item {index}")
        self._unlabelled = unlabelled
        self.classes = () if unlabelled else _class_names(dataset, labels)
        self._others: dict[str, None] = {}

    def read(self) -> Iterator[tuple[int, Sample]]:
        labels: list[np.ndarray] = []
        first = _NO_LABEL
        for index in range(len(self.names)):
            label, sample = self._item(index)
            if label is not _NO_LABEL and first is not _NO_LABEL and label.shape != first.shape:
                sample = DataError(f"has a label of shape {label.shape}, where the first one has {first.shape}")
                label = _NO_LABEL
            first = label if first is _NO_LABEL else first
            labels.append(label)
            yield index, sample
        self.left_out = [f"{', '.join(self._others)} of the items"] if self._others else []
        if self._unlabelled:
            return
        # Of items that could not be read, and will be skipped, labels are zeros.
        blank = np.zeros_like(first) if first is not _NO_LABEL else np.int64(0)
        stacked = np.stack([blank if label is _NO_LABEL else label for label in labels])
        self.labels = as_labels(stacked, "the dataset's labels")

    def _item(self, index: int) -> tuple[np.ndarray, Sample]:
        """Return an item's label and image, or no label and why."""
        try:
            item = self._dataset[index]
        except Exception as error:  # the dataset's own code may raise anything
            reason = " ".join(str(error).split())
            return _NO_LABEL, DataError(f"cannot be read ({type(error).__name__}: {reason})")
        try:
            if self._unlabelled:
                return _NO_LABEL, as_pixels(self._image(item), self._channels)
            image, given = self._parts(item)
            label = as_label(given, "its label")
            for fault in label_faults(as_labels(label[None], "its label"), self.classes):
                raise DataError(f"has label {label.tolist()}, {fault.reason}")
            return label, as_pixels(image, self._channels)
        except DataError as error:
            return _NO_LABEL, error

    def _image(self, item: Any) -> Any:
        """Return an item's image alone; the item may be one."""
        if isinstance(item, Mapping):
            key = _key(item, self._keys[0], _IMAGE_KEYS, "images")
            self._others.update((f"'{storable(str(other))}'", None) for other in item if other != key)
            return item[key]
        return item[0] if isinstance(item, tuple | list) and item else item

    def _parts(self, item: Any) -> tuple[Any, Any]:
        if isinstance(item, Mapping):
            image = _key(item, self._keys[0], _IMAGE_KEYS, "images")
            label = _key(item, self._keys[1], _LABEL_KEYS, "labels")
            self._others.update((f"'{storable(str(key))}'", None) for key in item if key not in (image, label))
            return item[image], item[label]
        if isinstance(item, tuple | list) and len(item) == 2:
            return item[0], item[1]
        raise DataError(f"is {_describe(item)}, not a pair (image, label) or a dict")


def _key(item: Mapping[str, Any], key: str | None, usual: tuple[str, ...], argument: str) -> str:
    for name in (key,) if key is not None else usual:
        if name in item:
            return name
    listed = ", ".join(map(str, item))
    raise DataError(f"has the keys {listed}; name the right one with {argument}=")


def as_pixels(image: Any, channels: Container[int | None] = (1, 2, 3, 4)) -> bytes | np.ndarray | Image.Image:
    """Return uint8 [H, W] or [H, W, C], the PIL image itself or a file's bytes; DataError says what cannot be one."""
    if isinstance(image, Image.Image | bytes):
        return image
    if isinstance(image, Mapping) and isinstance(image.get("bytes"), bytes):  # Hugging Face's Image(decode=False)
        return image["bytes"]
    torch = sys.modules.get("torch")  # a tensor cannot come from a torch that was never imported
    if torch is not None and isinstance(image, torch.Tensor):
        return _tensor_pixels(image, channels)
    if isinstance(image, np.ma.MaskedArray) and np.ma.getmaskarray(image).any():
        raise DataError("has an image of which pixels are masked; fill them, or leave the item out")
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and _is_image_shape(image.shape, -1, channels):
        return np.asarray(image)
    if image is None:
        raise DataError("has no image (it is None)")
    raise DataError(
        f"has an image that is {_describe(image)}; expected a PIL image, a uint8 array [H, W, C] or a tensor [C, H, W]"
        + _channels_mend(image, -1)
    )


def _tensor_pixels(tensor: Any, channels: Container[int | None]) -> np.ndarray:
    array = tensor.detach().cpu()
    if not _is_image_shape(tuple(array.shape), 0, channels) or not (
        array.is_floating_point() or str(array.dtype) == "torch.uint8"
    ):
        raise DataError(
            f"has an image that is {_describe(tensor)}; expected a tensor [C, H, W], uint8 or floating point in [0, 1]"
            + _channels_mend(array, 0)
        )
    if array.is_floating_point():
        values = array.double().numpy()
        low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
        if not 0 <= low <= high <= 1:
            raise DataError(
                f"has values from {low:.3g} to {high:.3g}; a floating-point tensor must lie in [0, 1], so leave "
                "normalization out of its transforms"
            )
        pixels = np.rint(values * 255).astype(np.uint8)
    else:
        pixels = array.numpy()
    return pixels.transpose(1, 2, 0) if pixels.ndim == 3 else pixels


def _is_image_shape(shape: tuple[int, ...], channel_axis: int, channels: Container[int | None]) -> bool:
    return 0 not in shape and (len(shape) == 2 or (len(shape) == 3 and shape[channel_axis] in channels))


def _channels_mend(image: Any, channel_axis: int) -> str:
    shape = tuple(getattr(image, "shape", ()))
    if len(shape) != 3 or not 4 < shape[channel_axis] <= MOST_CHANNELS:
        return ""
    return f"; if {shape[channel_axis]} are its channels, channels={shape[channel_axis]} keeps them"


def _class_names(dataset: Any, label_key: str | None) -> list[str]:
    """Return the names that `.features` gives for the label (Hugging Face), or `.classes` (torchvision).

    Views such as torch's Subset and ConcatDataset have neither: what they are views of is asked.
    """
    features = getattr(dataset, "features", None)
    if isinstance(features, Mapping):
        for key in (label_key,) if label_key else _LABEL_KEYS:
            if key in features:
                return [storable(str(name)) for name in getattr(features[key], "names", None) or ()]
    names = getattr(dataset, "classes", None)
    if isinstance(names, list | tuple):
        # torchvision's ImageNet gives a tuple of synonyms for each class.
        words = (", ".join(map(str, name)) if isinstance(name, list | tuple) else str(name) for name in names)
        return [storable(name) for name in words]
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(dataset, torch.utils.data.Subset):
        return _class_names(dataset.dataset, label_key)
    if torch is not None and isinstance(dataset, torch.utils.data.ConcatDataset):
        parts = [_class_names(part, label_key) for part in dataset.datasets]
        return parts[0] if all(part == parts[0] for part in parts) else []
    inner = getattr(getattr(dataset, "dataset", None), "classes", None)  # a view of somebody's own
    return [storable(str(name)) for name in inner] if isinstance(inner, list | tuple) else []


def _describe(value: Any) -> str:
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    if dtype is not None and shape is not None:
        return f"{type(value).__name__} {dtype} {list(shape)}"
    return f"a {type(value).__name__}"
