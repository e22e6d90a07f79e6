"""The process around a rival's adapter: requests come as JSON lines on standard input, replies leave on its output.

    {"do": "prepare", "case": {...}}   → {"ok": {"leaves_out": "..."}}
    {"do": "run", "batches": n}        → {"ok": {"seconds": s, "images": n, "cpu_seconds": s, ...}}
    {"do": "quit"}                       the process ends

What fails is answered with {"error": "one line"}. Standard library only: it runs in the rival's environment.
"""

import contextlib
import ctypes
import importlib.util
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

PR_SET_PDEATHSIG = 1


def serve(adapter: Any, requests: Iterable[str], replies: TextIO) -> None:
    """Answer requests until `quit` or the end of the input."""
    batches: Iterator[Any] = iter(())
    case: dict[str, Any] = {}
    reply: dict[str, Any]
    for line in requests:
        request = json.loads(line)
        if request["do"] == "quit":
            return
        try:
            if request["do"] == "prepare":
                case = request["case"]
                batches = adapter.open_batches(case)
                answer = {"leaves_out": adapter.LEAVES_OUT.get(case["name"], "")}
            elif request["do"] == "run":
                answer = run(batches, request["batches"], adapter.AHEAD, case["device"])
            else:
                raise ValueError(f"no such request: {request['do']!r}")
            reply = {"ok": answer}
        except Exception as error:
            traceback.print_exc()
            text = str(error).strip().splitlines()
            reply = {"error": f"{type(error).__name__}: {text[-1] if text else 'without a message'}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def run(batches: Iterator[Any], count: int, ahead: int, device: str) -> dict[str, Any]:
    """Time `count` batches, after taking those that were made while nobody looked: they would count as free."""
    for _ in range(ahead):
        next(batches)
    synchronize(device)
    began, spent = time.perf_counter(), time.process_time()
    images = 0
    for _ in range(count):
        batch = next(batches)
        images += len(batch[0])
    synchronize(device)
    seconds = time.perf_counter() - began
    # Of this process and all its threads, not of processes that it started.
    cpu_seconds = time.process_time() - spent
    last = batch[0]
    answer: dict[str, Any] = {"seconds": seconds, "images": images, "cpu_seconds": cpu_seconds}
    answer |= {"shape": list(last.shape), "dtype": str(last.dtype).split(".")[-1]}
    if hasattr(last, "float"):  # so that the parent can see that work was done: standardized pixels, not zeros
        answer["mean"], answer["deviation"] = float(last.float().mean()), float(last.float().std())
    return answer


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device != "cpu":
        import torch

        torch.cuda.synchronize()


def load(path: str) -> Any:
    """Import an adapter from its file, under a name that no installed package has.

    It finds what adapters share, behind all that is installed.
    """
    sys.path.append(str(Path(__file__).with_name("shared")))
    spec = importlib.util.spec_from_file_location("fastload_peer_adapter", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Registered, or what DataLoader's and FFCV's worker processes unpickle is not found.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def main() -> int:
    # Nobody shall be left running where the parent was killed, not even when this process stands stopped by it.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # Libraries print: what they print to standard output must not come between the replies, and their own worker
    # processes must not read the requests.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        adapter = load(sys.argv[1])
    except Exception as error:
        traceback.print_exc()
        print(json.dumps({"error": f"{type(error).__name__}: {error}".splitlines()[0]}), file=replies, flush=True)
        return 1
    print(json.dumps({"ok": {}}), file=replies, flush=True)
    serve(adapter, requests, replies)
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: threads that a rival leaves behind would keep the process.
    os._exit(code)
