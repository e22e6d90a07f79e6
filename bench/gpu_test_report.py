"""A pytest plugin (`-p fastload.bench.gpu_test_report`) that writes a JSON line for each test as it ends.

A run that is killed at its deadline, or by a GPU's fault, leaves what was found until then.
"""

from __future__ import annotations

import json
import os
from typing import Any

VARIABLE = "FASTLOAD_TEST_REPORT"
"""The environment variable that names the file."""


def pytest_runtest_logstart(nodeid: str, location: Any) -> None:
    """Note what runs, so that a test which ends the process is named."""
    _write({"test": nodeid, "outcome": "began"})


def pytest_runtest_logreport(report: Any) -> None:
    """Note a test's outcome: its call's, or that of a set-up or tear-down which failed or skipped."""
    if report.when == "call" or report.outcome != "passed":
        text = report.longrepr[2] if report.skipped and isinstance(report.longrepr, tuple) else report.longreprtext
        _write({"test": report.nodeid, "outcome": report.outcome, "seconds": report.duration, "text": text})


def pytest_collectreport(report: Any) -> None:
    """Note a file that cannot be collected, or is skipped whole."""
    if report.outcome != "passed":
        text = report.longrepr[2] if report.skipped and isinstance(report.longrepr, tuple) else report.longreprtext
        _write({"test": report.nodeid, "outcome": report.outcome, "seconds": 0.0, "text": text})


def _write(line: dict[str, Any]) -> None:
    with open(os.environ[VARIABLE], "a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")
