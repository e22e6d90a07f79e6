"""The recipe: do the claims hold with a learning rate that decays, which most people use?"""

from __future__ import annotations

from fastload.bench.paper.figure4 import COLUMNS, Row, fresh, full_only, measure_noise, splits
from fastload.bench.paper.findings import (
    NOT_REPEATED,
    REPEATED,
    RULE,
    UNTESTED,
    Findings,
    Noise,
    Verdict,
    all_of,
    compare,
)
from fastload.bench.paper.trainee import SCHEDULES
from fastload.bench.paper.workplace import Workplace

_SHARES = (0.5, 1.0)


def recipe(place: Workplace) -> Findings:
    """Train with both schedules: the full set only, both subsets at 50/50 and 100/0, and RS2."""
    rows: dict[tuple[str, str, float | None], Row] = {}
    for schedule in SCHEDULES:
        rows[schedule, "full", 0.0] = full_only(place, place.few, schedule)
        for strategy in ("top-activations", "random"):
            name = strategy if schedule == "constant" else f"{strategy}, decaying rate"
            for row in splits(place, strategy, _SHARES, place.few, schedule=schedule, name=name):
                rows[schedule, strategy, row.share] = row
        rows[schedule, "RS2", None] = fresh(place, place.few, schedule)
    noise = measure_noise(place, list(rows.values()))
    found = Findings("recipe", "The recipe: the paper's constant rate against a decaying one", COLUMNS)
    found.rows = [row.texts() for row in rows.values()]
    found.data = {"rows": [{"schedule": key[0], **row.data()} for key, row in rows.items()]}
    found.verdicts = [
        _by_schedule(
            "trained on the subset alone, embeddings choose better than at random",
            rows,
            noise,
            ("top-activations", 1.0),
            ("random", 1.0),
        ),
        _by_schedule(
            "half of the steps on the subset are not worse than the full set only",
            rows,
            noise,
            ("top-activations", 0.5),
            ("full", 0.0),
            or_equal=True,
        ),
    ]
    found.notes = [
        f"The decaying rate falls in a straight line from 0.1 to 0. Rule: {RULE}; "
        "“depends” where the two rates disagree."
    ]
    return found


def _by_schedule(
    claim: str,
    rows: dict[tuple[str, str, float | None], Row],
    noise: Noise,
    first: tuple[str, float],
    second: tuple[str, float],
    or_equal: bool = False,
) -> Verdict:
    """Return the verdict on a claim that is tested with each schedule."""
    verdicts, texts = [], []
    for schedule in SCHEDULES:
        one, other = rows[schedule, *first].accuracies, rows[schedule, *second].accuracies
        if not one or not other:
            verdicts.append(UNTESTED)
            continue
        holds = compare(one, other, noise) > (-1 if or_equal else 0)
        verdicts.append(REPEATED if holds else NOT_REPEATED)
        texts.append(f"{schedule}: {one.text()} against {other.text()}, {verdicts[-1]}")
    return Verdict(claim, "at a constant rate", "; ".join(texts) or "not yet", all_of(verdicts), RULE)
