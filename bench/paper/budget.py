"""Figures 5 and 6: what a fixed wall-clock budget buys, with cheap data and with dear data, and loss against time."""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass, field
from functools import partial

from fastload.bench.paper.figure4 import full_only, measure_noise
from fastload.bench.paper.findings import (
    RULE,
    UNTESTED,
    Accuracies,
    Findings,
    Noise,
    Verdict,
    all_of,
    better,
    seconds_text,
)
from fastload.bench.paper.scale import BUDGET
from fastload.bench.paper.subsets import Subset, choose
from fastload.bench.paper.timed_training import FULL, INFOBATCH, RESIDENT, RS2, TWO_PHASE, Timed, TimedRun, train_for
from fastload.bench.paper.workplace import Workplace

DEAR = 2.0
"""In the dear setting the stream delivers 1/DEAR of the images that the classifier can take."""

SHARED_BY = (1, 10, 100)
"""R: over how many trainings the selection is spread."""

PAPER = {("dear", f"{TWO_PHASE}, top-activations"): "63.5 %", ("dear", FULL): "10.4 %"}
"""What the paper reports for 7 minutes of 12, means of four runs; its claim is about data that is dear to feed."""

_FAST = 0.5
"""The paper's 5,000 fast steps of 10,000."""


@dataclass
class Contest:
    """A rival in a setting: its results by seed, and by R the accuracies that its budget leaves, None for no time."""

    setting: str
    name: str
    selection: float
    results: list[Timed] = field(default_factory=list)
    by_sharing: dict[str, list[float | None]] = field(default_factory=dict)

    def accuracies(self, sharing: str) -> Accuracies:
        return Accuracies(tuple(one for one in self.by_sharing.get(sharing, ()) if one is not None))


def budget(place: Workplace) -> Findings:
    """Give every rival the same seconds, the selection's among them."""
    found = Findings("budget", "Figures 5 and 6: a fixed wall-clock budget")
    paces = full_only(place, place.seeds).results
    if len(paces) < len(place.seeds):
        found.notes = ["not begun: the full-only runs have to tell the pace first"]
        return found
    fastest = min(one.seconds for one in paces)  # what else runs on the machine can only slow one down
    pace = place.scale.steps * place.scale.batch / fastest
    budgets = {"cheap": BUDGET * fastest, "dear": BUDGET * fastest * DEAR}
    contests = [one for setting in budgets for one in _setting(place, setting, budgets[setting], pace)]
    names = [*(f"R = {runs}" for runs in SHARED_BY), "free"]
    found.columns = (
        "data",
        "rival",
        "runs",
        *(f"accuracy, {name}" for name in names),
        "the paper",
        "steps",
        "images",
        "distinct samples seen",
        "loss at the end",
        "left out",
    )
    found.rows = [_texts(place, one, names) for one in contests]
    found.data = {
        "pace": pace,
        "budgets": budgets,
        "stream_rate": pace / DEAR,
        "contests": [
            {
                "setting": one.setting,
                "name": one.name,
                "selection_seconds": one.selection,
                "accuracy_by_sharing": one.by_sharing,
                "runs": [vars(result) for result in one.results],
            }
            for one in contests
        ],
    }
    # A contest is a row of runs too; its spread, of one run often, is the main table's.
    known = measure_noise(place, [])
    own = Noise.of((one.accuracies("free") for one in contests), len(place.test))
    noise = Noise(max(own.spread, known.spread), own.test)
    found.verdicts = _verdicts(contests, noise)
    found.notes = [
        f"Cheap data: raw pixels, which every rival may keep in memory; {seconds_text(budgets['cheap'])}, 7/12 of the "
        f"{seconds_text(fastest)} that {place.scale.steps:,} steps on the full set take.",
        f"Dear data (throttled by us, to stand for slow storage or decoding): the full set's stream delivers at most "
        f"{pace / DEAR:,.0f} images/s, 1/{DEAR:g} of what the classifier takes; {seconds_text(budgets['dear'])}, 7/12 "
        f"of what those steps take then. The resident subset is not throttled; “everything resident” streams its first "
        "epoch, trains meanwhile, and keeps it; RS2 and InfoBatch stream what they draw.",
        f"R: the seconds that the selection took, divided by R trainings that share the subset, are taken from the "
        f"budget; “free” leaves them out. Two phases: {round(_FAST * place.scale.steps):,} steps on the subset, as the "
        "paper's 5,000 of 10,000, then the full set. Testing is not timed. Where data is cheap, steps differ by "
        "little but what else the machine did.",
        "InfoBatch: r = 0.5, δ = 12.5 % of the budget; it leaves nothing out in its first epoch, so below two epochs "
        "it is full-only training. “left out”: of all epochs that it began.",
        f"Rule: {RULE}.",
    ]
    return found


def _setting(place: Workplace, setting: str, budget: float, pace: float) -> list[Contest]:
    """Let all rivals train in one setting."""
    rate = pace / DEAR if setting == "dear" else None
    contests = []
    for rival, strategy in (
        (TWO_PHASE, "top-activations"),
        (TWO_PHASE, "random"),
        (FULL, None),
        (RESIDENT, None),
        (RS2, None),
        (INFOBATCH, None),
    ):
        name = rival if strategy is None else f"{rival}, {strategy}"
        contest = Contest(setting, name, 0.0)
        contests.append(contest)
        for seed in place.few:
            what = f"budget, {setting}, {name}"
            if strategy is None:
                subset = None
            else:
                drawn = seed if strategy == "random" else 0
                subset = place.attempt(what, partial(choose, place, strategy, seed=drawn))
                if subset is None:
                    continue
                contest.selection = subset.seconds
            _train(place, contest, what, _run(place, rival, seed, budget, rate, subset))
    return contests


def _run(place: Workplace, rival: str, seed: int, budget: float, rate: float | None, subset: Subset | None) -> TimedRun:
    seconds = 0.0 if subset is None else subset.seconds
    marks = sorted({left for runs in SHARED_BY if (left := budget - seconds / runs) > 0} | {budget})
    swap = 0 if subset is None else round(_FAST * place.scale.steps)
    return TimedRun(rival, seed, budget, rate, tuple(marks), subset, swap)


def _train(place: Workplace, contest: Contest, what: str, run: TimedRun) -> None:
    result = place.attempt(what, lambda: train_for(place, run))
    if result is None:
        return
    contest.results.append(result)
    at = dict(zip(run.marks, result.accuracies, strict=True))
    for runs in SHARED_BY:
        contest.by_sharing.setdefault(f"R = {runs}", []).append(at.get(run.budget - contest.selection / runs))
    contest.by_sharing.setdefault("free", []).append(at[run.budget])


def _texts(place: Workplace, one: Contest, names: list[str]) -> tuple[str, ...]:
    if not one.results:
        return (one.setting, one.name, "0", *["not yet"] * (len(names) + 6))
    steps = statistics.mean(result.steps for result in one.results)
    ends = [result.curve[-1][1] for result in one.results if result.curve]
    pruned = [result.pruned for result in one.results if result.pruned is not None]
    return (
        one.setting,
        one.name,
        str(len(one.results)),
        *(one.accuracies(name).text() if one.accuracies(name) else "no time left to train" for name in names),
        PAPER.get((one.setting, one.name), "–"),
        f"{steps:,.0f}",
        f"{steps * place.scale.batch:,.0f}",
        f"{statistics.mean(result.distinct for result in one.results):,.0f}",
        f"{statistics.mean(ends):.2f}" if ends else "–",
        f"{statistics.mean(pruned):.0%}" if pruned else "–",
    )


def _verdicts(contests: list[Contest], noise: Noise) -> list[Verdict]:
    """The paper's claim for each setting and sharing, all together, and two-phase against each rival, dear data."""
    by_name = {(one.setting, one.name): one for one in contests}
    chosen = f"{TWO_PHASE}, top-activations"
    claim = "in a fixed budget two phases come further than the full set only"
    singles = []
    for setting in ("cheap", "dear"):
        for sharing in ("free", *(f"R = {runs}" for runs in SHARED_BY)):
            ours, full = by_name[setting, chosen], by_name[setting, FULL].accuracies("free")
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
    if together != UNTESTED:
        singles.append(Verdict(claim, "63.5 % against 10.4 %", f"repeated with: {on}", together, RULE))
    infobatch = by_name["dear", INFOBATCH]
    rivals = [
        better(
            f"two phases with embeddings come further than {name}: dear data, free",
            "not compared",
            by_name["dear", chosen].accuracies("free"),
            by_name["dear", name].accuracies("free"),
            noise,
            own=True,
        )
        for name in (f"{TWO_PHASE}, random", RESIDENT, RS2, INFOBATCH)
    ]
    if infobatch.results and not any(result.pruned for result in infobatch.results):
        text = f"{rivals[-1].ours}; it left nothing out in this time, so it was full-only training"
        rivals[-1] = dataclasses.replace(rivals[-1], ours=text, verdict=UNTESTED)
    return singles + rivals
