"""Check that what pyproject.toml and constraints.txt ask for can be had from PyPI, as on a machine of somebody else's.

Nothing is installed and no wheel is downloaded: uv resolves from the registry's metadata, for every Python and
processor that fastload is for, without this machine's own package folders and settings. Where no registry answers,
nothing is checked, and a line says so.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PROCESSORS = ("x86_64", "aarch64")
SECONDS = 240
"""For one resolution; it takes three to twenty."""

DOES_NOT_RESOLVE = 1
"""uv's exit code for that; any other says that it could not ask."""


class Case(NamedTuple):
    """One installation to resolve: `constrained` as make does it, else as a user does."""

    extras: tuple[str, ...]
    python: str
    processor: str
    constrained: bool

    def __str__(self) -> str:
        versions = "constraints.txt" if self.constrained else "the newest versions"
        return f"[{','.join(self.extras)}] with {versions}, Python {self.python}, {self.processor}"


CASES = [
    *(Case(("cuda13", "test"), python, processor, True) for python in PYTHONS for processor in PROCESSORS),
    *(Case((extra, "demo"), "3.11", "x86_64", False) for extra in ("cuda12", "cuda13")),
]


def main() -> int:
    """Resolve every case; return 1 where one does not resolve, with uv's words."""
    probe = _resolve(["-"], "six\n")
    if probe.returncode != 0:
        print(f"check_resolves: skipped, no package registry answers ({_last_line(probe)})")
        return 0
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(_check, CASES))
    failed = False
    for case, done in zip(CASES, found, strict=True):
        if done.returncode == DOES_NOT_RESOLVE:
            failed = True
            print(f"{case}: does not resolve\n{done.stderr.strip()}")
        elif done.returncode != 0:
            print(f"{case}: skipped, the registry did not answer ({_last_line(done)})")
    if not failed:
        print(f"check_resolves: {sum(one.returncode == 0 for one in found)} of {len(CASES)} installations resolve")
    return int(failed)


def _check(case: Case) -> subprocess.CompletedProcess[str]:
    extras = [word for extra in case.extras for word in ("--extra", extra)]
    versions = ["--constraints", str(ROOT / "constraints.txt")] if case.constrained else []
    platform = ["--python-version", case.python, "--python-platform", f"{case.processor}-manylinux_2_28"]
    return _resolve([str(ROOT / "pyproject.toml"), *extras, *versions, *platform])


def _resolve(arguments: list[str], text: str = "") -> subprocess.CompletedProcess[str]:
    """Run `uv pip compile` in an empty folder, so that no other project's settings are found."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("UV_") or key == "UV_CACHE_DIR"}
    command = [sys.executable, "-m", "uv", "pip", "compile", "--no-config", "--quiet", "--no-annotate", *arguments]
    with tempfile.TemporaryDirectory() as folder:
        command += ["--output-file", str(Path(folder) / "resolved.txt")]
        try:
            return subprocess.run(
                command,
                cwd=folder,
                input=text,
                text=True,
                capture_output=True,
                timeout=SECONDS,
                env=own | {"UV_HTTP_RETRIES": "1", "UV_HTTP_TIMEOUT": "30"},
            )
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(command, 124, "", f"no answer in {SECONDS} s")


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = done.stderr.strip().splitlines()
    return lines[-1].strip() if lines else f"exit code {done.returncode}"


if __name__ == "__main__":
    sys.exit(main())
