"""Run by tests/packed/test_guarded_map.py: what may end a process with a signal.

bus_program.py truncations FOLDER ROUNDS | alien FILE HOW | replaced FILE | reset FILE
"""

import ctypes
import faulthandler
import mmap
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import torch

from fastload import Augment, PackedFile
from fastload.errors import DataError
from fastload.feeds.batch import Output
from fastload.feeds.feed import open_feed, run_feed
from fastload.order import Order

BATCH = 64


def opened(file, workers=2):
    feed = open_feed(
        file, Augment.paper(24), Order(len(file), 0, 1), Output(BATCH, torch.device("cpu")), workers=workers
    )
    feed._read_ahead.want = lambda start, count: True  # whatever the file system says of its cache
    return feed


def usable(feed):
    return feed._mapped.gather(lambda *_: True)


def shrink(path, size, wait, by_process):
    """Truncate a file after `wait` seconds, from a thread or another process."""
    if not by_process:
        threading.Timer(wait, os.truncate, (path, size)).start()
    elif os.fork() == 0:
        time.sleep(wait)
        os.truncate(path, size)
        os._exit(0)


def truncations(folder, rounds):
    """Truncate a file under a feed at random moments, to random sizes; end with the last DataError."""
    draw = random.Random(0)
    mapped = 0
    for number in range(rounds):
        path = shutil.copy(Path(folder) / "full.h5", Path(folder) / f"{number}.h5")
        with PackedFile(path) as file:
            feed = opened(file)
            size = draw.randrange(file.data_offset, file.data_offset + file.nbytes)
            shrink(path, size, draw.random() * 0.02, by_process=number % 2 == 1)
            try:
                for _ in run_feed(feed, lambda step: (step * BATCH, BATCH), 0, 1 << 40, torch.device("cpu")):
                    mapped += usable(feed)
            except DataError as error:
                named = re.search(r"row ([\d,]+) ", str(error))
                if named is None:  # all rows of that batch were there, and the file was cut
                    assert "was changed while it was in use" in str(error)
                    print("changed", flush=True)
                else:
                    row = int(named[1].replace(",", ""))
                    assert file.data_offset + (row + 1) * 3072 > size, (row, size)
                    print("row", row, flush=True)
                if number + 1 == rounds:
                    assert mapped
                    raise
        os.remove(path)


def touch_lost_page(folder):
    path = Path(folder) / "other"
    path.write_bytes(b"x" * 8192)
    with open(path, "r+b") as file:
        other = mmap.mmap(file.fileno(), 8192)
        file.truncate(0)
    print(ctypes.c_uint8.from_buffer(other, 4096).value)


def alien(path, how):
    """Meet a SIGBUS that is not the map's."""
    if "before" in how:
        faulthandler.enable()
    with PackedFile(path) as file:
        feed = opened(file)
        feed.make(0, BATCH)
        if "reset" in how:
            signal.signal(signal.SIGBUS, signal.SIG_DFL)
            assert usable(feed)
        if "after" in how:
            faulthandler.enable()
        if "sent" in how:
            os.kill(os.getpid(), signal.SIGBUS)
        elif "thread" in how:
            thread = threading.Thread(target=touch_lost_page, args=(Path(path).parent,))
            thread.start()
            thread.join()
        else:
            touch_lost_page(Path(path).parent)
        time.sleep(5)
    print("alive")


def replaced(path):
    """Let others take SIGBUS over, or block it: a feed reads without the map then, and a lost page is an error."""
    with PackedFile(path) as file:
        feed = opened(file)
        assert usable(feed)
        expected = feed.make(0, BATCH).images
        faulthandler.enable()
        assert not usable(feed)
        assert torch.equal(feed.make(0, BATCH).images, expected)
        faulthandler.disable()
        assert usable(feed)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGBUS])
        assert not usable(feed)
        assert torch.equal(feed.make(0, BATCH).images, expected)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGBUS])
        assert usable(feed)
        signal.signal(signal.SIGBUS, lambda *_: print("ours"))
        assert not usable(feed)
        os.truncate(path, 8192)
        feed.make(0, BATCH)


def engine_of(feed):
    return feed._makers.at(0)[0][0]


def reset(path):
    """Set the default action on SIGBUS: the next batch, and the next map, are gathered, and a lost page is an error."""
    with PackedFile(path) as file:
        feed = opened(file)
        engine_of(feed).on_cpu_stream = None  # nobody reads
        signal.signal(signal.SIGBUS, signal.SIG_DFL)
        expected = feed.make(0, BATCH).images
        signal.signal(signal.SIGBUS, signal.SIG_DFL)
        again = opened(file)
        assert usable(again)
        engine_of(again).on_cpu_stream = None
        assert torch.equal(again.make(0, BATCH).images, expected)
    threads = [threading.Thread(target=lambda: [usable(again) for _ in range(500)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        signal.signal(signal.SIGBUS, signal.SIG_DFL)
    assert usable(again)
    assert again._mapped._guard._table[0] == signal.SIG_DFL  # who is asked next: not ourselves, for ever
    del engine_of(again).on_cpu_stream
    os.truncate(path, 8192)
    again.make(0, BATCH)


if __name__ == "__main__":
    {
        "truncations": lambda: truncations(sys.argv[2], int(sys.argv[3])),
        "alien": lambda: alien(sys.argv[2], sys.argv[3]),
        "replaced": lambda: replaced(sys.argv[2]),
        "reset": lambda: reset(sys.argv[2]),
    }[sys.argv[1]]()
