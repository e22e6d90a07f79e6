"""`fastload build-subset`: what it prints, its exit codes, Ctrl-C, a kill, a full disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from places import ROOT

from fastload.command.cli import main
from fastload.packed.file import PackedFile, PackedWriter
from fastload.subset import trials

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
TRIAL_SECONDS = 0.05
PAPERS = ("--strategy", "top-activations")
QUICK = (*PAPERS, "--epochs", "1", "--batch-size", "32", "--threads", "1")


def command(*words: object, before: str = "pass") -> list[str]:
    """The command in a process of its own, whose trials are short, and that does `before` first."""
    program = (
        "import sys; from fastload.command.cli import main; from fastload.subset import trials;"
        f"trials.TRIAL_SECONDS = {TRIAL_SECONDS}; {before}; sys.exit(main())"
    )
    return [sys.executable, "-c", program, "build-subset", *map(str, words)]


@pytest.fixture
def run(capfd, monkeypatch):
    """Run the command in this process, where torch is loaded already; gives what a process of its own would."""
    monkeypatch.setattr(trials, "TRIAL_SECONDS", TRIAL_SECONDS)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words: object) -> subprocess.CompletedProcess:
        capfd.readouterr()
        code = main(["build-subset", *map(str, words)])
        said = capfd.readouterr()
        return subprocess.CompletedProcess(words, code, said.out, said.err)

    return call


def one_line(done: subprocess.CompletedProcess) -> str:
    """The error: the last line, and no traceback."""
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr.strip().splitlines()[-1]


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "e.npy"
    np.save(path, np.random.default_rng(0).random((400, 6), np.float32))
    return path


def test_it_says_what_it_needs_each_step_s_time_and_a_summary(run, few_cifar, tmp_path):
    out = tmp_path / "s.h5"
    done = run(few_cifar, out, "--size", "8.64%", *QUICK)
    assert done.returncode == 0, done.stderr
    for words in ("needs: time about", "memory about", "disk about", "train the autoencoder: done", "embed: done, "):
        assert words in done.stderr
    for words in (
        "35 of 400 (8.75%)",
        "overlap",
        "dead dimensions",
        "filled at random",
        "airplane",
        "a dimension gave",
    ):
        assert words in done.stdout
    with PackedFile(out) as chosen:
        assert len(set(chosen.ids.tolist())) == 35


def test_json_is_the_whole_report_and_quiet_says_nothing_else(run, few_cifar, own, tmp_path):
    done = run(few_cifar, tmp_path / "s.h5", *PAPERS, "--size", 20, "--embeddings", own, "--json", "--quiet")
    assert done.returncode == 0 and done.stderr == ""
    report = json.loads(done.stdout)
    assert report["chosen"] == 20 and report["total"] == 400 and report["strategy"] == "top-activations"
    assert sum(report["per_dimension"]) + report["filled"] == 20 == sum(c["chosen"] for c in report["classes"])
    assert [step["step"] for step in report["steps"]] == ["train", "embed", "analyse", "filter", "write"]
    assert set(report["overlap"]) == {"k", "entries", "distinct", "most", "share"}
    with PackedFile(tmp_path / "s.h5") as chosen:
        assert report["embeddings_hash"] == chosen.selection.attributes["embeddings"]
        assert report["full_fingerprint"] == chosen.selection.attributes["full_fingerprint"]
    assert run(few_cifar, tmp_path / "t.h5", "--strategy", "random", "--quiet").stdout == ""


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--size", "401"], 2, "401 samples were asked for, but the full set has 400"),
        (["--size", "10", "--per-dimension", "2"], 2, "give one of the two"),
        (["--strategy", "best"], 2, "'best' is unknown"),
        ([*PAPERS, "--embeddings", "e.h5:nothing"], 1, "has no dataset 'nothing'; it has vectors"),
        ([*PAPERS, "--embeddings", "short.npy"], 1, "short.npy: has 3 embeddings but the full set has 400 samples"),
        (
            [*PAPERS, "--embeddings", "nan.npy", "--size", "20"],
            1,
            "NaN or infinity in 2 of 400 samples: row 5 (id 5), ",
        ),
        ([*PAPERS, "--encoder", "nowhere:f"], 2, "'nowhere' cannot be imported"),
        (["--no-such-option"], 2, "o such option"),
    ],
)
def test_bad_input_is_one_line_with_its_exit_code_and_leaves_nothing(
    run, monkeypatch, few_cifar, tmp_path, words, code, message
):
    import h5py

    with h5py.File(tmp_path / "e.h5", "w") as out:
        out["vectors"] = np.zeros((400, 2), np.float32)
    np.save(tmp_path / "short.npy", np.zeros((3, 2), np.float32))
    bad = np.random.default_rng(0).random((400, 6), np.float32)
    bad[[5, 9], 1] = np.nan
    np.save(tmp_path / "nan.npy", bad)
    monkeypatch.chdir(tmp_path)
    done = run(few_cifar, "s.h5", *words, "--quiet")
    assert done.returncode == code
    assert message in one_line(done) and len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "s.h5").exists()


def test_cuda_where_there_is_none_is_exit_code_2(run, monkeypatch, few_cifar, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = run(few_cifar, tmp_path / "s.h5", "--device", "cuda", "--quiet")
    assert done.returncode == 2 and "--device cuda was asked for, but" in one_line(done)


def wait_for(path: Path, process: subprocess.Popen, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not path.exists() or not path.stat().st_size:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.02)


LONG = (*PAPERS, "--size", "50", "--epochs", "8", "--batch-size", "32", "--threads", "1")
"""Eight checkpoints, one an epoch, and half a second or more from one to the next."""


@pytest.fixture(scope="module")
def uninterrupted(few_cifar, tmp_path_factory) -> bytes:
    out = tmp_path_factory.mktemp("uninterrupted") / "s.h5"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(trials, "TRIAL_SECONDS", TRIAL_SECONDS)
        assert main(["build-subset", str(few_cifar), str(out), *LONG, "--quiet"]) == 0
    return out.read_bytes()


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_or_a_kill_in_training_loses_nothing(run, few_cifar, uninterrupted, tmp_path, sign):
    out = tmp_path / "s.h5"
    process = subprocess.Popen(
        command(few_cifar, out, *LONG),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=ENVIRONMENT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    wait_for(tmp_path / "s.h5.work" / "training.safetensors", process)
    process.send_signal(sign)
    _, said = process.communicate(timeout=60)
    assert not out.exists() and (tmp_path / "s.h5.work" / "training.safetensors").exists()
    if sign == signal.SIGINT:
        assert process.returncode == 130 and "Traceback" not in said
        last = said.strip().splitlines()[-1]
        assert last.startswith("interrupted: ") and "s.h5.work keeps what is done; the same command goes on" in last
    done = run(few_cifar, out, *LONG)
    assert done.returncode == 0 and "train the autoencoder: resumed at step" in done.stderr
    same = out.read_bytes() == uninterrupted
    assert same  # not in the assertion: to show where megabytes differ takes pytest a minute
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["s.h5"]


def test_two_processes_on_one_output_are_told_apart(run, few_cifar, tmp_path):
    out = tmp_path / "s.h5"
    process = subprocess.Popen(
        command(few_cifar, out, *LONG, "--quiet"), stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    try:
        wait_for(tmp_path / "s.h5.work" / "lock", process)
        second = run(few_cifar, out, "--quiet", *QUICK)
        assert second.returncode == 2
        assert f"another build-subset (process {process.pid}) is at work" in one_line(second)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("limit", "place"), [(600_000, "training"), (900_000, "embeddings"), (2_000_000, "s.h5: ")])
def test_a_disk_that_fills_up_is_one_line_and_what_is_done_is_kept(run, few_cifar, tmp_path, limit, place):
    """A file size limit stands in for the disk: for the checkpoint, the embeddings, then the subset."""
    with (
        PackedFile(few_cifar) as full,
        PackedWriter(tmp_path / "full.h5", shape=(1100, 32, 32, 3), labels=np.arange(1100) % 10, source={}) as big,
    ):
        for row in range(1100):
            big.write(row, full.image(row % 400))
    out = tmp_path / "s.h5"
    # The embeddings stay only where they are stored.
    keep = ["--keep"] if place == "embeddings" else []
    words = (*PAPERS, "--size", "900", "--epochs", "0.02", "--threads", "1", *keep, "--quiet")
    limited = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))"
    )
    done = subprocess.run(
        command(tmp_path / "full.h5", out, *words, before=limited),
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=120,
    )
    assert done.returncode == 1
    assert place in one_line(done) and "cannot be written" in one_line(done)
    assert not out.exists() and not list(tmp_path.glob(".*partial"))
    again = run(tmp_path / "full.h5", out, *[word for word in words if word != "--quiet"])
    assert again.returncode == 0
    reused = {
        "training": [],
        "embeddings": ["train the autoencoder"],
        "s.h5: ": ["train the autoencoder", "embed", "analyse"],
    }
    assert [
        line.split(":")[0] for line in again.stderr.splitlines() if ": reused," in line and "needs" not in line
    ] == reused[place]
