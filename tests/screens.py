"""A terminal that keeps what is written to it."""

from __future__ import annotations

import io
import sys

import pytest


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def screen(monkeypatch: pytest.MonkeyPatch, kind: str = "xterm") -> Terminal:
    """Make stdout and stderr one terminal of 80 columns (no fixture: pytest sets both anew before the test)."""
    stream = Terminal()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, stream)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", kind)
    return stream
