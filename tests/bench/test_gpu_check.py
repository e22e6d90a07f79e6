"""`python -m fastload.bench.gpu_check`: without a GPU it says so; with one, one part's end is not the end of all."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from places import ROOT

from fastload.bench import gpu_check


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so_in_one_line_and_exits_3(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-m", "fastload.bench.gpu_check", "--out", str(tmp_path / "out.json")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 3, ran.stderr
    assert len(ran.stdout.splitlines()) == 1 and "no GPU" in ran.stdout
    assert not list(tmp_path.iterdir())


def rehearse(tmp_path, *arguments):
    out = tmp_path / "out.json"
    code = gpu_check.main(["--device", "cpu", "--quick", "--out", str(out), *arguments])
    return code, json.loads(out.read_text())


def test_a_rehearsal_on_the_cpu_runs_parts_and_writes_the_report(tmp_path, capsys):
    code, report = rehearse(tmp_path, "--parts", "resident-fused")
    assert code == 0 and not report["failures"]
    assert [one["part"] for one in report["results"]] == ["resident-fused"]
    assert {"machine", "versions", "seconds", "tests", "missing", "skipped_for_time"} <= report.keys()
    assert "us_per_batch" in report["results"][0]["details"]
    assert "resident, fused" in capsys.readouterr().out and list(tmp_path.iterdir()) == [tmp_path / "out.json"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("raise RuntimeError('a kernel failed')", "a kernel failed"),
        ("os.abort()", "its process ended with -6"),
        ("time.sleep(600)", "stopped after its"),
    ],
    ids=["error", "crash", "hang"],
)
def test_a_part_that_ends_badly_fails_alone_and_is_named(tmp_path, monkeypatch, body, expected):
    # A process that stands in for a part: its code comes in through sitecustomize, before gpu_check is run.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys, time\n"
        "def broken(setting):\n"
        f"    {body}\n"
        "if '--one' in sys.argv or '--one' in sys.orig_argv:\n"
        "    import fastload.bench.parts as parts\n"
        "    parts.PARTS['select'] = broken\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    monkeypatch.setattr(gpu_check, "LEAST_SECONDS", 4.0)
    minutes = "0.1" if "sleep" in body else "5"
    (tmp_path / "there").mkdir()
    code, report = rehearse(tmp_path / "there", "--parts", "select", "--minutes", minutes)
    assert code == 1 and [one["what"] for one in report["failures"]] == ["select"]
    assert expected in report["failures"][0]["traceback"]


def test_parts_without_time_are_named_and_do_not_count_as_passed(tmp_path):
    code, report = rehearse(tmp_path, "--parts", "select,two-phase", "--minutes", "0")
    assert code == 1 and report["skipped_for_time"] == ["select", "two-phase"]


def lines(*found):
    return "\n".join(json.dumps(one) for one in found)


def test_outcomes_of_tests_are_counted_and_failures_kept():
    report = {"machine": {"device": "cuda"}, "failures": [], "missing": [], "skipped_for_time": []}
    gpu_check.note_tests(
        report,
        lines(
            {"test": "a", "outcome": "began"},
            {"test": "a", "outcome": "passed", "seconds": 1, "text": ""},
            {"test": "b", "outcome": "began"},
            {"test": "b", "outcome": "failed", "seconds": 1, "text": "assert 1 == 2"},
            {"test": "b", "outcome": "passed", "seconds": 1, "text": ""},
            {"test": "c", "outcome": "skipped", "seconds": 0, "text": "Skipped: DALI is not installed"},
            {"test": "d", "outcome": "skipped", "seconds": 0, "text": "Skipped: no CUDA device"},
            {"test": "e", "outcome": "began"},
        ),
        -11,
        "Segmentation fault",
    )
    assert report["tests"] == {"exit_code": -11, "passed": 1, "failed": 1, "skipped": 2, "unfinished": 1}
    assert [one["what"] for one in report["failures"]] == ["b", "d", "e"]
    assert "Segmentation fault" in report["failures"][2]["traceback"]
    assert [one["what"] for one in report["missing"]] == ["c"]


def test_tests_that_did_not_run_are_a_failure():
    report = {"machine": {"device": "cuda"}, "failures": [], "missing": [], "skipped_for_time": []}
    gpu_check.note_tests(report, "", 4, "no module named pytest")
    assert "no module named pytest" in report["failures"][0]["traceback"]


def test_every_gpu_test_file_is_found():
    found = {path.name for path in gpu_check._files_with_gpu_tests(ROOT / "tests")}
    assert {"test_gpu.py", "test_topk.py"} <= found and "test_order.py" not in found


def test_the_tests_process_writes_what_ran(tmp_path):
    """The plugin, on a test file of its own with each outcome."""
    path = tmp_path / "test_these.py"
    path.write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2\n"
        "@pytest.mark.skip(reason='why not')\ndef test_none(): pass\n"
        "@pytest.fixture\ndef broken(): raise ValueError('in set-up')\n"
        "def test_error(broken): pass\n"
    )
    out = tmp_path / "lines"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "fastload.bench.gpu_test_report", str(path)]
    code, _ = gpu_check._call(command, 100, {"FASTLOAD_TEST_REPORT": str(out)})
    report = {"machine": {"device": "cuda"}, "failures": [], "missing": [], "skipped_for_time": []}
    gpu_check.note_tests(report, out.read_text(), code, "")
    assert report["tests"] == {"exit_code": 1, "passed": 1, "failed": 2, "skipped": 1, "unfinished": 0}
    assert "in set-up" in report["failures"][1]["traceback"] and "why not" in report["missing"][0]["why"]
