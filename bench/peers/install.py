"""`python -m fastload.bench peers [install [NAME…]]`: the rivals' environments, listed and made.

An environment is made below $FASTLOAD_PEERS, else $XDG_CACHE_HOME/fastload/peers, else ~/.cache/fastload/peers. It
counts as ready when its stamp, written last, names the requirements and the Python it was made for; one that failed is
removed. A rival whose requirements the running environment meets already runs there, unless it has one of its own.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastload.bench.peers.process import PeerError, environment
from fastload.errors import UsageError

HERE = Path(__file__).parent
STAMP = "fastload-peer"
PIP_SECONDS = 3600.0


@dataclass(frozen=True)
class Peer:
    """A rival: its name and the folder that holds its adapter and requirements."""

    name: str
    folder: Path

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter.py"

    @property
    def requirements(self) -> Path:
        return self.folder / "requirements.txt"

    @property
    def cases(self) -> tuple[str, ...]:
        """In which benches it runs. Read, not imported: that would take its environment."""
        for line in ast.parse(self.adapter.read_text("utf-8")).body:
            if isinstance(line, ast.Assign) and [ast.unparse(target) for target in line.targets] == ["CASES"]:
                return tuple(ast.literal_eval(line.value))
        return ("resident",)

    @property
    def environment(self) -> Path:
        return environments_folder() / self.name

    @property
    def has_own(self) -> bool:
        """Whether its own environment is there, complete and of today's requirements."""
        stamp = self.environment / STAMP
        return stamp.is_file() and stamp.read_text("utf-8") == self.stamp()

    def stamp(self) -> str:
        return f"{sys.version.split()[0]} {hashlib.sha256(self.requirements.read_bytes()).hexdigest()}\n"

    def python(self) -> Path | None:
        """Return the interpreter that can run it, None where there is none."""
        if self.has_own:
            return self.environment / "bin" / "python"
        return Path(sys.executable) if not unmet(self.requirements) else None

    def state(self) -> str:
        """Return in words whether it can run, and if not, what to do."""
        if self.has_own:
            return "ready, in an environment of its own"
        lacking = unmet(self.requirements)
        if not lacking:
            return "ready, in this environment"
        if self.environment.exists():
            return f"out of date: python -m fastload.bench peers install {self.name}"
        packages = missing_packages(self.folder)
        first = f"apt-get install -y {' '.join(packages)} && " if packages else ""
        return f"not installed: {first}python -m fastload.bench peers install {self.name}"


def peers(folder: Path = HERE) -> dict[str, Peer]:
    """Return all rivals by name."""
    return {path.parent.name: Peer(path.parent.name, path.parent) for path in sorted(folder.glob("*/adapter.py"))}


def chosen(names: str, known: dict[str, Peer] | None = None) -> list[Peer]:
    """Return the rivals that `all`, `none` or a list `name,name` stands for; UsageError for an unknown one."""
    known = peers() if known is None else known
    if names in ("all", "none"):
        return list(known.values()) if names == "all" else []
    wanted = [name for name in names.split(",") if name]
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        raise UsageError(
            f"{', '.join(unknown) or 'no name'}: no such rival; there are {', '.join(known)}, all and none"
        )
    return [known[name] for name in wanted]


def environments_folder() -> Path:
    """Return the folder that holds the rivals' environments."""
    if "FASTLOAD_PEERS" in os.environ:
        return Path(os.environ["FASTLOAD_PEERS"]).absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "fastload" / "peers"


def unmet(requirements: Path) -> list[str]:
    """Return the lines of a requirements file, `name` or `name==version`, that the running environment does not meet.

    A local version, such as the +cpu of a torch, is the same version.
    """
    found = []
    for line in requirements.read_text("utf-8").split("\n"):
        line = line.partition("#")[0].strip()
        name, _, version = line.partition("==")
        try:
            if name and version not in ("", importlib.metadata.version(name).partition("+")[0]):
                found.append(line)
        except importlib.metadata.PackageNotFoundError:
            found.append(line)
    return found


def missing_packages(folder: Path) -> list[str]:
    """Return the Debian packages of `debian.txt` whose check fails, or [] without such a file."""
    listed = folder / "debian.txt"
    if not listed.is_file():
        return []
    pairs = [line.partition(":") for line in listed.read_text("utf-8").splitlines() if line.strip()]
    return [name.strip() for name, _, check in pairs if not _succeeds(check.strip())]


def _succeeds(command: str) -> bool:
    done = subprocess.run(["sh", "-c", command], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return done.returncode == 0


def install(peer: Peer) -> float:
    """Make a rival's environment anew and return the seconds it took; PeerError names what is missing or failed."""
    packages = missing_packages(peer.folder)
    if packages:
        raise PeerError(f"{peer.name}: needs {', '.join(packages)}: apt-get install -y {' '.join(packages)}")
    began = time.monotonic()
    folder = peer.environment
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _call(peer.name, [sys.executable, "-m", "venv", str(folder)], "python3-venv may be missing: ")
        python = folder / "bin" / "python"
        # torch first: a version that a later package asks for must not pull another build of it. torchvision with it,
        # as each of its releases imports beside one release of torch only.
        lines = peer.requirements.read_text("utf-8").split()
        torch = [line for line in lines if re.match(r"torch(vision)?\b", line)]
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        if torch:
            _call(peer.name, [*pip, *torch])
        _call(peer.name, [*pip, "--requirement", str(peer.requirements)])
        (folder / STAMP).write_text(peer.stamp(), "utf-8")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return time.monotonic() - began


def _call(name: str, command: Sequence[str], hint: str = "") -> None:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PIP_SECONDS,
            check=False,
            env=environment(Path(command[0])),
        )
    except subprocess.TimeoutExpired as error:
        raise PeerError(f"{name}: {command[2]} took longer than {PIP_SECONDS / 60:.0f} minutes") from error
    if done.returncode:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        errors = [line for line in lines if re.match(r"(ERROR|error|fatal error|RuntimeError)", line)] or lines[-1:]
        raise PeerError(f"{name}: {hint}{errors[-1] if errors else f'{command[2]} failed without a word'}")


def main(
    arguments: Sequence[str], known: dict[str, Peer] | None = None, install: Callable[[Peer], float] = install
) -> int:
    """List the rivals, or install those named (by default all that are not ready); 1 where one failed, else 0."""
    parser = argparse.ArgumentParser(prog="python -m fastload.bench peers", description="the benchmark's rivals")
    parser.add_argument("action", nargs="?", default="list", choices=["list", "install"])
    parser.add_argument("names", nargs="*", metavar="NAME", help="which to install; all that are not ready by default")
    options = parser.parse_args(arguments)
    known = peers() if known is None else known
    if options.action == "list":
        if options.names:
            parser.error("names come after `install`")
        for peer in known.values():
            print(f"{peer.name:12} {peer.state()}")
        return 0
    wanted = chosen(",".join(options.names), known) if options.names else list(known.values())
    failed = 0
    for peer in wanted:
        if not options.names and peer.python() is not None:
            print(f"{peer.name}: {peer.state()}")
            continue
        print(f"{peer.name}: installing into {peer.environment} …", flush=True)
        try:
            print(f"{peer.name}: ready after {install(peer):.0f} s", flush=True)
        except PeerError as error:
            failed += 1
            print(f"skipped: {error}", file=sys.stderr, flush=True)
    return 1 if failed else 0
