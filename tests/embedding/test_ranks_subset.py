"""build-subset on several ranks, in real processes: the file of one process, or an end that says why, at once."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch.distributed as dist
from packs import noise_images, write_raw
from places import ROOT

from fastload.embedding import joining
from fastload.embedding.embeddings_hash import hash_rows
from fastload.embedding.follower import data_state, embed_shares
from fastload.embedding.messages import connection_of, receive, send
from fastload.embedding.ranks import Follower, RankFailure
from fastload.errors import DataError, UsageError
from fastload.packed.file import PackedFile
from fastload.subset import build as subset
from fastload.subset import trials
from fastload.subset.settings import Settings

MODELS = """
import os, signal, time
import torch
class Linear(torch.nn.Module):
    calls = 0
    def __init__(self):
        super().__init__()
        self.weights = torch.nn.Parameter(torch.randn(192, 12, generator=torch.Generator().manual_seed(5)))
    def forward(self, images):
        if len(images) == 1024:  # a chunk: the trial of how long it takes has fewer
            Linear.calls += 1
            self.fail(os.environ.get("RANK"), Linear.calls)
        return images.flatten(1) @ self.weights
    def fail(self, rank, call):
        fault, _, at = os.environ.get("FAULT", "").partition(" ")
        if at != f"{rank} {call}":
            return
        if fault == "raise":
            raise ValueError("the dog ate it")
        if fault == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        os.kill(os.getppid(), signal.SIGINT)  # the launcher, which passes it on
        time.sleep(0.5)
"""
SETTINGS = {"strategy": "top-activations", "size": 300, "encoder": "rank_models:Linear", "input_size": 8}
SIZE = ("--strategy", "top-activations", "--size", "300", "--encoder", "rank_models:Linear", "--input-size", "8")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a full set of five chunks and its subset by one process."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "rank_models.py").write_text(MODELS)
    rng = np.random.default_rng(3)
    write_raw(folder / "full.h5", noise_images(5 * 1024, 8, 8), np.arange(5120) % 7, ids=rng.permutation(5120))
    here = os.getcwd()
    os.chdir(folder)
    try:
        subset.build_subset("full.h5", "one.h5", **SETTINGS)
    finally:
        os.chdir(here)
        sys.modules.pop("rank_models", None)
    return folder


COMMAND = ("-m", "fastload", "build-subset")


def start(folder, world, *words, fault="", launcher=True, program=COMMAND):
    """Start build-subset under torchrun, or as processes that nobody watches; returns it, or them."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "FAULT": fault}
    own = [*program, *map(str, words)]

    def process(words, more):
        return subprocess.Popen(
            [sys.executable, *words],
            cwd=folder,
            env=environment | more,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    if launcher:
        return process(["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world), *own], {})
    with socket.create_server(("127.0.0.1", 0)) as free:
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(world)}
    return [process(own, shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(world)]


def finish(process, seconds=90):
    out, said = process.communicate(timeout=seconds)
    return subprocess.CompletedProcess(process.args, process.returncode, out, said)


def files(folder):
    return {entry.name for entry in folder.iterdir()} - {"full.h5", "one.h5", "rank_models.py", "__pycache__"}


# -- the file -------------------------------------------------------------------------------------------------------


def test_two_ranks_write_the_very_file_of_one_process_and_rank_0_alone_speaks(few_cifar, tmp_path, monkeypatch):
    """Real images, the autoencoder, as many threads as one process takes by itself."""
    with PackedFile(few_cifar) as few:
        originals = np.stack([few.image(row) for row in range(len(few))])
        labels, names = np.tile(few.labels, 7), few.classes
    # 2,800 distinct ones: two chunks and a part of one.
    pixels = np.concatenate([np.roll(originals, shift, axis=2) for shift in range(7)])
    write_raw(tmp_path / "full.h5", pixels, labels, classes=names)
    words = ("--strategy", "top-activations", "--size", "8.64%", "--epochs", "0.3", "--keep")
    done = finish(start(tmp_path, 2, "full.h5", "two.h5", *words, "--json"))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert done.stderr.count("needs: time about") == done.stderr.count("embed: done, ") == 1
    monkeypatch.setattr(trials, "TRIAL_SECONDS", 0.05)
    settings = {"strategy": "top-activations", "size": "8.64%", "epochs": 0.3, "keep": True}
    alone = subset.build_subset(tmp_path / "full.h5", tmp_path / "one.h5", **settings)
    same = (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()
    assert same
    assert told["embeddings_hash"] == alone.embeddings_hash and told["chosen"] == 242
    stored = [np.load(tmp_path / f"{name}.h5.work" / "embeddings.npy") for name in ("one", "two")]
    assert (stored[0] == stored[1]).all() and hash_rows(stored[0]) == alone.embeddings_hash


def test_what_ctrl_c_and_a_killed_rank_left_other_numbers_of_ranks_finish(place):
    interrupted = finish(start(place, 3, "full.h5", "s.h5", *SIZE, fault="interrupt 0 1"))
    assert interrupted.returncode != 0
    assert "interrupted: s.h5.work keeps what is done; the same command goes on" in interrupted.stderr
    assert files(place) == {"s.h5.work"} and "error:" not in interrupted.stderr

    began = time.monotonic()
    process = start(place, 2, "full.h5", "s.h5", *SIZE, fault="die 1 2")
    killed = finish(process)
    assert time.monotonic() - began < 60, "the launch included, which takes 5 to 15 s here; a hang has no end"
    assert killed.returncode != 0
    assert "error: rank 1: its process ended without a word" in killed.stderr
    assert files(place) == {"s.h5.work"}

    resumed = finish(start(place, 3, "full.h5", "s.h5", *SIZE))
    assert resumed.returncode == 0, resumed.stderr
    assert re.search(r"embed: resumed at row [1-4],\d\d\d, ", resumed.stderr)
    same = (place / "s.h5").read_bytes() == (place / "one.h5").read_bytes()
    assert same
    (place / "s.h5").unlink()
    assert files(place) == set()


def test_a_rank_that_raises_ends_all_with_its_name_and_cause_though_no_launcher_kills_them(place):
    processes = start(place, 3, "full.h5", "s.h5", *SIZE, "--quiet", fault="raise 1 1", launcher=False)
    ended = [finish(process) for process in processes]
    cause = "error: rank 1: --encoder rank_models:Linear: failed on float32 images [1024, 3, 8, 8]: the dog ate it"
    assert [done.returncode for done in ended] == [2, 2, 2]
    lines = [done.stderr.strip().splitlines() for done in ended]
    assert [len(said) for said in lines] == [1, 1, 0] and all(said[0].startswith(cause) for said in lines[:2])
    assert files(place) == {"s.h5.work"}
    shutil.rmtree(place / "s.h5.work")


def test_in_a_program_s_own_group_all_ranks_return_rank_0_s_report(place):
    program = f"""
import json, sys
import torch.distributed as dist
from fastload.subset.build import build_subset
dist.init_process_group("gloo")
settings = {SETTINGS}
if dist.get_rank() == 0:
    build_subset("full.h5", "alone.h5", alone=True, **settings)
for name in ("a.h5", "b.h5"):
    report = build_subset("full.h5", name, **settings)
build_subset("full.h5", "c.h5", size=300, strategy="random")
print(json.dumps(report.state()))
dist.destroy_process_group()
"""
    ended = [finish(process) for process in start(place, 2, launcher=False, program=("-c", program))]
    assert [done.returncode for done in ended] == [0, 0], ended
    told = [json.loads(done.stdout) for done in ended]
    assert told[0] == told[1] and told[0]["out"] == "b.h5" and told[0]["chosen"] == 300
    one = (place / "one.h5").read_bytes()
    for name in ("alone", "a", "b", "c"):
        same = (place / f"{name}.h5").read_bytes() == one
        assert same == (name != "c"), name
        (place / f"{name}.h5").unlink()
    assert files(place) == set()


# -- the connections alone ------------------------------------------------------------------------------------------


@pytest.fixture
def three():
    """Rank 0 of three in this thread, and what ranks 1 and 2 have."""
    store = dist.HashStore()
    found = {}

    def join(rank):
        found[rank] = joining._join(store, "run", rank, 3)

    threads = [threading.Thread(target=join, args=(rank,)) for rank in (2, 1)]
    for thread in threads:
        thread.start()
    leader = joining._gather(store, "run", 3)
    for thread in threads:
        thread.join()
    yield leader, found[1], found[2]
    for follower in (found[1], found[2]):
        follower.close()
    leader.close()


def send_chunk(follower, row, values):
    follower.send({"row": row, "shape": values.shape}, values)


def test_each_rank_s_chunks_come_in_order_however_far_ahead_it_is(three):
    leader, *followers = three
    chunks = {
        rank: [np.random.default_rng(rank + turn).random((50, 7), np.float32) for turn in range(9)] for rank in (1, 2)
    }

    def send(follower):
        for turn, values in enumerate(chunks[follower.rank]):
            send_chunk(follower, turn, values)

    threads = [threading.Thread(target=send, args=(follower,)) for follower in followers]
    for thread in threads:
        thread.start()
    for turn in range(9):
        for rank in (1, 2):
            assert (leader.chunk(rank, turn) == chunks[rank][turn]).all()
    for thread in threads:
        thread.join()


def test_an_answer_to_another_question_is_refused(three):
    leader, first, second = three
    send_chunk(first, 1024, np.zeros((2, 3), np.float32))
    second.send({"row": 0, "shape": [2, 4]}, np.zeros((2, 3), np.float32))
    for rank in (1, 2):
        with pytest.raises(RankFailure, match=f"rank {rank}: sent 6 numbers .* where row 0 was to come"):
            leader.chunk(rank, 0)


def test_the_end_of_one_rank_s_connection_is_heard_of_while_another_is_waited_for(three):
    leader, first, second = three
    second.close()
    began = time.monotonic()
    with pytest.raises(RankFailure, match="rank 2: its process ended without a word"):
        leader.chunk(1, 0)
    error = leader.failed(RankFailure("rank 2: its process ended"))
    assert str(error) == "rank 2: its process ended" and time.monotonic() - began < 2
    with pytest.raises(RankFailure, match="rank 2: its process ended") as told:
        first.check()
    assert told.value.told, "rank 0 prints it"


def test_a_rank_that_rank_0_left_hears_of_the_reason_in_the_middle_of_sending(three):
    leader, first, second = three
    leader.failed(OSError("no room"))
    threading.Thread(target=leader.close).start()
    for follower in (first, second):
        with pytest.raises(RankFailure, match="rank 0: OSError: no room"):
            for turn in range(1000):
                send_chunk(follower, turn, np.zeros((1024, 216), np.float32))
                follower.check()


def test_a_rank_whose_rank_0_died_says_so(three):
    leader, first, _ = three
    threading.Thread(target=leader.close).start()
    with pytest.raises(RankFailure, match="rank 0: its process ended before the subset was written") as failure:
        first.receive()
    assert not failure.value.told, "nobody else is left to print it"


def test_what_comes_after_a_pass_is_kept_by_a_rank_that_looks_whether_the_pass_ended(three):
    leader, first, _ = three
    leader.tell({"report": 5}, b"weights")
    time.sleep(0.1)
    first.check()
    first.check()
    assert first.receive() == ({"report": 5}, b"weights")


ASKED = {"first": 0, "threads": 1, "encoder": "", "view": {}}


@pytest.mark.parametrize(
    ("changes", "encoder", "message"),
    [
        ({"samples": 9}, None, r"full.h5: is not the full set that rank 0 has \(samples 5120 instead of 9\)"),
        ({}, None, "rank 0 was given encoder=, and this rank was not"),
        ({}, "rank_models:Linear", "has other weights, code or input_size= than rank 0's"),
    ],
)
def test_a_rank_with_other_data_or_another_encoder_than_rank_0_refuses(
    three, place, monkeypatch, changes, encoder, message
):
    leader, first, _ = three
    monkeypatch.chdir(place)
    with PackedFile(place / "full.h5") as file:
        leader.tell(ASKED | {"data": data_state(file) | changes})

    def settings():
        settings = SETTINGS | {"encoder": encoder, "input_size": 8 if encoder else None}
        return Settings(place / "full.h5", place / "s.h5", **settings)

    with pytest.raises((DataError, UsageError), match=message) as refused:
        embed_shares(first, settings)
    assert str(first.failed(refused.value)) == f"rank 1: {refused.value}"
    with pytest.raises(RankFailure, match="rank 1: ") as heard:
        leader.chunk(2, 0)
    assert heard.value.exit_code == refused.value.exit_code
    sys.modules.pop("rank_models", None)


def test_strangers_are_not_taken_for_ranks_nor_waited_for(monkeypatch):
    monkeypatch.setattr(joining, "_GREETING_SECONDS", 1)
    store = dist.HashStore()
    gathered = []
    thread = threading.Thread(target=lambda: gathered.append(joining._gather(store, "run", 2)))
    thread.start()
    store.wait(["run"])
    told = json.loads(store.get("run"))
    for greeting in ({"rank": 1, "token": "guess"}, {"rank": 1}, [1], {"rank": 1, "token": "x" * 5000}):
        stranger = connection_of(socket.create_connection((told["host"], told["port"])))
        with pytest.raises((EOFError, OSError)):
            send(stranger, greeting)
            receive(stranger)
        stranger.close()
    silent = socket.create_connection((told["host"], told["port"]))
    assert not gathered
    follower = joining._join(store, "run", 1, 2)
    thread.join(5)
    assert isinstance(follower, Follower) and gathered[0].world_size == 2
    silent.close()
    follower.close()
    gathered[0].close()


def test_a_rank_that_does_not_come_is_named(monkeypatch):
    monkeypatch.setattr(joining, "JOIN_SECONDS", 0.3)
    with pytest.raises(TimeoutError, match="missing: 1, 2"):
        joining._gather(dist.HashStore(), "run", 3)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(joining, "_launcher_store", dist.HashStore)
    with (
        pytest.raises(RankFailure, match=r"rank 1: the 2 ranks did not find each other .*alone=True"),
        joining.joined(),
    ):
        pass
    with joining.joined(alone=True) as part:
        assert part.world_size == 1
