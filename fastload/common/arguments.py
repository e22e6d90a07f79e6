"""Check arguments: NumPy's numbers become plain ones, and any other type is an error that names the argument."""

from __future__ import annotations

import math
import numbers
import operator
import os
from pathlib import Path
from typing import Any

import numpy as np

from fastload.errors import UsageError


def integer(name: str, value: Any, least: int | None = None) -> int:
    """Return an integer as a plain int; raise UsageError, naming it, for anything else or one below `least`."""
    try:
        if isinstance(value, bool) or str(getattr(value, "dtype", "")) == "torch.bool":
            raise TypeError
        number = operator.index(value)
    except TypeError as error:
        raise UsageError(f"{name}={value!r}; it must be a whole number (an int)") from error
    if least is not None and number < least:
        raise UsageError(f"{name}={number}; it must be at least {least}")
    return number


def real(name: str, value: Any) -> float:
    """Return a number as a plain float, NaN and infinity too; raise UsageError, naming it, for anything else."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise UsageError(f"{name}={value!r}; it must be a number")
    try:
        return float(value)
    except OverflowError:
        return math.inf if value == abs(value) else -math.inf


def positive(name: str, value: Any) -> float:
    """Return a number above 0, infinity too, as a plain float; raise UsageError, naming it, for anything else."""
    number = real(name, value)
    if not number > 0:
        raise UsageError(f"{name}={number:g}; it must be positive")
    return number


def text(name: str, value: Any) -> str:
    """Return a text as it is; raise UsageError, naming it, for anything else."""
    if not isinstance(value, str):
        raise UsageError(f"{name}={value!r}; it must be a text")
    return value


def flag(name: str, value: Any) -> bool:
    """Return a truth value as a plain bool; raise UsageError, naming it, for anything else ("no" would be true)."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise UsageError(f"{name}={value!r}; it is True or False")


def seed64(value: Any) -> int:
    """Return a seed as a plain int; raise UsageError unless it is a 64-bit unsigned integer."""
    seed = integer("seed", value)
    if not 0 <= seed < 2**64:
        raise UsageError(f"seed={seed} is not a 64-bit unsigned integer")
    return seed


def path_of(name: str, value: Any) -> Path:
    """Return a path given as text, bytes or os.PathLike; raise UsageError, naming it, for anything else."""
    try:
        if not os.fspath(value):
            raise UsageError(f"{name}={value!r}: an empty path; name a file")
        return Path(os.fsdecode(value))
    except TypeError as error:
        raise UsageError(f"{name}={value!r}; it must be a file's path") from error
