"""`python -m fastload.bench stream`: its cases, its rivals and what they share, and the targets that it checks."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from packs import noise_images, write_raw
from reference import standardized

from fastload.bench import data, storage, streams, swapping
from fastload.bench.__main__ import main
from fastload.bench.measure import Deadline, Result, result_of, verdict
from fastload.bench.parts import Setting
from fastload.bench.peers import install
from fastload.bench.peers.install import Peer
from fastload.bench.peers.process import PeerProcess
from fastload.packed.file import PackedFile

CPU = torch.device("cpu")
SHARED = install.HERE / "shared"


def report_of(arguments: list[str], path: Path) -> dict[str, Any]:
    options = ["--quick", "--device", "cpu", "--peers", "none", "--json", str(path)]
    assert main([*arguments, *options]) == 0
    return json.loads(path.read_text("utf-8"))


def quick() -> Setting:
    return Setting(CPU, True, Deadline(600))


# -- the command ---------------------------------------------------------------------------------------------------


def test_every_case_runs_without_rivals_each_figure_beside_its_limit_and_each_target_is_answered(tmp_path):
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    found = report_of(["stream", "--scratch", str(tmp_path)], tmp_path / "stream.json")
    names = [one["name"] for one in found["results"]]
    assert names == [
        "resident, fused, 24²",
        "stream, raw, fused, 24²",
        "stream, raw, dali, 24²",
        "stream, raw, cold, blocks",
        "stream, raw, cold, shuffled",
        "gap at the swap, no trainer",
        "gap at the swap, 10 ms steps",
        "waited, 10 ms steps, fast phase",
        "waited, 10 ms steps, stream phase",
        "first batch after the imports, fresh process",
        "stream, encoded, dali, 32²",
        "stream, encoded, DALI's bare decoder, 32²",
    ]
    for one in found["results"]:
        assert len(one["rounds"]) == 5 and one["median"] == pytest.approx(np.median(one["rounds"])), one["name"]
        assert one["limit"] > 0 and one["of_limit"] == pytest.approx(one["median"] / one["limit"])
    ratios = {one["name"]: one["against"] for one in found["results"] if one["ratio"]}
    assert ratios["resident, fused, 24²"] == "stream, raw, fused, 24²"
    assert ratios["stream, encoded, DALI's bare decoder, 32²"] == "stream, encoded, dali, 32²"
    targets = [note for note in found["notes"] if note.startswith("target: ")]
    assert len(targets) == 8 and all(note.endswith((": met", ": NOT met")) for note in targets)
    assert [path.name for path in tmp_path.iterdir()] == ["stream.json"]


def test_a_file_that_is_brought_takes_the_case_that_it_serves(tmp_path):
    raw = write_raw(tmp_path / "raw.h5", noise_images(70, 16, 18), np.arange(70))
    found = report_of(["stream", "--data", str(raw)], tmp_path / "raw.json")
    assert {one["name"].rpartition(", ")[2] for one in found["results"]} == {"16²"}
    assert found["results"][0]["details"]["images"] == 70
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    encoded = data.write_encoded(tmp_path / "encoded.h5", 6, 60)
    found = report_of(["stream", "--data", str(encoded)], tmp_path / "encoded.json")
    assert {one["name"].split(", ")[1] for one in found["results"]} == {"encoded"}
    assert not any("generated" in note for note in found["notes"])


def test_a_verdict_says_what_was_found_what_was_wanted_and_whether_it_was_met():
    assert verdict("speed", 4.18, least=5.0) == "target: speed: 4.18, at least 5 was wanted: NOT met"
    assert verdict("speed", 5.0, least=5.0).endswith(": met")
    assert verdict("wait", 2.5, most=2.0) == "target: wait: 2.5, at most 2 was wanted: NOT met"
    assert verdict("wait", 2.0, most=2.0).endswith(": met")


def test_a_ratio_is_checked_against_the_target_of_its_own_rival():
    results = [Result(name, "x/s", speed, 0.0, [speed]) for name, speed in (("ours", 6.0), ("a, b", 2.0), ("c", 1.0))]
    notes = streams.against(results, "ours", {"a": 4.0, "c": 4.0, "gone": 1.0})
    assert [note.rpartition(": ")[2] for note in notes] == ["NOT met", "met"]
    assert "times as fast as a, b: 3, at least 4" in notes[0]


def test_a_result_of_rounds_has_their_median_and_its_share_of_the_limit():
    found = result_of("gap", "ms", [3.0, 1.0, 2.0], limit=8.0, limit_name="target")
    assert found.median == 2.0 and found.of_limit == 0.25 and found.rounds == [3.0, 1.0, 2.0]
    assert result_of("gap", "ms", [3.0]).of_limit is None


# -- the disk ------------------------------------------------------------------------------------------------------


def test_tiled_noise_is_a_file_of_ones_own_with_no_two_tiles_alike(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "TILE_ROWS", 16)
    path = storage.write_tiled_noise(tmp_path / "noise.h5", 40, 8)
    with PackedFile(path, images="x", labels="y") as file:
        assert len(file) == 40 and file.shape == (8, 8, 3)
        images = np.stack([file.read_image(row) for row in range(40)])
    assert not np.array_equal(images[0], images[1]) and np.array_equal(images[1], images[17])
    assert not np.array_equal(images[0], images[16]) and not np.array_equal(images[16], images[32])


def test_a_file_is_read_through_or_as_far_as_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "READ_BYTES", 1000)
    path = tmp_path / "file"
    path.write_bytes(bytes(4500))
    assert storage.read_through(path) == 4500
    assert storage.read_through(path, 1500) == 2000
    assert 0 <= storage.evict(path) <= 1


def test_a_disk_that_is_too_small_for_the_cold_case_is_named_and_it_is_not_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(streams.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    found = streams.cold(quick(), tmp_path)
    assert found.results == [] and "not measured: it takes" in found.notes[0] and "--scratch" in found.notes[0]


# -- the swap ------------------------------------------------------------------------------------------------------


def test_the_second_phase_streams_also_where_the_full_set_would_fit(monkeypatch):
    class Old:
        def __init__(self, full, subset, *, batch_size): ...

    class New:
        def __init__(self, full, subset, *, batch_size, resident_budget=None): ...

    monkeypatch.setattr(swapping, "TwoPhaseLoader", Old)
    assert "resident_budget" not in swapping.loader_settings(quick(), 10)
    monkeypatch.setattr(swapping, "TwoPhaseLoader", New)
    assert swapping.loader_settings(quick(), 10)["resident_budget"] == 0


def test_a_run_notes_each_batchs_gap_its_wait_and_the_trainers_step(tmp_path):
    full = data.write_noise(tmp_path / "full.h5", 64, 32)
    subset = data.write_subset(tmp_path / "subset.h5", full, 32)
    calls = []
    found = swapping._run(full, subset, swapping.loader_settings(quick(), 10), lambda: calls.append(1), CPU)
    assert len(found.gaps) == len(found.waits) == len(found.steps) == len(calls) == 10
    assert all(0 < wait <= gap for wait, gap in zip(found.waits, found.gaps, strict=True))


def test_the_first_batch_is_timed_in_a_process_of_its_own_and_its_failure_is_told(tmp_path):
    full = data.write_noise(tmp_path / "full.h5", 64, 32)
    subset = data.write_subset(tmp_path / "subset.h5", full, 32)
    settings = swapping.loader_settings(quick(), 10) | {"augment": 24}
    first, opened = swapping._fresh(json.dumps([str(full), str(subset), settings]), {})
    assert 0 < opened < first < 60
    with pytest.raises(RuntimeError, match=r"failed: .*none\.h5"):
        swapping._fresh(json.dumps([str(tmp_path / "none.h5"), str(subset), settings]), {})


# -- photographs ---------------------------------------------------------------------------------------------------


def test_photographs_are_found_where_the_variable_says(tmp_path, monkeypatch):
    (tmp_path / data.PHOTOGRAPHS).write_bytes(b"")
    monkeypatch.setenv("FASTLOAD_DATA", str(tmp_path))
    assert data.photographs() == tmp_path / data.PHOTOGRAPHS


def test_rivals_get_the_files_own_bytes(tmp_path):
    path = data.write_encoded(tmp_path / "encoded.h5", 5, 40)
    found = streams.export_encoded(path, tmp_path)
    stored, offsets = np.load(found["images"]), np.load(found["offsets"])
    with PackedFile(path) as file:
        for row in range(5):
            assert stored[offsets[row] : offsets[row + 1]].tobytes() == file.read(row)
        assert np.array_equal(np.load(found["labels"]), file.labels)
    assert found["rows"] == 5 and offsets[-1] == len(stored)


# -- rivals --------------------------------------------------------------------------------------------------------


def test_rivals_say_in_which_benches_they_run_without_being_imported(tmp_path):
    known = install.peers()
    assert known["ffcv"].cases == ("resident", "stream", "encoded", "recipe", "rolling")
    assert all(known[name].cases == ("stream",) for name in ("webdataset", "streaming", "litdata"))
    assert known["airbench"].cases == ("resident",)
    assert known["dataloader"].cases == ("resident", "rolling")
    (tmp_path / "adapter.py").write_text("import nowhere\nCASES = ('stream', 'encoded')\n", "utf-8")
    assert Peer("stub", tmp_path).cases == ("stream", "encoded")


def test_a_rival_of_the_stream_is_no_rival_of_the_resident_feed(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTLOAD_PEERS", str(tmp_path))  # none is installed, which would be noted
    path = tmp_path / "resident.json"
    arguments = ["resident", "--quick", "--device", "cpu", "--peers", "litdata,webdataset", "--json", str(path)]
    assert main(arguments) == 0
    assert not any("litdata" in note or "webdataset" in note for note in json.loads(path.read_text("utf-8"))["notes"])


def test_rivals_that_are_not_installed_are_noted(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTLOAD_PEERS", str(tmp_path))
    raw = write_raw(tmp_path / "raw.h5", noise_images(70, 16, 18), np.arange(70))
    setting = Setting(CPU, True, Deadline(600), raw)
    found = streams.stream(setting, ("fused",), install.chosen("litdata,streaming"))
    assert [note.partition(":")[0] for note in found.notes[:2]] == ["litdata", "streaming"]
    assert "peers install litdata" in found.notes[0]


def test_torch_is_installed_first_and_torchvision_with_it(tmp_path, monkeypatch):
    commands: list[list[str]] = []

    def note(name: str, command: list[str], hint: str = "") -> None:
        commands.append(list(command))
        Path(command[-1]).mkdir(exist_ok=True) if "venv" in command else None

    monkeypatch.setenv("FASTLOAD_PEERS", str(tmp_path / "environments"))
    monkeypatch.setattr(install, "_call", note)
    monkeypatch.setattr(install, "missing_packages", lambda folder: [])
    install.install(install.peers()["streaming"])
    assert commands[1][-2:] == ["torch==2.14.1", "torchvision==0.29.1"]
    assert commands[2][-2:] == ["--requirement", str(install.peers()["streaming"].requirements)]


def test_an_adapter_finds_what_adapters_share(tmp_path):
    (tmp_path / "adapter.py").write_text("from peer_augmentation import FLIP\nassert FLIP == 0.5\n", "utf-8")
    peer = Peer("stub", tmp_path)
    (tmp_path / "requirements.txt").write_text("", "utf-8")
    python = peer.python()
    assert python is not None
    with PeerProcess("stub", python, peer.adapter):
        pass


def test_the_shared_augmentation_does_our_work_with_given_parameters(monkeypatch):
    monkeypatch.syspath_prepend(str(SHARED))
    import peer_augmentation

    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (40, 12, 13, 3), dtype=np.uint8)
    images[3] = 7  # nothing but the divisor's floor
    tops, lefts, flips = rng.integers(0, 5, 40), rng.integers(0, 6, 40), rng.random(40) < 0.5
    brightness, contrast = rng.uniform(-63, 63, 40), rng.uniform(0.2, 1.8, 40)
    stored = peer_augmentation.batch_of_bytes([image.tobytes() for image in images], images.shape[1:])
    assert np.array_equal(stored.numpy(), images)
    found = peer_augmentation.augment(
        stored,
        8,
        *(torch.from_numpy(values) for values in (tops, lefts, flips)),
        torch.tensor(brightness, dtype=torch.float32),
        torch.tensor(contrast, dtype=torch.float32),
        torch.float32,
    )
    parameters = zip(images, tops, lefts, [8] * 40, flips, brightness, contrast, strict=True)
    expected = np.stack([standardized(*row) for row in parameters])
    assert found.is_contiguous()
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-4, atol=2e-4)


def test_the_shared_augmentation_draws_for_every_image(monkeypatch):
    monkeypatch.syspath_prepend(str(SHARED))
    import peer_augmentation

    one = torch.from_numpy(noise_images(1, 12, 12)).expand(64, -1, -1, -1)
    found = peer_augmentation.augment_randomly(one, 8, torch.float16)
    assert found.shape == (64, 3, 8, 8) and found.dtype == torch.float16
    assert len({image.numpy().tobytes() for image in found}) == 64
    assert found.float().mean((1, 2, 3)).abs().max() < 0.01
    assert (found.float().std((1, 2, 3), correction=0) - 1).abs().max() < 0.01


def process_of(name: str) -> PeerProcess:
    peer = install.peers()[name]
    python = peer.python()
    if python is None:
        pytest.skip(f"{name} is {peer.state()}")
    return PeerProcess(name, python, peer.adapter)


@pytest.mark.parametrize("name", ["ffcv", "litdata", "streaming", "webdataset"])
def test_a_rival_streams_whole_batches_of_what_it_is_given_epoch_after_epoch(tmp_path, name):
    np.save(tmp_path / "images.npy", noise_images(96, 32, 32))
    np.save(tmp_path / "labels.npy", np.arange(96) % 10)
    case = {
        "name": "cifar",
        "folder": str(tmp_path),
        "images": str(tmp_path / "images.npy"),
        "crop": 24,
        "batch": 16,
        "labels": str(tmp_path / "labels.npy"),
        "device": "cpu",
        "dtype": "float32",
        "threads": 2,
    }
    with process_of(name) as process:
        told = process.ask({"do": "prepare", "case": case}, 300)
        found = process.ask({"do": "run", "batches": 20}, 300)
    assert found["images"] == 320 and found["dtype"] == "float32"
    if name == "ffcv":  # translates within 32², and normalizes by constants
        assert "per-image statistics" in told["leaves_out"]
        return
    assert found["shape"] == [16, 3, 24, 24]
    assert abs(found["mean"]) < 0.01 and found["deviation"] == pytest.approx(1, abs=0.01)


def test_ffcv_decodes_jpeg_files(tmp_path):
    path = data.write_encoded(tmp_path / "encoded.h5", 12, 60)
    case = streams.export_encoded(path, tmp_path) | {
        "name": "jpeg",
        "crop": 32,
        "resize": 40,
        "batch": 4,
        "device": "cpu",
        "dtype": "float32",
        "threads": 2,
    }
    with process_of("ffcv") as process:
        assert "random-size crop" in process.ask({"do": "prepare", "case": case}, 300)["leaves_out"]
        found = process.ask({"do": "run", "batches": 4}, 300)
        whole = process.ask({"do": "prepare", "case": case | {"name": "recipe-jpeg"}}, 300)
        again = process.ask({"do": "run", "batches": 4}, 300)
    assert whole["leaves_out"] == ""  # its recipe is the bench's
    for answer in (found, again):
        assert answer["shape"] == [4, 3, 32, 32] and answer["images"] == 16 and answer["dtype"] == "float32"
        assert answer["deviation"] > 0.1 and answer["cpu_seconds"] > 0
