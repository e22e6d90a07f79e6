"""Print for people: clean lines that fit the terminal, whatever the text holds and the stream accepts."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

from fastload.common.text import printable, shortened

if TYPE_CHECKING:
    from rich.console import Console

_WORD = re.compile(r"(?:`[^`]*`|\S)+")  # what stands in backticks is a command to copy: one word
_GO_ON = "     "
_live: list[Console] = []


def tell(text: str = "", *, error: bool = False) -> None:
    """Print lines on stdout, or on stderr for an `error`; nothing in them is obeyed by a terminal.

    A line beyond 300 characters is cut. On a terminal lines are broken between words, and never inside a command in
    backticks. A stream that cannot show a character gets its escape, and one that is closed gets nothing.
    """
    stream = sys.stderr if error else sys.stdout
    room = columns(stream)
    lines = [shortened(printable(line)) for line in text.split("\n")]
    if room is not None:
        lines = [part for line in lines for part in wrapped(line, room)]
    if error and _live:  # a bar is on the same stream: it goes below these lines
        from rich.text import Text

        _live[-1].print(Text("\n".join(lines)), soft_wrap=True)
        return
    _write(stream, "\n".join(lines) + "\n")


def command_lines(words: Sequence[object], room: int | None) -> list[str]:
    """Return a command as it would be typed, quoted; lines that would be wider than `room` go on after a backslash."""
    lines, line = [], "$"
    for word in words:
        quoted = shlex.quote(str(word))
        if room is not None and len(line) > len(_GO_ON) and len(line) + len(quoted) + 3 > room:
            lines.append(line + " \\")
            line = _GO_ON
        line += " " + quoted
    return [*map(printable, lines), printable(line)]


def rows(title: str, facts: Iterable[tuple[str, str]]) -> str:
    """Return a title and, below it, names beside values, whose lines are broken between words to fit the terminal.

    Arguments:
        title: one line.
        facts: (name, value); a value may have several lines, so that text from data in it must be `printable` already.
    """
    facts = list(facts)
    indent = 2 + max((len(name) for name, _ in facts), default=0) + 2
    room = columns(sys.stdout)
    lines = [printable(title)]
    for name, value in facts:
        broken = [part for line in value.split("\n") for part in _value_lines(line, room, indent)]
        lines.append(f"  {name}".ljust(indent) + broken[0])
        lines += [" " * indent + part for part in broken[1:]]
    return "\n".join(line.rstrip() for line in lines)


def wrapped(line: str, room: int) -> list[str]:
    """Return a line in parts of at most `room` cells, broken between words; the later parts stand two further in.

    A word that is wider, or a command in backticks, has a part to itself.
    """
    from rich.cells import cell_len

    if cell_len(line) <= room:
        return [line]
    start = line[: len(line) - len(line.lstrip(" "))]
    parts: list[str] = []
    current = start
    for word in _WORD.finditer(line):
        gap = " " if current.strip() else ""
        if gap and cell_len(current) + 1 + cell_len(word[0]) > room:
            parts.append(current)
            current, gap = start + "  ", ""
        current += gap + word[0]
    return [*parts, current]


def columns(stream: TextIO | None) -> int | None:
    """Return how wide a terminal is, by $COLUMNS or by itself; None for a stream that is none: a file has no width."""
    if not is_terminal(stream):
        return None
    with contextlib.suppress(ValueError, KeyError):
        if (named := int(os.environ["COLUMNS"])) > 0:
            return named
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80  # type: ignore[union-attr]
    except (OSError, ValueError):
        return 80


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person watches this stream."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def is_live(stream: TextIO | None) -> bool:
    """Whether lines on it can be drawn anew, as bars are: a terminal that moves its cursor."""
    return is_terminal(stream) and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


def bar_console() -> Console:
    """Return a console on stderr for a bar; where nobody reads that any more, the bar ends, and nothing else."""
    from rich.console import Console

    class BarConsole(Console):
        def on_broken_pipe(self) -> None:
            self.quiet = True  # rich's own sends stdout nowhere, and ends the program

    return BarConsole(stderr=True)


@contextlib.contextmanager
def bar_on(console: Console) -> Iterator[None]:
    """While a bar is on the console, `tell(…, error=True)` prints above it."""
    _live.append(console)
    try:
        yield
    finally:
        _live.remove(console)


def prepare_streams() -> None:
    """Let stdout and stderr take every character: where their encoding has none, `?` and an escape stand for it."""
    for stream, answer in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper) and not stream.closed:
            with contextlib.suppress(TypeError):  # a wrapper of somebody else's
                stream.reconfigure(errors=answer)


def flush() -> None:
    """Write out what stdout holds back; a full disk or a reader that has left is an error here."""
    if sys.stdout is not None and not sys.stdout.closed:
        sys.stdout.flush()


def _value_lines(line: str, room: int | None, indent: int) -> Sequence[str]:
    return [line] if room is None else wrapped(line, max(20, room - indent))


def _write(stream: TextIO | None, text: str) -> None:
    if stream is None or stream.closed:
        return
    try:
        stream.write(text)
    except UnicodeEncodeError:
        encoding = stream.encoding or "ascii"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    if stream is sys.stderr:
        stream.flush()
