"""What commands with reports share: lists of names, tables in markdown, the command as it is printed, JSON."""

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
from fastload.errors import UsageError

TIME_IS_UP = 4
"""The exit code where --minutes ended before the work did: the same command goes on."""


def some_of(option: str, text: str | None, known: Sequence[str]) -> list[str]:
    """Return the names in a list with commas, all by default. Raises UsageError, naming it, for one that is not known.

    Arguments:
        option: where the list was given, for the message.
        text: the list; None where it was not given.
        known: all names.
    """
    if text is None:
        return list(known)
    names = text.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(f"{option} {text}: {unknown[0]} is none of {', '.join(known)}")
    return names


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
