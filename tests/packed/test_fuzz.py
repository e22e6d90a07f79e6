"""Damaged packed files: each is an error of fastload's own, or gives what was written, or `verify` tells.

2,000 files in CI, always the same. `FASTLOAD_FUZZ=100000` tries more, `FASTLOAD_FUZZ_SEED=7` others. A failure names
its number; to look at that file:

    PYTHONPATH=. python tests/fuzz_program.py make FOLDER
    PYTHONPATH=. python tests/fuzz_program.py keep FOLDER SEED NUMBER OUT.h5

HDF5 itself may crash on damage or never end, so files are tried in processes of their own, which are watched.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fuzz_program import make
from places import ROOT

FILES = int(os.environ.get("FASTLOAD_FUZZ", "2000"))
SEED = int(os.environ.get("FASTLOAD_FUZZ_SEED", "0"))
WORKERS = 2
PATIENCE = 60.0
"""Seconds for one file."""

COMPILING = 240.0
"""Seconds until a worker has begun: it may be the first in this place to compile the kernels."""


def tried(folder: Path, first: int) -> list[str]:
    """Return what is wrong with the cases first, first + WORKERS, …: what the worker found, and how it ended."""
    found: list[str] = []
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    while first < FILES:
        words = [folder, SEED, first, FILES, WORKERS]
        process = subprocess.Popen(
            [sys.executable, ROOT / "tests" / "fuzz_program.py", "run", *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_pass_on, args=(process.stdout, lines), daemon=True).start()
        at, how, begun = first, "", False
        while True:
            try:
                line = lines.get(timeout=PATIENCE if begun else COMPILING)
            except queue.Empty:
                process.kill()
                how = "it never ends"
                break
            begun = True
            if line is None or line == "done":
                break
            if line.startswith("wrong"):
                found.append(line)
            else:
                at = int(line)
        code = process.wait()
        if line == "done":
            assert process.stderr is not None and code == 0, process.stderr.read()[-2000:]
            return found
        assert process.stderr is not None
        found.append(f"wrong {at} {how or f'the process ended with {code}'}: {process.stderr.read()[-500:]}")
        first = at + WORKERS
    return found


def _pass_on(stream, lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line.strip())
    lines.put(None)


@pytest.mark.timeout(600 + FILES // 10)
def test_a_damaged_file_is_an_error_or_gives_what_was_written_or_verify_tells(tmp_path: Path) -> None:
    make(tmp_path)
    found: list[list[str]] = [[] for _ in range(WORKERS)]

    def work(number: int) -> None:
        try:
            found[number] = tried(tmp_path, number)
        except BaseException as error:
            found[number] = [f"{type(error).__name__}: {error}"]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wrong = [line for lines in found for line in lines]
    assert not wrong, "\n".join(wrong)
