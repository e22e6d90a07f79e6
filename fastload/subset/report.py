"""What build-subset tells afterwards: times, samples by class and dimension, overlap, dead dimensions."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastload.common.terminal import columns, rows
from fastload.common.text import printable
from fastload.packed.set import Packed
from fastload.selection.top_activations import measure_overlap
from fastload.selection.topk_state import TopKState

STEP_TITLES = {
    "train": "train the autoencoder",
    "embed": "embed",
    "analyse": "analyse",
    "filter": "filter",
    "write": "write",
}
UNITS = {"combinations": "pair", "kmeans": "cluster", "pca": "direction", "stratified": "stratum", "scores": "stratum"}
"""What a strategy's selection calls `dimension`, where that is none of the embedding's."""

HINT = "Trained on alone, such subsets of five sets were worse than random ones (docs/evidence.md): compare."
_ENDS = 3
_NAME_CELLS = 30
"""A class's name on a terminal: as wide as leaves room for its counts in 80 columns."""
_MOST_CLASSES = 10_000


@dataclass(frozen=True)
class StepReport:
    """What one step did.

    Arguments:
        step: its name in STEP_TITLES.
        how: how it went: "done", "reused", "resumed at …", "brought", "not needed".
        seconds: that it took, over all runs.
        detail: what it handled.
    """

    step: str
    how: str
    seconds: float
    detail: str


@dataclass(frozen=True)
class Overlap:
    """How much the dimensions' lists of their strongest samples share.

    Arguments:
        k: samples of each list, at most.
        entries: of all lists together.
        distinct: samples that they name.
        most: lists that the sample in most lists is in.
    """

    k: int
    entries: int
    distinct: int
    most: int

    @property
    def share(self) -> float:
        """The share of entries that name a sample which another list has named."""
        return 1 - self.distinct / self.entries if self.entries else 0.0


@dataclass(frozen=True)
class SubsetReport:
    """What `build_subset` did.

    Arguments:
        full: the full set.
        out: the subset.
        strategy: its name.
        settings: how many were asked for, and in which way.
        seed: 64-bit.
        full_fingerprint: as in the subset's attributes.
        embeddings_hash: as in the subset's attributes.
        chosen: how many samples.
        total: of how many.
        steps: what each step did.
        losses: of the autoencoder, one an epoch.
        classes: (name, chosen, total) of each; empty where labels are no classes.
        per_dimension: int64 [D], how many samples each dimension (the strategy's own: pair, cluster, direction) gave.
        dead: dimensions that never vary.
        filled: samples that no dimension gave; of the strategy `scores`, those that it had left out as the hardest.
        overlap: None where the strategy keeps no lists.
        ids: of the chosen, in order of choice.
        names: of the chosen, where the full set holds them.
        embedding_order: how it is known whose embeddings are whose, where they were brought.
        score_order: likewise whose scores are whose.
        left_out: how many were included by name, excluded, and left out as exact duplicates.
    """

    full: Path
    out: Path
    strategy: str
    settings: Mapping[str, Any]
    seed: int
    full_fingerprint: str
    embeddings_hash: str
    chosen: int
    total: int
    steps: list[StepReport]
    losses: list[float]
    classes: list[tuple[str, int, int]]
    per_dimension: np.ndarray
    dead: list[int]
    filled: int
    overlap: Overlap | None
    ids: list[int] = dataclasses.field(default_factory=list)
    names: list[str] | None = None
    embedding_order: str = ""
    score_order: str = ""
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def state(self) -> dict[str, Any]:
        """Return the report as JSON-able plain values."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return values | {
            "full": str(self.full),
            "out": str(self.out),
            "settings": dict(self.settings),
            "left_out": dict(self.left_out),
            "steps": [dataclasses.asdict(step) for step in self.steps],
            "classes": [{"name": name, "chosen": chosen, "total": total} for name, chosen, total in self.classes],
            "per_dimension": self.per_dimension.tolist(),
            "overlap": None
            if self.overlap is None
            else dataclasses.asdict(self.overlap) | {"share": self.overlap.share},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> SubsetReport:
        """Return the report whose `state` that is."""
        overlap = None
        if state["overlap"] is not None:
            overlap = Overlap(**{name: value for name, value in state["overlap"].items() if name != "share"})
        changed = {
            "full": Path(state["full"]),
            "out": Path(state["out"]),
            "steps": [StepReport(**step) for step in state["steps"]],
            "classes": [(found["name"], found["chosen"], found["total"]) for found in state["classes"]],
            "per_dimension": np.asarray(state["per_dimension"], np.int64),
            "overlap": overlap,
        }
        return cls(**(dict(state) | changed))

    def __str__(self) -> str:
        """The report as lines for a person."""
        return rows(f"{self.out}, chosen from {self.full}", self._facts())

    def _shown_classes(self) -> list[tuple[str, int, int]]:
        """All classes up to 20; beyond, those with the most and the fewest chosen."""
        if len(self.classes) <= 20:
            return self.classes
        order = sorted(self.classes, key=lambda item: -item[1])
        return [*order[:5], (f"… {len(order) - 10:,} more", *np.sum([c[1:] for c in order[5:-5]], axis=0)), *order[-5:]]

    def _facts(self) -> list[tuple[str, str]]:
        facts = [("samples", f"{self.chosen:,} of {self.total:,} ({self.chosen / self.total:.2%})")]
        facts.append(("strategy", f"{self.strategy}, seed {self.seed}"))
        if self.strategy == "top-activations":
            facts.append(("", HINT))
        if self.embedding_order:
            facts.append(("embeddings", printable(self.embedding_order)))
        if self.score_order:
            facts.append(("scores", printable(self.score_order)))
            hard = f"those of the {self.settings['hardest']} scores, {100 * self.settings['leave_out']:g}% left out"
            facts.append(("hardest", hard))
        named = [f"{count:,} {what}" for what, count in self.left_out.items() if count]
        if named:
            facts.append(("lists", ", ".join(named)))
        if self.losses:
            epochs = "epoch" if len(self.losses) == 1 else "epochs"
            course = " → ".join(f"{loss:.3f}" for loss in dict.fromkeys((self.losses[0], self.losses[-1])))
            facts.append(("autoencoder", f"loss {course} in {len(self.losses):,} {epochs}"))
        facts += self._dimension_facts()
        if self.classes:
            facts.append(("classes", self._class_lines()))
        facts.append(("time", f"{sum(step.seconds for step in self.steps):,.1f} s"))
        return facts

    def _dimension_facts(self) -> list[tuple[str, str]]:
        counts, facts = self.per_dimension, list[tuple[str, str]]()
        if not len(counts):
            return facts
        unit = UNITS.get(self.strategy, "dimension")
        if (asked := self.settings.get("per_dimension")) is not None:
            balanced = self.settings.get("balance_classes") and len(self.classes) > 1
            classes = f" × {len(self.classes):,} classes" if balanced else ""
            entries = asked * len(counts) * (len(self.classes) if balanced else 1)
            distinct = self.chosen - self.left_out.get("included", 0)
            facts.append(
                ("union", f"{distinct:,} distinct of {entries:,} ({asked:,} × {len(counts):,} {unit}s{classes})")
            )
        low, high = int(counts.min()), int(counts.max())
        spread = f"{low:,} each" if low == high else f"{low:,} to {high:,}, {np.median(counts):,.0f} in the median"
        facts.append((f"a {unit} gave", spread))
        if low != high:
            order = np.argsort(-counts, kind="stable")
            facts.append(("most", _listed(order[:_ENDS], counts, unit)))
            facts.append(("fewest", _listed(order[::-1][:_ENDS], counts, unit)))
        if self.overlap is not None and self.overlap.entries:
            lap = self.overlap
            strongest = "the strongest" if lap.k == 1 else f"the {lap.k:,} strongest"
            lists = "1 list" if lap.most == 1 else f"{lap.most:,} lists"
            text = f"{lap.share:.1%}: {strongest} of each {unit} are {lap.distinct:,} samples; one is in {lists}"
            facts.append(("overlap", text))
        dead = ", ".join(map(str, self.dead[:8])) + (", …" if len(self.dead) > 8 else "")
        dead = f"{len(self.dead):,}" + (f" ({dead})" if self.dead else "")
        if unit == "stratum":
            facts.append(("empty strata", dead))
        else:
            facts += [(f"dead {unit}s", dead), ("filled at random", f"{self.filled:,}")]
        if self.strategy == "scores":
            facts.append(("of the hardest", f"{self.filled:,}, which were left out until all others were taken"))
        return facts

    def _class_lines(self) -> str:
        from rich.cells import cell_len, set_cell_size

        shown = [(printable(name), chosen, total) for name, chosen, total in self._shown_classes()]
        width = max(cell_len(name) for name, _, _ in shown)
        if columns(sys.stdout) is not None and width > _NAME_CELLS:
            width = _NAME_CELLS
            shown = [(_cropped(name, width), chosen, total) for name, chosen, total in shown]
        rule = ""
        if self.settings.get("balance_classes"):
            rule = "equal counts" if self.settings.get("equal_classes") else "shares of the set"
            rule = ", balanced: " + ("so many of each dimension" if self.settings.get("per_dimension") else rule)
        lines = [
            f"{set_cell_size(name, width)} {chosen:>7,} of {of:,} ({chosen / max(1, of):.2%})"
            for name, chosen, of in shown
        ]
        return "\n".join([f"{len(self.classes):,}{rule}", *lines])


def _cropped(text: str, cells: int) -> str:
    from rich.cells import cell_len, set_cell_size

    return text if cell_len(text) <= cells else set_cell_size(text, cells - 1).rstrip() + "…"


def _listed(dimensions: np.ndarray, counts: np.ndarray, unit: str) -> str:
    return ", ".join(f"{unit} {d}: {counts[d]:,}" for d in dimensions)


def measure_lists(strongest: TopKState) -> tuple[Overlap, list[int]]:
    """Return the overlap of the dimensions' lists of their strongest samples (one group), and the dead dimensions."""
    return Overlap(**measure_overlap(strongest)), np.flatnonzero(strongest.minimum == strongest.maximum).tolist()


def count_classes(file: Packed, rows: np.ndarray) -> list[tuple[str, int, int]]:
    """Return (name, chosen, total) for each class; empty where labels are not one integer a sample."""
    if file.labels is None or file.labels.ndim != 1 or file.labels.dtype.kind not in "iub":
        return []
    values, index, totals = np.unique(file.labels, return_inverse=True, return_counts=True)
    if len(values) > max(_MOST_CLASSES, len(file.classes)):
        return []  # numbers to predict, not classes
    chosen = np.bincount(index[rows], minlength=len(values))
    names = [file.classes[v] if 0 <= v < len(file.classes) else str(v) for v in values.tolist()]
    return list(zip(names, chosen.tolist(), totals.tolist(), strict=True))
