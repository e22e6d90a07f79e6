"""How many samples a size means: a number, a share, or a budget in bytes."""

from __future__ import annotations

import math
import numbers
import re
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import numpy as np

from fastload.common.byte_sizes import NUMBER, UNITS
from fastload.errors import UsageError

_NUMBER = re.compile(rf"{NUMBER}\s*(%|[kmgt]i?b)?", re.I | re.A)


def parse_size(size: Any, count: int, sample_bytes: np.ndarray | None = None) -> int:
    """Return how many samples `size` means of `count`.

    Arguments:
        size: a number (4320, "4320", "4,320"), a share ("8.64%", 0.0864, "0.0864"; halves are rounded up), or a budget
            in bytes ("10GB", "1.5 GiB": as many whole samples as fit, whichever they are).
        count: samples that there are.
        sample_bytes: what each sample takes, int64 [count], or [1] where all take the same; None where a budget cannot
            be served.

    Raises UsageError for anything else, and for what could be read in two ways ("0,5%", "1.000").
    """
    share: Decimal | None = None
    if isinstance(size, str):
        text = size.strip()
        found = _NUMBER.fullmatch(text)
        if found is None:
            comma = "; a decimal comma is not one: write 0.5%" if re.fullmatch(r"\d+,\d+\s*%?", text) else ""
            raise UsageError(
                f"size={_as_given(size)}: it is a number of samples, or a share like 8.64%, or 10GB{comma}"
            )
        whole, fraction, unit = found[1].replace(",", "").replace("_", ""), found[2] or "", (found[3] or "").lower()
        number = Decimal(whole + fraction)
        if unit == "%":
            share = number / 100
        elif unit:
            return _within(size, int(number * UNITS[unit]), count, sample_bytes)
        elif fraction:
            if number >= 1:
                raise UsageError(
                    f"size={_as_given(size)}: could be a number or a share; write a number without a point, or a share "
                    "like 100% or 0.5"
                )
            share = number
        else:
            return _checked(size, int(number), count)
    elif isinstance(size, bool) or not isinstance(size, numbers.Real) or str(getattr(size, "dtype", "")) == "bool":
        raise UsageError(f'size={size!r}; it is a number of samples, a share like 0.0864 or "8.64%", or "10GB"')
    elif isinstance(size, numbers.Integral):
        return _checked(size, int(size), count)
    else:
        share = Decimal(str(float(size))) if math.isfinite(float(size)) else Decimal(-1)
    if not 0 < share <= 1:
        raise UsageError(f"size={_as_given(size)}: a share lies above 0% and at or below 100%")
    return max(1, int((share * count).quantize(Decimal(1), ROUND_HALF_UP)))


def _as_given(size: Any) -> str:
    """Return a size as Python writes it, NumPy's numbers as plain ones."""
    return repr(size) if isinstance(size, str) else str(size)


def _checked(size: Any, wanted: int, count: int) -> int:
    if wanted < 1:
        raise UsageError(f"size={_as_given(size)}: choose at least 1 sample")
    if wanted > count:
        raise UsageError(f"size={_as_given(size)}: {wanted:,} samples were asked for, but the full set has {count:,}")
    return wanted


def _within(size: str, budget: int, count: int, sample_bytes: np.ndarray | None) -> int:
    if sample_bytes is None:
        raise UsageError(f"size={_as_given(size)}: a budget in bytes is not known here; give a number or a share")
    largest = np.sort(np.broadcast_to(sample_bytes, count))[::-1]
    if not (wanted := int(np.searchsorted(np.cumsum(largest), budget, side="right"))):
        raise UsageError(f"size={_as_given(size)}: one sample takes {largest[0]:,} bytes; give room for some")
    return wanted
