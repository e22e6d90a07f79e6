"""Does an autoencoder that was trained for longer choose better samples?"""

from __future__ import annotations

from functools import partial

import numpy as np

from fastload.bench.paper.figure4 import COLUMNS, Row, noise_of, splits, tell_rows
from fastload.bench.paper.findings import Findings, better, by_schedule
from fastload.bench.paper.subsets import choose, chosen_ids, encode
from fastload.bench.paper.trainee import SCHEDULES
from fastload.bench.paper.workplace import Workplace


def autoencoder_length(place: Workplace) -> Findings:
    """Train on subsets alone (100/0) that autoencoders of each length chose."""
    lengths = [name for name, _ in place.scale.autoencoder]
    found = Findings(
        "autoencoder",
        "The autoencoder: does longer training choose better?",
        (*COLUMNS, "autoencoder's loss", "samples shared with the longest"),
    )
    tables = {schedule: [_row(place, length, schedule) for length in lengths] for schedule in SCHEDULES}
    tell_rows(found, tables)
    facts = [
        place.attempt(f"autoencoder, {length}", partial(_facts, place, length, lengths[-1])) or ("not yet", "not yet")
        for length in lengths
        for _ in SCHEDULES
    ]
    found.rows = [(*row, *known) for row, known in zip(found.rows, facts, strict=True)]
    noise = noise_of(place, [row for rows in tables.values() for row in rows])  # two rows alone would know too little
    claim, paper = (
        f"{lengths[-1]} of training choose better than {lengths[0]}",
        "trains for 40,000 steps, compares none",
    )
    found.verdicts = by_schedule(
        {
            schedule: [better(claim, paper, rows[-1].accuracies, rows[0].accuracies, noise, own=True)]
            for schedule, rows in tables.items()
        }
    )
    return found


def _row(place: Workplace, length: str, schedule: str) -> Row:
    name = f"top-activations, {length}"
    (row,) = splits(place, "top-activations", (1.0,), schedule, length=length, name=name)
    return row


def _facts(place: Workplace, length: str, longest: str) -> tuple[str, str]:
    own = chosen_ids(choose(place, "top-activations", length=length))
    best = chosen_ids(choose(place, "top-activations", length=longest))
    return f"{encode(place, length).loss:.3f}", f"{len(np.intersect1d(own, best)) / len(own):.0%}"
