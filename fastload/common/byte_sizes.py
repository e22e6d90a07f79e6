"""Sizes in bytes as people write them: "16GB", "1.5 GiB"."""

from __future__ import annotations

import re
from decimal import Decimal

UNITS = {
    f"{letter}{middle}B".lower(): base**power
    for middle, base in (("", 1000), ("i", 1024))
    for power, letter in enumerate("KMGT", 1)
}
NUMBER = r"(\d{1,3}(?:,\d{3})+|\d{1,3}(?:_\d{3})+|\d+)(\.\d+)?"
"""Digits, in groups of three or not, and a fraction."""

_SIZE = re.compile(rf"{NUMBER}\s*([kmgt]i?b)?", re.I | re.A)


def size_in_bytes(text: str) -> tuple[int, bool] | None:
    """Return (number, whether it has a unit, and so is one of bytes); None for what is no such number."""
    found = _SIZE.fullmatch(text.strip())
    if found is None or (found[2] and not found[3]):
        return None
    number = Decimal(found[1].replace(",", "").replace("_", "") + (found[2] or ""))
    return int(number * UNITS[found[3].lower()]) if found[3] else int(number), bool(found[3])
