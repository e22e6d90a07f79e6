"""The report: markdown tables and verdicts for docs/results.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fastload.bench.paper.findings import Findings
from fastload.bench.reporting import table


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
            parts.append(table(one.columns, one.rows))
        if one.name in pictures:
            parts.append(f"![{one.title}]({pictures[one.name].as_posix()})")
        if one.verdicts:
            columns = ("claim", "the paper", "here", "verdict")
            parts.append(table(columns, [(v.claim, v.paper, v.ours, f"**{v.verdict}**") for v in one.verdicts]))
        notes = [*one.notes, *_rules(one)]
        if notes:
            parts.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts) + "\n"


def _rules(one: Findings) -> list[str]:
    """Return the verdicts' rules that no note says yet."""
    rules = dict.fromkeys(verdict.rule for verdict in one.verdicts)
    return [f"Rule: {rule}." for rule in rules if not any(rule in note for note in one.notes)]
