"""Programs that tests run at the same time."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Mapping, Sequence


def run_programs(commands: Sequence[Sequence[object]], environment: Mapping[str, str], *, timeout: float) -> list[str]:
    """Run programs at the same time and return what each printed.

    One that fails, or takes more than `timeout` seconds, is a failure that shows its last errors; none is left running.
    """
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [str(word) for word in command],
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for command in commands
        ]
        stack.callback(lambda: [process.kill() for process in processes])  # before the stack waits for each
        printed = []
        for process in processes:
            told, said = process.communicate(timeout=timeout)
            assert process.returncode == 0, said[-3000:]
            printed.append(told)
        return printed
