"""Run by test_closing.py: draw from many loaders of every kind, each of which is closed in mid-use by somebody.

closing_program.py FULL SUBSET ENCODED TRIALS
Prints, for each kind and each who closes, how many loaders ended with the error, and how many with their last batch.
"""

import faulthandler
import json
import random
import signal
import sys
import threading
import time

from fastload import Augment, TwoPhaseLoader, UsageError

full, subset, encoded, trials = sys.argv[1:]
KINDS = ("fused", "dali", "encoded", "evaluation", "evaluation dali")
WHO = ("timer", "thread", "handler", "callback")
random_ = random.Random(3)
faulthandler.dump_traceback_later(280, exit=True)  # a hang


def made(kind, who):
    """Return a loader, and what of it is drawn from and closed: itself, or its evaluation."""
    swap = 2 if who == "callback" else 0 if kind == "encoded" else random_.choice([0, 3, 40, 100_000])
    files = (encoded, None) if kind == "encoded" else (full, subset)
    loader = TwoPhaseLoader(
        *files,
        swap=swap,
        batch_size=16,
        steps=100_000,
        augment=Augment.paper(24),
        device="cpu",
        engine="dali" if kind.endswith("dali") else "auto",
        resident_budget=random_.choice([0, None]),
    )
    return loader, loader.evaluation(full, batch_size=4) if kind.startswith("evaluation") else loader


def closed_in_mid_use(kind, who, trial):
    """Draw until the loader is closed; return whether its error was the end."""
    loader, drawn_from = made(kind, who)
    after, drawn, helper = random_.uniform(1e-5, 0.02), threading.Event(), None

    def close_soon():
        if who == "thread":
            drawn.wait(20)
        else:
            time.sleep(after)
        drawn_from.close()

    if who in ("timer", "thread"):
        helper = threading.Thread(target=close_soon)
        helper.start()
    elif who == "handler":
        signal.signal(signal.SIGALRM, lambda number, frame: drawn_from.close())
        signal.setitimer(signal.ITIMER_REAL, after)
    else:
        loader.on_swap(lambda loader: loader.close())
    began, error = time.monotonic(), None
    try:
        while time.monotonic() - began < 20:
            for number, _ in enumerate(drawn_from):
                if number == trial % 7:
                    drawn.set()
            if drawn_from is loader:
                break
    except UsageError as raised:
        error = str(raised)
        assert "closed" in error, error
    assert time.monotonic() - began < 15
    if helper is not None:
        helper.join()
    drawn_from.close()
    loader.close()
    return error is not None


found = {}
for kind in KINDS:
    for who in WHO if kind in ("fused", "dali") else WHO[:3]:
        some = int(trials) if "dali" not in kind and kind != "encoded" else max(2, int(trials) // 3)
        ends = [closed_in_mid_use(kind, who, trial) for trial in range(some)]
        found[f"{kind}, {who}"] = [some, sum(ends)]
print(json.dumps(found))
