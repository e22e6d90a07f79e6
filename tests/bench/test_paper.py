"""`python -m fastload.bench paper`: the rivals' rules, runs that resume exactly, every experiment at a tiny scale."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from batches import same
from packs import noise_images, write_raw

from fastload.augment import Augment
from fastload.bench.__main__ import main
from fastload.bench.measure import Deadline
from fastload.bench.paper import budget, command, timed_training, trainee, training
from fastload.bench.paper.chosen_rows_feed import ChosenRowsFeed
from fastload.bench.paper.findings import Accuracies, Noise, Verdict, all_of, better, by_schedule, compare
from fastload.bench.paper.fresh_subsets import FreshFeed, FreshSubsets
from fastload.bench.paper.infobatch import InfoBatch
from fastload.bench.paper.scale import Scale
from fastload.bench.paper.subsets import choose
from fastload.bench.paper.throttle import Throttle
from fastload.bench.paper.timed_training import INFOBATCH, RESIDENT, RS2, TWO_PHASE, TimedRun, train_for
from fastload.bench.paper.trainee import Trainee, learning_rate
from fastload.bench.paper.training import Run, train
from fastload.bench.paper.workplace import Options, OutOfTime, Workplace
from fastload.bench.state import State
from fastload.errors import DataError, UsageError
from fastload.feeds.batch import Output
from fastload.order import FINE_TUNE, Order
from fastload.packed.file import PackedFile

CPU = torch.device("cpu")
TINY = 1e-5


@pytest.fixture(scope="module")
def test_set(few_cifar, tmp_path_factory) -> Path:
    """Every fourth of the 400 images: enough to measure an accuracy."""
    with PackedFile(few_cifar) as full:
        rows = np.arange(0, len(full), 4)
        pixels = np.stack([full.read_image(int(row)) for row in rows])
        path = tmp_path_factory.mktemp("paper") / "test.h5"
        return write_raw(path, pixels, full.labels[rows], classes=full.classes)


def workplace(full: Path, test: Path, folder: Path, deadline: Deadline | None = None) -> Workplace:
    options = Options(full, test, folder, CPU, TINY, 2, float("inf"), deadline or Deadline(1e9))
    return Workplace(options, say=lambda text: None)


@pytest.fixture
def quick(monkeypatch) -> None:
    """A small classifier in place of the paper's, whose steps would take nearly all the time of a whole command."""

    def small_classifier(classes: int) -> torch.nn.Module:
        layers = torch.nn.AvgPool2d(8), torch.nn.Flatten(), torch.nn.BatchNorm1d(27), torch.nn.Linear(27, classes)
        return torch.nn.Sequential(*layers)

    monkeypatch.setattr(trainee, "paper_classifier", small_classifier)


class StopsAfter:
    """A deadline that comes after it was asked for so many times."""

    def __init__(self, asked: int) -> None:
        self.asked = asked

    @property
    def left(self) -> float:
        self.asked -= 1
        return 1.0 if self.asked >= 0 else 0.0


# -- the rivals' rules ---------------------------------------------------------------------------------------------


def test_infobatch_prunes_below_the_mean_with_probability_r_and_keeps_the_expected_gradient():
    losses = np.random.default_rng(0).exponential(size=2000)
    gradients = np.random.default_rng(1).standard_normal(2000)
    rule = InfoBatch(2000, seed=3)
    rule.learn(np.arange(2000), losses)
    below = losses < losses.mean()
    sums, kept = [], []
    for _ in range(300):
        rows, weights = rule.next_epoch(0.5)
        assert len(set(rows.tolist())) == len(rows)
        assert set(np.flatnonzero(~below).tolist()) <= set(rows.tolist()), "a sample above the mean was left out"
        assert (weights == np.where(below[rows], 2.0, 1.0)).all(), "1 / (1 - r) below the mean, 1 above it"
        sums.append((gradients[rows] * weights).sum())
        kept.append(below[rows].sum() / below.sum())
    assert np.mean(kept) == pytest.approx(0.5, abs=0.01)
    error = np.std(sums) / np.sqrt(len(sums))
    assert abs(np.mean(sums) - gradients.sum()) < 4 * error, "the expected gradient is that of all samples"
    assert sorted(rule.next_epoch(0.874)[0]) != list(range(2000))
    rows, weights = rule.next_epoch(0.875)
    assert sorted(rows) == list(range(2000)) and (weights == 1).all(), "annealing: the last 12.5 % see everything"


def test_infobatch_leaves_nothing_out_that_it_has_not_seen_and_is_decided_by_the_seed():
    rule = InfoBatch(50)
    rows, weights = rule.next_epoch(0.0)
    assert sorted(rows) == list(range(50)) and (weights == 1).all() and rows.tolist() != list(range(50))
    rule.learn(np.arange(20), np.linspace(0, 1, 20))
    assert set(range(20, 50)) <= set(rule.next_epoch(0.1)[0].tolist())
    again = InfoBatch(50)
    assert again.next_epoch(0.0)[0].tolist() == rows.tolist()
    assert InfoBatch(50, seed=1).next_epoch(0.0)[0].tolist() != rows.tolist()


def test_rs2_draws_a_fresh_subset_each_epoch_without_repeats_within_one():
    order = FreshSubsets(100, 9, seed=5)
    rows, epochs = order.rows(0, 90)
    assert epochs.tolist() == np.repeat(np.arange(10), 9).tolist()
    subsets = [frozenset(rows[9 * epoch : 9 * epoch + 9].tolist()) for epoch in range(10)]
    assert all(len(subset) == 9 for subset in subsets) and len(set(subsets)) == 10
    assert len(set(rows.tolist())) > 45, "ten fresh subsets of 9 cover more than half of 100"
    for epoch in range(10):  # by its definition: the first places of the full set's permutation of that epoch
        assert rows[9 * epoch : 9 * epoch + 9].tolist() == Order(100, 5, FINE_TUNE).rows(100 * epoch, 9)[0].tolist()
    pieces = [order.rows(start, min(7, 90 - start)) for start in range(0, 90, 7)]
    assert np.concatenate([piece[0] for piece in pieces]).tolist() == rows.tolist()
    assert FreshSubsets(100, 100).rows(0, 100)[0].tolist() == Order(100, 0, FINE_TUNE).rows(0, 100)[0].tolist()
    for size in (0, 101):
        with pytest.raises(UsageError, match=f"size={size}"):
            FreshSubsets(100, size)


@pytest.mark.parametrize("size", [7, 35, 400])  # a batch of 16 holds three epochs or more, seldom two, one
def test_rs2_of_a_resident_set_and_of_a_stream_are_the_same_batches(few_cifar, monkeypatch, size):
    subsets, runs = FreshSubsets(400, size, seed=5), {}
    with PackedFile(few_cifar) as full:
        for budget in (0, 1 << 30):
            monkeypatch.setattr("fastload.common.memory.RESIDENT_BUDGET", budget)
            feed = FreshFeed(full, Augment.paper(24), subsets, Output(16, CPU, memory_format=torch.channels_last))
            assert feed.kind == ("resident" if budget else "stream")
            runs[feed.kind] = [feed.make(step * 16, 16) for step in range(12)]
            feed.close()
    assert same(runs["resident"], runs["stream"])
    assert all(batch.images.is_contiguous(memory_format=torch.channels_last) for batch in runs["resident"])
    ids = torch.cat([batch.ids for batch in runs["resident"]])
    assert np.array_equal(ids.numpy(), subsets.rows(0, 192)[0])  # ids are row numbers there


def test_a_throttle_never_lets_more_images_pass_than_its_rate_and_look_ahead():
    now, slept = [0.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    throttle = Throttle(100.0, ahead=20, clock=lambda: now[0], sleep=sleep)
    for _ in range(10):
        throttle.wait(10)
    assert now[0] == pytest.approx(1.0), "100 images at 100 images/s"
    now[0] += 50.0  # a trainer that pauses gets what stands ready, and no more
    before = now[0]
    for _ in range(10):
        throttle.wait(10)
    assert now[0] - before == pytest.approx(0.8)
    assert Throttle(1e9, 1, clock=lambda: 0.0, sleep=slept.append).wait(1) is None


def test_a_told_feed_gives_the_rows_that_it_was_told_with_full_batches(few_cifar):
    with PackedFile(few_cifar) as full:
        feed = ChosenRowsFeed(full, Augment.paper(24), Output(16, CPU), seed=1)
        for epoch, count in enumerate((50, 33, 7)):
            rows = np.random.default_rng(epoch).permutation(400)[:count]
            given = [(batch.ids.numpy(), which) for batch, which in feed.epoch(rows)]
            size = min(16, count)
            assert len(given) == count // size and all(len(ids) == size for ids, _ in given)
            for ids, which in given:
                assert ids.tolist() == full.ids[rows[which]].tolist()
        feed.close()


def test_weights_multiply_each_images_loss_before_the_mean(few_cifar, test_set, tmp_path):
    with workplace(few_cifar, test_set, tmp_path) as place:
        images, labels = torch.randn(8, 3, 24, 24), torch.arange(8)
        one, other = Trainee(place, 0), Trainee(place, 0)
        weights = torch.tensor([2.0, 1, 1, 2, 1, 1, 1, 1])
        losses = one.step(images, labels, 0.1, weights)
        logits = other.model(images)
        expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        torch.testing.assert_close(losses, expected.detach())
        (expected * weights).mean().backward()
        for ours, reference in zip(one.model.parameters(), other.model.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, reference.grad)


# -- trainings that resume -----------------------------------------------------------------------------------------


def test_a_run_that_was_stopped_and_one_that_begins_at_anothers_state_end_like_one_from_scratch(
    few_cifar, test_set, tmp_path
):
    with workplace(few_cifar, test_set, tmp_path / "a") as place:
        subset = choose(place, "random", seed=1)
        plain = train(place, Run(3, subset, swap=10, schedule="decaying"))
        rs2 = train(place, Run(3, fresh=True))
    # Stopped again and again, every few steps.
    stops = 0
    for run in (lambda subset: Run(3, subset, swap=10, schedule="decaying"), lambda subset: Run(3, fresh=True)):
        while True:
            with workplace(few_cifar, test_set, tmp_path / "b", StopsAfter(9)) as place:
                try:
                    found = train(place, run(choose(place, "random", seed=1)))
                    break
                except OutOfTime:
                    stops += 1
        expected = rs2 if run(None).fresh else plain
        assert (found.accuracy, found.loss, found.distinct) == (expected.accuracy, expected.loss, expected.distinct)
    assert stops >= 2
    # As a branch of the run that stays on the subset.
    with workplace(few_cifar, test_set, tmp_path / "c") as place:
        subset = choose(place, "random", seed=1)
        train(place, Run(3, subset, swap=20, schedule="decaying"), keep=(10, 20))
        assert len(list((tmp_path / "c" / "checkpoints").iterdir())) == 2
        other = Run(3, subset, swap=20).beginning(place, 10)
        assert place.state.load(other) is None, "a constant rate begins otherwise"
        steps = []
        place.deadline = type("Counting", (), {"left": property(lambda self: steps.append(1) or 1.0)})()
        branch = train(place, Run(3, subset, swap=10, schedule="decaying"), keep=(10, 20))
        assert len(steps) < 15, "the first ten steps were not taken again"
    assert (branch.accuracy, branch.loss, branch.distinct) == (plain.accuracy, plain.loss, plain.distinct)


def test_distinct_samples_are_counted_over_both_phases(few_cifar, test_set, tmp_path, quick):
    with workplace(few_cifar, test_set, tmp_path) as place:
        subset = choose(place, "random")
        assert train(place, Run(0, subset, swap=20)).distinct == 35, "8.64 % of 400"
        assert train(place, Run(0)).distinct == 320, "20 steps of 16, less than an epoch"
        with PackedFile(subset.path) as file:
            ids = set(file.ids.tolist())
        with PackedFile(few_cifar) as full:
            rows = Order(400, 0, FINE_TUNE).rows(0, 160)[0]
            expected = ids | set(full.ids[rows].tolist())
        assert train(place, Run(0, subset, swap=10)).distinct == len(expected)


def test_results_are_found_by_exactly_their_settings_and_damage_is_done_again(tmp_path):
    state = State(tmp_path)
    state.record("training", {"a": 1, "b": [1.5]}, {"accuracy": 0.5})
    assert state.find("training", {"b": [1.5], "a": 1}) == {"accuracy": 0.5}
    assert state.find("training", {"a": 2, "b": [1.5]}) is None and state.find("timed", {"a": 1, "b": [1.5]}) is None
    (path,) = (tmp_path / "runs").iterdir()
    path.write_text(path.read_text()[:-9])
    assert state.find("training", {"a": 1, "b": [1.5]}) is None
    state.save("k", {"x": torch.arange(3)})
    assert state.load("k")["x"].tolist() == [0, 1, 2]
    (tmp_path / "checkpoints" / "k.pt").write_bytes(b"no")
    assert state.load("k") is None
    state.forget_all()
    assert not list((tmp_path / "checkpoints").iterdir())


# -- a fixed budget ------------------------------------------------------------------------------------------------


class Ticking(timed_training._Clock):
    """A clock on which every step takes 20 ms, whatever the machine does meanwhile."""

    ticks, tick = 0, 0.02

    def read(self) -> float:
        self.ticks += 1
        return self.tick * self.ticks


def test_infobatch_leaves_samples_out_once_it_has_seen_them_all(few_cifar, test_set, tmp_path, monkeypatch, quick):
    monkeypatch.setattr(timed_training, "_Clock", Ticking)
    with workplace(few_cifar, test_set, tmp_path) as place:
        found = train_for(place, TimedRun(INFOBATCH, 0, 3.0, marks=(1.0, 3.0)))
        assert len(found.accuracies) == 2 and found.distinct == 400
        assert 0 < found.pruned < 0.5
        assert train_for(place, TimedRun(INFOBATCH, 0, 3.0, marks=(1.0, 3.0))) == found, "not found again"


@pytest.mark.parametrize("tick", [0.02, 0.05])
def test_a_decaying_rate_is_0_when_the_budget_ends_however_slow_the_steps_are(
    tick, few_cifar, test_set, tmp_path, monkeypatch, quick
):
    rates: dict[str, list[float]] = {}
    step = Trainee.step

    def noted(self, images, labels, rate, weights=None):
        rates[schedule].append(rate)
        return step(self, images, labels, rate, weights)

    monkeypatch.setattr(timed_training, "_Clock", Ticking)
    monkeypatch.setattr(Ticking, "tick", tick)
    with workplace(few_cifar, test_set, tmp_path) as place:
        trainee.rehearse(place)
        monkeypatch.setattr(Trainee, "step", noted)
        for schedule in trainee.SCHEDULES:
            rates[schedule] = []
            train_for(place, TimedRun(RS2, 0, 1.0, marks=(1.0,), schedule=schedule))
    times = [tick * count for count in range(1, round(1 / tick))]
    assert rates["decaying"] == pytest.approx([0.1 * (1 - time) for time in times], abs=1e-9)
    assert rates["constant"] == [0.1] * len(times)


def test_the_selections_seconds_are_taken_from_the_budget_and_a_decaying_rate_ends_in_what_is_left():
    left = budget._time_left(16.0, 144.0)
    assert left == pytest.approx({"R = 1": 0.0, "R = 10": 1.6, "R = 100": 14.56, "free": 16.0})
    assert set(budget._time_left(16.0, 0.05).values()) == {16.0}, "less than half a per cent is no run of its own"
    constant = budget._runs(TimedRun(TWO_PHASE, 1, 16.0, swap=7), left)
    assert [(run.budget, run.marks) for run in constant] == [(16.0, (left["R = 10"], left["R = 100"], 16.0))]
    decaying = budget._runs(TimedRun(TWO_PHASE, 1, 16.0, swap=7, schedule="decaying"), left)
    assert [(run.budget, run.marks) for run in decaying] == [(at, (at,)) for at in constant[0].marks]
    assert all((run.seed, run.swap) == (1, 7) for run in constant + decaying)


@pytest.mark.parametrize("rival", [timed_training.FULL, RESIDENT, RS2, INFOBATCH, TWO_PHASE])
def test_every_rival_ends_in_time_and_dear_data_comes_no_faster_than_the_rate(
    rival, few_cifar, test_set, tmp_path, quick
):
    with workplace(few_cifar, test_set, tmp_path) as place:
        subset = choose(place, "random") if rival == TWO_PHASE else None
        dear = train_for(place, TimedRun(rival, 0, 1.0, 64.0, (1.0,), subset, 0))
        assert dear.steps >= 1 and dear.steps * 16 <= 64 + 3 * 16
        if rival == TWO_PHASE:
            fast = train_for(place, TimedRun(rival, 0, 2.0, 16.0, (2.0,), subset, 10))
            assert fast.steps >= 10, "the resident subset is not throttled"
            assert fast.distinct <= 35 + 7 * 16
        began = time.perf_counter()
        cheap = train_for(place, TimedRun(rival, 0, 1.0, None, (1.0,), subset, 0))
        assert cheap.steps > dear.steps and time.perf_counter() - began > 1.0
        times = [at for at, _ in cheap.curve]
        assert times == sorted(times) and len(times) <= 200


def test_everything_resident_streams_its_first_epoch_only(few_cifar, test_set, tmp_path, quick):
    with workplace(few_cifar, test_set, tmp_path) as place:
        found = train_for(place, TimedRun(RESIDENT, 0, 2.0, 1600.0, (2.0,)))
    assert found.distinct == 400 and found.steps * 16 > 400 + 3 * 16, "0.25 s for the stream, then as fast as it goes"


def test_a_budget_that_no_call_can_hold_says_so(few_cifar, test_set, tmp_path):
    options = Options(few_cifar, test_set, tmp_path, CPU, TINY, 1, 60.0, Deadline(60.0))
    with Workplace(options) as place, pytest.raises(UsageError, match=r"--minutes is too short: .* 1.9 minutes"):
        train_for(place, TimedRun(RS2, 0, 100.0))


# -- judging -------------------------------------------------------------------------------------------------------


def test_a_difference_counts_when_it_is_more_than_two_standard_errors():
    noise = Noise.of([Accuracies((0.60, 0.62)), Accuracies((0.50, 0.54)), Accuracies((0.4,))], 10_000)
    assert noise.spread == pytest.approx(np.sqrt((0.0002 + 0.0008) / 2))
    one, other = Accuracies((0.61, 0.61)), Accuracies((0.54, 0.54))
    expected = 2 * np.sqrt(noise.spread**2 * (1 / 2 + 1 / 2) + 2 * 0.575 * 0.425 / 10_000)
    assert noise.margin(one, other) == pytest.approx(expected)
    assert compare(one, other, noise) == 1 and compare(other, one, noise) == -1
    assert compare(one, Accuracies((0.60, 0.60)), noise) == 0
    assert better("c", "p", one, other, noise).verdict == "repeated"
    assert better("c", "p", other, one, noise).verdict == "not repeated"
    assert better("c", "p", other, one, noise, own=True).verdict == "does not hold"
    assert better("c", "p", one, Accuracies(()), noise).verdict == "not tested"
    assert all_of(["repeated", "not repeated"]) == "depends" and all_of(["repeated", "not tested"]) == "repeated"


def test_a_claim_has_one_verdict_over_both_rates_which_depends_where_they_disagree():
    constant = [Verdict("a", "p", "1 against 2", "repeated", "r"), Verdict("b", "q", "same", "holds", "s")]
    decaying = [Verdict("a", "p", "3 against 2", "not repeated", "r"), Verdict("b", "q", "other", "holds", "s")]
    found = by_schedule({"constant": constant, "decaying": decaying})
    text = "constant rate: 1 against 2, repeated; decaying rate: 3 against 2, not repeated"
    assert found[0] == Verdict("a", "p", text, "depends", "r")
    assert (found[1].claim, found[1].verdict) == ("b", "holds")


def test_scale_1_is_the_papers_and_smaller_ones_have_fewer_images_in_proportion():
    paper = Scale.of(1, 50_000)
    assert (paper.steps, paper.batch) == (10_000, 1024)
    assert dict(paper.autoencoder)["816 epochs"] == 40_000 and dict(paper.autoencoder)["1 epoch"] == 49
    small = Scale.of(1 / 256, 50_000)
    assert small.batch == 128 and small.steps * small.batch == pytest.approx(40_000, rel=0.01)
    assert dict(small.autoencoder) == {"1 epoch": 391, "10 epochs": 3910}
    for wrong in (0, -1, 2, float("nan")):
        with pytest.raises(UsageError, match="--scale"):
            Scale.of(wrong, 50_000)
    assert [learning_rate("constant", progress) for progress in (0, 0.9)] == [0.1, 0.1]
    assert [learning_rate("decaying", progress) for progress in (0, 0.5, 0.9)] == pytest.approx([0.1, 0.05, 0.01])


# -- the command ---------------------------------------------------------------------------------------------------


def test_every_experiment_runs_resumes_and_tells_at_a_tiny_scale(
    few_cifar, test_set, tmp_path, monkeypatch, capsys, quick
):
    folder = tmp_path / "state"
    arguments = ["paper", "--full", str(few_cifar), "--test", str(test_set), "--scale", str(TINY), "--device", "cpu"]
    arguments += ["--folder", str(folder), "--seeds", "2"]
    # Stopped in the middle of the autoencoder, in the middle of Figure 4, and then left to end.
    for asked in (20, 500):
        with monkeypatch.context() as patch:
            patch.setattr(command, "Deadline", lambda seconds, asked=asked: StopsAfter(asked))
            assert main(arguments) == command.TIME_IS_UP
        assert "the same command goes on" in capsys.readouterr().out
        assert "not yet" in (folder / "results.md").read_text()
    assert main(arguments) == 0
    text = (folder / "results.md").read_text()
    report = json.loads((folder / "results.json").read_text())
    assert [one["name"] for one in report["experiments"]] == list(command.EXPERIMENTS) and not report["unfinished"]
    assert "not yet" not in text and str(tmp_path) not in text
    for words in ("combinations", "kmeans", "pca", "penalized", "RS2", "InfoBatch", "everything resident", "86.4%"):
        assert words in text
    by_name = {one["name"]: one for one in report["experiments"]}
    expected = {(name, share) for name in ("top-activations", "random") for share in (0.25, 0.5, 0.75, 0.9, 0.95, 1.0)}
    expected |= {(name, share) for name in ("combinations", "kmeans", "pca", "penalized") for share in (0.5, 1.0)}
    expected |= {("full only", 0.0), ("RS2", None)}
    rows = by_name["figure4"]["data"]["rows"]
    for schedule in ("constant", "decaying"):
        assert {(row["name"], row["share"]) for row in rows if row["schedule"] == schedule} == expected
    contests = by_name["budget"]["data"]["contests"]
    assert len(contests) == 24 and all(len(one["accuracy_by_sharing"]["R = 1"]) == 2 for one in contests)
    for name in ("figure4", "autoencoder", "smaller"):
        arms = {}
        for row in by_name[name]["data"]["rows"]:
            arms.setdefault((row["name"], row["share"]), []).append((row["schedule"], len(row["runs"]) >= 2))
        assert all(arm == [("constant", True), ("decaying", True)] for arm in arms.values()), name
    assert {len(one["runs"]) for one in contests} == {2}
    assert all(one["verdicts"] for one in report["experiments"] if one["name"] != "figure3")
    claims = [one["claim"] for each in report["experiments"] for one in each["verdicts"]]
    assert len(claims) == len(set(claims)), "one claim, one place"
    pruned = any(run["pruned"] for one in contests if one["setting"] == "dear" for run in one["runs"])
    (on_infobatch,) = (one for one in by_name["budget"]["verdicts"] if "InfoBatch" in one["claim"])
    assert (on_infobatch["verdict"] == "not tested") == (not pruned), "a rival that pruned nothing was not a rival"
    assert (folder / "figure3.png").stat().st_size > 1000
    assert not list((folder / "checkpoints").iterdir()), "nothing is left to do, so no state is kept"

    # All is known: nothing is trained again.
    def no_training(*arguments):
        raise AssertionError("trained again")

    monkeypatch.setattr(training, "_train", no_training)
    monkeypatch.setattr(timed_training, "_train_for", no_training)
    assert main(arguments) == 0
    again = json.loads((folder / "results.json").read_text())
    assert [one["rows"] for one in again["experiments"]] == [one["rows"] for one in report["experiments"]]


def test_plots_are_drawn_where_matplotlib_is(few_cifar, test_set, tmp_path, quick):
    arguments = ["paper", "--full", str(few_cifar), "--test", str(test_set), "--scale", str(TINY), "--device", "cpu"]
    arguments += ["--folder", str(tmp_path), "--only", "autoencoder", "--plot", str(tmp_path / "img")]
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        assert main(arguments) == 2
        assert not list(tmp_path.iterdir()), "it must say so before the training, not after it"
        return
    assert main(arguments) == 0
    assert (tmp_path / "img" / "paper-autoencoder.png").stat().st_size > 1000
    assert "](img/paper-autoencoder.png)" in (tmp_path / "results.md").read_text()
    report = json.loads((tmp_path / "results.json").read_text())
    assert report["seeds"] == [0, 1, 2], "each side of a claim has three runs unless said otherwise"


def test_what_cannot_be_served_is_one_line(few_cifar, test_set, tmp_path, capsys):
    files = ["--full", str(few_cifar), "--test", str(test_set), "--folder", str(tmp_path / "s"), "--device", "cpu"]
    assert main(["paper", *files, "--only", "figure5"]) == 2
    assert main(["paper", *files, "--minutes", "0"]) == 2
    assert main(["paper", *files, "--seeds", "0"]) == 2
    assert main(["paper", *files, "--scale", "3"]) == 2
    small = write_raw(tmp_path / "small.h5", noise_images(20, 16, 16), np.arange(20) % 10)
    assert main(["paper", *files[:2], "--test", str(small), *files[4:]]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 5 and all(line.startswith("error: ") for line in errors)
    assert "figure3, figure4, budget" in errors[0]


def test_sets_that_do_not_suit_are_refused(few_cifar, tmp_path):
    other = write_raw(tmp_path / "other.h5", noise_images(20), np.arange(20) % 10, classes=["other"] * 10)
    with pytest.raises(DataError, match="other classes"):
        workplace(few_cifar, other, tmp_path)
