"""`python -m fastload.bench.gpu_check`: the GPU-marked tests and a short benchmark of every GPU path, in one JSON file.

It needs no network, no registry and no data, ends within --minutes (7.5), and writes what it has after each part: each
part is a process of its own, so that a fault of the GPU, a crash or a hang in one ends that part alone. Exit code: 0 if
everything ran and passed; 1 if something failed or did not get its turn; 3 if there is no GPU. Parts that need DALI are
reported as missing where DALI is not installed, and fail nothing.

`--device cpu --quick` rehearses: every part's code runs, on the CPU, at tiny sizes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from fastload.bench import gpu_test_report, parts
from fastload.bench.measure import Deadline, Result, describe, machine, print_table, versions
from fastload.common.device import why_no_cuda
from fastload.common.replacing import replace_file

ROOT = Path(__file__).resolve().parent.parent
MINUTES = 7.5
TESTS_SHARE = 0.5
"""Of the time, for the tests; what they leave goes to the parts."""

IMPORTED = (
    "hypothesis",
    "numba_cuda",
    "pytest",
    "PIL.Image",
    "rich.console",
    "fastload.selection.topk",
    "fastload.loop.loader",
    "fastload.subset.build",
    "zstandard",
)
"""What the tests and parts import beside this file, and other dependencies; DALI and scikit-learn may be missing."""

LEAST_SECONDS = 10.0
"""A part is not begun with less than this: imports and compilation take most of it."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = _options(arguments)
    why = why_no_cuda() if options.device == "cuda" else None
    if why is not None:
        print(f"gpu_check: no GPU here ({why}); nothing was checked")
        return 3
    device = torch.device("cuda:0" if options.device == "cuda" else "cpu")
    if options.one is not None:
        return _run_one(options.one, device, options.quick, options.seconds, options.out)
    deadline = Deadline(60 * options.minutes)
    report: dict[str, Any] = {
        "machine": machine(device),
        "versions": versions(),
        "quick": options.quick,
        "began": _now(),
        "tests": {},
        "results": [],
        "missing": [],
        "skipped_for_time": [],
        "failures": [],
    }
    out = options.out or _default_path(report["machine"])
    print(f"{describe(report['machine'])}\nwriting {out}", flush=True)
    began = time.monotonic()
    if "tests" in options.parts:
        _run_tests(report, deadline.left * TESTS_SHARE)
        _save(report, out, began)
    for name in options.parts:
        if name != "tests":
            _run_process(name, options, report, deadline)
            _save(report, out, began)
    return _finish(report, out)


def import_all() -> None:
    """Import what a run imports; an ImportError says what this Python lacks."""
    for name in IMPORTED:
        importlib.import_module(name)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    everything = ["tests", *parts.PARTS]
    parser = argparse.ArgumentParser(
        prog="python -m fastload.bench.gpu_check", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="the JSON file (bench/results/gpu-check-GPU.json)")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="begin nothing after this time, and stop then")
    parser.add_argument("--parts", default=",".join(everything), help=f"some of {','.join(everything)}")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu is a rehearsal")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that all runs, measures nothing")
    parser.add_argument("--one", choices=list(parts.PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=60.0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.parts = [name for name in options.parts.split(",") if name]
    unknown = set(options.parts) - set(everything)
    if unknown:
        parser.error(f"--parts: {', '.join(sorted(unknown))}: no such part; there are {', '.join(everything)}")
    return options


# -- tests ---------------------------------------------------------------------------------------------------------


def _run_tests(report: dict[str, Any], seconds: float) -> None:
    """Run the tests marked `gpu` in a process of their own and note outcomes and failures."""
    files = _files_with_gpu_tests(ROOT / "tests")
    if not files:
        _fail(report, "tests", "there are no tests beside this bench folder: run it from a source tree")
        return
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "tests.jsonl"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-m",
            "gpu",
            "-q",
            "--continue-on-collection-errors",
            "-p",
            "fastload.bench.gpu_test_report",
            "-p",
            "no:cacheprovider",
            *map(str, files),
        ]
        code, tail = _call(command, seconds, {gpu_test_report.VARIABLE: str(lines)})
        note_tests(report, lines.read_text("utf-8") if lines.exists() else "", code, tail)


def _files_with_gpu_tests(folder: Path) -> list[Path]:
    # Only these are collected: another file may need a package that this machine lacks.
    return [path for path in sorted(folder.rglob("test_*.py")) if "mark.gpu" in path.read_text("utf-8")]


def note_tests(report: dict[str, Any], lines: str, code: int | None, tail: str) -> None:
    """Add what the plugin wrote to the report; `code` is pytest's exit code, None where its time ran out."""
    outcomes: dict[str, dict[str, Any]] = {}
    for line in lines.splitlines():
        found = json.loads(line)
        if outcomes.get(found["test"], {}).get("outcome") != "failed":  # a tear-down does not mend a failed call
            outcomes[found["test"]] = found
    counts = {"passed": 0, "failed": 0, "skipped": 0, "unfinished": 0}
    for name, found in outcomes.items():
        outcome = "unfinished" if found["outcome"] == "began" else found["outcome"]
        counts[outcome] += 1
        if outcome == "failed":
            _fail(report, name, found["text"])
        elif outcome == "unfinished":
            _fail(report, name, f"the tests' process ended in it ({'no time left' if code is None else code})\n{tail}")
        elif outcome == "skipped":
            if report["machine"]["device"] == "cuda" and "no cuda device" in found["text"].lower():
                _fail(report, name, f"skipped, though there is a GPU: {found['text']}")
            else:  # for want of DALI, of a second GPU or of real images
                report["missing"].append({"what": name, "why": found["text"]})
    report["tests"] = {"exit_code": code, **counts}
    if code is None:
        report["skipped_for_time"].append("the rest of the tests")
    elif not outcomes or (code != 0 and not report["failures"]):
        _fail(report, "tests", f"pytest ended with {code} and named no test\n{tail}")
    print(f"tests: {counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped", flush=True)


# -- parts ---------------------------------------------------------------------------------------------------------


def _run_process(name: str, options: argparse.Namespace, report: dict[str, Any], deadline: Deadline) -> None:
    """Run one part in a process of its own, with a fair share of the time that is left, and note what it gives."""
    left = deadline.left
    if left < LEAST_SECONDS:
        report["skipped_for_time"].append(name)
        print(f"{name}: no time left", flush=True)
        return
    behind = [one for one in options.parts[options.parts.index(name) :] if one != "tests"]
    seconds = min(left, max(2 * LEAST_SECONDS, 1.5 * left / len(behind)))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "part.json"
        command = [
            sys.executable,
            "-m",
            "fastload.bench.gpu_check",
            "--one",
            name,
            "--device",
            options.device,
            "--seconds",
            f"{0.6 * seconds:.1f}",
            "--out",
            str(out),
            *(["--quick"] if options.quick else []),
        ]
        began = time.monotonic()
        code, tail = _call(command, seconds, {})
        found = json.loads(out.read_text("utf-8")) if out.exists() else None
    took = time.monotonic() - began
    if found is None:
        why = f"stopped after its {seconds:.0f} s" if code is None else f"its process ended with {code}"
        _fail(report, name, f"{why}\n{tail}")
    elif "missing" in found:
        report["missing"].append({"what": name, "why": found["missing"]})
    elif "failure" in found:
        _fail(report, name, found["failure"])
    else:
        report["results"] += [{"part": name, **one} for one in found["results"]]
    print(f"{name}: {took:.0f} s{'' if found and 'results' in found else ' (no result)'}", flush=True)


def _run_one(name: str, device: torch.device, quick: bool, seconds: float, out: Path) -> int:
    """Be the process of one part."""
    try:
        found: dict[str, Any] = {"results": parts.run_part(name, parts.Setting(device, quick, Deadline(seconds)))}
    except parts.Missing as missing:
        found = {"missing": str(missing)}
    except Exception:
        found = {"failure": traceback.format_exc()}
    out.write_text(json.dumps(found))
    return 0


def _call(command: list[str], seconds: float, variables: dict[str, str]) -> tuple[int | None, str]:
    """Run a command for at most `seconds`; return its exit code, or None past that, and the end of its output."""
    environment = os.environ | variables
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    environment.pop("NUMBA_ENABLE_CUDASIM", None)
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        code: int | None
        try:
            code = process.wait(timeout=max(1.0, seconds))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = None
        except BaseException:
            process.kill()
            process.wait()
            raise
        size = output.seek(0, os.SEEK_END)
        output.seek(max(0, size - 4000))
        return code, output.read().decode("utf-8", "replace")


# -- report --------------------------------------------------------------------------------------------------------


def _fail(report: dict[str, Any], what: str, text: str) -> None:
    report["failures"].append({"what": what, "traceback": text})


def _save(report: dict[str, Any], out: Path, began: float) -> None:
    report["seconds"] = round(time.monotonic() - began, 1)
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, (json.dumps(report, indent=1) + "\n").encode())


def _finish(report: dict[str, Any], out: Path) -> int:
    results = [Result(**{key: value for key, value in one.items() if key != "part"}) for one in report["results"]]
    if results:
        print_table(results, "gpu_check" + (" --quick: no measurement" if report["quick"] else ""))
    for one in report["results"]:
        if one["part"] == "two-phase":
            print("two-phase: " + ", ".join(f"{key} {value}" for key, value in one["details"].items()))
        elif "us_per_batch" in one["details"]:
            print(
                f"{one['name']}: {one['details']['us_per_batch']} µs a batch, {one['details']['us_per_copy']} to copy"
            )
    reasons = Counter(one["why"] for one in report["missing"])
    for why, count in reasons.items():
        whats = [one["what"] for one in report["missing"] if one["why"] == why]
        print(f"missing: {whats[0]}{f' and {count - 1} more' if count > 1 else ''}: {why}")
    for name in report["skipped_for_time"]:
        print(f"no time left for: {name}")
    for one in report["failures"]:
        print(
            f"FAILED: {one['what']}: {one['traceback'].strip().splitlines()[-1] if one['traceback'].strip() else '?'}"
        )
    passed = not report["failures"] and not report["skipped_for_time"]
    print(f"{'passed' if passed else 'not passed'}, {report.get('seconds', 0):.0f} s; everything is in {out}")
    return 0 if passed else 1


def _default_path(found: dict[str, Any]) -> Path:
    name = re.sub(r"[^a-z0-9]+", "-", str(found.get("gpu", "cpu")).lower()).strip("-")
    return ROOT / "bench" / "results" / f"gpu-check-{name}.json"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


if __name__ == "__main__":
    sys.exit(main())
