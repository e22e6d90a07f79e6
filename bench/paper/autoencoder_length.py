"""Does an autoencoder that was trained for longer choose better samples?"""

from __future__ import annotations

from functools import partial

import numpy as np

from fastload.bench.paper.figure4 import COLUMNS, Row, measure_noise, splits
from fastload.bench.paper.findings import Accuracies, Findings, better
from fastload.bench.paper.subsets import choose, chosen_ids, encode
from fastload.bench.paper.workplace import Workplace


def autoencoder_length(place: Workplace) -> Findings:
    """Train on subsets alone (100/0) that autoencoders of each length chose."""
    lengths = [name for name, _ in place.scale.autoencoder]
    rows: list[Row] = []
    found = Findings(
        "autoencoder",
        "The autoencoder: does longer training choose better?",
        (*COLUMNS, "autoencoder's loss", "samples shared with the longest"),
    )
    for length in lengths:
        seeds = place.seeds if length == lengths[-1] else place.few
        name = f"top-activations, {length}"
        (row,) = splits(place, "top-activations", (1.0,), seeds, length=length, name=name)
        rows.append(row)
        facts = place.attempt(name, partial(_facts, place, length, lengths[-1]))
        found.rows.append((*row.texts(), *(facts or ("not yet", "not yet"))))
    noise = measure_noise(place, rows)
    first, last = (row.accuracies if row.results else Accuracies(()) for row in (rows[0], rows[-1]))
    found.data = {"rows": [row.data() for row in rows]}
    found.verdicts = [
        better(
            f"{lengths[-1]} of training choose better than {lengths[0]}",
            "trains for 40,000 steps, compares none",
            last,
            first,
            noise,
            own=True,
        )
    ]
    return found


def _facts(place: Workplace, length: str, longest: str) -> tuple[str, str]:
    own = chosen_ids(choose(place, "top-activations", length=length))
    best = chosen_ids(choose(place, "top-activations", length=longest))
    return f"{encode(place, length).loss:.3f}", f"{len(np.intersect1d(own, best)) / len(own):.0%}"
