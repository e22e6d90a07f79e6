"""`python -m fastload.bench rolling`: a pool that is renewed while training draws from it, beside streams.

Three parts: photographs in JPEG files, at e = 1, 2, 4, 8 uses of a sample, beside our own stream and the rivals; what
the pool costs beside a set that stays as it is; and in `fastload.bench.rolling_throttled` a trainer that must not wait.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from fastload.augment import Augment
from fastload.bench import data, parts, rolling_throttled
from fastload.bench.measure import Contestant, Result, race, ratio_of, result_of, verdict, with_cpu_time
from fastload.bench.peers.install import Peer
from fastload.bench.recipe_encoded import Pictures, dali_rival, files_of, rival_request, side_of
from fastload.bench.rivals import Outcome, Rival, feed_threads
from fastload.bench.streams import against
from fastload.loop.loader import TwoPhaseLoader
from fastload.packed.file import PackedFile
from fastload.packing.pack import pack

USES = (1, 2, 4, 8)
OF_STREAM = 0.9
"""What the project promises: e uses of a sample give at least this times e of the stream's images/s."""

MOST_COST = 1.05
"""And the CPU time of a batch from a pool that is renewed slowly, as a multiple of that from a set that stays."""

SLOW_REFILL = 1 / 16
TRAINER = 4
"""A trainer that takes so many times what our stream gives: the one whose waiting is told beside each figure."""

PARTS = ("encoded", "writer", "stalls")
LONGEST = 500
"""Pixels that the photographs' longest side is brought to."""


def rolling(
    setting: parts.Setting, engines: Sequence[str], peers: Sequence[Peer], chosen: Sequence[str] = PARTS
) -> Outcome:
    """Measure the chosen parts.

    Arguments:
        setting: where and how long.
        engines: "fused", and "dali" where DALI is installed.
        peers: the rivals that are asked for.
        chosen: of PARTS.
    """
    # Of more than eight uses, which is what is measured here.
    warnings.filterwarnings("ignore", message=".*each sample serves", category=UserWarning)
    outcome = Outcome()
    threads = torch.get_num_threads()
    torch.set_num_threads(feed_threads())
    try:
        if "encoded" in chosen:
            outcome.notes += [f"{peer.name}: {peer.state()}" for peer in peers if peer.python() is None]
            outcome += encoded(setting, engines, [peer for peer in peers if peer.python() is not None])
        if "writer" in chosen:
            outcome += writer(setting)
        if "stalls" in chosen:
            outcome += rolling_throttled.stalls(setting)
    finally:
        torch.set_num_threads(threads)
    return outcome


# -- JPEG files ----------------------------------------------------------------------------------------------------


def encoded(setting: parts.Setting, engines: Sequence[str], peers: Sequence[Peer]) -> Outcome:
    """RandomResizedCrop to 224² out of JPEG files: images/s at each number of uses, and of all that only stream."""
    archive = None if setting.quick else data.photographs()
    with tempfile.TemporaryDirectory() as folder:
        files, packed = Path(folder) / "files", Path(folder) / "cut.h5"
        if archive is not None:
            data.unpack_photographs(files, archive, longest=LONGEST)
        else:
            data.write_jpegs(files, setting.pick(250, 8), setting.pick(375, 40))
        _repeat(files, 4)
        pack(files, packed, encoded=True)
        pack(files, Path(folder) / "whole.h5", encoded=True, as_is=True)
        name = f"longest side {LONGEST}" if archive is not None else "generated"
        pictures = Pictures(name, packed, files_of(packed, files))
        outcome = _race(setting, pictures, Path(folder), engines, peers)
    if archive is None and not setting.quick:
        outcome.notes.append(f"rolling: generated images, as {data.PHOTOGRAPHS} is not at hand ($FASTLOAD_DATA)")
    return outcome


def _repeat(folder: Path, times: int) -> None:
    """Have each file in class folders there so many times, so that the set is larger than its pool."""
    for path in sorted(folder.glob("*/*")):
        for number in range(1, times):
            os.link(path, path.with_name(f"{number}-{path.name}"))


def _race(
    setting: parts.Setting, pictures: Pictures, folder: Path, engines: Sequence[str], peers: Sequence[Peer]
) -> Outcome:
    batch, batches = setting.pick(128, 4), setting.pick(12, 2)
    pool = len(pictures.files) // 2 // batch * batch
    with PackedFile(pictures.packed) as file:
        decoded = data.write_decoded(folder / "decoded.h5", file, setting.pick(256 << 20, 1 << 16))
    augment = Augment.imagenet(side_of(setting))
    with ExitStack() as stack:

        def ours(what: str, path: Path | None, **more: Any) -> Contestant:
            name = f"rolling, {what}, {pictures.name}"
            contestant = parts.loader_contestant(setting, path, augment, batch, batches, name=name, **more)
            return with_cpu_time(stack.enter_context(contestant))

        running = [ours("our stream", pictures.packed), ours("our stream, whole files", folder / "whole.h5")]
        for uses in USES:
            loading = {"pool": pool, "refill": 1 / uses}
            # The ring is an eighth larger than the pool, and may have been filled while others ran.
            ahead, warm = -(-uses * pool // (8 * batch)), -(-uses * pool // batch)
            running.append(ours(f"e = {uses}", pictures.packed, loading=loading, ahead=ahead, warm=warm))
        running.append(ours("augmentation alone", None, loading={"subset": decoded, "swap": 1.0}))
        if "dali" in engines:
            running.append(with_cpu_time(stack.enter_context(dali_rival(setting, pictures, batch))))
        exported = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        request = rival_request(setting, pictures, batch, exported)
        rivals = {f"rolling, {peer.name}, {pictures.name}": Rival(peer, request, setting) for peer in peers}
        for name, rival in rivals.items():
            stack.enter_context(rival)
            if rival.failure is None:
                running.append(rival.contestant(name))
        results = race(running, setting.device, rounds=setting.rounds, deadline=setting.deadline)
        for one in results:
            if one.name in rivals and "dataloader" not in one.name:  # which works in processes of its own
                one.details["cpu_ms_per_image"] = rivals[one.name].cpu_ms_per_image
    outcome = Outcome(results, [note for rival in rivals.values() for note in rival.notes()])
    against(results, running[0].name, {})
    _tell_waiting(results)
    outcome.notes += _verdicts(results, pictures.name)
    spent = {one.name.split(", ")[-2]: one.details.get("cpu_ms_per_image") for one in results}
    told = ", ".join(f"{name} {taken:.3g}" for name, taken in spent.items() if taken is not None)
    outcome.notes.append(f"rolling, {pictures.name}: CPU-ms an image: {told}")
    outcome.results = parts.with_batch_time(results)
    return outcome


def _tell_waiting(results: Sequence[Result]) -> None:
    """Say of each how much of its time a trainer would wait that takes TRAINER times what our stream gives."""
    taken = TRAINER * results[0].median
    for one in results:
        one.details["waits_for_it"] = round(max(0.0, 1 - one.median / taken), 3)


def _verdicts(results: Sequence[Result], name: str) -> list[str]:
    """Compare each number of uses with the stream, and with what decoding whole files and augmenting allow."""
    found = {one.name: one for one in results}
    stream, whole = found[f"rolling, our stream, {name}"], found[f"rolling, our stream, whole files, {name}"]
    bound = found[f"rolling, augmentation alone, {name}"]
    notes = []
    for uses in USES:
        one = found[f"rolling, e = {uses}, {name}"]
        of_bound = ratio_of(one, bound)
        for other, words in ((stream, "our stream"), (whole, "our stream of whole files")):
            notes.append(verdict(f"{one.name}, times {words}", ratio_of(one, other), least=OF_STREAM * uses))
        # What both take on the same processors: a share of the decoding, and all of the augmentation.
        decoding = 1 / whole.median - 1 / bound.median
        allowed = 1 / (decoding / uses + 1 / bound.median)
        notes.append(
            f"{one.name}: {of_bound:.0%} of augmentation alone, and "
            f" {one.median / allowed:.0%} of what decoding once for {uses} and augmenting each allow"
        )
    return notes


# -- the writer's cost ---------------------------------------------------------------------------------------------


def writer(setting: parts.Setting) -> Outcome:
    """CPU time of a batch from a pool that is renewed slowly, beside one from a set that stays as it is."""
    outcome = Outcome()
    for side, crop, count, batch, batches in (
        (setting.pick(32, 32), 24, setting.pick(50_000, 64), setting.pick(1024, 16), setting.pick(300, 3)),
        (
            setting.pick(256, 40),
            setting.pick(224, 32),
            setting.pick(2048, 32),
            setting.pick(128, 4),
            setting.pick(24, 2),
        ),
    ):
        with tempfile.TemporaryDirectory() as folder:
            full = data.write_noise(Path(folder) / "full.h5", count, side)
            held = min(4096, count // 2) // batch * batch
            subset = data.write_subset(Path(folder) / "subset.h5", full, held)
            augment = Augment.paper(crop)
            with (
                _batches(setting, full, augment, batch, {"pool": held, "refill": SLOW_REFILL}) as renewed,
                _batches(setting, full, augment, batch, {"subset": subset, "swap": 1.0}) as fixed,
            ):
                costs = [(_cpu_seconds(renewed, batches), _cpu_seconds(fixed, batches)) for _ in range(_ROUNDS + 1)]
        name = f"writer's cost, {side}² → {crop}²"
        ratios = [ours / other for ours, other in costs[1:]]
        details = {"batch": batch, "batches": batches, "pool": held, "refill": SLOW_REFILL}
        details["cpu_us_per_image"] = round(1e6 * statistics.median(one for one, _ in costs[1:]) / batches / batch, 3)
        outcome.results.append(
            result_of(name, "× the CPU time", ratios, limit=MOST_COST, limit_name="target", details=details)
        )
        outcome.notes.append(verdict(name, statistics.median(ratios), most=MOST_COST))
    return outcome


_ROUNDS = 12
"""A ratio near 1 takes more of them than a speed."""


@contextmanager
def _batches(
    setting: parts.Setting, full: Path, augment: Augment, batch: int, loading: dict[str, Any]
) -> Iterator[Iterator[Any]]:
    """Give a loader's batches, after as many as fill its pool and renew it once."""
    loading = {"steps": 2**40, "resident_budget": 0, **loading}
    with TwoPhaseLoader(full, batch_size=batch, augment=augment, device=setting.device, **loading) as loader:
        stream = iter(loader)
        for _ in range(math.ceil(2 * loading.get("pool", batch) / (batch * SLOW_REFILL))):
            next(stream)
        yield stream


def _cpu_seconds(batches: Iterator[Any], count: int) -> float:
    """Return the CPU time of this process, of all threads, for so many batches; other feeds are at rest."""
    for _ in range(2 * feed_threads() + 2):  # were made ahead
        next(batches)
    time.sleep(0.02)
    began = time.process_time()
    for _ in range(count):
        next(batches)
    return time.process_time() - began
