"""Figures 5 and 6: what a fixed wall-clock budget buys, with cheap data and with dear data, and loss against time."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field, replace
from functools import partial

from fastload.bench.paper import figure4
from fastload.bench.paper.findings import (
    RULE,
    UNTESTED,
    Accuracies,
    Findings,
    Noise,
    Verdict,
    all_of,
    better,
    by_schedule,
    seconds_text,
)
from fastload.bench.paper.scale import BUDGET
from fastload.bench.paper.subsets import choose
from fastload.bench.paper.timed_training import FULL, INFOBATCH, RESIDENT, RS2, TWO_PHASE, Timed, TimedRun, train_for
from fastload.bench.paper.trainee import SCHEDULES
from fastload.bench.paper.workplace import Workplace

DEAR = 2.0
"""In the dear setting the stream delivers 1/DEAR of the images that the classifier can take."""

RIVALS: tuple[tuple[str, str | None], ...] = (
    (TWO_PHASE, "top-activations"),
    (TWO_PHASE, "random"),
    (FULL, None),
    (RESIDENT, None),
    (RS2, None),
    (INFOBATCH, None),
)
"""Rivals, and the strategies that choose their subsets."""

SHARED_BY = (1, 10, 100)
"""R: over how many trainings the selection is spread."""

FREE = "free"
COLUMNS = (*(f"R = {runs}" for runs in SHARED_BY), FREE)

PAPER = {("dear", f"{TWO_PHASE}, top-activations"): "63.5 %", ("dear", FULL): "10.4 %"}
"""What the paper reports for 7 minutes of 12, means of four runs at its constant rate, of data that is dear to feed."""

_FAST = 0.5
"""The paper's 5,000 fast steps of 10,000."""


@dataclass
class Contest:
    """A rival in a setting, by seed: results of the whole budget, accuracies of what R leaves of it, None for none."""

    setting: str
    schedule: str
    rival: str
    strategy: str | None = None
    selection: float = 0.0
    results: list[Timed] = field(default_factory=list)
    by_sharing: dict[str, list[float | None]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.rival if self.strategy is None else f"{self.rival}, {self.strategy}"

    def accuracies(self, sharing: str) -> Accuracies:
        return Accuracies(tuple(one for one in self.by_sharing.get(sharing, ()) if one is not None))

    def enter(self, left: dict[str, float], runs: list[TimedRun], results: list[Timed]) -> None:
        """Note a seed's results, of which the last is that of the whole budget."""
        at = {
            mark: accuracy
            for run, result in zip(runs, results, strict=True)
            for mark, accuracy in zip(run.marks, result.accuracies, strict=True)
        }
        self.results.append(results[-1])
        for name, seconds in left.items():
            self.by_sharing.setdefault(name, []).append(at.get(seconds))


def budget(place: Workplace) -> Findings:
    """Give every rival the same seconds, the selection's among them."""
    found = Findings("budget", "Figures 5 and 6: a fixed wall-clock budget")
    paces = figure4.without_subset(place, FULL, "constant").results
    if len(paces) < len(place.seeds):
        found.notes = ["not begun: the full-only runs have to tell the pace first"]
        return found
    fastest = min(one.seconds for one in paces)  # what else runs on the machine can only slow one down
    pace = place.scale.steps * place.scale.batch / fastest
    budgets = {"cheap": BUDGET * fastest, "dear": BUDGET * fastest * DEAR}
    contests = [
        Contest(setting, schedule, rival, strategy)
        for setting in budgets
        for rival, strategy in RIVALS
        for schedule in SCHEDULES
    ]
    rates = {"cheap": None, "dear": pace / DEAR}
    for seed in place.seeds:  # round after round, so that what else the machine does meets all of them
        for one in contests:
            _train(place, one, seed, budgets[one.setting], rates[one.setting])
    found.columns = (
        "data",
        "rival",
        "rate",
        "runs",
        *(f"accuracy, {name}" for name in COLUMNS),
        "the paper",
        "steps",
        "images",
        "distinct samples seen",
        "loss at the end",
        "left out",
    )
    found.rows = [_texts(place, one) for one in contests]
    found.data = {
        "pace": pace,
        "budgets": budgets,
        "stream_rate": pace / DEAR,
        "contests": [
            {
                "setting": one.setting,
                "schedule": one.schedule,
                "name": one.name,
                "selection_seconds": one.selection,
                "accuracy_by_sharing": one.by_sharing,
                "runs": [vars(result) for result in one.results],
            }
            for one in contests
        ],
    }
    found.verdicts = by_schedule(
        {
            schedule: _verdicts([one for one in contests if one.schedule == schedule], len(place.test))
            for schedule in SCHEDULES
        }
    )
    found.notes = [
        f"Cheap data: raw pixels, which every rival may keep in memory; {seconds_text(budgets['cheap'])}, 7/12 of the "
        f"{seconds_text(fastest)} that {place.scale.steps:,} steps on the full set take.",
        f"Dear data (throttled by us, to stand for slow storage or decoding): the full set's stream delivers at most "
        f"{pace / DEAR:,.0f} images/s, 1/{DEAR:g} of what the classifier takes; {seconds_text(budgets['dear'])}, 7/12 "
        f"of what those steps take then. The resident subset is not throttled; “everything resident” streams its first "
        "epoch, trains meanwhile, and keeps it; RS2 and InfoBatch stream what they draw.",
        "R: the seconds that the selection took, divided by R trainings that share the subset, are taken from the "
        "budget, to whole per cents of it; “free” leaves them out. A constant rate lets one run be tested at each of "
        "these times. A decaying one falls in a straight line to 0 at the end of the time that is left, by the clock, "
        "so there each R is a run of its own; steps, samples and loss are those of the whole budget.",
        f"Two phases: {round(_FAST * place.scale.steps):,} steps on the subset, as the "
        "paper's 5,000 of 10,000, then the full set. Testing is not timed. Rivals train in turn, seed after "
        "seed: where data is cheap, steps differ by little but what else the machine did.",
        "InfoBatch: r = 0.5, δ = 12.5 % of the budget; it leaves nothing out in its first epoch, so below two epochs "
        "it is full-only training. “left out”: of all epochs that it began.",
        f"Rule: {RULE}.",
    ]
    return found


def _train(place: Workplace, contest: Contest, seed: int, budget: float, rate: float | None) -> None:
    """Let a rival train, and enter its results where the time was enough."""
    what, strategy = f"budget, {contest.setting}, {contest.name}, {contest.schedule} rate", contest.strategy
    subset, swap = None, 0
    if strategy is not None:
        drawn = seed if strategy == "random" else 0
        subset = place.attempt(what, partial(choose, place, strategy, seed=drawn))
        if subset is None:
            return
        contest.selection, swap = subset.seconds, round(_FAST * place.scale.steps)
    left = _time_left(budget, contest.selection)
    run = TimedRun(contest.rival, seed, budget, rate, subset=subset, swap=swap, schedule=contest.schedule)
    runs = _runs(run, left)
    results = place.attempt(what, lambda: [train_for(place, one) for one in runs])
    if results is not None:
        contest.enter(left, runs, results)


def _time_left(budget: float, selection: float) -> dict[str, float]:
    """Return the seconds that are left to train by sharing, 0 for none: whole per cents of the budget.

    What is less, as a random choice's tenth of a second, is no reason for a run of its own.
    """
    shares = (*(selection / runs / budget for runs in SHARED_BY), 0.0)
    return {
        name: budget * (max(0, round(100 * (1 - share))) / 100) for name, share in zip(COLUMNS, shares, strict=True)
    }


def _runs(run: TimedRun, left: dict[str, float]) -> list[TimedRun]:
    """Return the runs that give an accuracy at each time left: at a constant rate one that is tested on its way."""
    times = tuple(sorted({seconds for seconds in left.values() if seconds}))
    if run.schedule == "constant":
        return [replace(run, marks=times)]
    return [replace(run, budget=seconds, marks=(seconds,)) for seconds in times]


def _texts(place: Workplace, one: Contest) -> tuple[str, ...]:
    head = (one.setting, one.name, one.schedule, str(len(one.results)))
    if not one.results:
        return (*head, *["not yet"] * (len(COLUMNS) + 6))
    steps = statistics.mean(result.steps for result in one.results)
    ends = [result.curve[-1][1] for result in one.results if result.curve]
    pruned = [result.pruned for result in one.results if result.pruned is not None]
    return (
        *head,
        *(one.accuracies(name).text() if one.accuracies(name) else "no time left to train" for name in COLUMNS),
        PAPER.get((one.setting, one.name), "–") if one.schedule == "constant" else "–",
        f"{steps:,.0f}",
        f"{steps * place.scale.batch:,.0f}",
        f"{statistics.mean(result.distinct for result in one.results):,.0f}",
        f"{statistics.mean(ends):.2f}" if ends else "–",
        f"{statistics.mean(pruned):.0%}" if pruned else "–",
    )


def _verdicts(contests: list[Contest], test: int) -> list[Verdict]:
    """The paper's claim by setting and sharing, all together, and two phases against each rival, at one schedule."""
    noise = Noise.of((one.accuracies(FREE) for one in contests), test)
    by_name = {(one.setting, one.name): one for one in contests}
    chosen = f"{TWO_PHASE}, top-activations"
    claim = "in a fixed budget two phases come further than the full set only"
    singles = []
    for setting in ("cheap", "dear"):
        for sharing in COLUMNS:
            ours, full = by_name[setting, chosen], by_name[setting, FULL].accuracies(FREE)
            if ours.results and full and not ours.accuracies(sharing):
                verdict = Verdict(
                    f"{claim}: {setting} data, {sharing}",
                    "63.5 % against 10.4 %",
                    f"no time left to train: the selection alone takes {seconds_text(ours.selection)}",
                    "not repeated",
                    RULE,
                )
            else:
                verdict = better(
                    f"{claim}: {setting} data, {sharing}",
                    "63.5 % against 10.4 %",
                    ours.accuracies(sharing),
                    full,
                    noise,
                )
            singles.append(verdict)
    together = all_of([one.verdict for one in singles])
    on = ", ".join(one.claim.rpartition(": ")[2] for one in singles if one.verdict == "repeated") or "nothing"
    singles.append(Verdict(claim, "63.5 % against 10.4 %", f"repeated with: {on}", together, RULE))
    infobatch = by_name["dear", INFOBATCH]
    rivals = [
        better(
            f"two phases with embeddings come further than {name}: dear data, free",
            "not compared",
            by_name["dear", chosen].accuracies(FREE),
            by_name["dear", name].accuracies(FREE),
            noise,
            own=True,
        )
        for name in (f"{TWO_PHASE}, random", RESIDENT, RS2, INFOBATCH)
    ]
    if infobatch.results and not any(result.pruned for result in infobatch.results):
        text = f"{rivals[-1].ours}; it left nothing out in this time, so it was full-only training"
        rivals[-1] = replace(rivals[-1], ours=text, verdict=UNTESTED)
    return singles + rivals
