"""`python -m fastload.bench rolling`: every part runs at a tiny size, the throttle limits, the rival does its work."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from packs import noise_images, write_raw
from PIL import Image
from places import ROOT

from fastload import Augment, TwoPhaseLoader
from fastload.bench import rolling, rolling_throttled
from fastload.bench.__main__ import main
from fastload.bench.rolling_throttled import throttled
from fastload.feeds.decoded_source import DecodedSource


def report(tmp_path: Path, *words: str) -> dict:
    path = tmp_path / "rolling.json"
    assert main(["rolling", "--quick", "--device", "cpu", "--peers", "none", "--json", str(path), *words]) == 0
    return json.loads(path.read_text())


def test_photographs_are_raced_at_every_number_of_uses(tmp_path):
    found = report(tmp_path, "--only", "encoded")
    names = [one["name"] for one in found["results"]]
    for uses in rolling.USES:
        assert f"rolling, e = {uses}, generated" in names
        note = next(
            note for note in found["notes"] if note.startswith(f"target: rolling, e = {uses}, generated, times")
        )
        assert f"at least {0.9 * uses:g} was wanted" in note
    assert all(0 <= one["details"]["waits_for_it"] < 1 for one in found["results"])


def test_waiting_and_the_writers_cost_stand_beside_their_targets(tmp_path):
    found = report(tmp_path, "--only", "writer,stalls")
    limits = {one["name"]: one["limit"] for one in found["results"]}
    assert limits["writer's cost, 32² → 24²"] == 1.05
    assert limits["waited, stream at 1/32 of the trainer's rate"] == 2.0
    assert all(one["median"] >= 0 for one in found["results"])


def test_a_throttle_counts_every_arrival_and_leaves_with_its_block(tmp_path, monkeypatch):
    waited = []

    class Counting:
        def __init__(self, rate: float, ahead: int, sleep: object) -> None:
            assert (rate, ahead) == (400, 0)

        def wait(self, images: int) -> None:
            waited.append(images)

    monkeypatch.setattr(rolling_throttled, "Throttle", Counting)
    full = write_raw(tmp_path / "full.h5", noise_images(400), np.arange(400) % 10)
    fetch, settings = DecodedSource.fetch, {"pool": 64, "refill": 1.0, "batch_size": 16, "steps": 8}
    with throttled(400) as meter:
        settings |= {"augment": Augment.paper(24), "device": "cpu", "with_ids": True}
        with TwoPhaseLoader(full, **settings) as loader:
            ids = np.concatenate([ids.numpy() for _, _, ids in loader])
    assert DecodedSource.fetch is fetch
    assert len(np.unique(ids)) <= sum(waited) == meter.samples <= 400 + 64


def test_parts_that_are_none_are_refused(capsys):
    assert main(["rolling", "--only", "encoded,speed", "--device", "cpu"]) == 2
    assert main(["stream", "--only", "encoded", "--device", "cpu"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and "speed is none of encoded, writer, stalls" in errors[0]


# -- the DataLoader of files ---------------------------------------------------------------------------------------


@pytest.fixture
def adapter(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "bench" / "peers" / "shared")
    path = ROOT / "bench" / "peers" / "dataloader" / "adapter.py"
    spec = importlib.util.spec_from_file_location("dataloader_adapter", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "dataloader_adapter", module)
    spec.loader.exec_module(module)
    return module


def test_the_dataloader_decodes_crops_and_normalizes_files(adapter):
    level = 200
    files = []
    for _ in range(3):
        stored = io.BytesIO()
        Image.fromarray(np.full((40, 60, 3), level, np.uint8)).save(stored, "JPEG", quality=95)
        files.append(np.frombuffer(stored.getvalue(), np.uint8))
    offsets = np.cumsum([0, *map(len, files)])
    images = adapter.Files(np.concatenate(files), offsets, torch.arange(3), 24, torch.float32)
    pixels, label = images[2]
    expected = [
        (level - mean) / deviation for mean, deviation in ((123.675, 58.395), (116.28, 57.12), (103.53, 57.375))
    ]
    assert pixels.shape == (3, 24, 24) and pixels.dtype == torch.float32 and int(label) == 2
    assert pixels.mean((1, 2)).tolist() == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(("width", "height"), [(500, 375), (8, 400), (1, 1)])
def test_the_dataloaders_crops_lie_within_the_picture(adapter, width, height):
    for _ in range(200):
        left, top, right, bottom = adapter.region(width, height)
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
