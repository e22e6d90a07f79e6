"""A rival's process: started, asked with a time limit, stopped while others are timed, and surely ended."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastload.errors import FastloadError

WORKER = Path(__file__).with_name("worker.py")
START_SECONDS = 120.0
QUIT_SECONDS = 3.0


class PeerError(FastloadError):
    """A rival cannot be installed, did not start, died, hung, or answered with an error; the message names it."""

    exit_code = 1


class PeerProcess:
    """The worker of one rival.

    It leads a process group of its own, with whatever processes the rival starts: Ctrl-C in the terminal does not
    reach them, and `close` ends all of them. Any failure ends them too, and raises PeerError with the last error line.
    """

    def __init__(self, name: str, python: Path, adapter: Path, *, seconds: float = START_SECONDS) -> None:
        self.name = name
        self._pending = b""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        command = [str(python), "-P", str(WORKER), str(adapter)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=environment(python),
                process_group=0,
            )
        except OSError as error:
            self._errors.close()
            raise PeerError(f"{name}: {python} cannot be started ({error.strerror}); install it again") from error
        try:
            self._reply(seconds)
        except BaseException:
            self.close()
            raise

    def ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Return the answer to a request that must come within `seconds`."""
        try:
            self._signal(signal.SIGCONT)
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # the missing reply says why
                self._process.stdin.write(json.dumps(request).encode() + b"\n")
                self._process.stdin.flush()
            return self._reply(seconds)
        except BaseException:
            self.close(patience=0.0)
            raise

    def pause(self) -> None:
        """Stop all of the rival's processes until the next `ask`: batches made ahead would slow down other rounds."""
        self._signal(signal.SIGSTOP)

    def close(self, patience: float = QUIT_SECONDS) -> None:
        """End all of the rival's processes: by request, and by force those that are there after `patience` seconds."""
        if self._errors.closed:
            return
        self._signal(signal.SIGCONT)
        assert self._process.stdin is not None
        try:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                self._process.stdin.write(b'{"do": "quit"}\n')
                self._process.stdin.flush()
                self._process.wait(patience)
        finally:
            # The group outlives its leader where the rival left processes behind.
            self._signal(signal.SIGKILL)
            self._process.wait()
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._errors.close()

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _reply(self, seconds: float) -> dict[str, Any]:
        line = self._line(seconds)
        try:
            reply = json.loads(line)
        except ValueError:
            reply = None
        if not isinstance(reply, dict) or not isinstance(reply.get("ok", {}), dict):
            raise PeerError(f"{self.name}: answered {line[:80]!r}, which is no reply")
        if "ok" not in reply:
            raise PeerError(f"{self.name}: {reply.get('error', 'answered without a result')}")
        return reply["ok"]

    def _line(self, seconds: float) -> str:
        end = time.monotonic() + seconds
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._pending:
            left = end - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                raise PeerError(f"{self.name}: no answer within {seconds:.3g} s{self._last_words()}")
            got = os.read(descriptor, 1 << 16)
            if not got:
                raise PeerError(f"{self.name}: its process ended ({self._exit()}){self._last_words()}")
            self._pending += got
        line, _, self._pending = self._pending.partition(b"\n")
        return line.decode("utf-8", "replace")

    def _exit(self) -> str:
        try:
            code = self._process.wait(QUIT_SECONDS)
        except subprocess.TimeoutExpired:
            return "it closed its output"
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().decode("utf-8", "replace").splitlines()]
        lines = [line for line in lines if line]
        return f": {lines[-1]}" if lines else ""


def environment(python: Path) -> dict[str, str]:
    """Return the environment variables for a rival: ours, but what points into our environment stays out of its own."""
    kept = dict(os.environ)
    if Path(python) != Path(sys.executable):
        for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
            kept.pop(name, None)
    return kept
