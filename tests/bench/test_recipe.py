"""`python -m fastload.bench recipe --encoded`: who races with which files, and which targets are answered."""

from __future__ import annotations

import io
import json
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packs import noise_images, write_raw
from PIL import Image

from fastload.bench import data, recipe, recipe_encoded
from fastload.bench.__main__ import main
from fastload.bench.measure import Contestant, Deadline, race, with_cpu_time
from fastload.bench.parts import Setting
from fastload.bench.peers.install import Peer
from fastload.bench.recipe_encoded import Pictures, files_of
from fastload.errors import UsageError
from fastload.packing.pack import pack

CPU = torch.device("cpu")

RIVAL = """
import io, pathlib
import numpy as np
from PIL import Image

AHEAD, LEAVES_OUT = 2, {}

class Images(list):
    shape, dtype = (4, 3, 32, 32), "torch.float32"

def open_batches(case):
    assert (case["name"], case["crop"], case["dtype"], case["device"]) == ("recipe-jpeg", 32, "float32", "cpu")
    images, offsets = np.load(case["images"]), np.load(case["offsets"])
    assert len(offsets) == case["rows"] + 1 == len(np.load(case["labels"])) + 1
    for start, stop in zip(offsets, offsets[1:]):
        assert Image.open(io.BytesIO(images[start:stop].tobytes())).format == "JPEG"
    pathlib.Path(case["folder"], "own.beton").write_bytes(bytes(1000 * case["rows"]))
    while True:
        yield Images([0.0] * case["batch"]), []
"""


@pytest.fixture
def dali() -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")


def rival(folder: Path) -> Peer:
    """A rival called ffcv that checks what it is given."""
    (folder / "ffcv").mkdir()
    (folder / "ffcv" / "adapter.py").write_text(RIVAL, "utf-8")
    (folder / "ffcv" / "requirements.txt").write_text("", "utf-8")
    return Peer("ffcv", folder / "ffcv")


def noise_files(width: int, height: int, count: int = 3) -> list[np.ndarray]:
    files = []
    for image in noise_images(count, height, width):
        stored = io.BytesIO()
        Image.fromarray(image).save(stored, "JPEG")
        files.append(np.frombuffer(stored.getvalue(), np.uint8))
    return files


# -- the race ------------------------------------------------------------------------------------------------------


def test_our_engines_ffcv_and_dali_race_on_the_same_pictures_and_each_target_is_answered(tmp_path, dali):
    found = recipe.recipe(Setting(CPU, True, Deadline(600)), ("fused", "dali"), [rival(tmp_path)], encoded=True)
    by_name = {one.name: one for one in found.results}
    ours = [
        name for name in by_name if name in ("recipe, encoded, fused, generated", "recipe, encoded, dali, generated")
    ]
    others = ["recipe, encoded, DALI's own, generated", "recipe, encoded, ffcv, generated"]
    assert list(by_name) == [*ours, *others] and "recipe, encoded, dali, generated" in ours
    if len(ours) == 1:  # without what the fused engine needs for JPEG files
        assert found.notes[0].startswith("recipe, encoded, fused: left out: ")
    for name in others:
        assert by_name[name].against == ours[0] and by_name[name].ratio is not None
    named = {name.split(", ")[2]: name for name in by_name}
    (spent,) = [note for note in found.notes if "CPU-ms an image" in note]
    assert all(f"{who} {by_name[name].details['cpu_ms_per_image']:.3g}" in spent for who, name in named.items())
    targets = [note for note in found.notes if note.startswith("target:")]
    assert [f"{least} was wanted" in note for least, note in zip(("2.2", "2"), targets, strict=True)] == [True, True]
    for one in found.results:
        assert len(one.rounds) == 5 and one.limit_name == "copy of the output"
        assert one.details["batch"] == 4 and one.details["images"] == 8 and one.details["threads"] >= 1
        shorter, longer = one.details["median_sides"]
        assert 40 <= shorter <= longer <= 54 and one.details["cpu_ms_per_image"] >= 0
    assert by_name[others[1]].details["bytes_per_file"] == 1000  # of the file that it wrote
    assert by_name[others[0]].details["bytes_per_file"] > 1000


def test_the_command_races_a_given_file_with_its_originals(tmp_path, dali):
    folder, report = data.write_jpegs(tmp_path / "files", 8, 60), tmp_path / "recipe.json"
    pack(folder, tmp_path / "own.h5", encoded=True)
    given = ["--data", str(tmp_path / "own.h5"), "--originals", str(folder)]
    arguments = ["recipe", "--quick", "--device", "cpu", "--peers", "none", "--json", str(report), *given]
    assert main(arguments) == 0
    found = json.loads(report.read_text("utf-8"))
    by_name = {one["name"]: one for one in found["results"]}
    assert {"recipe, encoded, dali, own.h5", "recipe, encoded, DALI's own, own.h5"} <= set(by_name)
    sizes = [path.stat().st_size for path in folder.rglob("*.jpg")]
    assert by_name["recipe, encoded, DALI's own, own.h5"]["details"]["bytes_per_file"] == round(np.mean(sizes))
    assert not any("--originals" in note for note in found["notes"])


def test_an_engine_that_cannot_take_the_files_is_noted_and_with_none_left_it_is_an_error(tmp_path, monkeypatch):
    def refuse(*arguments: Any, engine: str, **more: Any) -> None:
        raise UsageError(f"{engine} does not take these files")

    monkeypatch.setattr(recipe_encoded.parts, "loader_contestant", refuse)
    with pytest.raises(UsageError, match="recipe, encoded, fused: left out: fused does not take these files"):
        recipe.recipe(Setting(CPU, True, Deadline(600)), ("fused",), [], encoded=True)


# -- the files -----------------------------------------------------------------------------------------------------


def test_rivals_take_the_source_files_in_the_order_of_the_packed_file(tmp_path):
    folder = data.write_jpegs(tmp_path / "files", 12, 40)
    packed = tmp_path / "shuffled.h5"
    pack(folder, packed, encoded=True, order="shuffled", seed=5)
    found = [file.tobytes() for file in files_of(packed, folder)]
    source = [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))]
    assert sorted(found) == sorted(source) and found != source
    with pytest.raises(UsageError, match=r"--originals .*nowhere.*name the folder that .*shuffled\.h5 was packed from"):
        files_of(packed, tmp_path / "nowhere")
    for ours, theirs in zip(files_of(packed, None), found, strict=True):
        pixels = [np.asarray(Image.open(io.BytesIO(file))) for file in (ours.tobytes(), theirs)]
        assert np.array_equal(*pixels)


def test_photographs_are_written_as_they_are_or_made_smaller_and_never_larger(tmp_path, imagenet_tar):
    archive = tmp_path / "some.tar"
    with tarfile.open(imagenet_tar) as whole, tarfile.open(archive, "w") as some:
        members = [member for member in whole if member.isfile()]
        members.sort(key=lambda member: member.size)
        for member in members[:2] + members[-4:]:  # of few pixels, and of many
            some.addfile(member, whole.extractfile(member))
            last = whole.extractfile(member)
            assert last is not None
            stored = last.read()
    as_they_are = data.unpack_photographs(tmp_path / "whole", archive)
    assert (as_they_are / Path(member.name).parent.name / Path(member.name).name).read_bytes() == stored
    for limit in ({"longest": 500}, {"shorter": 256}):
        smaller = data.unpack_photographs(tmp_path / str(limit), archive, **limit)
        names = sorted(path.relative_to(as_they_are) for path in as_they_are.rglob("*.JPEG"))
        assert names == sorted(path.relative_to(smaller) for path in smaller.rglob("*.JPEG")) and len(names) == 6
        limited = 0
        for name in names:
            before, after = (np.array(Image.open(folder / name).size) for folder in (as_they_are, smaller))
            side = (np.max if "longest" in limit else np.min)(before)
            wanted = before * min(1, next(iter(limit.values())) / side)
            assert np.abs(after - wanted).max() <= 0.5
            limited += side > next(iter(limit.values()))
        assert 0 < limited < 6


def test_targets_are_those_of_photographs_as_they_are_where_a_shorter_side_is_beyond_500(tmp_path):
    small = Pictures("x", tmp_path, [*noise_files(700, 256), *noise_files(500, 480)])
    assert small.wanted == {"recipe, encoded, ffcv": 2.0, "recipe, encoded, DALI's own": 2.2}
    large = Pictures("x", tmp_path, [*noise_files(375, 500), *noise_files(640, 501, count=1)])
    assert large.wanted == {"recipe, encoded, ffcv": 1.8}
    assert large.details(10.4) == {"images": 4, "median_sides": [375, 500], "bytes_per_file": 10}


# -- CPU time and the command's options ----------------------------------------------------------------------------


def test_cpu_time_is_that_of_all_threads_a_unit_of_work():
    def burn() -> None:
        end = time.process_time() + 0.02
        while time.process_time() < end:
            pass

    one = with_cpu_time(Contestant("busy", "images/s", 4, burn))
    (found,) = race([one], CPU, rounds=2)
    assert found.details["cpu_ms_per_image"] >= 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["stream", "--encoded"], "stream: --encoded and --originals are of recipe"),
        (["recipe", "--encoded", "--data", "RAW"], "holds no encoded images; pack it with --encoded"),
        (["recipe", "--originals", "."], "is the folder that --data, a file of encoded images, was packed from"),
    ],
)
def test_options_of_encoded_files_are_refused_where_there_are_none(tmp_path, capsys, arguments, words):
    raw = write_raw(tmp_path / "raw.h5", noise_images(8, 16, 16), np.arange(8))
    arguments = [str(raw) if word == "RAW" else word for word in arguments]
    assert main([*arguments, "--quick", "--device", "cpu"]) == 2
    found = capsys.readouterr().err
    assert words in found and len(found.splitlines()) == 1
