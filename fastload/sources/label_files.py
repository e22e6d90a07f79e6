"""A sample's label in a file of its own, as WebDataset shards have it: 0001.cls, 0001.json or 0001.txt."""

from __future__ import annotations

import json
import re
from typing import Any

from fastload.common.text import storable
from fastload.errors import DataError
from fastload.sources.kinds import suffix_of
from fastload.sources.members import DamagedMember, Load, Member, check_readable

CLASS_FILES = (".cls", ".class", ".label")
OTHER_LABEL_FILES = (".json", ".txt")
LabelValue = int | str | DataError
"""A class number, a class name, or why there is none."""

_KEYS = ("label", "cls", "class", "class_id", "label_id", "class_name", "target", "category", "fine_label")
_LONGEST_NAME, _LARGEST_JSON, _SHOWN = 200, 1 << 20, 20
_UNLABELLED = "or pack without labels by unlabelled=True"
_MEND = f"write a class's number in digits alone (1000, not 1e3 or 1000.0) or its name, {_UNLABELLED}"
_NO_CAPTION = f"a caption is no label: write a class's number in digits alone, {_UNLABELLED}"
_LIKE_A_NUMBER = re.compile(r"[-+.]?\d[\d_.,eE+-]*|[-+]?(nan|inf)", re.IGNORECASE)


def read_label(where: object, member: Member, load: Load) -> LabelValue:
    """Return what a label file says: a number from 0 to 2^63 - 1, or a class name; of a .txt only a number.

    A file that says neither yields the error to raise, should the sample be used.
    """
    check_readable(where, member)
    try:
        if suffix_of(member.name) == ".json":
            return _from_json(where, member, load)
        return _from_text(where, member, load)
    except DamagedMember as error:
        return error


def _from_text(where: object, member: Member, load: Load) -> LabelValue:
    suffix = suffix_of(member.name)
    text = _text(load(_LONGEST_NAME + 1))
    named = text is not None and suffix in CLASS_FILES and _is_name(text)
    value = _number(text) if text is not None else None
    if value is not None or (named and member.size <= _LONGEST_NAME):
        return value if value is not None else storable(text or "")
    mend = _NO_CAPTION if suffix == ".txt" else _MEND
    if text is None and member.size <= _LONGEST_NAME:
        return DataError(f"{where}: '{member.name}' is not text in UTF-8, and so no label; {mend}")
    if member.size > 64:
        return DataError(f"{where}: '{member.name}' has {member.size:,} bytes, not an integer label; {mend}")
    shown = (text or "")[:_SHOWN]
    return DataError(f"{where}: '{member.name}' holds {shown!r}, not an integer label from 0 to 2^63 - 1; {mend}")


def _from_json(where: object, member: Member, load: Load) -> LabelValue:
    if member.size > _LARGEST_JSON:
        return DataError(
            f"{where}: '{member.name}' has {member.size:,} bytes, too many for one sample's label; {_MEND}"
        )
    try:
        content = json.loads(load())
    except (ValueError, RecursionError) as error:
        return DataError(f"{where}: '{member.name}' is not sound JSON ({str(error)[:60]}); {_MEND}")
    if not isinstance(content, dict):
        content = {"label": content}
    for key in _KEYS:
        if key in content:
            return _json_value(where, member.name, key, content[key])
    keys = ", ".join(map(str, list(content)[:6])) or "none"
    wanted = ", ".join(_KEYS[:3])
    return DataError(
        f"{where}: '{member.name}' has no label (its keys: {keys}; a label's would be {wanted} …); {_MEND}"
    )


def _json_value(where: object, name: str, key: str, value: Any) -> LabelValue:
    if isinstance(value, str):
        number = _number(value.strip())
        if number is not None or (_is_name(value.strip()) and len(value) <= _LONGEST_NAME):
            return storable(value.strip()) if number is None else number
    elif isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63:
        return value
    shown = repr(value)[: 2 * _SHOWN]
    return DataError(
        f"{where}: '{name}' has the {key} {shown}, neither an integer from 0 to 2^63 - 1 nor a name; {_MEND}"
    )


def _text(content: bytes) -> str | None:
    try:
        return content.decode("utf-8-sig").strip()  # Windows marks UTF-8 so
    except UnicodeDecodeError:
        return None


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,19}", text) and int(text) < 1 << 63 else None


def _is_name(text: str) -> bool:
    return bool(text) and text.isprintable() and not _LIKE_A_NUMBER.fullmatch(text)
