"""The evidence: what each arm shows, how arms are compared, and that the whole command runs, stops and goes on."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from idx_files import write_fashion
from scipy import stats

from fastload.bench.__main__ import main
from fastload.bench.evidence import airbench94, arms, hypotheses
from fastload.bench.evidence.arms import ARMS, Plan, Setting
from fastload.bench.evidence.findings import Results, best_default, tables
from fastload.bench.evidence.hypotheses import FAILS, HOLDS, UNTESTED, Hypothesis, family, registered
from fastload.bench.evidence.parts import PARTS
from fastload.bench.evidence.recipes import RECIPES
from fastload.bench.evidence.runner import Found
from fastload.bench.evidence.scale import SCALES, SHARES
from fastload.bench.evidence.sets import NAMES, ImageSet, Sources, make_set
from fastload.bench.evidence.statistics import Difference, holm, interval, recovered
from fastload.bench.evidence.training import Cell, Trained, plan_of
from fastload.bench.evidence.workplace import SetPlace
from fastload.feeds.rolling_feed import pool_images
from fastload.order import permutation
from fastload.packed.file import PackedFile

TINY = SCALES["tiny"]


@pytest.fixture(scope="module")
def images(few_cifar: Path):
    with PackedFile(few_cifar) as file:
        yield pool_images([file])


def plan(images, arm: str, *, n=400, pool=96, share=Fraction(1, 4), steps=40, batch=16, seed=3) -> Plan:
    chosen = permutation(n, seed)[:pool]
    return ARMS[arm].plan(Setting(n, np.arange(n), chosen, images, Fraction(share), steps, batch, seed))


def shown(found: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and epochs, [steps, batch] each."""
    rows, epochs = zip(*found.rows(), strict=True)
    return np.stack(rows), np.stack(epochs)


# -- what each arm shows -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", SHARES)
def test_no_arm_takes_more_steps_or_reads_more_than_its_time_allows(images, share):
    share = Fraction(share)
    for arm in ARMS:
        found = plan(images, arm, share=share)
        assert 1 <= found.steps <= 40, arm
        if arm != arms.UNTHROTTLED:
            begun = (arms.GROWING, arms.ECHOED, arms.SHORTENED, arms.CACHED)
            first = 16 if arm in begun else 0  # time counts from the first batch on
            assert found.read <= 40 * share * 16 + first, arm


def test_where_the_stream_keeps_up_the_arms_that_only_wait_for_it_are_the_ceiling(images):
    ceiling = plan(images, arms.UNTHROTTLED).digest()
    for arm in (arms.SHORTENED, arms.CACHED, arms.ECHOED):
        assert plan(images, arm, share=1).digest() == ceiling
        assert plan(images, arm, share=Fraction(1, 2)).digest() != ceiling


@given(st.fractions(Fraction(1, 20), 1, max_denominator=20), st.integers(1, 60))
@settings(max_examples=40, deadline=None)
def test_an_echo_shows_the_last_batch_that_came_and_never_augments_it_alike_twice(images, share, steps):
    found = plan(images, arms.ECHOED, share=share, steps=steps)
    stream = plan(images, arms.UNTHROTTLED, steps=steps)
    rows, epochs = shown(found)
    came = shown(stream)[0]
    for step in range(steps):
        assert np.array_equal(rows[step], came[math.floor(step * share)])
    assert len(np.unique(np.stack([rows.ravel(), epochs.ravel()]), axis=1).T) == rows.size


def test_any_part_of_an_echoed_batch_can_be_asked_for(images):
    (piece,) = plan(images, arms.ECHOED, share=Fraction(1, 3)).pieces
    whole = piece.order.rows(0, 200)
    for start, count in ((0, 1), (5, 40), (47, 2), (150, 50)):
        for part, found in zip(whole, piece.order.rows(start, count), strict=True):
            assert np.array_equal(part[start : start + count], found)


@pytest.mark.parametrize("share", [Fraction(1, 2), Fraction(1, 3), Fraction(1, 7)])
def test_a_cache_is_that_of_a_simulation_sample_by_sample(images, share):
    found = plan(images, arms.CACHED, share=share, steps=300, pool=200)
    # A clock that counts: the stream delivers 16·share samples in a step's time, and works ahead of the trainer.
    rows = shown(plan(images, arms.UNTHROTTLED, steps=300))[0]
    cached, delivered_at, begins, steps = set(), Fraction(0), Fraction(0), 0
    for batch in rows:
        for row in batch.tolist():
            if row not in cached:
                delivered_at += 1 / (16 * share)
                if len(cached) < 200:
                    cached.add(row)
        begins = max(begins + 1, 1 + delivered_at - 1 / share)  # time counts from the first batch
        if begins > 300:
            break
        steps += 1
    assert found.steps == steps > math.floor(300 * share)
    assert np.array_equal(shown(found)[0], rows[:steps])


def test_two_phases_are_half_of_the_time_each(images):
    found = plan(images, arms.RANDOM_TWO_PHASE)
    assert [piece.steps for piece in found.pieces] == [20, 5]
    subset = set(permutation(400, 3)[:96].tolist())
    rows = shown(found)[0]
    assert set(rows[:20].ravel().tolist()) <= subset and not set(rows[20:].ravel().tolist()) <= subset
    assert np.array_equal(rows[20:], shown(plan(images, arms.UNTHROTTLED))[0][:5])


def test_rolling_begins_with_its_pool_and_goes_beyond_it(images):
    pool = set(permutation(400, 3)[:96].tolist())
    rows = shown(plan(images, arms.ROLLING))[0]
    assert set(rows[0].tolist()) <= pool
    assert len(set(rows.ravel().tolist()) - pool) > 50
    assert set(shown(plan(images, arms.FIXED))[0].ravel().tolist()) == pool


# -- what is held out ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sources(few_cifar: Path, tmp_path_factory) -> Sources:
    fashion = tmp_path_factory.mktemp("fashion") / "idx"
    write_fashion(fashion, 300, 100)
    return Sources(few_cifar, few_cifar, fashion, 1000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("evidence")


def place_of(image_set: ImageSet, folder: Path) -> SetPlace:
    return SetPlace(image_set, TINY, torch.device("cpu"), folder)


@pytest.mark.parametrize("name", ["cifar10", "near-copies"])
def test_rates_are_chosen_on_images_of_which_no_copy_is_trained_on(sources, folder, name):
    place = place_of(make_set(name, sources, folder / "sets"), folder)
    held_out = set(place.held_out.tolist())
    assert len(held_out) == len(place.full) // 10 == 40
    pictures = place.full.ids // place.images.copies
    assert not set(pictures[place.held_out].tolist()) & set(pictures[place.remaining].tolist())
    for arm in ARMS:
        if ARMS[arm].pool != "top-activations":
            found = plan_of(place, Cell(name, arm, 1 / 4, 0.0864).canonical(), 5, tuning=True)
            assert not held_out & set(shown(found)[0].ravel().tolist())
    assert sum(len(labels) for _, labels in place.held_out_images) == 40
    place.close()


# -- statistics ----------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=12))
@settings(max_examples=60, deadline=None)
def test_a_difference_is_that_of_a_paired_t_test(pairs):
    first, second = np.array(pairs).T
    if np.std(first - second) < 1e-6:
        return
    found = Difference.of(first.tolist(), second.tolist())
    test = stats.ttest_rel(first, second, alternative="greater")
    both = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert found.p == pytest.approx(test.pvalue, rel=1e-6, abs=1e-12)
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((both.low, both.high), abs=1e-9)
    assert found.least == pytest.approx(test.confidence_interval(0.95).low, abs=1e-9)


def test_few_or_equal_differences_are_not_tested():
    assert math.isnan(Difference.of([0.5], [0.4]).p) and math.isnan(interval([0.5]))
    assert math.isnan(Difference.of([0.5, 0.6], [0.25, 0.35]).p)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_the_step_down_procedure(values):
    # Holm's own words: reject the smallest while it is below level / (how many are left), and stop at the first not.
    adjusted = holm(values)
    for level in (0.01, 0.05, 0.2, 0.7):
        rejected, left = set(), sorted(range(len(values)), key=lambda number: values[number])
        while left and values[left[0]] * len(left) < level:
            rejected.add(left.pop(0))
        assert {number for number, p in enumerate(adjusted) if p < level} == rejected
    assert holm([math.nan, 0.001]) == [1.0, 0.002]


def trained(accuracy: float, memorized: float | None = None) -> Trained:
    return Trained(accuracy, 1.0, 10, 100, 90, 1.0, memorized)


def test_a_hypothesis_holds_where_the_difference_is_beyond_its_margin_and_chance():
    one, other, none = (Cell("cifar10", arm) for arm in (arms.FIXED, arms.UNTHROTTLED, arms.ECHOED))
    noise = [0.001, -0.001, 0.002, 0.0]
    runs = {one: [trained(0.60 + x) for x in noise], other: [trained(0.61) for _ in noise]}
    found = family(
        [
            Hypothesis("A", "better", one, other),
            Hypothesis("B", "worse by no more than 1.5 points", one, other, -0.015),
            Hypothesis("C", "worse by no more than half a point", one, other, -0.005),
            Hypothesis("D", "not trained", none, other),
        ],
        lambda cell: runs.get(cell, ()),
    )
    assert [verdict.verdict for verdict in found] == [FAILS, HOLDS, FAILS, UNTESTED]
    assert found[1].difference.mean == pytest.approx(-0.0095)


def test_what_is_registered_is_what_the_page_says():
    page = (Path(__file__).parents[2] / "docs" / "evidence.md").read_text("utf-8")
    families = registered(["cifar10", "fashion-mnist", "near-copies", "wrong-labels"], SCALES["longer"])
    names = [one.name for hypotheses in families for one in hypotheses]
    assert names == [f"H{number}" for number in range(1, 15)]
    assert [len(one) for one in families] == [3, 1, 3, 1, 3, 2, 1]
    assert "H14" not in [one.name for some in registered(["cifar10"], SCALES["reduced"]) for one in some]
    for name in ("H1", "H2", "H3", "H4", "H8", "H9", "H10", "H11", "H12", "H13", "H14"):
        assert f"| {name} |" in page
    assert (hypotheses.SHARE, hypotheses.POOL, hypotheses.NEAR) == (0.25, 0.0864, 0.015)
    assert "S/T = 1/4, a pool of 8.64 %" in page and "within 1.5 points" in page


def test_every_registered_cell_is_trained_with_all_seeds():
    sets = ["cifar10", "fashion-mnist", "long-tail", "near-copies", "wrong-labels"]
    for scale in SCALES.values():
        seeds: dict[Cell, int] = {}
        for make in PARTS.values():
            for work in make(scale, sets):
                seeds[work.cell] = max(seeds.get(work.cell, 0), work.seeds)
        for one in itertools.chain(*registered(sets, scale)):
            assert seeds[one.first] == seeds[one.second] == scale.seeds


def test_the_default_strategy_is_the_one_that_the_registered_rule_makes():
    def found(strategy: str, better: float) -> list[Found]:
        cells = [Cell(name, arms.FIXED, pool=0.0864, strategy=strategy).canonical() for name in NAMES]
        runs = [tuple(trained(0.5 + 0.01 * seed + better + 0.001 * (seed % 2)) for seed in range(3)) for _ in cells]
        return [Found(cell, 0.1, {}, some) for cell, some in zip(cells, runs, strict=True)]

    worse = [one for name in ("top-activations", "combinations", "penalized") for one in found(name, -0.05)]
    everywhere = found("random", 0.0) + worse + found("scores", 0.2)
    assert best_default(Results(everywhere, {}, TINY)) == ("", [])  # some strategies are not trained
    noisy = [
        Found(one.cell, 0.1, {}, (*one.runs[:2], trained(0.9 if place % 2 else 0.4)))
        for place, one in enumerate(found("kmeans", 0.0))
    ]
    better = Results(everywhere + noisy + found("pca", 0.02) + found("stratified", 0.03), {}, TINY)
    assert best_default(better)[0] == "random"  # all differences are equal: there is no test
    spread = [
        Found(one.cell, 0.1, {}, tuple(trained(run.accuracy + 0.002 * place) for place, run in enumerate(one.runs)))
        for one in found("pca", 0.02) + found("stratified", 0.03)
    ]
    assert best_default(Results(everywhere + noisy + spread, {}, TINY))[0] == "stratified"


def test_the_recovered_share_lies_between_what_waits_and_what_never_does():
    assert recovered(0.55, 0.5, 0.6) == pytest.approx(0.5)
    assert math.isnan(recovered(0.55, 0.6, 0.6))


# -- recipes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(RECIPES))
@pytest.mark.parametrize(("channels", "side"), [(3, 32), (1, 28)])
def test_a_recipe_learns_two_colours(name, channels, side):
    recipe = RECIPES[name]
    height, width = recipe.augment_for(side, channels).sides
    trainee = recipe.begin(2, channels, torch.device("cpu"), {"airbench94": 0.5}.get(name, 0.05), 1)
    labels = torch.arange(32) % 2
    light = (2.0 * labels - 1).view(-1, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    for step in range(12):
        noise = torch.randn(32, channels, height, width, generator=generator)
        shown = (light + 0.5 * noise).contiguous(memory_format=torch.channels_last)
        logits, losses = trainee.step(shown, labels, step / 12)
        assert logits.shape == (32, 2) and losses.shape == (32,)
    with torch.inference_mode():
        found = trainee.logits(light + 0.5 * torch.randn(32, channels, height, width, generator=generator))
    assert (found.argmax(1) == labels).float().mean() > 0.9


def test_weights_hang_on_the_seed_alone():
    state = torch.get_rng_state()
    one, same, other = (RECIPES["small"].begin(10, 3, torch.device("cpu"), 0.1, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    images = torch.ones(2, 3, 24, 24)
    assert torch.equal(one.logits(images), same.logits(images))
    assert not torch.equal(one.logits(images), other.logits(images))


def test_the_first_layer_of_airbench94_whitens():
    images = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images = images.cumsum(3) / 6  # neighbours are alike, as in pictures
    filters = airbench94._whitening(images)
    assert filters.shape == (24, 3, 2, 2) and torch.equal(filters[:12], -filters[12:])
    answers = torch.nn.functional.conv2d(images, filters[:12]).permute(1, 0, 2, 3).reshape(12, -1)
    moments = answers @ answers.T / answers.shape[1]
    assert torch.allclose(moments, torch.eye(12), atol=0.05)


# -- the whole command ---------------------------------------------------------------------------------------------


def words_for(sources: Sources, folder: Path, *more: str) -> list[str]:
    named = ["--full", str(sources.full), "--test", str(sources.test), "--fashion", str(sources.fashion)]
    return ["evidence", *named, "--scale", "tiny", "--folder", str(folder), "--device", "cpu", *more]


@pytest.mark.filterwarnings("ignore:.*each sample serves")
def test_all_of_it_runs_at_a_tiny_scale_stops_and_goes_on(sources, folder, tmp_path, capsys):
    stopped = main(words_for(sources, folder, "--workers", "1", "--only", "registered", "--minutes", "0.0001"))
    assert stopped == 4 and "the same command goes on from here" in capsys.readouterr().out
    assert main(words_for(sources, folder, "--workers", "2", "--plot", str(tmp_path / "img"))) == 0
    done = {path.name for path in (folder / "runs").iterdir()}
    found = json.loads((folder / "results.json").read_text())
    text = (folder / "results.md").read_text()
    for name in ("rates", "arms", "strategies"):
        assert (
            f"](img/evidence-{name}.png)" in text and (tmp_path / "img" / f"evidence-{name}.png").stat().st_size > 9000
        )
    verdicts = found["tables"][0]["rows"]
    assert [row[0] for row in verdicts] == [f"as H{number}" for number in range(1, 14)]
    assert len(found["delivered"]) == len(SHARES) - 1
    assert all(one["same"] == one["steps"] == TINY.steps for one in found["delivered"])
    assert all(one["accuracy"] == pytest.approx(one["counted"], abs=0.02) for one in found["delivered"])
    assert {cell["cell"]["set"] for cell in found["cells"]} == {
        "cifar10",
        "fashion-mnist",
        "long-tail",
        "near-copies",
        "wrong-labels",
    }
    # Nothing is left to do, in one process as in two.
    assert main(words_for(sources, folder, "--workers", "1", "--minutes", "0.0001")) == 0
    assert {path.name for path in (folder / "runs").iterdir()} == done
    assert json.loads((folder / "results.json").read_text())["cells"] == found["cells"]


def test_processes_that_train_end_with_the_one_that_began_them(sources, folder, tmp_path):
    words = words_for(sources, tmp_path, "--workers", "2", "--only", "registered", "--sets", "cifar10")
    first = subprocess.Popen(
        [sys.executable, "-m", "fastload.bench", *words], stdout=subprocess.DEVNULL, start_new_session=True
    )
    others: list[int] = []
    deadline = time.monotonic() + 200
    while len(others) < 2 and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
        others = [one for one in _children(first.pid) if "spawn_main" in _command(one)]
    first.kill()
    first.wait()
    assert len(others) == 2
    while any(_command(one) for one in others) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(_command(one) for one in others)


def _children(process: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        found += [int(one) for one in task.read_text().split()]
    return found


def _command(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text()
    except OSError:
        return ""


def test_what_cannot_be_served_is_one_line(sources, tmp_path, capsys):
    assert main(words_for(sources, tmp_path, "--only", "order")) == 2
    assert main(words_for(sources, tmp_path, "--scale", "huge")) == 2
    assert main(words_for(sources, tmp_path, "--workers", "0")) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3
    assert "order is none of registered, selection, grid, beginnings, feed" in errors[0]
    assert "choose one of tiny, reduced, longer, gpu, paper" in errors[1]
    assert "--workers=0" in errors[2]


def test_without_results_there_are_no_tables():
    assert tables(Results([], {}, TINY), TINY.pools) == []
