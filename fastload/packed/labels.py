"""What a label may be: one rule for every source, and the one check that `pack` and `verify` share."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fastload.common.text import plural
from fastload.errors import DataError

LARGEST_LABELS = 1 << 30
"""Bytes that all labels of a set may take: they are held in memory, and a damaged header can claim any number."""


class LabelFault(NamedTuple):
    """Rows whose labels no training can use, and why: "not finite"."""

    rows: np.ndarray
    reason: str


def as_labels(values: Any, where: str) -> np.ndarray:
    """Return labels [N, ...] as numbers in native byte order; class indices [N, 1] (or [N, 1, 1]) become [N].

    Arguments:
        values: an array, a tensor or a list.
        where: what they are, for messages, such as "train.npz: 'labels'".

    Raises DataError, naming the first culprit, for labels that are no numbers (text, None, of several lengths), that
    are masked, sparse or complex, or that a 64-bit signed integer cannot hold.
    """
    labels = _numbers(values, where)
    if not labels.ndim:
        raise DataError(
            f"{where} is one {labels.dtype} for the whole set; labels are an array of numbers, so save one for each "
            "sample"
        )
    if labels.dtype.kind in "iub" and labels.ndim > 1 and set(labels.shape[1:]) == {1}:
        return labels.reshape(-1)
    return labels


def as_label(value: Any, where: str) -> np.ndarray:
    """Return one sample's label, a number or an array of them, as `as_labels` returns those of a set."""
    return _numbers(value, where)


def check_label_size(shape: tuple[int, ...], dtype: np.dtype[Any], where: str) -> None:
    """Raise DataError for labels of which a header claims more bytes than they may take, before any is read."""
    size = math.prod(shape) * dtype.itemsize
    if size > LARGEST_LABELS:
        raise DataError(f"{where} has shape {shape}, {size:,} bytes; labels may take {LARGEST_LABELS:,}")


def label_faults(labels: np.ndarray, classes: Sequence[str]) -> list[LabelFault]:
    """Return the rows that no training can use: labels that are not finite, or not the number of a class.

    Arguments:
        labels: [N, ...], as `as_labels` gives them.
        classes: the class names. Without any, integers may be whatever the source has.
    """
    if labels.dtype.kind == "f":
        rows = np.flatnonzero(~np.isfinite(labels).reshape(len(labels), -1).all(axis=1))
        reason = "not finite"
    elif labels.dtype.kind in "iu" and labels.ndim == 1 and len(classes):
        rows = np.flatnonzero((labels < 0) | (labels >= len(classes)))
        reason = f"outside 0 to {len(classes) - 1:,}, the numbers of its classes"
    else:
        return []
    return [LabelFault(rows, reason)] if len(rows) else []


def checked_labels(file: Any) -> np.ndarray | None:
    """Return the labels of a packed file or set, None of an unlabelled one, as `verify` would pass them.

    Raises DataError, naming the first sample, for labels that no training can use.
    """
    if file.labels is None:
        return None
    for fault in label_faults(file.labels, file.classes):
        raise DataError(
            f"{file.path}: {plural(len(fault.rows), 'label')} {fault.reason}, the first that of "
            f"{file.name_of(int(fault.rows[0]))}; mend the source's labels, and pack it again"
        )
    return file.labels


def as_ids(values: Any, where: str) -> np.ndarray:
    """Return sample ids as int64 [N]. Raises DataError for what is no integer, is negative, or beyond 64 bits."""
    ids = _numbers(values, where)
    if ids.dtype.kind not in "iu" or ids.ndim != 1:
        raise DataError(f"{where} is {ids.dtype} {list(ids.shape)}; ids are integers [N]")
    if len(ids) and ids.min() < 0:
        raise DataError(f"{where}: row {int(ids.argmin())} is {ids.min()}; an id is not negative")
    return ids.astype(np.int64)


def _numbers(values: Any, where: str) -> np.ndarray:
    torch = sys.modules.get("torch")  # a tensor cannot come from a torch that was never imported
    if torch is not None and isinstance(values, torch.Tensor):
        if values.layout != torch.strided:
            raise DataError(f"{where} is a sparse tensor; give a dense one")
        kind = str(values.dtype)
        try:
            values = values.detach().cpu()
            values = values.float().numpy() if values.dtype == torch.bfloat16 else values.numpy()
        except (TypeError, RuntimeError, NotImplementedError) as error:  # float8, quantized, nested, on "meta"
            raise DataError(f"{where} is a tensor ({kind}) that NumPy cannot hold; give plain numbers") from error
    if isinstance(values, np.ma.MaskedArray):
        hidden = np.argwhere(np.ma.getmaskarray(values))
        if len(hidden):
            raise DataError(f"{where}: {_place(hidden[0])} is masked; fill it, or leave the sample out")
        values = values.data
    if hasattr(values, "tocsr"):
        raise DataError(f"{where} is sparse (a {type(values).__name__}); give a dense array")
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{where} has rows of several lengths; labels are numbers, as many for each sample") from error
    if (
        array.dtype.kind == "f"
        and isinstance(values, list)
        and values
        and all(isinstance(value, int) for value in values)
    ):
        raise DataError(f"{where}: an integer is beyond what a 64-bit signed integer holds")  # NumPy made floats of it
    if array.dtype.kind not in "iufb" or array.dtype.itemsize > 8:
        raise DataError(f"{where}{_strange(array)}")
    if array.dtype.kind == "u" and array.dtype.itemsize == 8:
        if array.size and int(array.max()) >= 1 << 63:
            place = _place(np.unravel_index(int(array.argmax()), array.shape))
            raise DataError(f"{where}: {place} is {int(array.max()):,}, beyond what a 64-bit signed integer holds")
        return array.astype(np.int64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _place(index: Any) -> str:
    """Return which element an index is: "row 3", "row 3, element [1]"; "it" of a single number."""
    numbers = [int(number) for number in index]
    if not numbers:
        return "it"
    return f"row {numbers[0]}, element {numbers[1:]}" if numbers[1:] else f"row {numbers[0]}"


def _strange(array: np.ndarray) -> str:
    """Return what is wrong with an array that holds no numbers, from its first culprit."""
    if array.dtype.kind in "US":
        return " is text; labels are numbers (numpy.unique(labels, return_inverse=True) numbers them)"
    if array.dtype.kind != "O":
        return f" is {array.dtype}; labels are numbers: integers, or floating point of at most 64 bits"
    for index, element in np.ndenumerate(array):
        where = f": {_place(index)}" if index else ""
        if isinstance(element, int) and not -(1 << 63) <= element < 1 << 63:
            return f"{where} is an integer of {element.bit_length()} bits, beyond a 64-bit signed integer"
        if not isinstance(element, int | float | np.number | np.bool_):
            what = "None" if element is None else f"a {type(element).__name__}"
            return f"{where} is {what}; labels are numbers"
    return " holds Python objects; labels are numbers"
