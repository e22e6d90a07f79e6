"""What commands print fits the terminal: lines broken between words, commands to copy whole, bars where they can be."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from screens import screen

from fastload.common import progress, terminal
from fastload.common.progress import progress_bar
from fastload.common.terminal import command_lines, rows, tell, wrapped

ERROR = (
    "error: --full full.h5: holds encoded images, so give the --subset that `fastload build-subset full.h5 subset.h5` "
    "makes of it; see `fastload build-subset --help`"
)


def test_a_long_error_breaks_between_words_and_leaves_commands_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = screen(monkeypatch)
    tell(ERROR, error=True)
    lines = shown.getvalue().splitlines()
    assert len(lines) == 3 and max(map(len, lines)) <= 80
    assert " ".join(line.strip() for line in lines) == ERROR
    assert any("`fastload build-subset full.h5 subset.h5`" in line for line in lines)


def test_where_nobody_watches_an_error_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setenv("COLUMNS", "80")
    tell(ERROR, error=True)
    assert sys.stderr.getvalue() == ERROR + "\n"  # type: ignore[attr-defined]


@given(st.lists(st.text("ab`", min_size=1, max_size=30), min_size=1, max_size=20), st.integers(10, 60))
def test_breaking_keeps_every_word_and_the_width_wherever_words_allow(words: list[str], room: int) -> None:
    line = " ".join(words)
    parts = wrapped(line, room)
    assert " ".join(part.strip() for part in parts) == line
    for part in parts:
        assert len(part) <= room or " " not in part.strip() or "`" in part


def test_a_command_wider_than_the_terminal_goes_on_after_a_backslash() -> None:
    words = ["fastload", "build-subset", "train.h5", "it's here.h5", "--strategy", "top-activations", "--epochs", 0.2]
    lines = command_lines(words, 50)
    assert len(lines) > 1 and max(map(len, lines)) <= 50
    assert all(line.endswith(" \\") for line in lines[:-1])
    assert shlex.split("\n".join(lines)[1:].replace("\\\n", "")) == [str(word) for word in words]  # as a shell reads it
    assert command_lines(words, None) == ["$ " + shlex.join(str(word) for word in words)]


def test_rows_stand_in_columns_and_their_lines_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    screen(monkeypatch)
    text = rows("f.h5: packed file", [("images", "30"), ("source", "kind: test\n" + "word " * 40)])
    lines = text.splitlines()
    assert lines[:3] == ["f.h5: packed file", "  images  30", "  source  kind: test"]
    assert max(map(len, lines)) <= 80 and all(line.startswith(" " * 10) for line in lines[3:])


def test_a_dumb_terminal_gets_lines_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = screen(monkeypatch, "dumb")
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress_bar("embed", 3000) as advance:
        for _ in range(3):
            now[0] += 6
            advance(1000)
    assert shown.getvalue() == "embed …\nembed: 2,000 of 3,000 images\n"


def test_lines_told_while_a_bar_is_shown_stand_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = screen(monkeypatch)
    with progress_bar("embed", 3000) as advance:
        advance(1000)
        tell("note: pass 2 has longer lists", error=True)
    shown = stream.getvalue()
    assert "note: pass 2 has longer lists\n" in shown and "ETA note" not in shown
    assert not terminal._live


def test_nothing_is_shown_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress_bar("embed", 3) as advance:
        advance(3)
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]


def test_a_bar_whose_terminal_has_gone_ends_and_leaves_stdout_alone(tmp_path) -> None:
    program = (
        "import os, time; from fastload.common import progress, terminal\n"
        "progress.is_live = progress.is_terminal = lambda stream: True\n"
        "with progress.progress_bar('Packing', 3) as advance:\n"
        "    for _ in range(3): advance(1); time.sleep(0.2)\n"
        "print('the result')\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    with open(tmp_path / "out.txt", "wb") as out:
        command, variables = [sys.executable, "-c", program], os.environ | {"FORCE_COLOR": "1"}
        done = subprocess.run(command, stdout=out, stderr=writer, env=variables, timeout=60)
    os.close(writer)
    assert (tmp_path / "out.txt").read_text() == "the result\n"
    assert done.returncode in (0, 120), "120: Python itself cannot flush stderr"
