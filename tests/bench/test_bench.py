"""`python -m fastload.bench`: every part runs, on generated and on given data, and says what it measured."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from packs import noise_images, write_raw

from fastload.bench import data, parts
from fastload.bench.__main__ import main
from fastload.bench.measure import Contestant, Deadline, race
from fastload.packed.file import PackedFile

CPU = torch.device("cpu")


def test_everything_runs_and_each_figure_stands_beside_its_limit(tmp_path):
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    report = tmp_path / "there" / "bench.json"
    assert main(["--quick", "--device", "cpu", "--peers", "none", "--json", str(report)]) == 0
    found = json.loads(report.read_text())
    names = " ".join(one["name"] for one in found["results"])
    for what in ("resident, fused", "resident, dali", "stream, raw, fused", "stream, raw, dali", "encoded", "select"):
        assert what in names
    for one in found["results"]:
        assert len(one["rounds"]) == 5 and one["median"] == pytest.approx(np.median(one["rounds"]))
        assert one["of_limit"] == pytest.approx(one["median"] / one["limit"])
    assert found["quick"] and found["machine"]["cores"] >= 1 and found["versions"]["torch"] == torch.__version__


def test_given_data_is_used(tmp_path):
    path = write_raw(tmp_path / "own.h5", noise_images(20, 16, 18), np.arange(20))
    report = tmp_path / "bench.json"
    arguments = [
        "resident",
        "--quick",
        "--device",
        "cpu",
        "--peers",
        "none",
        "--data",
        str(path),
        "--json",
        str(report),
    ]
    assert main(arguments) == 0
    details = json.loads(report.read_text())["results"][0]["details"]
    assert details["stored"] == "16×18×3" and details["crop"] == [16, 16] and details["images"] == 20


def test_bad_arguments_are_one_line_and_an_exit_code(tmp_path, capsys):
    assert main(["select", "--quick", "--device", "cuda:99"]) == 2
    assert main(["resident", "--quick", "--device", "cpu", "--data", str(tmp_path / "none.h5")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_rounds_are_interleaved_and_what_was_made_ahead_is_taken_untimed():
    calls = []
    contestants = [
        Contestant(
            name,
            "x/s",
            2.0,
            lambda n=name: calls.append(n),
            lambda n=name: calls.append("limit " + n),
            "l",
            lambda n=name: calls.append("before " + n),
        )
        for name in "ab"
    ]
    first, second = race(contestants, CPU, rounds=3)
    one_round = ["limit a", "before a", "a", "limit b", "before b", "b"]
    assert calls == one_round * 4 and len(first.rounds) == len(second.rounds) == 3
    assert len(race(contestants, CPU, rounds=3, deadline=Deadline(0))[0].rounds) == 1


def test_generated_files_are_packed_files(tmp_path):
    full = data.write_noise(tmp_path / "full.h5", 30, 12)
    subset = data.write_subset(tmp_path / "subset.h5", full, 7)
    encoded = data.write_encoded(tmp_path / "encoded.h5", 6, 48)
    with PackedFile(full) as whole, PackedFile(subset) as part, PackedFile(encoded) as files:
        assert whole.shape == part.shape == (12, 12, 3) and len(set(part.ids.tolist())) == 7
        assert np.array_equal(part.image(6), whole.image(int(part.ids[6])))
        assert part.selection.attributes["full_fingerprint"] == whole.fingerprint
        assert len(files) == 6 and files.storage == "encoded"


@pytest.mark.parametrize("name", ["resident-fused", "resident-224", "two-phase", "autoencoder"])
def test_the_parts_of_gpu_check_run_on_the_cpu(name):
    results = parts.run_part(name, parts.Setting(CPU, True, Deadline(60)))
    assert results and all(one["median"] > 0 for one in results)
    json.dumps(results)
    if name == "two-phase":
        assert {"gap_at_swap_ms", "waited"} <= results[0]["details"].keys()
