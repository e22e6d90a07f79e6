"""Text that comes from data: fit to be stored, and harmless where it is shown."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastload.common.text import printable, shortened, storable

ANY_TEXT = st.text(st.characters(), max_size=40)  # lone surrogates too


@pytest.mark.parametrize(
    "text, shown",
    [
        ("cats/0042.jpg", "cats/0042.jpg"),
        ("naïve café 猫 🐈", "naïve café 猫 🐈"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("a\u00a0b\u3000c", "a\u00a0b\u3000c"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("two\nlines\tand\r", r"two\nlines\tand\r"),
        ("\x9b2J", r"\x9b2J"),
        ("gpj\u202egnp.exe", r"gpj\u202egnp.exe"),
        ("a\u2028b\u2066c", r"a\u2028b\u2066c"),
        ("nul\0", r"nul\x00"),
        ("caf\udce9", r"caf\xe9"),
        ("\udcc3\udca9", "é"),
        ("\ud800", r"\ud800"),
        ("\U000e0001tag", r"\U000e0001tag"),
    ],
)
def test_what_a_terminal_would_obey_is_written_as_its_escape(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(ANY_TEXT)
def test_printable_text_has_no_control_character_and_stays_as_it_is(text: str) -> None:
    shown = printable(text)
    assert {unicodedata.category(letter) for letter in shown}.isdisjoint({"Cc", "Cs", "Co", "Cn", "Zl", "Zp"})
    assert "\u202e" not in shown and "\u2066" not in shown
    assert printable(shown) == shown
    shown.encode("utf-8")


@given(ANY_TEXT)
def test_storable_text_is_utf_8_without_nul_and_stays_as_it_is(text: str) -> None:
    stored = storable(text)
    assert "\0" not in stored and storable(stored) == stored
    stored.encode("utf-8")
    if "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text):
        assert stored == text


@given(st.text(max_size=60), st.integers(0, 50))
def test_shortened_text_keeps_the_limit_and_both_ends(text: str, limit: int) -> None:
    short = shortened(text, limit)
    assert len(short) <= limit
    if len(text) <= limit:
        assert short == text
    elif limit >= 4:
        kept, rest = short.split("…") if short.count("…") == 1 else (short[0], short[-1])
        assert text.startswith(kept) and text.endswith(rest) and "…" in short


def test_a_long_error_keeps_what_was_found_and_what_to_do() -> None:
    text = "full.h5: class '" + "x" * 60_000 + "' has no folder; pack it again"
    short = shortened(text)
    assert len(short) == 300
    assert short.startswith("full.h5: class 'xxx") and short.endswith("xxx' has no folder; pack it again")
