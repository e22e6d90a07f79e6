"""What the reports of long runs share: tables in markdown, the command as it can be printed, JSON, the exit code."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from fastload.bench.measure import versions
from fastload.common.replacing import replace_file

TIME_IS_UP = 4
"""The exit code where --minutes ended before the work did: the same command goes on."""


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)


def command_text(name: str, arguments: Sequence[str]) -> str:
    """Return a benchmark's command line: files by their names, for this machine's folders say nothing elsewhere."""
    words = [Path(word).name if "/" in word and not word.startswith("-") else word for word in arguments]
    return shlex.join(["python", "-m", "fastload.bench", name, *words])


def when_and_where(machine: str) -> str:
    """Return the date, the machine, torch's version and the load now."""
    torch_version = versions().get("torch", torch.__version__)
    return f"{date.today().isoformat()}, {machine}, torch {torch_version}, load {os.getloadavg()[0]:.1f} at the end."


def write_json(path: Path, found: Mapping[str, Any], command: str, machine: str) -> None:
    """Write what was found, after the command, the date, the machine and the versions."""
    facts = {"command": command, "date": date.today().isoformat(), "machine": machine, "versions": versions()}
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, (json.dumps({**facts, **found}, indent=1) + "\n").encode())
