"""What build-subset tells afterwards: times, samples by class and dimension, overlap, dead dimensions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastload.kernels.topk import TopKState
from fastload.packed_set import Packed
from fastload.text import printable

if TYPE_CHECKING:
    from rich.console import Console

STEP_TITLES = {
    "train": "train the autoencoder",
    "embed": "embed",
    "analyse": "analyse",
    "filter": "filter",
    "write": "write",
}
_ENDS = 3
_MOST_CLASSES = 10_000


@dataclass(frozen=True)
class StepReport:
    """One step: its name in STEP_TITLES, how it went ("done", "reused", "resumed at …", "brought", "not needed"),
    the seconds that it took over all runs, and what it handled."""

    step: str
    how: str
    seconds: float
    detail: str


@dataclass(frozen=True)
class Overlap:
    """How much the dimensions' lists of their `k` strongest samples share.

    `entries` of all lists name `distinct` samples; the sample in most lists is in `most` of them.
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

    `chosen` samples of `total`; `settings` as asked for; `losses` of the autoencoder, an epoch each; `classes` as
    (name, chosen, total), empty where labels are no classes; `per_dimension` int64 [D], the samples that each
    dimension gave; `dead` dimensions that never vary; `filled`: samples that no dimension gave; `overlap` is None
    without embeddings; `full_fingerprint` and `embeddings_hash` as in the subset's attributes.
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

    def state(self) -> dict[str, Any]:
        """Return the report as JSON-able plain values."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return values | {
            "full": str(self.full),
            "out": str(self.out),
            "settings": dict(self.settings),
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
            "full": Path(state["full"]), "out": Path(state["out"]),
            "steps": [StepReport(**step) for step in state["steps"]],
            "classes": [(found["name"], found["chosen"], found["total"]) for found in state["classes"]],
            "per_dimension": np.asarray(state["per_dimension"], np.int64), "overlap": overlap,
        }  # fmt: skip
        return cls(**(dict(state) | changed))

    def show(self, console: Console) -> None:
        """Print the report as tables."""
        from rich.markup import escape
        from rich.table import Table

        times = Table("step", "how", "time", "", title="Steps", title_justify="left")
        for step in self.steps:
            times.add_row(STEP_TITLES[step.step], step.how, f"{step.seconds:,.1f} s", step.detail)
        times.add_row("[bold]total", "", f"[bold]{sum(step.seconds for step in self.steps):,.1f} s", "")
        console.print(times)
        facts = Table(show_header=False, title=escape(printable(str(self.out))), title_justify="left")
        for name, value in self._facts():
            facts.add_row(name, value)
        console.print(facts)
        if self.classes:
            table = Table("class", "chosen", "of", "share", title="Classes", title_justify="left")
            for name, chosen, total in self._shown_classes():
                table.add_row(escape(printable(name)), f"{chosen:,}", f"{total:,}", f"{chosen / max(1, total):.2%}")
            console.print(table)

    def _shown_classes(self) -> list[tuple[str, int, int]]:
        """All classes up to 20; beyond, those with the most and the fewest chosen."""
        if len(self.classes) <= 20:
            return self.classes
        order = sorted(self.classes, key=lambda item: -item[1])
        return [*order[:5], (f"… {len(order) - 10:,} more", *np.sum([c[1:] for c in order[5:-5]], axis=0)), *order[-5:]]

    def _facts(self) -> list[tuple[str, str]]:
        facts = [("samples", f"{self.chosen:,} of {self.total:,} ({self.chosen / self.total:.2%})")]
        facts.append(("strategy", f"{self.strategy}, seed {self.seed}"))
        if self.losses:
            facts.append(
                ("autoencoder's loss", f"{self.losses[0]:.3f} → {self.losses[-1]:.3f} in {len(self.losses)} epochs")
            )
        counts = self.per_dimension
        if not len(counts):
            return facts
        if (asked := self.settings.get("per_dimension")) is not None:
            facts.append(
                (
                    "union",
                    f"{self.chosen:,} distinct of {asked * len(counts):,} ({asked:,} × {len(counts):,} dimensions)",
                )
            )
        facts.append(("a dimension gave", f"{counts.min():,} to {counts.max():,}, median {np.median(counts):,.0f}"))
        order = np.argsort(-counts, kind="stable")
        facts.append(("most", _listed(order[:_ENDS], counts)))
        facts.append(("fewest", _listed(order[::-1][:_ENDS], counts)))
        if self.overlap is not None:
            lap = self.overlap
            lists = f"the {lap.k:,} strongest of each dimension are {lap.distinct:,} samples"
            facts.append(("overlap", f"{lap.share:.1%}: {lists}; one is in {lap.most} lists"))
        dead = ", ".join(map(str, self.dead[:8])) + (", …" if len(self.dead) > 8 else "")
        facts.append(("dead dimensions", f"{len(self.dead):,}" + (f" ({dead})" if self.dead else "")))
        facts.append(("filled at random", f"{self.filled:,}"))
        return facts


def _listed(dimensions: np.ndarray, counts: np.ndarray) -> str:
    return ", ".join(f"dimension {d}: {counts[d]:,}" for d in dimensions)


def measure_lists(strongest: TopKState) -> tuple[Overlap, list[int]]:
    """Return the overlap of the dimensions' lists of their strongest samples (one group), and the dead dimensions.

    Only what is above a dimension's minimum counts, as in the selection.
    """
    k = strongest.values.shape[2]
    listed = np.arange(k) < strongest.counts[0][:, None]
    real = listed & (strongest.values[0] > strongest.minimum[:, None])
    _, times = np.unique(strongest.ids[0][real], return_counts=True)
    overlap = Overlap(k, int(times.sum()), len(times), int(times.max()) if len(times) else 0)
    return overlap, np.flatnonzero(strongest.minimum == strongest.maximum).tolist()


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
