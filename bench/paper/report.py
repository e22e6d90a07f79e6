"""The report: markdown tables and verdicts for docs/results.md, and all numbers as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastload.bench.paper.findings import Findings
from fastload.common.replacing import replace_file


def markdown(findings: Sequence[Findings], head: Sequence[str], pictures: Mapping[str, Path]) -> str:
    """Return the experiments as markdown: what was run, then each one's table, picture, verdicts and notes.

    Arguments:
        head: lines that say what was run, where and when.
        pictures: by experiment, relative to where the text will be.
    """
    parts = ["## The paper's experiments", "\n".join(head)]
    for one in findings:
        parts.append(f"### {one.title}")
        if one.rows:
            parts.append(_table(one.columns, one.rows))
        if one.name in pictures:
            parts.append(f"![{one.title}]({pictures[one.name].as_posix()})")
        if one.verdicts:
            columns = ("claim", "the paper", "here", "verdict")
            parts.append(_table(columns, [(v.claim, v.paper, v.ours, f"**{v.verdict}**") for v in one.verdicts]))
        notes = [*one.notes, *_rules(one)]
        if notes:
            parts.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts) + "\n"


def _rules(one: Findings) -> list[str]:
    """Return the verdicts' rules that no note says yet."""
    rules = dict.fromkeys(verdict.rule for verdict in one.verdicts)
    return [f"Rule: {rule}." for rule in rules if not any(rule in note for note in one.notes)]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)


def write_json(path: Path, findings: Sequence[Findings], facts: Mapping[str, Any]) -> None:
    """Write everything that was found, and what it was found with."""
    report = {**facts, "experiments": [dataclasses.asdict(one) for one in findings]}
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, (json.dumps(report, indent=1) + "\n").encode())
