"""The benchmark's rivals: the protocol with their processes, their environments, and the same work done."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packs import noise_images, write_raw
from places import ROOT
from reference import standardized

from fastload.bench import rivals, select_grid
from fastload.bench.__main__ import main
from fastload.bench.measure import Contestant, Deadline, Result, Withdrawn, compare, race
from fastload.bench.parts import Setting
from fastload.bench.peers import install
from fastload.bench.peers.install import Peer
from fastload.bench.peers.process import PeerError, PeerProcess
from fastload.errors import UsageError

CPU = torch.device("cpu")

GOOD = """
import os, time
AHEAD = 2
LEAVES_OUT = {"cifar": "everything"}

class Images(list):
    shape, dtype = (4,), "torch.float32"

def open_batches(case):
    print("noise on standard output")
    made = 0
    while True:
        made += 1
        time.sleep(0.001)
        with open(os.path.join(case["folder"], "made"), "w") as file:
            file.write(str(made))
        yield Images([0.0] * case["batch"]), []
"""


def stub(folder: Path, source: str = GOOD, name: str = "stub", requirements: str = "") -> Peer:
    """A rival made for a test; the running environment meets no requirements at all."""
    (folder / name).mkdir(parents=True)
    (folder / name / "adapter.py").write_text(source, "utf-8")
    (folder / name / "requirements.txt").write_text(requirements, "utf-8")
    return Peer(name, folder / name)


def failing(line: str) -> str:
    """An adapter whose first batch runs `line`."""
    return GOOD.replace("    made = 0\n", f"    made = 0\n    {line}\n")


def started(peer: Peer, **options: Any) -> PeerProcess:
    return PeerProcess(peer.name, Path(sys.executable), peer.adapter, **options)


def request(folder: Path, batch: int = 4, rows: int = 8) -> dict[str, Any]:
    return {
        "name": "cifar",
        "folder": str(folder),
        "batch": batch,
        "rows": rows,
        "device": "cpu",
        "dtype": "float32",
        "channels": 3,
        "crop": 2,
        "images": "",
        "labels": "",
        "threads": 1,
    }


def quick() -> Setting:
    return Setting(CPU, True, Deadline(600))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pid: int) -> None:
    end = time.monotonic() + 20
    while alive(pid):
        assert time.monotonic() < end, f"process {pid} is left running"
        time.sleep(0.02)


# -- the protocol --------------------------------------------------------------------------------------------------


def test_a_worker_times_its_batches_inside_after_taking_those_made_ahead(tmp_path):
    with started(stub(tmp_path)) as process:
        assert process.ask({"do": "prepare", "case": request(tmp_path)}, 30) == {"leaves_out": "everything"}
        answer = process.ask({"do": "run", "batches": 10}, 30)
        made = int((tmp_path / "made").read_text())
    assert made == 12 and answer["images"] == 40
    assert answer["seconds"] >= 0.010 and answer["shape"] == [4] and answer["dtype"] == "float32"


def test_a_paused_worker_does_nothing_until_it_is_asked(tmp_path):
    ahead = """
    import threading
    def count():
        while True:
            time.sleep(0.005)
            with open(os.path.join(case["folder"], "ticks"), "a") as file:
                file.write("x")
    threading.Thread(target=count, daemon=True).start()
"""
    source = GOOD.replace("    made = 0\n", ahead + "    made = 0\n")
    with started(stub(tmp_path, source)) as process:
        process.ask({"do": "prepare", "case": request(tmp_path)}, 30)
        process.ask({"do": "run", "batches": 20}, 30)
        process.pause()
        time.sleep(0.05)
        ticks = (tmp_path / "ticks").stat().st_size
        time.sleep(0.2)
        assert (tmp_path / "ticks").stat().st_size == ticks
        process.ask({"do": "run", "batches": 20}, 30)
        assert (tmp_path / "ticks").stat().st_size > ticks


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("raise ValueError('first line\\nlast line')", "stub: ValueError: last line"),
        ("import sys; print('a\\nout of luck', file=sys.stderr); os._exit(3)", "exit code 3): out of luck"),
        ("os.kill(os.getpid(), 11)", "SIGSEGV"),
        ("time.sleep(60)", "stub: no answer within 0.5 s"),
        (
            "import gc, io; [f.write('rubbish\\n') for f in gc.get_objects() if isinstance(f, io.TextIOWrapper)"
            " and f.fileno() > 2 and f.writable()]",
            "stub: answered 'rubbish', which is no reply",
        ),
    ],
)
def test_a_worker_that_fails_dies_hangs_or_babbles_is_named_with_its_last_error_and_ended(tmp_path, line, words):
    process = started(stub(tmp_path, failing(line)))
    process.ask({"do": "prepare", "case": request(tmp_path)}, 30)
    with pytest.raises(PeerError) as caught:
        process.ask({"do": "run", "batches": 1}, 0.5 if "sleep" in line else 30)
    assert words in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert not alive(process._process.pid)


def test_a_worker_whose_adapter_does_not_load_says_why(tmp_path):
    with pytest.raises(PeerError, match="stub: ModuleNotFoundError: No module named 'nowhere'"):
        started(stub(tmp_path, "import nowhere"))
    with pytest.raises(PeerError, match=r"stub: .*/nothing cannot be started .*; install it again"):
        PeerProcess("stub", tmp_path / "nothing", stub(tmp_path / "again").adapter)


def test_processes_that_a_rival_starts_end_with_it(tmp_path):
    line = (
        "import subprocess; child = subprocess.Popen(['sleep', '600']);"
        " open(os.path.join(case['folder'], 'child'), 'w').write(str(child.pid))"
    )
    with started(stub(tmp_path, failing(line))) as process:
        process.ask({"do": "prepare", "case": request(tmp_path)}, 30)
        process.ask({"do": "run", "batches": 1}, 30)
        process.pause()
        child = int((tmp_path / "child").read_text())
        assert alive(child)
    wait_until_gone(child)
    assert not alive(process._process.pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_running_when_the_parent_is_stopped_even_while_the_rival_is_paused(tmp_path, number):
    peer = stub(tmp_path)
    script = f"""
import sys, time
from pathlib import Path
from fastload.bench.peers.process import PeerProcess
with PeerProcess("stub", Path(sys.executable), Path({str(peer.adapter)!r})) as process:
    process.pause()
    print(process._process.pid, flush=True)
    time.sleep(600)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )
    assert parent.stdout is not None
    try:
        worker = int(parent.stdout.readline())
        assert alive(worker)
        parent.send_signal(number)
        parent.wait(30)
        wait_until_gone(worker)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()


# -- in a race -----------------------------------------------------------------------------------------------------


def test_a_rival_races_by_its_own_clock_and_one_that_fails_on_the_way_is_left_out_and_noted(tmp_path):
    good, bad = stub(tmp_path, name="good"), stub(tmp_path, name="bad")
    bad.adapter.write_text(GOOD.replace("made += 1\n", "made += 1\n        assert made < 25, 'worn out'\n"), "utf-8")
    ours = Contestant("ours", "images/s", 8, lambda: time.sleep(0.001))
    with rivals.Rival(good, request(tmp_path), quick()) as one, rivals.Rival(bad, request(tmp_path), quick()) as two:
        assert one.failure is None and two.failure is None
        results = race([ours, one.contestant("good"), two.contestant("bad")], CPU, rounds=6)
    assert [result.name for result in results] == ["ours", "good"]
    assert len(results[1].rounds) == 6 and 0 < results[1].median < 4 / 0.001
    assert results[1].limit_name == "copy of the output" and results[1].details["leaves_out"] == "everything"
    assert one.notes() == ["cifar, good leaves out: everything"]
    assert two.notes() == ["cifar, skipped: bad: AssertionError: worn out"]


def test_a_rival_that_gives_another_number_of_images_is_out(tmp_path):
    peer = stub(tmp_path, GOOD.replace('* case["batch"]', '* (case["batch"] - 1)'))
    with rivals.Rival(peer, request(tmp_path), quick()) as rival:
        assert rival.failure == "stub: gave 6 images where 8 were asked for"


def test_ratios_are_the_median_of_the_rounds_ratios():
    ours = Result("ours", "x/s", 4.0, 0.0, [2.0, 4.0, 8.0])
    other = Result("other", "x/s", 1.0, 0.0, [1.0, 1.0, 8.0])
    compare([other, ours], "ours")
    assert other.ratio == 2.0 and other.against == "ours" and ours.ratio is None
    compare([other], "nobody")
    assert other.ratio == 2.0


def test_withdrawing_in_the_first_round_leaves_the_others_to_race():
    def fail() -> None:
        raise Withdrawn

    found = race([Contestant("bad", "x/s", 1, fail), Contestant("good", "x/s", 1, lambda: None)], CPU, rounds=2)
    assert [one.name for one in found] == ["good"]


# -- environments --------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTLOAD_PEERS", str(tmp_path / "environments"))
    return tmp_path / "environments"


def test_missing_debian_packages_are_named_with_the_line_that_installs_them(tmp_path, cache, capsys):
    peer = stub(tmp_path / "peers", requirements="no-such-package-at-all==1\n")
    (peer.folder / "debian.txt").write_text("here-dev: true\nfirst-dev: false\nsecond-dev: exit 3\n", "utf-8")
    assert install.main(["install"], {"stub": peer}) == 1
    line = "skipped: stub: needs first-dev, second-dev: apt-get install -y first-dev second-dev"
    assert capsys.readouterr().err.strip() == line
    assert install.main([], {"stub": peer}) == 0
    assert "not installed: apt-get install -y first-dev second-dev && " in capsys.readouterr().out


def test_ffcv_names_what_it_needs_of_debian(monkeypatch):
    monkeypatch.setattr(install, "_succeeds", lambda command: False)
    needed = install.missing_packages(install.peers()["ffcv"].folder)
    assert {"libopencv-dev", "libturbojpeg0-dev", "pkg-config", "g++"} <= set(needed)


def test_a_rival_that_does_not_install_is_named_and_skipped_and_leaves_no_environment(tmp_path, cache, capsys):
    peer = stub(tmp_path / "peers", requirements="./nothing-here\n")
    other = stub(tmp_path / "peers", name="other", requirements="./nothing-here\n")
    made = []

    def installer(peer: Peer) -> float:
        made.append(peer.name)
        if peer.name == "other":
            return 1.0
        return install.install(peer)

    assert install.main(["install"], {"stub": peer, "other": other}, installer) == 1
    out, err = capsys.readouterr()
    assert made == ["stub", "other"] and "other: ready after 1 s" in out
    assert err.startswith("skipped: stub: ERROR") and "nothing-here" in err and len(err.splitlines()) == 1
    assert not (cache / "stub").exists()


def test_an_environment_of_its_own_is_made_used_and_out_of_date_when_the_requirements_change(tmp_path, cache):
    peer = stub(tmp_path / "peers")
    assert peer.python() == Path(sys.executable) and peer.state() == "ready, in this environment"
    assert install.main(["install", "stub"], {"stub": peer}) == 0
    assert peer.python() == cache / "stub" / "bin" / "python" and peer.state() == "ready, in an environment of its own"
    with PeerProcess("stub", peer.python(), peer.adapter) as process:
        process.ask({"do": "prepare", "case": request(tmp_path)}, 30)
        assert process.ask({"do": "run", "batches": 1}, 30)["images"] == 4
    peer.requirements.write_text("no-such-package-at-all==1\n", "utf-8")
    assert peer.python() is None and peer.state().startswith("out of date: ")


def test_requirements_are_met_by_the_same_version_whatever_its_build(tmp_path, monkeypatch):
    monkeypatch.setattr(install.importlib.metadata, "version", lambda name: {"torch": "2.13.0+cpu"}[name])
    listed = tmp_path / "requirements.txt"
    for text, unmet in (("torch==2.13.0\n", []), ("torch # any\n\n# none\n", []), ("torch==2.1\n", ["torch==2.1"])):
        listed.write_text(text, "utf-8")
        assert install.unmet(listed) == unmet
    monkeypatch.undo()
    listed.write_text("no-such-package-at-all\n", "utf-8")
    assert install.unmet(listed) == ["no-such-package-at-all"]


def test_rivals_are_chosen_by_name():
    known = install.peers()
    assert {"airbench", "dataloader", "ffcv"} <= set(known)
    assert install.chosen("none") == [] and install.chosen("all") == list(known.values())
    assert [peer.name for peer in install.chosen("ffcv,airbench")] == ["ffcv", "airbench"]
    with pytest.raises(UsageError, match="dalai: no such rival; there are airbench, "):
        install.chosen("ffcv,dalai")


def test_a_rival_that_is_not_installed_is_noted_and_not_started(tmp_path, cache):
    peer = stub(tmp_path / "peers", requirements="no-such-package-at-all==1\n")
    found = rivals.resident(quick(), (), [peer])
    assert found.results == []
    assert found.notes == ["stub: not installed: python -m fastload.bench peers install stub"]


# -- the same work -------------------------------------------------------------------------------------------------


def adapter(name: str) -> Any:
    """Import a rival's adapter into this process, with what adapters share on its path."""
    path = install.peers()[name].adapter
    if str(path.parent.with_name("shared")) not in sys.path:
        sys.path.append(str(path.parent.with_name("shared")))
    spec = importlib.util.spec_from_file_location(f"adapter_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_airbench_and_dataloader_do_our_work_with_given_parameters():
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (40, 12, 13, 3), dtype=np.uint8)
    images[3] = 7  # nothing but the divisor's floor
    crop = 8
    tops, lefts = rng.integers(0, 5, 40), rng.integers(0, 6, 40)
    flips, brightness, contrast = rng.random(40) < 0.5, rng.uniform(-63, 63, 40), rng.uniform(0.2, 1.8, 40)
    expected = np.stack(
        [standardized(*row) for row in zip(images, tops, lefts, [crop] * 40, flips, brightness, contrast, strict=True)]
    )
    airbench = adapter("airbench")
    arguments = (
        torch.from_numpy(images).permute(0, 3, 1, 2),
        crop,
        torch.from_numpy(tops),
        torch.from_numpy(lefts),
        torch.from_numpy(flips),
        torch.tensor(brightness, dtype=torch.float32),
        torch.tensor(contrast, dtype=torch.float32),
        torch.float32,
    )
    batched = [airbench.augment(*arguments, cut) for cut in (airbench.crop_by_shift, airbench.crop_by_image)]
    augment = adapter("dataloader").augment
    one_by_one = []
    for row in range(40):
        cut = images[row, tops[row] : tops[row] + crop, lefts[row] : lefts[row] + crop]
        pixels = torch.from_numpy(cut).permute(2, 0, 1).float()
        one_by_one.append(augment(pixels, flips[row], brightness[row], contrast[row]))
    for found in (*batched, torch.stack(one_by_one)):
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", ["airbench", "dataloader"])
def test_their_batches_are_standardized_random_and_cover_an_epoch(tmp_path, name, dtype):
    np.save(tmp_path / "images.npy", noise_images(64, 12, 12))
    np.save(tmp_path / "labels.npy", np.arange(64))
    case = request(tmp_path, batch=16) | {
        "images": str(tmp_path / "images.npy"),
        "labels": str(tmp_path / "labels.npy"),
        "crop": 8,
        "dtype": dtype,
    }
    threads = torch.get_num_threads()
    batches = adapter(name).open_batches(case)
    try:
        epochs = [[next(batches) for _ in range(4)] for _ in range(2)]
    finally:
        batches.close()
        torch.set_num_threads(threads)
    for epoch in epochs:
        assert sorted(int(label) for _, labels in epoch for label in labels) == list(range(64))
        for images, labels in epoch:
            assert images.shape == (16, 3, 8, 8) and str(images.dtype) == f"torch.{dtype}"
            assert labels.dtype == torch.int64
            assert images.float().mean((1, 2, 3)).abs().max() < 0.01
            assert (images.float().std((1, 2, 3), correction=0) - 1).abs().max() < 0.01
    first, second = (torch.cat([images for images, _ in epoch]) for epoch in epochs)
    assert not torch.equal(first, second)


# -- the commands --------------------------------------------------------------------------------------------------


def test_quick_resident_runs_without_rivals_and_compares_with_fused(tmp_path, capsys):
    report = tmp_path / "there" / "resident.json"
    arguments = ["resident", "--quick", "--device", "cpu", "--peers", "none", "--json", str(report)]
    assert main(arguments) == 0
    found = json.loads(report.read_text("utf-8"))
    names = [one["name"] for one in found["results"]]
    assert "resident, fused" in names and "resident, fused, 32², float16" in names
    for one in found["results"]:
        assert len(one["rounds"]) == 5 and one["limit"] > 0
        if "dali" in one["name"]:
            assert one["against"].startswith("resident, fused") and one["ratio"] > 0
    assert found["machine"]["load_before"] >= 0 and str(report) in capsys.readouterr().out


def test_quick_resident_takes_the_rivals_that_need_no_environment_of_their_own(tmp_path):
    ready = [name for name in ("airbench", "dataloader") if not install.unmet(install.peers()[name].requirements)]
    if not ready:
        pytest.skip("this environment is not the tested one that these rivals run in")
    path = write_raw(tmp_path / "own.h5", noise_images(40, 12, 12), np.arange(40))
    setting = Setting(CPU, True, Deadline(600), path)
    found = rivals.resident(setting, ("fused",), install.chosen(",".join(ready)))
    by_name = {one.name: one for one in found.results}
    assert set(by_name) == {"resident, fused", *(f"resident, {name}" for name in ready)}, found.notes
    for name in ready:
        details = by_name[f"resident, {name}"].details
        assert details["shape"] == [16, 3, 12, 12] and details["images"] == 40 and details["leaves_out"] == ""
        assert abs(details["mean"]) < 0.01 and details["deviation"] == pytest.approx(1, abs=0.01)


def test_quick_select_measures_memory_and_disk(tmp_path):
    report = tmp_path / "select.json"
    assert main(["select", "--quick", "--device", "cpu", "--scratch", str(tmp_path), "--json", str(report)]) == 0
    found = {
        one["name"].partition(": ")[2] + one["name"][:22]: one for one in json.loads(report.read_text())["results"]
    }
    assert len(found) == 5
    disk = [one for one in found.values() if "from disk" in one["name"]]
    assert len(disk) == 1 and disk[0]["limit_name"] == "sequential read"
    assert disk[0]["details"]["own_memory_mb"] >= 0 and disk[0]["details"]["anonymous_memory_mb"] > 1
    assert [path.name for path in tmp_path.iterdir()] == ["select.json"]


def test_the_selections_that_race_find_the_same_values():
    rng = np.random.default_rng(0)
    matrix = torch.from_numpy(rng.random((300, 5), dtype=np.float32))
    best = np.sort(matrix.numpy(), axis=0)[::-1][:7]
    found = {name: work() for name, (work, _) in select_grid.contenders(matrix, 7).items()}
    assert set(found) == {"ours", "torch.topk(dim=0)", "transpose + topk", "numpy.argpartition"}
    assert np.array_equal(found["ours"].values[0].T, best)
    assert np.array_equal(found["torch.topk(dim=0)"].values.numpy(), best)
    assert np.array_equal(found["transpose + topk"].values.numpy().T, best)
    rows = found["numpy.argpartition"]
    assert np.array_equal(np.sort(np.take_along_axis(matrix.numpy(), rows, 0), axis=0)[::-1], best)


def test_rows_of_the_grid_are_in_the_order_asked_for_and_do_not_depend_on_the_blocks():
    size = select_grid.Size(1000, 6)
    rising = select_grid.block(size, "ascending", 0, 1000)
    assert rising.dtype == np.float32 and (np.diff(rising, axis=0) > -1e-6).all() and rising[-1].min() > 0.9
    falling = select_grid.block(size, "descending", 0, 1000)
    assert (np.diff(falling, axis=0) < 1e-6).all() and falling[-1].max() < 0.1
    mixed = select_grid.block(size, "random", 0, 1000)
    assert 0.4 < (np.diff(mixed, axis=0) > 0).mean() < 0.6
    assert select_grid.block(size, "ascending", 500, 10).mean() == pytest.approx(0.505, abs=0.001)


def test_what_does_not_fit_is_named_and_not_measured(monkeypatch, tmp_path):
    huge = select_grid.Grid((select_grid.Size(10**9, 2048), select_grid.Size(10**9, 2048, True)), ("random",), (5,))
    found = select_grid.select(quick(), huge)
    assert found.results == [] and len(found.notes) == 2
    assert "8,192.0 GB of memory" in found.notes[0] and "8,192.0 GB on the disk" in found.notes[1]
    monkeypatch.setattr(select_grid, "free_memory", lambda device: 10**6)
    small = select_grid.Grid((select_grid.Size(400, 500),), ("random",), (5,))
    found = select_grid.select(quick(), small)
    assert any("numpy.argpartition left out: needs" in note for note in found.notes)
    assert all("argpartition" not in one.name for one in found.results) and found.results


def test_a_files_pages_are_evicted_and_read(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    with path.open("rb") as file:
        os.fsync(file.fileno())
    assert select_grid.read_through(path) == 1 << 20
    assert 0 <= select_grid.evict(path) <= 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["resident", "--peers", "dalai"], "dalai: no such rival"),
        (["select", "--sizes", "10by20"], "size '10by20': ROWSxDIMS"),
        (["select", "--orders", "upwards"], "order 'upwards': there are random"),
        (["select", "--k", "2000"], "k of 2000: it is from 1 to 1,024"),
        (["select", "--k", "many"], "--k many: numbers"),
        (["peers", "install", "dalai"], "dalai: no such rival"),
    ],
)
def test_bad_choices_are_one_line_and_exit_code_2(capsys, arguments, words):
    assert main([*arguments, *([] if arguments[0] == "peers" else ["--quick", "--device", "cpu"])]) == 2
    found = capsys.readouterr().err
    assert words in found and len(found.splitlines()) == 1


def test_peers_are_listed_with_their_state(capsys):
    assert main(["peers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(install.peers())


def test_a_plot_needs_matplotlib_and_is_a_picture(tmp_path, monkeypatch, capsys):
    arguments = ["select", "--quick", "--device", "cpu", "--sizes", "300x8", "--plot", str(tmp_path / "p.png")]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        assert main(arguments) == 2
    assert "--plot needs matplotlib" in capsys.readouterr().err
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    assert main(arguments) == 0
    assert (tmp_path / "p.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
