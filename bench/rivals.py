"""`python -m fastload.bench resident`: our engines and the rivals on the same bytes, in interleaved rounds."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastload.augment import Augment
from fastload.bench import data, parts
from fastload.bench.measure import Contestant, Result, Withdrawn, compare, race, seconds_of
from fastload.bench.peers.install import Peer
from fastload.bench.peers.process import PeerError, PeerProcess
from fastload.common.processors import default_threads
from fastload.packed.file import PackedFile

PREPARE_SECONDS = 900.0
WARM_SECONDS = 600.0
ROUND_SECONDS = 1.0
"""How long a rival's round takes, or one epoch if that is longer: each of its epochs then counts from start to end."""


@dataclass
class Outcome:
    """Results, and in words what has to be known beside them: what a rival leaves out, or why it is missing."""

    results: list[Result] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(self.results + other.results, self.notes + other.notes)


@dataclass(frozen=True)
class Case:
    """One shape of work: `count` images side×side×3, cropped to crop×crop, in batches of `batch` of type `dtype`.

    `fused` and `dali` are how many batches a round of ours takes.
    """

    name: str
    count: int
    side: int
    crop: int
    batch: int
    dtype: torch.dtype
    fused: int
    dali: int


def cases(setting: parts.Setting) -> list[Case]:
    """Return CIFAR's shape and ImageNet's; the counts are whole batches, so that no rival drops any."""
    return [
        Case(
            "cifar",
            setting.pick(20_480, 64),
            32,
            24,
            setting.pick(1024, 16),
            torch.float32,
            setting.pick(1000, 3, 100),
            setting.pick(100, 3, 10),
        ),
        Case(
            "imagenet",
            setting.pick(2048, 8),
            setting.pick(256, 40),
            setting.pick(224, 32),
            setting.pick(256, 4),
            torch.float16,
            setting.pick(200, 2, 8),
            setting.pick(40, 2, 2),
        ),
    ]


def resident(setting: parts.Setting, engines: Sequence[str], peers: Sequence[Peer]) -> Outcome:
    """Race our engines and those rivals that are installed, in each case; a ratio compares every one to fused."""
    outcome = Outcome()
    ready = [peer for peer in peers if peer.python() is not None]
    outcome.notes += [f"{peer.name}: {peer.state()}" for peer in peers if peer.python() is None]
    threads = torch.get_num_threads()
    # The copy that is the limit, and the rivals, get as many threads as our feed takes.
    torch.set_num_threads(feed_threads())
    try:
        for case in cases(setting)[: 1 if setting.file is not None else None]:
            write = partial(data.write_noise, count=case.count, side=case.side)
            with parts.packed_data(setting, write) as path:
                outcome += _race(setting, case, path, engines, ready)
    finally:
        torch.set_num_threads(threads)
    return outcome


def feed_threads() -> int:
    """Return how many threads a feed of ours takes by default."""
    return default_threads()


def _race(setting: parts.Setting, case: Case, path: Path, engines: Sequence[str], peers: Sequence[Peer]) -> Outcome:
    augment = Augment.paper(parts.fitting_crop(path, case.crop))
    suffix = "" if case.name == "cifar" else f", {augment.sides[0]}², {str(case.dtype).rpartition('.')[2]}"
    outcome = Outcome()
    with ExitStack() as stack:
        running = [
            stack.enter_context(
                parts.feed_contestant(
                    setting,
                    path,
                    augment,
                    case.batch,
                    case.fused if engine == "fused" else case.dali,
                    name=f"resident, {engine}{suffix}",
                    engine=engine,
                    resident=True,
                    dtype=case.dtype,
                )
            )
            for engine in engines
        ]
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        request = export(path, folder) | {
            "name": case.name,
            "crop": augment.sides[0],
            "batch": case.batch,
            "device": setting.device.type,
            "dtype": str(case.dtype).rpartition(".")[2],
            "threads": feed_threads(),
        }
        rivals = [stack.enter_context(Rival(peer, request, setting)) for peer in peers]
        running += [rival.contestant(f"resident, {rival.name}{suffix}") for rival in rivals if rival.failure is None]
        results = race(running, setting.device, rounds=setting.rounds, deadline=setting.deadline)
        compare(results, f"resident, fused{suffix}")
        outcome.results = parts.with_batch_time(results)
        outcome.notes = [note for rival in rivals for note in rival.notes()]
    return outcome


def export(path: Path, folder: Path) -> dict[str, Any]:
    """Write a raw packed file's images and labels as .npy files, the same bytes for every rival, and say where."""
    images, labels = folder / "images.npy", folder / "labels.npy"
    with PackedFile(path) as file:
        assert file.shape is not None
        out = np.lib.format.open_memmap(images, "w+", np.uint8, (len(file), *file.shape))
        for row in range(len(file)):
            out[row] = file.read_image(row)
        out.flush()
        np.save(labels, np.asarray(file.labels))
        sizes = {"rows": len(file), "channels": file.shape[2]}
    return {"images": str(images), "labels": str(labels), "folder": str(folder)} | sizes


class Rival:
    """A rival's process as a contestant, while the context lasts; `failure` says why it is out, if it is."""

    def __init__(self, peer: Peer, request: dict[str, Any], setting: parts.Setting) -> None:
        self.name = peer.name
        self.failure: str | None = None
        self._peer, self._request, self._device = peer, request, setting.device
        self._process: PeerProcess | None = None
        self._batches = max(1, request["rows"] // request["batch"])
        self._round_seconds = 0.0 if setting.quick else ROUND_SECONDS
        self._patience = WARM_SECONDS
        self._details: dict[str, Any] = {}
        self._spent: list[float] = []

    def __enter__(self) -> Rival:
        python = self._peer.python()
        assert python is not None
        try:
            self._process = PeerProcess(self.name, python, self._peer.adapter)
            self._details = self._process.ask({"do": "prepare", "case": self._request}, PREPARE_SECONDS)
            self.run()  # the first epoch compiles, and starts workers
            taken = self.run()
        except (PeerError, Withdrawn) as error:
            self.failure = str(error)
        except BaseException:
            self.__exit__()
            raise
        else:
            self._batches *= max(1, round(self._round_seconds / taken))
            self._patience = 60 + 20 * max(taken, self._round_seconds)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process is not None:
            self._process.close()

    def run(self) -> float:
        """Have it make a round's batches; return the seconds it took by its own clock."""
        assert self._process is not None
        try:
            answer = self._process.ask({"do": "run", "batches": self._batches}, self._patience)
        except PeerError as error:
            self.failure = str(error)
            raise Withdrawn(self.failure) from error
        # Otherwise what it makes ahead in other contestants' rounds would slow those down.
        self._process.pause()
        expected = self._batches * self._request["batch"]
        if answer["images"] != expected:
            self.failure = f"{self.name}: gave {answer['images']} images where {expected} were asked for"
            raise Withdrawn(self.failure)
        self._spent.append(answer["cpu_seconds"] / expected)
        self._details |= {key: answer[key] for key in answer if key not in ("seconds", "images", "cpu_seconds")}
        return answer["seconds"]

    @property
    def cpu_ms_per_image(self) -> float:
        """The median of its runs; true of a rival that works in threads, not in processes that it starts."""
        return round(1e3 * statistics.median(self._spent), 4)

    def contestant(self, name: str) -> Contestant:
        """Return it ready to race, beside the limit: copies, in this process, of batches of the output."""
        request = self._request
        shape = (request["batch"], request["channels"], request["crop"], request["crop"])
        source = torch.zeros(shape, dtype=getattr(torch, request["dtype"]), device=self._device)
        target = torch.empty_like(source)

        def copy() -> float:
            return seconds_of(lambda: [target.copy_(source) for _ in range(self._batches)], self._device)

        details = {"batch": request["batch"], "batches": self._batches, "images": request["rows"]} | self._details
        work = self._batches * request["batch"]
        return Contestant(name, "images/s", work, self.run, copy, "copy of the output", details=details, inside=True)

    def notes(self) -> list[str]:
        """Return what has to be said beside the figures."""
        case, leaves_out = self._request["name"], self._details.get("leaves_out")
        if self.failure is not None:
            return [f"{case}, skipped: {self.failure}"]
        return [f"{case}, {self.name} leaves out: {leaves_out}"] if leaves_out else []
