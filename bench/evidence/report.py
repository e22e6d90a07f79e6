"""The report: markdown for docs/evidence.md and docs/results.md, and all of it as plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastload.bench.evidence.feed import Delivered
from fastload.bench.evidence.findings import Results, Table, points, share_text
from fastload.bench.reporting import table

_PICTURES = {"rates": "grid-8.64", "arms": "arms-cifar10", "strategies": "strategies-fixed pool"}
"""Which table a plot stands below."""


def markdown(head: Sequence[str], tables: Sequence[Table], pictures: Mapping[str, Path]) -> str:
    """Return the results as markdown.

    Arguments:
        head: lines that say what was run, where and when.
        tables: in their order.
        pictures: by name, relative to where the text will be.
    """
    parts = ["\n".join(head)]
    below = {_PICTURES[name]: path for name, path in pictures.items()}
    for one in tables:
        parts += [f"### {one.title}", table(one.columns, one.rows)]
        if one.name in below:
            parts.append(f"![{one.title}]({below[one.name].as_posix()})")
        if one.notes:
            parts.append("\n".join(f"- {note}" for note in one.notes))
    return "\n\n".join(parts) + "\n"


def feed_table(delivered: Sequence[Delivered]) -> Table:
    """Return what the throttled loader delivered, beside the counted order."""
    rows = [
        (
            share_text(one.share),
            f"{one.same:,} of {one.steps:,}",
            points(one.accuracy),
            points(one.counted),
            f"{one.waited:.2%}",
            f"{one.read:,}",
            f"{one.bytes / 1e6:,.1f} MB",
            f"{one.rate:,.0f}",
            f"{1e3 * one.step_seconds:.1f} ms",
        )
        for one in delivered
    ]
    columns = (
        "S/T",
        "batches with the counted ids",
        "accuracy, throttled, %",
        "counted, %",
        "waited",
        "samples read",
        "bytes read",
        "let through, samples/s",
        "a step",
    )
    return Table("The feed: a growing pool, its file throttled", columns, rows)


def plain(results: Results, delivered: Sequence[Delivered], tables: Sequence[Table]) -> dict[str, Any]:
    """Return everything that was found as plain values."""
    return {
        "cells": [dataclasses.asdict(found) for found in results.cells.values()],
        "seconds_of_selection": [[*key, seconds] for key, seconds in results.seconds.items()],
        "delivered": [dataclasses.asdict(one) for one in delivered],
        "tables": [dataclasses.asdict(one) for one in tables],
    }
