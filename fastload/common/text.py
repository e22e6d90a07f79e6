"""Text that comes from data (names of files and classes, attributes), made fit to be stored and to be shown.

Only `storable` text goes into a file, and only `printable` text to a terminal.
"""

from __future__ import annotations

import re
import unicodedata

LINE = 300
"""The most characters of one line that is shown to a person."""

_SURROGATES_OF_NO_BYTE = re.compile("[\ud800-\udc7f\udd00-\udfff]")
_JOINERS = "\u200c\u200d"  # Persian names and composed emoji hold them, and they obey nobody


def storable(text: str) -> str:
    r"""Return text that UTF-8 and HDF5 can hold: a byte that is no UTF-8 as `\xff`, a lone surrogate as `\ud800`.

    Bytes that Python took for no text, although they are UTF-8 (under LC_ALL=POSIX), become the characters they are.
    """
    text = _SURROGATES_OF_NO_BYTE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace").replace("\0", "\ufffd")


def printable(text: str) -> str:
    r"""Return text that no terminal obeys: what is no visible character is written as its escape, such as `\x1b`.

    That holds for control characters (line ends and tabs too), for those that turn the direction of writing, and for
    surrogates. Spaces of all widths stay.
    """
    if text.isascii() and text.isprintable():
        return text
    text = storable(text.replace("\0", "\\x00"))
    return "".join(letter if _is_harmless(letter) else _escaped(letter) for letter in text)


def shortened(text: str, limit: int = LINE) -> str:
    """Return at most `limit` characters of a text: of a longer one the beginning and the end, with an ellipsis between.

    An error says at its beginning what was found, and at its end what to do.
    """
    if len(text) <= limit:
        return text
    end = max(0, (limit - 1) // 3)
    return text[: max(0, limit - 1 - end)] + "…"[:limit] + text[len(text) - end :]


def plural(count: int, noun: str) -> str:
    """Return a number with its noun: "1 image", "2,000 images"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def size_text(count: float) -> str:
    """Return bytes as people say them: 812 kB, 13.5 MB, 16.7 GB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{max(1, round(count / 1e3)):,} kB"


def duration_text(seconds: float) -> str:
    """Return seconds as people say them: 0.3 s, 12 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _is_harmless(letter: str) -> bool:
    return letter.isprintable() or letter in _JOINERS or unicodedata.category(letter) == "Zs"


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")
