"""Map-style datasets from Python: torch's (image, label) pairs or Hugging Face's dicts, read in one pass."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image

from fastload.errors import DataError, UsageError
from fastload.sources.base import NumberedNames, Sample, Source
from fastload.text import storable

_IMAGE_KEYS = ("image", "img", "pixel_values", "pixels", "images", "x")
_LABEL_KEYS = ("label", "labels", "fine_label", "target", "targets", "class", "y")


class MapDataset(Source):
    """Anything with `len()` and `[]` that yields an image and a label.

    Arguments:
        dataset: yields pairs, or dicts. An image is a PIL image, a uint8 array [H, W] or [H, W, C], or a torch
            tensor [H, W] or [C, H, W], uint8 or floating point in [0, 1]; a label is a number or an array of numbers.
        split: for a dict of datasets, which one.
        images, labels: the keys, for dicts with unusual ones.

    `labels` is there once `read` has ended. Raises DataError, with the index, for anything else that it yields.
    """

    kind = "dataset"

    def __init__(self, dataset: Any, split: str | None, images: str | None, labels: str | None) -> None:
        super().__init__()
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
        self.classes = _class_names(dataset, labels)

    def read(self) -> Iterator[tuple[int, Sample]]:
        labels: list[np.ndarray | None] = []
        for index in range(len(self.names)):
            try:
                item = self._dataset[index]
            except Exception as error:  # the dataset's own code may raise anything
                labels.append(None)
                reason = " ".join(str(error).split())[:120]
                yield index, DataError(f"cannot be read ({type(error).__name__}: {reason})")
                continue
            image, label = self._parts(item, index)
            labels.append(_label(label, index))
            yield index, as_pixels(image, index)
        self.labels = _stack(labels)

    def _parts(self, item: Any, index: int) -> tuple[Any, Any]:
        if isinstance(item, Mapping):
            return _pick(item, self._keys[0], _IMAGE_KEYS, "images", index), _pick(
                item, self._keys[1], _LABEL_KEYS, "labels", index
            )
        if isinstance(item, tuple | list) and len(item) == 2:
            return item[0], item[1]
        raise DataError(f"item {index} of the dataset is {_describe(item)}, not a pair (image, label) or a dict")


def _pick(item: Mapping[str, Any], key: str | None, usual: tuple[str, ...], argument: str, index: int) -> Any:
    for name in (key,) if key is not None else usual:
        if name in item:
            return item[name]
    listed = ", ".join(map(str, item))
    raise DataError(f"item {index} of the dataset has the keys {listed}; name the right one with {argument}=")


def as_pixels(image: Any, index: int) -> np.ndarray | Image.Image:
    """Return uint8 [H, W] or [H, W, C], or the PIL image itself; DataError names what cannot be one."""
    if isinstance(image, Image.Image):
        return image
    torch = sys.modules.get("torch")  # a tensor cannot come from a torch that was never imported
    if torch is not None and isinstance(image, torch.Tensor):
        return _tensor_pixels(image, index)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and _is_image_shape(image.shape, -1):
        return image
    raise DataError(
        f"item {index} of the dataset has an image that is {_describe(image)}; expected a PIL image, a uint8 array "
        "[H, W, C] or a tensor [C, H, W]"
    )


def _tensor_pixels(tensor: Any, index: int) -> np.ndarray:
    array = tensor.detach().cpu()
    if not _is_image_shape(tuple(array.shape), 0) or not (
        array.is_floating_point() or str(array.dtype) == "torch.uint8"
    ):
        raise DataError(
            f"item {index} of the dataset has an image that is {_describe(tensor)}; expected a tensor [C, H, W], uint8 "
            "or floating point in [0, 1]"
        )
    if array.is_floating_point():
        values = array.double().numpy()
        low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
        if not 0 <= low <= high <= 1:
            raise DataError(
                f"item {index} of the dataset has values from {low:.3g} to {high:.3g}; a floating-point tensor must "
                "lie in [0, 1], so leave normalization out of its transforms"
            )
        pixels = np.rint(values * 255).astype(np.uint8)
    else:
        pixels = array.numpy()
    return pixels.transpose(1, 2, 0) if pixels.ndim == 3 else pixels


def _is_image_shape(shape: tuple[int, ...], channel_axis: int) -> bool:
    return 0 not in shape and (len(shape) == 2 or (len(shape) == 3 and shape[channel_axis] in (1, 3, 4)))


def _label(label: Any, index: int) -> np.ndarray:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(label, torch.Tensor):
        label = label.detach().cpu().numpy()
    try:
        array = np.asarray(label)
    except ValueError:
        array = np.asarray(None)
    if array.dtype.kind not in "iufb":
        raise DataError(f"item {index} of the dataset has a label that is {_describe(label)}; expected numbers")
    return array


def _stack(labels: list[np.ndarray | None]) -> np.ndarray:
    """Return labels [N, ...]; those of items that could not be read (and will be skipped) are zeros."""
    known = [label for label in labels if label is not None]
    if not known:
        return np.zeros(len(labels), np.int64)
    for index, label in enumerate(labels):
        if label is not None and label.shape != known[0].shape:
            raise DataError(
                f"item {index} of the dataset has a label of shape {label.shape}, the first one {known[0].shape}"
            )
    blank = np.zeros_like(known[0])
    return np.stack([blank if label is None else label for label in labels])


def _class_names(dataset: Any, label_key: str | None) -> list[str]:
    features = getattr(dataset, "features", None)
    if isinstance(features, Mapping):
        for key in (label_key,) if label_key else _LABEL_KEYS:
            names = getattr(features.get(key), "names", None)
            if names:
                return [storable(str(name)) for name in names]
    names = getattr(dataset, "classes", None) or getattr(getattr(dataset, "dataset", None), "classes", None)
    return [storable(str(name)) for name in names] if isinstance(names, list | tuple) else []


def _describe(value: Any) -> str:
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    if dtype is not None and shape is not None:
        return f"{type(value).__name__} {dtype} {list(shape)}"
    return f"a {type(value).__name__}"
