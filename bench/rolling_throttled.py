"""Rolling pools whose full set arrives slowly: a trainer that must not wait, and a training on CIFAR-10.

The rate is throttled where samples are read and decoded, `DecodedSource.fetch`, whatever the files are.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from fastload.augment import Augment
from fastload.bench import data, parts
from fastload.bench.measure import Result, result_of, verdict
from fastload.bench.paper.throttle import Throttle
from fastload.bench.rivals import Outcome
from fastload.classifier import SIDE, accuracy, averaged, paper_classifier, paper_optimizer
from fastload.feeds.batch import Batch, Output
from fastload.feeds.decoded_source import DecodedSource
from fastload.feeds.feed import open_feed, run_feed
from fastload.feeds.pool_plan import planned_pool
from fastload.feeds.rolling_feed import pool_images
from fastload.feeds.rolling_order import PoolShape, RollingOrder, rate_of
from fastload.loop.advice import MARGIN
from fastload.loop.loader import TwoPhaseLoader
from fastload.order import FINE_TUNE, Order
from fastload.packed.file import PackedFile
from fastload.packed.set import labels_of

SHARES = (1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32)
"""The stream's rate as a share of the trainer's."""

STEP_SECONDS = 0.100
MOST_WAITED = 2.0
"""What the project promises, in percent."""

FIRST_STEPS = 10
"""Steps whose waiting does not count: the first batch must arrive before there is any."""


@contextmanager
def throttled(rate: float) -> Iterator[None]:
    """Have samples arrive in rolling pools at no more than so many a second, over all threads, while this lasts."""
    turn, fetch, pauses = threading.Lock(), DecodedSource.fetch, list[float]()
    throttle = Throttle(rate, 0, sleep=pauses.append)

    def slow(source: DecodedSource, rows: np.ndarray, out: np.ndarray, starts: np.ndarray) -> None:
        with turn:  # they sleep outside of it: who waits for a lock can be overtaken
            throttle.wait(len(rows))
            pause = sum(pauses)
            pauses.clear()
        time.sleep(pause)
        fetch(source, rows, out, starts)

    DecodedSource.fetch = slow  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        DecodedSource.fetch = fetch  # type: ignore[method-assign]


# -- waiting -------------------------------------------------------------------------------------------------------


def stalls(setting: parts.Setting) -> Outcome:
    """The share of time that a trainer waits which sleeps in each step, with a stream at a share of its rate."""
    batch, steps = setting.pick(128, 8), setting.pick(100, 15)
    trainer = batch / STEP_SECONDS
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as folder:
        full = data.write_noise(Path(folder) / "full.h5", setting.pick(50_000, 256), 32)
        loading: dict[str, Any] = {"pool": setting.pick(4096, 64), "batch_size": batch, "steps": steps}
        loading |= {"augment": Augment.paper(SIDE), "device": setting.device}
        with TwoPhaseLoader(full, refill=1 / 8, **loading) as loader:
            next(iter(loader))  # compiles what there is to compile
        subset = data.write_subset(Path(folder) / "subset.h5", full, loading["pool"])
        with TwoPhaseLoader(full, subset, swap=1.0, **{**loading, "pool": None}) as loader:
            _, waits, gaps = _sleeping(loader)
        still = 100 * sum(waits[FIRST_STEPS:]) / sum(gaps[FIRST_STEPS:])
        outcome.results.append(result_of("waited, a set that stays as it is", "%", [still]))
        for share in SHARES:
            with throttled(share * trainer), TwoPhaseLoader(full, refill=MARGIN * share, **loading) as loader:
                first, waits, gaps = _sleeping(loader)
                stats = loader.stats()["fast"]
            waited = 100 * sum(waits[FIRST_STEPS:]) / sum(gaps[FIRST_STEPS:])
            name = f"waited, stream at 1/{round(1 / share)} of the trainer's rate"
            details = {
                "batch": batch,
                "steps": steps,
                "step_ms": 1e3 * STEP_SECONDS,
                "refill": round(MARGIN * share, 5),
                "first_batch_s": round(first, 3),
                "first_batch_arrives_s": round(batch / (share * trainer), 3),
                "longest_wait_ms": round(1e3 * max(waits[FIRST_STEPS:]), 2),
                "stats": {key: value for key, value in stats.items() if isinstance(value, int | float)},
            }
            outcome.results.append(
                result_of(name, "%", [waited], limit=MOST_WAITED, limit_name="target", details=details)
            )
            outcome.notes.append(verdict(f"{name}, percent", waited, most=MOST_WAITED))
            outcome.notes.append(
                f"{name}: first batch after {first:.3g} s, of which {batch / (share * trainer):.3g} s for its arrival"
            )
    return outcome


def _sleeping(loader: Iterable[Any]) -> tuple[float, list[float], list[float]]:
    """Return the seconds to the first batch, those that each batch was waited for, and those from batch to batch."""
    waits, gaps = list[float](), list[float]()
    before = asked = time.perf_counter()
    for _ in loader:
        now = time.perf_counter()
        waits.append(now - asked)
        gaps.append(now - before)
        before = now
        time.sleep(STEP_SECONDS)
        asked = time.perf_counter()
    return waits[0], waits, gaps


# -- CIFAR-10 ------------------------------------------------------------------------------------------------------

TRAINING_SHARES = (1 / 4, 1 / 16)
LEARNING_RATE = 0.1
SEEDS = 2


def cifar10(setting: parts.Setting, full: Path, test: Path) -> Outcome:
    """Train the paper's classifier on a throttled file: the ids against the counted order, and the accuracy.

    Beside it, in as much time: a set that never makes training wait; a random subset; that, and then the full set, half
    of the time each; and the full set alone, its schedule shortened. Time is counted for those: a step of the stream is
    as many trainer's steps as the stream is slower.
    """
    trainings = _Trainings(setting, full, test)
    outcome = Outcome()
    accuracies: dict[str, list[float]] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the feed has the other processors: threads that compete make steps of any length
    try:
        for seed in range(setting.pick(SEEDS, 1)):
            for name, found in trainings.of(seed):
                accuracies.setdefault(name, []).append(100 * found)
                outcome.notes.append(f"cifar10, seed {seed}: {name}: {100 * found:.2f} %")
            if setting.deadline.left == 0:
                break
    finally:
        torch.set_num_threads(threads)
    details = {"batch": trainings.batch, "steps": trainings.steps, "pool": trainings.pool}
    outcome.results = [
        result_of(f"cifar10, {name}", "% right", rounds, details=details) for name, rounds in accuracies.items()
    ]
    outcome.notes += trainings.notes
    return outcome + Outcome(notes=_differences(outcome.results))


def _differences(results: list[Result]) -> list[str]:
    """Say how far the first throttled training lies from the counted one."""
    found = {one.name: one.rounds[0] for one in results}
    pairs = [(name.replace("counted", "throttled"), right) for name, right in found.items() if "counted" in name]
    return [f"{name}: {found[name] - right:+.2f} points from the counted order" for name, right in pairs]


class _Trainings:
    """Trainings of one length, each from data that arrives in another way.

    Arguments:
        setting: where and how long.
        full: CIFAR-10's training images.
        test: its test images.
    """

    def __init__(self, setting: parts.Setting, full: Path, test: Path) -> None:
        self.batch, self.steps, self.pool = setting.pick(128, 16), setting.pick(300, 12), setting.pick(4352, 64)
        self.notes: list[str] = []
        self._device, self._full, self._test = setting.device, full, test
        self._augment = Augment.paper(SIDE)
        self._output = Output(self.batch, setting.device, memory_format=torch.channels_last)
        with PackedFile(full) as file:
            self._classes = len(file.classes) or int(labels_of(file, "training").max()) + 1

    def of(self, seed: int) -> Iterator[tuple[str, float]]:
        """Yield each training's name and accuracy."""
        steps = self.steps
        with PackedFile(self._full) as file:
            stream = Order(len(file), seed, FINE_TUNE)
            yield "never waiting", self._train(seed, self._streamed(file, stream, steps), steps)
            subset = _Subset(file, self.pool, seed)
            yield "a random subset", self._train(seed, self._streamed(file, subset, steps), steps)
            for share in TRAINING_SHARES:
                words = f"stream at 1/{round(1 / share)}"
                yield f"{words}, rolling, throttled", self._rolling(file, seed, share)
                if seed == 0:  # the same batches give the same training
                    order = self._order(file, seed, share)
                    yield f"{words}, rolling, counted", self._train(seed, self._streamed(file, order, steps), steps)
                later = round(steps / 2 * share)
                both = self._both(file, subset, stream, steps // 2, later)
                yield f"{words}, random subset, then the full set", self._train(seed, both, steps // 2 + later)
                short = round(steps * share)
                yield f"{words}, full set, shortened", self._train(seed, self._streamed(file, stream, short), short)

    def _order(self, file: PackedFile, seed: int, share: float) -> RollingOrder:
        refill = MARGIN * share
        shape: PoolShape = planned_pool(
            self.pool,
            refill,
            full=len(file),
            subset=0,
            images=pool_images([file]),
            batch_size=self.batch,
            world_size=1,
            shuffle=True,
        )[0]
        return RollingOrder(shape, seed, [rate_of(refill, self.batch)])

    def _streamed(self, file: PackedFile, order: Any, steps: int) -> Iterator[Batch]:
        batch = self.batch
        feed = open_feed(file, self._augment, order, self._output)
        return run_feed(feed, lambda step: (step * batch, batch), 0, steps, self._device)

    def _both(self, file: PackedFile, subset: Any, stream: Order, first: int, later: int) -> Iterator[Batch]:
        yield from self._streamed(file, subset, first)
        yield from self._streamed(file, stream, later)

    def _rolling(self, file: PackedFile, seed: int, share: float) -> float:
        """Train on a throttled file, by the clock; compare the ids of each batch with those of the counted order."""
        step = self._step_seconds()
        order, drawn, waited = self._order(file, seed, share), list[np.ndarray](), 0.0
        with (
            throttled(share * self.batch / step),
            TwoPhaseLoader(
                self._full,
                pool=self.pool,
                refill=MARGIN * share,
                batch_size=self.batch,
                steps=self.steps,
                augment=self._augment,
                device=self._device,
                memory_format=torch.channels_last,
                seed=seed,
                with_ids=True,
            ) as loader,
        ):

            def batches() -> Iterator[Batch]:
                for images, labels, ids in loader:
                    drawn.append(ids.cpu().numpy())
                    yield Batch(images, labels, ids)

            found = self._train(seed, batches(), self.steps)
            waited = loader.stats()["fast"]["waited"]
        expected = file.ids[order.rows(0, self.steps * self.batch)[0]].reshape(self.steps, self.batch)
        same = sum(np.array_equal(one, other) for one, other in zip(drawn, expected, strict=True))
        words = f"cifar10, seed {seed}, stream at 1/{round(1 / share)}"
        self.notes.append(f"{words}: {same} of {self.steps} throttled batches hold the ids of the counted order")
        self.notes.append(f"{words}: training waited {waited:.1%} of the time, steps of {1e3 * step:.1f} ms")
        return found

    def _step_seconds(self) -> float:
        """Return the seconds of a step with its batch at hand."""
        images = torch.zeros(self.batch, 3, SIDE, SIDE, device=self._device).contiguous(
            memory_format=torch.channels_last
        )
        labels = torch.zeros(self.batch, dtype=torch.int64, device=self._device)
        trainee, taken = _Trainee(self._classes, 0, self._device), list[float]()
        for _ in range(10):
            began = time.perf_counter()
            trainee.step(images, labels, LEARNING_RATE)
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    def _train(self, seed: int, batches: Iterator[Batch], steps: int) -> float:
        """Train with a rate that falls to 0; return the accuracy on the test set."""
        trainee = _Trainee(self._classes, seed, self._device)
        for step, batch in enumerate(batches):
            assert isinstance(batch.images, torch.Tensor) and batch.labels is not None
            trainee.step(batch.images, batch.labels, LEARNING_RATE * (1 - step / steps))
        with (
            TwoPhaseLoader(
                self._full, batch_size=self.batch, steps=1, swap=0, augment=self._augment, device=self._device
            ) as loader,
            loader.evaluation(self._test, batch_size=1000) as evaluation,
        ):
            return accuracy(trainee.average, evaluation)


class _Trainee:
    """The paper's classifier in training."""

    def __init__(self, classes: int, seed: int, device: torch.device) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.model = paper_classifier(classes).to(device)
        self._optimizer, self.average = paper_optimizer(self.model, LEARNING_RATE), averaged(self.model)

    def step(self, images: torch.Tensor, labels: torch.Tensor, rate: float) -> None:
        """Take a step at a learning rate; its loss is read, so that the step is over on return."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        loss = cross_entropy(self.model(images), labels)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self.average.update_parameters(self.model)
        float(loss.detach())


class _Subset:
    """The order of a random subset of a file's rows."""

    def __init__(self, file: PackedFile, count: int, seed: int) -> None:
        self.n, self.seed, self.phase = len(file), seed, 0
        self._chosen = np.random.default_rng(seed).permutation(len(file))[:count]
        self._order = Order(count, seed, 0)

    def rows(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and epochs, as an order does."""
        rows, epochs = self._order.rows(start, count)
        return self._chosen[rows], epochs
